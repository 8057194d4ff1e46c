"""One part of a launch where a window ends, as a function of Triton: forward, and its gradients.

In: an `Item` over leaves that have words, and how these come. Out: an `ItemText`. A program has
some rows of the part, or columns, or all of it, where something is summed over both; what is the
same for all programs of a copy each makes for itself, and on the way back gives its share of a
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlc.codegen.names import Names
from nlc.codegen.triton.loop_back import summed
from nlc.codegen.triton.loop_graph import leaf_stream
from nlc.codegen.triton.loop_split import NONE, Places, Splitter, Whole
from nlc.codegen.triton.loop_text import BlockText
from nlc.codegen.triton.loop_values import Block, Frame, ValuePrinter
from nlc.codegen.triton.operations import Unprintable, block
from nlc.codegen.triton.window_graph import own_of

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.kernel import Calculus
from nlc.ir.shape import Axis, Shape

# entries of one value that a program may have
LARGEST = 1 << 13
# names that these functions use themselves
WORDS = {"copy", "part", "V", "E", "tl", "triton", "torch", "place", "share", "front", "found"}


@dataclass(frozen=True)
class Leaf:
    """What a launch is given: its word in the launch, and whether it has rows and copies.

    `shape` is with the axes of `count` copies.
    """

    word: str
    shape: Shape
    own: Shape
    rows: bool
    copies: bool
    wide: bool
    count: int

    @property
    def start(self) -> str:
        """Which of its values a copy has."""
        if self.rows:
            return "copy" if self.copies or self.count == 1 else f"copy // {self.count}"
        return f"copy % {self.count}" if self.copies else "0"


@dataclass(frozen=True)
class Slope:
    """A gradient that a program stores: of a leaf in part, or its share of that of a whole one."""

    word: str
    leaf: str
    split: bool


@dataclass(frozen=True)
class Body:
    """A function: what it takes, in order, by its own words; `takes` are words of the launch."""

    words: tuple[str, ...]
    takes: tuple[str, ...]
    text: str


@dataclass
class ItemText:
    """One item: `axis` is what its programs have some entries of; `width` is the other one's."""

    axis: Axis | None
    width: int
    outputs: tuple[tuple[str, Shape], ...]
    forward: Body
    back: Body | None
    slopes: tuple[Slope, ...]


@dataclass
class Closed:
    """An item over streams: `roots` by word, comments by the values they give."""

    graph: Graph
    lead: Shape
    roots: Mapping[str, Expr]
    comments: Mapping[Expr, list[str]]
    # the word of each leaf inside the item, and what it is in the launch
    leaves: Mapping[str, Leaf]


def item_text(closed: Closed, calculus: Calculus) -> ItemText:
    """Write an item; raises `Unprintable` where it is none."""
    domain = max((own_of(root.shape, closed.lead) for root in closed.roots.values()), key=_count)
    # whole rows first, since their entries lie beside each other
    for place in [p for p in (-2, -1) if -p <= len(domain) and domain[p].size > 1]:
        try:
            return _Writer(closed, calculus, domain, place).write()
        except Whole:
            continue
    if math.prod(block(axis.size) for axis in domain) > LARGEST:
        raise Unprintable(f"it needs more than {LARGEST} entries at once")
    return _Writer(closed, calculus, domain, 0).write()


def _count(shape: Shape) -> int:
    return math.prod(axis.size for axis in shape)


class _Writer:
    """Writes an item whose programs have a part of the axis at `place`, or all where that is 0."""

    def __init__(self, closed: Closed, calculus: Calculus, domain: Shape, place: int):
        self.closed, self.calculus, self.place = closed, calculus, place
        self.axis = domain[place] if place else None
        others = [block(axis.size) for i, axis in enumerate(domain) if i - len(domain) != place]
        self.width = math.prod(others)
        if self.axis is not None and self.width > LARGEST:
            raise Whole
        self.roots, self.comments = self._split()

    def _split(self) -> tuple[dict[str, Expr], dict[Expr, list[str]]]:
        """One program's part of the values."""
        closed = self.closed
        if self.axis is None:
            return dict(closed.roots), dict(closed.comments)
        splitter = Splitter(closed.graph, closed.lead, self.axis.size, {})
        want = frozenset({self.place})
        roots = {}
        for word, root in closed.roots.items():
            # what has the axis is taken in part
            has = splitter.long(root.shape, self.place) and self._rank(root) == 2
            roots[word], places = splitter.part(root, want if has or self._lone else NONE)
            if has and not places:
                raise Whole
        for node in postorder(list(roots.values())):
            large = splitter.long(node.shape, self.place) and self._rank(node) == 2
            if node.op == "stream" and large and not node.attr("split"):
                # each program would need all of it
                raise Whole
        comments = {
            new: closed.comments[node]
            for (node, _), (new, _) in splitter.made.items()
            if node in closed.comments
        }
        return roots, comments

    def _rank(self, node: Expr) -> int:
        return sum(axis.size > 1 for axis in own_of(node.shape, self.closed.lead))

    @property
    def _lone(self) -> bool:
        """Say whether values are vectors alone."""
        return all(self._rank(root) < 2 for root in self.closed.roots.values())

    def _places(self, root: Expr) -> Places:
        if self.axis is None:
            return NONE
        lead = self.closed.lead
        return Splitter(self.closed.graph, lead, self.axis.size, {}, fixed=True).part(root)[1]

    def write(self) -> ItemText:
        """Write both ways."""
        places = {word: self._places(root) for word, root in self.roots.items()}
        own = {word: own_of(root.shape, self.closed.lead) for word, root in self.roots.items()}
        forward = self._forward(places, own)
        back, slopes = self._back(places, own)
        shapes = tuple((word, own[word]) for word in self.roots)
        return ItemText(self.axis, self.width, shapes, forward, back, slopes)

    def _text(self) -> tuple[BlockText, list[Expr]]:
        words = {*WORDS, *self.closed.leaves, *self.closed.roots}
        names = Names(words | {f"d{word}" for word in words})
        text = BlockText(Frame(self.closed.lead, names), self.axis)
        leaves = [n for n in postorder(list(self.roots.values())) if n.op == "stream"]
        return text, leaves

    def _load(self, text: BlockText, leaves: Sequence[Expr], known: dict[Expr, Block]) -> None:
        for node in leaves:
            word = node.attr("name")
            if node in known or word not in self.closed.leaves:
                continue
            leaf, split = self.closed.leaves[word], frozenset(node.attr("split"))
            name = text.frame.names.fresh(f"{word}_part") if split else word
            name = word if split and self._alone(word, leaves) else name
            known[node] = text.load(name, word, leaf.own, split, leaf.start)

    @staticmethod
    def _alone(word: str, leaves: Sequence[Expr]) -> bool:
        """Say whether a leaf is taken in one way only."""
        return len({node for node in leaves if node.attr("name") == word}) == 1

    def _forward(self, places: dict[str, Places], own: dict[str, Shape]) -> Body:
        text, leaves = self._text()
        known: dict[Expr, Block] = {}
        self._load(text, leaves, known)
        printer = ValuePrinter(text.frame, text.out, known, self.comments)
        made = printer.run(list(self.roots.values()))
        for (word, split), value in zip(places.items(), made, strict=True):
            dims = text.frame.dims(own[word], split)
            text.store(word, own[word], split, "copy", text.full(printer, value, dims))
        given = list(dict.fromkeys(node.attr("name") for node in leaves))
        return self._body(text, [*given, *self.roots], [])

    def _body(self, text: BlockText, words: list[str], more: list[str]) -> Body:
        lines = [*text.along(), *more, *text.out.lines]
        inside = "\n".join(lines)
        own = ["copy"]
        own += ["part"] if self.axis is not None else []
        own += [f"{word}_ptr" for word in words]
        own += ["V: tl.constexpr"] if self.axis is not None else []
        return Body(tuple(own), tuple(words), inside)

    def _back(
        self, places: dict[str, Places], own: dict[str, Shape]
    ) -> tuple[Body | None, tuple[Slope, ...]]:
        graph, closed = self.closed.graph, self.closed
        seeds, reached = {}, []
        for word, root in self.roots.items():
            seed = leaf_stream(graph, f"d{word}", root.shape, tuple(places[word]))
            seeds[word] = seed
            reached.append((root, summed(graph, seed, root)))

        def is_leaf(node: Expr) -> bool:
            if node.op != "stream":
                return False
            return node.attr("name") in closed.leaves

        found = self.calculus.pull_back(graph, reached, is_leaf)
        if found is None:
            raise Unprintable("it has no gradient")
        if not found:
            return None, ()
        slopes = self._parts(found, {f"d{word}": split for word, split in places.items()})
        text, _ = self._text()
        leaves = [n for n in postorder(list(slopes.values())) if n.op == "stream"]
        known: dict[Expr, Block] = {}
        self._load(text, leaves, known)
        for word, seed in seeds.items():
            if seed in leaves:
                known[seed] = text.load(
                    f"d{word}", f"d{word}", own[word], places[word], "copy", once=True
                )
        forward = set(postorder(list(self.roots.values())))
        printer = ValuePrinter(text.frame, text.out, known, self.comments, forward, shares=True)
        made = printer.run(list(slopes.values()))
        stored, more = [], []
        for leaf, value in zip(slopes, made, strict=True):
            word, split = leaf.attr("name"), frozenset(leaf.attr("split"))
            name = text.frame.names.fresh(f"grad_{word}")
            whole = self.axis is not None and not split
            start = "share" if whole else "copy"
            shape = closed.leaves[word].own
            dims = text.frame.dims(shape, split)
            text.store(name, shape, split, start, text.full(printer, value, dims))
            stored.append(Slope(name, word, not whole))
        if any(not slope.split for slope in stored):
            more = ["    share = tl.program_id(1) * tl.num_programs(0) + copy"]
        given = list(dict.fromkeys(node.attr("name") for node in leaves))
        body = self._body(text, [*given, *(slope.word for slope in stored)], more)
        return body, tuple(stored)

    def _parts(self, found: dict[Expr, Expr], fixed: dict[str, Places]) -> dict[Expr, Expr]:
        """One program's part of each gradient."""
        if self.axis is None:
            return found
        fixed = {word: split for word, split in fixed.items() if split}
        closed = self.closed
        splitter = Splitter(closed.graph, closed.lead, self.axis.size, fixed, shares=True)
        return splitter.parts(found)
