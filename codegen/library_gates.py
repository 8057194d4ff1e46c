"""Products of gates within a tile; the class a module uses is copied into it.

In: gates D_lj of n states for each token, None 0: numbers [B, T, *lead] where `axes` is 0, channels
[B, T, *lead, d_k] where it is 1. With F(t, i) = D_{i+1} ... D_t, and t-1 in the place of t unless
`late`, each class offers, for tiles of C tokens:

    rows(q), keys(b)         q and b, as the other methods take them
    reach(into, j, q, b)     <F(t, i) b_i, q_t>: what a read of state j takes of the writes [C, C]
    spread(into, j, s, b)    sum_i s[t, i] F(t, i) b_i: what state j holds of them [C, d_k]
    asked(reads)             F(t, 0) q_t, what the tile's first states are asked [C, n * d_k]
    kept(j, M)               F(t, 0) applied to rows of them: [C, n * d_k] -> [C, d_k]
    left(keys)               F(C, i) b_i, where a write goes at the tile's end [C, n * d_k]
    whole()                  F(C, 0) [n, n, 1 or d_k]
    of_chunks(rows, n)       the same for each of n chunks that stand as rows of a batch
    numbers(into, j)         F(t, i) of writes into some states, where gates are numbers

There may be several queries, and rows, for each token. Tables of F(t, i) begin with the tile's
start, t = i = 0: rows 1 ... C are late, rows 0 ... C-1 are those before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nlc.codegen.library_tiles import tiled
from torch import Tensor


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
    """Cut gates into tiles [N, G, C, 1 or d_k]; tokens beyond the last change nothing."""
    if not isinstance(g, Tensor):
        g = like.new_full((1,), g or 0.0)
    elif axes == 0:
        g = g.unsqueeze(-1)
    return tiled(g.to(like.dtype), front, g.shape[-1], tile, fill)


def by_chunk(x: Tensor | None, rows: int, n: int) -> list[Tensor | None]:
    """What n chunks have, which stand as rows of a batch: n of [N, G, ...]; None is 0 for all."""
    if x is None:
        return [None] * n
    return [part.flatten(1, 2) for part in x.unflatten(1, (rows, n, -1)).unbind(2)]


class Products(torch.autograd.Function):
    """g_{i+1} ... g_t for 0 <= i <= t <= C, else 0: [.., C] -> [.., 1 + C, 1 + C].

    They are the inverse X of I - A, where A has g below its diagonal; nothing is divided. Its
    gradient is that of any inverse, X^T G X^T, of which only what stands in the place of g counts.
    """

    @staticmethod
    def forward(ctx, g):
        tokens = g.shape[-1]
        one = g.new_ones(1 + tokens, 1 + tokens)
        lower, below = one.tril(), one[1:].tril()
        first = one[:1].expand(*g.shape[:-1], 1, 1 + tokens)
        # each number where its products go on, and 1 elsewhere
        rows = torch.addcmul(one[1:] - below, g.unsqueeze(-1), below)
        found = torch.cat([first, rows], -2).cumprod(-2).mul_(lower)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx, grad):
        (found,) = ctx.saved_tensors
        return (found[..., 1:].mT @ grad * found[..., :-1, :]).sum(-1)


class DecayedKeys(torch.autograd.Function):
    """g_{i+1} ... g_t b_i for i <= t, else 0, channel by channel: [.., C, d] -> [.., C, C, d].

    Its last row, t = C, is given once more for itself.
    """

    @staticmethod
    def forward(ctx, g, b):
        found = b.new_zeros(*b.shape[:-2], b.shape[-2], *b.shape[-2:])
        for t in range(b.shape[-2]):
            if t:
                found[..., t, :t, :] = found[..., t - 1, :t, :] * g[..., t, None, :]
            found[..., t, t, :] = b[..., t, :]
        ctx.save_for_backward(g, found)
        return found, found[..., -1, :, :].clone()

    @staticmethod
    def backward(ctx, grad, last):
        g, found = ctx.saved_tensors
        dg, db = torch.zeros_like(g), torch.empty_like(g)
        row = grad[..., -1, :, :] + last
        for t in reversed(range(g.shape[-2])):
            db[..., t, :] = row[..., t, :]
            if t:
                dg[..., t, :] = (row[..., :t, :] * found[..., t - 1, :t, :]).sum(-2)
                row = grad[..., t - 1, :t, :] + row[..., :t, :] * g[..., t, None, :]
        return dg, db


class BothProducts(torch.autograd.Function):
    """g_1 ... g_t for each t, and one over it, for gates that are away from 0: [.., C, d]."""

    @staticmethod
    def forward(ctx, g):
        found = g.cumprod(-2)
        inverse = found.reciprocal()
        ctx.save_for_backward(g, found, inverse)
        return found, inverse

    @staticmethod
    def backward(ctx, dfound, dinverse):
        g, found, inverse = ctx.saved_tensors
        dlog = dfound * found - dinverse * inverse
        return dlog.flip(-2).cumsum(-2).flip(-2) / g


class ScalarGate:
    """One number a token, multiplied forward; nothing is divided, so a gate of 0 is exact."""

    axes, n = 0, 1
    still = False  # whether it is 1 throughout

    def __init__(self, tile, table, still=False):
        self.tile, self.table, self.still = tile, table, still

    @classmethod
    def of(cls, gates, front, tile, like):
        g = gates[0][0]
        if isinstance(g, float) and g == 1.0:
            table = like.new_ones(1 + tile, 1 + tile).tril()
            return cls(tile, table.expand(-(-front[1] // tile), like.shape[0], -1, -1), True)
        g = gate_tiles(g, front, tile, like, 0, 1.0)
        return cls(tile, Products.apply(g.squeeze(-1)))

    def of_chunks(self, rows, n):
        cut = by_chunk(self.table, rows, n)
        return [ScalarGate(self.tile, table, self.still) for table in cut]

    def numbers(self, into, j):
        return self.table

    def seen(self, late):
        return self.table[..., 1:, :] if late else self.table[..., :-1, :]

    def rows(self, q, late=True):
        return q

    def keys(self, b):
        return b

    def reach(self, into, j, q, b, late=True):
        return per_row(self.seen(late)[..., 1:], q) * (q @ b.mT)

    def spread(self, into, j, s, b, late=True):
        return (per_row(self.seen(late)[..., 1:], s) * s) @ b

    def asked(self, reads, late=True):
        return self.kept(0, reads[0][0], late)

    def kept(self, j, M, late=True):
        return per_row(self.seen(late)[..., :1], M) * M

    def left(self, keys):
        return self.table[..., -1, 1:, None] * keys[0][0]

    def whole(self):
        return self.table[..., -1:, :1, None]


class ChannelGates:
    """A gate for each channel of the key, multiplied forward: keys as every later token sees them.

    `since` is F(t, 0).
    """

    axes = 1

    def __init__(self, tile, g, since):
        self.tile, self.g, self.since = tile, g, since

    @classmethod
    def of(cls, gates, front, tile, like):
        g = gate_tiles(gates[0][0], front, tile, like, 1, 1.0)
        return cls(tile, g, F.pad(g.cumprod(-2), (0, 0, 1, 0), value=1.0))

    def of_chunks(self, rows, n):
        parts = zip(*(by_chunk(x, rows, n) for x in (self.g, self.since)), strict=True)
        return [ChannelGates(self.tile, g, since) for g, since in parts]

    def rows(self, q, late=True):
        return q

    def keys(self, b):
        return DecayedKeys.apply(self.g, b)

    def seen(self, x, late):
        """Rows x of each token to the keys that it sees: [C * m, d] -> [C, m, d]."""
        x = x.unflatten(-2, (self.tile, -1))
        return x if late else F.pad(x[..., 1:, :, :], (0, 0, 0, 0, 0, 1))

    def told(self, x, late):
        """What the rows of each token found, [C, m, d] -> [C * m, d]; before the first, nothing."""
        x = x if late else F.pad(x[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
        return x.flatten(-3, -2)

    def reach(self, into, j, q, b, late=True):
        return self.told(self.seen(q, late) @ b[0].mT, late)

    def spread(self, into, j, s, b, late=True):
        return self.told(self.seen(s, late) @ b[0], late)

    def asked(self, reads, late=True):
        return self.kept(0, reads[0][0], late)

    def kept(self, j, M, late=True):
        return per_row(self.since[..., 1:, :] if late else self.since[..., :-1, :], M) * M

    def left(self, keys):
        return keys[0][0][1]

    def whole(self):
        return self.since[..., -1:, None, :]


class RelativeGates(ChannelGates):
    """A gate for each channel, whose products are proved to stay within exp(-60) and exp(60).

    Then F(t, i) = F(t, 0) / F(i, 0) may be split: rows and keys are taken relative to the start.
    """

    def __init__(self, tile, since, inverse):
        self.tile, self.since, self.inverse = tile, since, inverse
        self.mask = since.new_ones(1 + tile, 1 + tile).tril()[:, 1:]

    @classmethod
    def of(cls, gates, front, tile, like):
        since, inverse = BothProducts.apply(gate_tiles(gates[0][0], front, tile, like, 1, 1.0))
        return cls(tile, F.pad(since, (0, 0, 1, 0), value=1.0), inverse)

    def of_chunks(self, rows, n):
        parts = zip(*(by_chunk(x, rows, n) for x in (self.since, self.inverse)), strict=True)
        return [RelativeGates(self.tile, since, inverse) for since, inverse in parts]

    def rows(self, q, late=True):
        return self.kept(0, q, late)

    def keys(self, b):
        return self.inverse * b

    def seen(self, x, late):
        return per_row(self.mask[1:] if late else self.mask[:-1], x) * x

    def reach(self, into, j, q, b, late=True):
        return self.seen(q @ b.mT, late)

    def spread(self, into, j, s, b, late=True):
        return self.kept(0, self.seen(s, late) @ b, late)

    def asked(self, reads, late=True):
        return reads[0][0]

    def left(self, keys):
        return self.since[..., -1:, :] * keys[0][0]


class CoupledGates:
    """Gates between n states, one number a token.

    `tables[a][j]` holds F_aj(t, i) [.., 1 + C, 1 + C, 1 or d_k], with i = 0 the tile's start.
    """

    axes = 0
    still = False

    def __init__(self, tile, tables):
        self.tile, self.n, self.tables = tile, len(tables), tables

    @classmethod
    def of(cls, gates, front, tile, like):
        def cut(a, j):
            if gates[a][j] is None and a != j:
                return None
            return gate_tiles(gates[a][j], front, tile, like, cls.axes, float(a == j))

        states = range(len(gates))
        return cls(tile, coupled_tables([[cut(a, j) for j in states] for a in states]))

    def of_chunks(self, rows, n):
        cut = [[by_chunk(x, rows, n) for x in row] for row in self.tables]
        return [CoupledGates(self.tile, [[x[i] for x in row] for row in cut]) for i in range(n)]

    def rows(self, q, late=True):
        return q

    def keys(self, b):
        return b

    def numbers(self, into, j):
        """F(t, i), of writes into some states, where it is one number a token."""
        found = [t for a in into if (t := self.tables[a][j]) is not None]
        return sum(found[1:], found[0]).squeeze(-1) if found else None

    def total(self, into, j):
        """What of a write into some states reaches state j."""
        found = [t for a in into if (t := self.tables[a][j]) is not None]
        return sum(found[1:], found[0])[..., 1:, :] if found else None

    def seen(self, into, j, late, rows):
        """The same, as each row of a token sees it."""
        table = self.total(into, j)
        if table is None:
            return None
        return per_row(table[..., 1:, :, :] if late else table[..., :-1, :, :], rows, -3)

    def reach(self, into, j, q, b, late=True):
        table = self.seen(into, j, late, q)
        if table is None:
            return None
        if table.shape[-1] == 1:
            return table.squeeze(-1) * (q @ b.mT)
        return (q.unsqueeze(-2) * table * b.unsqueeze(-3)).sum(-1)

    def spread(self, into, j, s, b, late=True):
        table = self.seen(into, j, late, s)
        if table is None:
            return None
        if table.shape[-1] == 1:
            return (table.squeeze(-1) * s) @ b
        return (s.unsqueeze(-1) * table * b.unsqueeze(-3)).sum(-2)

    def since(self, j, late, rows):
        """How much of each of the first states is in state j: [C, n, 1 or d_k]."""
        found = side_by_side([None if row[j] is None else row[j][..., 0, :] for row in self.tables])
        return per_row(found[..., 1:, :, :] if late else found[..., :-1, :, :], rows, -3)

    def asked(self, reads, late=True):
        return sum((self.since(j, late, q) * q.unsqueeze(-2)).flatten(-2) for q, j in reads)

    def kept(self, j, M, late=True):
        return (self.since(j, late, M) * M.unflatten(-1, (self.n, -1))).sum(-2)

    def left(self, keys):
        found = 0.0
        for b, into in keys:
            tables = [self.total(into, j) for j in range(self.n)]
            last = side_by_side([None if t is None else t[..., -1, :, :] for t in tables])
            found = found + (last * b.unsqueeze(-2)).flatten(-2)
        return found

    def whole(self):
        last = [[None if t is None else t[..., -1, 0, :] for t in row] for row in self.tables]
        return side_by_side([side_by_side(row) for row in last], -3)


class CoupledChannels(CoupledGates):
    """As `CoupledGates`, with gates for each channel of the key among them."""

    axes = 1


def side_by_side(parts: list[Tensor | None], dim: int = -2) -> Tensor:
    """Stack what may have one channel or all of them, None 0."""
    shape = torch.broadcast_shapes(*(x.shape for x in parts if x is not None))
    blank = next(x for x in parts if x is not None).new_zeros(1)
    return torch.stack([(blank if x is None else x).expand(shape) for x in parts], dim)


def coupled_tables(D: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    """F(t, i) of gates D_aj [.., C, 1 or d]: tables [.., 1 + C, 1 + C, 1 or d].

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
            tables[j][j] = own_table(D[j][j])
            for a in range(n):
                came = [
                    D[m][j].unsqueeze(-2) * tables[a][m][..., :-1, :, :]
                    for m in range(n)
                    if m != j and D[m][j] is not None and tables[a][m] is not None
                ]
                if a != j and came:
                    tables[a][j] = after(tables[j][j][..., 1:, :], sum(came[1:], came[0]))
            waiting.remove(j)
    return tables


def own_table(g: Tensor) -> Tensor:
    """F(t, i) of one state: [.., C, 1 or d] -> [.., 1 + C, 1 + C, 1 or d]."""
    if g.shape[-1] == 1:
        return Products.apply(g.squeeze(-1)).unsqueeze(-1)
    g = F.pad(g, (0, 0, 1, 0), value=1.0)
    return DecayedKeys.apply(g, torch.ones_like(g))[0]


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
    rows = [now]
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
