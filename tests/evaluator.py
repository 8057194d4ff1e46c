"""A small evaluator of expressions in torch, written from `nlc.ir.operations` alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nlc.ir.expr import Expr, postorder

Leaves = Mapping[tuple[Any, ...], Tensor]


def _axes(node: Expr) -> dict[str, Any]:
    keep = node.has("keep") and node.attr("keep")
    return {"dim": tuple(node.attr("axes")), "keepdim": keep}


def _newton_schulz(node: Expr, x: Tensor) -> Tensor:
    tall = x.shape[-2] > x.shape[-1]
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + node.attr("eps"))
    x = x.mT if tall else x
    a, b, c = node.attr("coefficients")
    for _ in range(node.attr("steps")):
        A = x @ x.mT
        x = a * x + (b * A + c * A @ A) @ x
    return x.mT if tall else x


def _rotate(node: Expr, x: Tensor, angle: Tensor) -> Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    turned = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
    return torch.stack(torch.broadcast_tensors(*turned), dim=-1).flatten(-2)


def _norm(x: Tensor, axes: tuple[int, ...], keep: bool = True) -> Tensor:
    return torch.linalg.vector_norm(x, dim=axes, keepdim=keep)


def _layernorm(n: Expr, x: Tensor) -> Tensor:
    d = x - x.mean(n.attr("axes"), keepdim=True)
    return d / (d.square().mean(n.attr("axes"), keepdim=True) + n.attr("eps")).sqrt()


def _layernorm_slope(n: Expr, x: Tensor, g: Tensor) -> Tensor:
    _, back = torch.func.vjp(lambda z: _layernorm(n, z), x)
    (found,) = back(g.expand_as(x))
    return found


def _unsqueeze(n: Expr, x: Tensor) -> Tensor:
    rank = x.ndim + len(n.attr("axes"))
    for place in sorted(a % rank for a in n.attr("axes")):
        x = x.unsqueeze(place)
    return x


def _reshape(n: Expr, x: Tensor) -> Tensor:
    front = x.shape[: x.ndim - n.attr("last")]
    return x.reshape(*front, *(a.size for a in n.attr("axes")))


def slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The derivative of an elementwise function."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        (found,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    return found


def _compare(name: str) -> Callable[..., Tensor]:
    return lambda n, a, b: getattr(torch, name)(a, b).to(torch.float64)


EVALUATE: dict[str, Callable[..., Tensor]] = {
    "const": lambda n: torch.tensor(n.attr("value"), dtype=torch.float64),
    "index": lambda n: torch.arange(n.attr("axis").size, dtype=torch.float64),
    "identity": lambda n: torch.eye(n.attr("axis").size, dtype=torch.float64),
    "gelu_slope": lambda n, x: slope(F.gelu, x),
    "silu_slope": lambda n, x: slope(lambda z: z * torch.sigmoid(z), x),
    "gelu": lambda n, x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "silu": lambda n, x: F.silu(x),
    "softplus": lambda n, x: F.softplus(x, threshold=1e9),
    **{
        name: (lambda f: lambda n, *a: f(*a))(getattr(torch, name))
        for name in (
            *("neg", "exp", "log", "sqrt", "abs", "sign", "sin", "cos", "tanh", "sigmoid", "relu"),
            *("erf", "add", "sub", "mul", "div", "pow", "maximum", "minimum"),
        )
    },
    **{name: _compare(name) for name in ["lt", "le", "gt", "ge", "eq", "ne"]},
    "where": lambda n, c, a, b: torch.where(c != 0, a, b),
    "sum": lambda n, x: x.sum(**_axes(n)),
    "mean": lambda n, x: x.mean(**_axes(n)),
    "max": lambda n, x: x.amax(**_axes(n)),
    "min": lambda n, x: x.amin(**_axes(n)),
    "logsumexp": lambda n, x: x.logsumexp(**_axes(n)),
    "norm": lambda n, x: torch.linalg.vector_norm(x, **_axes(n)),
    "softmax": lambda n, x: x.softmax(n.attr("axes")[0]),
    "unit": lambda n, x: x / _norm(x, n.attr("axes")).clamp_min(n.attr("eps")),
    "rmsnorm": lambda n, x: x / (x.square().mean(n.attr("axes"), True) + n.attr("eps")).sqrt(),
    "layernorm": _layernorm,
    "layernorm_slope": _layernorm_slope,
    "dot": lambda n, a, b: (a * b).sum(-1),
    "matvec": lambda n, a, x: (a @ x.unsqueeze(-1)).squeeze(-1),
    "matmul": lambda n, a, b: a @ b,
    "outer": lambda n, a, b: a.unsqueeze(-1) * b.unsqueeze(-2),
    "transpose": lambda n, x: x.mT,
    "diag": lambda n, x: torch.diag_embed(x),
    "reshape": _reshape,
    "unsqueeze": _unsqueeze,
    "permute": lambda n, x: x.permute(n.attr("order")),
    "concat": lambda n, *xs: torch.cat(xs, -1),
    "slice": lambda n, x: x[..., n.attr("start") : n.attr("stop")],
    "solve": lambda n, a, b: (
        torch.linalg.solve(a, b.unsqueeze(-1)).squeeze(-1)
        if n.attr("vector")
        else torch.linalg.solve(a, b)
    ),
    "newton_schulz": _newton_schulz,
    "eig_values": lambda n, a: torch.linalg.eigh(a)[0].flip(-1),
    "eig_vectors": lambda n, a: torch.linalg.eigh(a)[1].flip(-1),
    "rotate": _rotate,
    "lookup": lambda n, table, i: table[i.long()],
    "cross_entropy": lambda n, x, i: (
        -x.log_softmax(-1).gather(-1, i.long().unsqueeze(-1)).squeeze(-1)
    ),
    "let": lambda n, x: x,
    "stop": lambda n, x: x.detach(),
}


def key_of(node: Expr) -> tuple[Any, ...]:
    """Return the name under which a leaf's value is given."""
    match node.op:
        case "stream" | "param":
            return (node.op, node.attr("name"))
        case "variable":
            return ("variable", node.attr("part"))
        case "state":
            return ("state", node.attr("var"), node.attr("part"), node.attr("when"))
    return (node.op,)


def evaluate(roots: list[Expr], leaves: Leaves) -> list[Tensor]:
    """Return the values of expressions, from those of their leaves."""
    values: dict[int, Tensor] = {}
    for node in postorder(roots):
        if node.op in ("stream", "param", "state", "variable", "position"):
            values[id(node)] = leaves[key_of(node)]
        else:
            args = [values[id(arg)] for arg in node.args]
            values[id(node)] = EVALUATE[node.op](node, *args)
    return [values[id(root)] for root in roots]
