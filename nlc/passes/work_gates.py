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

    def rows(self, at: Sizes, q: Sized) -> Sized:
        """Count what is done to q once."""

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

    def left_in(self, into: Into, j: int) -> Sized | None:
        """What of a write into some states is in state j at the tile's end, if anything."""

    def whole(self) -> Sized:
        """F(C, 0)."""


def per_row(table: Sized, rows: Sized, dim: int = -2) -> Sized:
    """Repeat a table's row of each token for all its queries."""
    shape = list(table.shape)
    shape[dim] = rows.shape[-2]
    return Sized(tuple(shape), table.needs)


def inverse(at: Sizes, lower: Sized) -> Sized:
    """(I - A)^-1 by substitution; its gradient is counted where it is taken."""
    work = Work(solves=lower.entries * lower.shape[-1], bytes=2 * WIDTH * lower.entries)
    at.tally.forward += work
    return lower


def products(at: Sizes, g: Sized) -> Sized:
    """g_{i+1} ... g_t: [.., C, 1] -> [.., 1 + C, 1 + C]; backward one product, and a sum."""
    C = g.shape[-2]
    table = inverse(at, at.each(Sized((*g.shape[:-2], 1 + C, 1 + C), g.needs), flops=0))
    if g.needs:
        work = Work(products=2 * table.entries * C, bytes=8 * WIDTH * table.entries)
        at.tally.backward += work
    return table


def decayed_keys(at: Sizes, g: Sized, b: Sized) -> Sized:
    """g_{i+1} ... g_t b_i: [.., C, d] -> [.., C, C, d], of which half are made."""
    table = Sized((*b.shape[:-2], b.shape[-2], *b.shape[-2:]), g.needs or b.needs)
    half = table.entries // 2
    at.tally.elementwise(half, half, table.entries + half, False)
    if table.needs:
        at.tally.backward += Work(elementwise=4 * half, bytes=9 * WIDTH * half)
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
        one = Sized((*like.shape[:2], 1 + tile, 1 + tile), False)
        self.table = one if g is None else products(at, g)
        self.since = Sized((*like.shape[:2], tile, 1), self.table.needs)

    def rows(self, at: Sizes, q: Sized) -> Sized:
        """As they are."""
        return q

    def keys(self, at: Sizes, b: Sized) -> Sized:
        """As they are."""
        return b

    def seen(self, rows: Sized) -> Sized:
        """What the rows of each token see."""
        return Sized((*rows.shape[:-1], self.tile), self.table.needs)

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """The table times q b^T."""
        return at.each(self.seen(q), at.matmul(q, b.mT))

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """(The table times s) b."""
        return at.matmul(at.each(self.seen(s), s), b)

    def asked(self, at: Sizes, reads: list[tuple[Sized, int]]) -> Sized:
        """Scaled by what is left since the tile's start."""
        return self.kept(at, 0, reads[0][0])

    def kept(self, at: Sizes, j: int, M: Sized) -> Sized:
        """Scaled by what is left since the tile's start."""
        return at.each(per_row(self.since, M), M)

    def left(self, at: Sizes, keys: list[tuple[Sized, Into]]) -> Sized:
        """Scaled by what is left at the tile's end."""
        return at.each(keys[0][0], self.since)

    def left_in(self, into: Into, j: int) -> Sized | None:
        """What is left at the tile's end."""
        return self.since

    def whole(self) -> Sized:
        """What is left of the first state at the tile's end."""
        return Sized((*self.since.shape[:-2], 1, 1, self.since.shape[-1]), self.since.needs)


class ChannelGates(ScalarGate):
    """A gate for each channel: keys as every later token sees them."""

    def __init__(self, at: Sizes, gates: list[list[Sized | None]], tile: int, like: Sized):
        g = gates[0][0]
        assert g is not None
        self.tile, self.g, self.since = tile, g, self.begun(at, g)

    def begun(self, at: Sizes, g: Sized) -> Sized:
        """F(t, 0)."""
        return running_product(at, g)

    def keys(self, at: Sizes, b: Sized) -> Sized:
        """A table for each channel."""
        return decayed_keys(at, self.g, b)

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """The rows of each token times the keys that it sees."""
        found = at.matmul(self.of_token(q), b.mT)
        return Sized((*q.shape[:-1], self.tile), found.needs)

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """The rows of each token times the keys that it sees."""
        found = at.matmul(self.of_token(s), b)
        return Sized((*s.shape[:-1], b.shape[-1]), found.needs)

    def of_token(self, rows: Sized) -> Sized:
        """[C * m, d] -> [C, m, d]."""
        *front, count, d = rows.shape
        return Sized((*front, self.tile, count // self.tile, d), rows.needs)

    def left(self, at: Sizes, keys: list[tuple[Sized, Into]]) -> Sized:
        """The last row of the keys."""
        b = keys[0][0]
        return at.each(Sized((*b.shape[:-3], *b.shape[-2:]), b.needs), flops=0)


class RelativeGates(ChannelGates):
    """Products that may be split: rows and keys are taken relative to the tile's start."""

    def begun(self, at: Sizes, g: Sized) -> Sized:
        """F(t, 0), and one over it."""
        at.tally.elementwise(2 * g.entries, 2 * g.entries, 2 * g.entries, False)
        if g.needs:
            at.tally.backward += Work(elementwise=5 * g.entries, bytes=18 * WIDTH * g.entries)
        return g

    def rows(self, at: Sizes, q: Sized) -> Sized:
        """F(t, 0) q_t."""
        return self.kept(at, 0, q)

    def keys(self, at: Sizes, b: Sized) -> Sized:
        """b_i / F(i, 0)."""
        return at.each(self.since, b)

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """q b^T, masked."""
        return at.each(at.matmul(q, b.mT))

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """What is kept of s, masked, times b."""
        return self.kept(at, 0, at.matmul(at.each(s), b))

    def asked(self, at: Sizes, reads: list[tuple[Sized, int]]) -> Sized:
        """The rows themselves."""
        return reads[0][0]

    def left(self, at: Sizes, keys: list[tuple[Sized, Into]]) -> Sized:
        """Scaled by what is left at the tile's end, for each channel."""
        return at.each(keys[0][0], self.since.last(1, self.since.shape[-1]))


class CoupledGates:
    """Numbers between n states; tables [.., 1 + C, 1 + C, 1 or d_k]."""

    def __init__(self, at: Sizes, gates: list[list[Sized | None]], tile: int, like: Sized):
        self.tile, self.n, self.front = tile, len(gates), like.shape[:2]
        own = Sized((*self.front, tile, 1), False)
        full = [[own if g is None and a == j else g for j, g in enumerate(row)]
                for a, row in enumerate(gates)]  # fmt: skip
        self.tables = coupled_tables(at, full)

    def rows(self, at: Sizes, q: Sized) -> Sized:
        """As they are."""
        return q

    def keys(self, at: Sizes, b: Sized) -> Sized:
        """As they are."""
        return b

    def total(self, at: Sizes, into: Into, j: int) -> Sized | None:
        """What of a write into some states reaches state j."""
        found = [t for a in into if (t := self.tables[a][j]) is not None]
        return at.total(found) if found else None

    def seen(self, at: Sizes, into: Into, j: int, rows: Sized) -> Sized | None:
        """The same, as each row of a token sees it."""
        table = self.total(at, into, j)
        return table and table.last(rows.shape[-2], self.tile, table.shape[-1])

    def reach(self, at: Sizes, into: Into, j: int, q: Sized, b: Sized) -> Sized | None:
        """As of one state, with the table between states."""
        table = self.seen(at, into, j, q)
        if table is None:
            return None
        if table.shape[-1] == 1:
            return at.each(Sized(table.shape[:-1], table.needs), at.matmul(q, b.mT))
        return by_channel(at, q, table, b)

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """As of one state, with the table between states."""
        table = self.seen(at, into, j, s)
        if table is None:
            return None
        if table.shape[-1] == 1:
            return at.matmul(at.each(Sized(table.shape[:-1], table.needs), s), b)
        return over_tokens(at, s, table, b)

    def since(self, j: int, rows: Sized) -> Sized:
        """How much of each of the first states is in state j."""
        return self.width([row[j] for row in self.tables], rows.shape[-2])

    def width(self, tables: list[Sized | None], count: int) -> Sized:
        """One or all channels of each state, for `count` rows."""
        given = [t for t in tables if t is not None]
        width = max(t.shape[-1] for t in given)
        return Sized((*self.front, count, self.n, width), any(t.needs for t in given))

    def asked(self, at: Sizes, reads: list[tuple[Sized, int]]) -> Sized:
        """What each of the first states is asked, one below the other."""
        found = at.total([at.each(self.since(j, q), _axis(q, -2)) for q, j in reads])
        return Sized((*reads[0][0].shape[:-1], self.n * found.shape[-1]), found.needs)

    def kept(self, at: Sizes, j: int, M: Sized) -> Sized:
        """What of the first states is in state j."""
        parts = Sized((*M.shape[:-1], self.n, M.shape[-1] // self.n), M.needs)
        return at.summed(at.each(self.since(j, M), parts), -2)

    def left(self, at: Sizes, keys: list[tuple[Sized, Into]]) -> Sized:
        """Where a write goes at the tile's end, one state below the other."""
        found = []
        for b, into in keys:
            last = self.width([self.total(at, into, j) for j in range(self.n)], b.shape[-2])
            found.append(at.each(last, _axis(b, -2)))
        total = at.total(found)
        return Sized((*keys[0][0].shape[:-1], self.n * total.shape[-1]), total.needs)

    def left_in(self, into: Into, j: int) -> Sized | None:
        """What is left at the tile's end."""
        found = [t for a in into if (t := self.tables[a][j]) is not None]
        return Sized(found[0].shape, any(t.needs for t in found)) if found else None

    def whole(self) -> Sized:
        """What is left of the first states at the tile's end."""
        return self.width([t for row in self.tables for t in row], self.n)


class CoupledChannels(CoupledGates):
    """Gates between n states, some for each channel."""


class Numbers(CoupledGates):
    """Numbers between n states of chunks of one tile each, in rows: `library_numbers.py`."""

    made: ScalarGate | CoupledGates | None = None

    def __init__(self, at: Sizes, gates: list[list[Sized | None]], tile: int, like: Sized):
        self.tile, self.n, self.front = tile, len(gates), like.shape[:2]
        self.gates, self.like = gates, like
        given = [g for row in gates for g in row if g is not None]
        table = Sized((*self.front, 1 + tile, 1 + tile, 1), any(g.needs for g in given))
        pairs = {(a, j) for a, row in enumerate(gates) for j, g in enumerate(row) if g or a == j}
        # a row for each token, over first states and writes
        row = Sized((*self.front, tile, self.n + tile), table.needs)
        for _ in pairs if given else ():
            at.each(row, row, flops=2)
        for m in range(self.n):
            pairs |= {(a, j) for a, b in pairs for c, j in pairs if b == c == m}
        states = range(self.n)
        self.tables = [[table if (a, j) in pairs else None for j in states] for a in states]

    def total(self, at: Sizes, into: Into, j: int) -> Sized | None:
        """A write into several states is followed as one."""
        return next((t for a in into if (t := self.tables[a][j]) is not None), None)

    def spread(self, at: Sizes, into: Into, j: int, s: Sized, b: Sized) -> Sized | None:
        """As tables of all gates have it, which are made where they are asked for."""
        return self.general(at).spread(at, into, j, s, b)

    def kept(self, at: Sizes, j: int, M: Sized) -> Sized:
        """As tables of all gates have it."""
        return self.general(at).kept(at, j, M)

    def general(self, at: Sizes) -> ScalarGate | CoupledGates:
        """Make tables of all gates, once."""
        if self.made is None:
            kind: type[ScalarGate] | type[CoupledGates]
            kind = ScalarGate if self.n == 1 else CoupledGates
            self.made = kind(at, self.gates, self.tile, self.like)
        return self.made


COUNTED: Mapping[Gates, type[ScalarGate] | type[CoupledGates]] = {
    "ScalarGate": ScalarGate,
    "ChannelGates": ChannelGates,
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
            tables[j][j] = own_table(at, own)
            for a in range(n):
                came = [
                    at.each(_axis(gate, -2), table.last(own.shape[-2], *table.shape[-2:]))
                    for m in range(n)
                    if m != j and (gate := D[m][j]) and (table := tables[a][m])
                ]
                if a != j and came:
                    tables[a][j] = after(at, own, at.total(came))
            waiting.remove(j)
    return tables


def own_table(at: Sizes, g: Sized) -> Sized:
    """F(t, i) of one state: [.., C, 1 or d] -> [.., 1 + C, 1 + C, 1 or d]."""
    C, d = g.shape[-2:]
    if d == 1:
        table = products(at, g)
        return Sized((*table.shape, 1), g.needs)
    return decayed_keys(at, g.last(1 + C, d), g.last(1 + C, d))


def after(at: Sizes, own: Sized, came: Sized) -> Sized:
    """sum_s table[t, s] came[s, i], for each channel, with the table of `own`."""
    C, columns = came.shape[-3:-1]
    width = max(own.shape[-1], came.shape[-1])
    many = (width,) if width > 1 else ()
    left = Sized((*own.shape[:-2], *many, 1 + C, C), own.needs)
    right = Sized((*own.shape[:-2], *many, C, columns), came.needs)
    found = at.matmul(left, right)
    return Sized((*own.shape[:-2], 1 + C, columns, width), found.needs)


def circular_tables(at: Sizes, D: list[list[Sized | None]]) -> list[list[Sized | None]]:
    """As `coupled_tables`, one token after another."""
    given = [g for row in D for g in row if g is not None]
    needs, d = any(g.needs for g in given), max(g.shape[-1] for g in given)
    n, C = len(D), given[0].shape[-2]
    row = Sized((*given[0].shape[:-2], 1 + C, d), needs)
    for _ in range(C * n * len(given)):
        at.each(row, row, flops=2)
    table = Sized((*given[0].shape[:-2], 1 + C, 1 + C, d), needs)
    return [[table] * n for _ in range(n)]
