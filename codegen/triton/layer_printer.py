"""Kernels of memories that move from chunk to chunk as readable Triton.

In: a `Kernel` of `triton.layers`. Out: the text of a `triton.jit` function, and the tensors that it
takes, in order. A program knows, of the tokens of one tile of a chunk, of which some may lie before
the sequence or beyond it:

    at [C] the place of each token in [B, T, H]    here [C] whether it is one of the sequence
    c64 the channels of an axis of 64              start, before, after the places of its states
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nlc.codegen.names import Names
from nlc.codegen.triton.coefficients import still
from nlc.codegen.triton.graph import NAMED, Dims, Tile
from nlc.codegen.triton.layer_values import block_size, count
from nlc.codegen.triton.printer import KernelPrinter

from nlc.ir.expr import postorder

RESERVED = {
    "tl", "triton", "T", "H", "N", "C", "DOT", "PRECISION", "OFFSET", "tile", "copy", "t", "at",
    "here", "step", "now", "r", "product", "start", "before", "after", "first", "place",
}  # fmt: skip
# in the place of a store: a value is made; what was stored before may be loaded
MAKE, BARRIER = "make", "barrier"
# the least tokens of a tile
SHORTEST = 16
CONSTANTS = ("C", "DOT", "PRECISION")
PLACES = {
    "before": "first + 1 + tile",
    "start": "tl.where(tile > 0, before, first)",
    "after": "before + 1",
}


def several(chunk: int) -> bool:
    """Say whether a chunk may have several tiles."""
    return chunk > SHORTEST


@dataclass
class LayerPrinter(KernelPrinter):
    """Prints one kernel; a chunk has `chunk` tokens."""

    sizes: ClassVar[tuple[str, ...]] = (*KernelPrinter.sizes, "OFFSET")
    constants: ClassVar[tuple[str, ...]] = CONSTANTS
    looping: ClassVar[str] = "B * H,"

    chunk: int = 16
    loaded_as: dict[Tile, str] = field(default_factory=dict)
    names: Names = field(default_factory=lambda: Names(set(RESERVED) | set(NAMED)))

    def tensors(self) -> list[str]:
        """The tensors that the kernel takes: what it loads, then what it stores."""
        words = [node.word for node in postorder(self.roots) if node.op == "load"]
        words += [word for word, _ in self.kernel.stores if word not in (MAKE, BARRIER)]
        return list(dict.fromkeys(word.partition(":")[0] for word in words))

    # ---- the frame -----------------------------------------------------------------------------

    def _body(self) -> None:
        kernel, out = self.kernel, self.out
        nodes = [n for n in postorder(self.roots) if n.op in ("load", "here", "sum", "dot")]
        axes = {axis for node in nodes for axis in (*node.dims, *_within(node))}
        axes |= {axis for _, tile in kernel.stores for axis in tile.dims}
        out.line("copy = tl.program_id(0).to(tl.int64)")
        if not kernel.loop:
            out.line("tile = tl.program_id(1)")
        out.line("t = tl.arange(0, C)")
        for axis in sorted(axes - {"C", "I"}, key=lambda axis: (count(axis), axis)):
            word = self.names.fresh(f"c{axis}")
            assert word == f"c{axis}"
            self._channels(axis)
        places = {
            word.partition(":")[2] for word, _ in kernel.stores if word not in (MAKE, BARRIER)
        }
        places |= {node.word.partition(":")[2] for node in nodes if node.op == "load"}
        if places - {""}:
            out.line(
                "# a copy's states: before the first chunk, then before each tile, and the last"
            )
            out.line("first = copy * (N + 2)")
        self.places = places
        if not kernel.loop:
            self._tile()
            return
        # a `for` would have room for every product of its body at once
        forward = kernel.loop > 0
        first = "0" if forward else "N - 1"
        out.line(f"tile = tl.full([], {first}, tl.int32)")
        out.line("while tile < N:" if forward else "while tile >= 0:")
        with out.indent():
            self._tile()
            # what a tile has stored is what the next one loads
            out.line("tl.debug_barrier()")
            out.line("tile += 1" if forward else "tile -= 1")

    def _tile(self) -> None:
        out = self.out
        if several(self.chunk):
            out.line(
                "# tile r of its chunk; of row b and copy h: its token t stands at (b, place, h)"
            )
            out.line("now = tile + OFFSET // C")
            out.line(f"r = now % tl.cdiv({self.chunk}, C)")
            out.line(f"place = now // tl.cdiv({self.chunk}, C) * {self.chunk} + r * C + t - OFFSET")
            out.line(f"here = (r * C + t < {self.chunk}) & (place >= 0) & (place < T)")
        else:
            out.line("# of row b and copy h: token t of the chunk stands at (b, place, h)")
            out.line(f"place = tile * {self.chunk} - OFFSET + t")
            out.line(f"here = (t < {self.chunk}) & (place >= 0) & (place < T)")
        out.line("at = (copy // H * T + place) * H + copy % H")
        needed = {"before"} if self.places & {"start", "before", "after"} else set()
        for place, text in PLACES.items():
            if place == "start" and several(self.chunk):
                text = "tl.where(tile > r, before - r, first)"
            if place in self.places | needed:
                out.line(f"{place} = {text}")
        self._stores()

    def _channels(self, axis: str) -> None:
        about = f"  # of {count(axis)}" if self.padded(axis) else ""
        self.out.line(f"c{axis} = tl.arange(0, {self.block(axis)}){about}")

    def _stores(self) -> None:
        for word, tile in self.kernel.stores:
            if word == BARRIER:
                self.out.line("tl.debug_barrier()")
                continue
            self._make(tile)
            if word != MAKE:
                self._store_tile(word, tile)

    def _make(self, root: Tile) -> None:
        self._make_all([root])

    def _make_all(self, roots: list[Tile]) -> None:
        # a state is loaded again where it is wanted again: kept, it would fill the registers
        held = {tile: name for tile, name in self.bound.items() if not self.passing(tile)}
        self.bound = held
        for node in postorder(roots, set(map(id, held))):
            if self._alone(node):
                again = self.loaded_as.get(node)
                if again:
                    self.bound[node] = again
                self._say(again or self._take(node), self._expression(node), node)
                if self.passing(node):
                    self.loaded_as[node] = self.bound[node]

    # ---- values --------------------------------------------------------------------------------

    def passing(self, tile: Tile) -> bool:
        """Say whether a value is made again for each thing that takes it."""
        return tile.op == "load" and len(tile.dims) == 2 and tile.dims[0] != "C"

    def seen(self, dims: Dims) -> Dims:
        """Vectors of tokens stand as columns, so that a matrix of channels has all warps."""
        return (dims[1], "C") if _is_vectors(dims) else dims

    def _along(self, axis: str, dims: Dims) -> str:
        """The index that puts an axis where a value has it."""
        places = [":" if other == axis else "None" for other in self.seen(dims)]
        return f"[{', '.join(places)}]" if len(dims) > 1 else ""

    def mask(self, dims: Dims) -> str:
        """Which entries of a block there are; "" where all of them are."""
        found = []
        for axis in self.seen(dims):
            index = self._along(axis, dims)
            if axis in ("C", "I"):
                found.append(f"here{index}")
            elif self.padded(axis):
                real = f"c{axis} < {count(axis)}"
                found.append(f"({real}){index}" if index else real)
        if len(dims) == 2 and dims[0] == dims[1] and found:
            real = f"(c{dims[0]} < {count(dims[0])})"
            found = [f"{real}[:, None]", f"{real}[None, :]"]
        return " & ".join(found)

    def place(self, word: str, dims: Dims) -> str:
        """Where the entries of a block stand in its tensor."""
        place = word.partition(":")[2]
        match dims:
            case ("C",):
                return "at"
            case ("C", d):
                return f"at[None, :] * {count(d)} + c{d}[:, None]"
            case ():
                return place
            case (n,):
                return f"{place} * {count(n)} + c{n}"
            case (m, n):
                size = count(m) * count(n)
                return f"{place} * {size} + (c{m}[:, None] * {count(n)} + c{n}[None, :])"
        raise AssertionError(dims)

    def pointer(self, word: str) -> str:
        """The tensor that a word is of."""
        return f"{word.partition(':')[0]}_ptr"

    def size(self, axis: str) -> str:
        """How many entries an axis has, for the text beside a value."""
        return "C" if axis in ("C", "I") else str(count(axis))

    def padded(self, axis: str) -> bool:
        """Say whether a block reaches beyond the end of an axis."""
        return axis not in ("C", "I") and self.block(axis) != str(count(axis))

    def block(self, axis: str) -> str:
        """How many entries a block has along an axis."""
        return "C" if axis in ("C", "I") else str(block_size(axis))

    def _sure(self, node: Tile, axis: str) -> str:
        """A value that is 0 in the padding of an axis."""
        text = self.text(node)
        if not self.padded(axis) or still(node, 0.0):
            return text
        real = f"c{axis} < {count(axis)}"
        index = self._along(axis, node.dims)
        return f"tl.where({f'({real}){index}' if index else real}, {text}, 0.0)"

    def _expression(self, node: Tile) -> str:
        match node.op:
            case "dot":
                x, y = node.args
                left, right = node.flags
                axis = x.dims[0 if left else 1]
                # one of them is 0 where there is nothing to be summed
                first = self.text(x) if still(y, 0.0) else self._sure(x, axis)
                self.used.add("product")
                pair = [
                    (first, _is_vectors(x.dims), left),
                    (self.text(y), _is_vectors(y.dims), right),
                ]
                if _is_vectors(node.dims):
                    # the product's own columns: (X Y)^T = Y^T X^T
                    pair = [(text, not column, turned) for text, column, turned in reversed(pair)]
                words = [f"tl.trans({t})" if column != turned else t for t, column, turned in pair]
                return f"product({words[0]}, {words[1]}, DOT, PRECISION)"
            case "sum":
                (x,) = node.args
                place = 1 if node.flags else self.seen(x.dims).index(node.word)
                return f"tl.sum({self._sure(x, node.word)}, {place})"
            case "scaled":
                matrix, vector = node.args
                place_of = "[:, None]" if node.flags[0] else "[None, :]"
                return f"{self._atom(matrix)} * {self._atom(vector)}{place_of}"
            case op if op in NAMED:
                # functions of the library take tokens as rows
                words = [_turned(self.text(arg), arg.dims) for arg in node.args]
                return _turned(self._called(node, words), node.dims)
        return super()._expression(node)


def _is_vectors(dims: Dims) -> bool:
    return len(dims) == 2 and dims[0] == "C" and dims[1] != "I"


def _turned(text: str, dims: Dims) -> str:
    return f"tl.trans({text})" if _is_vectors(dims) else text


def _within(node: Tile) -> Dims:
    return tuple(axis for arg in node.args for axis in arg.dims)
