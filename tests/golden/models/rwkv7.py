"""rwkv7: RWKV-7 Goose (arXiv:2503.14456)

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


def unit(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-12) -> Tensor:
    """x / max(||x||, eps)."""
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)


def layernorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps)."""
    x_wide = wide(x)
    variance, mean = torch.var_mean(x_wide, dim, correction=0, keepdim=True)
    return ((x_wide - mean) * torch.rsqrt(variance + eps)).to(x.dtype)


def number(value: float, like: Tensor) -> Tensor:
    """Give a number as a tensor, in float32 or better."""
    return wide(like.new_full((), value))


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


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: [..., m], [..., n] -> [..., m, n]."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], per token: [..., n], [...] -> [...]."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


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


class Write(NamedTuple):
    """One outer product for each token: e b^T with e = sum M_j p + u + sum c e_s."""

    p: list[tuple[Tensor, int]]  # what state j is read with
    u: Tensor | None
    b: list[tuple[Tensor, tuple[int, ...]]]  # along which it goes, and into which states
    c: tuple[tuple[Tensor, int], ...] = ()  # how much of the same token's write s it sees


class Tiles(NamedTuple):
    """A memory's course over a sequence; N tiles of C tokens, H copies, n states."""

    gates: Any  # products of gates from token to token
    writes: list[Tensor]  # e of each write [B, N, H, C, d_v]
    keys: list[list[tuple[Tensor, tuple[int, ...]]]]  # b of each write [B, N, H, C, d_k]
    starts: Tensor  # the states before each tile, side by side [B, N, H, d_v, n * d_k]
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


def solve_tiles(
    writes: list[Write], kind: Any, gates: list[list[Any]], states: list[Tensor], tile: int
) -> tuple[Any, ...]:
    """Solve the writes of all tokens: the course and the states after it; `gates[a][j]` is D_aj."""
    lead, (d_v, d_k) = tuple(states[0].shape[1:-2]), states[0].shape[-2:]
    M = torch.cat([Z.reshape(Z.shape[0], -1, d_v, d_k) for Z in states], -1)
    front = common_front(writes, kind, gates, (M.shape[0], 1, *lead))
    D = kind(gates, front, tile, M)

    def cut(x: Tensor, d: int) -> Tensor:
        return tiled(x.to(M.dtype), front, d, tile)

    keys = [[(D.keys(cut(b, d_k)), into) for b, into in w.b] for w in writes]
    E = [torch.zeros_like(k[0][0][..., :1]) if w.u is None else cut(w.u, d_v)
         for w, k in zip(writes, keys, strict=True)]  # fmt: skip
    open_ = [r for r, w in enumerate(writes) if w.p or w.c]
    known = [r for r in range(len(writes)) if r not in open_]
    # what the known writes leave in the states at each tile's end
    add = sum(E[s].mT @ D.left(keys[s]) for s in known) if known else None
    if open_:
        reads = {r: [(cut(p, d_k), j) for p, j in writes[r].p] for r in open_}
        sees = {r: {s: cut(c.unsqueeze(-1), 1) for c, s in writes[r].c} for r in open_}

        def A(r: int, s: int) -> Tensor:
            return reached(D, reads[r], keys[s], sees[r].get(s))

        # E = X + Y M_0^T: what of the writes is known, and what hangs on the tile's first states
        X = [sum((A(r, s) @ E[s] for s in known), E[r]) for r in open_]
        X = [x.expand(*x.shape[:-1], d_v) for x in X]
        inverse = UnitLowerInverse.apply(woven_square([[A(r, s) for s in open_] for r in open_]))
        Y = inverse @ woven([D.asked(reads[r], late=False) for r in open_])
        left = woven([D.left(keys[r]) for r in open_])
        solved, starts, M = TileScan.apply(inverse @ woven(X), Y, left, D.whole(), add, M)
        for place, r in enumerate(open_):
            E[r] = solved[..., place :: len(open_), :]
    else:
        starts, M = scan_known(add, D.whole(), M)
    path = Tiles(D, E, keys, starts, front[1], lead)
    return path, *(Z.reshape(Z.shape[0], *lead, d_v, d_k) for Z in M.split(d_k, -1))


def common_front(
    writes: list[Write], kind: Any, gates: list[list[Any]], least: tuple[int, ...]
) -> tuple[int, ...]:
    """B, T, *lead of all that is given, some of which may be one for all tokens or copies."""
    vectors = [x for w in writes for x, _ in (*w.p, *w.b)]
    vectors += [w.u for w in writes if w.u is not None]
    numbers = [c for w in writes for c, _ in w.c]
    given = [g for row in gates for g in row if isinstance(g, Tensor)]
    fronts = [x.shape[:-1] for x in vectors] + [x.shape for x in numbers]
    fronts += [g.shape[: g.ndim - kind.axes] for g in given]
    return tuple(torch.broadcast_shapes(*fronts, least))


def reached(
    D: Any, reads: list[tuple[Tensor, int]], keys: list[tuple[Tensor, tuple[int, ...]]], c: Any
) -> Tensor:
    """A[t, i]: how much the reads of token t take of a write of token i < t, or i = t by c."""
    found = [D.reach(into, j, p, b, late=False) for p, j in reads for b, into in keys]
    found += [] if c is None else [torch.diag_embed(c.squeeze(-1))]
    found = [x for x in found if x is not None]
    b = keys[0][0]
    return sum(found[1:], found[0]) if found else b.new_zeros(*b.shape[:-1], b.shape[-2])


def woven(rows: list[Tensor]) -> Tensor:
    """Put the writes of a token one after another: R of [.., C, d] -> [.., C * R, d]."""
    return rows[0] if len(rows) == 1 else torch.stack(rows, -2).flatten(-3, -2)


def woven_square(blocks: list[list[Tensor]]) -> Tensor:
    """As `woven`, for both axes: R x R of [.., C, C] -> [.., C * R, C * R]."""
    if len(blocks) == 1:
        return blocks[0][0]
    shape = torch.broadcast_shapes(*(b.shape for row in blocks for b in row))
    rows = [torch.stack([b.expand(shape) for b in row], -1).flatten(-2) for row in blocks]
    return torch.stack(rows, -2).flatten(-3, -2)


def carried(M: Tensor, w: Tensor) -> Tensor:
    """M_j <- sum_a M_a w_aj: M [.., d_v, n * d_k], w [.., n, n, 1 or d_k]."""
    n = w.shape[-2]
    if n == 1:
        return w.squeeze(-3) * M
    Z = M.unflatten(-1, (n, 1, -1))
    return (w.unsqueeze(-4) * Z).sum(-3).flatten(-2)


class TileScan(torch.autograd.Function):
    """From tile to tile: E = X + Y M^T, then M <- carried(M, w) + E^T b + add.

    X [B, N, H, C, d_v], Y, b [B, N, H, C, n * d_k], w [B, N, H, n, n, 1 or d_k],
    M [B, H, d_v, n * d_k]. Gives the writes E, the states before each tile and the last ones. Its
    gradient runs from the last tile to the first with two products a tile, and takes all others
    at once.
    """

    @staticmethod
    def forward(ctx, X, Y, b, w, add, M):
        writes, starts = [], []
        more = [None] * X.shape[1] if add is None else add.unbind(1)
        tiles = zip(X.unbind(1), Y.unbind(1), b.unbind(1), w.unbind(1), more, strict=True)
        for x, y, key, decay, known in tiles:
            starts.append(M)
            writes.append(x + y @ M.mT)
            M = carried(M, decay) + writes[-1].mT @ key
            M = M if known is None else M + known
        E, S = torch.stack(writes, 1), torch.stack(starts, 1)
        ctx.save_for_backward(Y, b, w, E, S)
        ctx.adds = add is not None
        return E, S, M

    @staticmethod
    def backward(ctx, dE, dS, dM):
        Y, b, w, E, S = ctx.saved_tensors
        back, writes, after = w.transpose(-3, -2), [], []
        for i in reversed(range(E.shape[1])):
            after.append(dM)
            writes.append(dE[:, i] + b[:, i] @ dM.mT)
            dM = dS[:, i] + carried(dM, back[:, i]) + writes[-1].mT @ Y[:, i]
        dX, A = torch.stack(writes[::-1], 1), torch.stack(after[::-1], 1)
        n = w.shape[-2]
        before, later = S.unflatten(-1, (n, -1)), A.unflatten(-1, (n, -1))
        if w.shape[-1] == 1:
            dw = torch.einsum("...vik,...vjk->...ij", before, later).unsqueeze(-1)
        else:
            dw = torch.einsum("...vik,...vjk->...ijk", before, later)
        return dX, dX @ S, E @ A, dw, A if ctx.adds else None, dM


def scan_known(add: Tensor, w: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """As `TileScan`, with writes that do not hang on the state."""
    starts = []
    for known, decay in zip(add.unbind(1), w.unbind(1), strict=True):
        starts.append(M)
        M = carried(M, decay) + known
    return torch.stack(starts, 1), M


def queries(q: Tensor, path: Tiles) -> Tensor:
    """Cut queries into tiles: [B, T, *lead, *more, d] -> [B, N, H, C * more, d]."""
    front = (path.starts.shape[0], path.tokens, *path.lead)
    more = q.shape[2 + len(path.lead) : -1]
    rows = q.to(path.starts.dtype).expand(*front, *more, q.shape[-1]).reshape(*front, -1)
    rows = tiled(rows, front, rows.shape[-1], path.gates.tile)
    return rows.unflatten(-1, (-1, q.shape[-1])).flatten(-3, -2) if more else rows


def answers(y: Tensor, q: Tensor, path: Tiles) -> Tensor:
    """Undo `queries` for what was read."""
    more = q.shape[2 + len(path.lead) : -1]
    y = y.unflatten(-2, (path.gates.tile, -1)) if more else y
    y = untiled(y, path.tokens, path.lead)
    return (y.unflatten(-2, more) if more else y).to(q.dtype)


def read_tiles(q: Tensor, path: Tiles, late: bool = True, state: int = 0) -> Tensor:
    """M_t q_t (late), or M_{t-1} q_t: q [B, T, *lead, *more, d_k] -> [B, T, *lead, *more, d_v]."""
    D, rows = path.gates, queries(q, path)
    y = D.asked([(rows, state)], late) @ path.starts.mT
    for e, keys in zip(path.writes, path.keys, strict=True):
        for b, into in keys:
            scores = D.reach(into, state, rows, b, late)
            y = y if scores is None else y + scores @ e
    return answers(y, q, path)


def per_row(table: Tensor, rows: Tensor, dim: int = -2) -> Tensor:
    """Repeat a table's row of each token for all its queries."""
    times = rows.shape[-2] // table.shape[dim]
    return table if times == 1 else table.repeat_interleave(times, dim)


def gate_tiles(
    g: Tensor | float | None,
    front: tuple[int, ...],
    tile: int,
    like: Tensor,
    axes: int,
    fill: float,
) -> Tensor:
    """Cut gates into tiles [B, N, H, C, 1 or d_k]; tokens beyond the last change nothing."""
    if not isinstance(g, Tensor):
        g = like.new_full((1,), g or 0.0)
    elif axes == 0:
        g = g.unsqueeze(-1)
    return tiled(g.to(like.dtype), front, g.shape[-1], tile, fill)


def products(g: Tensor) -> Tensor:
    """g_{i+1} ... g_t for i <= t, else 0: [.., C, d] -> [.., C, C, d]; nothing is divided."""
    one = torch.ones(g.shape[-2], g.shape[-2], dtype=torch.bool, device=g.device)
    found = torch.where(one.tril(-1).unsqueeze(-1), g.unsqueeze(-2), 1.0).cumprod(-3)
    return torch.where(one.tril().unsqueeze(-1), found, 0.0)


class ScalarGate:
    """One number a token, multiplied forward; nothing is divided, so a gate of 0 is exact.

    `inner` is F(t, i) and `since` F(t, 0), with an axis for channels in the classes below.
    """

    axes = 0

    def __init__(self, gates, front, tile, like):
        self.tile, g = tile, gates[0][0]
        if isinstance(g, float) and g == 1.0:
            self.inner = like.new_ones(tile, tile).tril()
            self.since = like.new_ones(
                *like.shape[:1], -(-front[1] // tile), like.shape[1], tile, 1
            )
        else:
            g = gate_tiles(g, front, tile, like, 0, 1.0)
            self.inner, self.since = products(g).squeeze(-1), g.cumprod(-2)

    def keys(self, b):
        return b

    def table(self, rows, late):
        return per_row(self.inner if late else F.pad(self.inner, (0, 0, 1, -1)), rows)

    def reach(self, into, j, q, b, late=True):
        return self.table(q, late) * (q @ b.mT)

    def spread(self, into, j, s, b, late=True):
        return (self.table(s, late) * s) @ b

    def asked(self, reads, late=True):
        return self.kept(0, reads[0][0], late)

    def kept(self, j, M, late=True):
        since = self.since if late else F.pad(self.since, (0, 0, 1, -1), value=1.0)
        return per_row(since, M) * M

    def left(self, keys):
        return self.inner[..., -1, :, None] * keys[0][0]

    def whole(self):
        return self.since[..., -1:, None, :]


class RelativeGates(ScalarGate):
    """A gate for each channel, by its logarithm, proved to stay above exp(-60) within a tile.

    Then F(t, i) = exp(c_t) exp(-c_i) may be split: keys are taken relative to the tile's start.
    """

    axes = 1

    def __init__(self, gates, front, tile, like):
        self.tile = tile
        self.sums = gate_tiles(gates[0][0], front, tile, like, 1, 0.0).cumsum(-2)
        self.inner, self.since = like.new_ones(tile, tile).tril(), self.sums.exp()

    def keys(self, b):
        return b * (-self.sums).exp()

    def reach(self, into, j, q, b, late=True):
        return super().reach(into, j, self.kept(0, q, late), b, late)

    def spread(self, into, j, s, b, late=True):
        return self.kept(0, super().spread(into, j, s, b, late), late)

    def left(self, keys):
        return self.since[..., -1:, :] * keys[0][0]


class Ln(nn.Module):
    """Block ln: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.gain = nn.Parameter(torch.empty(128, **new))
        self.offset = nn.Parameter(torch.empty(128, **new))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.offset)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # out = layernorm(x, gain = gain, offset = offset)   (spec.nl:35)
        out = layernorm(x) * self.gain + self.offset
        state = {}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        out = layernorm(x) * self.gain + self.offset
        state = {}
        return out, state


class TimeMixS(nn.Module):
    """Memory S: linear(d_k -> d_v), one per heads; every 1 token.

    S = S @ (diag(w) - outer(kappa, a * kappa)) + outer(v, k)   (spec.nl:80)
    state  S [B, heads, d_v, d_k]
    runs   tile-solve: affine in its state, which its writes read
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 4, 32, 32)

    def forward(
        self, w: Tensor, kappa: Tensor, a: Tensor, v: Tensor, k: Tensor, S: Tensor
    ) -> tuple[Tiles, Tensor]:
        """Move over a sequence, 16 tokens at a time."""
        # e1 = S_{t-1} p
        # e2 = u
        # S_t = S_{t-1} diag(g) + e1 b^T + e2 b^T
        p = -kappa
        b = a * kappa
        e1 = Write([(p, 0)], None, [(b, (0,))])
        e2 = Write([], v, [(k, (0,))])
        g = torch.log(w)
        path, S = solve_tiles([e1, e2], RelativeGates, [[g]], [S], 16)
        return path, S

    def read(self, q: Tensor, path: Tiles) -> Tensor:
        """Read S(q) at every token, after its update."""
        return read_tiles(q, path)

    def step(self, w: Tensor, kappa: Tensor, a: Tensor, v: Tensor, k: Tensor, S: Tensor) -> Tensor:
        """Move by one token."""
        S = S * w.unsqueeze(2) - outer(matvec(S, wide(kappa)), wide(a * kappa)) + outer(v, k)
        return S

    def read_step(self, q: Tensor, S: Tensor) -> Tensor:
        """Read S(q) at one token."""
        return read_linear(wide(q), S, 1).to(q.dtype)


class TimeMix(nn.Module):
    """Block time_mix: x[d], v_first[heads, d_v] -> out[d], v_first[heads, d_v]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.x_r = nn.Parameter(torch.empty(128, **new))
        self.x_g = nn.Parameter(torch.empty(128, **new))
        self.x_w = nn.Parameter(torch.empty(128, **new))
        self.x_a = nn.Parameter(torch.empty(128, **new))
        self.x_k = nn.Parameter(torch.empty(128, **new))
        self.x_v = nn.Parameter(torch.empty(128, **new))
        self.W_r = nn.Linear(128, 128, bias=False, **new)
        self.W_k = nn.Linear(128, 128, bias=False, **new)
        self.W_v = nn.Linear(128, 128, bias=False, **new)
        self.W_o = nn.Linear(128, 128, bias=False, **new)
        self.w1 = nn.Linear(128, 32, bias=False, **new)
        self.a1 = nn.Linear(128, 32, bias=False, **new)
        self.v1 = nn.Linear(128, 32, bias=False, **new)
        self.g1 = nn.Linear(128, 64, bias=False, **new)
        self.w2 = nn.Linear(32, 128, bias=False, **new)
        self.a2 = nn.Linear(32, 128, bias=False, **new)
        self.v2 = nn.Linear(32, 128, bias=False, **new)
        self.g2 = nn.Linear(64, 128, bias=False, **new)
        self.w0 = nn.Parameter(torch.empty(4, 32, **new))
        self.a0 = nn.Parameter(torch.empty(4, 32, **new))
        self.v0 = nn.Parameter(torch.empty(4, 32, **new))
        self.k_k = nn.Parameter(torch.empty(4, 32, **new))
        self.k_a = nn.Parameter(torch.empty(4, 32, **new))
        self.r_k = nn.Parameter(torch.empty(4, 32, **new))
        self.gain = nn.Parameter(torch.empty(4, 32, **new))
        self.offset = nn.Parameter(torch.empty(4, 32, **new))
        self.S = TimeMixS()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        with torch.no_grad():
            self.x_r.copy_(1.0 - torch.pow(index(128, self.x_r.double()) / 128.0, 0.1))
        with torch.no_grad():
            self.x_g.copy_(1.0 - torch.pow(index(128, self.x_g.double()) / 128.0, 0.1))
        with torch.no_grad():
            self.x_w.copy_(1.0 - torch.pow(index(128, self.x_w.double()) / 128.0, 0.45))
        with torch.no_grad():
            self.x_a.copy_(1.0 - torch.pow(index(128, self.x_a.double()) / 128.0, 0.45))
        with torch.no_grad():
            self.x_k.copy_(1.0 - torch.pow(index(128, self.x_k.double()) / 128.0, 0.35))
        with torch.no_grad():
            self.x_v.copy_(1.0 - torch.pow(index(128, self.x_v.double()) / 128.0, 0.35))
        nn.init.normal_(self.W_r.weight, std=0.08838834764831843)
        nn.init.normal_(self.W_k.weight, std=0.008838834764831844)
        nn.init.normal_(self.W_v.weight, std=0.08838834764831843)
        nn.init.zeros_(self.W_o.weight)
        nn.init.zeros_(self.w1.weight)
        nn.init.zeros_(self.a1.weight)
        nn.init.zeros_(self.v1.weight)
        nn.init.zeros_(self.g1.weight)
        nn.init.normal_(self.w2.weight, std=0.008838834764831844)
        nn.init.normal_(self.a2.weight, std=0.008838834764831844)
        nn.init.normal_(self.v2.weight, std=0.008838834764831844)
        nn.init.normal_(self.g2.weight, std=0.008838834764831844)
        value = self.w0.double()
        difference = 2.0 * index(32, value) / 31.0 - 1.0
        total = -5.5 + 6.0 * torch.pow(index(128, value).unflatten(-1, (4, 32)) / 127.0, 1.81)
        result = total + (2.5 * difference * torch.abs(difference)).unsqueeze(0)
        with torch.no_grad():
            self.w0.copy_(result)
        value = self.a0.double()
        difference = 2.0 * index(32, value) / 31.0 - 1.0
        total = -0.39 + 0.4 * index(128, value).unflatten(-1, (4, 32)) / 127.0
        result = total + (0.3 * difference * torch.abs(difference)).unsqueeze(0)
        with torch.no_grad():
            self.a0.copy_(result)
        with torch.no_grad():
            self.v0.copy_(0.93 - 0.4 * index(128, self.v0.double()).unflatten(-1, (4, 32)) / 127.0)
        with torch.no_grad():
            self.k_k.copy_(
                0.76 - 0.1 * index(128, self.k_k.double()).unflatten(-1, (4, 32)) / 127.0
            )
        nn.init.constant_(self.k_a, 1.02)
        nn.init.constant_(self.r_k, -0.04)
        nn.init.constant_(self.gain, 0.62)
        nn.init.zeros_(self.offset)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        S = self.S.initial(batch, like)
        return {"S": S, "shift_1": like.new_zeros(batch, 1, 128)}

    def forward(
        self, x: Tensor, v_first: Tensor | None = None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run a whole sequence: x [B, T, d], v_first [B, T, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return (x.new_zeros(x.shape[0], 0, 128), x.new_zeros(x.shape[0], 0, 4, 32)), state
        shifted, shift_1 = shift(x, state["shift_1"])
        x_1 = wide(x)
        difference = wide(shifted) - x_1
        # r    = W_r(lerp(x, past, x_r))   (spec.nl:66)
        r = self.W_r((x_1 + self.x_r * difference).to(x.dtype)).unflatten(-1, (4, 32))
        value = (x_1 + self.x_v * difference).to(x.dtype)
        # own  = W_v(lerp(x, past, x_v))   (spec.nl:67)
        own = self.W_v(value).unflatten(-1, (4, 32))
        v_first = given(v_first, own)
        own = wide(own)
        # v    = lerp(own, v_first, sigmoid(v0 + v2(v1(lerp(x, past, x_v)))))   (spec.nl:68)
        value_1 = torch.sigmoid(self.v0 + wide(self.v2(self.v1(value)).unflatten(-1, (4, 32))))
        v = own + value_1 * (wide(v_first) - own)
        # w    = exp(-exp(-0.5) * sigmoid(w0 + w2(tanh(w1(lerp(x, past, x_w))))))   (spec.nl:69)
        value = self.w2(
            torch.tanh(wide(self.w1((x_1 + self.x_w * difference).to(x.dtype)))).to(x.dtype)
        )
        value_2 = torch.sigmoid(self.w0 + wide(value.unflatten(-1, (4, 32))))
        w = torch.exp(number(-0.6065306597126334, x).unsqueeze(0).unsqueeze(1) * value_2)
        # a    = sigmoid(a0 + a2(a1(lerp(x, past, x_a))))   (spec.nl:70)
        value = wide(
            self.a2(self.a1((x_1 + self.x_a * difference).to(x.dtype))).unflatten(-1, (4, 32))
        )
        a = torch.sigmoid(self.a0 + value)
        # g    = g2(sigmoid(g1(lerp(x, past, x_g))))   (spec.nl:71)
        g = self.g2(torch.sigmoid(self.g1((x + self.x_g * difference).to(x.dtype)))).unflatten(
            -1, (4, 32)
        )
        # key_  = W_k(lerp(x, past, x_k))   (spec.nl:73)
        key_ = self.W_k((x_1 + self.x_k * difference).to(x.dtype)).unflatten(-1, (4, 32))
        key_ = wide(key_)
        # kappa = unit(key_ * k_k)   (spec.nl:74)
        kappa = unit(key_ * self.k_k)
        # k     = key_ * lerp(1, a, k_a)   (spec.nl:75)
        k = key_ * (1.0 + self.k_a * (a - 1.0))
        S_path, S = self.S(w, kappa, a, v, k, state["S"])
        # y     = layernorm(S(r), gain = gain, offset = offset, eps = 64e-5)   (spec.nl:83)
        y = layernorm(self.S.read(r, S_path), eps=0.00064) * self.gain + self.offset
        # bonus = <r, r_k * k> * v   (spec.nl:84)
        bonus = (r * (self.r_k * k)).sum(-1).unsqueeze(3) * v
        # out   = W_o(g * (y + bonus))   (spec.nl:85)
        out = self.W_o((g * (y + bonus)).flatten(-2).to(x.dtype))
        state = {"S": S, "shift_1": shift_1}
        return (out, v_first), state

    def step(
        self, x: Tensor, v_first: Tensor | None = None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run one token: x [B, d], v_first [B, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        shifted, shift_1 = shift_step(x, state["shift_1"])
        x_1 = wide(x)
        difference = wide(shifted) - x_1
        # r    = W_r(lerp(x, past, x_r))   (spec.nl:66)
        r = self.W_r((x_1 + self.x_r * difference).to(x.dtype)).unflatten(-1, (4, 32))
        value = (x_1 + self.x_v * difference).to(x.dtype)
        # own  = W_v(lerp(x, past, x_v))   (spec.nl:67)
        own = self.W_v(value).unflatten(-1, (4, 32))
        v_first = given(v_first, own)
        own = wide(own)
        # v    = lerp(own, v_first, sigmoid(v0 + v2(v1(lerp(x, past, x_v)))))   (spec.nl:68)
        value_1 = torch.sigmoid(self.v0 + wide(self.v2(self.v1(value)).unflatten(-1, (4, 32))))
        v = own + value_1 * (wide(v_first) - own)
        # w    = exp(-exp(-0.5) * sigmoid(w0 + w2(tanh(w1(lerp(x, past, x_w))))))   (spec.nl:69)
        value = self.w2(
            torch.tanh(wide(self.w1((x_1 + self.x_w * difference).to(x.dtype)))).to(x.dtype)
        )
        value_2 = torch.sigmoid(self.w0 + wide(value.unflatten(-1, (4, 32))))
        w = torch.exp(number(-0.6065306597126334, x).unsqueeze(0).unsqueeze(1) * value_2)
        # a    = sigmoid(a0 + a2(a1(lerp(x, past, x_a))))   (spec.nl:70)
        value = wide(
            self.a2(self.a1((x_1 + self.x_a * difference).to(x.dtype))).unflatten(-1, (4, 32))
        )
        a = torch.sigmoid(self.a0 + value)
        # g    = g2(sigmoid(g1(lerp(x, past, x_g))))   (spec.nl:71)
        g = self.g2(torch.sigmoid(self.g1((x + self.x_g * difference).to(x.dtype)))).unflatten(
            -1, (4, 32)
        )
        # key_  = W_k(lerp(x, past, x_k))   (spec.nl:73)
        key_ = self.W_k((x_1 + self.x_k * difference).to(x.dtype)).unflatten(-1, (4, 32))
        key_ = wide(key_)
        # kappa = unit(key_ * k_k)   (spec.nl:74)
        kappa = unit(key_ * self.k_k)
        # k     = key_ * lerp(1, a, k_a)   (spec.nl:75)
        k = key_ * (1.0 + self.k_a * (a - 1.0))
        S = self.S.step(w, kappa, a, v, k, state["S"])
        # y     = layernorm(S(r), gain = gain, offset = offset, eps = 64e-5)   (spec.nl:83)
        y = layernorm(self.S.read_step(r, S), eps=0.00064) * self.gain + self.offset
        # bonus = <r, r_k * k> * v   (spec.nl:84)
        bonus = (r * (self.r_k * k)).sum(-1).unsqueeze(2) * v
        # out   = W_o(g * (y + bonus))   (spec.nl:85)
        out = self.W_o((g * (y + bonus)).flatten(-2).to(x.dtype))
        state = {"S": S, "shift_1": shift_1}
        return (out, v_first), state


class ChannelMix(nn.Module):
    """Block channel_mix: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.x_k = nn.Parameter(torch.empty(128, **new))
        self.W_k = nn.Linear(128, 512, bias=False, **new)
        self.W_v = nn.Linear(512, 128, bias=False, **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        with torch.no_grad():
            self.x_k.copy_(1.0 - torch.pow(index(128, self.x_k.double()) / 128.0, 0.0625))
        nn.init.normal_(self.W_k.weight, std=0.044194173824159216)
        nn.init.zeros_(self.W_v.weight)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {"shift_1": like.new_zeros(batch, 1, 128)}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        shifted, shift_1 = shift(x, state["shift_1"])
        # out = W_v(relu(W_k(lerp(x, shift(x), x_k)))^2)   (spec.nl:93)
        out = self.W_v(F.relu(self.W_k(x + self.x_k * (shifted - x))).square())
        state = {"shift_1": shift_1}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        shifted, shift_1 = shift_step(x, state["shift_1"])
        out = self.W_v(F.relu(self.W_k(x + self.x_k * (shifted - x))).square())
        state = {"shift_1": shift_1}
        return out, state


class ModelRepeat(nn.Module):
    """One pass of `repeat`."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.ln = Ln(**new)
        self.time_mix = TimeMix(**new)
        self.ln_1 = Ln(**new)
        self.channel_mix = ChannelMix(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.ln.reset_parameters()
        self.time_mix.reset_parameters()
        self.ln_1.reset_parameters()
        self.channel_mix.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "ln": self.ln.initial_state(batch, like),
            "time_mix": self.time_mix.initial_state(batch, like),
            "ln_1": self.ln_1.initial_state(batch, like),
            "channel_mix": self.channel_mix.initial_state(batch, like),
        }

    def forward(
        self, x: Tensor, v_first: Tensor | None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run a whole sequence: x [B, T, d], v_first [B, T, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # ln(x)   (spec.nl:101)
        ln_out, ln = self.ln(x, state["ln"])
        # time_mix(ln(x), v_first)   (spec.nl:101)
        time_mix_out, time_mix = self.time_mix(ln_out, v_first, state["time_mix"])
        time_mix_out_1, time_mix_v_first = time_mix_out
        # x = x + y   (spec.nl:102)
        x = x + time_mix_out_1
        # ln(x)   (spec.nl:103)
        ln_1_out, ln_1 = self.ln_1(x, state["ln_1"])
        # channel_mix(ln(x))   (spec.nl:103)
        channel_mix_out, channel_mix = self.channel_mix(ln_1_out, state["channel_mix"])
        # x = x + channel_mix(ln(x))   (spec.nl:103)
        x = x + channel_mix_out
        state = {"ln": ln, "time_mix": time_mix, "ln_1": ln_1, "channel_mix": channel_mix}
        return (time_mix_v_first, x), state

    def step(
        self, x: Tensor, v_first: Tensor | None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run one token: x [B, d], v_first [B, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # ln(x)   (spec.nl:101)
        ln_out, ln = self.ln.step(x, state["ln"])
        # time_mix(ln(x), v_first)   (spec.nl:101)
        time_mix_out, time_mix = self.time_mix.step(ln_out, v_first, state["time_mix"])
        time_mix_out_1, time_mix_v_first = time_mix_out
        # x = x + y   (spec.nl:102)
        x = x + time_mix_out_1
        # ln(x)   (spec.nl:103)
        ln_1_out, ln_1 = self.ln_1.step(x, state["ln_1"])
        # channel_mix(ln(x))   (spec.nl:103)
        channel_mix_out, channel_mix = self.channel_mix.step(ln_1_out, state["channel_mix"])
        # x = x + channel_mix(ln(x))   (spec.nl:103)
        x = x + channel_mix_out
        state = {"ln": ln, "time_mix": time_mix, "ln_1": ln_1, "channel_mix": channel_mix}
        return (time_mix_v_first, x), state


class Model(nn.Module):
    """The model rwkv7: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = nn.Linear(128, 256, bias=False, **new)
        self.ln = Ln(**new)
        self.repeat = nn.ModuleList(ModelRepeat(**new) for _ in range(4))
        self.ln_1 = Ln(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.normal_(self.embed.weight, std=0.02)
        self.unembed.reset_parameters()
        self.ln.reset_parameters()
        for layer in self.repeat:
            layer.reset_parameters()
        self.ln_1.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "ln": self.ln.initial_state(batch, like),
            "repeat": {
                str(i): layer.initial_state(batch, like) for i, layer in enumerate(self.repeat)
            },
            "ln_1": self.ln_1.initial_state(batch, like),
        }

    def forward(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: tokens [B, T]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:98)
        x = self.embed(tokens)
        # ln(x)   (spec.nl:99)
        ln_out, ln = self.ln(x, state["ln"])
        v_first = None
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            (v_first, ln_out), repeat_states[str(i)] = layer(
                ln_out, v_first, state["repeat"][str(i)]
            )
        # ln(x)   (spec.nl:105)
        ln_1_out, ln_1 = self.ln_1(ln_out, state["ln_1"])
        # logits = unembed(ln(x))   (spec.nl:105)
        logits = self.unembed(ln_1_out)
        state = {"ln": ln, "repeat": repeat_states, "ln_1": ln_1}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:98)
        x = self.embed(tokens)
        # ln(x)   (spec.nl:99)
        ln_out, ln = self.ln.step(x, state["ln"])
        v_first = None
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            (v_first, ln_out), repeat_states[str(i)] = layer.step(
                ln_out, v_first, state["repeat"][str(i)]
            )
        # ln(x)   (spec.nl:105)
        ln_1_out, ln_1 = self.ln_1.step(ln_out, state["ln_1"])
        # logits = unembed(ln(x))   (spec.nl:105)
        logits = self.unembed(ln_1_out)
        state = {"ln": ln, "repeat": repeat_states, "ln_1": ln_1}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
