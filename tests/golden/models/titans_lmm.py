"""titans_lmm: Neural long-term memory of Titans (arXiv:2501.00663, eqs. 8-14)

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


def wide(x: Tensor) -> Tensor:
    """Give x in float32 or better: the precision of states and decays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-12) -> Tensor:
    """x / max(||x||, eps)."""
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)


def rmsnorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps)."""
    return x * torch.rsqrt(wide(x).square().mean(dim, keepdim=True) + eps).to(x.dtype)


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


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


class Tensors(nn.Module):
    """Holds parameters by name, without values; whoever holds it draws them."""

    def __init__(self, device=None, dtype=None, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))


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
    starts: list[Tensor]  # each state before each tile [B, N, H, d_v, d_k]
    tokens: int
    lead: tuple[int, ...]


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


def in_heads(Z: Tensor) -> Tensor:
    """The leading axes as one: [B, *lead, d_v, d_k] -> [B, H, d_v, d_k]."""
    return Z.flatten(1, -3) if Z.ndim > 3 else Z.unsqueeze(1)


def solve(writes: list[Write], D: Any, front: tuple[int, ...], M: list[Tensor]) -> tuple[Any, ...]:
    """Solve the writes: e and b of each, the states before each tile, and after the last."""
    d_v, d_k = M[0].shape[-2:]

    def cut(x: Tensor, d: int) -> Tensor:
        return tiled(x.to(M[0].dtype), front, d, D.tile)

    keys = [[(D.keys(cut(b, d_k)), into) for b, into in w.b] for w in writes]
    E = [
        torch.zeros_like(k[0][0][..., :1]) if w.u is None else cut(w.u, d_v)
        for w, k in zip(writes, keys, strict=True)
    ]
    open_ = [r for r, w in enumerate(writes) if w.p or w.c]
    known = [r for r in range(len(writes)) if r not in open_]
    # what the known writes leave in each state at each tile's end
    left = [(E[s], D.left(keys[s])) for s in known]
    adds = [[e.mT @ b[j] for e, b in left if b[j] is not None] for j in range(len(M))]
    add = [sum(x[1:], x[0]) if x else None for x in adds]
    if not open_:
        starts, M = scan_known(add, D.flow(), M)
        return E, keys, starts, M
    reads = {r: [(cut(p, d_k), j) for p, j in writes[r].p] for r in open_}
    sees = {r: {s: cut(c.unsqueeze(-1), 1) for c, s in writes[r].c} for r in open_}

    def A(r: int, s: int) -> Tensor:
        return reached(D, reads[r], keys[s], sees[r].get(s))

    # E = X + Y M_0^T: what of the writes is known, and what hangs on the tile's first states
    X = [sum((A(r, s) @ E[s] for s in known), E[r]) for r in open_]
    X = [x.expand(*x.shape[:-1], d_v) for x in X]
    inverse = UnitLowerInverse.apply(woven_square([[A(r, s) for s in open_] for r in open_]))
    Y = inverse @ woven([abreast(D.asked(reads[r], late=False), keys[r][0][0]) for r in open_])
    B = woven([abreast(D.left(keys[r]), keys[r][0][0]) for r in open_])
    more = abreast(add, M[0].unsqueeze(1)) if known else None
    w, Z = square(D.flow()), torch.cat(M, -1)
    solved, starts, Z = TileScan.apply(inverse @ woven(X), Y, B, w, more, Z)
    for place, r in enumerate(open_):
        E[r] = solved[..., place :: len(open_), :]
    return E, keys, list(starts.split(d_k, -1)), list(Z.split(d_k, -1))


def abreast(rows: list[Any], like: Tensor) -> Tensor:
    """What is for each state, side by side."""
    some = next((x for x in rows if x is not None), like)
    return torch.cat([torch.zeros_like(some) if x is None else x for x in rows], -1)


def square(flow: list[list[Any]]) -> Tensor:
    """F(C, 0) as one tensor [.., n, n, 1 or d_k]."""
    some = next(x for row in flow for x in row if x is not None)
    rows = [[torch.zeros_like(some) if x is None else x for x in row] for row in flow]
    shape = torch.broadcast_shapes(*(x.shape for row in rows for x in row))
    return torch.stack([torch.cat([x.expand(shape) for x in row], -2) for row in rows], -3)


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


def scan_known(
    add: list[Any], flow: list[list[Any]], M: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """As `TileScan`, with writes that do not hang on the states, each by itself."""
    n = range(len(M))
    starts: list[list[Tensor]] = [[] for _ in n]
    tiles = next(x.shape[1] for row in flow for x in row if x is not None)
    adds = [by_tile(x, tiles) for x in add]
    flows = [[by_tile(x, tiles) for x in row] for row in flow]
    for i in range(tiles):
        for j in n:
            starts[j].append(M[j])
        moved = [[flows[a][j][i] * M[a] for a in n if flows[a][j][i] is not None] for j in n]
        moved = [x if adds[j][i] is None else [adds[j][i], *x] for j, x in enumerate(moved)]
        M = [sum(x[1:], x[0]) if x else torch.zeros_like(M[0]) for x in moved]
    return [torch.stack(x, 1) if len(x) > 1 else x[0].unsqueeze(1) for x in starts], M


def by_tile(x: Any, tiles: int) -> list[Any]:
    """What is for each tile, one by one; None is 0 for all of them."""
    if x is None:
        return [None] * tiles
    return [x.squeeze(1)] if tiles == 1 else list(x.unbind(1))


def queries(q: Tensor, path: Tiles) -> Tensor:
    """Cut queries into tiles: [B, T, *lead, *more, d] -> [B, N, H, C * more, d]."""
    front = (path.starts[0].shape[0], path.tokens, *path.lead)
    more = q.shape[2 + len(path.lead) : -1]
    rows = q.to(path.starts[0].dtype).expand(*front, *more, q.shape[-1]).reshape(*front, -1)
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
    asked = zip(D.asked([(rows, state)], late), path.starts, strict=True)
    found = [x @ M.mT for x, M in asked if x is not None]
    y = sum(found[1:], found[0])
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


class CoupledGates:
    """Gates between n states, one number a token.

    `tables[a][j]` holds F_aj(t, i) [.., C, 1 + C, 1 or d_k], with F_aj(t, 0) in column 0.
    """

    axes = 0

    def __init__(self, tile, tables):
        self.tile, self.tables, self.n = tile, tables, len(tables)

    @classmethod
    def of(cls, gates, front, tile, like):
        def cut(a, j):
            if gates[a][j] is None and a != j:
                return None
            return gate_tiles(gates[a][j], front, tile, like, cls.axes, float(a == j))

        states = range(len(gates))
        return cls(tile, coupled_tables([[cut(a, j) for j in states] for a in states]))

    def of_chunks(self, n):
        """The same for each of n chunks that stand as rows of a batch."""

        def cut(t):
            return [None] * n if t is None else t.unflatten(0, (-1, n)).unbind(1)

        parts = [[cut(t) for t in row] for row in self.tables]
        return [type(self)(self.tile, [[t[i] for t in row] for row in parts]) for i in range(n)]

    def keys(self, b):
        return b

    def table(self, a, j, late):
        table = self.tables[a][j]
        return table if late or table is None else one_before(table, a == j)

    def total(self, into, j, late):
        """What of a write into some states reaches state j."""
        found = [t for a in into if (t := self.table(a, j, late)) is not None]
        return sum(found[1:], found[0])[..., 1:, :] if found else None

    def reach(self, into, j, q, b, late=True):
        table = self.total(into, j, late)
        if table is None:
            return None
        table = per_row(table, q, -3)
        if table.shape[-1] == 1:
            return table.squeeze(-1) * (q @ b.mT)
        return (q.unsqueeze(-2) * table * b.unsqueeze(-3)).sum(-1)

    def spread(self, into, j, s, b, late=True):
        table = self.total(into, j, late)
        if table is None:
            return None
        table = per_row(table, s, -3)
        if table.shape[-1] == 1:
            return (table.squeeze(-1) * s) @ b
        return (s.unsqueeze(-1) * table * b.unsqueeze(-3)).sum(-2)

    def asked(self, reads, late=True):
        found = []
        for a in range(self.n):
            tables = [(self.table(a, j, late), q) for q, j in reads]
            rows = [per_row(t[..., 0, :], q) * q for t, q in tables if t is not None]
            found.append(sum(rows[1:], rows[0]) if rows else None)
        return found

    def kept(self, j, M, late=True):
        tables = [self.table(a, j, late) for a in range(self.n)]
        pairs = [(t[..., 0, :], x) for t, x in zip(tables, M, strict=True) if t is not None]
        return sum(per_row(since, x) * x for since, x in pairs)

    def left(self, keys):
        found = []
        for j in range(self.n):
            tables = [(self.total(into, j, late=True), b) for b, into in keys]
            rows = [t[..., -1, :, :] * b for t, b in tables if t is not None]
            found.append(sum(rows[1:], rows[0]) if rows else None)
        return found

    def flow(self):
        return [[None if t is None else t[..., -1, :1, :] for t in row] for row in self.tables]


def one_before(table: Tensor, same: bool) -> Tensor:
    """F(t-1, i) for F(t, i): before the first token there is nothing but the tile's start."""
    first = torch.zeros_like(table[..., :1, :, :])
    if same:
        first = torch.cat([torch.ones_like(first[..., :1, :]), first[..., 1:, :]], -2)
    return torch.cat([first, table[..., :-1, :, :]], -3)


def coupled_tables(D: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    """F(t, i) of gates D_aj [.., C, 1 or d]: tables [.., C, 1 + C, 1 or d], F(t, 0) in column 0.

    A state that others flow into: F_aj = F_jj (sum_m D_mj F_am), its own products times what came
    to it, one token later. Where states flow in a circle, token by token.
    """
    n = len(D)
    tables: list[list[Tensor | None]] = [[None] * n for _ in range(n)]
    waiting = list(range(n))
    while waiting:
        free = [j for j in waiting if all(D[m][j] is None for m in waiting if m != j)]
        if not free:
            return circular_tables(D)
        for j in free:
            own = D[j][j]
            tables[j][j] = torch.cat([own.cumprod(-2).unsqueeze(-2), products(own)], -2)
            for a in range(n):
                came = [
                    D[m][j].unsqueeze(-2) * one_before(tables[a][m], a == m)
                    for m in range(n)
                    if m != j and D[m][j] is not None and tables[a][m] is not None
                ]
                if a != j and came:
                    tables[a][j] = after(tables[j][j][..., 1:, :], sum(came[1:], came[0]))
            waiting.remove(j)
    return tables


def after(table: Tensor, came: Tensor) -> Tensor:
    """sum_s table[t, s] came[s, i], for each channel."""
    if table.shape[-1] == came.shape[-1] == 1:
        return (table.squeeze(-1) @ came.squeeze(-1)).unsqueeze(-1)
    return torch.einsum("...tsk,...sik->...tik", table, came)


def circular_tables(D: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    """As `coupled_tables`, one token after another."""
    n, C = len(D), D[0][0].shape[-2]
    d = max(g.shape[-1] for row in D for g in row if g is not None)
    zero = D[0][0].new_zeros(*D[0][0].shape[:-2], 1 + C, d)
    one = torch.eye(1 + C, dtype=zero.dtype, device=zero.device).unsqueeze(-1)
    states = range(n)
    now = [[zero + one[0] if a == j else zero for j in states] for a in states]
    rows = []
    for t in range(C):
        new = [[zero + one[t + 1] if a == j else zero for j in states] for a in states]
        for a in states:
            for j in states:
                for m in states:
                    if D[m][j] is not None:
                        new[a][j] = new[a][j] + now[a][m] * D[m][j][..., t, None, :]
        now = new
        rows.append(now)
    return [[torch.stack([row[a][j] for row in rows], -3) for j in states] for a in states]


class Moves(NamedTuple):
    """How a part moves: its gates D_aj [B, T, *lead], their class, and the tokens of a tile."""

    gates: list[list[Any]]
    kind: Any
    tile: int
    rank: int = 2  # of the part: a matrix, a vector (one row), a number
    turned: bool = False  # whether all is said of the transposed part


class Chunks(NamedTuple):
    """A course over n chunks of one length, which stand as rows of a batch [B * n, C, ...]."""

    tiles: dict[str, Tiles]  # the course of each part
    origin: dict[str, Tensor]  # each part before its chunk [B * n, *lead, ...]
    n: int


def run_chunks(
    writes: Callable[..., dict[str, list[Any]]],
    streams: list[Tensor],
    moves: dict[str, Moves],
    states: list[dict[str, Tensor]],
    start: dict[str, Tensor],
    position: int,
    chunk: int,
    reset: tuple[int, list[dict[str, Tensor]]] | None = None,
) -> tuple[Any, ...]:
    """Run a sequence: its course, the states after it and the one before the open chunk.

    `writes(*streams, start)` gives the writes of each part; `reset` has a period and the states to
    go back to.
    """
    course: list[Chunks] = []
    at = 0
    for length, n in chunk_runs(position, streams[0].shape[1], chunk):
        spans = [x[:, at : at + length * n].split(length, 1) for x in streams]
        gates = {part: gates_of_run(m, states[0][part], at, length, n) for part, m in moves.items()}
        by_chunk = {part: D.of_chunks(n) for part, D in gates.items()}
        starts, found = [], []
        for i, now in enumerate(zip(*spans, strict=True)):
            made = writes(*now, start)
            starts.append(start)
            solved, after = {}, [{} for _ in states]
            for part, m in moves.items():
                own = [as_matrix(state[part], m) for state in states]
                front = (own[0].shape[0], length, *own[0].shape[1:-2])
                *solved[part], M = solve(
                    made[part], by_chunk[part][i], front, [in_heads(Z) for Z in own]
                )
                for j, Z in enumerate(M):
                    after[j][part] = from_matrix(Z.reshape(own[0].shape), m)
            found.append(solved)
            states, position = after, position + length
            if reset is not None and position % reset[0] == 0:
                states = reset[1]
            if position % chunk == 0:
                start = states[0]
        at += length * n
        tiles = {
            part: tiles_of_run(
                [solved[part] for solved in found], gates[part], length, starts[0][part], m
            )
            for part, m in moves.items()
        }
        origin = {part: in_one_batch([s[part] for s in starts]) for part in moves}
        course.append(Chunks(tiles, origin, n))
    return course, *states, start


def chunk_runs(position: int, tokens: int, chunk: int) -> list[tuple[int, int]]:
    """Cut a sequence that begins at a position at the ends of its chunks: (length, how many)."""
    first = min(-position % chunk, tokens)
    whole, rest = divmod(tokens - first, chunk)
    return [(length, n) for length, n in ((first, 1), (chunk, whole), (rest, 1)) if length and n]


def as_matrix(x: Tensor, m: Moves) -> Tensor:
    """A part as a matrix: a vector is one row, a number a matrix of one entry."""
    for _ in range(2 - m.rank):
        x = x.unsqueeze(-2 if m.rank == 1 else -1)
    return x.mT if m.turned else x


def from_matrix(x: Tensor, m: Moves) -> Tensor:
    """Undo `as_matrix`."""
    x = x.mT if m.turned else x
    for _ in range(2 - m.rank):
        x = x.squeeze(-2 if m.rank == 1 else -1)
    return x


def gates_of_run(m: Moves, state: Tensor, at: int, length: int, n: int) -> Any:
    """The products of gates of n chunks, rows of one batch."""
    like = in_heads(as_matrix(state, m)).repeat_interleave(n, 0)
    lead = state.shape[1 : state.ndim - m.rank]

    def rows(g: Any) -> Any:
        if not isinstance(g, Tensor):
            return g
        g = g if g.shape[1] == 1 else g[:, at : at + length * n]
        g = g.expand(state.shape[0], length * n, *g.shape[2:])
        return g.unflatten(1, (n, length)).flatten(0, 1)

    gates = [[rows(g) for g in row] for row in m.gates]
    return m.kind.of(gates, (like.shape[0], length, *lead), min(m.tile, length), like)


def in_one_batch(rows: list[Tensor]) -> Tensor:
    """n of [B, ...] as one [B * n, ...], so that row b * n + i is that of chunk i."""
    return rows[0] if len(rows) == 1 else torch.stack(rows, 1).flatten(0, 1)


def tiles_of_run(found: list[Any], D: Any, length: int, state: Tensor, m: Moves) -> Tiles:
    """The course of one part over n chunks, from what was solved for each."""
    E = [in_one_batch(list(e)) for e in zip(*(chunk[0] for chunk in found), strict=True)]
    keys = []
    for same in zip(*(chunk[1] for chunk in found), strict=True):
        joined = [in_one_batch([b for b, _ in pairs]) for pairs in zip(*same, strict=True)]
        keys.append([(b, into) for b, (_, into) in zip(joined, same[0], strict=True)])
    starts = [in_one_batch(list(x)) for x in zip(*(chunk[2] for chunk in found), strict=True)]
    return Tiles(D, E, keys, starts, length, tuple(state.shape[1 : state.ndim - m.rank]))


def over_chunks(read: Callable[..., Tensor], course: list[Chunks], *q: Tensor) -> Tensor:
    """Read a course: `read(*q, chunks)` for each run of chunks, q [B, T, ...] cut alike."""
    found, at = [], 0
    for chunks in course:
        length = next(iter(chunks.tiles.values())).tokens
        here = [x[:, at : at + length * chunks.n] for x in q]
        here = [x.unflatten(1, (chunks.n, length)).flatten(0, 1) for x in here]
        y = read(*here, chunks)
        found.append(y.unflatten(0, (-1, chunks.n)).flatten(1, 2))
        at += length * chunks.n
    return found[0] if len(found) == 1 else torch.cat(found, 1)


class MixerM(nn.Module):
    """Memory M: mlp(d_k -> 2*d_k -> d_v), one per heads; every 1 token.

    S = eta * S - theta * grad   (spec.nl:16)
    self = (1 - alpha) * self + S   (spec.nl:17)
    state  M.layer1.weight [B, heads, 2*d_k, d_k]
    state  M.layer2.weight [B, heads, d_v, 2*d_k]
    state  M.S.layer1.weight [B, heads, 2*d_k, d_k]
    state  M.S.layer2.weight [B, heads, d_v, 2*d_k]
    runs   tile-scan: affine in its state, and its writes are known at the chunk's start
    """

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.layer1 = Tensors(weight=(4, 64, 32), **new)
        self.layer2 = Tensors(weight=(4, 32, 64), **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial state anew."""
        uniform(self.layer1.weight, 32)
        uniform(self.layer2.weight, 64)

    def initial(self, batch: int, like: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the state at the start."""
        M = {
            "layer1.weight": wide(self.layer1.weight).expand(batch, 4, 64, 32),
            "layer2.weight": wide(self.layer2.weight).expand(batch, 4, 32, 64),
        }
        M_S = {
            "layer1.weight": zeros(like, batch, 4, 64, 32),
            "layer2.weight": zeros(like, batch, 4, 32, 64),
        }
        return M, M_S

    def forward(
        self,
        alpha: Tensor,
        eta: Tensor,
        theta: Tensor,
        k: Tensor,
        v: Tensor,
        M: dict[str, Tensor],
        M_S: dict[str, Tensor],
        M_start: dict[str, Tensor],
        position: int,
    ) -> tuple[list[Chunks], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Move over a sequence, a chunk of 16 tokens at a time."""

        def writes(theta, k, v, start):
            """What the tokens of a chunk write, from the state before it."""
            layer2_weight = start["layer2.weight"]
            value = torch.einsum("bhoi,bthi->btho", start["layer1.weight"], wide(k))
            b = F.gelu(value)
            difference = torch.einsum("bhoi,bthi->btho", layer2_weight, b) - v
            product = value * (0.3989422804014327 * torch.exp(-0.5 * (value * value)))
            value_1 = torch.einsum("bhoi,bthi->btho", layer2_weight.mT, difference)
            product_1 = value_1 * (0.5 * (1.0 + torch.erf(0.7071067811865476 * value)) + product)
            u = -(theta.unsqueeze(3) * product_1)
            e = Write([], u, [(k, (0, 1))])
            u = (-theta).unsqueeze(3) * difference
            e_1 = Write([], u, [(b, (0, 1))])
            return {"layer1.weight": [e], "layer2.weight": [e_1]}

        # e = u
        # M.layer1.weight_t = M.layer1.weight_{t-1} g11 + M_S.layer1.weight_{t-1} g21 + e b^T
        # M_S.layer1.weight_t = M_S.layer1.weight_{t-1} g22 + e b^T
        g = 1.0 - alpha
        moves = {
            "layer1.weight": Moves([[g, None], [eta, eta]], CoupledGates, 64),
            "layer2.weight": Moves([[g, None], [eta, eta]], CoupledGates, 64),
        }
        path, M, M_S, M_start = run_chunks(
            writes, [theta, k, v], moves, [M, M_S], M_start, position, 16
        )
        return path, M, M_S, M_start

    def read(self, q: Tensor, path: list[Chunks]) -> Tensor:
        """Read M(q) at every token, after its update."""

        def read(q, chunks):
            value = read_tiles(
                F.gelu(read_tiles(wide(q), chunks.tiles["layer1.weight"])),
                chunks.tiles["layer2.weight"],
            )
            result = value.to(q.dtype)
            return result

        return over_chunks(read, path, q)

    def step(
        self,
        alpha: Tensor,
        eta: Tensor,
        theta: Tensor,
        k: Tensor,
        v: Tensor,
        M: dict[str, Tensor],
        M_S: dict[str, Tensor],
        M_start: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Move by one token."""
        layer2_weight = M_start["layer2.weight"]
        value = (1.0 - alpha).unsqueeze(2).unsqueeze(3)
        value_1 = eta.unsqueeze(2).unsqueeze(3)
        value_2 = theta.unsqueeze(2).unsqueeze(3)
        k = wide(k)
        value_3 = matvec(M_start["layer1.weight"], k)
        value_4 = F.gelu(value_3)
        difference = matvec(layer2_weight, value_4) - v
        product = 0.3989422804014327 * torch.exp(-0.5 * (value_3 * value_3))
        product_1 = 0.5 * (1.0 + torch.erf(0.7071067811865476 * value_3))
        value_5 = outer(matvec(layer2_weight.mT, difference) * (product_1 + value_3 * product), k)
        M_S_layer1_weight = value_1 * M_S["layer1.weight"] - value_2 * value_5
        M_layer1_weight = value * M["layer1.weight"] + M_S_layer1_weight
        M_S_layer2_weight = value_1 * M_S["layer2.weight"] - value_2 * outer(difference, value_4)
        M_layer2_weight = value * M["layer2.weight"] + M_S_layer2_weight
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
        self.W_q = nn.Linear(128, 128, bias=False, **new)
        self.W_k = nn.Linear(128, 128, bias=False, **new)
        self.W_v = nn.Linear(128, 128, bias=False, **new)
        self.W_o = nn.Linear(128, 128, bias=False, **new)
        self.W_lr = nn.Linear(128, 4, bias=True, **new)
        self.W_m = nn.Linear(128, 4, bias=True, **new)
        self.W_f = nn.Linear(128, 4, bias=True, **new)
        self.conv_q = Conv(128, 4, **new)
        self.conv_k = Conv(128, 4, **new)
        self.M = MixerM(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_o.reset_parameters()
        self.W_lr.reset_parameters()
        self.W_m.reset_parameters()
        self.W_f.reset_parameters()
        self.conv_q.reset_parameters()
        self.conv_k.reset_parameters()
        self.M.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        M, M_S = self.M.initial(batch, like)
        return {
            "M": M,
            "M.S": M_S,
            "M.start": M,
            "conv_q": like.new_zeros(batch, 3, 128),
            "conv_k": like.new_zeros(batch, 3, 128),
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
            self.W_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # q = unit(silu(conv_q(W_q(x))))   (spec.nl:27)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_k = self.conv_k(
            self.W_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        # k = unit(silu(conv_k(W_k(x))))   (spec.nl:28)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        # v[heads, d_v] = silu(W_v(x))   (spec.nl:29)
        v = F.silu(wide(self.W_v(x).unflatten(-1, (4, 32))))
        # theta, eta, alpha = sigmoid(W_lr(x)), sigmoid(W_m(x)), sigmoid(W_f(x))   (spec.nl:30)
        theta = torch.sigmoid(wide(self.W_lr(x)))
        eta = torch.sigmoid(wide(self.W_m(x)))
        alpha = torch.sigmoid(wide(self.W_f(x)))
        M_path, M, M_S, M_start = self.M(
            alpha, eta, theta, k, v, state["M"], state["M.S"], state["M.start"], position
        )
        # out = W_o(rmsnorm(M(q)))   (spec.nl:40)
        out = self.W_o(rmsnorm(self.M.read(q, M_path)).flatten(-2).to(x.dtype))
        state = {
            "M": M,
            "M.S": M_S,
            "M.start": M_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
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
            self.W_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # q = unit(silu(conv_q(W_q(x))))   (spec.nl:27)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_k = self.conv_k.step(
            self.W_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        # k = unit(silu(conv_k(W_k(x))))   (spec.nl:28)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        # v[heads, d_v] = silu(W_v(x))   (spec.nl:29)
        v = F.silu(wide(self.W_v(x).unflatten(-1, (4, 32))))
        # theta, eta, alpha = sigmoid(W_lr(x)), sigmoid(W_m(x)), sigmoid(W_f(x))   (spec.nl:30)
        theta = torch.sigmoid(wide(self.W_lr(x)))
        eta = torch.sigmoid(wide(self.W_m(x)))
        alpha = torch.sigmoid(wide(self.W_f(x)))
        M, M_S = self.M.step(alpha, eta, theta, k, v, state["M"], state["M.S"], M_start)
        # out = W_o(rmsnorm(M(q)))   (spec.nl:40)
        out = self.W_o(rmsnorm(self.M.read_step(q, M)).flatten(-2).to(x.dtype))
        M_start = M if (position + 1) % 16 == 0 else M_start
        state = {
            "M": M,
            "M.S": M_S,
            "M.start": M_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "position": position + 1,
        }
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
        # mixer(rmsnorm(x))   (spec.nl:46)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:46)
        x = x + mixer_out
        state = {"mixer": mixer}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:46)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:46)
        x = x + mixer_out
        state = {"mixer": mixer}
        return x, state


class Model(nn.Module):
    """The model titans_lmm: tokens [B, T] -> logits [B, T, 256]."""

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
        # x[d] = embed(tokens)   (spec.nl:45)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:47)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:45)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:47)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
