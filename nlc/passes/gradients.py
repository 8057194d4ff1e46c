"""The gradient of every operation: name -> row, or the reason why there is none.

A row gives d objective / d args[i], from the node and the gradient `g` of its value. `g` may be
thin (see `shaping`); so may the result, and it may have the axes along which args[i] was broadcast:
`differentiate` sums over those. `norm` and the like give at their kinks what torch gives;
`sqrt`, and powers between 0 and 1, give 0 at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nlc.ir.expr import Expr, Graph
from nlc.ir.shape import Axis
from nlc.passes.shaping import drop, expand, grow, size_at
from nlc.passes.simplify import build

Row = Callable[["Maker", Expr, Expr, int], Expr]


@dataclass(frozen=True)
class NoGradient:
    """`constant`: nothing passes through; else the operation cannot stand in an objective."""

    why: str
    constant: bool = True


@dataclass(frozen=True)
class Maker:
    """Makes simple expressions; numbers may stand for constants."""

    graph: Graph

    def __call__(self, op: str, *args: Expr | float, **attrs: Any) -> Expr:
        """Make `op(args)`."""
        nodes = [a if isinstance(a, Expr) else self.graph.constant(a) for a in args]
        return build(self.graph, op, *nodes, **attrs)


def _keep(m: Maker, node: Expr, value: Expr) -> Expr:
    """Put the axes back that a reduction dropped."""
    if not value.shape or (node.has("keep") and node.attr("keep")):
        return value
    return m("unsqueeze", value, axes=tuple(node.attr("axes")))


def _count(node: Expr) -> int:
    """Return over how many entries a reduction runs."""
    (x,) = node.args
    total = 1
    for place in node.attr("axes"):
        total *= x.shape[place].size
    return total


def _over(m: Maker, op: str, node: Expr, value: Expr) -> Expr:
    """Reduce over the axes of `node`, keeping them."""
    return m(op, value, axes=tuple(node.attr("axes")), keep=True)


# elementwise ----------------------------------------------------------------------------------


def _sigmoid(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("mul", g, m("mul", y, m("sub", 1.0, y)))


def _tanh(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("mul", g, m("sub", 1.0, m("mul", y, y)))


def _silu(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("mul", g, m("silu_slope", y.args[0]))


def _silu_slope(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    (x,) = y.args
    s = m("sigmoid", x)
    bend = m("add", 2.0, m("mul", x, m("sub", 1.0, m("mul", 2.0, s))))
    return m("mul", g, m("mul", m("mul", s, m("sub", 1.0, s)), bend))


def _gelu(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("mul", g, m("gelu_slope", y.args[0]))


def _gelu_slope(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    (x,) = y.args
    square = m("mul", x, x)
    density = m("mul", 1 / math.sqrt(2 * math.pi), m("exp", m("mul", -0.5, square)))
    return m("mul", g, m("mul", density, m("sub", 2.0, square)))


def _erf(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    x = y.args[0]
    density = m("mul", 2 / math.sqrt(math.pi), m("exp", m("neg", m("mul", x, x))))
    return m("mul", g, density)


def _mul(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("mul", g, y.args[1 - i])


def _div(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    b = y.args[1]
    return m("div", g, b) if i == 0 else m("neg", m("mul", g, m("div", y, b)))


def _pow(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    a, b = y.args
    if i == 1:
        return m("mul", g, m("mul", y, m("log", a)))
    if b.op == "const":
        power = float(b.attr("value"))
        if 0.0 < power < 1.0:
            zero = m("eq", a, 0.0)
            slope = m("mul", power, m("pow", m("where", zero, 1.0, a), power - 1.0))
            return m("where", zero, 0.0, m("mul", g, slope))
        lower = a if power == 2.0 else m("pow", a, power - 1.0)
        return m("mul", g, m("mul", power, lower))
    return m("mul", g, m("mul", b, m("pow", a, m("sub", b, 1.0))))


def _larger(order: tuple[str, str]) -> Row:
    """Give the gradient to the chosen one, half to each where they are equal."""

    def row(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
        a, b = y.args[i], y.args[1 - i]
        share = m("mul", 0.5, m("add", m(order[0], a, b), m(order[1], a, b)))
        return m("mul", g, share)

    return row


def _where(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("where", y.args[0], g, 0.0) if i == 1 else m("where", y.args[0], 0.0, g)


# reductions -----------------------------------------------------------------------------------


def _extreme(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    x = y.args[0]
    chosen = m("eq", x, _keep(m, y, y))
    return m("mul", _keep(m, y, g), m("div", chosen, _over(m, "sum", y, chosen)))


def _logsumexp(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("mul", _keep(m, y, g), m("exp", m("sub", y.args[0], _keep(m, y, y))))


def _norm(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("mul", _keep(m, y, _over_root(m, y, g)), y.args[0])


def _sqrt(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return _over_root(m, y, m("mul", 0.5, g))


def _over_root(m: Maker, y: Expr, g: Expr) -> Expr:
    """Divide by a root; 0 where that is 0, so that the slopes of all orders are 0 there."""
    zero = m("eq", y, 0.0)
    return m("where", zero, 0.0, m("div", g, m("where", zero, 1.0, y)))


def _softmax(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    inner = m("mul", g, y)
    return m("sub", inner, m("mul", y, _over(m, "sum", y, inner)))


def _unit(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    norm = _over(m, "norm", y, y.args[0])
    eps = y.attr("eps") if y.has("eps") else 1e-12
    along = m("mul", y, _over(m, "sum", y, m("mul", g, y)))
    along = m("where", m("gt", norm, eps), along, 0.0)
    return m("div", m("sub", g, along), m("maximum", norm, eps))


def _rmsnorm(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    x = y.args[0]
    eps = y.attr("eps") if y.has("eps") else 1e-6
    scale = m("sqrt", m("add", _over(m, "mean", y, m("mul", x, x)), eps))
    along = m("mul", y, _over(m, "mean", y, m("mul", g, y)))
    return m("div", m("sub", g, along), scale)


def _layernorm(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return _through_layernorm(m, y, y.args[0], g)


def _through_layernorm(m: Maker, like: Expr, x: Expr, g: Expr) -> Expr:
    """The slope at x times g; the matrix is symmetric."""
    attrs = {"axes": tuple(like.attr("axes")), "eps": like.attr("eps") if like.has("eps") else 1e-5}
    return m("layernorm_slope", x, expand(m.graph, g, x.shape), **attrs)


def _layernorm_slope(m: Maker, f: Expr, h: Expr, i: int) -> Expr:
    # f = (g - mean g - y mean(g y)) / s with y = layernorm(x), and s its scale
    x, g = f.args
    back = _through_layernorm(m, f, x, h)
    if i == 1:
        return back
    axes, eps = tuple(f.attr("axes")), f.attr("eps")
    y = m("layernorm", x, axes=axes, eps=eps)
    centred = m("sub", x, _over(m, "mean", f, x))
    scale = m("sqrt", m("add", _over(m, "mean", f, m("mul", centred, centred)), eps))

    def met(a: Expr, b: Expr) -> Expr:
        return _over(m, "mean", f, m("mul", a, b))

    h = expand(m.graph, h, x.shape)
    total = m("add", m("mul", y, met(h, f)), m("mul", back, met(g, y)))
    return m("neg", m("div", m("add", total, m("mul", f, met(h, y))), scale))


# contractions ---------------------------------------------------------------------------------


def _dot(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("mul", m("unsqueeze", g, axes=(-1,)), y.args[1 - i])


def _matvec(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    matrix, x = y.args
    g = expand(m.graph, g, y.shape[-1:])
    return m("outer", g, x) if i == 0 else m("matvec", m("transpose", matrix), g)


def _matmul(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    left, right = y.args
    g = expand(m.graph, g, y.shape[-2:])
    if i == 0:
        return m("matmul", g, m("transpose", right))
    return m("matmul", m("transpose", left), g)


def _outer(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    g = expand(m.graph, g, y.shape[-2:])
    return m("matvec", g if i == 0 else m("transpose", g), y.args[1 - i])


def _solve(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    matrix, vector = y.args[0], y.attr("vector")
    g = expand(m.graph, g, y.shape[-1:] if vector else y.shape[-2:])
    back = m("solve", m("transpose", matrix), g, vector=vector)
    if i == 1:
        return back
    if vector:
        return m("neg", m("outer", back, y))
    return m("neg", m("matmul", back, m("transpose", y)))


# layout ---------------------------------------------------------------------------------------


def _transpose(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("transpose", grow(m.graph, g, 2)) if g.shape else g


def _diag(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return m("sum", m("mul", g, m("identity", axis=y.shape[-1])), axes=(-1,), keep=False)


def _reshape(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    if not g.shape:
        return g
    last, x = y.attr("last"), y.args[0]
    new = len(y.attr("axes"))
    g = expand(m.graph, g, y.shape[len(y.shape) - new :])
    return m("reshape", g, last=new, axes=x.shape[len(x.shape) - last :])


def _unsqueeze(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    return drop(m.graph, g, tuple(y.attr("axes")))


def _permute(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    if not g.shape:
        return g
    order = tuple(y.attr("order"))
    back = tuple(order.index(place) for place in range(len(order)))
    return m("permute", grow(m.graph, g, len(order)), order=back)


def _concat(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    if size_at(g.shape, -1) == 1 and y.shape[-1].size != 1:
        return g
    start = sum(arg.shape[-1].size for arg in y.args[:i])
    return m("slice", g, start=start, stop=start + y.args[i].shape[-1].size)


def _slice(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    x = y.args[0]
    g = expand(m.graph, g, y.shape)
    start, stop, size = y.attr("start"), y.attr("stop"), x.shape[-1].size
    pieces = [g]
    if start > 0:
        pieces.insert(0, m("mul", 0.0, m("slice", x, start=0, stop=start)))
    if stop < size:
        pieces.append(m("mul", 0.0, m("slice", x, start=stop, stop=size)))
    return m("concat", *pieces) if len(pieces) > 1 else g


# others ---------------------------------------------------------------------------------------


def _eig_values(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    vectors = m("eig_vectors", y.args[0])
    scaled = m("mul", vectors, m("unsqueeze", grow(m.graph, g, 1), axes=(-2,)))
    return m("matmul", scaled, m("transpose", vectors))


def _eig_vectors(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    values = m("eig_values", y.args[0])
    identity = m("identity", axis=y.shape[-1])
    # gaps[i, j] = w_j - w_i off the diagonal, where it is 1 and its share is 0
    gaps = m("sub", m("unsqueeze", values, axes=(-2,)), m("unsqueeze", values, axes=(-1,)))
    share = m("div", m("sub", 1.0, identity), m("add", gaps, identity))
    turned = m("matmul", m("transpose", y), expand(m.graph, g, y.shape[-2:]))
    inner = m("matmul", y, m("mul", share, turned))
    return m("matmul", inner, m("transpose", y))


def _rotate(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    x, angle = y.args
    g = expand(m.graph, g, y.shape[-1:])
    if i == 0:
        return m("rotate", g, m("neg", angle))
    ahead = m("mul", g, m("rotate", x, m("add", angle, math.pi / 2)))
    half = Axis(angle.shape[-1].name, x.shape[-1].size // 2, free=True)
    pairs = m("reshape", ahead, last=1, axes=(half, Axis("2", 2)))
    return m("sum", pairs, axes=(-1,), keep=False)


def _lookup(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    table, index = y.args
    chosen = m("eq", m("index", axis=table.shape[0]), m("unsqueeze", index, axes=(-1,)))
    return m("outer", chosen, expand(m.graph, g, y.shape[-1:]))


def _cross_entropy(m: Maker, y: Expr, g: Expr, i: int) -> Expr:
    logits, target = y.args
    chosen = m("eq", m("index", axis=logits.shape[-1]), m("unsqueeze", target, axes=(-1,)))
    off = m("sub", m("softmax", logits, axes=(-1,)), chosen)
    return m("mul", m("unsqueeze", g, axes=(-1,)), off)


_LEAF = NoGradient("it has no arguments")
_STEP = NoGradient("it moves in steps")
_WHOLE = NoGradient("it counts")
_STOPPED = NoGradient("`stop` makes it a constant")
_TIME = NoGradient("it mixes tokens, and an objective is of one token", constant=False)
_SEARCH = NoGradient("a softmax memory is read by a search over its pairs", constant=False)
_ROUTED = NoGradient("a route chooses slots by order", constant=False)
_LOWERED = NoGradient("it has been written out before", constant=False)

GRADIENTS: Mapping[str, Row | NoGradient] = {
    **dict.fromkeys(("const", "stream", "param", "state", "variable"), _LEAF),
    **dict.fromkeys(("position", "index", "identity"), _LEAF),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne", "sign"), _STEP),
    "neg": lambda m, y, g, i: m("neg", g),
    "exp": lambda m, y, g, i: m("mul", g, y),
    "log": lambda m, y, g, i: m("div", g, y.args[0]),
    "sqrt": _sqrt,
    "abs": lambda m, y, g, i: m("mul", g, m("sign", y.args[0])),
    "sin": lambda m, y, g, i: m("mul", g, m("cos", y.args[0])),
    "cos": lambda m, y, g, i: m("neg", m("mul", g, m("sin", y.args[0]))),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_slope": _gelu_slope,
    "silu_slope": _silu_slope,
    "relu": lambda m, y, g, i: m("mul", g, m("gt", y.args[0], 0.0)),
    "softplus": lambda m, y, g, i: m("mul", g, m("sigmoid", y.args[0])),
    "erf": _erf,
    "add": lambda m, y, g, i: g,
    "sub": lambda m, y, g, i: g if i == 0 else m("neg", g),
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "maximum": _larger(("gt", "ge")),
    "minimum": _larger(("lt", "le")),
    "where": _where,
    "sum": lambda m, y, g, i: _keep(m, y, g),
    "mean": lambda m, y, g, i: m("div", _keep(m, y, g), float(_count(y))),
    "max": _extreme,
    "min": _extreme,
    "logsumexp": _logsumexp,
    "norm": _norm,
    "softmax": _softmax,
    "unit": _unit,
    "rmsnorm": _rmsnorm,
    "layernorm": _layernorm,
    "layernorm_slope": _layernorm_slope,
    "dot": _dot,
    "matvec": _matvec,
    "matmul": _matmul,
    "outer": _outer,
    "solve": _solve,
    "transpose": _transpose,
    "diag": _diag,
    "reshape": _reshape,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "concat": _concat,
    "slice": _slice,
    "newton_schulz": _LOWERED,
    "eig_values": _eig_values,
    "eig_vectors": _eig_vectors,
    "rotate": _rotate,
    "lookup": _lookup,
    "cross_entropy": _cross_entropy,
    "let": lambda m, y, g, i: g,
    "stop": _STOPPED,
    "apply": _LOWERED,
    "grad": _LOWERED,
    "ask": _LEAF,
    "attend": _SEARCH,
    "shift": _TIME,
    "window": _TIME,
    "due": _LEAF,
    "route": _ROUTED,
    "conv": _TIME,
}
