"""Maps as modules, for weights; those a module uses are copied into it.

In: streams. Out: streams. Parameters are named as in torch. `nn.Embedding` serves where it fits.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from nlc.codegen.library import layernorm
from nlc.codegen.library_products import by_onednn, onednn
from torch import Tensor, nn


def uniform(weight: Tensor, fan_in: int) -> None:
    """Draw from the uniform distribution in +-1/sqrt(fan in)."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    nn.init.uniform_(weight, -bound, bound)


class Linear(nn.Linear):
    """As in torch; large ones go through oneDNN on a CPU: MKL is slow on processors not Intel's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim > 2 and self.large(x):
            return OneDNNLinear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def large(self, x: Tensor) -> bool:
        """Say whether x has so many rows that oneDNN is worth its preparations, and takes it."""
        if torch.compiler.is_compiling() or min(self.weight.shape) < 32:
            return False
        return x.numel() * self.out_features >= 1 << 24 and by_onednn(x, self.weight)


class OneDNNLinear(torch.autograd.Function):
    """x W^T + b, with gradients of every order and transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, W, b):
        return onednn(x, W, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx, dx, dW, db):
        x, W = ctx.saved_tensors
        return F.linear(dx, W, db) + F.linear(x, dW)

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        of_x, of_W, of_b = ctx.needs_input_grad
        # that of torch where this is differentiated again
        product = F.linear if torch.is_grad_enabled() else onednn
        rows, drows = x.flatten(0, -2), dy.flatten(0, -2)
        dx = product(dy, W.mT) if of_x else None
        dW = product(drows.mT, rows.mT) if of_W else None
        return dx, dW, drows.sum(0) if of_b else None


class Conv(nn.Module):
    """Depthwise causal convolution over time; the last tap is the present token."""

    def __init__(self, channels: int, width: int, bias: bool = False, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(channels, 1, width, **new))
        self.bias = nn.Parameter(torch.empty(channels, **new)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        uniform(self.weight, self.weight.shape[-1])
        if self.bias is not None:
            uniform(self.bias, self.weight.shape[-1])

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, channels], past [B, width - 1, channels] -> y, new past."""
        joined = torch.cat((past.to(x.dtype), x), 1)
        y = F.conv1d(joined.mT, self.weight, self.bias, groups=self.weight.shape[0]).mT
        return y, joined[:, x.shape[1] :].to(past.dtype)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, channels] of one token -> y, new past."""
        joined = torch.cat((past.to(x.dtype), x[:, None]), 1)
        y = (joined * self.weight[:, 0].mT).sum(1)
        y = y if self.bias is None else y + self.bias
        return y, joined[:, 1:].to(past.dtype)


def convolve(
    x: Tensor, past: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `Conv`, with weights of each sequence's own: weight [B, channels, 1, width]."""
    joined = torch.cat((past.to(x.dtype), x), 1)
    taps = joined.unfold(1, weight.shape[-1], 1)
    y = (taps * weight[:, None, :, 0]).sum(-1)
    y = y if bias is None else y + bias[:, None]
    return y.to(x.dtype), joined[:, x.shape[1] :].to(past.dtype)


def convolve_step(
    x: Tensor, past: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `convolve`, for one token: x [B, channels]."""
    y, past = convolve(x[:, None], past, weight, bias)
    return y[:, 0], past


class Tensors(nn.Module):
    """Holds parameters by name, without values; whoever holds it draws them."""

    def __init__(self, device=None, dtype=None, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))


def activation(name: str, x: Tensor) -> Tensor:
    """The activation of a map by its name in the spec."""
    match name:
        case "none":
            return x
        case "exp":
            return torch.exp(x)
        case "softplus":
            return torch.logaddexp(x, x.new_zeros(()))
        case _:
            return getattr(F, name)(x)


class Norm(nn.LayerNorm):
    """With gradients of every order: those of torch's own are wrong from the third on."""

    def forward(self, x: Tensor) -> Tensor:
        return layernorm(x, eps=self.eps) * self.weight + self.bias


class MLP(nn.Module):
    """Linear layers with an activation between them; `norm`, then `residual` at the end."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        act: str = "gelu",
        bias: bool = False,
        residual: bool = False,
        norm: type[nn.LayerNorm] | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.act, self.residual, self.layers = act, residual, len(sizes) - 1
        for i in range(self.layers):
            layer = Linear(sizes[i], sizes[i + 1], bias=bias, **new)
            self.add_module(f"layer{i + 1}", layer)
        self.norm = None if norm is None else norm(sizes[-1], **new)

    def reset_parameters(self) -> None:
        for layer in self.children():
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(x)
        for i in range(1, self.layers):
            y = getattr(self, f"layer{i + 1}")(activation(self.act, y))
        y = y if self.norm is None else self.norm(y)
        return x + y if self.residual else y


class GLU(nn.Module):
    """down (act(gate x) * (up x))."""

    def __init__(
        self, d_in: int, hidden: int, d_out: int, act: str = "silu", device=None, dtype=None
    ):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.act = act
        self.gate = nn.Parameter(torch.empty(hidden, d_in, **new))
        self.up = nn.Parameter(torch.empty(hidden, d_in, **new))
        self.down = nn.Parameter(torch.empty(d_out, hidden, **new))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.gate, self.up, self.down):
            uniform(weight, weight.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        gated = activation(self.act, F.linear(x, self.gate)) * F.linear(x, self.up)
        return F.linear(gated, self.down)


class LoRA(nn.Module):
    """up act(down x), with an offset if `bias`; up begins at zero."""

    def __init__(
        self,
        d_in: int,
        rank: int,
        d_out: int,
        act: str = "none",
        bias: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.act, self.biased = act, bias
        self.up: nn.Module | nn.Parameter
        self.down = nn.Parameter(torch.empty(rank, d_in, **new))
        if bias:
            self.up = Linear(rank, d_out, **new)
        else:
            self.up = nn.Parameter(torch.empty(d_out, rank, **new))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        uniform(self.down, self.down.shape[-1])
        if self.biased:
            nn.init.zeros_(self.up.weight)
            uniform(self.up.bias, self.up.in_features)
        else:
            nn.init.zeros_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        y = activation(self.act, F.linear(x, self.down))
        return self.up(y) if self.biased else F.linear(y, self.up)
