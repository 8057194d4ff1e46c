"""Mixers of the papers whose memory is affine in its state, by hand, as `library` has them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tests.references import cores, cores_affine
from tests.references.layers import conv, linear, rmsnorm, silu, unit
from tests.references.mixers import Dims, Mixed, P, out, short, split, state


def low_rank(p: P, of: str, x: Tensor) -> Tensor:
    """Down to a few channels and up again."""
    return linear(p, f"{of}_up", linear(p, f"{of}_down", x))


def decay(p: P, bias: str, raw: Tensor) -> Tensor:
    """exp(-exp(A) softplus(raw + b)); A is one number for each head."""
    rate = p["A"].exp()
    rate = rate[:, None] if raw.dim() == 4 else rate
    return torch.exp(-rate * softplus(raw + p[bias]))


def gla(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (split(p, f"W_{n}", x, dims) for n in "qkv")
    raw = linear(p, "W_2", linear(p, "W_1", x)).unflatten(-1, (dims["heads"], -1))
    alpha = torch.sigmoid(raw) ** (1 / 16)
    y, S = cores.decayed_attention(q, k, v, alpha, state(x, dims))
    return out(p, rmsnorm(y) * p["gain"] * silu(split(p, "W_r", x, dims))), {"S": S}


def mamba2(p: P, x: Tensor, dims: Dims) -> Mixed:
    v = short(p, "v", x, dims)
    B, C = (silu(conv(p, f"conv_{n}", linear(p, f"W_{n}", x))) for n in "BC")
    step = softplus(linear(p, "W_dt", x) + p["b"])
    a = torch.exp(-p["A"].exp() * step)
    shared = [n[:, :, None].expand(*n.shape[:2], dims["heads"], -1) for n in (C, B)]
    y, S = cores.decayed_attention(*shared, step[..., None] * v, a, state(x, dims))
    y = y + p["D"][:, None] * v
    gated = (y * silu(split(p, "W_z", x, dims))).flatten(-2)
    return linear(p, "W_o", rmsnorm(gated) * p["gain"].flatten()), {"S": S}


def kda(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    beta = torch.sigmoid(linear(p, "W_beta", x))
    alpha = decay(p, "b", low_rank(p, "F", x).unflatten(-1, (dims["heads"], -1)))
    y, S = cores.gated_delta_rule(unit(q), unit(k), v, alpha, beta, state(x, dims))
    gate = torch.sigmoid(low_rank(p, "G", x)).unflatten(-1, (dims["heads"], -1))
    return out(p, rmsnorm(y) * p["gain"] * gate), {"S": S}


def gdn2(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    e, w = (torch.sigmoid(split(p, f"W_{n}", x, dims)) for n in "ew")
    alpha = decay(p, "b", low_rank(p, "F", x).unflatten(-1, (dims["heads"], -1)))
    y, S = cores_affine.gated_delta_rule_2(unit(q), unit(k), v, alpha, e, w, state(x, dims))
    gate = silu(low_rank(p, "G", x)).unflatten(-1, (dims["heads"], -1))
    return out(p, rmsnorm(y) * p["gain"] * gate), {"S": S}


def comba(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    b = torch.sigmoid(p["c"])[:, None]
    beta = torch.sigmoid(linear(p, "W_beta", x))
    a = decay(p, "dt", linear(p, "W_dt", x))
    q, k, p_ = unit(q - p["D"][:, None] * b * k), unit(k), b * unit(k)
    y, S = cores_affine.comba(q, k, v, p_, a, beta, state(x, dims))
    return out(p, rmsnorm(y) * p["gain"] * torch.sigmoid(split(p, "W_g", x, dims))), {"S": S}


def gated_deltaproduct(p: P, x: Tensor, dims: Dims) -> Mixed:
    q = unit(short(p, "q", x, dims))
    ks = [unit(short(p, n, x, dims)) for n in ("k1", "k2")]
    vs = [short(p, n, x, dims) for n in ("v1", "v2")]
    betas = [2 * torch.sigmoid(linear(p, n, x)) for n in ("W_b1", "W_b2")]
    a = decay(p, "dt", linear(p, "W_dt", x))
    y, S = cores_affine.gated_delta_product(q, ks, vs, betas, a, state(x, dims))
    return out(p, rmsnorm(y) * p["gain"] * silu(split(p, "W_g", x, dims))), {"S": S}


def longhorn(p: P, x: Tensor, dims: Dims) -> Mixed:
    v = silu(conv(p, "conv_v", linear(p, "W_v", x)))
    q, k = linear(p, "W_q", v), linear(p, "W_k", v)
    step = torch.sigmoid(linear(p, "W_step", linear(p, "W_r", v)) + p["b"])
    first = torch.zeros(x.shape[0], dims["d_v"], dims["d_k"], dtype=x.dtype)
    y, S = cores_affine.longhorn(q, k, v, step, first)
    return linear(p, "W_o", (y + p["D"] * v) * silu(linear(p, "W_z", x))), {"S": S}


def gated_oja(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (unit(short(p, of, x, dims)) for of in "qkv")
    beta = torch.sigmoid(linear(p, "W_beta", x))
    alpha = decay(p, "b", low_rank(p, "F", x).unflatten(-1, (dims["heads"], -1)))
    y, S = cores_affine.gated_oja(q, k, v, alpha, beta, state(x, dims))
    gate = torch.sigmoid(low_rank(p, "G", x)).unflatten(-1, (dims["heads"], -1))
    return out(p, rmsnorm(y) * p["gain"] * gate), {"S": S}
