"""What is planned of a loop over tokens that runs as one kernel: sizes, and how leaves come.

In: the graph of one token and how its leaves come. Out: a `LoopPlan`, with the text of its kernels;
raises `Unprintable` where there is none. Where rows of a state go to several programs, a program
has as many as its registers hold well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.triton.loop_graph import LoopGraph
from nlc.codegen.triton.loop_split import Places, Splitter
from nlc.codegen.triton.operations import Unprintable, block

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import Axis, Shape

# entries of a state that a program has of its rows
PART = 1 << 10
# ... where a state is one row: more programs rather than longer ones
CHANNELS = 1 << 7
# products of whole matrices in one kernel: they are exact, and each is long
PRODUCTS = 12


@dataclass(frozen=True)
class Given:
    """How a leaf comes: for each token, row and copy or not; `still` leaves have no gradient.

    It is `alike` where several copies have one.
    """

    word: str
    shape: Shape
    own: Shape
    tokens: bool
    rows: bool
    copies: bool
    wide: bool
    still: bool
    alike: bool


@dataclass(frozen=True)
class Held:
    """A state of the loop, and of which axes a program has a part."""

    word: str
    shape: Shape
    own: Shape
    split: Places


@dataclass(frozen=True)
class Row:
    """A stream that the loop makes."""

    word: str
    shape: Shape
    own: Shape
    split: Places
    wide: bool


@dataclass(frozen=True)
class Slope:
    """A gradient of a leaf, one of a part of an axis or of all of it."""

    word: str
    leaf: Given
    split: Places


@dataclass
class LoopPlan:
    """Two kernels; `back` is "" where the way back has none."""

    name: str
    given: tuple[Given, ...]
    held: tuple[Held, ...]
    rows: tuple[Row, ...]
    lead: int
    axis: Axis | None
    forward: str
    back: str
    slopes: tuple[Slope, ...]
    # the words of the gradients of streams and states
    dwords: dict[str, str]
    channels: int
    least: int
    warps: tuple[int, int]
    takes: dict[str, list[str]]
    # by state: the variable that a block has it in, and which part of it, if it has several
    variables: tuple[str, ...]
    keys: dict[str, str]
    # one token, not a loop
    once: bool = False

    @property
    def parts(self) -> bool:
        """Say whether a copy has several programs."""
        return self.axis is not None


def own_axes(shape: Shape, lead: Shape) -> Shape:
    """The axes of one copy."""
    own = shape[len(lead) :] if lead and shape[: len(lead)] == lead else shape
    if any(axis in lead for axis in own):
        raise Unprintable("its copies are mixed")
    return own


@dataclass
class Token:
    """One token of a loop as kernels see it: what comes, what is held, what it makes.

    `axis` goes to several programs; `words` say which axis of each state that is. `least` is the
    smallest block.
    """

    graph: LoopGraph
    axis: Axis | None
    words: dict[str, Places]
    how: Mapping[str, tuple[bool, bool, bool]]
    wide_rows: Mapping[str, bool]
    once: bool = False
    given: dict[str, Given] = field(init=False)
    held: list[Held] = field(init=False)
    rows: list[Row] = field(init=False)
    names: set[str] = field(init=False)
    least: int = 1

    def __post_init__(self) -> None:
        lead = self.graph.lead
        self.given = {}
        for leaf in self.graph.leaves:
            tokens, rows, wide = self.how[leaf.word]
            shape = leaf.expr.shape
            own = own_axes(shape, lead)
            still = leaf.expr.op in ("position", "due")
            copies = bool(lead) and own != shape
            alike = bool(lead) and not copies
            given = Given(leaf.word, shape, own, tokens, rows, copies, wide, still, alike)
            self.given[leaf.word] = given
        if not self.once and not any(g.tokens for g in self.given.values()):
            raise Unprintable("nothing in it depends on the token")
        self.held = [
            Held(c.word, c.shape, c.shape[len(lead) :], self.words[c.word])
            for c in self.graph.carried
        ]
        names = Names(set(self.graph.names))
        self.rows = []
        for word, value in self.graph.rows:
            if lead and value.shape[: len(lead)] != lead:
                raise Unprintable("a stream that it makes is one for all copies")
            places = Splitter(
                self.graph.graph, lead, self.axis.size if self.axis else 0, dict(self.words)
            ).part(value)[1]
            wide = self.wide_rows[word]
            own = own_axes(value.shape, lead)
            self.rows.append(Row(names.fresh(word), value.shape, own, places, wide))
        if not all(row.wide for row in self.rows) and all(g.wide for g in self.given.values()):
            raise Unprintable("no stream tells the type of what it makes")
        self.names = names.used
        if self.products(self.roots()):
            # what a product of matrices takes
            self.least = 16

    def channels(self) -> int:
        """How many rows a program has."""
        if self.axis is None:
            return 1
        others = max(math.prod(self.block_sizes(h.own, h.split, 1)) for h in self.held if h.split)
        most = PART // others if others > 1 else CHANNELS
        return max(self.least, 4, min(block(self.axis.size), most))

    def products(self, roots: Sequence[Expr]) -> int:
        """Count products of whole matrices."""
        count = sum(node.op == "matmul" for node in postorder(roots))
        if count > PRODUCTS:
            raise Unprintable(f"it multiplies whole matrices more than {PRODUCTS} times")
        return count

    def block_sizes(self, own: Shape, places: Collection[int], part: int) -> list[int]:
        return [
            part if place in places else max(self.least, block(own[place].size))
            for place in range(-len(own), 0)
            if own[place].size > 1
        ]

    def entries(self) -> int:
        """How many entries of states a program has, with what stays the same for all tokens."""
        part = self.channels()
        total = sum(math.prod(self.block_sizes(h.own, h.split, part)) for h in self.held)
        for leaf in [] if self.once else self.leaves(self.roots()):
            given = self.given.get(leaf.attr("name"))
            if given is not None and not given.tokens:
                total += math.prod(self.block_sizes(given.own, leaf.attr("split"), part))
        return total

    def roots(self) -> list[Expr]:
        """All that a token gives."""
        return [*self.graph.after, *(value for _, value in self.graph.rows)]

    def leaves(self, roots: Sequence[Expr]) -> list[Expr]:
        """List the leaves of some values."""
        return [node for node in postorder(roots) if node.op == "stream"]
