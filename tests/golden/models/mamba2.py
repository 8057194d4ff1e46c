"""mamba2: Mamba-2 (arXiv:2405.21060)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    fast: every 1 token
    slow: every 1 step
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """Give x in float32 or better: the precision of states and decays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rmsnorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps)."""
    return x * torch.rsqrt(wide(x).square().mean(dim, keepdim=True) + eps).to(x.dtype)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.logaddexp(x, x.new_zeros(()))


def index(n: int, like: Tensor) -> Tensor:
    """0 ... n-1, in float32 or better."""
    return torch.arange(n, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def read_linear(x: Tensor, weight: Tensor, lead: int) -> Tensor:
    """W x: x [B, *lead, *more, d_in], weight [B, *lead, d_out, d_in]."""
    if x.ndim == 2 + lead:
        return matvec(weight, x)
    y = x.flatten(1 + lead, -2) @ weight.mT
    return y.unflatten(1 + lead, x.shape[1 + lead : -1])


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """[..., m, k], [..., k] -> [..., m]."""
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Look up: table [..., n, d] with one per leading axis, index [..., more] -> [..., more, d]."""
    front = table.shape[:-2]
    flat = index.reshape(*index.shape[: len(front)], -1, 1).expand(*front, -1, table.shape[-1])
    return table.gather(-2, flat).reshape(*index.shape, table.shape[-1])


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: [..., m], [..., n] -> [..., m, n]."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], per token: [..., n], [...] -> [...]."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def uniform(weight: Tensor, fan_in: int) -> None:
    """Draw from the uniform distribution in +-1/sqrt(fan in)."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    nn.init.uniform_(weight, -bound, bound)


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


class Tiles(NamedTuple):
    """A memory's course over a sequence; N tiles of C tokens, H copies.

    Token t of a tile has M_t = since[t] M_0 + sum_{i<=t} products[t, i] writes[i] keys[i]^T.
    """

    keys: Tensor  # b [B, N, H, C, d_k]
    writes: Tensor  # e [B, N, H, C, d_v]
    products: Tensor  # F(t, i) [B, N, H, C, C] or [C, C], 0 above the diagonal
    since: Tensor  # F(t, 0) [B, N, H, C]
    starts: Tensor  # M_0 of each tile [B, N, H, d_v, d_k]
    tokens: int
    lead: tuple[int, ...]
    origin: Tensor | None = None  # the state before the chunk, as it is


class UnitLowerInverse(torch.autograd.Function):
    """(I - A)^-1 for A below the diagonal; its gradient is X^T G X^T, masked by A's own."""

    @staticmethod
    def forward(ctx, lower):
        one = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(
            one - lower, one.expand(lower.shape), upper=False, unitriangular=True
        )
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        return inverse.mT @ grad @ inverse.mT


def tiled(x: Tensor, front: tuple[int, ...], d: int, tile: int, fill: float = 0.0) -> Tensor:
    """Cut the sequence into tiles: [B, T, *lead, d] -> [B, N, H, C, d]."""
    tokens = front[1]
    x = x.expand(*front, d).reshape(front[0], tokens, -1, d)
    if tokens % tile:
        x = F.pad(x, (0, 0, 0, 0, 0, -tokens % tile), value=fill)
    return x.unflatten(1, (-1, tile)).transpose(2, 3).contiguous()


def untiled(x: Tensor, tokens: int, lead: tuple[int, ...]) -> Tensor:
    """Join tiles again: [B, N, H, C, ...] -> [B, T, *lead, ...]."""
    x = x.transpose(2, 3).flatten(1, 2)[:, :tokens]
    return x.reshape(*x.shape[:2], *lead, *x.shape[3:])


def gate_products(gates: Tensor) -> tuple[Tensor, Tensor]:
    """F(t, i) and F(t, 0) of gates [..., C]; F(t, i) is 0 for i > t."""
    size = gates.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=gates.device).tril(-1)
    products = torch.where(below, gates.unsqueeze(-1), 1.0).cumprod(-2).tril()
    return products, gates.cumprod(-1)


def before(products: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
    """F(t-1, i) and F(t-1, 0): as the token before saw the tile."""
    return F.pad(products, (0, 0, 1, -1)), F.pad(since, (1, -1), value=1.0)


def solve_tiles(
    p: Tensor | None, u: Tensor | None, b: Tensor, g: Tensor | None, M: Tensor, tile: int
) -> tuple[Tiles, Tensor]:
    """Solve M_t = g M_{t-1} + (M_{t-1} p + u) b^T; p, u None: 0, g None: 1."""
    lead, (d_v, d_k) = tuple(M.shape[1:-2]), M.shape[-2:]
    p, u, b = (x if x is None or x.ndim else x.unsqueeze(0) for x in (p, u, b))
    fronts = [x.shape[:-1] for x in (p, u, b) if x is not None]
    fronts += [g.shape] if g is not None else []
    front = tuple(torch.broadcast_shapes(*fronts, (M.shape[0], 1, *lead)))
    M = M.reshape(M.shape[0], -1, d_v, d_k)
    b = tiled(b.to(M.dtype), front, d_k, tile)
    if g is None:
        since, products = b.new_ones(*b.shape[:3], tile), b.new_ones(tile, tile).tril()
    else:
        gates = tiled(g.to(M.dtype).unsqueeze(-1), front, 1, tile, fill=1.0).squeeze(-1)
        products, since = gate_products(gates)
    to_end = products[..., -1, :, None] * b  # F(C, i) b_i
    decay = since[..., -1, None, None]
    X = b.new_zeros(*b.shape[:-1], d_v) if u is None else tiled(u.to(M.dtype), front, d_v, tile)
    if p is None:
        writes, starts, M = scan_known(X, to_end, decay, M)
    else:
        # E = X + Y M_0^T: what of the writes is known, and what hangs on the tile's first state
        p = tiled(p.to(M.dtype), front, d_k, tile)
        products_before, since_before = before(products, since)
        inverse = UnitLowerInverse.apply(products_before * (p @ b.mT))
        Y = inverse @ (since_before.unsqueeze(-1) * p)
        writes, starts, M = TileScan.apply(inverse @ X, Y, to_end, decay, M)
    path = Tiles(b, writes, products, since, starts, front[1], lead)
    return path, M.reshape(M.shape[0], *lead, d_v, d_k)


class TileScan(torch.autograd.Function):
    """From tile to tile: E = X + Y M^T, then M <- w M + E^T b.

    X [B, N, H, C, d_v], Y, b [B, N, H, C, d_k], w [B, N, H, 1, 1], M [B, H, d_v, d_k]. Gives the
    writes E, the state before each tile and the last one. Its gradient runs from the last tile to
    the first with two products a tile, and takes all others at once.
    """

    @staticmethod
    def forward(ctx, X, Y, b, w, M):
        writes, starts = [], []
        for x, y, key, decay in zip(
            X.unbind(1), Y.unbind(1), b.unbind(1), w.unbind(1), strict=True
        ):
            starts.append(M)
            writes.append(x + y @ M.mT)
            M = decay * M + writes[-1].mT @ key
        E, S = torch.stack(writes, 1), torch.stack(starts, 1)
        ctx.save_for_backward(Y, b, w, E, S)
        return E, S, M

    @staticmethod
    def backward(ctx, dE, dS, dM):
        Y, b, w, E, S = ctx.saved_tensors
        writes, after = [], []
        for i in reversed(range(E.shape[1])):
            after.append(dM)
            writes.append(dE[:, i] + b[:, i] @ dM.mT)
            dM = dS[:, i] + w[:, i] * dM + writes[-1].mT @ Y[:, i]
        dX, A = torch.stack(writes[::-1], 1), torch.stack(after[::-1], 1)
        return dX, dX @ S, E @ A, (A * S).sum((-1, -2), keepdim=True), dM


def scan_known(X: Tensor, b: Tensor, w: Tensor, M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `TileScan`, with writes that do not hang on the state."""
    starts = []
    for add, decay in zip((X.mT @ b).unbind(1), w.unbind(1), strict=True):
        starts.append(M)
        M = decay * M + add
    return X, torch.stack(starts, 1), M


def read_tiles(q: Tensor, path: Tiles, late: bool = True) -> Tensor:
    """M_t q_t (late), or M_{t-1} q_t: q [B, T, *lead, *more, d_k] -> [B, T, *lead, *more, d_v]."""
    keys, writes, products, since, starts, tokens, lead, _ = path
    if not late:
        products, since = before(products, since)
    more = q.shape[2 + len(lead) : -1]
    front = (keys.shape[0], tokens, *lead)
    rows = q.to(keys.dtype).expand(*front, *more, q.shape[-1])
    rows = rows.reshape(*front, -1) if more else rows
    rows = tiled(rows, front, rows.shape[-1], keys.shape[3])
    if not more:
        y = (products * (rows @ keys.mT)) @ writes + since.unsqueeze(-1) * (rows @ starts.mT)
        return untiled(y, tokens, lead).to(q.dtype)
    # several queries of one token: one more axis before the tile's tokens
    rows = rows.unflatten(-1, (-1, q.shape[-1])).transpose(3, 4)
    scores = products.unsqueeze(-3) * (rows @ keys.unsqueeze(3).mT)
    y = scores @ writes.unsqueeze(3)
    y = y + since[:, :, :, None, :, None] * (rows @ starts.unsqueeze(3).mT)
    y = untiled(y.transpose(3, 4), tokens, lead)
    return y.reshape(*front, *more, writes.shape[-1]).to(q.dtype)


class MixerS(nn.Module):
    """Memory S: linear(d_k -> d_v), one per heads; every 1 token.

    S = a * S + step * outer(v, B)   (spec.nl:35)
    state  S [B, heads, d_v, d_k]
    runs   tile-scan: affine in its state, and its writes are known in advance
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 8, 32, 32)

    def forward(
        self, a: Tensor, step: Tensor, v: Tensor, B: Tensor, S: Tensor
    ) -> tuple[Tiles, Tensor]:
        """Move over a sequence, 64 tokens at a time."""
        # M_t = g M_{t-1} + (M_{t-1} p + u) b^T
        u = step.unsqueeze(3) * v
        b = B.unsqueeze(2)
        path, S = solve_tiles(None, u, b, a, S, 64)
        return path, S

    def read(self, q: Tensor, path: Tiles) -> Tensor:
        """Read S(q) at every token, after its update."""
        return read_tiles(q, path)

    def step(self, a: Tensor, step: Tensor, v: Tensor, B: Tensor, S: Tensor) -> Tensor:
        """Move by one token."""
        product = step.unsqueeze(2).unsqueeze(3) * outer(v, B.unsqueeze(1))
        S = a.unsqueeze(2).unsqueeze(3) * S + product
        return S

    def read_step(self, q: Tensor, S: Tensor) -> Tensor:
        """Read S(q) at one token."""
        return read_linear(wide(q), S, 1).to(q.dtype)


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_z = nn.Linear(128, 256, bias=False, **new)
        self.W_v = nn.Linear(128, 256, bias=False, **new)
        self.W_B = nn.Linear(128, 32, bias=False, **new)
        self.W_C = nn.Linear(128, 32, bias=False, **new)
        self.W_dt = nn.Linear(128, 8, bias=False, **new)
        self.W_o = nn.Linear(256, 128, bias=False, **new)
        self.conv_v = Conv(256, 4, bias=True, **new)
        self.conv_B = Conv(32, 4, bias=True, **new)
        self.conv_C = Conv(32, 4, bias=True, **new)
        self.A = nn.Parameter(torch.empty(8, **new))
        self.b = nn.Parameter(torch.empty(8, **new))
        self.D = nn.Parameter(torch.empty(8, **new))
        self.gain = nn.Parameter(torch.empty(8, 32, **new))
        self.S = MixerS()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_z.reset_parameters()
        self.W_v.reset_parameters()
        self.W_B.reset_parameters()
        self.W_C.reset_parameters()
        self.W_dt.reset_parameters()
        self.W_o.reset_parameters()
        self.conv_v.reset_parameters()
        self.conv_B.reset_parameters()
        self.conv_C.reset_parameters()
        with torch.no_grad():
            self.A.copy_(torch.log(1.0 + 15.0 * (index(8, self.A.double()) + 0.5) / 8.0))
        result = torch.log(
            torch.exp(torch.pow(10.0, (2.0 * index(8, self.b.double()) + 1.0) / 8.0 - 3.0)) - 1.0
        )
        with torch.no_grad():
            self.b.copy_(result)
        nn.init.ones_(self.D)
        nn.init.ones_(self.gain)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        S = self.S.initial(batch, like)
        return {
            "S": S,
            "conv_v": like.new_zeros(batch, 3, 256),
            "conv_B": like.new_zeros(batch, 3, 32),
            "conv_C": like.new_zeros(batch, 3, 32),
        }

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        convolved, conv_v = self.conv_v(
            self.W_v(x).unflatten(-1, (8, 32)).flatten(-2), state["conv_v"]
        )
        # v    = silu(conv_v(W_v(x)))   (spec.nl:28)
        v = F.silu(wide(convolved.unflatten(-1, (8, 32))))
        convolved, conv_B = self.conv_B(self.W_B(x), state["conv_B"])
        # B    = silu(conv_B(W_B(x)))   (spec.nl:29)
        B = F.silu(wide(convolved))
        convolved, conv_C = self.conv_C(self.W_C(x), state["conv_C"])
        # C    = silu(conv_C(W_C(x)))   (spec.nl:30)
        C = F.silu(wide(convolved))
        # step = softplus(W_dt(x) + b)   (spec.nl:31)
        step = softplus(wide(self.W_dt(x)) + self.b)
        # a    = exp(-exp(A) * step)   (spec.nl:32)
        a = torch.exp(-wide(torch.exp(self.A)) * step)
        S_path, S = self.S(a, step, v, B, state["S"])
        # y   = S(C) + D * v   (spec.nl:38)
        y = self.S.read(C.unsqueeze(2), S_path) + self.D.unsqueeze(1) * v
        # out = W_o(rmsnorm(flat(y * silu(W_z(x))), gain = flat(gain)))   (spec.nl:39)
        value = rmsnorm((y * F.silu(self.W_z(x).unflatten(-1, (8, 32)))).flatten(-2))
        out = self.W_o((value * self.gain.flatten(-2)).to(x.dtype))
        state = {"S": S, "conv_v": conv_v, "conv_B": conv_B, "conv_C": conv_C}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        convolved, conv_v = self.conv_v.step(
            self.W_v(x).unflatten(-1, (8, 32)).flatten(-2), state["conv_v"]
        )
        # v    = silu(conv_v(W_v(x)))   (spec.nl:28)
        v = F.silu(wide(convolved.unflatten(-1, (8, 32))))
        convolved, conv_B = self.conv_B.step(self.W_B(x), state["conv_B"])
        # B    = silu(conv_B(W_B(x)))   (spec.nl:29)
        B = F.silu(wide(convolved))
        convolved, conv_C = self.conv_C.step(self.W_C(x), state["conv_C"])
        # C    = silu(conv_C(W_C(x)))   (spec.nl:30)
        C = F.silu(wide(convolved))
        # step = softplus(W_dt(x) + b)   (spec.nl:31)
        step = softplus(wide(self.W_dt(x)) + self.b)
        # a    = exp(-exp(A) * step)   (spec.nl:32)
        a = torch.exp(-wide(torch.exp(self.A)) * step)
        S = self.S.step(a, step, v, B, state["S"])
        # y   = S(C) + D * v   (spec.nl:38)
        y = self.S.read_step(C.unsqueeze(1), S) + self.D.unsqueeze(1) * v
        # out = W_o(rmsnorm(flat(y * silu(W_z(x))), gain = flat(gain)))   (spec.nl:39)
        value = rmsnorm((y * F.silu(self.W_z(x).unflatten(-1, (8, 32)))).flatten(-2))
        out = self.W_o((value * self.gain.flatten(-2)).to(x.dtype))
        state = {"S": S, "conv_v": conv_v, "conv_B": conv_B, "conv_C": conv_C}
        return out, state


class ModelRepeat(nn.Module):
    """One pass of `repeat`."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.mixer = Mixer(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.mixer.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {"mixer": self.mixer.initial_state(batch, like)}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:45)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:45)
        x = x + mixer_out
        state = {"mixer": mixer}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:45)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:45)
        x = x + mixer_out
        state = {"mixer": mixer}
        return x, state


class Model(nn.Module):
    """The model mamba2: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.repeat = nn.ModuleList(ModelRepeat(**new) for _ in range(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.normal_(self.embed.weight, std=0.02)
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
        # x[d] = embed(tokens)   (spec.nl:44)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x), tied)   (spec.nl:46)
        logits = F.linear(rmsnorm(x), self.embed.weight)
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:44)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x), tied)   (spec.nl:46)
        logits = F.linear(rmsnorm(x), self.embed.weight)
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
