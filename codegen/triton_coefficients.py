"""Coefficients of a normal form as blocks of a kernel: expressions over streams, entry by entry.

In: expressions of one token, [*lead] or [*lead, d]. Out: tiles [C] or [C, d], and the list of
`Leaf`s, what a kernel loads: streams, and whatever has no row here, which PyTorch computes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.triton_graph import Dims, Tile, Tiles

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
    """Builds the coefficients of one form; `sizes` are those of K and V."""

    tiles: Tiles
    sizes: dict[str, int]
    names: Names
    leaves: dict[tuple[Expr, bool], Leaf] = field(default_factory=dict)

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

    def leaf(self, expr: Expr, axis: str) -> Tile:
        """What is loaded: a stream, or what PyTorch has computed."""
        key = (expr, bool(axis))
        if key not in self.leaves:
            wide = bool(axis) and bool(expr.shape) and expr.shape[-1].size == self.sizes[axis] > 1
            dims: Dims = ("C", axis) if wide else ("C",)
            name = str(expr.attr("name")) if expr.has("name") else "x"
            self.leaves[key] = Leaf(expr, bool(axis), dims, self.names.fresh(name))
        leaf = self.leaves[key]
        return self.tiles.load(leaf.name, leaf.dims)


def still(tile: Tile, value: float) -> bool:
    """Say whether a tile is 0 wherever its loads are."""
    match tile.op:
        case "load":
            return tile.number == value and tile.dims[-1] != "C"
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
