"""Features of chunks: which reads are frozen at a chunk's start, and which are exact."""

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
from tests.references.layers import linear, unit
from tests.references.titans import gelu, gelu_slope


def gate(p: P, name: str, x: Tensor) -> Tensor:
    return torch.sigmoid(linear(p, name, x))[..., None, None]


@feature(
    "a frozen gradient at a decayed value",
    """
  weights W_a : linear(d -> heads, bias)
  memory S : linear(d_k -> d_v) at fast {
    key k
    value v
    state n[] = 1
    update {
      n = n + 0.5
      S = sigmoid(W_a(x)) / n * S
      S = S - 0.3 * grad(at = S)
    }
  }
  out = W_o(S(q))
""",
    chunk="3",
)
def decayed(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    alpha = gate(p, "W_a", x)

    def move(t: int, state: Any) -> Any:
        S, start, n = state
        start = S if t % 3 == 0 else start
        n = n + 0.5
        decay = alpha[:, t] / n
        error = read(decay * start, k[:, t]) - v[:, t]
        S = decay * S - 0.3 * outer(error, k[:, t])
        return (S, start, n), read(S, q[:, t])

    first = zeros(x, H, DV, DK)
    (S, _, n), y = over_tokens(q, (first, first, zeros(x, H, 1, 1) + 1), move)
    return out(p, y), {"S": S, "S.n": n[..., 0, 0]}


@feature(
    "attention over what a memory answers from before its chunk",
    """
  weights W_y : linear(heads*d_v -> heads*d_k)
  memory M[heads] : linear(d_k -> d_k) at fast {
    key unit(y)
    value q
    update { self = 0.9 * self - 0.2 * grad }
    init learned
  }
  h = prev(M)(q)
  memory A : kernel(softmax) at now {
    key h, k
    value v, v
    reset every 6 tokens
  }
  a[heads, d_v] = A(q)
  y[heads, d_k] = W_y(a)
  out = W_o(a + A(M(k)))
""",
    chunk="3",
)
def asked_before_the_chunk(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, start, keys = state
        start = M if t % 3 == 0 else start
        keys = [] if t % 6 == 0 else keys
        keys = [*keys, (read(start, q[:, t]), v[:, t]), (k[:, t], v[:, t])]

        def attend(asked: Tensor) -> Tensor:
            K, V = (torch.stack(pairs, 2) for pairs in zip(*keys, strict=True))
            score = DK**-0.5 * torch.einsum("bhk,bhnk->bhn", asked, K)
            return torch.einsum("bhn,bhnv->bhv", score.softmax(-1), V)

        a = attend(q[:, t])
        y = unit(linear(p, "W_y", a.flatten(-2)).unflatten(-1, (H, DK)))
        M = 0.9 * M - 0.2 * outer(read(start, y) - q[:, t], y)
        return (M, start, keys), a + attend(read(M, k[:, t]))

    first = copies(p, "M.weight", x)
    (M, *_), y = over_tokens(q, (first, first, []), move)
    return out(p, y), {"M": M}


@feature(
    "a memory that waits for what another makes of its surprise",
    """
  memory usual[heads] : scalar at fast {
    update { self = 0.8 * self + 0.2 * loss(M) }
    init 0.5
  }
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update {
      self = 0.9 * self
      when loss(M) > prev(usual) { self = self - 0.2 * grad }
    }
    reset every 6 tokens
  }
  out = W_o(usual * M(q) + prev(usual) * v)
""",
    chunk="3",
)
def waits(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, start, usual = state
        M = torch.zeros_like(M) if t % 6 == 0 else M
        start = M if t % 3 == 0 else start
        error = read(start, k[:, t]) - v[:, t]
        loss = error.pow(2).sum(-1) / 2
        chosen = (loss > usual)[..., None, None]
        M = 0.9 * M - torch.where(chosen, 0.2 * outer(error, k[:, t]), 0.0)
        now = 0.8 * usual + 0.2 * loss
        y = now[..., None] * read(M, q[:, t]) + usual[..., None] * v[:, t]
        return (M, start, now), y

    first = zeros(x, H, DV, DK)
    (M, _, usual), y = over_tokens(q, (first, first, zeros(x, H) + 0.5), move)
    M = torch.zeros_like(M) if x.shape[1] % 6 == 0 else M
    return out(p, y), {"M": M, "usual": usual}


@feature(
    "applied reads are frozen, the bare state is not",
    """
  memory S : linear(d_k -> d_v) at fast {
    key k
    value v
    update {
      self = 0.9 * self
      self = self - 0.2 * outer(self(k), k) - 0.1 * outer(self @ q, q) + outer(v, k)
    }
  }
  out = W_o(S(q) + prev(S)(k))
""",
    chunk="3",
)
def bare_is_running(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        S, start = state
        start = S if t % 3 == 0 else start
        before = S
        S = 0.9 * S
        erase = 0.2 * outer(read(0.9 * start, k[:, t]), k[:, t])
        S = S - erase - 0.1 * outer(read(S, q[:, t]), q[:, t]) + outer(v[:, t], k[:, t])
        return (S, start), read(S, q[:, t]) + read(before, k[:, t])

    first = zeros(x, H, DV, DK)
    (S, _), y = over_tokens(q, (first, first), move)
    return out(p, y), {"S": S}


@feature(
    "two memories that depend on each other, and one that only reads",
    """
  memory A[heads] : linear(d_k -> d_k) at fast {
    key k
    value unit(prev(B)(q))
    update { self = 0.9 * self - 0.2 * grad }
  }
  memory B[heads] : linear(d_k -> d_k) at fast {
    key q
    value prev(A)(k) + k
    update { self = 0.8 * self - 0.2 * grad }
  }
  memory C[heads] : linear(d_k -> d_v) at fast {
    update { self = self + outer(v, prev(A)(q)) }
  }
  out = W_o(C(q))
""",
    chunk="3",
)
def mutual(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        A, B, C, startA, startB = state
        if t % 3 == 0:
            startA, startB = A, B
        # C's own update does not feed A: its read of A is exact
        exact = read(A, q[:, t])
        wanted_a, wanted_b = unit(read(startB, q[:, t])), read(startA, k[:, t]) + k[:, t]
        A = 0.9 * A - 0.2 * outer(read(startA, k[:, t]) - wanted_a, k[:, t])
        B = 0.8 * B - 0.2 * outer(read(startB, q[:, t]) - wanted_b, q[:, t])
        C = C + outer(v[:, t], exact)
        return (A, B, C, startA, startB), read(C, q[:, t])

    first = zeros(x, H, DK, DK)
    (A, B, C, *_), y = over_tokens(q, (first, first, zeros(x, H, DV, DK), first, first), move)
    return out(p, y), {"A": A, "B": B, "C": C}


@feature(
    "a stream made by a frozen read, wherever it is used",
    """
  kk = unit(k + prev(S)(k))
  memory S[heads] : linear(d_k -> d_k) at fast {
    key kk
    value q
    update { self = self - 0.2 * grad }
  }
  out = W_o(v * sum(kk)) + 0 * sum(S(q), over = (heads, d_k))
""",
    chunk="3",
)
def stream_of_a_frozen_read(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        S, start = state
        start = S if t % 3 == 0 else start
        key = unit(k[:, t] + read(start, k[:, t]))
        S = S - 0.2 * outer(read(start, key) - q[:, t], key)
        return (S, start), v[:, t] * key.sum(-1, keepdim=True)

    first = zeros(x, H, DK, DK)
    (S, _), y = over_tokens(q, (first, first), move)
    return out(p, y), {"S": S}


@feature(
    "the same read, frozen in the update and exact in the output",
    """
  memory S : linear(d_k -> d_v) at fast {
    key k
    value v
    update { self = self - 0.3 * outer(self(k) - v, k) }
  }
  out = W_o(prev(S)(k))
""",
    chunk="3",
)
def exact_elsewhere(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        S, start = state
        start = S if t % 3 == 0 else start
        y = read(S, k[:, t])
        S = S - 0.3 * outer(read(start, k[:, t]) - v[:, t], k[:, t])
        return (S, start), y

    first = zeros(x, H, DV, DK)
    (S, _), y = over_tokens(q, (first, first), move)
    return out(p, y), {"S": S}


@feature(
    "memories of several chunks that make each other's keys",
    """
  memory A[heads] : linear(d_k -> d_k) at fast {
    key a
    value k
    update { self = 0.9 * self - 0.2 * grad }
  }
  memory B[heads] : linear(d_k -> d_k) at broad {
    key b
    value unit(prev(A)(q))
    state S = 0
    update {
      S = 0.5 * S - 0.2 * grad
      self = 0.8 * self @ (1 - 0.1 * outer(b, b)) + S
    }
    reset every 12 tokens
  }
  a, b = unit(k + prev(B)(k)), unit(q + prev(A)(k))
  out = W_o((1 + sum(B(q))) * v) + 0 * sum(A(q), over = (heads, d_k))
""",
    chunk="2",
    levels="level broad every 1 token, chunk 6\n",
)
def several_chunks(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    eye = torch.eye(DK, dtype=x.dtype)

    def move(t: int, state: Any) -> Any:
        A, B, S, of_a, of_b = state
        of_a = A if t % 2 == 0 else of_a
        of_b = B if t % 6 == 0 else of_b
        a = unit(k[:, t] + read(of_b, k[:, t]))
        b = unit(q[:, t] + read(of_a, k[:, t]))
        A = 0.9 * A - 0.2 * outer(read(of_a, a) - k[:, t], a)
        S = 0.5 * S - 0.2 * outer(read(of_b, b) - unit(read(of_a, q[:, t])), b)
        B = 0.8 * B @ (eye - 0.1 * outer(b, b)) + S
        y = (1 + read(B, q[:, t]).sum(-1, keepdim=True)) * v[:, t]
        if t % 12 == 11:
            B, S = zeros(x, H, DK, DK), zeros(x, H, DK, DK)
        return (A, B, S, of_a, of_b), y

    first = zeros(x, H, DK, DK)
    (A, B, S, *_), y = over_tokens(q, (first,) * 5, move)
    return out(p, y), {"A": A, "B": B, "B.S": S}


@feature(
    "a memory that makes its own key and adds up what it sees",
    """
  kk = unit(k + prev(S)(k))
  memory S[heads] : linear(d_k -> d_k) at fast {
    update { self = 0.9 * self + outer(q, kk) }
    init learned
  }
  out = W_o((1 + sum(S(q))) * v)
""",
    chunk="4",
)
def own_key(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        S, start = state
        start = S if t % 4 == 0 else start
        S = 0.9 * S + outer(q[:, t], unit(k[:, t] + read(start, k[:, t])))
        return (S, start), (1 + read(S, q[:, t]).sum(-1, keepdim=True)) * v[:, t]

    first = p["S.weight"].expand(x.shape[0], H, DK, DK)
    (S, _), y = over_tokens(q, (first, first), move)
    return out(p, y), {"S": S}


@feature(
    "decay and erasing are learned through, the gradients are not",
    """
  weights W_a, W_b : linear(d -> heads, bias)
  alpha, beta = sigmoid(W_a(x)), sigmoid(W_b(x))
  memory S[heads] : mlp(d_k -> n -> d_v) at fast {
    key unit(k + prev(T)(k))
    value v
    update { self = self @ (alpha - beta * outer(k, k)) - beta * grad }
    through first_order
  }
  memory T[heads] : linear(d_k -> d_k) at fast {
    key unit(k + prev(T)(q))
    value q
    update { self = alpha * self - beta * grad }
    through first_order
  }
  out = W_o(S(q))
""",
    chunk="3",
)
def first_order_chunks(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    alpha, beta = gate(p, "W_a", x), gate(p, "W_b", x)
    eye = torch.eye(DK, dtype=x.dtype)

    def move(t: int, state: Any) -> Any:
        W1, W2, T, at1, at2, at = state
        if t % 3 == 0:
            at1, at2, at = W1, W2, T
        # what T's own update hangs on is of the chunk's start, for S it is exact
        key, own = unit(k[:, t] + read(T, k[:, t])), unit(k[:, t] + read(at, q[:, t]))
        z = read(at1, key)
        error = read(at2, gelu(z)) - v[:, t]
        below = torch.einsum("bhvn,bhv->bhn", at2, error) * gelu_slope(z)
        a, b = alpha[:, t], beta[:, t]
        W1 = W1 @ (a * eye - b * outer(k[:, t], k[:, t])) - b * outer(below, key).detach()
        W2 = a * W2 - b * outer(error, gelu(z)).detach()
        T = a * T - b * outer(read(at, own) - q[:, t], own).detach()
        return (W1, W2, T, at1, at2, at), read(W2, gelu(read(W1, q[:, t])))

    W1, W2 = (copies(p, f"S.layer{n}.weight", x) for n in (1, 2))
    T = zeros(x, H, DK, DK)
    (W1, W2, T, *_), y = over_tokens(q, (W1, W2, T, W1, W2, T), move)
    return out(p, y), {"S": {"layer1.weight": W1, "layer2.weight": W2}, "T": T}
