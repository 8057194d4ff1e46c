"""The neural memory of Titans (2501.00663, eqs. 8-18), gradients written out by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.references.cores import outer, read

Pair = tuple[Tensor, Tensor]


def gelu(z: Tensor) -> Tensor:
    return z / 2 * (1 + torch.erf(z / math.sqrt(2)))


def gelu_slope(z: Tensor) -> Tensor:
    return (1 + torch.erf(z / math.sqrt(2))) / 2 + z * torch.exp(-z.pow(2) / 2) / math.sqrt(
        2 * math.pi
    )


def linear_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor,
    alpha: Tensor,
    M: Tensor,
    S: Tensor,
    through: str = "full",
) -> tuple[Tensor, Tensor, Tensor]:
    """S = eta S - theta (M k - v) k^T, M = (1 - alpha) M + S; gates [B, T, H]."""
    out = []
    for t in range(q.shape[1]):
        gradient = outer(read(M, k[:, t]) - v[:, t], k[:, t])
        if through == "first_order":
            gradient = gradient.detach()
        before = M, S
        S = eta[:, t, :, None, None] * S - theta[:, t, :, None, None] * gradient
        M = (1 - alpha[:, t, :, None, None]) * M + S
        if through == "stop":
            M, S = (old + (new - old).detach() for old, new in zip(before, (M, S), strict=True))
        out.append(read(M, q[:, t]))
    return torch.stack(out, 1), M, S


def mlp_gradient(M: Pair, k: Tensor, v: Tensor) -> Pair:
    """Gradient of 1/2 |W2 gelu(W1 k) - v|^2 in W1 and W2."""
    W1, W2 = M
    z = read(W1, k)
    error = read(W2, gelu(z)) - v
    back = torch.einsum("bhvm,bhv->bhm", W2, error) * gelu_slope(z)
    return outer(back, k), outer(error, gelu(z))


def mlp_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor,
    alpha: Tensor,
    M: Pair,
    chunk: int = 1,
    reset: int | None = None,
) -> tuple[Tensor, Pair, Pair]:
    """The same with M(k) = W2 gelu(W1 k): gradients are taken at the start of each chunk."""
    first = M
    S = (torch.zeros_like(M[0]), torch.zeros_like(M[1]))
    out = []
    for t in range(q.shape[1]):
        if t % chunk == 0:
            start = M
        gradient = mlp_gradient(start, k[:, t], v[:, t])
        th, et, al = (gate[:, t, :, None, None] for gate in (theta, eta, alpha))
        S = (et * S[0] - th * gradient[0], et * S[1] - th * gradient[1])
        M = ((1 - al) * M[0] + S[0], (1 - al) * M[1] + S[1])
        out.append(read(M[1], gelu(read(M[0], q[:, t]))))
        if reset is not None and (t + 1) % reset == 0:
            M, S = first, (torch.zeros_like(first[0]), torch.zeros_like(first[1]))
    return torch.stack(out, 1), M, S


def self_modifying(
    p: dict[str, Tensor], x: Tensor, q: Tensor, eta: Tensor, alpha: Tensor, chunk: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Matrix memories that make their own keys and values (2512.24695, eqs. 83-90).

    k = M_k x, v = M_v x and vhat = M v are taken at the chunk's start c, and so is the gradient:
    M = M (alpha I - eta k k^T) - eta (M_c k - vhat) k^T for each of M_k, M_v, M_mem; no heads.
    """
    names = ("M_k", "M_v", "M_mem")
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    M = {n: p[f"{n}.weight"].expand(x.shape[0], *eye.shape) for n in names}
    out = []
    for t in range(x.shape[1]):
        if t % chunk == 0:
            start = dict(M)

        def at(name: str, z: Tensor, start: dict[str, Tensor] = start) -> Tensor:
            return torch.einsum("bij,bj->bi", start[name], z)

        k, v = at("M_k", x[:, t]), at("M_v", x[:, t])
        k = k / k.norm(dim=-1, keepdim=True)
        e, a = eta[:, t, None, None], alpha[:, t, None, None]
        keep = a * eye - e * outer(k, k)
        for n in names:
            M[n] = M[n] @ keep - e * outer(at(n, k) - at(n, v), k)
        out.append(torch.einsum("bij,bj->bi", M["M_mem"], q[:, t]))
    return torch.stack(out, 1), M
