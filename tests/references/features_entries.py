"""Features of memories that go through a chunk entry by entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references.cores import outer, read
from tests.references.features import H, P, copies, feature, out, over_tokens, project, zeros
from tests.references.layers import heads, linear


@feature(
    "a state made of another, reset, its past read",
    """
  weights W_a : linear(d -> heads*d_k)
  a = sigmoid(W_a(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    state S = 0
    state n[] = 1
    update {
      S = S @ diag(a) - 0.3 * tanh(grad)
      n = 0.5 * n + sum(S^2, over = (in, out))
      self = 0.9 * self + tanh(S) / (1 + n)
    }
    init learned
    reset every 4 tokens
  }
  out = W_o(M(q) + prev(M)(q) + sum(M.S * M, over = d_k) * M.n)
""",
    chunk="2",
)
def made_of_another(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    a = heads(torch.sigmoid(linear(p, "W_a", x)), H)
    M0 = copies(p, "M.weight", x)
    S0, n0 = torch.zeros_like(M0), zeros(x, H) + 1
    start = [M0]

    def move(t: int, state: Any) -> Any:
        M, S, n = state
        if t % 4 == 0:
            M, S, n = M0, S0, n0
        start[0] = M if t % 2 == 0 else start[0]
        before = M
        g = outer(read(start[0], k[:, t]) - v[:, t], k[:, t])
        S = S * a[:, t, :, None, :] - 0.3 * torch.tanh(g)
        n = 0.5 * n + S.pow(2).sum((-2, -1))
        M = 0.9 * M + torch.tanh(S) / (1 + n)[..., None, None]
        y = read(M + before, q[:, t]) + (S * M).sum(-1) * n[..., None]
        return (M, S, n), y

    (M, S, n), y = over_tokens(q, (M0, S0, n0), move)
    if x.shape[1] % 4 == 0:
        M, S, n = M0, S0, n0
    return out(p, y), {"M": M, "M.S": S, "M.n": n}


@feature(
    "anything at the ends of chunks",
    """
  weights W_b : linear(d -> heads)
  b = sigmoid(W_b(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    objective 1/2 * ||unit(self, over = out) @ key - value||^2
    update {
      self = self - 0.3 * b * grad
      every 4 tokens { self = unit(self, over = out) + 0.1 * self }
    }
    init learned
  }
  out = W_o(M(q) - prev(M)(q))
""",
    chunk="2",
)
def at_the_ends(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    b = torch.sigmoid(linear(p, "W_b", x))
    M0 = copies(p, "M.weight", x)
    start = [M0]

    def at_length_one(M: Tensor) -> Tensor:
        return M / M.norm(dim=-2, keepdim=True)

    def move(t: int, M: Tensor) -> Any:
        start[0] = M if t % 2 == 0 else start[0]
        before, U = M, at_length_one(start[0])
        e = read(U, k[:, t]) - v[:, t]
        along = torch.einsum("bhvm,bhv->bhm", U, e)
        g = (e[..., None] - U * along[..., None, :]) * k[:, t, :, None, :]
        M = M - 0.3 * b[:, t, :, None, None] * g / start[0].norm(dim=-2, keepdim=True)
        if (t + 1) % 4 == 0:
            M = at_length_one(M) + 0.1 * M
        return M, read(M - before, q[:, t])

    M, y = over_tokens(q, M0, move)
    return out(p, y), {"M": M}
