"""What the mixers of several papers share: projections by heads, short convolutions, ffns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references import titans
from tests.references.layers import conv, heads, linear, silu

P = dict[str, Tensor]
Dims = Mapping[str, int]
Mixed = tuple[Tensor, dict[str, Any]]
Mixer = Callable[[P, Tensor, Dims], Mixed]


def state(x: Tensor, dims: Dims) -> Tensor:
    """An empty matrix for each row and head."""
    return torch.zeros(x.shape[0], dims["heads"], dims["d_v"], dims["d_k"], dtype=x.dtype)


def split(p: P, name: str, x: Tensor, dims: Dims) -> Tensor:
    """W x, [B, T, heads, ...]."""
    return heads(linear(p, name, x), dims["heads"])


def short(p: P, of: str, x: Tensor, dims: Dims) -> Tensor:
    """silu of the short convolution of a projection, by heads."""
    return heads(silu(conv(p, f"conv_{of}", linear(p, f"W_{of}", x))), dims["heads"])


def out(p: P, y: Tensor) -> Tensor:
    return linear(p, "W_o", y.flatten(-2))


def glu(p: P, x: Tensor) -> Tensor:
    gate, up, down = p["F.gate"], p["F.up"], p["F.down"]
    return (silu(x @ gate.mT) * (x @ up.mT)) @ down.mT


def mlp(p: P, x: Tensor) -> Tensor:
    return titans.gelu(x @ p["F.layer1.weight"].mT) @ p["F.layer2.weight"].mT
