"""Features of windows: states that stay for several tokens, sums over these, what is left open."""

from __future__ import annotations

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
from tests.references.layers import linear, silu, unit

BEAT = "level beat every 3 tokens\n"
BOTH = BEAT + "level bar every 6 tokens\n"


def grad(M: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The gradient of 1/2 |M k - v|^2."""
    return outer(read(M, k) - v, k)


@feature(
    "a window",
    """
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    update { self = 0.9 * self - 0.1 * grad }
    init learned
  }
  out = W_o(M(q) + prev(M)(k))
""",
    levels=BEAT,
)
def window(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, total = state
        y = read(M, q[:, t]) + read(M, k[:, t])
        total = total + grad(M, k[:, t], v[:, t])
        if (t + 1) % 3 == 0:
            M, total = 0.9 * M - 0.1 * total, torch.zeros_like(total)
        return (M, total), y

    (M, total), y = over_tokens(q, (copies(p, "M.weight", x), zeros(x, H, DV, DK)), move)
    return out(p, y), {"M": M, "M.sum": total}


@feature(
    "rates and gates of a window",
    """
  weights W_lr, W_a, W_m : linear(d -> heads)
  lr, a, m = sigmoid(W_lr(x)), sigmoid(W_a(x)), sigmoid(W_m(x))
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    state S = 0
    update {
      S = last(m) * S - sum(lr * grad, over = tokens)
      self = mean(a, over = tokens) * self + S
    }
  }
  out = W_o(M(q) + M.S @ q)
""",
    levels=BEAT,
)
def gates(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    lr, a, m = (torch.sigmoid(linear(p, n, x))[..., None, None] for n in ("W_lr", "W_a", "W_m"))

    def move(t: int, state: Any) -> Any:
        M, S, steps, gate = state
        y = read(M + S, q[:, t])
        steps, gate = steps + lr[:, t] * grad(M, k[:, t], v[:, t]), gate + a[:, t]
        if (t + 1) % 3 == 0:
            S = m[:, t] * S - steps
            M = gate / 3 * M + S
            steps, gate = torch.zeros_like(steps), torch.zeros_like(gate)
        return (M, S, steps, gate), y

    first = (*(zeros(x, H, DV, DK) for _ in range(3)), zeros(x, H, 1, 1))
    (M, S, steps, gate), y = over_tokens(q, first, move)
    kept = {"1": steps, "2": gate[..., 0, 0]}
    return out(p, y), {"M": M, "M.S": S, "M.sum": kept}


@feature(
    "adam at the end of a window",
    """
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    update adam(lr = 0.05)
    init learned
  }
  out = W_o(M(q))
""",
    levels=BEAT,
    rules="""
rule adam(lr, b1 = 0.8, b2 = 0.9) {
  state m = 0
  state s = 0
  state n[] = 0
  n = n + 1
  m = b1 * m + (1 - b1) * grad
  s = b2 * s + (1 - b2) * grad^2
  self = self - lr * (m / (1 - b1^n)) / (sqrt(s / (1 - b2^n)) + 1e-3)
}
""",
)
def adam(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, m, s, total = state
        y = read(M, q[:, t])
        total = total + grad(M, k[:, t], v[:, t])
        if (t + 1) % 3 == 0:
            n = (t + 1) // 3
            m, s = 0.8 * m + 0.2 * total, 0.9 * s + 0.1 * total**2
            M = M - 0.05 * (m / (1 - 0.8**n)) / ((s / (1 - 0.9**n)).sqrt() + 1e-3)
            total = torch.zeros_like(total)
        return (M, m, s, total), y

    first = copies(p, "M.weight", x), *(zeros(x, H, DV, DK) for _ in range(3))
    (M, m, s, total), y = over_tokens(q, first, move)
    n = torch.full((x.shape[0], H), float(x.shape[1] // 3), dtype=torch.float64)
    return out(p, y), {"M": M, "M.m": m, "M.s": s, "M.n": n, "M.sum": total}


@feature(
    "LaCT: three rates, momentum, orthogonal steps, rows of their first length",
    """
  weights W_lr : linear(d -> 3)
  weights W_m : linear(d -> heads)
  rate = softplus(W_lr(x))
  memory M : glu(d_k -> 5 -> d_v) at beat {
    key unit(k)
    value v
    objective -<M(key), value>
    state S = 0
    update {
      m = mean(sigmoid(W_m(x)), over = tokens)
      g_0 = sum(sum(slice(rate, 0, 1)) * grad.gate, over = tokens)
      g_1 = sum(sum(slice(rate, 1, 2)) * grad.down, over = tokens)
      g_2 = sum(sum(slice(rate, 2, 3)) * grad.up, over = tokens)
      S.gate = m * S.gate - g_0
      S.down = m * S.down - g_1
      S.up = m * S.up - g_2
      self = self + newton_schulz(S)
      length = norm(initial(self), over = in)
      self.gate = length.gate * unit(self.gate, over = in)
      self.down = length.down * unit(self.down, over = in)
      self.up = length.up * unit(self.up, over = in)
    }
  }
  out = W_o(M(q))
""",
    levels=BEAT,
)
def lact(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """2505.23884: f(x) = W1 (silu(W0 x) * (W2 x)), apply, then update."""
    q, k, v = project(p, x)
    k = unit(k)
    rate = torch.nn.functional.softplus(linear(p, "W_lr", x))
    m = torch.sigmoid(linear(p, "W_m", x))
    # W0, W1, W2 of the paper
    first = [copies(p, f"M.{part}", x) for part in ("gate", "down", "up")]

    def orthogonal(G: Tensor) -> Tensor:
        tall = G.shape[-2] > G.shape[-1]
        X = G.mT if tall else G
        X = X / (X.pow(2).sum((-1, -2), keepdim=True).sqrt() + 1e-7)
        for _ in range(5):
            A = X @ X.mT
            X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        return X.mT if tall else X

    def apply(W: list[Tensor], z: Tensor) -> Tensor:
        return read(W[1], silu(read(W[0], z)) * read(W[2], z))

    def steps(W: list[Tensor], z: Tensor, value: Tensor) -> list[Tensor]:
        """Minus the gradients of -<f(z), value>."""
        a, b = read(W[0], z), read(W[2], z)
        back = torch.einsum("bhvm,bhv->bhm", W[1], value)
        s = torch.sigmoid(a)
        slope = s * (1 + a * (1 - s))
        return [
            outer(back * b * slope, z),
            outer(value, silu(a) * b),
            outer(back * silu(a), z),
        ]

    def move(t: int, state: Any) -> Any:
        W, S, g, gate = state
        y = apply(W, q[:, t])
        new = steps(W, k[:, t], v[:, t])
        g = [
            a + rate[:, t, i, None, None, None] * b
            for i, (a, b) in enumerate(zip(g, new, strict=True))
        ]
        gate = gate + m[:, t]
        if (t + 1) % 3 == 0:
            S = [gate[..., None, None] / 3 * a + b for a, b in zip(S, g, strict=True)]
            W = [w + orthogonal(a) for w, a in zip(W, S, strict=True)]
            W = [
                w0.norm(dim=-1, keepdim=True) * w / w.norm(dim=-1, keepdim=True)
                for w, w0 in zip(W, first, strict=True)
            ]
            g, gate = [torch.zeros_like(a) for a in g], torch.zeros_like(gate)
        return (W, S, g, gate), y

    none = [torch.zeros_like(w) for w in first]
    (W, S, *_), y = over_tokens(q, (first, none, none, zeros(x, H)), move)
    names = ("gate", "down", "up")
    return out(p, y), {
        "M": dict(zip(names, W, strict=True)),
        "M.S": dict(zip(names, S, strict=True)),
    }


@feature(
    "levels of 1, 3 and 6 tokens",
    """
  memory A : linear(d_k -> d_v) at fast {
    key k
    value v
    update { self = 0.9 * self - 0.2 * grad + 0.05 * B }
  }
  memory B : linear(d_k -> d_v) at beat {
    key k
    objective 1/2 * ||self(key) - A(q)||^2
    update { self = self - 0.3 * grad + 0.1 * A + 0.2 * prev(A) + 0.05 * C }
  }
  memory C : linear(d_k -> d_v) at bar {
    key q
    value v
    update { self = 0.5 * self + 0.5 * B - 0.1 * grad + sum(A, over = tokens) / 10 }
  }
  out = W_o(A(q) + B(q) + C(q))
""",
    levels=BOTH,
)
def levels(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        A, B, C, b, c, a = state
        before = A
        A = 0.9 * A - 0.2 * grad(A, k[:, t], v[:, t]) + 0.05 * B
        y = read(A + B + C, q[:, t])
        b = b + grad(B, k[:, t], read(A, q[:, t]))
        c, a = c + grad(C, q[:, t], v[:, t]), a + A
        if (t + 1) % 3 == 0:
            # the faster level first: B sees C before its update, C sees B after its own
            B, b = B - 0.3 * b + 0.1 * A + 0.2 * before + 0.05 * C, torch.zeros_like(b)
        if (t + 1) % 6 == 0:
            C, c, a = 0.5 * C + 0.5 * B - 0.1 * c + a / 10, torch.zeros_like(c), zeros(x, H, DV, DK)
        return (A, B, C, b, c, a), y

    first = tuple(zeros(x, H, DV, DK) for _ in range(6))
    (A, B, C, b, c, a), y = over_tokens(q, first, move)
    sums = {"A": A, "B": B, "C": C, "B.sum": b, "C.sum": {"1": c, "2": a}}
    return out(p, y), sums


@feature(
    "memories of one level, one after the other",
    """
  memory A : linear(d_k -> d_v) at beat {
    key k
    value v
    update { self = self - 0.2 * grad }
  }
  memory B : linear(d_k -> d_v) at beat {
    key k
    objective 1/2 * ||self(key) - A(q)||^2
    update { self = 0.9 * self - 0.3 * grad + 0.1 * A - 0.2 * prev(A) }
  }
  out = W_o(A(q) + B(q))
""",
    levels=BEAT,
)
def one_level(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        A, B, a, b = state
        y = read(A + B, q[:, t])
        a = a + grad(A, k[:, t], v[:, t])
        b = b + grad(B, k[:, t], read(A, q[:, t]))
        if (t + 1) % 3 == 0:
            new = A - 0.2 * a
            B = 0.9 * B - 0.3 * b + 0.1 * new - 0.2 * A
            A, a, b = new, torch.zeros_like(a), torch.zeros_like(b)
        return (A, B, a, b), y

    (A, B, a, b), y = over_tokens(q, tuple(zeros(x, H, DV, DK) for _ in range(4)), move)
    return out(p, y), {"A": A, "B": B, "A.sum": a, "B.sum": b}


@feature(
    "a second step over the same window",
    """
  weights W_lr : linear(d -> heads)
  lr = sigmoid(W_lr(x))
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    update {
      self = mean(lr, over = tokens) * self
      repeat 2 { self = self - sum(0.3 * lr * grad(at = self), over = tokens) }
      self = self - 0.1 * grad(-<self(q), value>, at = self)
    }
    init learned
  }
  out = W_o(M(q))
""",
    levels=BEAT,
)
def second_step(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    lr = torch.sigmoid(linear(p, "W_lr", x))

    def move(t: int, M: Tensor) -> Any:
        y = read(M, q[:, t])
        if (t + 1) % 3 == 0:
            tokens = range(t - 2, t + 1)
            M = M * sum(lr[:, s, :, None, None] for s in tokens) / 3
            for _ in range(2):
                M = M - sum(
                    0.3 * lr[:, s, :, None, None] * grad(M, k[:, s], v[:, s]) for s in tokens
                )
            M = M + 0.1 * sum(outer(v[:, s], q[:, s]) for s in tokens)
        return M, y

    M, y = over_tokens(q, copies(p, "M.weight", x), move)
    return out(p, y), {"M": M}


@feature(
    "keys and values that the memory makes itself",
    """
  kk = unit(M_k(k))
  vv = tanh(M(kk))
  memory M_k[heads] : linear(d_k -> d_k) at beat {
    key kk
    value k
    update { self = 0.9 * self - 0.1 * grad }
    init learned
  }
  memory M[heads] : linear(d_k -> d_v) at beat {
    key kk
    value v + vv
    update { self = self - 0.1 * grad }
    init learned
  }
  out = W_o(M(q))
""",
    levels=BEAT,
)
def self_made(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        K, M, a, b = state
        kk = unit(read(K, k[:, t]))
        value = v[:, t] + torch.tanh(read(M, kk))
        y = read(M, q[:, t])
        a, b = a + grad(K, kk, k[:, t]), b + grad(M, kk, value)
        if (t + 1) % 3 == 0:
            K, M, a, b = 0.9 * K - 0.1 * a, M - 0.1 * b, torch.zeros_like(a), torch.zeros_like(b)
        return (K, M, a, b), y

    first = copies(p, "M_k.weight", x), copies(p, "M.weight", x)
    first = (*first, zeros(x, H, DK, DK), zeros(x, H, DV, DK))
    (K, M, a, b), y = over_tokens(q, first, move)
    return out(p, y), {"M_k": K, "M": M, "M_k.sum": a, "M.sum": b}


@feature(
    "a window with a softmax memory, a condition and the last tokens",
    """
  weights probe : vector(d_k) init 0.3
  memory A : kernel(softmax, window = 4) at now {
    key k
    value v
  }
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    objective recent(1/2 * ||M(key) - value||^2, 2)
    update {
      when mean(loss(M), over = tokens) > 1.5 { self = 0.5 * self - 0.1 * grad }
      self = self + 0.1 * outer(A(probe), probe)
    }
  }
  out = W_o(M(q) + A(q))
""",
    levels=BEAT,
)
def mixture(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    probe = p["probe"].expand(x.shape[0], H, DK)

    def attend(t: int, z: Tensor) -> Tensor:
        first = max(t - 3, 0)
        score = torch.einsum("bhd,bshd->bhs", z, k[:, first : t + 1]) / DK**0.5
        return torch.einsum("bhs,bshd->bhd", score.softmax(-1), v[:, first : t + 1])

    def move(t: int, state: Any) -> Any:
        M, total, loss = state
        y = read(M, q[:, t]) + attend(t, q[:, t])
        for s in range(max(t - 1, 0), t + 1):
            total = total + grad(M, k[:, s], v[:, s])
            loss = loss + (read(M, k[:, s]) - v[:, s]).pow(2).sum(-1) / 2
        if (t + 1) % 3 == 0:
            large = (loss / 3 > 1.5)[..., None, None]
            M = torch.where(large, 0.5 * M - 0.1 * total, M)
            M = M + 0.1 * outer(attend(t, probe), probe)
            total, loss = torch.zeros_like(total), torch.zeros_like(loss)
        return (M, total, loss), y

    (M, *_), y = over_tokens(q, (zeros(x, H, DV, DK), zeros(x, H, DV, DK), zeros(x, H)), move)
    return out(p, y), {"M": M}


@feature(
    "TNT: a global memory, and local ones that begin anew",
    """
  weights W_eta : linear(d -> heads)
  eta = sigmoid(W_eta(x))
  memory V : mlp(d_k -> 5 -> d_v, act = tanh) at bar {
    key unit(k)
    value v
    update { self = self - sum(eta * grad, over = tokens) }
  }
  memory W : mlp(d_k -> 5 -> d_v, act = tanh) at fast {
    key unit(k)
    value v
    update { self = self - eta * grad }
    reset every 6 tokens
  }
  memory P[heads] : linear(d_k -> d_k) at fast {
    update { self = self + outer(unit(k), unit(k)) }
    reset every 2 tokens
  }
  out = W_o(V(q) + W(P(q)))
""",
    levels="level bar every 6 tokens\n",
    chunk="2",
)
def tnt(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """2511.07343, eqs. 5-7: C_G = S_L = 6, C_L = 2, read through the keys of the local chunk."""
    q, k, v = project(p, x)
    k, eta = unit(k), torch.sigmoid(linear(p, "W_eta", x))
    names = ("layer1.weight", "layer2.weight")
    V0, W0 = ([copies(p, f"{m}.{n}", x) for n in names] for m in ("V", "W"))

    def apply(M: list[Tensor], z: Tensor) -> Tensor:
        return read(M[1], torch.tanh(read(M[0], z)))

    def steps(M: list[Tensor], t: int) -> list[Tensor]:
        z = torch.tanh(read(M[0], k[:, t]))
        error = read(M[1], z) - v[:, t]
        back = torch.einsum("bhvm,bhv->bhm", M[1], error) * (1 - z**2)
        rate = eta[:, t, :, None, None]
        return [rate * outer(back, k[:, t]), rate * outer(error, z)]

    def move(t: int, state: Any) -> Any:
        V, W, start, keys, total = state
        start = W if t % 2 == 0 else start
        keys = zeros(x, H, DK, DK) if t % 2 == 0 else keys
        W = [w - g for w, g in zip(W, steps(start, t), strict=True)]
        keys = keys + outer(k[:, t], k[:, t])
        total = [a + g for a, g in zip(total, steps(V, t), strict=True)]
        y = apply(V, q[:, t]) + apply(W, read(keys, q[:, t]))
        if (t + 1) % 6 == 0:
            V, W, total = (
                [a - g for a, g in zip(V, total, strict=True)],
                W0,
                [torch.zeros_like(a) for a in V],
            )
        return (V, W, start, keys, total), y

    none = [torch.zeros_like(w) for w in V0]
    (V, W, *_), y = over_tokens(q, (V0, W0, W0, zeros(x, H, DK, DK), none), move)
    return out(p, y), {"V": dict(zip(names, V, strict=True)), "W": dict(zip(names, W, strict=True))}


@feature(
    "delta gradient descent over a window",
    """
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    update dgd(lr = 0.4)
    init learned
  }
  out = W_o(M(q))
""",
    levels=BEAT,
)
def dgd(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The rule erases with the mean of k k^T over the window."""
    q, k, v = project(p, x)

    def move(t: int, M: Tensor) -> Any:
        y = read(M, q[:, t])
        if (t + 1) % 3 == 0:
            past = range(t - 2, t + 1)
            square = sum(k[:, s].pow(2).sum(-1) for s in past) / 3
            step = (0.4 / (1 + 0.4 * square))[..., None, None]
            erase = sum(outer(read(M, k[:, s]), k[:, s]) for s in past) / 3
            M = M - step * erase - step * sum(grad(M, k[:, s], v[:, s]) for s in past)
        return M, y

    M, y = over_tokens(q, copies(p, "M.weight", x), move)
    return out(p, y), {"M": M}


@feature(
    "a fast memory that begins each window with the slow one that took it over",
    """
  weights W_b : linear(d -> heads)
  memory F : linear(d_k -> d_v) at fast {
    key k
    value v
    state T = 0
    update {
      T = 0.5 * T - 0.3 * grad
      self = self + T
    }
    init from S
    reset every 6 tokens
  }
  memory S[heads] : linear(d_k -> d_v) at beat {
    update { S = lerp(S, F, mean(sigmoid(W_b(x)), over = tokens)) }
    init learned
  }
  out = W_o(F(q) + S(k) + initial(F)(k))
""",
    levels=BEAT,
)
def takes_over(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    share = torch.sigmoid(linear(p, "W_b", x))

    def move(t: int, state: Any) -> Any:
        F, T, S, begin, total = state
        T = 0.5 * T - 0.3 * grad(F, k[:, t], v[:, t])
        F = F + T
        y = read(F, q[:, t]) + read(S, k[:, t]) + read(begin, k[:, t])
        total = total + share[:, t]
        if (t + 1) % 3 == 0:
            S, total = S + total[..., None, None] / 3 * (F - S), torch.zeros_like(total)
        if (t + 1) % 6 == 0:
            F, T, begin = S, torch.zeros_like(T), S
        return (F, T, S, begin, total), y

    S = copies(p, "S.weight", x)
    (F, T, S, _, total), y = over_tokens(q, (S, zeros(x, H, DV, DK), S, S, zeros(x, H)), move)
    return out(p, y), {"F": F, "F.T": T, "S": S, "S.sum": total}
