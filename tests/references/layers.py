"""Pieces that several papers' models share, written plainly over whole sequences [B, T, ...]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def within(p: Parameters, prefix: str) -> dict[str, Tensor]:
    """The parameters of one layer, by their names in it."""
    return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    y = torch.einsum("oi,...i->...o", p[f"{name}.weight"], x)
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def heads(x: Tensor, count: int) -> Tensor:
    """[B, T, H*d] -> [B, T, H, d]."""
    return x.reshape(*x.shape[:-1], count, -1)


def unit(x: Tensor, eps: float = 1e-12) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=eps)


def rmsnorm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def layernorm(x: Tensor, eps: float = 1e-5) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def shift(x: Tensor, n: int = 1) -> Tensor:
    """x of n tokens ago, zeros before the start."""
    return torch.cat([torch.zeros_like(x[:, :n]), x], dim=1)[:, : x.shape[1]]


def conv(p: Parameters, name: str, x: Tensor) -> Tensor:
    """Depthwise causal convolution of x [B, T, channels]; the last tap is the present token."""
    weight = p[f"{name}.weight"][:, 0]
    width = weight.shape[-1]
    y = sum(shift(x, width - 1 - j) * weight[:, j] for j in range(width))
    assert isinstance(y, Tensor)
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def rope(x: Tensor, base: float = 10000.0, start: int = 0) -> Tensor:
    """Rotate neighbouring pairs of x [B, T, H, d] by position times base^(-2i/d)."""
    d = x.shape[-1]
    frequency = base ** (-torch.arange(0, d, 2, dtype=x.dtype) / d)
    position = torch.arange(start, start + x.shape[1], dtype=x.dtype)
    angle = (position[:, None] * frequency)[None, :, None]
    pairs = torch.complex(x[..., 0::2], x[..., 1::2])
    turned = pairs * torch.complex(angle.cos(), angle.sin())
    return torch.stack([turned.real, turned.imag], dim=-1).flatten(-2)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all tokens of -log softmax(logits)[target]."""
    return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
