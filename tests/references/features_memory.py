"""Features of memories: maps, starts, resets, reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references.cores import outer, read, softmax_attention
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
from tests.references.layers import heads, linear, rmsnorm, unit
from tests.references.titans import gelu, mlp_gradient


@feature(
    "decay towards the initial state",
    """
  memory M : linear(d_k -> d_v, bias) at fast {
    key k
    value v
    update { self = initial(self) + 0.9 * (self - initial(self)) - 0.1 * grad }
    init learned
  }
  out = W_o(M(q) - initial(M)(q))
""",
)
def towards_initial(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    W0, b0 = copies(p, "M.weight", x), copies(p, "M.bias", x)

    def move(t: int, state: Any) -> Any:
        W, b = state
        error = read(W, k[:, t]) + b - v[:, t]
        W = W0 + 0.9 * (W - W0) - 0.1 * outer(error, k[:, t])
        b = b0 + 0.9 * (b - b0) - 0.1 * error
        return (W, b), read(W - W0, q[:, t]) + b - b0

    (W, b), y = over_tokens(q, (W0, b0), move)
    return out(p, y), {"M": {"weight": W, "bias": b}}


@feature(
    "starts part by part from weights, gates by channel",
    """
  weights F[heads] : mlp(d_k -> n -> d_v)
  weights W_a : linear(d -> heads*d_k)
  weights W_e : linear(d -> heads*d_v)
  a = sigmoid(W_a(x))
  e = sigmoid(W_e(x))
  memory M : mlp(d_k -> n -> d_v) at fast {
    key k
    value v
    update {
      self.layer1 = self.layer1 @ diag(a) - 0.1 * (grad.layer1 @ diag(a))
      self.layer2 = diag(e) @ self.layer2 - diag(0.1 * e) @ grad.layer2
    }
    init softmax(2 * F, over = n)
  }
  out = W_o(M(q))
""",
    chunk="2",
)
def channels(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    a, e = (heads(torch.sigmoid(linear(p, n, x)), H) for n in ("W_a", "W_e"))
    first = (2 * copies(p, "F.layer1.weight", x)).softmax(-2)
    second = (2 * copies(p, "F.layer2.weight", x)).softmax(-1)
    start = [(first, second)]

    def move(t: int, W: Any) -> Any:
        start[0] = W if t % 2 == 0 else start[0]
        g = mlp_gradient(start[0], k[:, t], v[:, t])
        side, other = a[:, t, :, None, :], e[:, t, :, :, None]
        W = (W[0] * side - 0.1 * g[0] * side, W[1] * other - 0.1 * g[1] * other)
        return W, read(W[1], gelu(read(W[0], q[:, t])))

    W, y = over_tokens(q, (first, second), move)
    return out(p, y), {"M": {"layer1.weight": W[0], "layer2.weight": W[1]}}


@feature(
    "surprise",
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    objective ||M(key) - value||^2
    update { self = self - 0.1 * grad }
  }
  out = W_o(loss(M) * M(q))
""",
)
def surprise(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, M: Tensor) -> Any:
        error = read(M, k[:, t]) - v[:, t]
        M = M - 0.1 * outer(2 * error, k[:, t])
        return M, error.pow(2).sum(-1, keepdim=True) * read(M, q[:, t])

    M, y = over_tokens(q, zeros(x, H, DV, DK), move)
    return out(p, y), {"M": M}


@feature(
    "a start from weights, and from another memory at each reset",
    """
  weights W : linear(d_k -> d_v)
  memory A : linear(d_k -> d_v) at fast {
    key k
    value v
    update { self = self - 0.1 * grad }
    init from W
  }
  memory B : linear(d_k -> d_v) at fast {
    key k
    value 2 * v
    update { self = 0.8 * self + 0.2 * initial(self) - 0.3 * grad }
    init from A
    reset every 3 tokens
  }
  out = W_o(A(q) + B(q))
""",
)
def starts(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    W = p["W.weight"].expand(x.shape[0], H, DV, DK)

    def move(t: int, state: Any) -> Any:
        A, B, B0 = state
        A = A - 0.1 * outer(read(A, k[:, t]) - v[:, t], k[:, t])
        B = 0.8 * B + 0.2 * B0 - 0.3 * outer(read(B, k[:, t]) - 2 * v[:, t], k[:, t])
        y = read(A, q[:, t]) + read(B, q[:, t])
        return ((A, A, A) if (t + 1) % 3 == 0 else (A, B, B0)), y

    (A, B, _), y = over_tokens(q, (W, W, W), move)
    return out(p, y), {"A": A, "B": B}


@feature(
    "a residual memory with a norm",
    """
  memory M : mlp(d_k -> 5 -> d_k, act = tanh, bias, residual, norm) at fast {
    key k
    value unit(k)
    update { self = self - 0.05 * grad }
  }
  weights W_2 : linear(heads*d_k -> d)
  out = W_2(M(q))
""",
)
def residual(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, _ = project(p, x)
    names = ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias", "norm.weight"]
    names.append("norm.bias")

    def apply(M: list[Tensor], z: Tensor) -> Tensor:
        W1, b1, W2, b2, gain, offset = M
        y = read(W2, torch.tanh(read(W1, z) + b1)) + b2
        return z + torch.nn.functional.layer_norm(y, (DK,)) * gain + offset

    def move(t: int, M: list[Tensor]) -> Any:
        loss = (apply(M, k[:, t]) - unit(k[:, t])).pow(2).sum() / 2
        found = torch.autograd.grad(loss, M, create_graph=True)
        M = [w - 0.05 * g for w, g in zip(M, found, strict=True)]
        return M, apply(M, q[:, t])

    first = [copies(p, f"M.{name}", x).clone() for name in names]
    M, y = over_tokens(q, first, move)
    return linear(p, "W_2", y.flatten(-2)), {"M": dict(zip(names, M, strict=True))}


@feature(
    "a memory that reads another at the same token",
    """
  memory A : linear(d_k -> d_k) at fast {
    key k
    value unit(k)
    update { self = self - 0.1 * grad }
    init learned
  }
  memory B : linear(d_k -> d_v) at fast {
    key A(k)
    value v
    update { self = self - 0.1 * grad + 0.1 * outer(v, prev(A)(q)) }
  }
  out = W_o(B(A(q)))
""",
)
def chained(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        before, B = state
        A = before - 0.1 * outer(read(before, k[:, t]) - unit(k[:, t]), k[:, t])
        key = read(A, k[:, t])
        B = B - 0.1 * outer(read(B, key) - v[:, t], key)
        B = B + 0.1 * outer(v[:, t], read(before, q[:, t]))
        return (A, B), read(B, read(A, q[:, t]))

    (A, B), y = over_tokens(q, (copies(p, "A.weight", x), zeros(x, H, DV, DK)), move)
    return out(p, y), {"A": A, "B": B}


@feature(
    "persistent pairs",
    """
  memory A : kernel(softmax, window = 2, scale = 0.7) at now {
    key k
    value v
    init learned(3)
  }
  out = W_o(A(q) + prev(A)(q))
""",
)
def persistent(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    key, value = p["A.key"], p["A.value"]

    def attend(t: int, last: int) -> Tensor:
        first = max(last - 1, 0)
        K = torch.cat([key.expand(x.shape[0], H, 3, DK), k[:, first : last + 1].transpose(1, 2)], 2)
        V = torch.cat(
            [value.expand(x.shape[0], H, 3, DV), v[:, first : last + 1].transpose(1, 2)], 2
        )
        score = 0.7 * torch.einsum("bhk,bhnk->bhn", q[:, t], K)
        return torch.einsum("bhn,bhnv->bhv", score.softmax(-1), V)

    _, y = over_tokens(q, None, lambda t, _: (None, attend(t, t) + attend(t, t - 1)))
    return out(p, y), {}


@feature(
    "attention that forgets at a reset, and reads 0 of nothing",
    """
  memory A : kernel(softmax) at now {
    key k
    value v
    reset every 3 tokens
  }
  out = W_o(A(q) + 2 * prev(A)(q))
""",
)
def forgetting(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    parts = [
        softmax_attention(*(s[:, i : i + 3] for s in (q, k, v))) for i in range(0, x.shape[1], 3)
    ]

    def before(t: int) -> Tensor:
        first = t - t % 3
        if t == first:
            return torch.zeros_like(v[:, t])
        score = DK**-0.5 * torch.einsum("bhk,bshk->bhs", q[:, t], k[:, first:t])
        return torch.einsum("bhs,bshv->bhv", score.softmax(-1), v[:, first:t])

    _, y = over_tokens(q, None, lambda t, _: (None, 2 * before(t)))
    return out(p, torch.cat(parts, 1) + y), {}


@feature(
    "two pairs a token in a window",
    """
  memory A : kernel(softmax, window = 2) at now {
    key k, q
    value v, 2 * v
    init learned(1)
    reset every 5 tokens
  }
  out = W_o(A(q) + prev(A)(k))
""",
)
def two_pairs(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def attend(asked: Tensor, tokens: range) -> Tensor:
        K = [p["A.key"].expand(x.shape[0], H, 1, DK)]
        V = [p["A.value"].expand(x.shape[0], H, 1, DV)]
        for i in tokens:
            K += [k[:, i, :, None], q[:, i, :, None]]
            V += [v[:, i, :, None], 2 * v[:, i, :, None]]
        score = DK**-0.5 * torch.einsum("bhk,bhnk->bhn", asked, torch.cat(K, 2))
        return torch.einsum("bhn,bhnv->bhv", score.softmax(-1), torch.cat(V, 2))

    def move(t: int, _: Any) -> Any:
        first = t - t % 5
        now, before = range(max(first, t - 1), t + 1), range(max(first, t - 2), t)
        return None, attend(q[:, t], now) + attend(k[:, t], before)

    _, y = over_tokens(q, None, move)
    last = torch.stack([k[:, -2:], q[:, -2:]], 2).flatten(1, 2).transpose(1, 2)
    return out(p, y), {"A": {"key": last}}


@feature(
    "queries with further axes",
    """
  dims_of = index(d)
  weights W_m : linear(d -> heads*n*d_k)
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update { self = self - 0.1 * grad }
  }
  out = W_o(mean(M(W_m(x)), over = n)) + 0 * dims_of
""",
)
def more_queries(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)
    many = linear(p, "W_m", x).reshape(*x.shape[:2], H, 5, DK)

    def move(t: int, M: Tensor) -> Any:
        M = M - 0.1 * outer(read(M, k[:, t]) - v[:, t], k[:, t])
        return M, torch.einsum("bhvk,bhnk->bhnv", M, many[:, t]).mean(2)

    M, y = over_tokens(q, zeros(x, H, DV, DK), move)
    return out(p, y), {"M": M}


@feature(
    "a gated memory with parts of its own",
    """
  memory M : glu(d_k -> 5 -> d_v) at fast {
    key k
    value v
    update {
      self.gate = self.gate - 0.1 * grad.gate
      self.down = 0.9 * self.down - 0.2 * grad.down
    }
  }
  out = W_o(rmsnorm(M(q)))
""",
)
def gated(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def apply(M: list[Tensor], z: Tensor) -> Tensor:
        gate, up, down = M
        return read(down, torch.nn.functional.silu(read(gate, z)) * read(up, z))

    def move(t: int, M: list[Tensor]) -> Any:
        loss = (apply(M, k[:, t]) - v[:, t]).pow(2).sum() / 2
        g = torch.autograd.grad(loss, M, create_graph=True)
        M = [M[0] - 0.1 * g[0], M[1], 0.9 * M[2] - 0.2 * g[2]]
        return M, apply(M, q[:, t])

    names = ["gate", "up", "down"]
    M, y = over_tokens(q, [copies(p, f"M.{n}", x).clone() for n in names], move)
    return out(p, rmsnorm(y)), {"M": dict(zip(names, M, strict=True))}


@feature(
    "a start drawn once, and heads that make their own keys",
    """
  memory M[heads] : linear(d_k -> d_k) at fast {
    key kk
    value prev(self)(q)
    update { self = self - 0.1 * grad }
    init normal(0.5)
  }
  memory A : linear(d_k -> d_v) at fast {
    key kk
    value v
    update { self = self - 0.1 * grad }
  }
  kk = unit(prev(M)(k))
  out = W_o(A(q))
""",
    chunk="2",
)
def own_keys(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = project(p, x)

    def move(t: int, state: Any) -> Any:
        M, A, start = state
        if t % 2 == 0:
            start = (M, A)
        key = unit(read(start[0], k[:, t]))
        value = read(start[0], q[:, t])
        M = M - 0.1 * outer(read(start[0], key) - value, key)
        A = A - 0.1 * outer(read(start[1], key) - v[:, t], key)
        return (M, A, start), read(A, q[:, t])

    first = copies(p, "M.weight", x), zeros(x, H, DV, DK)
    (M, A, _), y = over_tokens(q, (*first, first), move)
    return out(p, y), {"M": M, "A": A}
