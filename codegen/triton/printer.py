"""Kernels as readable Triton: a value a line, its shape and meaning beside it.

In: a `Kernel` of tile graphs. Out: the text of a `triton.jit` function, and the tensors that it
takes, in order. Each program knows, of C tokens from `tile * C` on of one row and copy:

    at [C] the place of each token in [B, T, H]    here [C] whether it is one of the sequence
    ck, cv the channels of keys and values, of which there are d_k and d_v
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nlc.codegen.names import Names
from nlc.codegen.triton.graph import BINARY, NAMED, UNARY, Dims, Tile
from nlc.codegen.triton.solve import Kernel
from nlc.codegen.writer import Writer, split_call

from nlc.ir.expr import postorder

SIZES = {"C": "C", "I": "C", "K": "d_k", "V": "d_v"}
BLOCKS = {"C": "C", "I": "C", "K": "K", "V": "V"}
MASKS: dict[Dims, str] = {
    ("C",): "here", ("C", "K"): "in_k", ("C", "V"): "in_v", ("K", "V"): "in_m", ("K",): "is_k",
}  # fmt: skip
# where values stand: token by token, tile by tile, and a state as it is given [B, H, d_v, d_k]
PLACES: dict[Dims, str] = {
    ("C",): "at", ("C", "K"): "at_k", ("C", "V"): "at_v",
    (): "this", ("K",): "this * d_k + ck", ("K", "V"): "at_m",
}  # fmt: skip
RESERVED = {
    "tl", "triton", "T", "H", "N", "d_k", "d_v", "C", "K", "V", "DOT", "PRECISION", "tile", "copy",
    "t", "at", "at_k", "at_v", "at_m", "here", "this", "ck", "cv", "in_k", "in_v", "in_m", "is_k",
    "step", "whole_m", "product",
}  # fmt: skip
CONSTANTS = ("d_k", "d_v", "C", "K", "V", "DOT", "PRECISION")
# what is longer gets a name: two such parts and an operation fit a line
INLINE = 34
# functions of the library that multiply matrices
MULTIPLIES = {"solved"}


@dataclass
class KernelPrinter:
    """Prints one kernel; `used` collects the functions of the library that it calls."""

    # the numbers that it takes, those known when it is compiled, and its programs where each goes
    # over all tiles
    sizes: ClassVar[tuple[str, ...]] = ("T", "H", "N")
    constants: ClassVar[tuple[str, ...]] = CONSTANTS
    looping: ClassVar[str] = "B * H, blocks of d_v"

    kernel: Kernel
    out: Writer
    used: set[str]
    about: list[str]
    names: Names = field(default_factory=lambda: Names(set(RESERVED) | set(NAMED)))
    bound: dict[Tile, str] = field(default_factory=dict)
    # whether it goes over blocks of the channels of values
    cut: bool = False
    uses: dict[Tile, int] = field(default_factory=dict)

    @property
    def roots(self) -> list[Tile]:
        """All values that are wanted."""
        return [*(tile for _, tile in self.kernel.stores), *self.kernel.after]

    def tensors(self) -> list[str]:
        """The tensors that the kernel takes: what it loads, then what it stores."""
        found = dict.fromkeys(word for _, word in self.kernel.carried)
        for node in postorder(self.roots):
            if node.op == "load":
                found.setdefault(node.word)
        found |= dict.fromkeys([*(name for name, _ in self.kernel.stores), *self.kernel.ends])
        return list(found)

    def write(self, name: str) -> None:
        """Write the function."""
        kernel, out = self.kernel, self.out
        for node in postorder(self.roots):
            for arg in node.args:
                self.uses[arg] = self.uses.get(arg, 0) + 1
        for root in self.roots:
            self.uses[root] = self.uses.get(root, 0) + 2
        tensors = self.tensors()
        self.names.used |= {f"{word}_ptr" for word in tensors}
        words = [*(f"{word}_ptr" for word in tensors), *self.sizes]
        words += [f"{word}: tl.constexpr" for word in self.constants]
        out.line("@triton.jit")
        for text in split_call(f"def {name}(", words, "):", out.room):
            out.line(text)
        with out.indent():
            grid = self.looping if kernel.loop else "B * H, N"
            out.docstring([kernel.about, *self.about, f"grid ({grid})"])
            self._body()

    # ---- the frame -----------------------------------------------------------------------------

    def _body(self) -> None:
        kernel, out = self.kernel, self.out
        # the axes of what is in memory, or kept where there are tokens
        dims = {node.dims for node in postorder(self.roots) if node.op in ("load", "here")}
        dims |= {tile.dims for _, tile in kernel.stores} | {tile.dims for tile, _ in kernel.carried}
        out.line("copy = tl.program_id(0).to(tl.int64)")
        if not kernel.loop:
            out.line("tile = tl.program_id(1)")
        tokens = any("C" in d for d in dims)
        if tokens:
            out.line("t = tl.arange(0, C)")
        keys = any("K" in d for d in dims)
        values = any("V" in d for d in dims)
        if keys:
            out.line("ck = tl.arange(0, K)")
        self.dims = dims
        if values and not self.cut:
            out.line(f"cv = {'tl.program_id(1) * V + ' if kernel.loop else ''}tl.arange(0, V)")
        if ("K", "V") in dims and not self.cut:
            out.line("in_m = (ck < d_k)[:, None] & (cv < d_v)[None, :]")
        if kernel.loop:
            out.line("# M^T of a state [B, H, d_v, d_k]")
            out.line("whole_m = (copy * d_v + cv[None, :]) * d_k + ck[:, None]")
        for tile, word in kernel.carried:
            text = f"tl.load({word}_ptr + whole_m, mask=in_m, other=0.0).to(tl.float32)"
            self._say(self._take(tile), text, tile)
        if kernel.loop:
            out.line("for tile in range(N):" if kernel.loop > 0 else "for step in range(N):")
            with out.indent():
                if kernel.loop < 0:
                    out.line("tile = N - 1 - step")
                self._tile()
            for (tile, _), word in zip(kernel.carried, kernel.ends, strict=True):
                self._store(f"{word}_ptr + whole_m", self.bound[tile], "in_m")
        else:
            self._tile()

    def _tile(self) -> None:
        out = self.out
        if any("C" in dims for dims in self.dims):
            out.line("# of row b and copy h: token t of the tile stands at (b, tile * C + t, h)")
            out.line("here = tile * C + t < T")
            out.line("at = (copy // H * T + tile * C + t) * H + copy % H")
        if self.dims & {("C", "K")}:
            out.line("in_k = here[:, None] & (ck < d_k)[None, :]")
            out.line("at_k = at[:, None] * d_k + ck[None, :]")
        if self.dims & {("C", "V")} and not self.cut:
            out.line("in_v = here[:, None] & (cv < d_v)[None, :]")
            out.line("at_v = at[:, None] * d_v + cv[None, :]")
        if self.dims & {(), ("K",), ("K", "V")}:
            out.line("this = copy * N + tile")
        if self.dims & {("K", "V")} and not self.cut:
            out.line("at_m = (this * d_k + ck[:, None]) * d_v + cv[None, :]")
        if self.dims & {("K",)}:
            out.line("is_k = ck < d_k")
        self._run()

    def _run(self) -> None:
        """Write the values of a tile."""
        kernel, out = self.kernel, self.out
        for word, tile in kernel.stores:
            self._make(tile)
            self._store_tile(word, tile)
        for tile in kernel.after:
            self._make(tile)
        for (carried, _), tile in zip(kernel.carried, kernel.after, strict=True):
            out.line(f"{self.bound[carried]} = {self.text(tile)}")

    def _store_tile(self, word: str, tile: Tile) -> None:
        place = f"{self.pointer(word)} + {self.place(word, tile.dims)}"
        self._store(place, self.text(tile), self.mask(tile.dims))

    def pointer(self, word: str) -> str:
        """The tensor that a word is of."""
        return f"{word}_ptr"

    def mask(self, dims: Dims) -> str:
        """Which entries of a block there are; "" where all of them are."""
        return MASKS.get(dims, "")

    def place(self, word: str, dims: Dims) -> str:
        """Where the entries of a block stand in its tensor."""
        return PLACES[dims]

    def seen(self, dims: Dims) -> Dims:
        """The axes of a value as it stands in a kernel."""
        return dims

    def size(self, axis: str) -> str:
        """How many entries an axis has, for the text beside a value."""
        return SIZES[axis]

    def block(self, axis: str) -> str:
        """How many entries a block has along an axis."""
        return BLOCKS[axis]

    def _store(self, place: str, value: str, mask: str) -> None:
        words = [place, value, *([f"mask={mask}"] if mask else [])]
        for text in split_call("tl.store(", words, ")", self.out.room):
            self.out.line(text)

    # ---- values --------------------------------------------------------------------------------

    def _make(self, root: Tile) -> None:
        for node in postorder([root]):
            if node in self.bound or not self._alone(node):
                continue
            body = self._expression(node)
            self._say(self._take(node), body, node)

    def _take(self, node: Tile) -> str:
        self.bound[node] = self.names.fresh(node.name or SHORT.get(node.op, "x"))
        return self.bound[node]

    def _say(self, name: str, body: str, node: Tile, sign: str = "=") -> None:
        shape = ", ".join(self.size(axis) for axis in self.seen(node.dims))
        about = f"  # [{shape}]" + (f" {node.about}" if node.about else "")
        line = f"{name} {sign} {body}"
        if len(line) + len(about) <= self.out.room:
            self.out.line(line + about)
            return
        self.out.line(about.strip())
        if len(line) <= self.out.room:
            self.out.line(line)
            return
        called = line.removesuffix("tl.float32)")
        if called.endswith(").to(") and len(called) <= self.out.room:
            # as the formatter breaks it
            for text in (called, "    tl.float32", ")"):
                self.out.line(text)
            return
        head, _, rest = body.partition("(")
        end = closing(rest)
        inside, tail = split_arguments(rest[:end]), rest[end:]
        for text in split_call(f"{name} {sign} {head}(", inside, tail, self.out.room):
            self.out.line(text)

    def _alone(self, node: Tile) -> bool:
        if node.op == "number":
            return False
        heavy = node.op in ("dot", "load", "sum", "here") or node.op in NAMED
        return (
            heavy
            or bool(node.name)
            or self.uses.get(node, 0) > 1
            or len(self._expression(node)) > INLINE
        )

    def text(self, node: Tile) -> str:
        """A value where it is used."""
        if node in self.bound:
            return self.bound[node]
        return self._expression(node)

    def _atom(self, node: Tile) -> str:
        text = self.text(node)
        return text if node in self.bound or node.op == "number" else f"({text})"

    def _fitted(self, node: Tile, dims: Dims) -> str:
        """An operand, with its axes where the result has them."""
        if node.dims == dims or not node.dims:
            return self._atom(node)
        (axis,) = node.dims
        place = ", ".join(":" if a == axis else "None" for a in self.seen(dims))
        return f"{self._atom(node)}[{place}]"

    def _expression(self, node: Tile) -> str:
        match node.op:
            case "number":
                return repr(node.number)
            case "load":
                return self.loaded(node)
            case "dot":
                x, y = (
                    f"tl.trans({self.text(arg)})" if turned else self.text(arg)
                    for arg, turned in zip(node.args, node.flags, strict=True)
                )
                self.used.add("product")
                return f"product({x}, {y}, DOT, PRECISION)"
            case "sum":
                place = node.args[0].dims.index(node.word)
                return f"tl.sum({self.text(node.args[0])}, {place})"
            case "here":
                mask = self.mask(node.dims)
                text = self.text(node.args[0])
                return f"tl.where({mask}, {text}, {node.number!r})" if mask else text
            case "where":
                found, x, y = (self._fitted(arg, node.dims) for arg in node.args)
                return f"tl.where({found} != 0.0, {x}, {y})"
            case "turned":
                return self.text(node.args[0])
            case "spread":
                return self._spread(node)
            case op if op in UNARY:
                if UNARY[op].startswith(f"{op}("):
                    self.used.add(op)
                arg = node.args[0]
                return UNARY[op].format(self.text(arg) if op == "stop" else self._atom(arg))
            case op if op in BINARY:
                return BINARY[op].format(*(self._fitted(arg, node.dims) for arg in node.args))
        return self._called(node, [self.text(arg) for arg in node.args])

    def _called(self, node: Tile, words: list[str]) -> str:
        """A call of a function of the library."""
        self.used.add(node.op)
        more = ["PRECISION"] if node.op in MULTIPLIES else []
        return f"{node.op}({', '.join([*words, *more])})"

    def loaded(self, node: Tile) -> str:
        """The text of a load."""
        mask = self.mask(node.dims)
        masked = f", mask={mask}, other={node.number!r}" if mask else ""
        place = self.place(node.word, node.dims)
        return f"tl.load({self.pointer(node.word)} + {place}{masked}).to(tl.float32)"

    def _spread(self, node: Tile) -> str:
        (x,) = node.args
        shape = f"[{', '.join(self.block(axis) for axis in self.seen(node.dims))}]"
        if x.op == "number":
            return f"tl.full({shape}, {x.number!r}, tl.float32)"
        return f"tl.broadcast_to({self._fitted(x, node.dims)}, {shape})"


SHORT = {"dot": "product", "sum": "total", "here": "kept", "mul": "product", "add": "total"}


def closing(text: str) -> int:
    """Find the bracket that closes what was opened before a text."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0:
            return place
    return len(text)


def split_arguments(text: str) -> list[str]:
    """Split a call's arguments at its outermost commas."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            found.append(text[start:place].strip())
            start = place + 1
    return [*found, text[start:].strip()]
