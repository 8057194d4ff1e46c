"""Mixers whose memory is more than one matrix with one write, by hand, as `library` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references import titans
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
