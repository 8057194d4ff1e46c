"""How each operation is written with torch: one row of `SPELLING` per operation.

In: a `Lowering`, an expression and the values of its arguments. Out: the value's node, or a number
where all arguments are numbers.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from nlc.codegen import library, library_norms, library_slots
from nlc.codegen.lowering import Lowering, batch_of, is_wide, rank_of
from nlc.codegen.program import Operand, choose, note
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.shape import sizes

COMPARISONS = {
    "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip


Row = Callable[[Lowering, Expr, list[Operand]], Operand]


def folded(
    fold: Callable[..., float], function: Callable[..., object], *numbers: Operand
) -> Operand:
    """Compute with numbers; what none can hold is inf or nan, as it is of tensors."""
    try:
        return float(fold(*numbers))
    except (ArithmeticError, ValueError, TypeError):
        tensors = (torch.tensor(x, dtype=torch.float64) for x in numbers)
        return float(function(*tensors))  # type: ignore[arg-type]


def _unary(function: Callable[..., object], fold: Callable[[float], float]) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        (x,) = args
        if not isinstance(x, fx.Node):
            return folded(fold, function, x)
        return low.make(expr, function, low.as_number(x))

    return row


def _binary(function: Callable[..., Any]) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        if not any(isinstance(a, fx.Node) for a in args):
            return folded(function, function, *args)
        return low.make(expr, function, *low.align(args))

    return row


def _clamp(method: str, function: Callable[..., object], fold: Callable[..., float]) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        numbers = [a for a in args if not isinstance(a, fx.Node)]
        if len(numbers) == 2:
            return fold(*numbers)
        if numbers:
            x = next(a for a in args if isinstance(a, fx.Node))
            return low.method(expr, method, low.as_number(x), numbers[0])
        return low.make(expr, function, *low.align(args))

    return row


def _comparison(function: Callable[..., object]) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        if not any(isinstance(a, fx.Node) for a in args):
            return float(function(*args))  # type: ignore[arg-type]
        node = low.make(expr, function, *low.align(args))
        node.meta["bool"] = True
        return node

    return row


def _pow(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    base, exponent = args
    if not isinstance(base, fx.Node) and not isinstance(exponent, fx.Node):
        return folded(operator.pow, torch.pow, base, exponent)
    if exponent == 2.0:
        return low.method(expr, "square", low.as_number(base))
    if exponent == 1.0:
        return base
    if exponent == -1.0:
        return low.make(expr, operator.truediv, 1.0, low.as_number(base))
    if exponent == 0.5:
        return low.make(expr, library.root, low.as_number(base))
    if not isinstance(exponent, fx.Node) and exponent > 0.0 and exponent % 1.0:
        return low.make(expr, library.power, low.as_number(base), exponent)
    return low.make(expr, torch.pow, *low.align(args))


def _where(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    condition, yes, no = args
    if not isinstance(condition, fx.Node):
        return yes if condition else no
    if condition.meta.get("flag"):
        return chosen(low, expr, condition, [yes, no])
    if not condition.meta.get("bool"):
        zero = low.program.call(operator.ne, condition, 0.0)
        condition = note(zero, condition.meta["shape"], batch_of(condition))
    aligned = low.align([condition, yes, no], bools=True)
    if not any(isinstance(a, fx.Node) for a in (yes, no)):
        aligned[1] = low.program.call(library.number, yes, low.like)
        note(aligned[1], (), 0, is_wide(low.like))
    node = low.make(expr, torch.where, *aligned)
    return note(node, expr.shape, batch_of(node), is_wide(yes) or is_wide(no))


def chosen(low: Lowering, expr: Expr, flag: fx.Node, pair: list[Operand]) -> Operand:
    """A choice by something that is no tensor: only what is chosen is computed."""
    values = [v if isinstance(v, fx.Node) else low.tensor(e)
              for v, e in zip(pair, expr.args[1:], strict=True)]  # fmt: skip
    values = low.same_type(low.align(values))
    shapes = [(batch_of(v), sizes(v.meta["shape"])) for v in values]
    whole = max(batch for batch, _ in shapes), sizes(expr.shape)
    if shapes[0] != shapes[1] and whole in shapes:
        full = values[shapes.index(whole)]
        values = [
            v if shape == whole
            else note(low.program.method("expand_as", v, full), expr.shape, whole[0], is_wide(v))
            for v, shape in zip(values, shapes, strict=True)
        ]  # fmt: skip
    elif shapes[0] != shapes[1]:
        both = low.program.call(torch.broadcast_tensors, *values)
        values = low.program.unpack(both, ["new", "old"])
    node = low.program.call(choose, flag, *values)
    return note(node, expr.shape, whole[0], any(map(is_wide, values)))


def _axes(expr: Expr) -> int | tuple[int, ...]:
    axes = tuple(expr.attr("axes")) if expr.has("axes") else (-1,)
    axes = tuple(a if a < 0 else a - len(expr.args[0].shape) for a in axes)
    return axes[0] if len(axes) == 1 else axes


def _reduction(method: str) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        x = low.as_number(args[0]) if isinstance(args[0], fx.Node) else low.tensor(expr.args[0])
        axes = _axes(expr)
        if axes == ():
            return low.make(expr, torch.abs, x) if method == "norm" else x
        words = {"keepdim": True} if expr.has("keep") and expr.attr("keep") else {}
        if method == "norm":
            return low.make(expr, torch.linalg.vector_norm, x, dim=axes, **words)
        if method == "logsumexp":
            return low.make(expr, torch.logsumexp, x, axes, **words)
        return low.method(expr, method, x, axes, **words)

    return row


def _softmax(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    axes = _axes(expr)
    if axes == ():
        return low.make(expr, torch.ones_like, args[0])
    if isinstance(axes, int):
        return low.make(expr, torch.softmax, args[0], axes)
    return low.make(expr, library.softmax, args[0], axes)


def _normalise(function: Callable[..., object], usual: float) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        axes, words = _axes(expr), {}
        if axes not in (-1, ()):
            words["dim"] = axes
        if expr.has("eps") and expr.attr("eps") != usual:
            words["eps"] = expr.attr("eps")
        if axes == ():
            # one number is an axis of its own
            alone = low.unsqueeze(args[0], batch_of(args[0]) + rank_of(args[0]))
            node = low.program.call(function, alone, **words)
            return low.method(expr, "squeeze", low.mark(node, alone.meta["shape"], alone), -1)
        return low.make(expr, function, low.as_number(args[0]), **words)

    return row


def _layernorm_slope(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    # of one type and with all axes, as the operation of torch takes them
    x, g = (
        a if isinstance(a, fx.Node) else low.tensor(e) for a, e in zip(args, expr.args, strict=True)
    )
    x, g = low.same_type(low.align([low.as_number(x), low.as_number(g)]))
    axes, words = _axes(expr), {}
    if axes == ():
        return low.make(expr, torch.zeros_like, x)
    if axes != -1:
        words["dim"] = axes
    if expr.attr("eps") != 1e-5:
        words["eps"] = expr.attr("eps")
    return low.make(expr, library_norms.layernorm_slope, x, g, **words)


def _dot(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    a, b = low.align(args)
    product = low.mark(low.program.call(operator.mul, a, b), expr.args[0].shape, a, b)
    return low.method(expr, "sum", product, -1)


def _contraction(function: Callable[..., object], keep: tuple[int, int]) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        return low.make(expr, function, *low.same_type(low.align(args, keep)))

    return row


def _matvec(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    from nlc.codegen.apply import same_type, times

    matrix, x = args
    assert isinstance(matrix, fx.Node) and isinstance(x, fx.Node)
    lead = rank_of(matrix) - 2
    if batch_of(matrix) < batch_of(x) and rank_of(x) - 1 == lead:
        # axes of size 1 stand in for broadcast ones
        node = times(low, matrix, x, lead)
        return note(node, expr.shape, batch_of(node), is_wide(node))
    if batch_of(matrix) == 0 and lead == 0:
        return times(low, matrix, x, 0)
    matrix, x = low.align([matrix, x], (2, 1))
    matrix, x = same_type(low, matrix, x)
    return low.mark(low.program.call(library.matvec, matrix, x), expr.shape, matrix, x)


def _reshape(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    (x,) = args
    last, axes = int(expr.attr("last")), expr.attr("axes")
    if last > 1:
        x = low.mark(
            low.program.method("flatten", x, -last),
            (*x.meta["shape"][: rank_of(x) - last], *axes[:1]),
            x,
        )
    if last == 0:
        x = low.unsqueeze(x, batch_of(x) + rank_of(x))
    if len(axes) == 0:
        return low.method(expr, "squeeze", x, -1)
    if len(axes) == 1:
        return note(x, expr.shape, batch_of(x), is_wide(x)) if last == 1 else x
    return low.method(expr, "unflatten", x, -1, sizes(axes))


def _unsqueeze(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    (x,) = args
    if not isinstance(x, fx.Node):
        x = low.tensor(expr.args[0])
    if x.meta.get("flag"):
        return x
    for place in sorted(a % len(expr.shape) for a in expr.attr("axes")):
        x = low.unsqueeze(x, batch_of(x) + place)
    return x


def _permute(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    (x,) = args
    front = batch_of(x)
    order = (*range(front), *(front + i for i in expr.attr("order")))
    return low.method(expr, "permute", x, order)


def _concat(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    tensors = [
        low.tensor(a) if not isinstance(v, fx.Node) else v
        for a, v in zip(expr.args, args, strict=True)
    ]
    aligned = low.align(list(tensors), keep=1)
    return low.make(expr, library.concat, *aligned)


def _slice(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    index = (Ellipsis, slice(int(expr.attr("start")), int(expr.attr("stop"))))
    return low.make(expr, operator.getitem, args[0], index)


def _solve(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    vector = bool(expr.attr("vector"))
    matrix, right = (low.widen(a) for a in low.align(args, (2, 1 if vector else 2)))
    if not vector:
        return low.make(expr, torch.linalg.solve, matrix, right)
    return low.make(expr, library.solve_vector, matrix, right)


def _newton_schulz(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    given = expr.attr("coefficients")
    triples = given if isinstance(given[0], tuple) else (given,)
    triples = triples[:1] if len(set(triples)) == 1 else triples
    steps, eps = int(expr.attr("steps")), float(expr.attr("eps"))
    return low.make(expr, library.newton_schulz, args[0], steps, triples, eps)


def _plain(function: Callable[..., object], is_now_wide: bool = False) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        node = low.make(expr, function, *(low.widen(a) if is_now_wide else a for a in args))
        return node

    return row


def _rotate(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    x, angle = low.align(args)
    node = low.make(expr, library.rotate, x, angle)
    return note(node, expr.shape, batch_of(node), is_wide(x))


def _lookup(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    table, index = args
    if not index.meta.get("integer"):
        index = low.mark(low.program.method("long", index), index.meta["shape"], index)
    if batch_of(table):
        # one for each sequence
        return low.make(expr, library.table_rows, table, index)
    return low.make(expr, F.embedding, index, table)


def _cross_entropy(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    node = low.make(expr, library.cross_entropy, *args)
    return note(node, expr.shape, batch_of(node), wide=True)


def _stop(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    (x,) = args
    return low.method(expr, "detach", x) if isinstance(x, fx.Node) else x


def _index(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    node = low.program.call(library.index, expr.attr("axis").size, low.like)
    return note(node, expr.shape, 0, wide=True)


def _identity(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    node = low.program.call(library.identity, expr.attr("axis").size, low.like)
    return note(node, expr.shape, 0, wide=True)


def _transpose(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    return low.mark(low.program.call(builtins.getattr, args[0], "mT"), expr.shape, args[0])


def _route(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    scores = low.widen(low.tensor(expr.args[0]))
    select, amount = str(expr.attr("select")), float(expr.attr("amount"))
    words = [] if select == "all" else [int(amount) if select == "top_k" else amount]
    node = low.make(expr, library_slots.route, scores, select, *words)
    return note(node, expr.shape, batch_of(scores), wide=True)


def _impossible(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    raise AssertionError(f"{expr.op} must not reach the emitter here")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _gelu_slope(x: float) -> float:
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return (1 + math.erf(x / math.sqrt(2))) / 2 + x * density


def _silu_slope(x: float) -> float:
    return _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))


SPELLING: dict[str, Row] = {
    "neg": _unary(operator.neg, lambda x: -x),
    "exp": _unary(torch.exp, math.exp),
    "log": _unary(torch.log, math.log),
    "sqrt": _unary(library.root, math.sqrt),
    "abs": _unary(torch.abs, abs),
    "sign": _unary(torch.sign, lambda x: float((x > 0) - (x < 0))),
    "sin": _unary(torch.sin, math.sin),
    "cos": _unary(torch.cos, math.cos),
    "tanh": _unary(torch.tanh, math.tanh),
    "sigmoid": _unary(torch.sigmoid, _sigmoid),
    "silu": _unary(F.silu, lambda x: x * _sigmoid(x)),
    "gelu": _unary(F.gelu, lambda x: x * ((1 + math.erf(x / math.sqrt(2))) / 2)),
    "gelu_slope": _unary(library.gelu_slope, _gelu_slope),
    "silu_slope": _unary(library.silu_slope, _silu_slope),
    "relu": _unary(F.relu, lambda x: max(x, 0.0)),
    "softplus": _unary(library.softplus, lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0.0)),
    "erf": _unary(torch.erf, math.erf),
    "add": _binary(operator.add),
    "sub": _binary(operator.sub),
    "mul": _binary(operator.mul),
    "div": _binary(operator.truediv),
    "pow": _pow,
    "maximum": _clamp("clamp_min", torch.maximum, max),
    "minimum": _clamp("clamp_max", torch.minimum, min),
    **{name: _comparison(function) for name, function in COMPARISONS.items()},
    "where": _where,
    "sum": _reduction("sum"),
    "mean": _reduction("mean"),
    "max": _reduction("amax"),
    "min": _reduction("amin"),
    "logsumexp": _reduction("logsumexp"),
    "norm": _reduction("norm"),
    "softmax": _softmax,
    "unit": _normalise(library.unit, 1e-12),
    "rmsnorm": _normalise(library.rmsnorm, 1e-6),
    "layernorm": _normalise(library.layernorm, 1e-5),
    "layernorm_slope": _layernorm_slope,
    "dot": _dot,
    "matvec": _matvec,
    "matmul": _contraction(operator.matmul, (2, 2)),
    "outer": _contraction(library.outer, (1, 1)),
    "transpose": _transpose,
    "diag": _plain(torch.diag_embed),
    "reshape": _reshape,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "concat": _concat,
    "slice": _slice,
    "solve": _solve,
    "newton_schulz": _newton_schulz,
    "eig_values": _plain(library.eig_values, is_now_wide=True),
    "eig_vectors": _plain(library.eig_vectors, is_now_wide=True),
    "rotate": _rotate,
    "lookup": _lookup,
    "cross_entropy": _cross_entropy,
    "stop": _stop,
    "index": _index,
    "identity": _identity,
    # leaves and structured operations that `Lowering` or its owner takes over
    **dict.fromkeys(
        ["const", "position", "due", "stream", "param", "state", "variable", "let", "grad", "ask"],
        _impossible,
    ),
    **dict.fromkeys(["attend", "shift", "conv"], _impossible),
    "route": _route,
    # the update of a memory takes it over
    "window": _impossible,
}
