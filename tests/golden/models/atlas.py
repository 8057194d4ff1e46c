"""atlas: ATLAS: the Omega rule with momentum, orthogonalised (arXiv:2505.23735, eqs. 32-33)

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


def number(value: float, like: Tensor) -> Tensor:
    """Give a number as a tensor, in float32 or better."""
    return wide(like.new_full((), value))


def positions(start: int, tokens: int, like: Tensor) -> Tensor:
    """Count the tokens from the sequence's start: [1, T], in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.arange(start, start + tokens, device=like.device, dtype=dtype)[None]


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def concat(*parts: Tensor) -> Tensor:
    """Join along the last axis; the axes in front broadcast."""
    front = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*front, part.shape[-1]) for part in parts], -1)


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


def shift(x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """x of n tokens ago: x [B, T, ...], past [B, n, ...] -> shifted [B, T, ...], new past."""
    joined = torch.cat((past.to(x.dtype), x), 1)
    return joined[:, : x.shape[1]], joined[:, x.shape[1] :].to(past.dtype)


def shift_step(x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """x of n tokens ago, for one token: x [B, ...], past [B, n, ...]."""
    return past[:, 0].to(x.dtype), torch.cat((past[:, 1:], x[:, None].to(past.dtype)), 1)


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
    """Memory M: mlp(features -> d_v -> d_v, act = gelu), one per heads; every 1 token.

    S = theta * S + grad   (spec.nl:57)
    M = alpha * M - eta * newton_schulz(S)   (spec.nl:58)
    state  M.layer1.weight [B, heads, d_v, features]
    state  M.layer2.weight [B, heads, d_v, d_v]
    state  M.S.layer1.weight [B, heads, d_v, features]
    state  M.S.layer2.weight [B, heads, d_v, d_v]
    runs   scan: entry by entry, as what is added is known at the chunk's start
    """

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.layer1 = Tensors(weight=(2, 32, 20), **new)
        self.layer2 = Tensors(weight=(2, 32, 32), **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial state anew."""
        uniform(self.layer1.weight, 20)
        uniform(self.layer2.weight, 32)

    def initial(self, batch: int, like: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the state at the start."""
        M = {
            "layer1.weight": wide(self.layer1.weight).expand(batch, 2, 32, 20),
            "layer2.weight": wide(self.layer2.weight).expand(batch, 2, 32, 32),
        }
        M_S = {
            "layer1.weight": zeros(like, batch, 2, 32, 20),
            "layer2.weight": zeros(like, batch, 2, 32, 32),
        }
        return M, M_S

    def forward(
        self,
        theta: Tensor,
        gamma_3_ago: Tensor,
        phi_k_3_ago: Tensor,
        v_3_ago: Tensor,
        gamma_2_ago: Tensor,
        phi_k_2_ago: Tensor,
        v_2_ago: Tensor,
        gamma_1_ago: Tensor,
        phi_k_1_ago: Tensor,
        v_1_ago: Tensor,
        gamma: Tensor,
        phi_k: Tensor,
        v: Tensor,
        alpha: Tensor,
        eta: Tensor,
        place: Tensor,
        M: dict[str, Tensor],
        M_S: dict[str, Tensor],
        M_start: dict[str, Tensor],
        position: int,
    ) -> tuple[list[Entries], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Move over a sequence, a chunk of 16 tokens at a time, entry by entry."""

        def moves(
            theta,
            gamma_3_ago,
            phi_k_3_ago,
            v_3_ago,
            gamma_2_ago,
            phi_k_2_ago,
            v_2_ago,
            gamma_1_ago,
            phi_k_1_ago,
            v_1_ago,
            gamma,
            phi_k,
            v,
            alpha,
            eta,
            place,
            M,
            M_S,
            M_start,
        ):
            """The states after each token of a chunk, from those before it."""
            layer1_weight = M_start["layer1.weight"]
            layer2_weight = M_start["layer2.weight"]
            value = wide(theta.unsqueeze(3).unsqueeze(4))
            value_1 = number(1.0, theta)
            phi_k_3_ago = wide(phi_k_3_ago)
            gelu, slope = gelu_with_slope(matvecs(layer1_weight, phi_k_3_ago))
            product = torch.where(place >= 3.0, value_1, 0.0).unsqueeze(2) * gamma_3_ago
            product = 2.0 * (product.unsqueeze(3) * (matvecs(layer2_weight, gelu) - v_3_ago))
            phi_k_2_ago = wide(phi_k_2_ago)
            gelu_1, slope_1 = gelu_with_slope(matvecs(layer1_weight, phi_k_2_ago))
            product_1 = torch.where(place >= 2.0, value_1, 0.0).unsqueeze(2) * gamma_2_ago
            product_2 = 2.0 * (product_1.unsqueeze(3) * (matvecs(layer2_weight, gelu_1) - v_2_ago))
            phi_k_1_ago = wide(phi_k_1_ago)
            gelu_2, slope_2 = gelu_with_slope(matvecs(layer1_weight, phi_k_1_ago))
            product_3 = torch.where(place >= 1.0, value_1, 0.0).unsqueeze(2) * gamma_1_ago
            product_4 = 2.0 * (product_3.unsqueeze(3) * (matvecs(layer2_weight, gelu_2) - v_1_ago))
            phi_k = wide(phi_k)
            gelu_3, slope_3 = gelu_with_slope(matvecs(layer1_weight, phi_k))
            product_5 = 2.0 * (gamma.unsqueeze(3) * (matvecs(layer2_weight, gelu_3) - v))
            value_2 = outer(matvecs(layer2_weight.mT, product_2) * slope_1, phi_k_2_ago)
            value_3 = outer(matvecs(layer2_weight.mT, product_4) * slope_2, phi_k_1_ago)
            value_4 = outer(matvecs(layer2_weight.mT, product) * slope, phi_k_3_ago)
            value_5 = outer(matvecs(layer2_weight.mT, product_5) * slope_3, phi_k)
            M_S_layer1_weight = scan_entries(
                value, value_4 + value_2 + value_3 + value_5, M_S["layer1.weight"], theta.shape[1]
            )
            value_6 = wide(alpha.unsqueeze(3).unsqueeze(4))
            value_7 = eta.unsqueeze(3).unsqueeze(4)
            value_8 = newton_schulz(M_S_layer1_weight, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
            M_layer1_weight = scan_entries(
                value_6, -(value_7 * value_8), M["layer1.weight"], theta.shape[1]
            )
            total = outer(product, gelu) + outer(product_2, gelu_1)
            M_S_layer2_weight = scan_entries(
                value,
                total + outer(product_4, gelu_2) + outer(product_5, gelu_3),
                M_S["layer2.weight"],
                theta.shape[1],
            )
            value = newton_schulz(M_S_layer2_weight, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
            M_layer2_weight = scan_entries(
                value_6, -(value_7 * value), M["layer2.weight"], theta.shape[1]
            )
            return [
                {"layer1.weight": M_layer1_weight, "layer2.weight": M_layer2_weight},
                {"layer1.weight": M_S_layer1_weight, "layer2.weight": M_S_layer2_weight},
            ]

        path, M, M_S, M_start = run_entries(
            moves,
            [
                theta,
                gamma_3_ago,
                phi_k_3_ago,
                v_3_ago,
                gamma_2_ago,
                phi_k_2_ago,
                v_2_ago,
                gamma_1_ago,
                phi_k_1_ago,
                v_1_ago,
                gamma,
                phi_k,
                v,
                alpha,
                eta,
                place,
            ],
            [M, M_S],
            M_start,
            position,
            16,
        )
        return path, M, M_S, M_start

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
        eta: Tensor,
        theta: Tensor,
        gamma_3_ago: Tensor,
        phi_k_3_ago: Tensor,
        v_3_ago: Tensor,
        gamma_2_ago: Tensor,
        phi_k_2_ago: Tensor,
        v_2_ago: Tensor,
        gamma_1_ago: Tensor,
        phi_k_1_ago: Tensor,
        v_1_ago: Tensor,
        gamma: Tensor,
        phi_k: Tensor,
        v: Tensor,
        place: Tensor,
        M: dict[str, Tensor],
        M_S: dict[str, Tensor],
        M_start: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Move by one token."""
        layer1_weight = M_start["layer1.weight"]
        layer2_weight = M_start["layer2.weight"]
        value = alpha.unsqueeze(2).unsqueeze(3)
        value_1 = wide(eta.unsqueeze(2).unsqueeze(3))
        value_2 = number(1.0, alpha)
        phi_k_3_ago = wide(phi_k_3_ago)
        gelu, slope = gelu_with_slope(matvec(layer1_weight, phi_k_3_ago))
        product = torch.where(place >= 3.0, value_2, 0.0).unsqueeze(1) * gamma_3_ago
        product = 2.0 * (product.unsqueeze(2) * (matvec(layer2_weight, gelu) - v_3_ago))
        phi_k_2_ago = wide(phi_k_2_ago)
        gelu_1, slope_1 = gelu_with_slope(matvec(layer1_weight, phi_k_2_ago))
        product_1 = torch.where(place >= 2.0, value_2, 0.0).unsqueeze(1) * gamma_2_ago
        product_2 = 2.0 * (product_1.unsqueeze(2) * (matvec(layer2_weight, gelu_1) - v_2_ago))
        phi_k_1_ago = wide(phi_k_1_ago)
        gelu_2, slope_2 = gelu_with_slope(matvec(layer1_weight, phi_k_1_ago))
        product_3 = torch.where(place >= 1.0, value_2, 0.0).unsqueeze(1) * gamma_1_ago
        product_4 = 2.0 * (product_3.unsqueeze(2) * (matvec(layer2_weight, gelu_2) - v_1_ago))
        phi_k = wide(phi_k)
        gelu_3, slope_3 = gelu_with_slope(matvec(layer1_weight, phi_k))
        product_5 = 2.0 * (gamma.unsqueeze(2) * (matvec(layer2_weight, gelu_3) - v))
        value_3 = wide(theta.unsqueeze(2).unsqueeze(3))
        # S = theta * S + grad   (spec.nl:57)
        value_4 = torch.addcmul(
            outer(matvec(layer2_weight.mT, product) * slope, phi_k_3_ago),
            (matvec(layer2_weight.mT, product_2) * slope_1).unsqueeze(3),
            phi_k_2_ago.unsqueeze(2),
        )
        value_5 = torch.addcmul(
            value_4,
            (matvec(layer2_weight.mT, product_4) * slope_2).unsqueeze(3),
            phi_k_1_ago.unsqueeze(2),
        )
        value_6 = torch.addcmul(
            value_5,
            (matvec(layer2_weight.mT, product_5) * slope_3).unsqueeze(3),
            phi_k.unsqueeze(2),
        )
        M_S_layer1_weight = torch.addcmul(value_6, value_3, M_S["layer1.weight"])
        # M = alpha * M - eta * newton_schulz(S)   (spec.nl:58)
        M_layer1_weight = (value * M["layer1.weight"]).addcmul_(
            value_1,
            newton_schulz(M_S_layer1_weight, 5, ((3.4445, -4.775, 2.0315),), 1e-07),
            value=-1,
        )
        value_7 = torch.addcmul(
            torch.addcmul(outer(product, gelu), product_2.unsqueeze(3), gelu_1.unsqueeze(2)),
            product_4.unsqueeze(3),
            gelu_2.unsqueeze(2),
        )
        M_S_layer2_weight = torch.addcmul(
            torch.addcmul(value_7, product_5.unsqueeze(3), gelu_3.unsqueeze(2)),
            value_3,
            M_S["layer2.weight"],
        )
        M_layer2_weight = (value * M["layer2.weight"]).addcmul_(
            value_1,
            newton_schulz(M_S_layer2_weight, 5, ((3.4445, -4.775, 2.0315),), 1e-07),
            value=-1,
        )
        M = {"layer1.weight": M_layer1_weight, "layer2.weight": M_layer2_weight}
        M_S = {"layer1.weight": M_S_layer1_weight, "layer2.weight": M_S_layer2_weight}
        return M, M_S

    def read_step(self, q: Tensor, M: dict[str, Tensor]) -> Tensor:
        """Read M(q) at one token."""
        return matvec(M["layer2.weight"], F.gelu(matvec(M["layer1.weight"], wide(q)))).to(q.dtype)


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = Linear(128, 8, bias=False, **new)
        self.W_k = Linear(128, 8, bias=False, **new)
        self.W_v = Linear(128, 64, bias=False, **new)
        self.W_g = Linear(128, 64, bias=False, **new)
        self.W_o = Linear(64, 128, bias=False, **new)
        self.W_alpha = Linear(128, 2, bias=True, **new)
        self.W_eta = Linear(128, 2, bias=True, **new)
        self.W_gamma = Linear(128, 2, bias=True, **new)
        self.W_theta = Linear(128, 2, bias=True, **new)
        self.conv_q = Conv(8, 4, **new)
        self.conv_k = Conv(8, 4, **new)
        self.conv_v = Conv(64, 4, **new)
        self.a_1 = nn.Parameter(torch.empty((), **new))
        self.a_2 = nn.Parameter(torch.empty((), **new))
        self.gain = nn.Parameter(torch.empty(32, **new))
        self.M = MixerM(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_g.reset_parameters()
        self.W_o.reset_parameters()
        self.W_alpha.reset_parameters()
        self.W_eta.reset_parameters()
        self.W_gamma.reset_parameters()
        self.W_theta.reset_parameters()
        self.conv_q.reset_parameters()
        self.conv_k.reset_parameters()
        self.conv_v.reset_parameters()
        nn.init.ones_(self.a_1)
        nn.init.constant_(self.a_2, 0.5)
        nn.init.ones_(self.gain)
        self.M.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        M, M_S = self.M.initial(batch, like)
        return {
            "M": M,
            "M.S": M_S,
            "M.start": M,
            "conv_q": like.new_zeros(batch, 3, 8),
            "conv_k": like.new_zeros(batch, 3, 8),
            "conv_v": like.new_zeros(batch, 3, 64),
            "shift_1": like.new_zeros(batch, 1, 2),
            "shift_2": like.new_zeros(batch, 1, 2, 20),
            "shift_3": like.new_zeros(batch, 1, 2, 32),
            "shift_4": like.new_zeros(batch, 1, 2),
            "shift_5": like.new_zeros(batch, 1, 2, 20),
            "shift_6": like.new_zeros(batch, 1, 2, 32),
            "shift_7": like.new_zeros(batch, 1, 2),
            "shift_8": like.new_zeros(batch, 1, 2, 20),
            "shift_9": like.new_zeros(batch, 1, 2, 32),
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
            self.W_q(x).unflatten(-1, (2, 4)).flatten(-2), state["conv_q"]
        )
        # q     = unit(silu(conv_q(W_q(x))))   (spec.nl:41)
        q = unit(F.silu(wide(convolved.unflatten(-1, (2, 4)))))
        convolved, conv_k = self.conv_k(
            self.W_k(x).unflatten(-1, (2, 4)).flatten(-2), state["conv_k"]
        )
        # k     = unit(silu(conv_k(W_k(x))))   (spec.nl:42)
        k = unit(F.silu(wide(convolved.unflatten(-1, (2, 4)))))
        convolved, conv_v = self.conv_v(
            self.W_v(x).unflatten(-1, (2, 32)).flatten(-2), state["conv_v"]
        )
        # v     = silu(conv_v(W_v(x)))   (spec.nl:43)
        v = F.silu(wide(convolved.unflatten(-1, (2, 32))))
        value = wide(self.a_1.unsqueeze(0).unsqueeze(1))
        value_1 = wide(self.a_2.unsqueeze(0).unsqueeze(1))
        # phi_q = concat(a_1 * q, a_2 * split(flat(outer(q, q)), heads, squares))   (spec.nl:44)
        phi_q = concat(value * q, value_1 * outer(q, q).flatten(-3).unflatten(-1, (2, 16)))
        # phi_k = unit(concat(a_1 * k, a_2 * split(flat(outer(k, k)), heads, squares)))
        # (spec.nl:45)
        phi_k = unit(concat(value * k, value_1 * outer(k, k).flatten(-3).unflatten(-1, (2, 16))))
        # alpha = sigmoid(W_alpha(x) + 4)   (spec.nl:46)
        alpha = torch.sigmoid(wide(self.W_alpha(x)) + 4.0)
        # eta   = sigmoid(W_eta(x) - 2) / 8   (spec.nl:47)
        eta = torch.sigmoid(wide(self.W_eta(x)) - 2.0) / 8.0
        # theta = sigmoid(W_theta(x))   (spec.nl:48)
        theta = torch.sigmoid(wide(self.W_theta(x)))
        # gamma = sigmoid(W_gamma(x))   (spec.nl:49)
        gamma = torch.sigmoid(wide(self.W_gamma(x)))
        shifted, shift_1 = shift(gamma, state["shift_1"])
        shifted_1, shift_2 = shift(phi_k, state["shift_2"])
        shifted_2, shift_3 = shift(v, state["shift_3"])
        shifted_3, shift_4 = shift(shifted, state["shift_4"])
        shifted_4, shift_5 = shift(shifted_1, state["shift_5"])
        shifted_5, shift_6 = shift(shifted_2, state["shift_6"])
        shifted_6, shift_7 = shift(shifted_3, state["shift_7"])
        shifted_7, shift_8 = shift(shifted_4, state["shift_8"])
        shifted_8, shift_9 = shift(shifted_5, state["shift_9"])
        M_path, M, M_S, M_start = self.M(
            theta,
            shifted_6,
            shifted_7,
            shifted_8,
            shifted_3,
            shifted_4,
            shifted_5,
            shifted,
            shifted_1,
            shifted_2,
            gamma,
            phi_k,
            v,
            alpha,
            eta,
            positions(position, x.shape[1], x),
            state["M"],
            state["M.S"],
            state["M.start"],
            position,
        )
        # out = W_o(rmsnorm(M(phi_q), gain = gain) * silu(W_g(x)))   (spec.nl:63)
        product = rmsnorm(self.M.read(phi_q, M_path)) * self.gain.unsqueeze(0)
        out = self.W_o(
            (product * F.silu(self.W_g(x).unflatten(-1, (2, 32)))).flatten(-2).to(x.dtype)
        )
        state = {
            "M": M,
            "M.S": M_S,
            "M.start": M_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "conv_v": conv_v,
            "shift_1": shift_1,
            "shift_2": shift_2,
            "shift_3": shift_3,
            "shift_4": shift_4,
            "shift_5": shift_5,
            "shift_6": shift_6,
            "shift_7": shift_7,
            "shift_8": shift_8,
            "shift_9": shift_9,
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
            self.W_q(x).unflatten(-1, (2, 4)).flatten(-2), state["conv_q"]
        )
        # q     = unit(silu(conv_q(W_q(x))))   (spec.nl:41)
        q = unit(F.silu(wide(convolved.unflatten(-1, (2, 4)))))
        convolved, conv_k = self.conv_k.step(
            self.W_k(x).unflatten(-1, (2, 4)).flatten(-2), state["conv_k"]
        )
        # k     = unit(silu(conv_k(W_k(x))))   (spec.nl:42)
        k = unit(F.silu(wide(convolved.unflatten(-1, (2, 4)))))
        convolved, conv_v = self.conv_v.step(
            self.W_v(x).unflatten(-1, (2, 32)).flatten(-2), state["conv_v"]
        )
        # v     = silu(conv_v(W_v(x)))   (spec.nl:43)
        v = F.silu(wide(convolved.unflatten(-1, (2, 32))))
        value = wide(self.a_1.unsqueeze(0).unsqueeze(1))
        value_1 = wide(self.a_2.unsqueeze(0).unsqueeze(1))
        # phi_q = concat(a_1 * q, a_2 * split(flat(outer(q, q)), heads, squares))   (spec.nl:44)
        phi_q = concat(value * q, value_1 * outer(q, q).flatten(-3).unflatten(-1, (2, 16)))
        # phi_k = unit(concat(a_1 * k, a_2 * split(flat(outer(k, k)), heads, squares)))
        # (spec.nl:45)
        phi_k = unit(concat(value * k, value_1 * outer(k, k).flatten(-3).unflatten(-1, (2, 16))))
        # alpha = sigmoid(W_alpha(x) + 4)   (spec.nl:46)
        alpha = torch.sigmoid(wide(self.W_alpha(x)) + 4.0)
        # eta   = sigmoid(W_eta(x) - 2) / 8   (spec.nl:47)
        eta = torch.sigmoid(wide(self.W_eta(x)) - 2.0) / 8.0
        # theta = sigmoid(W_theta(x))   (spec.nl:48)
        theta = torch.sigmoid(wide(self.W_theta(x)))
        # gamma = sigmoid(W_gamma(x))   (spec.nl:49)
        gamma = torch.sigmoid(wide(self.W_gamma(x)))
        shifted, shift_1 = shift_step(gamma, state["shift_1"])
        shifted_1, shift_2 = shift_step(phi_k, state["shift_2"])
        shifted_2, shift_3 = shift_step(v, state["shift_3"])
        shifted_3, shift_4 = shift_step(shifted, state["shift_4"])
        shifted_4, shift_5 = shift_step(shifted_1, state["shift_5"])
        shifted_5, shift_6 = shift_step(shifted_2, state["shift_6"])
        shifted_6, shift_7 = shift_step(shifted_3, state["shift_7"])
        shifted_7, shift_8 = shift_step(shifted_4, state["shift_8"])
        shifted_8, shift_9 = shift_step(shifted_5, state["shift_9"])
        M, M_S = self.M.step(
            alpha,
            eta,
            theta,
            shifted_6,
            shifted_7,
            shifted_8,
            shifted_3,
            shifted_4,
            shifted_5,
            shifted,
            shifted_1,
            shifted_2,
            gamma,
            phi_k,
            v,
            positions(position, 1, x).squeeze(1),
            state["M"],
            state["M.S"],
            M_start,
        )
        # out = W_o(rmsnorm(M(phi_q), gain = gain) * silu(W_g(x)))   (spec.nl:63)
        product = rmsnorm(self.M.read_step(phi_q, M)) * self.gain.unsqueeze(0)
        out = self.W_o(
            (product * F.silu(self.W_g(x).unflatten(-1, (2, 32)))).flatten(-2).to(x.dtype)
        )
        M_start = M if (position + 1) % 16 == 0 else M_start
        state = {
            "M": M,
            "M.S": M_S,
            "M.start": M_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "conv_v": conv_v,
            "shift_1": shift_1,
            "shift_2": shift_2,
            "shift_3": shift_3,
            "shift_4": shift_4,
            "shift_5": shift_5,
            "shift_6": shift_6,
            "shift_7": shift_7,
            "shift_8": shift_8,
            "shift_9": shift_9,
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
        # out = F(x)   (spec.nl:69)
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
        # mixer(rmsnorm(x))   (spec.nl:76)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:76)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:77)
        ffn_out, ffn = self.ffn(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:77)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:76)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:76)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:77)
        ffn_out, ffn = self.ffn.step(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:77)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state


class Model(nn.Module):
    """The model atlas: tokens [B, T] -> logits [B, T, 256]."""

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
        # x[d] = embed(tokens)   (spec.nl:74)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:79)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:74)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:79)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
