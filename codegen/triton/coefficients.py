"""Coefficients of a normal form as blocks of a kernel: expressions over streams, entry by entry.

In: expressions of one token, [*lead] or [*lead, d]. Out: tiles [C] or [C, d], and the list of
`Leaf`s, what a kernel loads: streams, and whatever has no row here, which PyTorch computes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.triton.graph import Dims, Tile, Tiles, renamed

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Gate

UNARY = {
    "neg": "neg",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "sigmoid": "sigmoid",
    "abs": "abs",
    "tanh": "tanh",
    "softplus": "softplus",
}
BINARY = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
    "maximum": "max",
    "minimum": "min",
}


@dataclass(frozen=True)
class Leaf:
    """A tensor that a kernel loads: an expression, whether its last axis is one of a vector."""

    expr: Expr
    vector: bool
    dims: Dims
    name: str


@dataclass
class Coefficients:
    """Builds the coefficients of one form; `sizes` are those of K and V.

    `called` are the names, and lines, of streams for the expressions that stand for them.
    """

    tiles: Tiles
    sizes: dict[str, int]
    names: Names
    called: Mapping[Expr, tuple[str, str]] = field(default_factory=dict)
    leaves: dict[tuple[Expr, str], Leaf] = field(default_factory=dict)

    def vector(self, expr: Expr, axis: str, about: str = "") -> Tile:
        """A vector of each token [C, axis], 0 beyond the sequence and its channels."""
        found = self.tiles.spread(self.value(expr, axis), ("C", axis))
        return found if still(found, 0.0) else self.tiles.here(found, 0.0)

    def number(self, expr: Expr) -> Tile:
        """A number of each token [C], 0 beyond the sequence."""
        found = self.tiles.spread(self.value(expr, ""), ("C",))
        return found if still(found, 0.0) else self.tiles.here(found, 0.0)

    def gate(self, gate: Gate, beyond: float) -> Tile:
        """A gate [C] or [C, K]; a number where it is the same for all."""
        axis = "K" if gate.kind == "diagonal" else ""
        found = self.value(gate.value, axis)
        if found.op == "number":
            return found
        return self.tiles.here(self.tiles.spread(found, ("C", axis) if axis else ("C",)), beyond)

    def value(self, expr: Expr, axis: str) -> Tile:
        """An expression whose last axis is `axis`, or which has none of its own ("")."""
        found = self._value(expr, axis)
        return renamed(found, *self.called[expr]) if expr in self.called else found

    def _value(self, expr: Expr, axis: str) -> Tile:
        tiles = self.tiles
        match expr.op:
            case "const":
                return tiles.number(float(expr.attr("value")))
            case "let":
                return self.value(expr.args[0], axis)
            case "unsqueeze" if tuple(expr.attr("axes")) == (-1,) and axis:
                return self.value(expr.args[0], "")
            case "silu":
                x = self.value(expr.args[0], axis)
                return tiles.mul(x, tiles.unary("sigmoid", x))
            case "unit" | "rmsnorm" if _last(expr, axis):
                return self._over_last(expr, axis)
            case "relu":
                return tiles.binary("max", self.value(expr.args[0], axis), tiles.number(0.0))
            case "pow" if _is(expr.args[1], 2.0):
                x = self.value(expr.args[0], axis)
                return tiles.mul(x, x)
            case op if op in UNARY:
                x = self.value(expr.args[0], axis)
                return tiles.unary(UNARY[op], x) if x.op != "number" else self.leaf(expr, axis)
            case op if op in BINARY:
                x, y = (self.value(arg, axis) for arg in expr.args)
                if x.op == y.op == "number":
                    return self.leaf(expr, axis)
                return tiles.binary(BINARY[op], x, y)
        return self.leaf(expr, axis)

    def _over_last(self, expr: Expr, axis: str) -> Tile:
        """x / max(|x|, eps), or x / sqrt(mean(x^2) + eps)."""
        tiles, eps = self.tiles, float(expr.attr("eps"))
        x = self.value(expr.args[0], axis)
        if x.dims != ("C", axis):
            return self.leaf(expr, axis)
        x = x if still(x, 0.0) else tiles.here(x, 0.0)
        square = tiles.sum(tiles.mul(x, x), axis)
        if expr.op == "unit":
            # the larger of squares, whose root has a slope at 0
            size = tiles.binary("max", square, tiles.number(eps * eps))
        else:
            mean = tiles.mul(square, tiles.number(1.0 / self.sizes[axis]))
            size = tiles.add(mean, tiles.number(eps))
        return tiles.binary("div", x, tiles.unary("sqrt", size))

    def leaf(self, expr: Expr, axis: str) -> Tile:
        """What is loaded: a stream, or what PyTorch has computed."""
        # the same vector may be a key and a value
        key = (expr, axis)
        if key not in self.leaves:
            wide = bool(axis) and bool(expr.shape) and expr.shape[-1].size == self.sizes[axis] > 1
            dims: Dims = ("C", axis) if wide else ("C",)
            name = called_after(expr)
            self.leaves[key] = Leaf(expr, bool(axis), dims, self.names.fresh(name))
        leaf = self.leaves[key]
        return self.tiles.load(leaf.name, leaf.dims)


def called_after(expr: Expr) -> str:
    """A name for a leaf: a stream's, or that of the weights which make it."""
    while expr.op in ("reshape", "unsqueeze", "let"):
        expr = expr.args[0]
    if expr.op in ("conv", "shift"):
        return str(expr.attr("slot"))
    if expr.op == "apply" and expr.args[1].has("name"):
        return str(expr.args[1].attr("name")).split(".")[0]
    return str(expr.attr("name")).replace(".", "_") if expr.has("name") else "x"


def _last(expr: Expr, axis: str) -> bool:
    return bool(axis) and tuple(expr.attr("axes")) == (-1,) and len(expr.args) == 1


def still(tile: Tile, value: float) -> bool:
    """Say whether a tile is 0 wherever its loads are."""
    match tile.op:
        case "load":
            return tile.number == value and tile.dims[-1] != "C"
        case "div":
            return still(tile.args[0], value) and tile.args[0].dims == tile.dims
        case "mul":
            return any(still(arg, value) and arg.dims == tile.dims for arg in tile.args)
        case "add" | "sub":
            return all(still(arg, value) and arg.dims == tile.dims for arg in tile.args)
        case "neg":
            return still(tile.args[0], value)
        case "here":
            return tile.number == value
    return False


def _is(expr: Expr, value: float) -> bool:
    return expr.op == "const" and float(expr.attr("value")) == value
