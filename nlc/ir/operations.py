"""The one table of operations: name -> what it is and the shape of its result.

Every other table keyed by operation (gradients, interpreter, torch spelling, bounds) has a row
for each name here; a test compares the keys. Axes in attributes are negative.

Leaves (attributes):
    const value            a number
    stream name            an input or stream of the block, or of the model, at this token
    param name, shape      a parameter tensor, `W_q.weight`
    state memory, var, part, when, shape
                           a state: `var` is "" for the memory itself or the name of an extra
                           state, `part` a part of its map; `when` is
                           prev (before this token's update), post (after it),
                           start (at the start of its chunk), initial (at the start or last reset)
    variable memory, part, shape
                           stands in an objective for the memory that `grad` differentiates
    position               this token's index from the sequence's start
    index axis             0 ... n-1 along an axis
    identity axis          the identity matrix

Structured:
    apply(x, *parts) map, lead, memory
                           a map applied to x [*lead, *more, *inputs] with parts [*lead, *part];
                           `lead` is the number of leading axes. A lead axis of x may be 1.
                           `memory` names the memory whose state is read, "" for weights
    grad(objective, *at) memory, part, parts
                           d objective / d variable(memory, part), with each variable(memory,
                           parts[i]) at the value at[i]; streams and states are constants.
                           The objective has the leading axes alone, each copy its own
    ask(*at) memory, part, index, shape
                           the gradient of the task's loss, as the `variable` of `task_gradient`,
                           with the memory's parts at the values `at`: the window is read again
    attend(q) memory, when, lead, shape
                           read of a softmax memory; q [*lead, *more, d_k]
    let(value) name, part  the value of an equation of an update, named as written
    stop(x)                the value, a constant for every gradient
    shift(x) n, slot       x of n tokens ago, zero before the start
    window(x) how, period, slot, again
                           x over the tokens of the memory's window, in its update. how is sum,
                           mean, last, or each (x of the one token, where `again` goes over them)
                           or end (x of the last one, kept for an update that waits).
                           period is the memory's own, or a longer one: then a sum over its updates
                           since that ended. slot names what is kept in the state until the end, ""
                           where nothing is. again: x needs other totals, so it is evaluated for all
                           tokens when the window ends. A grad in it is that of the one token
    due() period           1 at the tokens (steps) at which the period ends, else 0
    route(scores) select, amount
                           softmax over the last axis (slots), zero outside the selection,
                           rescaled to sum 1; select is all, top_k, top_p or threshold
    conv(x, weight[, bias]) slot, width
                           depthwise causal: y = sum_j weight[:, 0, j] x_{t - width + 1 + j}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nlc.ir.shape import ONE, Axis, Shape

Kind = Literal["leaf", "elementwise", "reduction", "contraction", "layout", "structured", "other"]
Infer = Callable[[tuple[Shape, ...], Mapping[str, Any]], Shape]


@dataclass(frozen=True)
class Operation:
    """`arity` is the number of arguments, or -1 where it varies."""

    kind: Kind
    arity: int
    infer: Infer
    about: str


def broadcast(shapes: tuple[Shape, ...]) -> Shape:
    """Numpy's rule on named axes: aligned from the right, `ONE` gives way."""
    rank = max(map(len, shapes), default=0)
    result: list[Axis] = []
    for place in range(-rank, 0):
        axis = ONE
        for shape in shapes:
            if len(shape) >= -place:
                other = shape[place]
                if axis is ONE or axis == ONE or (axis.free and not other.free and other != ONE):
                    axis = other
                elif other != ONE and other.size != axis.size:
                    raise ValueError(f"axes {axis.name} and {other.name} do not broadcast")
        result.append(axis)
    return tuple(result)


def _elementwise(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return broadcast(shapes)


def _given(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    shape: Shape = attrs["shape"]
    return shape


def _scalar(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return ()


def _same(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return shapes[0]


def _reduce(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    (shape,) = shapes
    axes = {a % len(shape) for a in attrs["axes"]}
    if attrs.get("keep", False):
        return tuple(ONE if i in axes else axis for i, axis in enumerate(shape))
    return tuple(axis for i, axis in enumerate(shape) if i not in axes)


def _dot(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return broadcast(shapes)[:-1]


def _matvec(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    matrix, vector = shapes
    return (*broadcast((matrix[:-2], vector[:-1])), matrix[-2])


def _matmul(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    left, right = shapes
    return (*broadcast((left[:-2], right[:-2])), left[-2], right[-1])


def _outer(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    left, right = shapes
    return (*broadcast((left[:-1], right[:-1])), left[-1], right[-1])


def _transpose(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    (shape,) = shapes
    return (*shape[:-2], shape[-1], shape[-2])


def _diag(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    (shape,) = shapes
    return (*shape, shape[-1])


def _solve(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    matrix, right = shapes
    if attrs["vector"]:
        return (*broadcast((matrix[:-2], right[:-1])), right[-1])
    return (*broadcast((matrix[:-2], right[:-2])), *right[-2:])


def _eig_values(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return shapes[0][:-1]


def _reshape(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    (shape,) = shapes
    last: int = attrs["last"]
    axes: Shape = attrs["axes"]
    return (*shape[: len(shape) - last], *axes)


def _unsqueeze(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    (shape,) = shapes
    rank = len(shape) + len(attrs["axes"])
    new = {a % rank for a in attrs["axes"]}
    rest = iter(shape)
    return tuple(ONE if i in new else next(rest) for i in range(rank))


def _permute(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    (shape,) = shapes
    order: tuple[int, ...] = attrs["order"]
    return tuple(shape[i] for i in order)


def _concat(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    front = broadcast(tuple(s[:-1] for s in shapes))
    size = sum(s[-1].size for s in shapes)
    return (*front, Axis("+".join(s[-1].name for s in shapes), size, free=True))


def _slice(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    (shape,) = shapes
    size = attrs["stop"] - attrs["start"]
    return (*shape[:-1], Axis(str(size), size, free=True))


def _index(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return (attrs["axis"],)


def _identity(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return (attrs["axis"], attrs["axis"])


def _lookup(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    table, index = shapes
    return (*index, table[-1])


def _drop_last(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return shapes[0][:-1]


def _apply(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    x, *parts = shapes
    lead: int = attrs["lead"]
    inputs, outputs = attrs["map"].inputs, attrs["map"].outputs
    more = x[lead : len(x) - len(inputs)]
    front = broadcast((x[:lead], *(p[:lead] for p in parts))) if lead else ()
    return (*front, *more, *outputs)


def _grad(shapes: tuple[Shape, ...], attrs: Mapping[str, Any]) -> Shape:
    return shapes[1 + attrs["parts"].index(attrs["part"])]


def _table() -> dict[str, Operation]:
    table: dict[str, Operation] = {}

    def add(kind: Kind, arity: int, infer: Infer, names: str, about: str) -> None:
        for name in names.split():
            table[name] = Operation(kind, arity, infer, about)

    add("leaf", 0, _scalar, "const position", "a number; the token's index")
    add("leaf", 0, _given, "stream param state variable", "a named tensor")
    add("leaf", 0, _index, "index", "0 ... n-1 along an axis")
    add("leaf", 0, _identity, "identity", "the identity matrix")
    add(
        "elementwise", 1, _elementwise,
        "neg exp log sqrt abs sign sin cos tanh sigmoid silu gelu relu softplus erf",
        "elementwise; gelu is the erf form",
    )  # fmt: skip
    add("elementwise", 1, _elementwise, "gelu_slope silu_slope", "derivatives, of gelu and silu")
    add("elementwise", 2, _elementwise, "add sub mul div pow maximum minimum", "elementwise")
    add("elementwise", 2, _elementwise, "lt le gt ge eq ne", "comparison: 1 where it holds, else 0")
    add("elementwise", 3, _elementwise, "where", "where(c, a, b): a where c is not 0, else b")
    add(
        "reduction", 1, _reduce, "sum mean max min logsumexp norm", "over `axes`; `keep` keeps them"
    )
    add("reduction", 1, _same, "softmax", "over `axes`")
    add("reduction", 1, _same, "unit rmsnorm layernorm", "x over its norm / rms / deviation; `eps`")
    add("other", 2, _same, "layernorm_slope", "x, g: the gradient in x of <g, layernorm(x)>")
    add("contraction", 2, _dot, "dot", "sum over the last axis of a * b")
    add("contraction", 2, _matvec, "matvec", "A [m, k], x [k] -> [m]")
    add("contraction", 2, _matmul, "matmul", "A [m, k], B [k, n] -> [m, n]")
    add("contraction", 2, _outer, "outer", "a [m], b [n] -> a b^T [m, n]")
    add("layout", 1, _transpose, "transpose", "the last two axes swapped")
    add("layout", 1, _diag, "diag", "w [n] -> [n, n]")
    add("layout", 1, _reshape, "reshape", "the last `last` axes become `axes`")
    add("layout", 1, _unsqueeze, "unsqueeze", "axes of size 1 at positions `axes` of the result")
    add("layout", 1, _permute, "permute", "axis i of the result is axis `order[i]` of x")
    add("layout", -1, _concat, "concat", "along the last axis")
    add("layout", 1, _slice, "slice", "entries `start` to `stop` of the last axis")
    add("other", 2, _solve, "solve", "A^-1 b; `vector` says whether b is one")
    add("other", 1, _same, "newton_schulz", "orthogonalise; `steps`, `coefficients`, `eps`")
    add("other", 1, _eig_values, "eig_values", "of a symmetric matrix, falling")
    add("other", 1, _same, "eig_vectors", "of a symmetric matrix, as columns, values falling")
    add("other", 2, _same, "rotate", "x [n], angle [n/2]: neighbouring pairs of the last axis")
    add("other", 2, _lookup, "lookup", "row of a table by an integer stream")
    add("other", 2, _drop_last, "cross_entropy", "-log softmax(logits)[target]")
    add("structured", -1, _apply, "apply", "a map applied to a stream")
    add("structured", -1, _grad, "grad", "gradient of an objective")
    add("structured", -1, _given, "ask", "the task's gradient at another value")
    add("structured", 1, _given, "attend", "read of a softmax memory")
    add("structured", 1, _same, "let", "a named value of an update")
    add("structured", 1, _same, "stop", "a constant for gradients")
    add("structured", 1, _same, "shift", "x of `n` tokens ago")
    add("structured", 1, _same, "window", "x over the tokens of a window")
    add("structured", 0, _scalar, "due", "1 where a period ends")
    add("structured", 1, _same, "route", "weights of the slots")
    add("structured", -1, _same, "conv", "depthwise causal convolution over time")
    return table


OPERATIONS: Mapping[str, Operation] = _table()
