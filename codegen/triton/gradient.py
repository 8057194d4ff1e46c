"""The gradient of a tile graph: reverse mode, one row of a table for each operation.

In: values of a graph and the gradients that reach them. Out: the gradients of its loads, as values
of the same graph; what they need of the way forward is computed anew in the same program.

A gate's products F(t, i) = g_{i+1} ... g_t give, with nothing divided,

    dg_s = sum_{i < s <= t} F(t, s) dF(t, i) F(s-1, i)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nlc.codegen.triton.graph import Dims, Tile, Tiles
from nlc.codegen.triton.layer_values import positive

from nlc.ir.expr import postorder

Row = Callable[[Tiles, Tile, Tile], list[Tile | None]]


def gradients(tiles: Tiles, reached: Mapping[Tile, Tile]) -> dict[Tile, Tile]:
    """Return the gradient of every load that the values in `reached` hang on."""
    order = list(postorder(list(reached)))
    found: dict[Tile, Tile] = {}
    for node, grad in reached.items():
        found[node] = tiles.add(found.get(node), grad)
    loads: dict[Tile, Tile] = {}
    for node in reversed(order):
        if node not in found:
            continue
        grad = found.pop(node)
        if node.op == "load":
            loads[node] = tiles.spread(grad, node.dims)
            continue
        if not node.args:
            continue
        for arg, part in zip(node.args, GRADIENTS[node.op](tiles, node, grad), strict=True):
            if part is not None and arg.op != "number":
                fitting = fitted(tiles, part, arg.dims)
                found[arg] = tiles.add(found.get(arg), fitting)
    return loads


def fitted(tiles: Tiles, grad: Tile, dims: Dims) -> Tile:
    """Sum a gradient over the axes along which its value was spread."""
    for axis in grad.dims:
        if axis not in dims:
            grad = tiles.sum(grad, axis)
    return grad


def _add(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    whole = tiles.spread(grad, node.dims)
    return [whole, whole]


def _sub(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    whole = tiles.spread(grad, node.dims)
    return [whole, tiles.unary("neg", whole)]


def _mul(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    x, y = node.args
    grad = tiles.spread(grad, node.dims)
    return [tiles.mul(grad, y), tiles.mul(grad, x)]


def _div(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    _, y = node.args
    part = tiles.binary("div", tiles.spread(grad, node.dims), y)
    return [part, tiles.unary("neg", tiles.mul(part, node))]


def _chosen(other: str) -> Row:
    """The larger or the smaller of two: the gradient goes where the value came from."""

    def row(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
        x, y = node.args
        grad = tiles.spread(grad, node.dims)
        first = tiles.binary(other, x, y)
        rest = tiles.sub(tiles.number(1.0), first)
        return [tiles.mul(grad, first), tiles.mul(grad, rest)]

    return row


def _where(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    found, _, _ = node.args
    grad, nothing = tiles.spread(grad, node.dims), tiles.number(0.0)
    return [None, tiles.where(found, grad, nothing), tiles.where(found, nothing, grad)]


def _nothing(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    return [None for _ in node.args]


def _unary(of: Callable[[Tiles, Tile, Tile], Tile]) -> Row:
    """A row from the derivative, given the argument and the value."""

    def row(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
        return [tiles.mul(grad, of(tiles, node.args[0], node))]

    return row


def _sqrt_slope(tiles: Tiles, x: Tile, y: Tile) -> Tile:
    slope = tiles.binary("div", tiles.number(0.5), y)
    return slope if positive(x) else tiles.where(y, slope, tiles.number(0.0))


def _scaled(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    matrix, vector = node.args
    (rows,) = node.flags
    product = tiles.mul(matrix, grad)
    of_vector = tiles.row_sums(product) if rows else tiles.sum(product, node.dims[0])
    return [tiles.scaled(grad, vector, rows), of_vector]


def _one_minus(tiles: Tiles, x: Tile) -> Tile:
    return tiles.sub(tiles.number(1.0), x)


def _dot(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    x, y = node.args
    left, right = node.flags
    grad = tiles.spread(grad, node.dims)
    # z = X Y with X = x or x^T: dX = dz Y^T, dY = X^T dz
    dx = (
        tiles.dot(y, grad, (right, True), x.dims)
        if left
        else tiles.dot(grad, y, (False, not right), x.dims)
    )
    dy = (
        tiles.dot(grad, x, (True, left), y.dims)
        if right
        else tiles.dot(x, grad, (not left, False), y.dims)
    )
    return [dx, dy]


def _times(tiles: Tiles, matrix: Tile, vector: Tile, over: str) -> Tile:
    """A matrix of tokens times a vector of tokens, given as its rows or columns."""
    return tiles.sum(tiles.mul(matrix, vector), over)


def _as_columns(tiles: Tiles, x: Tile) -> Tile:
    return x if x.dims == ("I",) else tiles.make("turned", x, dims=("I",))


def _as_rows(tiles: Tiles, x: Tile) -> Tile:
    return x if x.dims == ("C",) else tiles.make("turned", x, dims=("C",))


def _table(early: bool) -> Row:
    def row(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
        (g,) = node.args
        before = tiles.named("early", g)
        table = before if early else tiles.named("late", g)
        came = tiles.dot(table, tiles.spread(grad, ("C", "I")), (True, False), ("C", "I"))
        return [tiles.sum(tiles.mul(came, before), "I")]

    return row


def _since(early: bool) -> Row:
    def row(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
        (g,) = node.args
        table = tiles.named("early" if early else "late", g)
        came = _as_rows(tiles, _times(tiles, table, grad, "C"))
        return [tiles.mul(came, tiles.named("since_early", g))]

    return row


def _until(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    (g,) = node.args
    came = _times(tiles, tiles.named("early", g), _as_columns(tiles, grad), "I")
    return [tiles.mul(came, node)]


def _whole(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    (g,) = node.args
    return [tiles.mul(grad, tiles.mul(tiles.named("until", g), tiles.named("since_early", g)))]


def _running(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    # the gates are away from 0 wherever this is used
    (g,) = node.args
    logs = tiles.named("later", tiles.mul(grad, node))
    return [tiles.binary("div", logs, g)]


def _solved(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
    # X = (I - A)^-1: dA = X^T dX X^T, of which what stands below the diagonal counts
    inner = tiles.dot(node, grad, (True, False), ("C", "I"))
    return [tiles.named("below", tiles.dot(inner, node, (False, True), ("C", "I")))]


def _passed(early: bool) -> Row:
    """F(t, 0), or F(t-1, 0): the gates that have passed."""

    def row(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
        (g,) = node.args
        grad = tiles.spread(grad, node.dims)
        # F(t-1, 0) is F of the row above
        came = tiles.named("upwards", grad) if early else grad
        return [tiles.named("passed_back", came, g)]

    return row


def _direct(word: str) -> Row:
    """A[t, i] = <F(t, i) b_i, q_t>, of q, b and the gates."""

    def row(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
        q, b, g = node.args
        grad = tiles.spread(grad, ("C", "I"))
        return [
            tiles.named(f"given{word}", grad, b, g),
            tiles.named(f"taken{word}", grad, q, g),
            tiles.named(f"decays{word}", grad, q, b, g),
        ]

    return row


def _given(word: str) -> Row:
    """x_t = sum_i s[t, i] F(t, i) b_i, of s, b and the gates."""

    def row(tiles: Tiles, node: Tile, grad: Tile) -> list[Tile | None]:
        scores, b, g = node.args
        grad = tiles.spread(grad, node.dims)
        return [
            tiles.named(f"direct{word}", grad, b, g),
            tiles.named(f"taken{word}", scores, grad, g),
            tiles.named(f"decays{word}", scores, grad, b, g),
        ]

    return row


GRADIENTS: dict[str, Row] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "max": _chosen("ge"),
    "min": _chosen("le"),
    "ge": _nothing,
    "le": _nothing,
    "gt": _nothing,
    "lt": _nothing,
    "eq": _nothing,
    "ne": _nothing,
    "where": _where,
    "neg": lambda tiles, node, grad: [tiles.unary("neg", grad)],
    "exp": _unary(lambda tiles, x, y: y),
    "log": _unary(lambda tiles, x, y: tiles.binary("div", tiles.number(1.0), x)),
    "sqrt": _unary(_sqrt_slope),
    "sigmoid": _unary(lambda tiles, x, y: tiles.mul(y, _one_minus(tiles, y))),
    "tanh": _unary(lambda tiles, x, y: _one_minus(tiles, tiles.mul(y, y))),
    "softplus": _unary(lambda tiles, x, y: tiles.unary("sigmoid", x)),
    "abs": _unary(lambda tiles, x, y: tiles.unary("sign", x)),
    "sign": _nothing,
    "positive": _nothing,
    "stop": _nothing,
    "relu": _unary(lambda tiles, x, y: tiles.unary("positive", x)),
    "sin": _unary(lambda tiles, x, y: tiles.unary("cos", x)),
    "cos": _unary(lambda tiles, x, y: tiles.unary("neg", tiles.unary("sin", x))),
    "gelu": _unary(lambda tiles, x, y: tiles.unary("gelu_slope", x)),
    "gelu_slope": _unary(lambda tiles, x, y: tiles.unary("gelu_curve", x)),
    "silu_slope": _unary(lambda tiles, x, y: tiles.unary("silu_curve", x)),
    "scaled": _scaled,
    "sum": lambda tiles, node, grad: [tiles.spread(grad, node.args[0].dims)],
    "spread": lambda tiles, node, grad: [grad],
    "turned": lambda tiles, node, grad: [
        _as_rows(tiles, grad) if node.dims == ("I",) else _as_columns(tiles, grad)
    ],
    "here": lambda tiles, node, grad: [tiles.here(tiles.spread(grad, node.dims), 0.0)],
    "dot": _dot,
    "late": _table(early=False),
    "early": _table(early=True),
    "since": _since(early=False),
    "since_early": _since(early=True),
    "until": _until,
    "whole": _whole,
    "running": _running,
    "last": lambda tiles, node, grad: [
        tiles.named("at_last", tiles.spread(grad, node.args[0].dims))
    ],
    "passed": _passed(early=False),
    "passed_early": _passed(early=True),
    "ahead": lambda tiles, node, grad: [
        tiles.named("ahead_back", tiles.spread(grad, node.dims), node.args[0])
    ],
    "direct": _direct(""),
    "direct_early": _direct("_early"),
    "given": _given(""),
    "given_early": _given("_early"),
    "solved": _solved,
    "below": lambda tiles, node, grad: [tiles.named("below", grad)],
    "upto": lambda tiles, node, grad: [tiles.named("upto", grad)],
    "diagonal": lambda tiles, node, grad: [tiles.named("of_diagonal", grad)],
}
