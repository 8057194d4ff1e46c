"""Features of slots: reads summed over the parts that a route selects, updates of these alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references.cores import outer
from tests.references.features import (
    DK,
    DV,
    H,
    P,
    copies,
    feature,
    out,
    over_tokens,
    project,
    zeros,
)
from tests.references.features_window import BEAT
from tests.references.layers import heads, linear

N = 5
SLOTS = """
  weights W_r : linear(d -> heads*n)
  memory M : linear(d_k -> d_v) at {level} {{
    key k
    value v
    state S = 0
    slots n
    route {scale} * W_r(x)
    {select}
    update {{
      S = 0.8 * S - 0.3 * grad
      self = self + S
    }}
    init learned
  }}
  out = W_o(M(q) + prev(M)(k))
"""


def chosen(w: Tensor, select: str) -> Tensor:
    """The selected weights [B, H, N], one slot after the other; the rest 0, rescaled to sum 1."""
    keep, known = torch.zeros_like(w), w.detach()
    for b in range(w.shape[0]):
        for h in range(w.shape[1]):
            order = sorted(range(N), key=lambda i: -float(known[b, h, i]))
            reached = 0.0
            for rank, i in enumerate(order):
                match select:
                    case "top_k":
                        keep[b, h, i] = rank < 2
                    case "top_p":
                        keep[b, h, i] = reached < 0.6
                    case "threshold":
                        keep[b, h, i] = known[b, h, i] >= 0.25
                    case _:
                        keep[b, h, i] = 1
                reached += float(known[b, h, i])
    total = (keep * w).sum(-1, keepdim=True)
    return torch.where(total > 0, keep * w / total.clamp(min=1e-30), torch.zeros_like(w))


def routed(p: P, x: Tensor, select: str, scale: float) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    scores = scale * heads(linear(p, "W_r", x), H)

    def reads(M: Tensor, w: Tensor, z: Tensor) -> Tensor:
        return torch.einsum("bhn,bhnvk,bhk->bhv", w, M, z)

    def move(t: int, state: Any) -> Any:
        M, S = state
        w = chosen(torch.softmax(scores[:, t], -1), select)
        before = reads(M, w, k[:, t])
        # every part is a memory of its own with this key and value
        error = torch.einsum("bhnvk,bhk->bhnv", M, k[:, t]) - v[:, t, :, None]
        new = 0.8 * S - 0.3 * outer(error, k[:, t, :, None].expand(*error.shape[:-1], DK))
        moves = (w > 0)[..., None, None]
        M, S = torch.where(moves, M + new, M), torch.where(moves, new, S)
        return (M, S), before + reads(M, w, q[:, t])

    first = copies(p, "M.weight", x)
    (M, S), y = over_tokens(q, (first, torch.zeros_like(first)), move)
    return out(p, y), {"M": M, "M.S": S}


@feature("all slots", SLOTS.format(level="fast", select="", scale=1))
def all_slots(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return routed(p, x, "all", 1)


@feature("the best two slots", SLOTS.format(level="fast", select="select top_k(2)", scale=1))
def top_k(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return routed(p, x, "top_k", 1)


@feature(
    "slots up to a share of the weight",
    SLOTS.format(level="fast", select="select top_p(0.6)", scale=1),
)
def top_p(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return routed(p, x, "top_p", 1)


@feature(
    "slots of enough weight, if any",
    SLOTS.format(level="fast", select="select threshold(0.25)", scale=0.4),
)
def threshold(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return routed(p, x, "threshold", 0.4)


@feature(
    "slots in a window",
    SLOTS.format(level="beat", select="select top_k(2)", scale=1),
    levels=BEAT,
)
def slots_in_a_window(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    scores = heads(linear(p, "W_r", x), H)

    def move(t: int, state: Any) -> Any:
        M, S, total, uses = state
        w = chosen(torch.softmax(scores[:, t], -1), "top_k")
        y = torch.einsum("bhn,bhnvk,bhk->bhv", w, M, q[:, t] + k[:, t])
        error = torch.einsum("bhnvk,bhk->bhnv", M, k[:, t]) - v[:, t, :, None]
        error = (w > 0)[..., None] * error
        total = total + outer(error, k[:, t, :, None].expand(*error.shape[:-1], DK))
        uses = uses + (w > 0)
        if (t + 1) % 3 == 0:
            moves = (uses > 0)[..., None, None]
            S = torch.where(moves, 0.8 * S - 0.3 * total, S)
            M = torch.where(moves, M + S, M)
            total, uses = torch.zeros_like(total), torch.zeros_like(uses)
        return (M, S, total, uses), y

    first = copies(p, "M.weight", x)
    none = torch.zeros_like(first)
    (M, S, total, uses), y = over_tokens(q, (first, none, none, zeros(x, H, N)), move)
    return out(p, y), {"M": M, "M.S": S, "M.sum": {"1": total, "2": uses}}


@feature(
    "slots without heads, whose state another memory reads",
    """
  weights W_s : linear(d -> d_k)
  weights W_r : linear(d -> n)
  memory M : linear(d_k -> d_k) at fast {
    key W_s(x)
    value 0.5 * W_s(x)
    slots n
    route W_r(x)
    select top_k(1)
    update { self = self - 0.05 * tanh(loss(M)) * grad }
    init learned
  }
  memory A : linear(d_k -> d_v) at fast {
    key k
    value v
    objective 1/2 * ||self(M(key)) - value||^2
    update { self = 0.9 * self - 0.1 * grad }
  }
  out = W_o(A(q) + sum(loss(M)) * v)
""",
)
def no_heads(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    s, scores = linear(p, "W_s", x), linear(p, "W_r", x)

    def move(t: int, state: Any) -> Any:
        M, A = state
        best = torch.nn.functional.one_hot(scores[:, t].argmax(-1), N).double()
        error = torch.einsum("bnvk,bk->bnv", M, s[:, t]) - 0.5 * s[:, t, None]
        loss = error.pow(2).sum(-1) / 2
        step = outer(error, s[:, t, None].expand(*error.shape[:-1], DK))
        M = M - 0.05 * (best * torch.tanh(loss))[..., None, None] * step
        key = torch.einsum("bn,bnvk,bhk->bhv", best, M, k[:, t])
        A = 0.9 * A - 0.1 * outer(torch.einsum("bhvk,bhk->bhv", A, key) - v[:, t], key)
        y = torch.einsum("bhvk,bhk->bhv", A, q[:, t]) + loss.sum(-1)[:, None, None] * v[:, t]
        return (M, A), y

    first = copies(p, "M.weight", x), zeros(x, H, DV, DK)
    (M, A), y = over_tokens(q, first, move)
    return out(p, y), {"M": M, "A": A}
