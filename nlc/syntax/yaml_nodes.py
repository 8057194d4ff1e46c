"""YAML as nodes with places, and nothing else of YAML.

In: a source. Out: `Node`s, in which every scalar is the text that stands there: PyYAML's guesses
(`on` is True, `1:30` is 90, `1e-3` is a string) are never made. Aliases and merge keys are followed
within limits, so an alias bomb is refused before it is unfolded. Knows nothing of the language.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from nlc.diagnostics import Faults
from nlc.source import Source, Span
from nlc.syntax.limits import MAX_ALIASES, MAX_ERRORS, MAX_EXPANDED, MAX_NESTING
from nlc.syntax.passage import Passage
from nlc.syntax.yaml_mistakes import masked, report_yaml
from nlc.syntax.yaml_scalars import scalar_offsets

PLAIN_TAGS = (None, "!")


@dataclass(eq=False)
class Node:
    """A scalar, a sequence or a mapping; `start` and `end` are places in the source."""

    source: Source = field(repr=False)
    start: int
    end: int


@dataclass(eq=False)
class Scalar(Node):
    """A text; `style` is None for a plain one, else its quote, `|` or `>`."""

    text: str
    style: str | None = None


@dataclass(eq=False)
class Sequence(Node):
    """A list."""

    items: list[Node]
    flow: bool = False


@dataclass(eq=False)
class Mapping(Node):
    """Keys and values in order; keys may repeat and be no scalars."""

    pairs: list[tuple[Node, Node]]
    flow: bool = False


@dataclass(eq=False)
class Alias(Node):
    """`*name`, with the node that it stands for."""

    name: str
    target: Node


def span_of(node: Node) -> Span:
    """Return where a node stands; for a block, its first line."""
    end = node.end
    if isinstance(node, Sequence | Mapping) and not node.flow:
        line = node.source.text.find("\n", node.start)
        end = min(end, line if line >= 0 else end)
    if end > node.start:
        return Span(node.source, node.start, end)
    last = max(len(node.source.text[: node.start].rstrip()) - 1, 0)  # the `:` or `-` before nothing
    return Span(node.source, last, last + 1)


def places_of(root: Node) -> list[tuple[int, int]]:
    """Return where scalars, aliases and the brackets of flow collections stand, in order."""
    places: list[tuple[int, int]] = []
    waiting: list[Node] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Sequence | Mapping):
            if node.flow:
                places.append((node.start, node.start + 1))
                places.append((node.end - 1, node.end))
            waiting.extend(_parts(node))
        elif node.end > node.start:
            places.append((node.start, node.end))
    return sorted(places)


def passage_of(scalar: Scalar) -> Passage:
    """Return the text of a scalar with the places of its characters."""
    written = scalar.source.text[scalar.start : scalar.end]
    offsets = scalar_offsets(scalar.text, written, scalar.style, scalar.start)
    return Passage(scalar.source, scalar.text.rstrip(), offsets)


def read_nodes(source: Source, faults: Faults) -> tuple[Node | None, list[tuple[int, int]]]:
    """Return the root of a YAML text, or None where it is not YAML or beyond the limits.

    After a value that is no YAML reading goes on without it; returns where such values stand.
    """
    text = source.text
    values: list[tuple[int, int]] = []
    while True:
        try:
            root = _Composer(source, text, faults).compose()
            break
        except yaml.YAMLError as wrong:
            place = report_yaml(wrong, source, faults)
            if place is None or len(faults.found) >= MAX_ERRORS:
                return None, values
            again = masked(text, place)
            if again is None:
                return None, values
            text, value = again
            values.append(value)
    if root is None or not _bounded(root, faults):
        return None, values
    return root, values


class _Stop(Exception):
    """A limit is passed; the fault is recorded."""


@dataclass
class _Open:
    """A collection whose end has not been seen."""

    node: Sequence | Mapping
    key: Node | None = None


class _Composer:
    """Builds nodes from PyYAML's events, with a stack of its own instead of recursion."""

    def __init__(self, source: Source, text: str, faults: Faults):
        self.source = source
        self.text = text
        self.faults = faults
        self.open: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.aliases = 0
        self.root: Node | None = None

    def compose(self) -> Node | None:
        """Return the root, or None after a fault."""
        documents = 0
        try:
            for event in _events(self.text):
                if isinstance(event, DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._stop(
                            "NL0163",
                            event,
                            "a second document",
                            "begins here",
                            "write one spec into one file, without `---`",
                        )
                elif isinstance(event, CollectionEndEvent):
                    self._close(event)
                elif isinstance(event, NodeEvent):
                    self._add(event)
        except _Stop:
            return None
        return self.root

    def _fault(self, code: str, event: Event, title: str, text: str, hint: str) -> None:
        start, end = _place(event.start_mark), _place(event.end_mark)
        span = Span(self.source, start, max(end, min(start + 1, len(self.source.text))))
        self.faults.error(code, title, span, text, hint)

    def _stop(self, code: str, event: Event, title: str, text: str, hint: str) -> NoReturn:
        self._fault(code, event, title, text, hint)
        raise _Stop

    def _add(self, event: NodeEvent) -> None:
        start, end = _place(event.start_mark), _place(event.end_mark)
        node: Node
        match event:
            case AliasEvent():
                node = self._alias(event, start, end)
            case ScalarEvent():
                if event.value and event.style is None:
                    end = start + len(self.text[start:end].rstrip())
                text = event.value if event.tag in PLAIN_TAGS else "x"
                node = Scalar(self.source, start, end, text, event.style)
            case SequenceStartEvent():
                node = Sequence(self.source, start, end, [], bool(event.flow_style))
            case MappingStartEvent():
                node = Mapping(self.source, start, end, [], bool(event.flow_style))
            case _:
                raise AssertionError(event)
        if isinstance(event, ScalarEvent | SequenceStartEvent | MappingStartEvent):
            self._check_tag(event)
        if event.anchor is not None and not isinstance(node, Alias):
            self.anchors[event.anchor] = node
        self._attach(node)
        if isinstance(node, Sequence | Mapping):
            self.open.append(_Open(node))
            if len(self.open) > MAX_NESTING:
                self._stop(
                    "NL0187",
                    event,
                    f"more than {MAX_NESTING} lists and mappings within one another",
                    "one level too many",
                    "no spec needs that many; check the brackets and the indentation",
                )

    def _check_tag(self, event: ScalarEvent | SequenceStartEvent | MappingStartEvent) -> None:
        if event.tag not in PLAIN_TAGS:
            written = self.source.text[_place(event.start_mark) :].split(None, 1)
            self._fault(
                "NL0160",
                event,
                f"`{written[0] if written else '!'}` is a tag of YAML",
                "begins with `!`",
                "delete it; an expression that begins with `!` does not exist",
            )

    def _alias(self, event: AliasEvent, start: int, end: int) -> Node:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            self._stop(
                "NL0192",
                event,
                f"more than {MAX_ALIASES} aliases",
                "one too many",
                "write the repeated parts out, or as a rule or block of their own",
            )
        target = self.anchors.get(str(event.anchor))
        if target is None:
            self._fault(
                "NL0161",
                event,
                f"nothing is called `&{event.anchor}`",
                "read as an alias, since it begins with `*`",
                "put an expression that begins with `*` in quotes; an alias follows its `&name`",
            )
            return Scalar(self.source, start, end, "x", "*")
        if any(target is opened.node for opened in self.open):
            self._stop(
                "NL0194",
                event,
                f"`*{event.anchor}` is inside the part it stands for",
                "would never end",
                "write the part out",
            )
        return Alias(self.source, start, end, str(event.anchor), target)

    def _attach(self, node: Node) -> None:
        if not self.open:
            self.root = self.root or node
            return
        top = self.open[-1]
        if isinstance(top.node, Sequence):
            top.node.items.append(node)
        elif top.key is None:
            top.key = node
        else:
            top.node.pairs.append((top.key, node))
            top.key = None

    def _close(self, event: Event) -> None:
        node = self.open.pop().node
        last: Node | None = None
        if isinstance(node, Sequence):
            last = node.items[-1] if node.items else None
        elif node.pairs:
            key, value = node.pairs[-1]
            last = value if value.end > value.start else key
        if node.flow:
            node.end = _place(event.end_mark)
        elif last is not None:
            node.end = max(last.end, node.start)


def _place(mark: Any) -> int:
    """Return the place of a mark of PyYAML, in code points."""
    return int(mark.index)


def _events(text: str) -> Iterator[Event]:
    events: Iterator[Event] = yaml.parse(text, Loader=yaml.SafeLoader)
    return events


def _bounded(root: Node, faults: Faults) -> bool:
    """Say whether the tree stays small once every alias is unfolded."""
    sizes: dict[int, int] = {}
    aliased = False
    waiting: list[tuple[Node, bool]] = [(root, False)]
    while waiting:
        node, seen = waiting.pop()
        parts = _parts(node)
        aliased = aliased or isinstance(node, Alias)
        if seen:
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in parts)
            if aliased and sizes[id(node)] > MAX_EXPANDED:
                faults.error(
                    "NL0193",
                    "the aliases unfold to too much",
                    span_of(node),
                    f"more than {MAX_EXPANDED:,} nodes once written out",
                    "write the repeated parts as a rule or block of their own",
                )
                return False
        elif id(node) not in sizes:
            waiting.append((node, True))
            waiting.extend((part, False) for part in parts if id(part) not in sizes)
    return True


def _parts(node: Node) -> list[Node]:
    match node:
        case Alias():
            return [node.target]
        case Sequence():
            return node.items
        case Mapping():
            return [part for pair in node.pairs for part in pair]
        case _:
            return []
