"""RWKV-7 (2503.14456, eqs. 3-24) by hand: the whole model over whole sequences.

Where paper and official code differ, as in the value residual, this follows the code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references import cores
from tests.references.layers import heads, layernorm, linear, shift, unit, within

P = dict[str, Tensor]


def norm(p: P, x: Tensor) -> Tensor:
    return layernorm(x) * p["gain"] + p["offset"]


def mixed(p: P, name: str, x: Tensor) -> Tensor:
    """Token shift: x moved towards the token before it."""
    return x + (shift(x) - x) * p[name]


def low_rank(p: P, gate: str, x: Tensor, count: int) -> Tensor:
    """x A B by heads, without the bias."""
    return heads(linear(p, f"{gate}2", linear(p, f"{gate}1", x)), count)


def time_mix(
    p: P, x: Tensor, v_first: Tensor | None, dims: Mapping[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    h = dims["heads"]
    r, k, v = (heads(linear(p, f"W_{of}", mixed(p, f"x_{of}", x)), h) for of in "rkv")
    if v_first is None:
        v_first = v
    else:
        nu = torch.sigmoid(p["v0"] + low_rank(p, "v", mixed(p, "x_v", x), h))
        v = nu * v_first + (1 - nu) * v
    a = torch.sigmoid(p["a0"] + low_rank(p, "a", mixed(p, "x_a", x), h))
    inner = torch.tanh(linear(p, "w1", mixed(p, "x_w", x)))
    w = torch.exp(-math.exp(-0.5) * torch.sigmoid(p["w0"] + heads(linear(p, "w2", inner), h)))
    g = heads(linear(p, "g2", torch.sigmoid(linear(p, "g1", mixed(p, "x_g", x)))), h)
    kappa = unit(k * p["k_k"])
    k = k * (1 + (a - 1) * p["k_a"])
    S = torch.zeros(x.shape[0], h, dims["d_v"], dims["d_k"], dtype=x.dtype)
    y, S = cores.rwkv7(r, w, k, v, kappa, a, S)
    y = layernorm(y, 64e-5) * p["gain"] + p["offset"]
    y = y + (r * p["r_k"] * k).sum(-1, keepdim=True) * v
    return linear(p, "W_o", (g * y).flatten(-2)), v_first, S


def channel_mix(p: P, x: Tensor) -> Tensor:
    return linear(p, "W_v", torch.relu(linear(p, "W_k", mixed(p, "x_k", x))) ** 2)


def model(p: P, tokens: Tensor, dims: Mapping[str, int]) -> tuple[Tensor, dict[str, Any]]:
    x = norm(within(p, "ln."), p["embed.weight"][tokens])
    v_first, states = None, {}
    for turn in range(4):
        at = f"repeat.{turn}"
        y, v_first, S = time_mix(
            within(p, f"{at}.time_mix."), norm(within(p, f"{at}.ln."), x), v_first, dims
        )
        x = x + y
        x = x + channel_mix(within(p, f"{at}.channel_mix."), norm(within(p, f"{at}.ln_1."), x))
        states[str(turn)] = {"time_mix": {"S": S}}
    return linear(p, "unembed", norm(within(p, "ln_1."), x)), {"repeat": states}
