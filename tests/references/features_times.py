"""Features of times inside updates: `every N tokens`, `every N steps`, conditions in windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references.cores import read
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
from tests.references.features_update import orthogonal
from tests.references.features_window import BEAT, grad

M3 = """
rule m3(lr, b1, b2, b3, alpha) {
  state M1 = 0
  state M2 = 0
  state V = 0
  state O2 = 0
  M1 = M1 + b1 * grad
  V = V + b2 * grad^2
  self = self - lr * (newton_schulz(M1, steps = 3) + alpha * O2) / (sqrt(V) + 0.1)
  every 2 steps {
    M2 = M2 + b3 * grad
    O2 = newton_schulz(M2, steps = 3)
  }
}
"""
MEMORY = """
  memory M : linear(d_k -> d_v) at {level} {{
    key k
    value v
    update m3(lr = 0.1, b1 = 0.5, b2 = 0.25, b3 = 0.125, alpha = 0.7)
    init learned
  }}
  out = W_o(M(q))
"""


def m3(p: P, x: Tensor, window: int, reads_after: bool) -> tuple[Tensor, dict[str, Any]]:
    """Algorithm 1 of 2512.24695: the slow momentum takes the sum of the last f = 2 gradients."""
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, M1, M2, V, O2, g, chunk = state
        y = read(M, q[:, t])
        g = g + grad(M, k[:, t], v[:, t])
        if (t + 1) % window == 0:
            M1, V, chunk = M1 + 0.5 * g, V + 0.25 * g**2, chunk + g
            M = M - 0.1 * (orthogonal(M1) + 0.7 * O2) / (V.sqrt() + 0.1)
            g = torch.zeros_like(g)
            if (t + 1) % (2 * window) == 0:
                M2 = M2 + 0.125 * chunk
                O2, chunk = orthogonal(M2), torch.zeros_like(chunk)
        return (M, M1, M2, V, O2, g, chunk), read(M, q[:, t]) if reads_after else y

    first = copies(p, "M.weight", x), *(zeros(x, H, DV, DK) for _ in range(6))
    (M, M1, M2, V, O2, g, chunk), y = over_tokens(q, first, move)
    sums: Any = chunk if window == 1 else {"1": g, "2": chunk}
    states = {"M": M, "M.M1": M1, "M.M2": M2, "M.V": V, "M.O2": O2, "M.sum": sums}
    return out(p, y), states


@feature("M3 with every token", MEMORY.format(level="fast"), rules=M3)
def m3_of_tokens(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return m3(p, x, 1, reads_after=True)


@feature("M3 with every window", MEMORY.format(level="beat"), rules=M3, levels=BEAT)
def m3_of_windows(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return m3(p, x, 3, reads_after=False)


@feature(
    "times, conditions and resets in a window",
    """
  memory A : linear(d_k -> d_v) at beat {
    key k
    value v
    state S = self
    update {
      S = S + grad
      every 6 tokens {
        self = self - 0.1 * S
        S = 0
      }
      when norm(grad, over = (in, out)) > 4 { self = 0.5 * self }
    }
    init learned
  }
  memory B : linear(d_k -> d_v) at beat {
    key q
    value v
    update {
      every 2 steps { self = self - 0.1 * grad }
      self = self + 0.2 * (initial(self) - self)
    }
    init from A
    reset every 6 tokens
  }
  out = W_o(A(q) + B(k))
""",
    levels=BEAT,
)
def times(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        A, S, B, B0, a, b, calls = state
        y = read(A, q[:, t]) + read(B, k[:, t])
        a, b = a + grad(A, k[:, t], v[:, t]), b + grad(B, q[:, t], v[:, t])
        if (t + 1) % 3 == 0:
            S = S + a
            if (t + 1) % 6 == 0:
                A, S = A - 0.1 * S, torch.zeros_like(S)
            A = torch.where((a.pow(2).sum((-1, -2)).sqrt() > 4)[..., None, None], 0.5 * A, A)
            calls = calls + b
            if (t + 1) % 6 == 0:
                B, calls = B - 0.1 * calls, torch.zeros_like(calls)
            B = B + 0.2 * (B0 - B)
            a, b = torch.zeros_like(a), torch.zeros_like(b)
            if (t + 1) % 6 == 0:
                B = B0 = A
        return (A, S, B, B0, a, b, calls), y

    first = copies(p, "A.weight", x)
    none = [zeros(x, H, DV, DK) for _ in range(3)]
    (A, S, B, _, a, b, calls), y = over_tokens(q, (first, first, first, first, *none), move)
    return out(p, y), {"A": A, "A.S": S, "A.sum": a, "B": B, "B.sum": {"1": b, "2": calls}}


@feature(
    "first order through windows",
    """
  weights W_lr : linear(d -> heads)
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    through first_order
    update { self = 0.9 * self - sum(sigmoid(W_lr(x)) * grad, over = tokens) }
    init learned
  }
  memory N : linear(d_k -> d_v) at beat {
    key q
    value v
    through stop
    update { self = 0.9 * self - 0.1 * grad }
    init learned
  }
  out = W_o(M(q) + N(k))
""",
    levels=BEAT,
)
def through(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    lr = torch.sigmoid(torch.einsum("btd,hd->bth", x, p["W_lr.weight"]))

    def move(t: int, state: Any) -> Any:
        M, N, a, b = state
        y = read(M, q[:, t]) + read(N, k[:, t])
        a = a + lr[:, t, :, None, None] * grad(M, k[:, t], v[:, t]).detach()
        b = b + grad(N, q[:, t], v[:, t])
        if (t + 1) % 3 == 0:
            M, N = 0.9 * M - a, N + (0.9 * N - 0.1 * b - N).detach()
            a, b = torch.zeros_like(a), torch.zeros_like(b)
        return (M, N, a, b), y

    first = copies(p, "M.weight", x), copies(p, "N.weight", x), zeros(x, H, DV, DK)
    (M, N, a, b), y = over_tokens(q, (*first, zeros(x, H, DV, DK)), move)
    return out(p, y), {"M": M, "N": N, "M.sum": a, "N.sum": b}
