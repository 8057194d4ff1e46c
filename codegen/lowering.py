"""Expressions into programs: axes in front, types kept apart, one row of `SPELLING` per operation.

In: an `Expr` and where its leaves come from. Out: nodes of a `Program`, for values with `batch`
axes in front (0: parameters, 1: one token [B], 2: a sequence [B, T]).

A value is *wide* when it is float32 or better in a module of any type: states, positions, indices
and what is computed from them. `narrow` casts it back where weights are applied.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from nlc.codegen import library
from nlc.codegen.program import Operand, Program, note
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import Shape, sizes

COMPARISONS = {
    "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip


def batch_of(value: Operand) -> int:
    """How many of batch and time stand in front."""
    return int(value.meta["batch"]) if isinstance(value, fx.Node) else 0


def rank_of(value: Operand) -> int:
    """How many axes the value has for one token."""
    return len(value.meta["shape"]) if isinstance(value, fx.Node) else 0


def is_wide(value: Operand) -> bool:
    """Say whether the value is float32 or better in a module of any type."""
    return isinstance(value, fx.Node) and bool(value.meta["wide"])


@dataclass
class Lowering:
    """Builds the nodes of one program.

    `leaf` gives streams, parameters, states and the position; `structured` may take over an
    `apply`, `attend`, `shift`, `conv` or a hoisted expression, or return None. `like` is a tensor
    with the streams' device and type. `lift` computes what is elementwise in float32 or better, for
    what goes into states.
    """

    program: Program
    batch: int
    leaf: Callable[[Expr], Operand]
    structured: Callable[[Lowering, Expr], Operand | None]
    like: fx.Node
    done: dict[Expr, Operand] = field(default_factory=dict)
    rename: dict[str, str] = field(default_factory=dict)
    lift: bool = False

    def value(self, expr: Expr) -> Operand:
        """Build an expression; a number stays a number."""
        if expr not in self.done:
            self.done[expr] = self._build(expr)
        return self.done[expr]

    def tensor(self, expr: Expr) -> fx.Node:
        """Build an expression, as a tensor even if it is a number."""
        value = self.value(expr)
        if isinstance(value, fx.Node):
            return self.as_number(value)
        node = self.program.call(library.number, value, self.like)
        return note(node, (), 0, wide=True)

    def _build(self, expr: Expr) -> Operand:
        taken = self.structured(self, expr)
        if taken is not None:
            return taken
        match expr.op:
            case "const":
                return float(expr.attr("value"))
            case "stream" | "param" | "state" | "variable" | "position":
                return self.leaf(expr)
            case "let":
                value = self.value(expr.args[0])
                if isinstance(value, fx.Node):
                    name = str(expr.attr("name"))
                    value.meta.setdefault("name", self.rename.get(name, name))
                return value
        args = [self.value(arg) for arg in expr.args]
        if self.lift and OPERATIONS[expr.op].kind in ("elementwise", "reduction"):
            args = [a if _exact(a) else self.widen(a) for a in args]
        return SPELLING[expr.op](self, expr, args)

    # ---- what rows of the table share ----------------------------------------------------------

    def make(
        self, expr: Expr, function: Callable[..., object], *args: Operand, **words: Operand
    ) -> fx.Node:
        """A call whose result has the expression's shape."""
        return self.mark(self.program.call(function, *args, **words), expr.shape, *args)

    def mark(self, node: fx.Node, shape: Shape, *args: Operand) -> fx.Node:
        """Note shape, batch and width, the latter two from the arguments."""
        nodes = [a for a in _flat(args) if isinstance(a, fx.Node) and "shape" in a.meta]
        batch = max(map(batch_of, nodes), default=0)
        return note(node, shape, batch, any(map(is_wide, nodes)))

    def method(self, expr: Expr, name: str, *args: Operand, **words: Operand) -> fx.Node:
        """A method whose result has the expression's shape."""
        return self.mark(self.program.method(name, *args, **words), expr.shape, *args)

    def unsqueeze(self, value: fx.Node, place: int) -> fx.Node:
        """Insert an axis of size 1 at a position counted over batch and own axes."""
        from nlc.ir.shape import ONE

        batch, shape = batch_of(value), value.meta["shape"]
        node = self.program.method("unsqueeze", value, place)
        if value.meta.get("bool"):
            node.meta["bool"] = True
        if place >= batch:
            own = place - batch
            shape = (*shape[:own], ONE, *shape[own:])
            return note(node, shape, batch, is_wide(value))
        return note(node, shape, batch + 1, is_wide(value))

    def align(
        self, values: list[Operand], keep: tuple[int, ...] | int = 0, bools: bool = False
    ) -> list[Operand]:
        """Bring values to equal rank behind the batch axes.

        `keep` says how many last axes of each are not part of what is aligned; `bools` leaves
        comparisons as they are.
        """
        kept = keep if isinstance(keep, tuple) else (keep,) * len(values)
        batch = max(map(batch_of, values))
        front = max(rank_of(v) - k for v, k in zip(values, kept, strict=True))
        result: list[Operand] = []
        for value, last in zip(values, kept, strict=True):
            if isinstance(value, fx.Node):
                value = value if bools else self.as_number(value)
                if batch_of(value) == 0 or batch == 0:
                    result.append(value)
                    continue
                if batch_of(value) == 1 and batch == 2:
                    value = self.unsqueeze(value, 1)
                for _ in range(front - (rank_of(value) - last)):
                    value = self.unsqueeze(value, batch)
            result.append(value)
        return result

    def as_number(self, value: fx.Node) -> fx.Node:
        """A comparison as 1 and 0."""
        if not value.meta.get("bool"):
            return value
        dtype = self.program.call(builtins.getattr, self.like, "dtype")
        node = self.program.method("to", value, dtype)
        return note(node, value.meta["shape"], batch_of(value), is_wide(self.like))

    def narrow(self, value: fx.Node) -> fx.Node:
        """Cast a wide value to the streams' type."""
        if not is_wide(value) or is_wide(self.like):
            return value
        dtype = self.program.call(builtins.getattr, self.like, "dtype")
        node = self.program.method("to", value, dtype)
        return note(node, value.meta["shape"], batch_of(value))

    def widen(self, value: Operand) -> Operand:
        """Cast a value to float32 or better."""
        if not isinstance(value, fx.Node) or is_wide(value):
            return value
        node = self.program.call(library.wide, value)
        return note(node, value.meta["shape"], batch_of(value), wide=True)


def _exact(value: Operand) -> bool:
    """Say whether a value is no floating tensor that could be wider."""
    return isinstance(value, fx.Node) and bool(
        value.meta.get("bool") or value.meta.get("integer") or value.op == "get_attr"
    )


def _flat(args: object) -> list[object]:
    if isinstance(args, tuple | list):
        return [leaf for arg in args for leaf in _flat(arg)]
    return [args]


Row = Callable[[Lowering, Expr, list[Operand]], Operand]


def _unary(function: Callable[..., object], fold: Callable[[float], float]) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        (x,) = args
        if not isinstance(x, fx.Node):
            return fold(x)
        return low.make(expr, function, low.as_number(x))

    return row


def _binary(function: Callable[..., object]) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        if not any(isinstance(a, fx.Node) for a in args):
            return function(*args)
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
        return float(base**exponent)
    if exponent == 2.0:
        return low.method(expr, "square", low.as_number(base))
    if exponent == 1.0:
        return base
    if exponent == -1.0:
        return low.make(expr, operator.truediv, 1.0, low.as_number(base))
    if exponent == 0.5:
        return low.make(expr, torch.sqrt, low.as_number(base))
    return low.make(expr, torch.pow, *low.align(args))


def _where(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    condition, yes, no = args
    if not isinstance(condition, fx.Node):
        return yes if condition else no
    if not condition.meta.get("bool"):
        zero = low.program.call(operator.ne, condition, 0.0)
        condition = note(zero, condition.meta["shape"], batch_of(condition))
    aligned = low.align([condition, yes, no], bools=True)
    if not any(isinstance(a, fx.Node) for a in (yes, no)):
        aligned[1] = low.program.call(library.number, yes, low.like)
        note(aligned[1], (), 0, is_wide(low.like))
    node = low.make(expr, torch.where, *aligned)
    return note(node, expr.shape, batch_of(node), is_wide(yes) or is_wide(no))


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


def _dot(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    a, b = low.align(args)
    product = low.mark(low.program.call(operator.mul, a, b), expr.args[0].shape, a, b)
    return low.method(expr, "sum", product, -1)


def _contraction(function: Callable[..., object], keep: tuple[int, int]) -> Row:
    def row(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
        return low.make(expr, function, *_same_type(low, low.align(args, keep)))

    return row


def _same_type(low: Lowering, args: list[Operand]) -> list[Operand]:
    # a product of matrices wants one type: a wide one makes the other wide
    return [low.widen(a) for a in args] if any(map(is_wide, args)) else args


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


def _impossible(low: Lowering, expr: Expr, args: list[Operand]) -> Operand:
    raise AssertionError(f"{expr.op} must not reach the emitter here")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


SPELLING: dict[str, Row] = {
    "neg": _unary(operator.neg, lambda x: -x),
    "exp": _unary(torch.exp, math.exp),
    "log": _unary(torch.log, math.log),
    "sqrt": _unary(torch.sqrt, math.sqrt),
    "abs": _unary(torch.abs, abs),
    "sign": _unary(torch.sign, lambda x: float((x > 0) - (x < 0))),
    "sin": _unary(torch.sin, math.sin),
    "cos": _unary(torch.cos, math.cos),
    "tanh": _unary(torch.tanh, math.tanh),
    "sigmoid": _unary(torch.sigmoid, _sigmoid),
    "silu": _unary(F.silu, lambda x: x * _sigmoid(x)),
    "gelu": _unary(F.gelu, lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
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
    "dot": _dot,
    "matvec": _contraction(library.matvec, (2, 1)),
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
        ["const", "position", "due", "stream", "param", "state", "variable", "let", "grad"],
        _impossible,
    ),
    **dict.fromkeys(["attend", "shift", "conv"], _impossible),
    # refused before they get here
    **dict.fromkeys(["window", "route"], _impossible),
}
