"""Mappings and lists of the YAML form, checked for what may stand in them.

In: nodes. Out: their fields and items; every key that is unknown, doubled or of the wrong type is a
fault with the nearest known one. Knows how messages speak, but no clause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nlc.diagnostics import Faults
from nlc.errors import nearest
from nlc.source import Source, Span
from nlc.syntax import tree as t
from nlc.syntax.limits import MAX_ERRORS
from nlc.syntax.parse_text import parse_passage
from nlc.syntax.yaml_margin import YamlMargin
from nlc.syntax.yaml_nodes import Alias, Mapping, Node, Scalar, Sequence, passage_of, span_of

# `d:128`, which YAML takes for a key
_TIGHT = re.compile(r"\w+:\S.*")
_CLOSERS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True, eq=False)
class Field:
    """A key with its value."""

    key: Scalar
    value: Node

    @property
    def start(self) -> int:
        """Where the key begins."""
        return self.key.start

    @property
    def end(self) -> int:
        """Where the value ends, or the key where there is none."""
        return max(self.value.end, self.key.end) if self.value.end else self.key.end

    @property
    def span(self) -> Span:
        """The key and its value; for a block, its first line."""
        end = span_of(self.value).end if self.value.end > self.value.start else self.key.end
        return Span(self.key.source, self.start, max(end, self.key.end))


def is_missing(node: Node) -> bool:
    """Say whether a node is YAML's nothing."""
    return isinstance(node, Scalar) and node.style is None and node.text in ("", "~")


def kind_of(node: Node) -> str:
    """Return what a node is, in words."""
    if is_missing(node):
        return "nothing"
    return {Scalar: "a text", Sequence: "a list", Mapping: "a mapping"}.get(type(node), "an alias")


def is_split(text: str) -> bool:
    """Say whether a text has brackets without partners, as a comma of YAML leaves them."""
    open_: list[str] = []
    for char in text:
        if char in "([{":
            open_.append(char)
        elif char in ")]}" and (not open_ or open_.pop() != _CLOSERS[char]):
            return True
    return bool(open_)


class Fields:
    """Reads mappings, lists and texts of one source."""

    def __init__(self, source: Source, faults: Faults, margin: YamlMargin):
        self.source = source
        self.faults = faults
        self.margin = margin

    def followed(self, node: Node) -> Node:
        """Return what an alias stands for, or the node itself."""
        while isinstance(node, Alias):
            node = node.target
        return node

    # ---- texts ---------------------------------------------------------------------------------

    def parse(self, node: Node, start: str, place: str) -> Any:
        """Parse a text by the grammar of the text form; None after a fault."""
        if len(self.faults.found) >= MAX_ERRORS:
            return None
        followed = self.followed(node)
        if not isinstance(followed, Scalar) or is_missing(followed):
            hint = "write an expression, in quotes where YAML needs them"
            if isinstance(followed, Sequence | Mapping):
                hint = "write several as `a, b`, without brackets; a text that begins with a "
                hint += "bracket needs quotes"
            self.wrong_kind(node, "a text", hint)
            return None
        passage = passage_of(followed)
        return parse_passage(passage, start, place, self.faults, self.margin)

    def scalar(self, field: Field, what: str) -> Scalar | None:
        """Return the text of a field as it stands."""
        node = self.followed(field.value)
        if isinstance(node, Scalar) and not is_missing(node):
            return node
        self.wrong_kind(field.value, what, f"write {what} after `{field.key.text}:`", field.key)
        return None

    def wrong_kind(self, node: Node, what: str, hint: str, key: Scalar | None = None) -> None:
        """Record that a node is not what is expected."""
        found = kind_of(self.followed(node))
        if found == "nothing":
            behind = f" after `{key.text}:`" if key is not None else ""
            self.faults.error(
                "NL0156",
                f"there is nothing{behind or ' here'}",
                span_of(key) if key is not None else span_of(node),
                f"{what} is expected",
                hint,
            )
        else:
            self.faults.error(
                "NL0155", f"{what} is expected, not {found}", span_of(node), found, hint
            )

    # ---- lists ---------------------------------------------------------------------------------

    def items(self, field: Field, what: str, example: str) -> list[Node]:
        """Return the items of a list; record a fault for anything else."""
        node = self.followed(field.value)
        if not isinstance(node, Sequence):
            self.wrong_kind(field.value, what, f"write `{example}`", field.key)
            return []
        if node.flow and self._splits(node.items):
            return []
        return node.items

    def _splits(self, items: Iterable[Node]) -> bool:
        """Record that a comma of YAML went through the middle of an expression."""
        for item in items:
            if isinstance(item, Scalar) and item.style is None and is_split(item.text):
                self.faults.error(
                    "NL0152",
                    "a comma splits an expression",
                    span_of(item),
                    "YAML reads this as an item of its own",
                    "put each expression that holds a comma in double quotes, or write each item "
                    "on its own line, after `- `",
                )
                return True
        return False

    # ---- mappings ------------------------------------------------------------------------------

    def fields(
        self, node: Node, what: str, keys: tuple[str, ...] | None
    ) -> dict[str, Field] | None:
        """Return the fields of a mapping by their keys; `keys` None lets any key stand."""
        mapping = self.followed(node)
        if not isinstance(mapping, Mapping):
            known = f", with {_listed(keys)}" if keys else ""
            self.wrong_kind(node, "a mapping", f"write {what} as `key: value` lines{known}")
            return None
        if mapping.flow and self._splits(part for pair in mapping.pairs for part in pair):
            return None
        found: dict[str, Field] = {}
        merged: list[Field] = []
        for key_node, value in mapping.pairs:
            key = self.followed(key_node)
            if not isinstance(key, Scalar):
                self.wrong_kind(key_node, "a key", "write a key as a text")
            elif key.style is None and is_missing(value) and _TIGHT.fullmatch(key.text):
                name, written = key.text.split(":", 1)
                self.faults.error(
                    "NL0156",
                    f"a space is missing after `{name}:`",
                    span_of(key),
                    "YAML reads all of this as a key",
                    f"write `{name}: {written}`",
                )
            elif key.text == "<<" and key.style is None:
                merged.extend(self._merged(value))
            elif keys is not None and key.text not in keys:
                self._unknown(key, what, keys)
            elif key.text in found:
                self.faults.error(
                    "NL0153",
                    f"the key `{key.text}` is written twice",
                    span_of(key),
                    "again here",
                    "keep one of the two",
                    (span_of(found[key.text].key), "first here"),
                )
            else:
                found[key.text] = Field(key, value)
        for field in merged:
            if keys is not None and field.key.text not in keys:
                self._unknown(field.key, what, keys)
            else:
                found.setdefault(field.key.text, field)
        return found

    def _merged(self, node: Node) -> Iterator[Field]:
        """Yield the fields that `<<: *name` brings in."""
        followed = self.followed(node)
        sources = followed.items if isinstance(followed, Sequence) else [followed]
        for source in sources:
            mapping = self.followed(source)
            if not isinstance(mapping, Mapping):
                self.faults.error(
                    "NL0162",
                    "`<<` brings in mappings alone",
                    span_of(source),
                    kind_of(mapping),
                    "write `<<: *name`, where `&name` marks a mapping",
                )
                return
            for key_node, value in mapping.pairs:
                key = self.followed(key_node)
                if isinstance(key, Scalar) and key.text == "<<":
                    yield from self._merged(value)
                elif isinstance(key, Scalar):
                    yield Field(key, value)

    def _unknown(self, key: Scalar, what: str, keys: tuple[str, ...]) -> None:
        meant = nearest(key.text, keys)
        did = f"did you mean `{meant}`? " if meant else ""
        self.faults.error(
            "NL0154",
            f"{what} has no key `{key.text}`",
            span_of(key),
            "not known here",
            f"{did}{what} has {_listed(keys)}",
        )

    def lacks(self, field: Field, key: str, hint: str) -> None:
        """Record that a key which must stand in, or with, a field does not."""
        title = f"`{field.key.text}` lacks `{key}`"
        self.faults.error("NL0158", title, span_of(field.key), f"there is no `{key}`", hint)

    def section(self, field: Field | None, what: str) -> list[Field]:
        """Return the fields of a section, whose own comments go to the first of them."""
        if field is None:
            return []
        found = list((self.fields(field.value, f"`{what}`", None) or {}).values())
        if found:
            self.margin.move(field.key.start, field.key.end, found[0].start)
        return found

    # ---- comments ------------------------------------------------------------------------------

    def whole_comments(self, field: Field) -> t.Comments:
        """Claim all that is left at a field; what stands behind its key counts as behind."""
        head = self.margin.statement(field.start, field.key.end)
        rest = self.margin.statement(field.key.end, field.end)
        behind = [text for text in (head.behind, rest.behind) if text is not None]
        above = [*head.above, *(line for line in rest.above if line != t.BLANK)]
        return t.Comments(tuple(above), "; ".join(behind) if behind else None)

    def closing(self, field: Field, within: Iterable[str] | dict[str, Field]) -> tuple[str, ...]:
        """Claim the comments below the last line of a field's mapping."""
        first = next(iter(within.values()), None) if isinstance(within, dict) else None
        column = self.column(first.start) if first is not None else self.column(field.start) + 1
        return self.margin.closing(field.start, field.end, column)

    def column(self, place: int) -> int:
        """Return how far the line of a place is indented; a dash counts as its begin."""
        line = self.source.text.rfind("\n", 0, place) + 1
        text = self.source.text[line:place]
        return len(text) - len(text.lstrip())


def _listed(keys: tuple[str, ...] | None) -> str:
    names = [f"`{key}`" for key in keys or ()]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
