"""linear_attention: Linear attention (arXiv:2006.16236)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    fast: every 1 token
    slow: every 1 step
"""

from __future__ import annotations

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


def number(value: float, like: Tensor) -> Tensor:
    """Give a number as a tensor, in float32 or better."""
    return wide(like.new_full((), value))


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


class MLP(nn.Module):
    """Linear layers with an activation between them; `norm`, then `residual` at the end."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        act: str = "gelu",
        bias: bool = False,
        residual: bool = False,
        norm: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.act, self.residual, self.layers = act, residual, len(sizes) - 1
        for i in range(self.layers):
            layer = nn.Linear(sizes[i], sizes[i + 1], bias=bias, **new)
            self.add_module(f"layer{i + 1}", layer)
        self.norm = nn.LayerNorm(sizes[-1], **new) if norm else None

    def reset_parameters(self) -> None:
        for layer in self.children():
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(x)
        for i in range(1, self.layers):
            y = getattr(self, f"layer{i + 1}")(activation(self.act, y))
        y = y if self.norm is None else self.norm(y)
        return x + y if self.residual else y


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


def states_of_tiles(path: Tiles, late: bool = True) -> Tensor:
    """M_t (late), or M_{t-1}, for every token: [B, T, *lead, d_v, d_k]."""
    keys, writes, products, since, starts, tokens, lead, _ = path
    if not late:
        products, since = before(products, since)
    products = products.expand(*since.shape, since.shape[-1])
    states = torch.einsum("bnhti,bnhiv,bnhik->bnhtvk", products, writes, keys)
    states = states + since[..., None, None] * starts.unsqueeze(3)
    return untiled(states, tokens, lead)


class MixerM(nn.Module):
    """Memory M: linear(d_k -> d_v), one per heads; every 1 token.

    self = self - 1 * (grad + 0 * self)   (rules.nl:7)
    state  M [B, heads, d_v, d_k]
    runs   tile-scan: affine in its state, and its writes are known in advance
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 4, 32, 32)

    def forward(self, v: Tensor, k: Tensor, M: Tensor) -> tuple[Tiles, Tensor]:
        """Move over a sequence, 64 tokens at a time."""
        # M_t = g M_{t-1} + (M_{t-1} p + u) b^T
        path, M = solve_tiles(None, v, k, None, M, 64)
        return path, M

    def read(self, q: Tensor, path: Tiles) -> Tensor:
        """Read M(q) at every token, after its update."""
        return read_tiles(q, path)

    def step(self, v: Tensor, k: Tensor, M: Tensor) -> Tensor:
        """Move by one token."""
        M = M + outer(v, k)
        return M

    def read_step(self, q: Tensor, M: Tensor) -> Tensor:
        """Read M(q) at one token."""
        return read_linear(wide(q), M, 1).to(q.dtype)


class MixerZ(nn.Module):
    """Memory z: vector(d_k), one per heads; every 1 token.

    z = z + k   (spec.nl:32)
    state  z [B, heads, d_k]
    runs   tile-scan: affine in its state, and its writes are known in advance
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 4, 32)

    def forward(self, k: Tensor, z: Tensor) -> tuple[Tiles, Tensor]:
        """Move over a sequence, 64 tokens at a time."""
        # M_t = g M_{t-1} + (M_{t-1} p + u) b^T
        u = number(1.0, k).unsqueeze(0).unsqueeze(1)
        path, z = solve_tiles(None, u, k, None, z.unsqueeze(-2), 64)
        return path, z.squeeze(-2)

    def states(self, path: Tiles) -> Tensor:
        """Give z at every token, after its update."""
        return states_of_tiles(path).squeeze(-2)

    def step(self, k: Tensor, z: Tensor) -> Tensor:
        """Move by one token."""
        z = z + k
        return z


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = nn.Linear(128, 128, bias=False, **new)
        self.W_k = nn.Linear(128, 128, bias=False, **new)
        self.W_v = nn.Linear(128, 128, bias=False, **new)
        self.W_o = nn.Linear(128, 128, bias=False, **new)
        self.M = MixerM()
        self.z = MixerZ()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_o.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        M = self.M.initial(batch, like)
        z = self.z.initial(batch, like)
        return {"M": M, "z": z}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        value = wide(self.W_q(x).unflatten(-1, (4, 32)))
        # q = relu(W_q(x)) + exp(min(W_q(x), 0))   (spec.nl:19)
        q = F.relu(value) + torch.exp(value.clamp_max(0.0))
        value = wide(self.W_k(x).unflatten(-1, (4, 32)))
        # k = relu(W_k(x)) + exp(min(W_k(x), 0))   (spec.nl:20)
        k = F.relu(value) + torch.exp(value.clamp_max(0.0))
        # v = W_v(x)   (spec.nl:21)
        v = self.W_v(x).unflatten(-1, (4, 32))
        M_path, M = self.M(v, k, state["M"])
        z_path, z = self.z(k, state["z"])
        # out = W_o(M(q) / max(<z, q>, 1e-6))   (spec.nl:35)
        value = (self.z.states(z_path) * q).sum(-1).clamp_min(1e-06).unsqueeze(3)
        out = self.W_o((self.M.read(q, M_path) / value).flatten(-2).to(x.dtype))
        state = {"M": M, "z": z}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        value = wide(self.W_q(x).unflatten(-1, (4, 32)))
        # q = relu(W_q(x)) + exp(min(W_q(x), 0))   (spec.nl:19)
        q = F.relu(value) + torch.exp(value.clamp_max(0.0))
        value = wide(self.W_k(x).unflatten(-1, (4, 32)))
        # k = relu(W_k(x)) + exp(min(W_k(x), 0))   (spec.nl:20)
        k = F.relu(value) + torch.exp(value.clamp_max(0.0))
        # v = W_v(x)   (spec.nl:21)
        v = self.W_v(x).unflatten(-1, (4, 32))
        M = self.M.step(v, k, state["M"])
        z = self.z.step(k, state["z"])
        # out = W_o(M(q) / max(<z, q>, 1e-6))   (spec.nl:35)
        quotient = self.M.read_step(q, M) / (z * q).sum(-1).clamp_min(1e-06).unsqueeze(2)
        out = self.W_o(quotient.flatten(-2).to(x.dtype))
        state = {"M": M, "z": z}
        return out, state


class Mlp(nn.Module):
    """Block mlp: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.F = MLP((128, 512, 128), act="gelu", **new)
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
        # out = F(x)   (spec.nl:41)
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
        self.mlp = Mlp(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.mixer.reset_parameters()
        self.mlp.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "mixer": self.mixer.initial_state(batch, like),
            "mlp": self.mlp.initial_state(batch, like),
        }

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:50)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:50)
        x = x + mixer_out
        # mlp(rmsnorm(x))   (spec.nl:51)
        mlp_out, mlp = self.mlp(rmsnorm(x), state["mlp"])
        # x = x + mlp(rmsnorm(x))   (spec.nl:51)
        x = x + mlp_out
        state = {"mixer": mixer, "mlp": mlp}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:50)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:50)
        x = x + mixer_out
        # mlp(rmsnorm(x))   (spec.nl:51)
        mlp_out, mlp = self.mlp.step(rmsnorm(x), state["mlp"])
        # x = x + mlp(rmsnorm(x))   (spec.nl:51)
        x = x + mlp_out
        state = {"mixer": mixer, "mlp": mlp}
        return x, state


class Model(nn.Module):
    """The model linear_attention: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = nn.Linear(128, 256, bias=False, **new)
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
            "position": 0,
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
        position = state["position"]
        # angle = position * 10000^(-index(waves) / waves)   (spec.nl:46)
        value = positions(position, tokens.shape[1], self.embed.weight).unsqueeze(2)
        angle = value * torch.pow(10000.0, -index(64, self.embed.weight) / 64.0)
        # x[d] = embed(tokens)   (spec.nl:47)
        x = self.embed(tokens)
        # x = x + concat(sin(angle), cos(angle))   (spec.nl:48)
        x = x + concat(torch.sin(angle), torch.cos(angle))
        x_1 = x.to(self.embed.weight.dtype)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x_1, repeat_states[str(i)] = layer(x_1, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:53)
        logits = self.unembed(rmsnorm(x_1))
        state = {"position": position + tokens.shape[1], "repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        position = state["position"]
        # angle = position * 10000^(-index(waves) / waves)   (spec.nl:46)
        value = positions(position, 1, self.embed.weight).squeeze(1).unsqueeze(1)
        angle = value * torch.pow(10000.0, -index(64, self.embed.weight) / 64.0)
        # x[d] = embed(tokens)   (spec.nl:47)
        x = self.embed(tokens)
        # x = x + concat(sin(angle), cos(angle))   (spec.nl:48)
        x = x + concat(torch.sin(angle), torch.cos(angle))
        x_1 = x.to(self.embed.weight.dtype)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x_1, repeat_states[str(i)] = layer.step(x_1, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:53)
        logits = self.unembed(rmsnorm(x_1))
        state = {"position": position + 1, "repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
