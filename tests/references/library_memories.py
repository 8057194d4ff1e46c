"""Mixers whose memory is more than one matrix with one write, by hand, as `library` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references import cores_memories, titans
from tests.references.layers import linear, rmsnorm, silu, unit
from tests.references.mixers import Dims, Mixed, P, out, short, split, state


def titans_linear(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    theta, eta = (torch.sigmoid(linear(p, f"W_{n}", x)) for n in ("theta", "eta"))
    alpha = torch.sigmoid(linear(p, "W_alpha", x) - 4)
    first = state(x, dims)
    y, M, S = titans.linear_memory(unit(q), unit(k), v, theta, eta, alpha, first, first)
    y = rmsnorm(y) * p["gain"] * silu(split(p, "W_g", x, dims))
    return out(p, y), {"M": M, "M.S": S}


def omega(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    alpha = torch.sigmoid(linear(p, "W_alpha", x) + 4)
    gamma = torch.sigmoid(linear(p, "W_gamma", x)) / dims["window"]

    def phi(z: Tensor) -> Tensor:
        squares = torch.einsum("bthi,bthj->bthij", z, z).flatten(-2)
        return torch.cat([p["a_1"] * z, p["a_2"] * squares], -1)

    first = state(x, {**dims, "d_k": dims["features"]})
    y, M = cores_memories.omega_rule(
        phi(unit(q)), unit(phi(unit(k))), v, alpha, gamma, first, dims["window"]
    )
    return out(p, rmsnorm(y) * p["gain"] * silu(split(p, "W_g", x, dims))), {"M": M}


def mesanet(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k = (unit(short(p, of, x, dims)) for of in "qk")
    v = split(p, "W_v", x, dims)
    beta, gamma = (torch.sigmoid(linear(p, f"W_{n}", x)) for n in ("beta", "gamma"))
    strength = torch.nn.functional.softplus(p["L"]) + 0.25
    y, G, H = cores_memories.mesa(q, k, v, gamma, beta, strength)
    return out(p, rmsnorm(y) * p["gain"]), {"G": G, "H": H}
