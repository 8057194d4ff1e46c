"""Expressions over streams and the state before a chunk as blocks of a kernel; maps by layers.

In: expressions of one token, [*lead], [*lead, d] or, for states alone, [*lead, m, n]. Out: tiles
[C] or [C, d], axes called by their sizes, and the list of `Leaf`s that a kernel loads. What it has
no row for is computed by PyTorch first, or, where it hangs on a state, raises `NoKernel`.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nlc.codegen.names import Names
from nlc.codegen.triton.coefficients import Leaf, called_after, still
from nlc.codegen.triton.graph import Dims, Tile, Tiles
from nlc.codegen.triton.table import power_of_two

from nlc.ir.expr import Expr, postorder
from nlc.ir.normal_form import Gate
from nlc.ir.shape import Shape
from nlc.ir.system import Map, Memory

UNARY = frozenset({
    "neg", "exp", "log", "sqrt", "sigmoid", "abs", "tanh", "softplus", "sign", "relu", "gelu",
    "gelu_slope", "silu_slope", "sin", "cos", "stop",
})  # fmt: skip
BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "div", "maximum": "max", "minimum": "min",
    "lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne",
}  # fmt: skip


class NoKernel(Exception):
    """What kernels do not compute, in words."""


class Weights(Protocol):
    """What stands for the parts of a map, where it is applied."""

    def times(self, part: str, x: Tile) -> Tile:
        """W x [C, m]."""

    def vector(self, part: str) -> Tile:
        """A vector, the same for all tokens or [C, m]."""

    def has(self, part: str) -> bool:
        """Say whether the map has such a part."""


@dataclass
class Values:
    """Builds the values of one memory's writes; `starts` has the words of its state, by part."""

    memory: Memory
    tiles: Tiles
    names: Names
    starts: Mapping[str, str]
    # the axes of each part
    axes: Mapping[str, Dims]
    leaves: dict[tuple[Expr, bool], Leaf] = field(default_factory=dict)
    moving: dict[Expr, bool] = field(default_factory=dict)

    # ---- what kernels ask ----------------------------------------------------------------------

    def gate(self, gate: Gate, beyond: float, axis: str = "") -> Tile:
        """A gate [C], or [C, axis]; a number where it is the same for all."""
        found = self.value(gate.value, gate.kind == "diagonal")
        if found.op == "number":
            return found
        return self.tiles.here(self._along(found, ("C", axis) if axis else ("C",)), beyond)

    def coefficient(self, expr: Expr, dims: Dims) -> Tile:
        """A vector [C, d], or a number [C], of each token; 0 beyond the sequence."""
        vector = len(dims) == 2 or len(expr.shape) > len(self.memory.lead)
        found = self._along(self.value(expr, vector), dims)
        return found if _masked(found) else self.tiles.here(found, 0.0)

    def own(self, expr: Expr) -> bool:
        """Say whether a value hangs on the state before the chunk."""
        if expr not in self.moving:
            self.moving[expr] = any(
                node.op == "state"
                and node.attr("memory") == self.memory.name
                and node.attr("when") == "start"
                for node in postorder([expr])
            )
        return self.moving[expr]

    # ---- expressions ---------------------------------------------------------------------------

    def value(self, expr: Expr, vector: bool) -> Tile:
        """A value; `vector` says whether its last axis is that of a vector of each copy."""
        tiles = self.tiles
        match expr.op:
            case "const":
                return tiles.number(float(expr.attr("value")))
            case "let":
                return self.value(expr.args[0], vector)
            case "unsqueeze" if vector and tuple(expr.attr("axes")) == (-1,):
                return self.value(expr.args[0], False)
            case "reshape" if _one(expr, expr.args[0]) and not vector:
                # a vector of one entry as a number
                return self.value(expr.args[0], True)
            case "reshape" if _one(expr.args[0], expr) and vector:
                return self.value(expr.args[0], False)
            case "state" if self.own(expr):
                return self._state(expr)
            case "pow" if expr.args[1].op == "const" and expr.args[1].attr("value") == 2.0:
                x = self.value(expr.args[0], vector)
                return tiles.mul(x, x)
            case "where" if self.own(expr):
                found, x, y = (self.value(arg, vector) for arg in expr.args)
                return tiles.where(found, x, _same_channels(found, _same_channels(x, y)))
            case op if op in UNARY or op == "silu":
                x = self.value(expr.args[0], vector)
                return self.act(op, x) if x.op != "number" else self.leaf(expr, vector)
            case op if op in BINARY:
                x, y = (self.value(arg, vector) for arg in expr.args)
                if x.op == y.op == "number":
                    return self.leaf(expr, vector)
                if op == "div" and self.own(expr.args[1]):
                    y = self._never_0(y)
                return tiles.binary(BINARY[op], x, _same_channels(x, y))
        if not self.own(expr):
            return self.leaf(expr, vector)
        if expr.op in LAST and tuple(expr.attr("axes")) == (-1,):
            x = self.value(expr.args[0], True)
            if len(x.dims) != 2 or (expr.op in REDUCE and not vector and expr.attr("keep")):
                raise NoKernel(f"its update has `{expr.op}` over other axes")
            return self._over_last(expr, x)
        if expr.op == "layernorm_slope" and tuple(expr.attr("axes")) == (-1,):
            x, g = (self.value(arg, True) for arg in expr.args)
            return self.layernorm_slope(x, g, float(expr.attr("eps")))
        return self._product(expr)

    def _product(self, expr: Expr) -> Tile:
        """A product with the state, or of vectors."""
        tiles = self.tiles
        match expr.op:
            case "matvec":
                matrix, x = expr.args
                turned = matrix.op == "transpose"
                state = matrix.args[0] if turned else matrix
                if state.op != "state" or not self.own(state):
                    raise NoKernel("its update multiplies with a matrix that is no state")
                W = self._state(state)
                if len(W.dims) == 1:
                    # a matrix of one row
                    if turned:
                        return tiles.mul(self._along(self.value(x, True), ("C",)), W)
                    return self.total(tiles.mul(self._row(x, W.dims[0]), W))
                row = self._row(x, W.dims[0 if turned else 1])
                return tiles.dot(row, W, (False, not turned), ("C", W.dims[1 if turned else 0]))
            case "dot":
                left, right = (self.value(arg, True) for arg in expr.args)
                if expr.args[0].shape[-1].size == 1:
                    return tiles.mul(left, right)
                return self.total(tiles.mul(left, _same_channels(left, right)))
            case "apply":
                x, *parts = expr.args
                if not all(part.op == "state" and self.own(part) for part in parts):
                    raise NoKernel("its update applies other maps to what it reads")
                form: Map = expr.attr("map")
                if len(form.inputs) != 1 or len(form.outputs) != 1:
                    raise NoKernel("its map has several axes")
                words = {p.name: self._state(s) for p, s in zip(form.parts, parts, strict=True)}
                x_ = self._row(x, str(form.chain[0].size))
                return apply_map(self, form, _Still(self, words), x_)
        raise NoKernel(f"its update has `{expr.op}` of what it reads")

    def _row(self, x: Expr, axis: str) -> Tile:
        return self._along(self.value(x, True), ("C", axis))

    def _along(self, x: Tile, dims: Dims) -> Tile:
        if len(x.dims) == len(dims) and x.dims != dims:
            raise NoKernel(CHANNELS)
        return self.tiles.spread(x, dims)

    def _state(self, expr: Expr) -> Tile:
        part = str(expr.attr("part"))
        word, dims = self.starts[part], self.axes[part]
        name = word.partition(":")[0]
        return self.tiles.make("load", dims=dims, word=word, name=f"{name}_start")

    def leaf(self, expr: Expr, vector: bool) -> Tile:
        """What is loaded: a stream, or what PyTorch has computed."""
        if self.own(expr):
            raise NoKernel(f"its update has `{expr.op}` of what it reads")
        rank = len(self.memory.lead) + vector
        if len(expr.shape) > rank:
            raise NoKernel("its update has vectors with further axes")
        if (expr, vector) not in self.leaves:
            wide = vector and bool(expr.shape) and expr.shape[-1].size > 1
            dims = ("C", str(expr.shape[-1].size)) if wide else ("C",)
            name = self.names.fresh(called_after(expr))
            self.leaves[expr, vector] = Leaf(expr, vector, dims, name)
        leaf = self.leaves[expr, vector]
        return self.tiles.load(leaf.name, leaf.dims)

    # ---- operations ----------------------------------------------------------------------------

    def act(self, op: str, x: Tile) -> Tile:
        """An operation entry by entry, by its name in a spec."""
        tiles = self.tiles
        if op == "none":
            return x
        if op == "silu":
            return tiles.mul(x, tiles.unary("sigmoid", x))
        if op not in UNARY:
            raise NoKernel(f"its layers have `{op}`")
        return tiles.unary(op, self._never_0(x) if op in ("log", "sqrt") else x)

    def _never_0(self, x: Tile) -> Tile:
        """1 beyond the sequence, where 0 would give no number."""
        return x if "C" not in x.dims or positive(x) else self.tiles.here(x, 1.0)

    def total(self, x: Tile) -> Tile:
        """The sum over channels, of which only real ones count: [C, d] -> [C]."""
        axis = x.dims[-1]
        if not _masked(x) and _padded(axis):
            x = self.tiles.here(x, 0.0)
        return self.tiles.sum(x, axis)

    def mean(self, x: Tile) -> Tile:
        """The mean over channels."""
        return self.tiles.mul(self.total(x), self.tiles.number(1.0 / count(x.dims[-1])))

    def layernorm(self, x: Tile, eps: float = 1e-5) -> Tile:
        """(x - mean) / sqrt(variance + eps)."""
        if len(x.dims) != 2:
            raise NoKernel("it has a norm of one channel")
        return self.tiles.binary("div", *self._deviation(x, eps))

    def layernorm_slope(self, x: Tile, g: Tile, eps: float) -> Tile:
        """The gradient in x of <g, y>, y = layernorm(x): (g - mean g - y mean <g, y>) / size."""
        tiles = self.tiles
        g, (difference, size) = self._along(g, x.dims), self._deviation(x, eps)
        y = tiles.binary("div", difference, size)
        along = tiles.mul(y, self.mean(tiles.mul(g, y)))
        return tiles.binary("div", tiles.sub(tiles.sub(g, self.mean(g)), along), size)

    def _deviation(self, x: Tile, eps: float) -> tuple[Tile, Tile]:
        tiles = self.tiles
        difference = tiles.sub(x, self.mean(x))
        if _padded(x.dims[-1]):
            difference = tiles.here(difference, 0.0)
        variance = tiles.add(self.mean(tiles.mul(difference, difference)), tiles.number(eps))
        return difference, tiles.unary("sqrt", variance)

    def _over_last(self, expr: Expr, x: Tile) -> Tile:
        tiles = self.tiles
        match expr.op:
            case "sum":
                return self.total(x)
            case "mean":
                return self.mean(x)
            case "norm":
                return tiles.unary("sqrt", self._never_0(self.total(tiles.mul(x, x))))
            case "layernorm":
                return self.layernorm(x, float(expr.attr("eps")))
        eps = float(expr.attr("eps"))
        if expr.op == "unit":
            square = self.total(tiles.mul(x, x))
            size = tiles.binary("max", square, tiles.number(eps * eps))
        else:
            size = tiles.add(self.mean(tiles.mul(x, x)), tiles.number(eps))
        return tiles.binary("div", x, tiles.unary("sqrt", size))


def _one(less: Expr, more: Expr) -> bool:
    """Say whether one shape is the other but for a last axis of size 1."""
    return more.shape[:-1] == less.shape and more.shape[-1:] != () and more.shape[-1].size == 1


# axes of one size that stand for different channels
CHANNELS = "its update takes the channels of one axis of a layer for those of another"


def _same_channels(x: Tile, y: Tile) -> Tile:
    if len(x.dims) == len(y.dims) == 2 and x.dims != y.dims:
        raise NoKernel(CHANNELS)
    return y


REDUCE = ("sum", "mean", "norm")
LAST = (*REDUCE, "layernorm", "unit", "rmsnorm")


def own_dims(shape: Shape) -> Dims:
    """The axes of a part, called by their sizes; a matrix of one row is a vector."""
    return tuple(str(axis.size) for i, axis in enumerate(shape) if i or axis.size > 1)


def count(axis: str) -> int:
    """How many entries an axis has; a letter before it keeps axes of one size apart."""
    return int(axis.lstrip(string.ascii_lowercase))


def block_size(axis: str) -> int:
    """How many entries a block has along an axis: a power of 2 that matrix products take."""
    return power_of_two(count(axis))


def _padded(axis: str) -> bool:
    return block_size(axis) != count(axis)


def positive(x: Tile) -> bool:
    """Say whether a value is above 0 for sure: a square and something."""
    match x.op:
        case "sqrt":
            return positive(x.args[0])
        case "add":
            least = x.args[1]
            return least.op == "number" and least.number > 0.0 and _square(x.args[0])
    return False


def _square(x: Tile) -> bool:
    match x.op:
        case "sum":
            return _square(x.args[0])
        case "mul":
            left, right = x.args
            return left is right or (right.op == "number" and right.number > 0 and _square(left))
    return False


def _masked(tile: Tile) -> bool:
    return still(tile, 0.0)


# ---- maps --------------------------------------------------------------------------------------


@dataclass
class _Still:
    """The parts of a map as they stand before the chunk."""

    values: Values
    parts: dict[str, Tile]

    def times(self, part: str, x: Tile) -> Tile:
        """W x."""
        W = self.parts[part]
        if len(W.dims) == 1:
            return self.values.total(self.values.tiles.mul(x, W))
        return self.values.tiles.dot(x, W, (False, True), ("C", W.dims[0]))

    def vector(self, part: str) -> Tile:
        """A part that is a vector."""
        return self.parts[part]

    def has(self, part: str) -> bool:
        """Say whether there is such a part."""
        return part in self.parts


def apply_map(values: Values, form: Map, weights: Weights, x: Tile) -> Tile:
    """Apply a map, layer by layer: x [C, d] -> [C, d']."""
    if form.kind not in MAPS:
        raise NoKernel(f"its map is a {form.kind}")
    return MAPS[form.kind](values, form, weights, x)


def _with_bias(values: Values, weights: Weights, y: Tile, bias: str) -> Tile:
    return values.tiles.add(y, weights.vector(bias)) if weights.has(bias) else y


def _linear(values: Values, form: Map, weights: Weights, x: Tile) -> Tile:
    return _with_bias(values, weights, weights.times("weight", x), "bias")


def _mlp(values: Values, form: Map, weights: Weights, x: Tile) -> Tile:
    y, layers, tiles = x, len(form.chain) - 1, values.tiles
    for layer in range(1, layers + 1):
        y = weights.times(f"layer{layer}.weight", y)
        y = _with_bias(values, weights, y, f"layer{layer}.bias")
        y = values.act(str(form.option("act", "gelu")), y) if layer < layers else y
    if form.option("norm", False):
        y = tiles.mul(values.layernorm(y), weights.vector("norm.weight"))
        y = tiles.add(y, weights.vector("norm.bias"))
    return tiles.add(x, y) if form.option("residual", False) else y


def _glu(values: Values, form: Map, weights: Weights, x: Tile) -> Tile:
    gate = values.act(str(form.option("act", "silu")), weights.times("gate", x))
    return weights.times("down", values.tiles.mul(gate, weights.times("up", x)))


def _lora(values: Values, form: Map, weights: Weights, x: Tile) -> Tile:
    inner = values.act(str(form.option("act", "none")), weights.times("down", x))
    up = "up" if weights.has("up") else "up.weight"
    return _with_bias(values, weights, weights.times(up, inner), "up.bias")


MAPS: dict[str, Callable[[Values, Map, Weights, Tile], Tile]] = {
    "linear": _linear,
    "mlp": _mlp,
    "glu": _glu,
    "lora": _lora,
}
