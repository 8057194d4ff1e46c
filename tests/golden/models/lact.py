"""lact: Large-chunk test-time training (LaCT, arXiv:2505.23884)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    now: always
    large: every 64 tokens
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


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.logaddexp(x, x.new_zeros(()))


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


def index(n: int, like: Tensor) -> Tensor:
    """0 ... n-1, in float32 or better."""
    return torch.arange(n, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def positions(start: int, tokens: int, like: Tensor) -> Tensor:
    """Count the tokens from the sequence's start: [1, T], in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.arange(start, start + tokens, device=like.device, dtype=dtype)[None]


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def nothing_like(total: Tensor) -> Tensor:
    """Give a sum of nothing yet: one zero, seen as all entries."""
    return total.new_zeros(()).expand_as(total)


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


def cuts(position: int, tokens: int, chunk: int) -> list[int]:
    """Cut a sequence that begins at a position at the ends of its chunks: the lengths."""
    first = min(-position % chunk, tokens)
    whole, rest = (tokens - first) // chunk, (tokens - first) % chunk
    return [n for n in (first, *[chunk] * whole, rest) if n]


class Pairs(NamedTuple):
    """What a softmax memory holds over a sequence; the first `before` pairs are older than it."""

    keys: Tensor
    values: Tensor
    before: int
    position: int = 0


def as_pairs(x: Tensor, cache: dict[str, Tensor], sequence: bool) -> Tensor:
    """Lay out keys or values as pairs: [B, T, *lead, d], or [B, *lead, d] -> [B, *lead, T, d]."""
    front = cache["key"].shape[:-2]
    x = x if sequence else x.unsqueeze(1)
    return x.expand(front[0], x.shape[1], *front[1:], x.shape[-1]).movedim(1, -2)


def append_pairs(
    keys: Tensor,
    values: Tensor,
    cache: dict[str, Tensor],
    window: int | None,
    per_token: int = 1,
    reset: int | None = None,
    position: int = 0,
) -> tuple[Pairs, dict[str, Tensor]]:
    """Add pairs [B, *lead, n, d] to a cache; the new cache keeps only the window.

    `reset`: pairs are forgotten at the end of each so many tokens; `position` is the first token's.
    """
    tokens = keys.shape[-2] // per_token
    older = cache["key"].shape[-2]
    keys = torch.cat((cache["key"], keys.to(cache["key"].dtype)), -2)
    values = torch.cat((cache["value"], values.to(cache["value"].dtype)), -2)
    first = 0 if window is None else max(keys.shape[-2] - window, 0)
    if reset is not None:
        last = (position + tokens) // reset * reset - position
        first = max(first, older + per_token * last) if last > 0 else first
    kept = {"key": keys[..., first:, :], "value": values[..., first:, :]}
    return Pairs(keys, values, older, position), kept


def attend(
    q: Tensor,
    pairs: Pairs,
    scale: float,
    per_token: int = 1,
    window: int | None = None,
    late: bool = True,
    lead: int = 1,
    first: tuple[Tensor, Tensor] | None = None,
    reset: int | None = None,
) -> Tensor:
    """Read for all tokens at once; `late` sees the token's own pairs, `first` are always seen."""
    keys, values, older, position = pairs
    tokens, more = q.shape[1], q.shape[2 + lead : -1]
    front = keys.shape[: 1 + lead]
    # [B, T, *lead, *more, d] -> [B, H, more * T, d]
    rows = q.expand(front[0], tokens, *front[1:], *more, q.shape[-1])
    rows = rows.to(keys.dtype).reshape(front[0], tokens, -1, max(more.numel(), 1), q.shape[-1])
    rows = rows.permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys = keys.reshape(front[0], -1, *keys.shape[-2:])
    values = values.reshape(front[0], -1, *values.shape[-2:])
    total, always = keys.shape[2], 0
    if first is not None:
        always = first[0].shape[-2]
        kept = [x.reshape(1, -1, *x.shape[-2:]).expand(front[0], -1, -1, -1) for x in first]
        keys = torch.cat((kept[0].to(keys.dtype), keys), 2)
        values = torch.cat((kept[1].to(values.dtype), values), 2)
    alone = window is None and reset is None
    if late and alone and older == 0 and always == 0 and per_token == 1 and not more:
        y = F.scaled_dot_product_attention(rows, keys, values, is_causal=True, scale=scale)
    else:
        # token t sees the pairs from `low` up to, not including, `high`
        token = torch.arange(tokens, device=q.device)[:, None]
        high = older + per_token * (token + (1 if late else 0))
        pair = torch.arange(total, device=q.device)[None]
        seen = pair < high
        if window is not None:
            seen = seen & (pair >= high - window)
        if reset is not None:
            begin = (position + token) // reset * reset - position
            seen = seen & ((begin <= 0) | (pair >= older + per_token * begin))
        seen = torch.cat((seen.new_ones(tokens, always), seen), 1).repeat(max(more.numel(), 1), 1)
        if total + always == 0:
            y = rows.new_zeros(*rows.shape[:-1], values.shape[-1])
        else:
            # an empty set reads 0: let it see everything, and drop what it reads
            some = seen.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(
                rows, keys, values, attn_mask=seen | ~some, scale=scale
            )
            y = torch.where(some, y, 0.0)
    y = y.unflatten(2, (-1, tokens)).permute(0, 3, 1, 2, 4)
    return y.reshape(front[0], tokens, *front[1:], *more, values.shape[-1]).to(q.dtype)


def attend_step(
    q: Tensor,
    cache: dict[str, Tensor],
    scale: float,
    lead: int = 1,
    first: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Read for one token: q [B, *lead, *more, d_k] sees all pairs of the cache."""
    keys, values = cache["key"], cache["value"]
    front, more = keys.shape[: 1 + lead], q.shape[1 + lead : -1]
    if first is not None:
        kept = [x.expand(*front, *x.shape[-2:]) for x in first]
        keys = torch.cat((kept[0].to(keys.dtype), keys), -2)
        values = torch.cat((kept[1].to(values.dtype), values), -2)
    rows = q.to(keys.dtype).expand(*front, *more, q.shape[-1])
    rows = rows.reshape(*front, -1, q.shape[-1])
    if keys.shape[-2] == 0:
        y = rows.new_zeros(*rows.shape[:-1], values.shape[-1])
    else:
        y = F.scaled_dot_product_attention(rows, keys, values, scale=scale)
    return y.reshape(*front, *more, values.shape[-1]).to(q.dtype)


class MixerA(nn.Module):
    """Memory A: kernel(softmax, window = window), one per heads; always.

    runs   attention: every query attends to the stored pairs
    """

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Give the empty cache."""
        key = like.new_zeros(batch, 4, 0, 32)
        value = like.new_zeros(batch, 4, 0, 32)
        return {"key": key, "value": value}

    def forward(
        self, k: Tensor, v: Tensor, place: Tensor, A: dict[str, Tensor]
    ) -> tuple[Pairs, dict[str, Tensor]]:
        """Add the pairs of a sequence."""
        value = rotate(
            k, (place.unsqueeze(2) * torch.exp(-0.5756462732485115 * index(16, k))).unsqueeze(2)
        )
        keys = as_pairs(value, A, True)
        values = as_pairs(v, A, True)
        return append_pairs(keys, values, A, 64)

    def step(self, k: Tensor, v: Tensor, place: Tensor, A: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add one token's pairs."""
        value = rotate(
            k, (place.unsqueeze(1) * torch.exp(-0.5756462732485115 * index(16, k))).unsqueeze(1)
        )
        keys = as_pairs(value, A, False)
        values = as_pairs(v, A, False)
        _, A = append_pairs(keys, values, A, 64)
        return A

    def read(self, q: Tensor, pairs: Pairs) -> Tensor:
        """Read A(q) at every token, after its pairs are added."""
        return attend(q, pairs, 0.1767766952966369, window=64)

    def read_step(self, q: Tensor, A: dict[str, Tensor]) -> Tensor:
        """Read A(q) at one token."""
        return attend_step(q, A, 0.1767766952966369)


class MixerM(nn.Module):
    """Memory M: glu(d_k -> width -> d_k), one per heads; every 64 tokens.

    beta   = mean(sigmoid(W_m(x)), over = tokens)   (spec.nl:41)
    S.gate = beta * S.gate - sum(eta_0 * grad.gate, over = tokens)   (spec.nl:42)
    S.down = beta * S.down - sum(eta_1 * grad.down, over = tokens)   (spec.nl:43)
    S.up   = beta * S.up - sum(eta_2 * grad.up, over = tokens)   (spec.nl:44)
    length = norm(initial(M), over = in)   (spec.nl:45)
    M = M + newton_schulz(S)   (spec.nl:46)
    M.gate = length.gate * unit(M.gate, over = in)   (spec.nl:47)
    M.down = length.down * unit(M.down, over = in)   (spec.nl:48)
    M.up   = length.up * unit(M.up, over = in)   (spec.nl:49)
    state  M.gate [B, heads, width, d_k]
    state  M.up [B, heads, width, d_k]
    state  M.down [B, heads, d_k, width]
    state  M.S.gate [B, heads, width, d_k]
    state  M.S.up [B, heads, width, d_k]
    state  M.S.down [B, heads, d_k, width]
    runs   window: its state stays for 64 tokens: one pass over them, then its update
    """

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.gate = nn.Parameter(torch.empty(4, 64, 32, **new))
        self.up = nn.Parameter(torch.empty(4, 64, 32, **new))
        self.down = nn.Parameter(torch.empty(4, 32, 64, **new))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial state anew."""
        uniform(self.gate, 32)
        uniform(self.up, 32)
        uniform(self.down, 64)

    def initial(self, batch: int, like: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the state at the start."""
        M = {
            "gate": wide(self.gate).expand(batch, 4, 64, 32),
            "up": wide(self.up).expand(batch, 4, 64, 32),
            "down": wide(self.down).expand(batch, 4, 32, 64),
        }
        M_S = {
            "gate": zeros(like, batch, 4, 64, 32),
            "up": zeros(like, batch, 4, 64, 32),
            "down": zeros(like, batch, 4, 32, 64),
        }
        return M, M_S

    def empty(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Give what is kept before the first token."""
        return {
            "1": zeros(like, batch, 4),
            "2": zeros(like, batch, 4, 64, 32),
            "4": zeros(like, batch, 4, 64, 32),
            "3": zeros(like, batch, 4, 32, 64),
        }

    def read(self, q: Tensor, M: dict[str, Tensor]) -> Tensor:
        """Read M(q) at all tokens of a window."""
        q_1 = wide(q)
        result = matvecs(M["down"], F.silu(matvecs(M["gate"], q_1)) * matvecs(M["up"], q_1)).to(
            q.dtype
        )
        return result

    def collect(
        self,
        eta_0: Tensor,
        v: Tensor,
        k: Tensor,
        eta_2: Tensor,
        eta_1: Tensor,
        W_m: Tensor,
        M: dict[str, Tensor],
        M_sum: dict[str, Tensor],
        begins: bool = False,
    ) -> dict[str, Tensor]:
        """Take tokens into the window of 64."""
        M_sum_1 = M_sum["1"] + wide(torch.sigmoid(W_m)).sum(1)
        value = matvecs(M["down"].mT, wide(v))
        value_1 = wide(unit(k))
        value_2 = matvecs(M["up"], value_1)
        silu, slope = silu_with_slope(matvecs(M["gate"], value_1))
        M_sum_2 = add_outer_sum(
            M_sum["2"], eta_0.unsqueeze(3) * (value * value_2 * slope), value_1, -1.0, begins=begins
        )
        M_sum_4 = add_outer_sum(
            M_sum["4"], eta_2.unsqueeze(3) * (value * silu), value_1, -1.0, begins=begins
        )
        M_sum_3 = add_outer_sum(
            M_sum["3"], wide(eta_1.unsqueeze(3) * v), silu * value_2, -1.0, begins=begins
        )
        return {"1": M_sum_1, "2": M_sum_2, "4": M_sum_4, "3": M_sum_3}

    def update(
        self,
        M_initial: Tensor,
        M_initial_1: Tensor,
        M_initial_2: Tensor,
        M: dict[str, Tensor],
        M_S: dict[str, Tensor],
        M_sum: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Move at the end of a window of 64 tokens."""
        M_sum_1 = M_sum["1"]
        M_sum_2 = M_sum["2"]
        M_sum_4 = M_sum["4"]
        M_sum_3 = M_sum["3"]
        # length = norm(initial(M), over = in)   (spec.nl:45)
        length = torch.linalg.vector_norm(M_initial, dim=-1)
        # beta   = mean(sigmoid(W_m(x)), over = tokens)   (spec.nl:41)
        beta = M_sum_1 / 64.0
        value = beta.unsqueeze(2).unsqueeze(3)
        # S.gate = beta * S.gate - sum(eta_0 * grad.gate, over = tokens)   (spec.nl:42)
        M_S_gate = value * M_S["gate"] - M_sum_2
        # M = M + newton_schulz(S)   (spec.nl:46)
        M_1 = M["gate"] + newton_schulz(M_S_gate, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
        # M.gate = length.gate * unit(M.gate, over = in)   (spec.nl:47)
        M_gate = length.unsqueeze(3) * unit(M_1)
        length = torch.linalg.vector_norm(M_initial_1, dim=-1)
        # S.up   = beta * S.up - sum(eta_2 * grad.up, over = tokens)   (spec.nl:44)
        M_S_up = value * M_S["up"] - M_sum_4
        M_2 = M["up"] + newton_schulz(M_S_up, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
        # M.up   = length.up * unit(M.up, over = in)   (spec.nl:49)
        M_up = length.unsqueeze(3) * unit(M_2)
        length = torch.linalg.vector_norm(M_initial_2, dim=-1)
        # S.down = beta * S.down - sum(eta_1 * grad.down, over = tokens)   (spec.nl:43)
        M_S_down = value * M_S["down"] - M_sum_3
        M = M["down"] + newton_schulz(M_S_down, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
        # M.down = length.down * unit(M.down, over = in)   (spec.nl:48)
        M_down = length.unsqueeze(3) * unit(M)
        M = {"gate": M_gate, "up": M_up, "down": M_down}
        M_S = {"gate": M_S_gate, "up": M_S_up, "down": M_S_down}
        M_sum = {
            "1": nothing_like(M_sum_1),
            "2": nothing_like(M_sum_2),
            "4": nothing_like(M_sum_4),
            "3": nothing_like(M_sum_3),
        }
        return M, M_S, M_sum

    def read_step(self, q: Tensor, M: dict[str, Tensor]) -> Tensor:
        """Read M(q) at one token."""
        q_1 = wide(q)
        return matvec(M["down"], F.silu(matvec(M["gate"], q_1)) * matvec(M["up"], q_1)).to(q.dtype)


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = Linear(128, 128, bias=False, **new)
        self.W_k = Linear(128, 128, bias=False, **new)
        self.W_v = Linear(128, 128, bias=False, **new)
        self.W_o = Linear(128, 128, bias=False, **new)
        self.W_0 = Linear(128, 4, bias=True, **new)
        self.W_1 = Linear(128, 4, bias=True, **new)
        self.W_2 = Linear(128, 4, bias=True, **new)
        self.W_m = Linear(128, 4, bias=True, **new)
        self.gain = nn.Parameter(torch.empty(32, **new))
        self.A = MixerA()
        self.M = MixerM(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_o.reset_parameters()
        self.W_0.reset_parameters()
        self.W_1.reset_parameters()
        self.W_2.reset_parameters()
        self.W_m.reset_parameters()
        nn.init.ones_(self.gain)
        self.M.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        A = self.A.initial(batch, like)
        M, M_S = self.M.initial(batch, like)
        M_sum = self.M.empty(batch, like)
        return {"A": A, "M": M, "M.S": M_S, "M.sum": M_sum, "position": 0}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        position = state["position"]
        # q, k, v = silu(W_q(x)), silu(W_k(x)), silu(W_v(x))   (spec.nl:27)
        q = F.silu(wide(self.W_q(x).unflatten(-1, (4, 32))))
        k = F.silu(wide(self.W_k(x).unflatten(-1, (4, 32))))
        v = F.silu(wide(self.W_v(x).unflatten(-1, (4, 32))))
        # eta_0, eta_1, eta_2 = softplus(W_0(x) - 4), softplus(W_1(x) - 4), softplus(W_2(x) - 4)
        # (spec.nl:28)
        eta_0 = softplus(wide(self.W_0(x)) - 4.0)
        eta_1 = softplus(wide(self.W_1(x)) - 4.0)
        eta_2 = softplus(wide(self.W_2(x)) - 4.0)
        value = positions(position, x.shape[1], x)
        A_path, A = self.A(k, v, value, state["A"])
        M_query = unit(q)
        M_0, _ = self.M.initial(x.shape[0], x)
        M = state["M"]
        M_S = state["M.S"]
        M_sum = state["M.sum"]
        t = position
        M_read_rows = []
        lengths = cuts(position, x.shape[1], 64)
        for n, M_query_w, eta_0_w, v_w, k_w, eta_2_w, eta_1_w, W_m_w in zip(
            lengths,
            M_query.split(lengths, 1),
            eta_0.split(lengths, 1),
            v.split(lengths, 1),
            k.split(lengths, 1),
            eta_2.split(lengths, 1),
            eta_1.split(lengths, 1),
            self.W_m(x).split(lengths, 1),
            strict=True,
        ):
            M_read = self.M.read(M_query_w, M)
            M_sum = self.M.collect(
                eta_0_w, v_w, k_w, eta_2_w, eta_1_w, W_m_w, M, M_sum, t % 64 == 0
            )
            t = t + n
            if t % 64 == 0:
                M, M_S, M_sum = self.M.update(M_0["gate"], M_0["up"], M_0["down"], M, M_S, M_sum)
            M_read_rows.append(M_read)
        M_read_1 = torch.cat(M_read_rows, 1)
        # out = W_o(A(rope(q)) + rmsnorm(M(unit(q)), gain = gain))   (spec.nl:54)
        value_1 = rotate(
            q, (value.unsqueeze(2) * torch.exp(-0.5756462732485115 * index(16, x))).unsqueeze(2)
        )
        total = self.A.read(value_1, A_path) + rmsnorm(M_read_1) * self.gain.unsqueeze(0)
        out = self.W_o(total.flatten(-2).to(x.dtype))
        state = {"A": A, "M": M, "M.S": M_S, "M.sum": M_sum, "position": position + x.shape[1]}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        M = state["M"]
        position = state["position"]
        # q, k, v = silu(W_q(x)), silu(W_k(x)), silu(W_v(x))   (spec.nl:27)
        q = F.silu(wide(self.W_q(x).unflatten(-1, (4, 32))))
        k = F.silu(wide(self.W_k(x).unflatten(-1, (4, 32))))
        v = F.silu(wide(self.W_v(x).unflatten(-1, (4, 32))))
        # eta_0, eta_1, eta_2 = softplus(W_0(x) - 4), softplus(W_1(x) - 4), softplus(W_2(x) - 4)
        # (spec.nl:28)
        eta_0 = softplus(wide(self.W_0(x)) - 4.0)
        eta_1 = softplus(wide(self.W_1(x)) - 4.0)
        eta_2 = softplus(wide(self.W_2(x)) - 4.0)
        value = positions(position, 1, x).squeeze(1)
        A = self.A.step(k, v, value, state["A"])
        M_sum = self.M.collect(
            eta_0.unsqueeze(1),
            v.unsqueeze(1),
            k.unsqueeze(1),
            eta_2.unsqueeze(1),
            eta_1.unsqueeze(1),
            self.W_m(x).unsqueeze(1),
            M,
            state["M.sum"],
        )
        M_0, _ = self.M.initial(x.shape[0], x)
        M_1 = M
        M_S = state["M.S"]
        if (position + 1) % 64 == 0:
            M_2, M_S, M_sum = self.M.update(M_0["gate"], M_0["up"], M_0["down"], M_1, M_S, M_sum)
            M_1 = M_2
        # out = W_o(A(rope(q)) + rmsnorm(M(unit(q)), gain = gain))   (spec.nl:54)
        value_1 = rotate(
            q, (value.unsqueeze(1) * torch.exp(-0.5756462732485115 * index(16, x))).unsqueeze(1)
        )
        product = rmsnorm(self.M.read_step(unit(q), M)) * self.gain.unsqueeze(0)
        out = self.W_o((self.A.read_step(value_1, A) + product).flatten(-2).to(x.dtype))
        state = {"A": A, "M": M_1, "M.S": M_S, "M.sum": M_sum, "position": position + 1}
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
    """The model lact: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = Linear(128, 256, bias=False, **new)
        self.repeat = nn.ModuleList(ModelRepeat(**new) for _ in range(4))
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
