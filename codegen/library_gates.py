"""Products of gates within a tile; the class a module uses is copied into it.

In: gates D_lj of n states for each token, None 0: numbers [B, T, *lead] where `axes` is 0, channels
[B, T, *lead, d_k] where it is 1. With F(t, i) = D_{i+1} ... D_t, and t-1 in the place of t unless
`late`, each class offers, for tiles of C tokens:

    keys(b)                  b, as the other methods take it
    reach(into, j, q, b)     <F(t, i) b_i, q_t>: what a read of state j takes of the writes [C, C]
    spread(into, j, s, b)    sum_i s[t, i] F(t, i) b_i: what state j holds of them [C, d_k]
    asked(reads)             F(t, 0) q_t, what the tile's first states are asked [C, n * d_k]
    kept(j, M)               F(t, 0) applied to rows of them: [C, n * d_k] -> [C, d_k]
    left(keys)               F(C, i) b_i, where a write goes at the tile's end [C, n * d_k]
    whole()                  F(C, 0) [n, n, 1 or d_k]

Rows may be several for each token.
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


class ChannelGates(ScalarGate):
    """A gate for each channel of the key: F(t, i) is a table of C x C for each of them."""

    axes = 1

    def __init__(self, gates, front, tile, like):
        self.tile = tile
        g = gate_tiles(gates[0][0], front, tile, like, 1, 1.0)
        self.inner, self.since = products(g), g.cumprod(-2)

    def table(self, rows, late):
        return per_row(self.inner if late else F.pad(self.inner, (0, 0, 0, 0, 1, -1)), rows, -3)

    def reach(self, into, j, q, b, late=True):
        return (q.unsqueeze(-2) * self.table(q, late) * b.unsqueeze(-3)).sum(-1)

    def spread(self, into, j, s, b, late=True):
        return (s.unsqueeze(-1) * self.table(s, late) * b.unsqueeze(-3)).sum(-2)

    def left(self, keys):
        return self.inner[..., -1, :, :] * keys[0][0]


class LogGates(ChannelGates):
    """As `ChannelGates`, from the gates' logarithms: F(t, i) = exp(c_t - c_i), c their sums."""

    def __init__(self, gates, front, tile, like):
        self.tile = tile
        c = gate_tiles(gates[0][0], front, tile, like, 1, 0.0).cumsum(-2)
        one = torch.ones(tile, tile, dtype=torch.bool, device=c.device).tril().unsqueeze(-1)
        exponents = torch.where(one, c.unsqueeze(-2) - c.unsqueeze(-3), -torch.inf)
        self.inner, self.since = exponents.exp(), c.exp()


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


class CoupledGates:
    """Gates between n states, one number a token.

    `tables[a][j]` holds F_aj(t, i) [.., C, 1 + C, 1 or d_k], with F_aj(t, 0) in column 0.
    """

    axes = 0

    def __init__(self, gates, front, tile, like):
        self.tile, self.n = tile, len(gates)

        def cut(a, j):
            if gates[a][j] is None and a != j:
                return None
            return gate_tiles(gates[a][j], front, tile, like, self.axes, float(a == j))

        states = range(self.n)
        self.tables = coupled_tables([[cut(a, j) for j in states] for a in states])

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
            rows = torch.zeros_like(reads[0][0])
            for q, j in reads:
                table = self.table(a, j, late)
                if table is not None:
                    rows = rows + per_row(table[..., 0, :], q) * q
            found.append(rows)
        return torch.cat(found, -1)

    def kept(self, j, M, late=True):
        parts = M.unflatten(-1, (self.n, -1)).unbind(-2)
        tables = [self.table(a, j, late) for a in range(self.n)]
        pairs = [(t[..., 0, :], x) for t, x in zip(tables, parts, strict=True) if t is not None]
        return sum(per_row(since, x) * x for since, x in pairs)

    def left(self, keys):
        found = []
        for j in range(self.n):
            rows = torch.zeros_like(keys[0][0])
            for b, into in keys:
                table = self.total(into, j, late=True)
                rows = rows if table is None else rows + table[..., -1, :, :] * b
            found.append(rows)
        return torch.cat(found, -1)

    def whole(self):
        zero = torch.zeros_like(self.tables[0][0][..., -1, 0, :])
        rows = [[zero if t is None else t[..., -1, 0, :] for t in row] for row in self.tables]
        shape = torch.broadcast_shapes(*(x.shape for row in rows for x in row))
        return torch.stack([torch.stack([x.expand(shape) for x in r], -2) for r in rows], -3)


class CoupledChannels(CoupledGates):
    """As `CoupledGates`, with gates for each channel of the key among them."""

    axes = 1


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
