"""What every operation computes: one row each.

In: a node, the values of its arguments and the frame of the token. Out: the node's value. A value
is a tensor [rows, *shape], rows being the batch or 1 where nothing depends on it. Operations that
read a state, the past or an objective ask the frame for it; nothing here knows of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nlc.ir.expr import Expr
from nlc.ir.shape import sizes
from nlc.runtime.maps import FUNCTIONS, apply_map, common, front


class Frame(Protocol):
    """What an operation may ask about the token it runs in."""

    position: int

    def stream(self, name: str) -> Tensor:
        """Return a stream of this token."""
        ...

    def parameter(self, name: str) -> Tensor:
        """Return a parameter."""
        ...

    def state(self, memory: str, var: str, part: str, when: str) -> Tensor:
        """Return one tensor of a memory's state at `when`."""
        ...

    def variable(self, memory: str, part: str) -> Tensor:
        """Return the point at which an objective is differentiated."""
        ...

    def asked(self, index: int, part: str) -> Tensor:
        """Return a gradient of the task at another value."""
        ...

    def window(self, node: Expr) -> Tensor:
        """Return the value of a `window` node."""
        ...

    def gradient(self, node: Expr, at: Sequence[Tensor]) -> Tensor:
        """Return the value of a `grad` node."""
        ...

    def attend(self, query: Tensor, node: Expr) -> Tensor:
        """Return the read of a softmax memory."""
        ...

    def past(self, slot: str, length: int, value: Tensor) -> Tensor:
        """Return the last `length` values [rows, length, ...] of a slot and remember `value`."""
        ...


Row = Callable[[Expr, Sequence[Tensor], Frame], Tensor]


def _const(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return torch.tensor([node.attr("value")], dtype=torch.float64)


def _position(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return torch.tensor([frame.position], dtype=torch.float64)


def _stream(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return frame.stream(node.attr("name"))


def _param(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return frame.parameter(node.attr("name"))[None]


def _state(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return frame.state(*(node.attr(name) for name in ("memory", "var", "part", "when")))


def _variable(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return frame.variable(node.attr("memory"), node.attr("part"))


def _ask(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return frame.asked(node.attr("index"), node.attr("part"))


def _index(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return torch.arange(node.shape[-1].size, dtype=torch.float64)[None]


def _identity(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return torch.eye(node.shape[-1].size, dtype=torch.float64)[None]


def _elementwise(function: Callable[..., Tensor]) -> Row:
    def row(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
        rank = len(node.shape)
        return function(*(front(arg.to(torch.float64), rank) for arg in args))

    return row


def _pow(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    """Take a power; derivatives of one that is no whole number are 0 at 0, of every order."""
    x, p = (front(arg.to(torch.float64), len(node.shape)) for arg in args)
    exponent = node.args[1]
    value = float(exponent.attr("value")) if exponent.op == "const" else 1.0
    if value < 0.0 or value.is_integer():
        return torch.pow(x, p)
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x) ** p)


def _compare(function: Callable[[Tensor, Tensor], Tensor]) -> Row:
    return _elementwise(lambda a, b: function(a, b).to(torch.float64))


def _over(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Row:
    """Make a reduction: of a number, over no axes, it is that of its only entry."""

    def row(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
        (x,) = args
        x = x.to(torch.float64)
        axes, keep = tuple(node.attr("axes")), node.has("keep") and bool(node.attr("keep"))
        if not axes:
            return function(x[..., None], (-1,), False)
        return function(x, axes, keep)

    return row


def _normalise(function: Callable[[Tensor, tuple[int, ...], float], Tensor]) -> Row:
    """Make a reduction that divides x by what it reduces to."""

    def row(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
        (x,) = args
        axes, eps = tuple(node.attr("axes")), float(node.attr("eps")) if node.has("eps") else 0.0
        if not axes:
            return function(x[..., None], (-1,), eps)[..., 0]
        return function(x, axes, eps)

    return row


def _norm(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Take the root of the sum of squares; its derivatives at 0 are 0, as those of the root are."""
    return FUNCTIONS["sqrt"](x.square().sum(dim=axes, keepdim=keep))


def _softmax(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    return (x - torch.logsumexp(x, dim=axes, keepdim=True)).exp()


def _unit(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    return x / _norm(x, axes, True).clamp(min=eps)


def _rmsnorm(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    return x / (x.square().mean(dim=axes, keepdim=True) + eps).sqrt()


def _layernorm(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dim=axes, keepdim=True)
    return centred / (centred.square().mean(dim=axes, keepdim=True) + eps).sqrt()


def _layernorm_slope(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    x, g = (front(arg, len(node.shape)) for arg in args)
    axes, eps = tuple(node.attr("axes")), float(node.attr("eps"))
    if not axes:
        return torch.zeros_like(g)

    def mean(z: Tensor) -> Tensor:
        return z.mean(dim=axes, keepdim=True)

    y = _layernorm(x, axes, eps)
    deviation = (mean((x - mean(x)).square()) + eps).sqrt()
    return (g - mean(g) - y * mean(g * y)) / deviation


def _dot(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    a, b = (front(arg, len(node.shape) + 1) for arg in args)
    return (a * b).sum(-1)


def _matvec(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    matrix, vector = front(args[0], len(node.shape) + 1), front(args[1], len(node.shape))
    return (matrix @ vector[..., None])[..., 0]


def _matmul(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    a, b = (front(arg, len(node.shape)) for arg in args)
    return a @ b


def _outer(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    a, b = (front(arg, len(node.shape) - 1) for arg in args)
    return a[..., :, None] * b[..., None, :]


def _transpose(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return args[0].transpose(-1, -2)


def _diag(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return torch.diag_embed(args[0])


def _relabel(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    # the entries keep their order; the node's shape says how they are laid out
    return args[0].reshape(args[0].shape[0], *sizes(node.shape))


def _permute(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return args[0].permute(0, *(1 + axis for axis in node.attr("order")))


def _concat(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    parts = [front(arg, len(node.shape)) for arg in args]
    shared = common(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shared, part.shape[-1]) for part in parts], dim=-1)


def _slice(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return args[0][..., node.attr("start") : node.attr("stop")]


def _solve(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    if node.attr("vector"):
        matrix, right = front(args[0], len(node.shape) + 1), front(args[1], len(node.shape))
        right = right[..., None]
    else:
        matrix, right = (front(arg, len(node.shape)) for arg in args)
    solution: Tensor = torch.linalg.solve(matrix, right)
    return solution[..., 0] if node.attr("vector") else solution


def newton_schulz(matrix: Tensor, steps: int, coefficients: Sequence[Any], eps: float) -> Tensor:
    """Orthogonalise: X = G / (|G| + eps), then X = a X + (b A + c A^2) X with A = X X^T.

    `coefficients` are one triple (a, b, c), or several taken in turn.
    """
    triples = coefficients if isinstance(coefficients[0], Sequence) else (coefficients,)
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.transpose(-1, -2) if tall else matrix
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + eps)
    for step in range(steps):
        a, b, c = triples[step % len(triples)]
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.transpose(-1, -2) if tall else x
    return result


def _newton_schulz(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    names = ("steps", "coefficients", "eps")
    return newton_schulz(args[0], *(node.attr(name) for name in names))


def _eig_values(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    values: Tensor = torch.linalg.eigh(args[0]).eigenvalues
    return values.flip(-1)


def _eig_vectors(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(args[0]).eigenvectors
    return vectors.flip(-1)


def _rotate(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    x, angle = args[0], front(args[1], len(node.shape))
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _lookup(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    table, index = args
    rows = max(table.shape[0], index.shape[0])
    table = table.expand(rows, *table.shape[1:])
    index = index.expand(rows, *index.shape[1:]).long()
    return torch.stack([table[row][index[row]] for row in range(rows)])


def _cross_entropy(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    logits, target = args[0], front(args[1], len(node.shape)).long()
    shared = common(logits.shape[:-1], target.shape)
    logits = logits.expand(*shared, logits.shape[-1])
    chosen = logits.gather(-1, target.expand(shared)[..., None])[..., 0]
    return torch.logsumexp(logits, -1) - chosen


def _apply(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    x, *parts = args
    return apply_map(node.attr("map"), x, parts, node.attr("lead"))


def _grad(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return frame.gradient(node, args)


def _attend(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return frame.attend(args[0], node)


def _let(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return args[0]


def _stop(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return args[0].detach()


def _window(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    return frame.window(node)


def _due(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    _, count = node.attr("period")
    return torch.tensor([float((frame.position + 1) % count == 0)], dtype=torch.float64)


def _route(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    weight = torch.softmax(args[0], dim=-1)
    falling, place = weight.sort(dim=-1, descending=True, stable=True)
    amount, rank = node.attr("amount"), torch.arange(weight.shape[-1])
    match node.attr("select"):
        case "top_k":
            chosen = (rank < amount).expand(weight.shape)
        case "top_p":
            # a slot is needed while those before it do not reach the sum
            chosen = (falling.cumsum(-1) - falling) < amount
        case "threshold":
            chosen = falling >= amount
        case _:
            chosen = torch.ones_like(weight, dtype=torch.bool)
    kept = weight * torch.zeros_like(weight).scatter(-1, place, chosen.to(torch.float64))
    total = kept.sum(-1, keepdim=True)
    return kept / torch.where(total > 0, total, 1.0)


def _shift(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    past = frame.past(node.attr("slot"), node.attr("n"), args[0])
    return past[:, 0] if node.attr("n") > 0 else args[0]


def _conv(node: Expr, args: Sequence[Tensor], frame: Frame) -> Tensor:
    x, weight, *bias = args
    width = node.attr("width")
    past = frame.past(node.attr("slot"), width - 1, x)
    window = torch.cat([past, x.expand(past.shape[0], *x.shape[1:])[:, None]], dim=1)
    # [rows, width, more, channels], the last tap being the present token
    window = window.reshape(window.shape[0], width, -1, weight.shape[1])
    y = sum(window[:, j] * weight[:, None, :, 0, j] for j in range(width))
    y = y + bias[0][:, None] if bias else y
    assert isinstance(y, Tensor)
    return y.reshape(-1, *sizes(node.shape))


ROWS: Mapping[str, Row] = {
    "const": _const,
    "position": _position,
    "stream": _stream,
    "param": _param,
    "state": _state,
    "variable": _variable,
    "index": _index,
    "identity": _identity,
    **{name: _elementwise(function) for name, function in FUNCTIONS.items()},
    "add": _elementwise(torch.add),
    "sub": _elementwise(torch.sub),
    "mul": _elementwise(torch.mul),
    "div": _elementwise(torch.div),
    "pow": _pow,
    "maximum": _elementwise(torch.maximum),
    "minimum": _elementwise(torch.minimum),
    "lt": _compare(torch.lt),
    "le": _compare(torch.le),
    "gt": _compare(torch.gt),
    "ge": _compare(torch.ge),
    "eq": _compare(torch.eq),
    "ne": _compare(torch.ne),
    "where": _elementwise(lambda c, a, b: torch.where(c != 0, a, b)),
    "sum": _over(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep)),
    "mean": _over(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep)),
    "max": _over(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep)),
    "min": _over(lambda x, axes, keep: x.amin(dim=axes, keepdim=keep)),
    "logsumexp": _over(lambda x, axes, keep: torch.logsumexp(x, dim=axes, keepdim=keep)),
    "norm": _over(_norm),
    "softmax": _normalise(_softmax),
    "unit": _normalise(_unit),
    "rmsnorm": _normalise(_rmsnorm),
    "layernorm": _normalise(_layernorm),
    "layernorm_slope": _layernorm_slope,
    "dot": _dot,
    "matvec": _matvec,
    "matmul": _matmul,
    "outer": _outer,
    "transpose": _transpose,
    "diag": _diag,
    "reshape": _relabel,
    "unsqueeze": _relabel,
    "permute": _permute,
    "concat": _concat,
    "slice": _slice,
    "solve": _solve,
    "newton_schulz": _newton_schulz,
    "eig_values": _eig_values,
    "eig_vectors": _eig_vectors,
    "rotate": _rotate,
    "lookup": _lookup,
    "cross_entropy": _cross_entropy,
    "apply": _apply,
    "grad": _grad,
    "ask": _ask,
    "attend": _attend,
    "let": _let,
    "stop": _stop,
    "window": _window,
    "due": _due,
    "route": _route,
    "shift": _shift,
    "conv": _conv,
}
