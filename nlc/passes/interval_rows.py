"""The range of every operation's value: name -> row.

In: a node and the ranges of its arguments. Out: its `Range`: an interval for each entry and one for
the Euclidean norm along the last axis. A row may be wide, never too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, sqrt

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape, count
from nlc.passes.interval import (
    ANYTHING,
    FINITE,
    NOT_NEGATIVE,
    SYMMETRIC,
    UNIT,
    Interval,
    between,
    point,
    upto,
)


@dataclass(frozen=True)
class Range:
    """`entry` holds each entry, `norm` the norm along the last axis (a number's absolute value)."""

    entry: Interval
    norm: Interval


Row = Callable[[Expr, tuple[Range, ...]], Range]


def made(shape: Shape, entry: Interval, norm: Interval | None = None) -> Range:
    """Put what is known of the entries and of the norm together; each says something of both."""
    size = shape[-1].size if shape else 1
    by_entry = entry.magnitude() * point(sqrt(size))
    norm = by_entry if norm is None else norm.meet(by_entry)
    if norm.high < entry.size:
        entry = entry.meet(_around(norm))
    return Range(entry, norm)


def unknown(node: Expr) -> Range:
    """Say that a value is any finite number."""
    return made(node.shape, FINITE)


# ---- rows --------------------------------------------------------------------------------------


def _fixed(entry: Interval) -> Row:
    return lambda node, args: made(node.shape, entry)


def _const(node: Expr, args: tuple[Range, ...]) -> Range:
    return made(node.shape, point(float(node.attr("value"))))


def _index(node: Expr, args: tuple[Range, ...]) -> Range:
    return made(node.shape, between(0.0, node.shape[-1].size - 1.0, is_open=False))


def _identity(node: Expr, args: tuple[Range, ...]) -> Range:
    return made(node.shape, UNIT, point(1.0))


def _entries(function: Callable[..., Interval]) -> Row:
    def row(node: Expr, args: tuple[Range, ...]) -> Range:
        return made(node.shape, function(*(arg.entry for arg in args)))

    return row


def _same_norm(function: Callable[[Interval], Interval]) -> Row:
    """A function that keeps each entry's size, or makes it smaller."""

    def row(node: Expr, args: tuple[Range, ...]) -> Range:
        norm = args[0].norm
        return made(node.shape, function(args[0].entry), upto(norm.high, norm.high_open))

    return row


def _sigmoid(x: Interval) -> Interval:
    return x.map(lambda t: 1.0 / (1.0 + math.exp(-t)) if t >= 0 else _rising(t))


def _rising(t: float) -> float:
    return math.exp(t) / (1.0 + math.exp(t))


def _softplus(x: Interval) -> Interval:
    return x.map(lambda t: max(t, 0.0) + math.log1p(math.exp(-abs(t))))


def _dips(function: Callable[[float], float], place: float, least: float) -> Row:
    """A function that falls from 0 at minus infinity to `least` at `place`, then rises."""

    def row(node: Expr, args: tuple[Range, ...]) -> Range:
        x = args[0].entry
        ends = [Interval(function(t), function(t), is_open, is_open) for t, is_open in x.ends]
        y = ends[0].hull(ends[1])
        if x.low < place < x.high:
            y = Interval(least, y.high, False, y.high_open)
        # between the ends the function may reach what an open end only approaches
        return made(node.shape, y, upto(args[0].norm.high, args[0].norm.high_open))

    return row


def _silu(t: float) -> float:
    if t == -inf:
        return 0.0
    return t / (1.0 + math.exp(-t)) if t >= 0 else t * _rising(t)


def _gelu(t: float) -> float:
    return 0.0 if t == -inf else 0.5 * t * (1.0 + math.erf(t / sqrt(2.0)))


def _relu(x: Interval) -> Interval:
    if x.low >= 0:
        return x
    return upto(x.high, x.high_open) if x.high > 0 else point(0.0)


def _sign(x: Interval) -> Interval:
    return Interval(-1.0 if x.low < 0 else 0.0 if 0.0 in x else 1.0,
                    1.0 if x.high > 0 else 0.0 if 0.0 in x else -1.0)  # fmt: skip


def _sqrt(x: Interval) -> Interval:
    return x.map(lambda t: sqrt(t) if t < inf else inf) if x.low >= 0 else ANYTHING


def _mul(node: Expr, args: tuple[Range, ...]) -> Range:
    a, b = args
    same = node.args[0] is node.args[1]
    entry = a.entry.power(point(2.0)) if same else a.entry * b.entry
    norms = [_scaled(a.norm, b.entry), _scaled(b.norm, a.entry)]
    wide = [_last(arg.shape) == _last(node.shape) for arg in node.args]
    known = [norm for norm, whole in zip(norms, wide, strict=True) if whole]
    return made(node.shape, entry, min(known, key=lambda n: n.high) if known else None)


def _scaled(norm: Interval, by: Interval) -> Interval:
    size = by.magnitude()
    product = upto(norm.high, norm.high_open) * upto(size.high, size.high_open)
    return upto(product.high, product.high_open)


def _last(shape: Shape) -> int:
    return shape[-1].size if shape else 1


def _div(node: Expr, args: tuple[Range, ...]) -> Range:
    a, b = args
    norm = None
    if _last(node.args[0].shape) == _last(node.shape):
        norm = _scaled(a.norm, b.entry.reciprocal())
    return made(node.shape, a.entry / b.entry, norm)


def _sum_of(sign: float) -> Row:
    def row(node: Expr, args: tuple[Range, ...]) -> Range:
        a, b = args
        entry = a.entry + b.entry if sign > 0 else a.entry - b.entry
        norm = None
        if all(_last(arg.shape) == _last(node.shape) for arg in node.args):
            both = a.norm + b.norm
            norm = upto(both.high, both.high_open)
        return made(node.shape, entry, norm)

    return row


def _maximum(a: Interval, b: Interval) -> Interval:
    low = max(a.ends[0], b.ends[0])
    high = max((a.high, not a.high_open), (b.high, not b.high_open))
    return Interval(*(low[0], high[0]), low[1], not high[1])


def _minimum(a: Interval, b: Interval) -> Interval:
    return -_maximum(-a, -b)


def _where(node: Expr, args: tuple[Range, ...]) -> Range:
    return _hulled(node, args[1:], node.args[1:])


def _hulled(node: Expr, args: tuple[Range, ...], given: tuple[Expr, ...]) -> Range:
    entry = args[0].entry.hull(*(arg.entry for arg in args[1:]))
    norm = None
    if all(_last(arg.shape) == _last(node.shape) for arg in given):
        norm = args[0].norm.hull(*(arg.norm for arg in args[1:]))
    return made(node.shape, entry, norm)


def _reduced(node: Expr) -> int:
    """Return how many entries a reduction runs over."""
    shape = node.args[0].shape
    return count(tuple(shape[axis] for axis in node.attr("axes")))


def _is_last(node: Expr) -> bool:
    return tuple(node.attr("axes")) == (-1,)


def _sum(node: Expr, args: tuple[Range, ...]) -> Range:
    size, root = float(_reduced(node)), sqrt(_reduced(node))
    entry, length = args[0].entry, args[0].norm
    if node.op == "sum":
        entry, root = entry * point(size), 1.0 / root
    if _is_last(node):
        # Cauchy and Schwarz, with a vector of ones
        entry = entry.meet(_around(length / point(root)))
    return made(node.shape, entry)


def _around(reach: Interval) -> Interval:
    """From -x to x for the greatest x."""
    return Interval(-reach.high, reach.high, reach.high_open, reach.high_open)


def _norm(node: Expr, args: tuple[Range, ...]) -> Range:
    if _is_last(node):
        return made(node.shape, args[0].norm)
    return made(node.shape, args[0].entry.magnitude() * point(sqrt(_reduced(node))))


def _logsumexp(node: Expr, args: tuple[Range, ...]) -> Range:
    return made(node.shape, args[0].entry + point(math.log(_reduced(node))))


def _softmax(node: Expr, args: tuple[Range, ...]) -> Range:
    if _reduced(node) == 1:
        return made(node.shape, point(1.0))
    # positive numbers whose sum is 1, so the norm is below 1
    bounded = args[0].entry.low > -inf or args[0].entry.low_open
    entry = between(0.0, 1.0) if bounded else UNIT
    return made(node.shape, entry, upto(1.0, bounded) if _is_last(node) else None)


def _route(node: Expr, args: tuple[Range, ...]) -> Range:
    return made(node.shape, UNIT, upto(1.0))


def _normalised(node: Expr, args: tuple[Range, ...]) -> Range:
    """Unit, rmsnorm and layernorm: x over its norm, root mean square or deviation."""
    size = _reduced(node)
    eps = float(node.attr("eps")) if node.has("eps") else 0.0
    reach = 1.0 if node.op == "unit" else sqrt(size)
    is_open = node.op != "unit" and eps > 0
    entry = Interval(-reach, reach, is_open, is_open)
    if node.op != "layernorm" and args[0].entry.low >= 0:
        entry = upto(reach, is_open)
    return made(node.shape, entry, upto(reach, is_open))


def _layernorm_slope(node: Expr, args: tuple[Range, ...]) -> Range:
    """A symmetric matrix, of which no eigenvalue is above 1 over the deviation, times g."""
    g, eps = args[1], float(node.attr("eps"))
    if eps <= 0:
        return made(node.shape, ANYTHING)
    most = point(1 / sqrt(eps))
    entry = _around(g.entry.magnitude() * point(sqrt(_reduced(node))) * most)
    return made(node.shape, entry, _up_to(g.norm * most) if _is_last(node) else None)


def _up_to(reach: Interval) -> Interval:
    """From 0 to x for the greatest x."""
    return upto(reach.high, reach.high_open)


def _dot(node: Expr, args: tuple[Range, ...]) -> Range:
    a, b = args
    shapes = [arg.shape for arg in node.args]
    size = max(_last(shape) for shape in shapes)
    if node.args[0] is node.args[1]:
        return made(node.shape, a.norm.power(point(2.0)))
    entry = a.entry * b.entry * point(size)
    if _last(shapes[0]) == _last(shapes[1]):
        entry = entry.meet(_around(a.norm * b.norm))
    return made(node.shape, entry)


def _matvec(node: Expr, args: tuple[Range, ...]) -> Range:
    matrix, x = args
    entry = matrix.entry * x.entry * point(_last(node.args[1].shape))
    return made(node.shape, entry.meet(_around(matrix.norm * x.norm)))


def _matmul(node: Expr, args: tuple[Range, ...]) -> Range:
    a, b = args
    return made(node.shape, a.entry * b.entry * point(_last(node.args[0].shape)))


def _outer(node: Expr, args: tuple[Range, ...]) -> Range:
    a, b = args
    return made(node.shape, a.entry * b.entry, _scaled(b.norm, a.entry))


def _diag(node: Expr, args: tuple[Range, ...]) -> Range:
    size = args[0].entry.magnitude()
    return made(node.shape, args[0].entry.hull(point(0.0)), size)


def _layout(node: Expr, args: tuple[Range, ...]) -> Range:
    """The same entries at other places."""
    entry, norm = args[0].entry, args[0].norm
    before, after = node.args[0].shape, node.shape
    if _keeps_last(node):
        return made(after, entry, norm)
    if node.op == "slice" or (node.op == "reshape" and _last(before) % _last(after) == 0):
        # a part of a vector is no longer than the whole
        return made(after, entry, upto(norm.high, norm.high_open))
    return made(after, entry)


def _keeps_last(node: Expr) -> bool:
    match node.op:
        case "transpose":
            return False
        case "permute":
            order = node.attr("order")
            return bool(order[-1] == len(order) - 1)
        case "unsqueeze":
            return -1 not in node.attr("axes")
        case "reshape":
            return _last(node.args[0].shape) == _last(node.shape)
    return False


def _concat(node: Expr, args: tuple[Range, ...]) -> Range:
    square = point(0.0)
    for arg in args:
        square = square + upto(arg.norm.high, arg.norm.high_open).power(point(2.0))
    entry = args[0].entry.hull(*(arg.entry for arg in args[1:]))
    return made(node.shape, entry, _sqrt(square))


def _transparent(node: Expr, args: tuple[Range, ...]) -> Range:
    return args[0]


def _rotate(node: Expr, args: tuple[Range, ...]) -> Range:
    norm = args[0].norm
    return made(node.shape, _around(args[0].entry.magnitude() * point(sqrt(2.0))), norm)


def _shift(node: Expr, args: tuple[Range, ...]) -> Range:
    zero = made(node.shape, point(0.0))
    return _hulled(node, (args[0], zero), (node.args[0], node.args[0]))


def _window(node: Expr, args: tuple[Range, ...]) -> Range:
    if node.attr("how") != "sum":
        return args[0]
    x = args[0].entry
    # the number of tokens is not known here: the sign is all that stays
    low = x.low if x.low == 0 else -inf
    high = x.high if x.high == 0 else inf
    return made(node.shape, Interval(low, high, x.low_open or low == -inf, True))


def _lookup(node: Expr, args: tuple[Range, ...]) -> Range:
    return made(node.shape, args[0].entry, args[0].norm)


def _unknown(node: Expr, args: tuple[Range, ...]) -> Range:
    return unknown(node)


def _undefined(node: Expr, args: tuple[Range, ...]) -> Range:
    return made(node.shape, ANYTHING)


ROWS: Mapping[str, Row] = {
    "const": _const,
    "position": _fixed(NOT_NEGATIVE),
    "index": _index,
    "identity": _identity,
    **dict.fromkeys(("stream", "param", "state", "variable"), _unknown),
    "neg": _same_norm(lambda x: -x),
    "exp": _entries(Interval.exp),
    "log": _entries(Interval.log),
    "sqrt": _entries(_sqrt),
    "abs": _same_norm(Interval.magnitude),
    "sign": _entries(_sign),
    "sin": _same_norm(lambda x: SYMMETRIC),
    "cos": _fixed(SYMMETRIC),
    "tanh": _same_norm(lambda x: x.map(math.tanh)),
    "sigmoid": _entries(_sigmoid),
    "silu": _dips(_silu, -1.278464542761, -0.278464542761),
    "gelu": _dips(_gelu, -0.7517915247, -0.1699712075),
    # steepest where the second derivative is 0
    "gelu_slope": _fixed(Interval(-0.128904146, 1.128904146)),
    "silu_slope": _fixed(Interval(-0.099839321, 1.099839321)),
    "relu": _same_norm(_relu),
    "softplus": _entries(_softplus),
    "erf": _entries(lambda x: x.map(math.erf)),
    "add": _sum_of(1.0),
    "sub": _sum_of(-1.0),
    "mul": _mul,
    "div": _div,
    "pow": _entries(Interval.power),
    "maximum": _entries(_maximum),
    "minimum": _entries(_minimum),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), _fixed(UNIT)),
    "where": _where,
    "sum": _sum,
    "mean": _sum,
    "max": _layout,
    "min": _layout,
    "logsumexp": _logsumexp,
    "norm": _norm,
    "softmax": _softmax,
    **dict.fromkeys(("unit", "rmsnorm", "layernorm"), _normalised),
    "layernorm_slope": _layernorm_slope,
    "dot": _dot,
    "matvec": _matvec,
    "matmul": _matmul,
    "outer": _outer,
    "transpose": _layout,
    "diag": _diag,
    "reshape": _layout,
    "unsqueeze": _layout,
    "permute": _layout,
    "concat": _concat,
    "slice": _layout,
    "solve": _undefined,
    "newton_schulz": _unknown,
    "eig_values": _unknown,
    "eig_vectors": lambda node, args: made(node.shape, SYMMETRIC, point(1.0)),
    "rotate": _rotate,
    "lookup": _lookup,
    "cross_entropy": _fixed(NOT_NEGATIVE),
    "apply": _unknown,
    "grad": _unknown,
    "ask": _unknown,
    "attend": _unknown,
    "let": _transparent,
    "stop": _transparent,
    "shift": _shift,
    "window": _window,
    "due": _fixed(UNIT),
    "route": _route,
    "conv": _unknown,
}
"""A row for each operation; the test of the tables compares the keys."""
