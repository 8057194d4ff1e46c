"""Mixers whose memory takes its gradients at a chunk's start, by hand, as `library` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references.cores import outer, read
from tests.references.layers import conv, layernorm, linear, rmsnorm, unit
from tests.references.mixers import Dims, Mixed, P, out, split
from tests.references.titans import gelu, gelu_slope


def through_layernorm(u: Tensor, above: Tensor, eps: float = 1e-5) -> Tensor:
    """The gradient in u of <layernorm(u), above>."""
    ahead = layernorm(u)
    along = (above * ahead).mean(-1, keepdim=True)
    spread = (u.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return (above - above.mean(-1, keepdim=True) - ahead * along) / spread


def trained(p: P, x: Tensor, dims: Dims, layers: int, rate: float) -> Mixed:
    """f(z) = z + LN(W z) or z + LN(W_2 gelu(W_1 z)), with its gradients at the chunk's start."""
    q, k, v = (split(p, f"W_{of}", x, dims) for of in "qkv")
    eta = rate * torch.sigmoid(linear(p, "W_eta", x)) / dims["d_k"]
    gain, offset = p["M.norm.weight"], p["M.norm.bias"]
    names = [f"layer{n + 1}.weight" for n in range(layers)]
    W = [p[f"M.{n}"].expand(x.shape[0], *p[f"M.{n}"].shape) for n in names]
    found = []
    for t in range(x.shape[1]):
        if t % dims["chunk"] == 0:
            start = list(W)
        inner = read(start[0], k[:, t])
        last = inner if layers == 1 else read(start[1], gelu(inner))
        error = k[:, t] + layernorm(last) * gain + offset - v[:, t]
        back = through_layernorm(last, 2 * error * gain)
        if layers == 1:
            gradients = [outer(back, k[:, t])]
        else:
            below = torch.einsum("bhom,bho->bhm", start[1], back) * gelu_slope(inner)
            gradients = [outer(below, k[:, t]), outer(back, gelu(inner))]
        step = eta[:, t, :, None, None]
        W = [w - step * g for w, g in zip(W, gradients, strict=True)]
        z = read(W[0], q[:, t])
        z = z if layers == 1 else read(W[1], gelu(z))
        found.append(q[:, t] + layernorm(z) * gain + offset)
    return out(p, torch.stack(found, 1)), {"M": dict(zip(names, W, strict=True))}


def ttt_linear(p: P, x: Tensor, dims: Dims) -> Mixed:
    return trained(p, x, dims, 1, 1.0)


def ttt_mlp(p: P, x: Tensor, dims: Dims) -> Mixed:
    return trained(p, x, dims, 2, 0.1)


def self_modifying_titans(p: P, x: Tensor, dims: Dims) -> Mixed:
    """Each M = M (alpha - eta k k^T) - eta (M_c k - M_c v) k^T; k, v, eta, alpha from memories."""
    z = conv(p, "conv_x", x)
    q = unit(linear(p, "W_q", z))
    names = ("M_k", "M_v", "M_mem", "M_eta", "M_alpha")
    M = {n: p[f"{n}.weight"].expand(x.shape[0], *p[f"{n}.weight"].shape) for n in names}
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    found = []
    for t in range(x.shape[1]):
        if t % dims["chunk"] == 0:
            start = dict(M)
        found.append(torch.einsum("bij,bj->bi", M["M_mem"], q[:, t]))

        def at(name: str, of: Tensor, start: dict[str, Tensor] = start) -> Tensor:
            return torch.einsum("bij,bj->bi", start[name], of)

        k, v = unit(at("M_k", z[:, t])), at("M_v", z[:, t])
        eta = torch.sigmoid(at("M_eta", z[:, t]))[..., None] / 2
        alpha = torch.sigmoid(at("M_alpha", z[:, t]) + 4)[..., None]
        keep = alpha * eye - eta * outer(k, k)
        for n in names:
            M[n] = M[n] @ keep - eta * outer(at(n, k) - at(n, v), k)
    return linear(p, "W_o", rmsnorm(torch.stack(found, 1))), M


def self_modifying_mlp(p: P, x: Tensor, dims: Dims, makers: str = "fast") -> Mixed:
    """The same with M(z) = z + W_1 gelu(W_2 z): W_2 = W_2 (alpha - eta k k^T) - eta g_2, and

    W_1 = alpha W_1 - eta g_1. M_eta and M_alpha have one row and no residual. `makers` is the level
    of the four memories that make k, v, eta and alpha.
    """
    z = conv(p, "conv_x", x)
    q = unit(linear(p, "W_q", z))
    levels = dict.fromkeys(("M_k", "M_v", "M_eta", "M_alpha"), makers) | {"M_mem": "fast"}
    M: dict[str, tuple[Tensor, Tensor]] = {}
    for n in levels:
        inside, last = (p[f"{n}.layer{i}.weight"] for i in (1, 2))
        M[n] = (inside.expand(x.shape[0], -1, -1), last.expand(x.shape[0], -1, -1))
    start = dict(M)
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    found = []

    def answer(name: str, W: tuple[Tensor, Tensor], of: Tensor) -> Tensor:
        y = times(W[1], gelu(times(W[0], of)))
        return y if name in ("M_eta", "M_alpha") else of + y

    for t in range(x.shape[1]):
        start = {n: M[n] if t % dims[level] == 0 else start[n] for n, level in levels.items()}
        found.append(answer("M_mem", M["M_mem"], q[:, t]))
        k, v, eta, alpha = (
            answer(n, start[n], z[:, t]) for n in ("M_k", "M_v", "M_eta", "M_alpha")
        )
        k, eta, alpha = unit(k), torch.sigmoid(eta) / x.shape[-1], torch.sigmoid(alpha + 4)
        eta, alpha = eta[..., None], alpha[..., None]
        for n, (inside, last) in M.items():
            h = times(start[n][0], k)
            error = answer(n, start[n], k) - answer(n, start[n], v)
            below = torch.einsum("boh,bo->bh", start[n][1], error) * gelu_slope(h)
            M[n] = (
                inside @ (alpha * eye - eta * outer(k, k)) - eta * outer(below, k),
                alpha * last - eta * outer(error, gelu(h)),
            )
    names = ("layer1.weight", "layer2.weight")
    states = {n: dict(zip(names, W, strict=True)) for n, W in M.items()}
    return linear(p, "W_o", rmsnorm(torch.stack(found, 1))), states


def self_modifying_chunks(p: P, x: Tensor, dims: Dims) -> Mixed:
    return self_modifying_mlp(p, x, dims, "steady")


def times(W: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bij,bj->bi", W, x)
