"""Features of updates: equations, gradients, states, objectives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.references.cores import outer, read
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
from tests.references.layers import conv, heads, linear, unit


@feature(
    "extra states and their reads",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    state n[] = 0
    state S = self
    update {
      n = n + ||key||^2
      S = 0.5 * S + self
      self = self - grad / (1 + n)
    }
  }
  out = W_o(M(q) + prev(M.S) @ q + M.n * v)
""",
)
def extra_states(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, S, n = state
        before = S
        n = n + k[:, t].pow(2).sum(-1)
        S = 0.5 * S + M
        M = M - outer(read(M, k[:, t]) - v[:, t], k[:, t]) / (1 + n)[..., None, None]
        y = read(M, q[:, t]) + read(before, q[:, t]) + n[..., None] * v[:, t]
        return (M, S, n), y

    first = zeros(x, H, DV, DK), zeros(x, H, DV, DK), zeros(x, H)
    (M, S, n), y = over_tokens(q, first, move)
    return out(p, y), {"M": M, "M.S": S, "M.n": n}


@feature(
    "huber, several pairs, and a nonlinear state",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k, q
    value v, 0.5 * v
    objective huber(self(key) - value, 0.3)
    update {
      self = self - 0.2 * grad
      self = tanh(self)
    }
  }
  out = W_o(M(q))
""",
)
def huber(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, M: Tensor) -> Any:
        step = torch.zeros_like(M)
        for key, value in ((k[:, t], v[:, t]), (q[:, t], 0.5 * v[:, t])):
            step = step + outer((read(M, key) - value).clamp(-0.3, 0.3), key)
        M = torch.tanh(M - 0.2 * step)
        return M, read(M, q[:, t])

    M, y = over_tokens(q, zeros(x, H, DV, DK), move)
    return out(p, y), {"M": M}


@feature(
    "the last three tokens in the objective",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    objective recent(1/2 * ||M(key) - value||^2, 3)
    update { self = 0.9 * self - 0.1 * grad }
  }
  out = W_o(M(q))
""",
)
def omega(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, M: Tensor) -> Any:
        step = torch.zeros_like(M)
        for s in range(max(t - 2, 0), t + 1):
            step = step + outer(read(M, k[:, s]) - v[:, s], k[:, s])
        M = 0.9 * M - 0.1 * step
        return M, read(M, q[:, t])

    M, y = over_tokens(q, zeros(x, H, DV, DK), move)
    return out(p, y), {"M": M}


@feature(
    "the last three tokens, with keys and weights made in place",
    """
  weights conv_c : conv(heads*d_k, width = 2)
  weights W_g : linear(d -> heads)
  memory M : linear(d_k -> d_v, bias) at fast {
    key unit(conv_c(W_k(x)))
    value 0.5 * v
    objective recent(sigmoid(W_g(x)) * ||M(key) - value||^2 / (2 + position), 3)
    update { self = 0.9 * self - 0.1 * grad }
  }
  out = W_o(M(q))
""",
)
def weighed_omega(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The offset would learn from tokens before the start, if there were any."""
    q, _, v = project(p, x)
    k = unit(heads(conv(p, "conv_c", linear(p, "W_k", x)), H))
    weight = 2 * torch.sigmoid(linear(p, "W_g", x))

    def move(t: int, state: Any) -> Any:
        W, b = state
        gW, gb = torch.zeros_like(W), torch.zeros_like(b)
        for s in range(max(t - 2, 0), t + 1):
            error = read(W, k[:, s]) + b - 0.5 * v[:, s]
            error = weight[:, s, :, None] / (2 + s) * error
            gW, gb = gW + outer(error, k[:, s]), gb + error
        W, b = 0.9 * W - 0.1 * gW, 0.9 * b - 0.1 * gb
        return (W, b), read(W, q[:, t]) + b

    (W, b), y = over_tokens(q, (zeros(x, H, DV, DK), zeros(x, H, DV)), move)
    return out(p, y), {"M": {"weight": W, "bias": b}}


@feature(
    "products of several writes",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update {
      self = 0.9 * self
      self = self - 0.5 * grad(at = self)
      self = self - 0.3 * outer(self(q) - 2 * v, q)
    }
  }
  out = W_o(M(q))
""",
)
def several_writes(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, M: Tensor) -> Any:
        M = 0.9 * M
        M = M - 0.5 * outer(read(M, k[:, t]) - v[:, t], k[:, t])
        M = M - 0.3 * outer(read(M, q[:, t]) - 2 * v[:, t], q[:, t])
        return M, read(M, q[:, t])

    M, y = over_tokens(q, zeros(x, H, DV, DK), move)
    return out(p, y), {"M": M}


@feature(
    "the key's side, and a vector of its own",
    """
  memory S[heads] : linear(d_k -> d_v) at fast {
    update { self = 0.9 * self + outer(v, k - transpose(self) @ v) }
  }
  memory z[heads] : vector(d_k) at fast {
    update { self = 0.8 * self + k * k }
  }
  out = W_o(S(q / sqrt(1 + z)))
""",
)
def oja(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        S, z = state
        back = torch.einsum("bhvk,bhv->bhk", S, v[:, t])
        S = 0.9 * S + outer(v[:, t], k[:, t] - back)
        z = 0.8 * z + k[:, t].pow(2)
        return (S, z), read(S, q[:, t] / (1 + z).sqrt())

    (S, z), y = over_tokens(q, (zeros(x, H, DV, DK), zeros(x, H, DK)), move)
    return out(p, y), {"S": S, "z": z}


@feature(
    "solving with a matrix of keys",
    """
  memory G[heads] : matrix(d_k, d_k) at fast {
    update { self = 0.9 * self + outer(k, k) }
  }
  memory M[heads] : linear(d_k -> d_v) at fast {
    update { self = 0.9 * self + outer(v, k) }
  }
  out = W_o(M(solve(G + 0.5, q)))
""",
)
def mesa(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    eye = torch.eye(DK, dtype=torch.float64)

    def move(t: int, state: Any) -> Any:
        G, M = 0.9 * state[0] + outer(k[:, t], k[:, t]), 0.9 * state[1] + outer(v[:, t], k[:, t])
        return (G, M), read(M, torch.linalg.solve(G + 0.5 * eye, q[:, t][..., None])[..., 0])

    (G, M), y = over_tokens(q, (zeros(x, H, DK, DK), zeros(x, H, DV, DK)), move)
    return out(p, y), {"G": G, "M": M}


def orthogonal(G: Tensor) -> Tensor:
    """Three steps of Newton and Schulz, on matrices that are not tall."""
    X = G / (G.pow(2).sum((-1, -2), keepdim=True).sqrt() + 1e-7)
    for _ in range(3):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


@feature(
    "an inner loop and orthogonalised steps",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update {
      repeat 2 { self = self - 0.1 * newton_schulz(grad(at = self), steps = 3) }
    }
    init learned
  }
  out = W_o(M(q))
""",
)
def muon(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, M: Tensor) -> Any:
        for _ in range(2):
            M = M - 0.1 * orthogonal(outer(read(M, k[:, t]) - v[:, t], k[:, t]))
        return M, read(M, q[:, t])

    M, y = over_tokens(q, copies(p, "M.weight", x), move)
    return out(p, y), {"M": M}


@feature(
    "delta gradient descent",
    """
  weights W_lr : linear(d -> heads)
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    objective huber(M(k) - v, 0.5)
    update dgd(lr = softplus(W_lr(x)))
  }
  out = W_o(M(q))
""",
)
def dgd(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The W that makes |W k - u|^2 + |W - M|^2 / lr least, by its normal equations."""
    q, k, v = project(p, x)
    lr = torch.nn.functional.softplus(linear(p, "W_lr", x))[..., None, None]
    eye = torch.eye(DK, dtype=torch.float64)

    def move(t: int, M: Tensor) -> Any:
        u = -(read(M, k[:, t]) - v[:, t]).clamp(-0.5, 0.5)
        left = outer(k[:, t], k[:, t]) + eye / lr[:, t]
        right = outer(u, k[:, t]) + M / lr[:, t]
        M = torch.linalg.solve(left, right, left=False)
        return M, read(M, q[:, t])

    M, y = over_tokens(q, zeros(x, H, DV, DK), move)
    return out(p, y), {"M": M}


def slope_of_gelu(x: Tensor) -> Tensor:
    below = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return below + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@feature(
    "deep momentum: a network inside a rule",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update deep_momentum(lr = 0.3, alpha = 0.9, rate = 0.5)
  }
  out = W_o(M(q))
""",
)
def deep_momentum(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """m learns to answer each row of the gradient, at length 1, with its negative."""
    q, k, v = project(p, x)
    names = ("layer1.weight", "layer2.weight")
    first = tuple(copies(p, f"M.initial_m.{name}", x) for name in names)

    def move(t: int, state: Any) -> Any:
        M, W1, W2 = state
        g = outer(read(M, k[:, t]) - v[:, t], k[:, t])
        u = g / g.norm(dim=-1, keepdim=True)
        inner = u @ W1.mT
        hidden = torch.nn.functional.gelu(inner)
        error = (hidden @ W2.mT + u) / DV
        back = (error @ W2) * slope_of_gelu(inner)
        W1, W2 = 0.9 * W1 - 0.5 * back.mT @ u, 0.9 * W2 - 0.5 * error.mT @ hidden
        M = M + 0.3 * torch.nn.functional.gelu(u @ W1.mT) @ W2.mT
        return (M, W1, W2), read(M, q[:, t])

    (M, *m), y = over_tokens(q, (zeros(x, H, DV, DK), *first), move)
    return out(p, y), {"M": M, "M.m": dict(zip(names, m, strict=True))}


@feature(
    "memories within a rule, one of another and read in a block",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update held(lr = 0.2)
  }
  out = W_o(M(q))
""",
    rules="""
rule held(lr) {
  memory u : like self {
    objective 1/2 * sum((self - grad)^2, over = (in, out))
    state     S = 0.1
    update {
      S    = 0.5 * S - 0.3 * grad
      self = self + S
    }
  }
  memory w : like self {
    objective sum(self * u, over = (in, out)) + sum(prev(self) * self^2, over = (in, out)) / out
    update    sgd(lr = 0.1)
  }
  self = self - lr * grad
  every 3 tokens { self = self - lr * w }
}
""",
)
def within(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """u follows the gradient with momentum, w follows u; both move with every token."""
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, u, S, w = state
        g = outer(read(M, k[:, t]) - v[:, t], k[:, t])
        S = 0.5 * S - 0.3 * (u - g)
        u = u + S
        w = w - 0.1 * (u + 2 * w * w / DV)
        M = M - 0.2 * g
        if t % 3 == 2:
            M = M - 0.2 * w
        return (M, u, S, w), read(M, q[:, t])

    zero = zeros(x, H, DV, DK)
    (M, u, S, w), y = over_tokens(q, (zero, zero, zero + 0.1, zero), move)
    return out(p, y), {"M": M, "M.u": u, "M.u.S": S, "M.w": w}


@feature(
    "conditions and times within an update",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    state n[] = 0
    update {
      when ||key|| > 1.2 {
        n = n + 1
        self = self - 0.1 * grad
      }
      every 3 tokens { self = 0.5 * self }
    }
  }
  out = W_o(M(q))
""",
)
def conditions(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, n = state
        holds = (k[:, t].norm(dim=-1) > 1.2).double()
        step = outer(read(M, k[:, t]) - v[:, t], k[:, t])
        M = M - 0.1 * holds[..., None, None] * step
        M = 0.5 * M if (t + 1) % 3 == 0 else M
        return (M, n + holds), read(M, q[:, t])

    (M, n), y = over_tokens(q, (zeros(x, H, DV, DK), zeros(x, H)), move)
    return out(p, y), {"M": M, "M.n": n}


@feature(
    "momentum, erasing and gates by channel through first order",
    """
  weights W_a, W_b : linear(d -> heads, bias)
  weights W_w : linear(d -> heads*d_k, bias)
  a, b, w = sigmoid(W_a(x)), sigmoid(W_b(x)), sigmoid(W_w(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    state S = 0
    update {
      S = a * S - b * grad
      self = self @ diag(w) + S - 0.1 * outer(self(q), k)
    }
    init learned
    reset every 5 tokens
    through first_order
  }
  out = W_o(M(q) + prev(M)(k))
""",
)
def stopped_reads(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    a, b = (torch.sigmoid(linear(p, n, x))[..., None, None] for n in ("W_a", "W_b"))
    w = torch.sigmoid(heads(linear(p, "W_w", x), H))
    first = copies(p, "M.weight", x)

    def move(t: int, state: Any) -> Any:
        M, S = state
        before = M
        S = a[:, t] * S - b[:, t] * outer(read(M, k[:, t]) - v[:, t], k[:, t]).detach()
        erased = outer(read(M, q[:, t]).detach(), k[:, t])
        M = M * w[:, t, :, None, :] + S - 0.1 * erased
        y = read(M, q[:, t]) + read(before, k[:, t])
        return ((first, torch.zeros_like(S)) if t % 5 == 4 else (M, S)), y

    (M, S), y = over_tokens(q, (first, zeros(x, H, DV, DK)), move)
    return out(p, y), {"M": M, "M.S": S}
