"""What one program of a kernel computes, as a graph of blocks: the tile graph.

A `Tile` is a value of one program, with its axes by name:

    C rows, a tile's tokens    K, V channels of keys and values    I the tokens again, as columns

The channels of maps with layers are called by how many they are: "64".

In: calls of the methods of `Tiles`. Out: nodes, each made once. `triton.gradient` derives from them
what runs backwards, `triton.printer` prints both. Knows nothing of memories.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Dims = tuple[str, ...]

# operations of one value, entry by entry, with their text
UNARY = {
    "neg": "-{0}",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt({0})",
    "sigmoid": "tl.sigmoid({0})",
    "abs": "tl.abs({0})",
    "tanh": "2.0 * tl.sigmoid(2.0 * {0}) - 1.0",
    "softplus": "tl.maximum({0}, 0.0) + tl.log(1.0 + tl.exp(-tl.abs({0})))",
    "sign": "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, 0.0))",
    "positive": "tl.where({0} > 0.0, 1.0, 0.0)",
    "relu": "tl.maximum({0}, 0.0)",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    # of the kernels' own library: an activation, its first and its second derivative
    "gelu": "gelu({0})",
    "gelu_slope": "gelu_slope({0})",
    "gelu_curve": "gelu_curve({0})",
    "silu_slope": "silu_slope({0})",
    "silu_curve": "silu_curve({0})",
    # a constant for gradients
    "stop": "{0}",
}
BINARY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "max": "tl.maximum({0}, {1})",
    "min": "tl.minimum({0}, {1})",
    "ge": "tl.where({0} >= {1}, 1.0, 0.0)",
    "le": "tl.where({0} <= {1}, 1.0, 0.0)",
    "gt": "tl.where({0} > {1}, 1.0, 0.0)",
    "lt": "tl.where({0} < {1}, 1.0, 0.0)",
    "eq": "tl.where({0} == {1}, 1.0, 0.0)",
    "ne": "tl.where({0} != {1}, 1.0, 0.0)",
}
# functions of the kernels' own library: the axes of the result, where K stands for those channels
# that its arguments have, and what is told about it
NAMED: dict[str, Dims] = {
    # one gate of each token: products from token to token, of which nothing is divided
    "late": ("C", "I"),  # F(t, i) for i <= t
    "early": ("C", "I"),  # F(t-1, i) for i < t
    "since": ("C",),  # F(t, 0), the tile's start
    "since_early": ("C",),  # F(t-1, 0)
    "until": ("C",),  # F(C, i)
    "whole": (),  # F(C, 0)
    # a gate of each channel
    "running": ("C", "K"),  # F(t, 0)
    "last": ("K",),  # the last row
    "upwards": ("C", "K"),  # each row is the one below it, the last is 0
    "later": ("C", "K"),  # the sum of this row and those after it
    "at_last": ("C", "K"),  # the last row alone is kept
    # ... that may be 0: nothing is divided
    "passed": ("C", "K"),  # F(t, 0)
    "passed_early": ("C", "K"),  # F(t-1, 0)
    "passed_back": ("C", "K"),
    "ahead": ("C", "K"),  # F(C, i)
    "ahead_back": ("C", "K"),
    "direct": ("C", "I"),  # <F(t, i) b_i, q_t> for i <= t
    "direct_early": ("C", "I"),  # <F(t-1, i) b_i, q_t> for i < t
    "given": ("C", "K"),  # sum_i s[t, i] F(t, i) b_i for i <= t
    "given_early": ("C", "K"),
    "taken": ("C", "K"),  # sum_t s[t, i] F(t, i) q_t for i <= t
    "taken_early": ("C", "K"),
    "decays": ("C", "K"),  # the gradient of the gates of direct
    "decays_early": ("C", "K"),
    # a matrix of tokens
    "solved": ("C", "I"),  # (I - A)^-1
    "below": ("C", "I"),  # kept for i < t
    "upto": ("C", "I"),  # kept for i <= t
    "diagonal": ("C", "I"),  # a number of each token, for i = t
    "of_diagonal": ("C",),  # the other way round
}


@dataclass(eq=False)
class Tile:
    """One value; `name` is how it is printed, `about` is said beside it; nothing else changes."""

    op: str
    args: tuple[Tile, ...]
    dims: Dims
    word: str = ""
    number: float = 0.0
    flags: tuple[bool, ...] = ()
    name: str = ""
    about: str = ""


@dataclass
class Tiles:
    """Makes values; the same call gives the same value."""

    known: dict[tuple[object, ...], Tile] = field(default_factory=dict)

    def make(
        self,
        op: str,
        *args: Tile,
        dims: Dims = (),
        word: str = "",
        number: float = 0.0,
        flags: tuple[bool, ...] = (),
        name: str = "",
        about: str = "",
    ) -> Tile:
        """Make a value, or give the one that was made before."""
        key = (op, tuple(map(id, args)), dims, word, number, flags)
        if key not in self.known:
            self.known[key] = Tile(op, args, dims, word, number, flags, name, about)
        return self.known[key]

    # ---- leaves --------------------------------------------------------------------------------

    def number(self, value: float) -> Tile:
        """A constant."""
        return self.make("number", number=value)

    def load(self, word: str, dims: Dims, fill: float = 0.0, about: str = "") -> Tile:
        """A block of a tensor; `fill` stands where there is no token."""
        return self.make("load", dims=dims, word=word, number=fill, name=word, about=about)

    # ---- entry by entry ------------------------------------------------------------------------

    def unary(self, op: str, x: Tile) -> Tile:
        """An operation of one value; a number is computed where it stands."""
        if op == "neg":
            if x.op == "number":
                return self.number(-x.number)
            if x.op == "neg":
                return x.args[0]
        return self.make(op, x, dims=x.dims)

    def binary(self, op: str, x: Tile, y: Tile) -> Tile:
        """An operation of two values, whose axes are matched by name."""
        match op, x.op, y.op:
            case ("add", "number", _) if x.number == 0.0:
                return y
            case ("add" | "sub", _, "number") if y.number == 0.0:
                return x
            case ("mul", "number", _) if x.number == 1.0:
                return y
            case ("mul" | "div", _, "number") if y.number == 1.0:
                return x
            case ("mul", _, "number") if y.number == 0.0:
                return y
            case ("mul", "number", _) if x.number == 0.0:
                return x
            case ("sub", "number", _) if x.number == 0.0:
                return self.unary("neg", y)
        return self.make(op, x, y, dims=joined(x.dims, y.dims))

    def add(self, x: Tile | None, y: Tile) -> Tile:
        """x + y, where there may be no x yet."""
        return y if x is None else self.binary("add", x, y)

    def sub(self, x: Tile, y: Tile) -> Tile:
        """x - y."""
        return self.binary("sub", x, y)

    def mul(self, x: Tile, y: Tile) -> Tile:
        """x * y."""
        return self.binary("mul", x, y)

    def sum(self, x: Tile, axis: str) -> Tile:
        """The sum over an axis; the first of two with one name."""
        place = x.dims.index(axis)
        dims = (*x.dims[:place], *x.dims[place + 1 :])
        return self.make("sum", x, dims=dims, word=axis)

    def row_sums(self, x: Tile) -> Tile:
        """The sums of a matrix's rows, whose axes may have one name."""
        return self.make("sum", x, dims=x.dims[:1], word=x.dims[1], flags=(True,))

    def scaled(self, matrix: Tile, vector: Tile, rows: bool) -> Tile:
        """Each row of a matrix times an entry of a vector, or each column."""
        return self.make("scaled", matrix, vector, dims=matrix.dims, flags=(rows,))

    def here(self, x: Tile, fill: float) -> Tile:
        """What stands at tokens of the sequence; `fill` elsewhere."""
        return self.make("here", x, dims=x.dims, number=fill)

    def where(self, found: Tile, x: Tile, y: Tile) -> Tile:
        """x where something is found, y elsewhere."""
        dims = joined(joined(found.dims, x.dims), y.dims)
        return self.make("where", found, x, y, dims=dims)

    def spread(self, x: Tile, dims: Dims) -> Tile:
        """The value along more axes."""
        return x if x.dims == dims else self.make("spread", x, dims=dims)

    # ---- matrices ------------------------------------------------------------------------------

    def dot(self, x: Tile, y: Tile, turned: tuple[bool, bool], dims: Dims) -> Tile:
        """A matrix product, of x or x^T with y or y^T."""
        return self.make("dot", x, y, dims=dims, flags=turned)

    def named(self, op: str, *args: Tile) -> Tile:
        """A function of the kernels' library."""
        channels = [axis for arg in args for axis in arg.dims if axis not in ("C", "I")]
        dims = tuple(channels[0] if axis == "K" else axis for axis in NAMED[op])
        return self.make(op, *args, dims=dims)


def joined(x: Dims, y: Dims) -> Dims:
    """The axes of a result, in the order of the one that has more of them."""
    wide, thin = (x, y) if len(x) >= len(y) else (y, x)
    if set(thin) <= set(wide):
        return wide
    if len(x) == len(y) == 1:
        # tokens are rows
        return tuple(sorted((*x, *y), key=lambda axis: "CIKV".find(axis) % 5))
    raise AssertionError(f"{x} and {y} do not match")


def renamed(tile: Tile, name: str, about: str = "") -> Tile:
    """Give a value that has no name yet a name."""
    if not tile.name and tile.op != "number":
        tile.name, tile.about = name, about
    return tile
