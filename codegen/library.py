"""Small functions that emitted modules are made of; those a module uses are copied into it.

In: tensors. Out: tensors. Imports torch only and nothing of nlc: the text of each function stands
in the emitted file as it stands here. Batch and time axes come first, an expression's own axes
last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nlc.codegen.library_products import matrix_products
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Give x in float32 or better: the precision of states and decays."""
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-12) -> Tensor:
    """x / max(||x||, eps)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return Unit.apply(x, dim, eps)
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)


class Unit(torch.autograd.Function):
    """As `unit`; its gradient has nothing along y, where x is longer than eps."""

    @staticmethod
    def forward(ctx, x, dim, eps):
        ctx.save_for_backward(x)
        ctx.dim, ctx.eps = dim, eps
        return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        length = torch.linalg.vector_norm(x, dim=ctx.dim, keepdim=True)
        scale = 1 / length.clamp_min(ctx.eps)
        y = x * scale
        along = (dy * y).sum(ctx.dim, keepdim=True) * (length > ctx.eps)
        # as x lies in memory, in which what made x goes on
        return (y * -along + dy) * scale, None, None


def rmsnorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps)."""
    return x * torch.rsqrt(wide(x).square().mean(dim, keepdim=True) + eps).to(x.dtype)


def layernorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps)."""
    if dim == -1 and not torch.is_grad_enabled():
        return torch.native_layer_norm(wide(x), x.shape[-1:], None, None, eps)[0].to(x.dtype)
    centred = wide(x) - wide(x).mean(dim, keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean(dim, keepdim=True) + eps)).to(x.dtype)


def power(x: Tensor, p: float) -> Tensor:
    """x^p for a p > 0 that is no whole number, with derivatives of 0 at 0."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x**p
    zero = x == 0
    return (x.masked_fill(zero, 1.0) ** p).masked_fill(zero, 0.0)


def root(x: Tensor) -> Tensor:
    """sqrt(x), with a derivative of 0 at 0."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return torch.sqrt(x)
    zero = x == 0
    return torch.sqrt(x.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.logaddexp(x, x.new_zeros(()))


def gelu_slope(x: Tensor) -> Tensor:
    """The derivative of gelu."""
    return gelu_with_slope(x)[1]


def gelu_with_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(x) and its derivative."""
    if torch.is_grad_enabled() and x.requires_grad:
        return GeluWithSlope.apply(x)
    return GeluWithSlope.of(x)


class GeluWithSlope(torch.autograd.Function):
    """x F(x) and F(x) + x F'(x), F the normal distribution; that of it is F'(x) (2 - x^2)."""

    @staticmethod
    def of(x):
        return F.gelu(x), torch.ops.aten.gelu_backward(torch.ones_like(x), x)

    @staticmethod
    def forward(ctx, x):
        y, slope = GeluWithSlope.of(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, slope)
        return y, slope

    @staticmethod
    def backward(ctx, dy, dslope):
        x, slope = ctx.saved_tensors
        if dslope is None:
            return None if dy is None else dy * slope
        square = x * x
        # exp(-x^2 / 2), by the faster of two functions
        bell = torch.exp2(-0.7213475204444817 * square) * (2 - square)
        if dy is None:
            return dslope * bell * 0.3989422804014327
        return torch.addcmul(dy * slope, dslope, bell, value=0.3989422804014327)


def silu_slope(x: Tensor) -> Tensor:
    """The derivative of silu."""
    return silu_with_slope(x)[1]


def silu_with_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """silu(x) and its derivative."""
    if torch.is_grad_enabled() and x.requires_grad:
        return SiluWithSlope.apply(x)
    return SiluWithSlope.of(x)


class SiluWithSlope(torch.autograd.Function):
    """x s and s + x s (1 - s) with s = sigmoid(x); that of it is s (1 - s) (2 + x (1 - 2 s))."""

    @staticmethod
    def of(x):
        return F.silu(x), torch.ops.aten.silu_backward(torch.ones_like(x), x)

    @staticmethod
    def forward(ctx, x):
        y, slope = SiluWithSlope.of(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, slope)
        return y, slope

    @staticmethod
    def backward(ctx, dy, dslope):
        x, slope = ctx.saved_tensors
        if dslope is None:
            return None if dy is None else dy * slope
        s = torch.sigmoid(x)
        bend = (2 + x * (1 - 2 * s)) * (s * (1 - s))
        return dslope * bend if dy is None else torch.addcmul(dy * slope, dslope, bend)


def softmax(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """exp(x) / sum(exp(x))."""
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True))


def number(value: float, like: Tensor) -> Tensor:
    """Give a number as a tensor, in float32 or better."""
    return wide(like.new_full((), value))


def index(n: int, like: Tensor) -> Tensor:
    """0 ... n-1, in float32 or better."""
    return torch.arange(n, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def identity(n: int, like: Tensor) -> Tensor:
    """Give the identity matrix, in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.eye(n, device=like.device, dtype=dtype)


def last_token(x: Tensor) -> Tensor:
    """Give the last token of a sequence: [B, T, ...] -> [B, ...]."""
    return x[:, -1]


def no_tokens(x: Tensor) -> Tensor:
    """Give the sequence without its tokens: [B, T, ...] -> [B, 0, ...]."""
    return x.new_zeros(x.shape[0], 0, *x.shape[2:])


def with_tokens(past: Tensor, x: Tensor) -> Tensor:
    """Put tokens behind those kept so far: [B, n, ...], [B, T, ...] -> [B, n + T, ...]."""
    return torch.cat((past, x.to(past.dtype).expand(past.shape[0], *x.shape[1:])), 1)


def newest(past: Tensor, x: Tensor) -> Tensor:
    """Keep the last token alone, as `with_tokens` keeps all: -> [B, 1, ...]."""
    x = x[:, -1:]
    return x.to(past.dtype).expand(past.shape[0], *x.shape[1:])


def positions(start: int, tokens: int, like: Tensor) -> Tensor:
    """Count the tokens from the sequence's start: [1, T], in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.arange(start, start + tokens, device=like.device, dtype=dtype)[None]


def due(position: Tensor, period: int) -> Tensor:
    """1 at the last token of each period, else 0."""
    return ((position + 1) % period == 0).to(position.dtype)


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def nothing_like(total: Tensor) -> Tensor:
    """Give a sum of nothing yet: one zero, seen as all entries."""
    return total.new_zeros(()).expand_as(total)


def unrecorded() -> bool:
    """Say whether no gradients are recorded: what is made now may be written into later."""
    return not torch.is_grad_enabled()


def scaled_state(state: Tensor, factor: Tensor | float, own: bool) -> Tensor:
    """Multiply a state, in its place where it is the caller's own."""
    return state.mul_(factor) if own else factor * state


def moved_state(state: Tensor, by: Tensor, factor: float, own: bool) -> Tensor:
    """Add `factor` times something to a state, in its place where it is the caller's own."""
    return torch.add(state, by, alpha=factor, out=state if own else None)


def plus_product(state: Tensor, a: Tensor, b: Tensor, factor: float, own: bool) -> Tensor:
    """Add `factor * a * b` to a state, in its place where it is the caller's own."""
    return torch.addcmul(state, a, b, value=factor, out=state if own else None)


def plus_quotient(state: Tensor, a: Tensor, b: Tensor, factor: float, own: bool) -> Tensor:
    """Add `factor * a / b` to a state, in its place where it is the caller's own."""
    return torch.addcdiv(state, a, b, value=factor, out=state if own else None)


def full(value: float, like: Tensor, *shape: int) -> Tensor:
    """Give a number in every entry, in float32 or better."""
    return zeros(like, *shape) + value


def read_linear(x: Tensor, weight: Tensor, lead: int) -> Tensor:
    """W x: x [B, *lead, *more, d_in], weight [B, *lead, d_out, d_in]."""
    if x.ndim == 2 + lead:
        return matvec(weight, x)
    y = x.flatten(1 + lead, -2) @ weight.mT
    return y.unflatten(1 + lead, x.shape[1 + lead : -1])


def concat(*parts: Tensor) -> Tensor:
    """Join along the last axis; the axes in front broadcast."""
    front = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*front, part.shape[-1]) for part in parts], -1)


def solve_vector(matrix: Tensor, right: Tensor) -> Tensor:
    """A^-1 b: [..., n, n], [..., n] -> [..., n]."""
    return torch.linalg.solve(matrix, right.unsqueeze(-1)).squeeze(-1)


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """[..., m, k], [..., k] -> [..., m], as a row times a matrix: the fast side of a product."""
    return (x.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def table_rows(table: Tensor, index: Tensor) -> Tensor:
    """Look up: table [..., n, d] with one per leading axis, index [..., more] -> [..., more, d]."""
    front, more = table.shape[:-2], index.shape[table.ndim - 2 :]
    flat = index.reshape(*index.shape[: len(front)], -1, 1).expand(*front, -1, table.shape[-1])
    return table.gather(-2, flat).reshape(*front, *more, table.shape[-1])


def matvecs(matrix: Tensor, x: Tensor) -> Tensor:
    """One matrix for all tokens: [B, *lead, m, k], [B, T, *lead, k] -> [B, T, *lead, m]."""
    if matrix.shape[:-2] != (x.shape[0], *x.shape[2:-1]):
        front = torch.broadcast_shapes(matrix.shape[:-2], (x.shape[0], *x.shape[2:-1]))
        x = x.expand(front[0], x.shape[1], *front[1:], x.shape[-1])
        matrix = matrix.expand(*front, *matrix.shape[-2:])
    return Matvecs.apply(matrix, x) if torch.is_grad_enabled() else Matvecs.of(matrix, x)


class Matvecs(torch.autograd.Function):
    """As `matvecs`; what comes out, and the gradients, lie in memory as matrices do."""

    @staticmethod
    def of(matrix, x):
        if x.ndim == 3:
            return matrix_products(x, matrix.mT)
        front = matrix.shape[:-2]
        x, matrix = x.movedim(1, -2).flatten(0, -3), matrix.flatten(0, -3)
        return matrix_products(x, matrix.mT).unflatten(0, front).movedim(-2, 1)

    @staticmethod
    def forward(ctx, matrix, x):
        ctx.save_for_backward(matrix, x)
        return Matvecs.of(matrix, x)

    @staticmethod
    def backward(ctx, dy):
        matrix, x = ctx.saved_tensors
        of_matrix, of_x = ctx.needs_input_grad
        front, turned = matrix.shape[:-2], matrix.stride(-1) > matrix.stride(-2)
        if x.ndim > 3:
            x, matrix = x.movedim(1, -2).flatten(0, -3), matrix.flatten(0, -3)
            dy = dy.movedim(1, -2).flatten(0, -3)
        dmatrix = dx = None
        if of_matrix:
            dmatrix = matrix_products(x.mT, dy).mT if turned else matrix_products(dy.mT, x)
        if of_x:
            dx = matrix_products(dy, matrix)
        if len(front) == 1:
            return dmatrix, dx
        dx = None if dx is None else dx.unflatten(0, front).movedim(-2, 1)
        return None if dmatrix is None else dmatrix.unflatten(0, front), dx


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: [..., m], [..., n] -> [..., m, n]."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def outer_sum(a: Tensor, b: Tensor) -> Tensor:
    """Sum a b^T over tokens: a [B, T, ..., m], b [B, T, ..., n] -> [B, ..., m, n]."""
    return torch.einsum("bt...m,bt...n->b...mn", a, b)


def add_outer_sum(
    total: Tensor, a: Tensor, b: Tensor, factor: float = 1.0, begins: bool = False
) -> Tensor:
    """Add a sum of a b^T over tokens to a total [B, ..., m, n], in one product.

    Where it `begins`, the total is 0.
    """
    front = total.shape[:-2]
    if total.ndim > 3 or not a.shape[0] == b.shape[0] == front[0]:
        a, b = (x.movedim(1, -2).expand(*front, -1, -1).flatten(0, -3) for x in (a, b))
        total = total.flatten(0, -3)
    if begins:
        total = matrix_products(a.mT, b if factor == 1.0 else factor * b)
    else:
        total = torch.baddbmm(total, a.mT, b, alpha=factor)
    return total if len(front) == 1 else total.unflatten(0, front)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last axis: x [..., n], angle [..., n/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = torch.cos(angle), torch.sin(angle)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).to(x.dtype)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], per token: [..., n], [...] -> [...]."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def newton_schulz(
    x: Tensor, steps: int, coefficients: tuple[tuple[float, float, float], ...], eps: float
) -> Tensor:
    """Orthogonalise a matrix: X <- a X + (b A + c A^2) X with A = X X^T, from X / ||X||."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + eps)
    for i in range(steps):
        a, b, c = coefficients[i % len(coefficients)]
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def newton_schulz_of_all(
    matrices: list[Tensor],
    steps: int,
    coefficients: tuple[tuple[float, float, float], ...],
    eps: float,
) -> list[Tensor]:
    """Orthogonalise matrices of one shape, some of which may be turned, in one batch."""
    tall = [x.shape[-2] > x.shape[-1] for x in matrices]
    x = torch.stack([y.mT if turned else y for y, turned in zip(matrices, tall, strict=True)])
    shape = x.shape
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + eps)).flatten(0, -3)
    for i in range(steps):
        a, b, c = coefficients[i % len(coefficients)]
        square = x @ x.mT
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    x = x.view(shape)
    return [y.mT if turned else y for y, turned in zip(x.unbind(0), tall, strict=True)]


def eig_values(x: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, falling."""
    return torch.linalg.eigvalsh(x).flip(-1)


def eig_vectors(x: Tensor) -> Tensor:
    """Eigenvectors of a symmetric matrix as columns, their values falling."""
    return torch.linalg.eigh(x).eigenvectors.flip(-1)


def given(x: Tensor | None, default: Tensor) -> Tensor:
    """An input, or its default where the call gives none."""
    return default if x is None else x


def shift(x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """x of n tokens ago: x [B, T, ...], past [B, n, ...] -> shifted [B, T, ...], new past."""
    joined = torch.cat((past.to(x.dtype), x), 1)
    return joined[:, : x.shape[1]], joined[:, x.shape[1] :].to(past.dtype)


def shift_step(x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """x of n tokens ago, for one token: x [B, ...], past [B, n, ...]."""
    return past[:, 0].to(x.dtype), torch.cat((past[:, 1:], x[:, None].to(past.dtype)), 1)
