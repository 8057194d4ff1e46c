"""What products of gates within a tile cost: `codegen/library_gates.py`, counted and not run.

In: the gates of n states, `Sized` [tiles, copies, C, 1 or d_k], None 0. Out: for every class of
that file one of the same name with the same methods, which take and give `Sized` values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nlc.ir.cost import WIDTH, Work
from nlc.ir.schedule import Gates
from nlc.passes.sized import Sized, Sizes

Into = tuple[int, ...]


class Products(Protocol):
    """Products of gates; see `library_gates` for what the methods mean."""

    tile: int

    def keys(self, at: Sizes, b: Sized) -> Sized:
        """Count what is done to b once."""

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """<F(t, i) b_i, q_t>."""

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """sum_i s[t, i] F(t, i) b_i."""

    def asked(self, at: Sizes, reads: list[tuple[Sized, int]]) -> Sized:
        """F(t, 0) q_t."""

    def kept(self, at: Sizes, j: int, M: Sized) -> Sized:
        """F(t, 0) applied to rows of the first states."""

    def left(self, at: Sizes, keys: list[tuple[Sized, Into]]) -> Sized:
        """F(C, i) b_i."""

    def whole(self) -> Sized:
        """F(C, 0)."""


def per_row(table: Sized, rows: Sized, dim: int = -2) -> Sized:
    """Repeat a table's row of each token for all its queries."""
    shape = list(table.shape)
    shape[dim] = rows.shape[-2]
    return Sized(tuple(shape), table.needs)


def products(at: Sizes, g: Sized) -> Sized:
    """g_{i+1} ... g_t: [.., C, d] -> [.., C, C, d]."""
    C, d = g.shape[-2:]
    table = Sized((*g.shape[:-2], C, C, d), g.needs)
    # masked, multiplied along the tokens, masked
    at.each(at.each(Sized(table.shape, False)))
    running_product(at, table)
    return table


def running_product(at: Sizes, x: Sized) -> Sized:
    """Count `cumprod`: its gradient minds zeros, and takes some twenty passes over the entries."""
    at.tally.elementwise(x.entries, x.entries, x.entries, False)
    if x.needs:
        at.tally.backward += Work(elementwise=12 * x.entries, bytes=40 * WIDTH * x.entries)
    return x


class ScalarGate:
    """One number a token, multiplied forward."""

    def __init__(self, at: Sizes, gates: list[list[Sized | None]], tile: int, like: Sized):
        self.tile, g = tile, gates[0][0]
        tiles = like.shape[:2]
        if g is None:
            self.inner = Sized((tile, tile), False)
            self.since = Sized((*tiles, tile, 1), False)
        else:
            self.inner, self.since = self.tables(at, g)

    def tables(self, at: Sizes, g: Sized) -> tuple[Sized, Sized]:
        """F(t, i) and F(t, 0)."""
        found = products(at, g)
        return Sized(found.shape[:-1], found.needs), running_product(at, g)

    def keys(self, at: Sizes, b: Sized) -> Sized:
        """As it is."""
        return b

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """The table times q b^T."""
        return at.each(per_row(self.inner, q), at.matmul(q, b.mT))

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """(The table times s) b."""
        return at.matmul(at.each(per_row(self.inner, s), s), b)

    def asked(self, at: Sizes, reads: list[tuple[Sized, int]]) -> Sized:
        """Scaled by what is left since the tile's start."""
        return self.kept(at, 0, reads[0][0])

    def kept(self, at: Sizes, j: int, M: Sized) -> Sized:
        """Scaled by what is left since the tile's start."""
        return at.each(per_row(self.since, M), M)

    def left(self, at: Sizes, keys: list[tuple[Sized, Into]]) -> Sized:
        """Scaled by what is left at the tile's end."""
        (b, _) = keys[0]
        return at.each(b, Sized((*b.shape[:-1], 1), self.inner.needs))

    def whole(self) -> Sized:
        """What is left of the first state at the tile's end."""
        return Sized((*self.since.shape[:-2], 1, 1, self.since.shape[-1]), self.since.needs)


class ChannelGates(ScalarGate):
    """A table for each channel."""

    def tables(self, at: Sizes, g: Sized) -> tuple[Sized, Sized]:
        """F(t, i) and F(t, 0)."""
        return products(at, g), running_product(at, g)

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """A sum over channels."""
        return by_channel(at, q, per_row(self.inner, q, -3), b)

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """A sum over the tile's tokens."""
        return over_tokens(at, s, per_row(self.inner, s, -3), b)


class LogGates(ChannelGates):
    """A table for each channel, from logarithms."""

    def tables(self, at: Sizes, g: Sized) -> tuple[Sized, Sized]:
        """F(t, i) and F(t, 0): sums, a difference for each pair, and exponentials."""
        sums = at.each(g)
        table = at.each(_axis(sums, -2), _axis(sums, -3), flops=2)
        return at.each(table), at.each(sums)


class RelativeGates(ScalarGate):
    """Logarithms, split: keys are taken relative to the tile's start."""

    def tables(self, at: Sizes, g: Sized) -> tuple[Sized, Sized]:
        """A mask, and F(t, 0)."""
        self.sums = at.each(g)
        return Sized((self.tile, self.tile), False), at.each(self.sums)

    def keys(self, at: Sizes, b: Sized) -> Sized:
        """b exp(-c)."""
        return at.each(b, at.each(self.sums, flops=2))

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """As a scalar gate, of what is kept of q."""
        return super().reach(at, into, j, self.kept(at, 0, q), b)

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """What is kept of what a scalar gate gives."""
        found = super().spread(at, into, j, s, b)
        assert found is not None
        return self.kept(at, 0, found)

    def left(self, at: Sizes, keys: list[tuple[Sized, Into]]) -> Sized:
        """Scaled by what is left at the tile's end, for each channel."""
        return at.each(keys[0][0], self.since.last(1, self.since.shape[-1]))


class CoupledGates:
    """Numbers between n states; tables [.., C, 1 + C, 1 or d_k]."""

    def __init__(self, at: Sizes, gates: list[list[Sized | None]], tile: int, like: Sized):
        self.tile, self.n, self.front = tile, len(gates), like.shape[:2]
        own = Sized((*self.front, tile, 1), False)
        full = [[own if g is None and a == j else g for j, g in enumerate(row)]
                for a, row in enumerate(gates)]  # fmt: skip
        self.tables = coupled_tables(at, full)

    def keys(self, at: Sizes, b: Sized) -> Sized:
        """As it is."""
        return b

    def total(self, at: Sizes, into: Into, j: int) -> Sized | None:
        """What of a write into some states reaches state j."""
        found = [t for a in into if (t := self.tables[a][j]) is not None]
        if not found:
            return None
        table = at.total(found)
        return table.last(table.shape[-2] - 1, table.shape[-1])

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """As of one state, with the table between states."""
        table = self.total(at, into, j)
        if table is None:
            return None
        table = per_row(table, q, -3)
        if table.shape[-1] == 1:
            return at.each(Sized(table.shape[:-1], table.needs), at.matmul(q, b.mT))
        return by_channel(at, q, table, b)

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """As of one state, with the table between states."""
        table = self.total(at, into, j)
        if table is None:
            return None
        table = per_row(table, s, -3)
        if table.shape[-1] == 1:
            return at.matmul(at.each(Sized(table.shape[:-1], table.needs), s), b)
        return over_tokens(at, s, table, b)

    def asked(self, at: Sizes, reads: list[tuple[Sized, int]]) -> Sized:
        """What each of the first states is asked, side by side."""
        rows, needs = reads[0][0], False
        for a in range(self.n):
            for q, j in reads:
                if (table := self.tables[a][j]) is not None:
                    at.each(at.each(per_row(_first(table), q), q), rows)
                    needs = needs or table.needs or q.needs
        return Sized((*rows.shape[:-1], self.n * rows.shape[-1]), needs)

    def kept(self, at: Sizes, j: int, M: Sized) -> Sized:
        """What of the first states is in state j."""
        part = Sized((*M.shape[:-1], M.shape[-1] // self.n), M.needs)
        tables = [t for row in self.tables if (t := row[j]) is not None]
        return at.total([at.each(per_row(_first(t), part), part) for t in tables])

    def left(self, at: Sizes, keys: list[tuple[Sized, Into]]) -> Sized:
        """Where a write goes at the tile's end, side by side."""
        rows, needs = keys[0][0], False
        for j in range(self.n):
            for b, into in keys:
                if (table := self.total(at, into, j)) is not None:
                    at.each(at.each(table.last(1, *table.shape[-2:]).last(b.shape[-2], 1), b), rows)
                    needs = needs or table.needs or b.needs
        return Sized((*rows.shape[:-1], self.n * rows.shape[-1]), needs)

    def whole(self) -> Sized:
        """What is left of the first states at the tile's end."""
        tables = [t for row in self.tables for t in row if t is not None]
        width = max(t.shape[-1] for t in tables)
        return Sized((*self.front, self.n, self.n, width), any(t.needs for t in tables))


class CoupledChannels(CoupledGates):
    """Gates between n states, some for each channel."""


COUNTED: Mapping[Gates, type[ScalarGate] | type[CoupledGates]] = {
    "ScalarGate": ScalarGate,
    "ChannelGates": ChannelGates,
    "LogGates": LogGates,
    "RelativeGates": RelativeGates,
    "CoupledGates": CoupledGates,
    "CoupledChannels": CoupledChannels,
}


def by_channel(at: Sizes, q: Sized, table: Sized, b: Sized) -> Sized:
    """sum over channels of q_t F(t, i) b_i: [.., rows, C]."""
    wide = at.each(_axis(q, -2), table)
    return at.summed(at.each(wide, _axis(b, -3)), -1)


def over_tokens(at: Sizes, s: Sized, table: Sized, b: Sized) -> Sized:
    """sum over tokens of s[t, i] F(t, i) b_i: [.., rows, d_k]."""
    wide = at.each(Sized((*s.shape, 1), s.needs), table)
    return at.summed(at.each(wide, _axis(b, -3)), -2)


def _axis(x: Sized, place: int) -> Sized:
    """Put in an axis of size 1."""
    at = len(x.shape) + 1 + place
    return Sized((*x.shape[:at], 1, *x.shape[at:]), x.needs)


def _first(table: Sized) -> Sized:
    """Column 0 of a table: F(t, 0)."""
    return Sized((*table.shape[:-2], table.shape[-1]), table.needs)


def coupled_tables(at: Sizes, D: list[list[Sized | None]]) -> list[list[Sized | None]]:
    """F(t, i) between states, in the order in which they flow into each other."""
    n = len(D)
    tables: list[list[Sized | None]] = [[None] * n for _ in range(n)]
    waiting = list(range(n))
    while waiting:
        free = [j for j in waiting if all(D[m][j] is None for m in waiting if m != j)]
        if not free:
            return circular_tables(at, D)
        for j in free:
            own = D[j][j]
            assert own is not None
            C, d = own.shape[-2:]
            running_product(at, own)
            products(at, own)
            tables[j][j] = Sized((*own.shape[:-2], C, 1 + C, d), own.needs)
            for a in range(n):
                came = [
                    at.each(_axis(gate, -2), table)
                    for m in range(n)
                    if m != j and (gate := D[m][j]) and (table := tables[a][m])
                ]
                if a != j and came:
                    tables[a][j] = after(at, products_of(own), at.total(came))
            waiting.remove(j)
    return tables


def products_of(own: Sized) -> Sized:
    """A table without its column 0."""
    C, d = own.shape[-2:]
    return Sized((*own.shape[:-2], C, C, d), own.needs)


def after(at: Sizes, table: Sized, came: Sized) -> Sized:
    """sum_s table[t, s] came[s, i], for each channel."""
    if table.shape[-1] == came.shape[-1] == 1:
        found = at.matmul(Sized(table.shape[:-1], table.needs), Sized(came.shape[:-1], came.needs))
        return Sized((*found.shape, 1), found.needs)
    C, columns = came.shape[-3:-1]
    width = max(table.shape[-1], came.shape[-1])
    left = Sized((*table.shape[:-3], width, C, C), table.needs)
    right = Sized((*came.shape[:-3], width, C, columns), came.needs)
    found = at.matmul(left, right)
    return Sized((*found.shape[:-3], C, columns, width), found.needs)


def circular_tables(at: Sizes, D: list[list[Sized | None]]) -> list[list[Sized | None]]:
    """As `coupled_tables`, one token after another."""
    given = [g for row in D for g in row if g is not None]
    needs, d = any(g.needs for g in given), max(g.shape[-1] for g in given)
    n, C = len(D), given[0].shape[-2]
    row = Sized((*given[0].shape[:-2], 1 + C, d), needs)
    for _ in range(C * n * len(given)):
        at.each(row, row, flops=2)
    table = Sized((*given[0].shape[:-2], C, 1 + C, d), needs)
    return [[table] * n for _ in range(n)]
