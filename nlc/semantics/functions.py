"""The functions of the language, each a few lines from its definition.

In: a call and the scope it stands in. Out: its value. A function that works on streams alone
(`shift`, `rope`, ...) asks the scope for the history it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.shape import Axis, show
from nlc.semantics.axes import broadcast_front, split
from nlc.semantics.context import real, several
from nlc.semantics.products import operand
from nlc.semantics.values import Value, each
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.expressions import Scope

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

UNARY = (
    *("sigmoid", "silu", "gelu", "relu", "tanh", "exp", "log", "softplus"),
    *("sqrt", "abs", "sign", "sin", "cos"),
)
REDUCTIONS = ["sum", "mean", "norm", "softmax", "logsumexp", "unit", "rmsnorm", "layernorm"]
NORMALISERS = {"unit": 1e-12, "rmsnorm": 1e-6, "layernorm": 1e-5}

Function = Callable[["Scope", tree.Call], Value]


def call_function(scope: Scope, name: str, call: tree.Call) -> Value:
    """Apply a function of the language by its name."""
    function = FUNCTIONS.get(name)
    if function is None:
        known = [*FUNCTIONS, *scope.known_names()]
        scope.context.unknown("function", name, call.function.span, known, "NL0301")
    least, most, keywords = SIGNATURES[name]
    count = len(call.arguments)
    if not least <= count <= most:
        takes = several(least, "argument")
        if most > least:
            takes = f"{least} or more arguments" if most == MANY else f"{least} to {most} arguments"
        scope.context.fail(
            "NL0309", f"`{name}` takes {takes}", call.span,
            f"{count} given", USAGE.get(name, f"write `{name}({', '.join('xyz'[:least])})`"),
        )  # fmt: skip
    for keyword in call.keywords:
        if keyword.name not in keywords:
            scope.context.unknown("option", keyword.name, keyword.span, list(keywords), "NL0307")
    return function(scope, call)


def _keyword(call: tree.Call, name: str) -> tree.Expr | None:
    return next((k.value for k in call.keywords if k.name == name), None)


def _number(scope: Scope, call: tree.Call, name: str, default: float) -> float:
    written = _keyword(call, name)
    return default if written is None else real(scope.context, written)


def _unary(scope: Scope, call: tree.Call) -> Value:
    assert isinstance(call.function, tree.Name)
    return scope.elementwise(call.function.id, call.span, list(call.arguments))


def _where(scope: Scope, call: tree.Call) -> Value:
    return scope.elementwise("where", call.span, list(call.arguments))


def _extreme(scope: Scope, call: tree.Call) -> Value:
    assert isinstance(call.function, tree.Name)
    op = {"min": "minimum", "max": "maximum"}[call.function.id]
    if len(call.arguments) == 1:
        return _reduction(scope, call)
    first, *rest = call.arguments
    value = scope.value(first)
    for argument in rest:
        value = scope.combine(
            op, call.span, [(value, first.span), (scope.value(argument), argument.span)]
        )
    return value


def _clamp(scope: Scope, call: tree.Call) -> Value:
    x, low, high = call.arguments
    value = scope.combine(
        "maximum", call.span, [(scope.value(x), x.span), (scope.value(low), low.span)]
    )
    return scope.combine("minimum", call.span, [(value, call.span), (scope.value(high), high.span)])


def _reduction(scope: Scope, call: tree.Call) -> Value:
    assert isinstance(call.function, tree.Name)
    op = call.function.id
    (argument,) = call.arguments
    tokens = scope.special("tokens", call)
    if tokens is not None:
        return tokens
    attrs: dict[str, object] = {}
    if op in NORMALISERS:
        attrs["eps"] = _number(scope, call, "eps", NORMALISERS[op])

    def one(values: list[Expr]) -> Expr:
        (value,) = values
        return scope.reduce(op, value, scope.over(value, call), call.span, **attrs)

    value = each(scope.context, [scope.value(argument)], one, call.span)
    for name, join in (("gain", "mul"), ("offset", "add")):
        written = _keyword(call, name)
        if written is not None:
            value = scope.combine(
                join, call.span, [(value, argument.span), (scope.value(written), written.span)]
            )
    return value


def _lerp(scope: Scope, call: tree.Call) -> Value:
    a, b, w = ((scope.value(x), x.span) for x in call.arguments)
    difference = scope.combine("sub", call.span, [b, a])
    step = scope.combine("mul", call.span, [w, (difference, call.span)])
    return scope.combine("add", call.span, [a, (step, call.span)])


def _outer(scope: Scope, call: tree.Call) -> Value:
    a, b = call.arguments
    left, right = scope.plain(a), scope.plain(b)
    scope.need_rank(left, 1, a.span)
    scope.need_rank(right, 1, b.span)
    left, right = broadcast_front(
        scope.context, [left, right], [a.span, b.span], [1, 1], scope.lead, "`outer`"
    )
    return scope.make("outer", left, right, span=call.span)


def _diag(scope: Scope, call: tree.Call) -> Value:
    value = scope.plain(call.arguments[0])
    scope.need_rank(value, 1, call.arguments[0].span)
    return scope.make("diag", value, span=call.span)


def _transpose(scope: Scope, call: tree.Call) -> Value:
    def one(values: list[Expr]) -> Expr:
        (value,) = values
        scope.need_rank(value, 2, call.arguments[0].span)
        return scope.make("transpose", value, span=call.span)

    return each(scope.context, [scope.value(call.arguments[0])], one, call.span)


def _solve(scope: Scope, call: tree.Call) -> Value:
    a, b = call.arguments
    number, matrix = operand(scope, a)
    right = scope.plain(b)
    if not isinstance(matrix, Expr):
        scope.context.fail(
            "NL0409", "`solve` needs a matrix", a.span, "not one matrix",
            "write `solve(A, b)` with a square A; `A + 0.1` adds a multiple of the identity",
        )  # fmt: skip
    scope.need_rank(matrix, 2, a.span)
    rows, columns = matrix.shape[-2:]
    if not rows.fits(columns):
        scope.context.fail(
            "NL0410", "`solve` needs a square matrix", a.span, f"this is {show(matrix.shape[-2:])}",
            "both axes must be the same dim",
        )  # fmt: skip
    if number is not None:
        eye = scope.make("identity", axis=columns, span=a.span)
        scaled = scope.combine("mul", a.span, [(number, a.span), (eye, a.span)])
        whole = scope.combine("add", a.span, [(matrix, a.span), (scaled, a.span)])
        assert isinstance(whole, Expr)
        matrix = whole
    vector = scope.body_rank(right) < 2 or not right.shape[-2].fits(columns)
    last = 1 if vector else 2
    if not right.shape or not right.shape[-last].fits(columns):
        scope.context.fail(
            "NL0404", "the sides of `solve` do not fit", b.span, f"this is {show(right.shape)}",
            f"the right side needs the axis {columns.name}", (a.span, f"{show(matrix.shape)}"),
        )  # fmt: skip
    left, right = broadcast_front(
        scope.context, [matrix, right], [a.span, b.span], [2, last], scope.lead, "`solve`"
    )
    return scope.make("solve", left, right, vector=vector, span=call.span)


def _newton_schulz(scope: Scope, call: tree.Call) -> Value:
    written = _keyword(call, "steps")
    steps = 5 if written is None else scope.context.positive(written, "the number of steps")
    coefficients = _coefficients(scope, call, steps)
    eps = _number(scope, call, "eps", 1e-7)

    def one(values: list[Expr]) -> Expr:
        (value,) = values
        if scope.body_rank(value) < 2:
            return value
        return scope.make(
            "newton_schulz", value, steps=len(coefficients), coefficients=coefficients, eps=eps,
            span=call.span,
        )  # fmt: skip

    return each(scope.context, [scope.value(call.arguments[0])], one, call.span)


def _coefficients(scope: Scope, call: tree.Call, steps: int) -> tuple[tuple[float, ...], ...]:
    written = _keyword(call, "coefficients")
    if written is None:
        return (NEWTON_SCHULZ,) * steps
    rows = written.items if isinstance(written, tree.Tuple) else ()
    if rows and all(isinstance(row, tree.Tuple) for row in rows):
        triples = tuple(
            tuple(real(scope.context, x) for x in row.items)
            for row in rows
            if isinstance(row, tree.Tuple)
        )
    else:
        triples = (tuple(real(scope.context, x) for x in rows),) * steps
    explicit = _keyword(call, "steps") is not None
    if any(len(t) != 3 for t in triples) or (explicit and len(triples) != steps):
        scope.context.fail(
            "NL0414", "`coefficients` are written wrongly", written.span, "not three per step",
            "three numbers, or one triple for each step: `coefficients = ((a, b, c), (a, b, c))`",
        )  # fmt: skip
    return triples


def _lp(scope: Scope, call: tree.Call) -> Value:
    e, p = call.arguments
    size = scope.combine("abs", e.span, [(scope.value(e), e.span)])
    power = scope.combine("pow", call.span, [(size, e.span), (scope.value(p), p.span)])
    return _summed(scope, power, call)


def _summed(scope: Scope, value: Value, call: tree.Call) -> Value:
    return each(
        scope.context,
        [value],
        lambda v: scope.reduce("sum", v[0], scope.over(v[0], call), call.span),
        call.span,
    )


def _huber(scope: Scope, call: tree.Call) -> Value:
    e, delta = call.arguments
    span = call.span
    error = (scope.value(e), e.span)
    bound = (scope.value(delta), delta.span)
    half = (scope.context.number(0.5, span), span)
    size = (scope.combine("abs", span, [error]), span)
    square = (scope.combine("mul", span, [error, error]), span)
    inside = (scope.combine("mul", span, [half, square]), span)
    half_bound = (scope.combine("mul", span, [half, bound]), span)
    rest = (scope.combine("sub", span, [size, half_bound]), span)
    outside = (scope.combine("mul", span, [bound, rest]), span)
    small = (scope.combine("le", span, [size, bound]), span)
    return _summed(scope, scope.combine("where", span, [small, inside, outside]), call)


def _stop(scope: Scope, call: tree.Call) -> Value:
    return scope.elementwise("stop", call.span, list(call.arguments))


def _index(scope: Scope, call: tree.Call) -> Value:
    (argument,) = call.arguments
    return scope.make("index", axis=scope.context.axis(argument), span=call.span)


def _split(scope: Scope, call: tree.Call) -> Value:
    x, *entries = call.arguments
    value = scope.plain(x)
    scope.need_rank(value, 1, x.span)
    axes = scope.context.shape(tuple(entries))
    size = math.prod(axis.size for axis in axes)
    if value.shape[-1].size != size:
        scope.context.fail(
            "NL0411", "`split` does not fit the axis", call.span,
            f"{value.shape[-1].name} has {value.shape[-1].size} entries, {show(axes)} has {size}",
            "the product of the new axes must be the old one's size", (x.span, show(value.shape)),
        )  # fmt: skip
    return scope.make("reshape", value, last=1, axes=axes, span=call.span)


def _flat(scope: Scope, call: tree.Call) -> Value:
    (x,) = call.arguments
    value = scope.plain(x)
    body = value.shape[split(value.shape, scope.lead) :]
    if len(body) == 1:
        return value
    size = math.prod(axis.size for axis in body)
    axis = Axis("*".join(axis.name for axis in body) or "1", size, free=True)
    return scope.make("reshape", value, last=len(body), axes=(axis,), span=call.span)


def _concat(scope: Scope, call: tree.Call) -> Value:
    values = [scope.plain(x) for x in call.arguments]
    spans = [x.span for x in call.arguments]
    for value, span in zip(values, spans, strict=True):
        scope.need_rank(value, 1, span)
    aligned = broadcast_front(
        scope.context, values, spans, [1] * len(values), scope.lead, "`concat`"
    )
    return scope.make("concat", *aligned, span=call.span)


def _slice(scope: Scope, call: tree.Call) -> Value:
    x, start, stop = call.arguments
    value = scope.plain(x)
    scope.need_rank(value, 1, x.span)
    a, b = scope.context.integer(start), scope.context.integer(stop)
    if not 0 <= a < b <= value.shape[-1].size:
        scope.context.fail(
            "NL0411", "`slice` does not lie in the axis", call.span,
            f"{a} to {b} of {value.shape[-1].size}", "0 <= from < to <= size",
        )  # fmt: skip
    return scope.make("slice", value, start=a, stop=b, span=call.span)


def _cross_entropy(scope: Scope, call: tree.Call) -> Value:
    logits, targets = call.arguments
    scope.need_rank(scope.plain(logits), 1, logits.span)
    scope.scalar(targets, "a target")
    return scope.make("cross_entropy", scope.plain(logits), scope.plain(targets), span=call.span)


def _rotate(scope: Scope, call: tree.Call) -> Value:
    x, angle = call.arguments
    return _turned(scope, call, scope.plain(x), scope.plain(angle), angle)


def _turned(scope: Scope, call: tree.Call, x: Expr, angle: Expr, at: tree.Expr) -> Value:
    source = call.arguments[0]
    scope.need_rank(x, 1, source.span)
    size = x.shape[-1].size
    if size % 2:
        scope.context.fail(
            "NL0411", "an odd axis cannot be rotated", source.span, f"{size} entries",
            "neighbouring pairs of the last axis turn: its size must be even",
        )  # fmt: skip
    if scope.body_rank(angle) == 0:
        angle = scope.make("unsqueeze", angle, axes=(-1,), span=at.span)
    elif angle.shape[-1].size not in (size // 2, 1):
        scope.context.fail(
            "NL0411", "`rotate` needs one angle for each pair", at.span,
            f"{angle.shape[-1].size} angles for {size // 2} pairs",
            "the angle's last axis is half as long as the stream's",
        )  # fmt: skip
    left, right = broadcast_front(
        scope.context, [x, angle], [source.span, at.span], [1, 1], scope.lead, "`rotate`"
    )
    return scope.make("rotate", left, right, span=call.span)


def _rope(scope: Scope, call: tree.Call) -> Value:
    (x,) = call.arguments
    value = scope.plain(x)
    scope.need_rank(value, 1, x.span)
    half = max(value.shape[-1].size // 2, 1)
    base = _number(scope, call, "base", 10000.0)
    if base <= 0:
        scope.context.fail(
            "NL0414", "`base` must be positive", call.span, f"{base:g}", "the default is 10000"
        )
    axis = Axis(str(half), half, free=True)
    span = call.span
    rate = scope.context.number(-math.log(base) / half, span)
    index = scope.make("index", axis=axis, span=span)
    frequency = scope.make("exp", scope.make("mul", rate, index, span=span), span=span)
    position = scope.make("position", span=span)
    wide = scope.make("unsqueeze", position, axes=(-1,), span=span)
    angle = scope.make("mul", wide, frequency, span=span)
    return _turned(scope, call, value, angle, x)


FUNCTIONS: dict[str, Function] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(REDUCTIONS, _reduction),
    "min": _extreme,
    "max": _extreme,
    "clamp": _clamp,
    "where": _where,
    "lerp": _lerp,
    "outer": _outer,
    "diag": _diag,
    "transpose": _transpose,
    "solve": _solve,
    "newton_schulz": _newton_schulz,
    "lp": _lp,
    "huber": _huber,
    "stop": _stop,
    "index": _index,
    "split": _split,
    "flat": _flat,
    "concat": _concat,
    "slice": _slice,
    "cross_entropy": _cross_entropy,
    "rotate": _rotate,
    "rope": _rope,
}

MANY = 1000
# name -> (least and most arguments, settings)
SIGNATURES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    **dict.fromkeys(UNARY, (1, 1, ())),
    **dict.fromkeys(REDUCTIONS, (1, 1, ("over",))),
    "unit": (1, 1, ("over", "eps")),
    "rmsnorm": (1, 1, ("over", "eps", "gain")),
    "layernorm": (1, 1, ("over", "eps", "gain", "offset")),
    "min": (1, MANY, ("over",)),
    "max": (1, MANY, ("over",)),
    "clamp": (3, 3, ()),
    "where": (3, 3, ()),
    "lerp": (3, 3, ()),
    "outer": (2, 2, ()),
    "diag": (1, 1, ()),
    "transpose": (1, 1, ()),
    "solve": (2, 2, ()),
    "newton_schulz": (1, 1, ("steps", "coefficients", "eps")),
    "lp": (2, 2, ("over",)),
    "huber": (2, 2, ("over",)),
    "stop": (1, 1, ()),
    "index": (1, 1, ()),
    "split": (3, MANY, ()),
    "flat": (1, 1, ()),
    "concat": (2, MANY, ()),
    "slice": (3, 3, ()),
    "cross_entropy": (2, 2, ()),
    "rotate": (2, 2, ()),
    "rope": (1, 1, ("base",)),
}
USAGE = {
    "lerp": "lerp(a, b, w) is a + w (b - a)",
    "where": "where(c, a, b) is a where c holds, else b",
    "clamp": "clamp(x, low, high)",
    "slice": "slice(x, from, to)",
    "split": "split(x, heads, d_k)",
    "solve": "solve(A, b)",
    "huber": "huber(e, delta)",
    "lp": "lp(e, p) is the sum of |e|^p",
}
# names that stand for something of their own in some scope, and are no streams
RESERVED = {
    *FUNCTIONS, "self", "grad", "prev", "initial", "loss", "position", "shift", "recent", "eig",
    "last", "embed", "unembed",
}  # fmt: skip
