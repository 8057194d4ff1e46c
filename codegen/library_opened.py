"""Windows in which something learns, and the gradients of what learns in them.

In: the points of a window, products of matrices with tokens, losses. Out: gradients. A slow
window's products are kept until it ends, where nothing differentiates twice; else the two gradients
of a product are apart, so that one is not made for the other's sake.
"""

from __future__ import annotations

from typing import Any

import torch
from nlc.codegen.library_products import matrix_products
from torch import Tensor


class Opened:
    """A window that is being read: the points of what learns from it, their values, its losses.

    `slopes` are gradients of the losses that have been differentiated; `losses` wait for it. `kept`
    says that something outside may ask for a gradient, `twice` that one is differentiated again.

    Where none is, a point's products with tokens are `taken`: what the matrix was given, and what
    came out. Their gradients are kept in `given`, and are one product at the end of the window.
    """

    def __init__(self, kept: bool, twice: bool) -> None:
        self.points: list[Tensor] = []
        self.values: list[Any] = []
        self.slopes: list[Tensor | None] = []
        self.losses: list[Tensor] = []
        self.taken: list[list[tuple[Tensor, Tensor]]] = []
        self.given: list[list[tuple[Tensor, Tensor]]] = []
        self.kept, self.twice = kept, twice

    def point_of(self, value: Any) -> Any:
        """Make a state a point of its own, in which what follows is differentiable."""
        self.values.append(value)
        if isinstance(value, dict):
            return {name: self.point(part) for name, part in value.items()}
        return self.point(value)

    def gradients(self) -> list[Any]:
        """Give the gradients by what they belong to, as its values are given."""
        found = iter(map(whole_gradient, self.points, self.slopes, self.given))
        return [
            {name: next(found) for name in value} if isinstance(value, dict) else next(found)
            for value in self.values
        ]

    def point(self, value: Tensor) -> Tensor:
        """Make one tensor a point."""
        found = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        self.points.append(found)
        self.slopes.append(None)
        self.taken.append([])
        self.given.append([])
        if not (self.twice or value.requires_grad):
            found.taken = self.taken[-1]
        return found

    def add(self, slopes: Any) -> None:
        """Add gradients of the points, and of what came of their products."""
        for i, taken in enumerate(self.taken):
            new, old = next(slopes), self.slopes[i]
            self.slopes[i] = new if old is None else old if new is None else old + new
            for x, _ in taken:
                slope = next(slopes)
                if slope is not None:
                    self.given[i].append((slope, x))
            taken.clear()


def whole_gradient(
    point: Tensor, slope: Tensor | None, given: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Give the gradient of a point: what is known of it, and products over tokens."""
    if not given:
        return torch.zeros_like(point) if slope is None else slope
    dy, x = (
        parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in zip(*given, strict=True)
    )
    whole = slope_of(dy, x)
    return whole if slope is None else slope + whole


def settle(opened: tuple[Opened, ...], deep: bool, keep: bool) -> None:
    """Differentiate the losses that wait, in all points at once, and add to the slopes.

    `deep` gradients are differentiable, `keep` keeps the graph. The losses are those of each.
    """
    asked = []
    for one in opened:
        for point, taken in zip(one.points, one.taken, strict=True):
            asked += [point, *(y for _, y in taken)]
    losses = opened[-1].losses
    if losses and asked:
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        if loss.requires_grad:
            found = iter(
                torch.autograd.grad(
                    loss, asked, create_graph=deep, retain_graph=keep, allow_unused=True
                )
            )
            for one in opened:
                one.add(found)
    for one in opened:
        one.losses = []


def learned_matvecs(matrix: Tensor, x: Tensor) -> Tensor:
    """As `matvecs`, of what learns."""
    front = torch.broadcast_shapes(matrix.shape[:-2], (x.shape[0], *x.shape[2:-1]))
    x = x.expand(front[0], x.shape[1], *front[1:], x.shape[-1])
    taken = getattr(matrix, "taken", None)
    if taken is None or not torch.is_grad_enabled() or matrix.shape[:-2] != front:
        return learned_product(matrix.expand(*front, *matrix.shape[-2:]), x, False)
    y = learned_product(matrix.detach(), x, False)
    y = y if y.requires_grad else y.requires_grad_()
    taken.append((x.detach(), y))
    return y


def learned_product(matrix: Tensor, x: Tensor, turned: bool) -> Tensor:
    """W x for every token, or W^T x: [B, *lead, m, k], [B, T, *lead, k] -> [B, T, *lead, m].

    Its gradients are apart: who asks for that of x does not make that of W. They, and theirs, lie
    in memory as W does.
    """
    if not torch.is_grad_enabled():
        return plain_product(matrix, x, turned)
    y = Applied.apply(x, [matrix], turned)
    return y + Moved.apply(matrix, [x], turned) if matrix.requires_grad else y


class Applied(torch.autograd.Function):
    """W x as a function of x alone."""

    @staticmethod
    def forward(ctx, x, matrix, turned):
        ctx.matrix, ctx.turned = matrix, turned
        return plain_product(matrix[0], x, turned)

    @staticmethod
    def backward(ctx, dy):
        return learned_product(ctx.matrix[0], dy, not ctx.turned), None, None


class Moved(torch.autograd.Function):
    """Zeros, with the gradient of W x as a function of W."""

    @staticmethod
    def forward(ctx, matrix, x, turned):
        ctx.x, ctx.turned = x, turned
        width = matrix.shape[-1 if turned else -2]
        return matrix.new_zeros(()).expand(*x[0].shape[:-1], width)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.x
        return (slope_of(x, dy) if ctx.turned else slope_of(dy, x)), None, None


def plain_product(matrix: Tensor, x: Tensor, turned: bool) -> Tensor:
    """As `learned_product`, without gradients of its own."""
    matrix = matrix if turned else matrix.mT
    if matrix.ndim == 3:
        return matrix_products(x, matrix)
    y = matrix_products(x.movedim(1, -2).flatten(0, -3), matrix.flatten(0, -3))
    return y.unflatten(0, matrix.shape[:-2]).movedim(-2, 1)


def slope_of(dy: Tensor, x: Tensor) -> Tensor:
    """Sum dy x^T over tokens: [B, T, *lead, m], [B, T, *lead, k] -> [B, *lead, m, k]."""
    return Slope.apply(dy, x) if torch.is_grad_enabled() else Slope.of(dy, x)


class Slope(torch.autograd.Function):
    """As `slope_of`; its gradients are products with tokens again."""

    @staticmethod
    def of(dy, x):
        if x.ndim == 3:
            return matrix_products(dy.mT, x)
        dy, x = dy.movedim(1, -2), x.movedim(1, -2)
        found = matrix_products(dy.flatten(0, -3).mT, x.flatten(0, -3))
        return found.unflatten(0, x.shape[:-2])

    @staticmethod
    def forward(ctx, dy, x):
        ctx.save_for_backward(dy, x)
        return Slope.of(dy, x)

    @staticmethod
    def backward(ctx, slope):
        dy, x = ctx.saved_tensors
        of_dy, of_x = ctx.needs_input_grad
        found = learned_product(slope, x, False) if of_dy else None
        return found, learned_product(slope, dy, True) if of_x else None
