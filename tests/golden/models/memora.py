"""memora: Memora: a deep memory of positive weights, kept by KL divergence (MIRAS, eq. 27)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    fast: every 1 token, chunk 16
    slow: every 1 step
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def matrix_products(a: Tensor, b: Tensor) -> Tensor:
    """[B, m, k], [B, k, n] -> [B, m, n], as `torch.bmm`.

    On a CPU that is MKL's product. Large ones go through oneDNN where no gradient of them is
    recorded: on an AMD EPYC it takes half the time.
    """
    work = a.shape[1] * a.shape[2] * b.shape[2]
    if work < 1 << 21 or a.shape[2] < 32 or torch.is_grad_enabled() or not by_onednn(a, b):
        return torch.bmm(a, b)
    found = [onednn(x, y.mT) for x, y in zip(a, b, strict=True)]
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


def onednn(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """x W^T + b, of which no gradient is recorded."""
    # of matrices with gaps between rows oneDNN has no fast product
    W = W if W.is_contiguous() or W.mT.is_contiguous() else W.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")


def by_onednn(a: Tensor, b: Tensor) -> bool:
    """Say whether oneDNN takes these, and nothing has to see how they are multiplied."""
    kinds = a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu"
    mkldnn = torch.backends.mkldnn
    there = mkldnn.is_available() and mkldnn.enabled and torch.backends.mkl.is_available()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not kinds or not there:
        return False
    if torch._C._len_torch_dispatch_stack() or torch.overrides.has_torch_function((a, b)):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


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
    if dim == -1:
        watched = torch.is_grad_enabled() and x.requires_grad
        apply = Layernorm.apply if watched else Layernorm.of
        return apply(wide(x), eps).to(x.dtype)
    centred = wide(x) - wide(x).mean(dim, keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean(dim, keepdim=True) + eps)).to(x.dtype)


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


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """[..., m, k], [..., k] -> [..., m], as a row times a matrix: the fast side of a product."""
    return (x.unsqueeze(-2) @ matrix.mT).squeeze(-2)


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


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], per token: [..., n], [...] -> [...]."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


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


class Entries(NamedTuple):
    """The course over one chunk: each state by part, after its tokens [B, C, ...] and before."""

    after: list[dict[str, Tensor]]
    first: list[dict[str, Tensor]]
    start: dict[str, Tensor]


def scan_entries(gate: Any, added: Any, first: Tensor, tokens: int) -> Tensor:
    """Z_t = gate_t * Z_{t-1} + added_t for all tokens of a chunk: [B, tokens, ...]."""
    if isinstance(gate, float) and gate == 1.0 and added is None:
        return first.unsqueeze(1).expand(-1, tokens, *first.shape[1:])
    shape = (first.shape[0], tokens, *first.shape[1:])
    if gate is None:
        return first.new_zeros(shape) if added is None else added.to(first.dtype).expand(shape)
    found, Z = [], first
    gates = gate.unbind(1) if isinstance(gate, Tensor) else (gate,)
    more = (None,) if added is None else added.unbind(1)
    for t in range(tokens):
        g, x = gates[t if len(gates) > 1 else 0], more[t if len(more) > 1 else 0]
        Z = g * Z if x is None else g * Z + x
        found.append(Z)
    return torch.stack(found, 1)


def before_entries(course: Tensor, first: Tensor) -> Tensor:
    """A state before each token of a chunk, from its course and what it was before the first."""
    return torch.cat([first.unsqueeze(1), course[:, :-1]], 1)


def run_entries(
    moves: Any,
    streams: list[Tensor],
    states: list[dict[str, Tensor]],
    start: dict[str, Tensor],
    position: int,
    chunk: int,
    ends: tuple[int, Any] | None = None,
    reset: tuple[int, list[dict[str, Tensor]]] | None = None,
) -> tuple[Any, ...]:
    """Run a sequence: its course, the states after it and the one before the open chunk.

    `ends` has a period and how a token at whose end it ends moves; `reset` a period and the states
    to go back to.
    """
    course, at, tokens = [], 0, streams[0].shape[1]
    while at < tokens:
        length = min(chunk - position % chunk, tokens - at)
        now = [x[:, at : at + length] for x in streams]
        at, position, first = at + length, position + length, states
        last = ends is not None and position % ends[0] == 0
        after: list[list[dict[str, Tensor]]] = []
        if length > last:
            inner = [x[:, : length - last] for x in now]
            after.append(moves(*inner, *states, start))
            states = [{part: Z[:, -1] for part, Z in state.items()} for state in after[0]]
        if ends is not None and last:
            states = ends[1](*[x[:, -1] for x in now], *states, start, position)
            after.append([{p: Z.unsqueeze(1) for p, Z in state.items()} for state in states])
        course.append(Entries(joined_entries(after), first, start))
        if reset is not None and position % reset[0] == 0:
            states = reset[1]
        if position % chunk == 0:
            start = states[0]
    return course, *states, start


def joined_entries(pieces: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """Join what tokens one after another have left."""
    if len(pieces) == 1:
        return pieces[0]
    by_state = zip(*pieces, strict=True)
    return [{p: torch.cat([x[p] for x in found], 1) for p in found[0]} for found in by_state]


def over_entries(read: Any, course: list[Entries], when: str, state: int, *q: Tensor) -> Tensor:
    """Read a course: `read(*q, parts)` for each chunk, with a state at its tokens, by part."""
    found, at = [], 0
    for piece in course:
        length = next(iter(piece.after[state].values())).shape[1]
        here = [x[:, at : at + length] for x in q]
        found.append(read(*here, parts_of_entries(piece, when, state)))
        at += length
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def parts_of_entries(piece: Entries, when: str, state: int) -> dict[str, Tensor]:
    """A state at every token of a chunk, by part: after it, before it, or before the chunk."""
    after = piece.after[state]
    if when == "after":
        return after
    if when == "before":
        return {p: before_entries(Z, piece.first[state][p]) for p, Z in after.items()}
    return {p: piece.start[p].unsqueeze(1).expand_as(Z) for p, Z in after.items()}


class MixerM(nn.Module):
    """Memory M: mlp(d_k -> units -> d_k, act = gelu), one per heads; every 1 token.

    L.layer1 = L.layer1 @ diag(alpha) - grad.layer1 @ diag(eta)   (spec.nl:46)
    L.layer2 = diag(alpha) @ L.layer2 - diag(eta) @ grad.layer2   (spec.nl:47)
    M = units * softmax(L, over = units)   (spec.nl:48)
    state  M.layer1.weight [B, heads, units, d_k]
    state  M.layer2.weight [B, heads, d_k, units]
    state  M.L.layer1.weight [B, heads, units, d_k]
    state  M.L.layer2.weight [B, heads, d_k, units]
    runs   scan: entry by entry, as what is added is known at the chunk's start
    """

    def initial(
        self, batch: int, like: Tensor, L_0_layer1_weight: Tensor, L_0_layer2_weight: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the state at the start."""
        value = wide(64.0 * torch.softmax(L_0_layer1_weight, -2)).expand(batch, 4, 64, 16)
        value_1 = wide(64.0 * torch.softmax(L_0_layer2_weight, -1)).expand(batch, 4, 16, 64)
        M = {"layer1.weight": value, "layer2.weight": value_1}
        M_L = {
            "layer1.weight": torch.log(value).expand(batch, 4, 64, 16),
            "layer2.weight": torch.log(value_1).expand(batch, 4, 16, 64),
        }
        return M, M_L

    def forward(
        self,
        alpha: Tensor,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        g: Tensor,
        b: Tensor,
        M: dict[str, Tensor],
        M_L: dict[str, Tensor],
        M_start: dict[str, Tensor],
        position: int,
    ) -> tuple[list[Entries], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Move over a sequence, a chunk of 16 tokens at a time, entry by entry."""

        def moves(alpha, k, v, eta, M, M_L, M_start):
            """The states after each token of a chunk, from those before it."""
            layer2_weight = M_start["layer2.weight"]
            value = alpha.unsqueeze(3)
            k_1 = wide(k)
            gelu, slope = gelu_with_slope(matvecs(M_start["layer1.weight"], k_1))
            value_1 = matvecs(layer2_weight, gelu)
            value_2 = g.unflatten(-1, (4, 16))
            value_3 = layernorm_slope(
                value_1,
                2.0 * (k + (layernorm(value_1) * value_2 + b.unflatten(-1, (4, 16))) - v) * value_2,
            )
            value_4 = eta.unsqueeze(3)
            M_L_layer1_weight = scan_entries(
                wide(value),
                -(outer(matvecs(layer2_weight.mT, value_3) * slope, k_1) * value_4),
                M_L["layer1.weight"],
                alpha.shape[1],
            )
            M_1 = 64.0 * torch.softmax(M_L_layer1_weight, -2)
            M_layer1_weight = scan_entries(None, M_1, M["layer1.weight"], alpha.shape[1])
            M_L_layer2_weight = scan_entries(
                wide(value.mT),
                -(outer(gelu, value_3) * value_4).mT,
                M_L["layer2.weight"],
                alpha.shape[1],
            )
            M_2 = 64.0 * torch.softmax(M_L_layer2_weight, -1)
            M_layer2_weight = scan_entries(None, M_2, M["layer2.weight"], alpha.shape[1])
            return [
                {"layer1.weight": M_layer1_weight, "layer2.weight": M_layer2_weight},
                {"layer1.weight": M_L_layer1_weight, "layer2.weight": M_L_layer2_weight},
            ]

        path, M, M_L, M_start = run_entries(
            moves, [alpha, k, v, eta], [M, M_L], M_start, position, 16
        )
        return path, M, M_L, M_start

    def read(self, q: Tensor, path: list[Entries]) -> Tensor:
        """Read M(q) at every token, after its update."""

        def read(q, parts):
            value = matvec(parts["layer2.weight"], F.gelu(matvec(parts["layer1.weight"], wide(q))))
            result = value.to(q.dtype)
            return result

        return over_entries(read, path, "after", 0, q)

    def step(
        self,
        alpha: Tensor,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        g: Tensor,
        b: Tensor,
        M: dict[str, Tensor],
        M_L: dict[str, Tensor],
        M_start: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Move by one token."""
        layer2_weight = M_start["layer2.weight"]
        value = alpha.unsqueeze(2)
        k_1 = wide(k)
        gelu, slope = gelu_with_slope(matvec(M_start["layer1.weight"], k_1))
        value_1 = matvec(layer2_weight, gelu)
        value_2 = g.unflatten(-1, (4, 16))
        value_3 = torch.addcmul(wide(b.unflatten(-1, (4, 16))), layernorm(value_1), wide(value_2))
        value_4 = layernorm_slope(value_1, 2.0 * (k + value_3 - v) * value_2)
        value_5 = eta.unsqueeze(2)
        # L.layer1 = L.layer1 @ diag(alpha) - grad.layer1 @ diag(eta)   (spec.nl:46)
        M_L_layer1_weight = (M_L["layer1.weight"] * value).addcmul_(
            (matvec(layer2_weight.mT, value_4) * slope).unsqueeze(3),
            value_5 * k_1.unsqueeze(2),
            value=-1,
        )
        # M = units * softmax(L, over = units)   (spec.nl:48)
        M_layer1_weight = 64.0 * torch.softmax(M_L_layer1_weight, -2)
        # L.layer2 = diag(alpha) @ L.layer2 - diag(eta) @ grad.layer2   (spec.nl:47)
        product = M_L["layer2.weight"].mT * value
        M_L_layer2_weight = product.mT - (outer(gelu, value_4) * value_5).mT
        M_layer2_weight = 64.0 * torch.softmax(M_L_layer2_weight, -1)
        M = {"layer1.weight": M_layer1_weight, "layer2.weight": M_layer2_weight}
        M_L = {"layer1.weight": M_L_layer1_weight, "layer2.weight": M_L_layer2_weight}
        return M, M_L

    def read_step(self, q: Tensor, M: dict[str, Tensor]) -> Tensor:
        """Read M(q) at one token."""
        return matvec(M["layer2.weight"], F.gelu(matvec(M["layer1.weight"], wide(q)))).to(q.dtype)


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = Linear(128, 64, bias=False, **new)
        self.W_k = Linear(128, 64, bias=False, **new)
        self.W_v = Linear(128, 64, bias=False, **new)
        self.W_g = Linear(128, 64, bias=False, **new)
        self.W_o = Linear(64, 128, bias=False, **new)
        self.conv_q = Conv(64, 4, **new)
        self.conv_k = Conv(64, 4, **new)
        self.conv_v = Conv(64, 4, **new)
        self.W_eta = LoRA(128, 32, 64, act="none", bias=True, **new)
        self.W_alpha = LoRA(128, 32, 64, act="none", bias=True, **new)
        self.L_0 = Tensors(**new)
        self.L_0.layer1 = Tensors(weight=(4, 64, 16), **new)
        self.L_0.layer2 = Tensors(weight=(4, 16, 64), **new)
        self.g = nn.Parameter(torch.empty(64, **new))
        self.b = nn.Parameter(torch.empty(64, **new))
        self.gain = nn.Parameter(torch.empty(16, **new))
        self.M = MixerM()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_g.reset_parameters()
        self.W_o.reset_parameters()
        self.conv_q.reset_parameters()
        self.conv_k.reset_parameters()
        self.conv_v.reset_parameters()
        self.W_eta.reset_parameters()
        self.W_alpha.reset_parameters()
        nn.init.normal_(self.L_0.layer1.weight, std=1.0)
        nn.init.normal_(self.L_0.layer2.weight, std=1.0)
        nn.init.ones_(self.g)
        nn.init.zeros_(self.b)
        nn.init.ones_(self.gain)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        M, M_L = self.M.initial(batch, like, self.L_0.layer1.weight, self.L_0.layer2.weight)
        return {
            "M": M,
            "M.L": M_L,
            "M.start": M,
            "conv_q": like.new_zeros(batch, 3, 64),
            "conv_k": like.new_zeros(batch, 3, 64),
            "conv_v": like.new_zeros(batch, 3, 64),
            "position": 0,
        }

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        position = state["position"]
        convolved, conv_q = self.conv_q(
            self.W_q(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_q"]
        )
        # q     = unit(silu(conv_q(W_q(x))))   (spec.nl:34)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 16)))))
        convolved, conv_k = self.conv_k(
            self.W_k(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_k"]
        )
        # k     = unit(silu(conv_k(W_k(x))))   (spec.nl:35)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 16)))))
        convolved, conv_v = self.conv_v(
            self.W_v(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_v"]
        )
        # v     = silu(conv_v(W_v(x)))   (spec.nl:36)
        v = F.silu(wide(convolved.unflatten(-1, (4, 16))))
        # eta   = 0.1 * sigmoid(W_eta(x)) / d_k   (spec.nl:37)
        eta = 0.1 * torch.sigmoid(wide(self.W_eta(x).unflatten(-1, (4, 16)))) / 16.0
        # alpha = 1 - sigmoid(W_alpha(x) - 8) / 2   (spec.nl:38)
        alpha = 1.0 - torch.sigmoid(wide(self.W_alpha(x).unflatten(-1, (4, 16))) - 8.0) / 2.0
        M_path, M, M_L, M_start = self.M(
            alpha, k, v, eta, self.g, self.b, state["M"], state["M.L"], state["M.start"], position
        )
        # y   = q + layernorm(M(q), gain = g, offset = b)   (spec.nl:53)
        product = layernorm(self.M.read(q, M_path)) * self.g.unflatten(-1, (4, 16))
        y = q + (product + self.b.unflatten(-1, (4, 16)))
        # out = W_o(rmsnorm(y, gain = gain) * silu(W_g(x)))   (spec.nl:54)
        value = F.silu(self.W_g(x).unflatten(-1, (4, 16)))
        product = rmsnorm(y) * self.gain.unsqueeze(0) * value
        out = self.W_o(product.flatten(-2).to(x.dtype))
        state = {
            "M": M,
            "M.L": M_L,
            "M.start": M_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "conv_v": conv_v,
            "position": position + x.shape[1],
        }
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        M_start = state["M.start"]
        position = state["position"]
        convolved, conv_q = self.conv_q.step(
            self.W_q(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_q"]
        )
        # q     = unit(silu(conv_q(W_q(x))))   (spec.nl:34)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 16)))))
        convolved, conv_k = self.conv_k.step(
            self.W_k(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_k"]
        )
        # k     = unit(silu(conv_k(W_k(x))))   (spec.nl:35)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 16)))))
        convolved, conv_v = self.conv_v.step(
            self.W_v(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_v"]
        )
        # v     = silu(conv_v(W_v(x)))   (spec.nl:36)
        v = F.silu(wide(convolved.unflatten(-1, (4, 16))))
        # eta   = 0.1 * sigmoid(W_eta(x)) / d_k   (spec.nl:37)
        eta = 0.1 * torch.sigmoid(wide(self.W_eta(x).unflatten(-1, (4, 16)))) / 16.0
        # alpha = 1 - sigmoid(W_alpha(x) - 8) / 2   (spec.nl:38)
        alpha = 1.0 - torch.sigmoid(wide(self.W_alpha(x).unflatten(-1, (4, 16))) - 8.0) / 2.0
        M, M_L = self.M.step(alpha, k, v, eta, self.g, self.b, state["M"], state["M.L"], M_start)
        # y   = q + layernorm(M(q), gain = g, offset = b)   (spec.nl:53)
        product = layernorm(self.M.read_step(q, M)) * self.g.unflatten(-1, (4, 16))
        y = q + (product + self.b.unflatten(-1, (4, 16)))
        # out = W_o(rmsnorm(y, gain = gain) * silu(W_g(x)))   (spec.nl:54)
        value = F.silu(self.W_g(x).unflatten(-1, (4, 16)))
        product = rmsnorm(y) * self.gain.unsqueeze(0) * value
        out = self.W_o(product.flatten(-2).to(x.dtype))
        M_start = M if (position + 1) % 16 == 0 else M_start
        state = {
            "M": M,
            "M.L": M_L,
            "M.start": M_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "conv_v": conv_v,
            "position": position + 1,
        }
        return out, state


class Ffn(nn.Module):
    """Block ffn: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.F = GLU(128, 384, 128, act="silu", **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.F.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # out = F(x)   (spec.nl:60)
        out = self.F(x)
        state = {}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        out = self.F(x)
        state = {}
        return out, state


class ModelRepeat(nn.Module):
    """One pass of `repeat`."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.mixer = Mixer(**new)
        self.ffn = Ffn(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.mixer.reset_parameters()
        self.ffn.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "mixer": self.mixer.initial_state(batch, like),
            "ffn": self.ffn.initial_state(batch, like),
        }

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:67)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:67)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:68)
        ffn_out, ffn = self.ffn(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:68)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:67)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:67)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:68)
        ffn_out, ffn = self.ffn.step(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:68)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state


class Model(nn.Module):
    """The model memora: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = Linear(128, 256, bias=False, **new)
        self.repeat = nn.ModuleList(ModelRepeat(**new) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.normal_(self.embed.weight, std=0.02)
        self.unembed.reset_parameters()
        for layer in self.repeat:
            layer.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "repeat": {
                str(i): layer.initial_state(batch, like) for i, layer in enumerate(self.repeat)
            },
        }

    def forward(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: tokens [B, T]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:65)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:70)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:65)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:70)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
