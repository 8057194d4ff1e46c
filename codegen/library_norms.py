"""Norms and their gradients as one operation each; those a module uses are copied into it.

Where an inner gradient goes through a norm, outer ones differentiate that again, and levels that
learn within levels once more: these have gradients of every order, where those of torch's own
`layer_norm` are wrong from the third on. In a module that takes such a gradient, what has the name
of a function of `library` stands for it.

In: tensors. Out: tensors, one norm over each row of the given axes.
"""

from __future__ import annotations

import torch
from nlc.codegen.library import wide
from torch import Tensor


def layernorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps)."""
    if dim == -1:
        watched = torch.is_grad_enabled() and x.requires_grad
        apply = Layernorm.apply if watched else Layernorm.of
        return apply(wide(x), eps).to(x.dtype)
    centred = wide(x) - wide(x).mean(dim, keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean(dim, keepdim=True) + eps)).to(x.dtype)


def layernorm_slope(
    x: Tensor, g: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-5
) -> Tensor:
    """The gradient in x of <g, layernorm(x)>."""
    if dim == -1:
        x, g = (x, g) if x.shape == g.shape else torch.broadcast_tensors(x, g)
        watched = torch.is_grad_enabled() and (x.requires_grad or g.requires_grad)
        apply = LayernormSlope.apply if watched else LayernormSlope.of
        return apply(wide(x), wide(g), eps).to(x.dtype)
    centred = wide(x) - wide(x).mean(dim, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(dim, keepdim=True) + eps)
    y, g = centred * scale, wide(g)
    along = g.mean(dim, keepdim=True) + y * (g * y).mean(dim, keepdim=True)
    return ((g - along) * scale).to(x.dtype)


class Layernorm(torch.autograd.Function):
    """As `layernorm`, over the last axis."""

    @staticmethod
    def of(x, eps):
        return torch.native_layer_norm(x, x.shape[-1:], None, None, eps)[0]

    @staticmethod
    def forward(ctx, x, eps):
        y, *moments = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(x, *moments)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, grad):
        x, *moments = ctx.saved_tensors
        if torch.is_grad_enabled():
            # this is differentiated again
            return LayernormSlope.apply(x, grad, ctx.eps), None
        return through_layernorm(x, grad, *moments), None


def through_layernorm(x: Tensor, g: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """(g - mean(g) - y mean(g y)) s, with y = layernorm(x) = (x - mean) s."""
    only = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(
        g, x, x.shape[-1:], mean, scale, None, None, only
    )[0]


class LayernormSlope(torch.autograd.Function):
    """f = (g - mean(g) - y mean(g y)) s, with y = layernorm(x) and its scale s, over the last axis.

    As a matrix it is symmetric, so its gradient in g is itself; that in x comes of y and of s.
    """

    @staticmethod
    def of(x, g, eps):
        _, *moments = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        return through_layernorm(x, g, *moments)

    @staticmethod
    def forward(ctx, x, g, eps):
        y, *moments = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        f = through_layernorm(x, g, *moments)
        ctx.save_for_backward(x, g, y, f, *moments)
        ctx.eps = eps
        return f

    @staticmethod
    def backward(ctx, h):
        x, g, y, f, mean, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            # this is differentiated again, and then all of them hang on x
            y, f = Layernorm.apply(x, ctx.eps), LayernormSlope.apply(x, g, ctx.eps)
            scale = torch.rsqrt(x.var(-1, correction=0, keepdim=True) + ctx.eps)
            back = LayernormSlope.apply(x, h, ctx.eps)
        else:
            back = through_layernorm(x, h, mean, scale)
        if not ctx.needs_input_grad[0]:
            return None, back, None
        total = y * (f * h).mean(-1, keepdim=True)
        total = torch.addcmul(total, back, (g * y).mean(-1, keepdim=True))
        total = torch.addcmul(total, f, (h * y).mean(-1, keepdim=True))
        return total * -scale, back, None
