"""The arithmetic of the schedules that run a memory over many tokens at once.

In: a schedule's kind, the sizes of a memory's tiles, and what of its coefficients is there and
needs a gradient. Out: a `Tally`. One function for moving, one for each way of reading; the
formulas are those of `codegen/library_tiles.py` and `library_attention.py`, line by line.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlc.ir.cost import WIDTH, Work
from nlc.passes.tally import Tally


@dataclass(frozen=True)
class Tiling:
    """`lanes` copies of a state [rows, columns] over `tiles` tiles of `size` tokens each."""

    lanes: int
    rows: int
    columns: int
    tiles: int
    size: int

    @property
    def turned(self) -> Tiling:
        """The same of the transposed state."""
        return Tiling(self.lanes, self.columns, self.rows, self.tiles, self.size)

    @property
    def all(self) -> int:
        """Tiles of all copies."""
        return self.lanes * self.tiles

    @property
    def state(self) -> int:
        """Entries of one copy."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Coefficients:
    """Which coefficients of a form there are, and whether each needs a gradient; None: it is 0.

    `gate` is None where it is 1.
    """

    gate: bool | None
    reads: bool | None
    offset: bool | None
    target: bool | None

    @property
    def written(self) -> bool:
        """Say whether a gradient passes to what is written."""
        return bool(self.offset) or self.reads is not None


def move(t: Tiling, has: Coefficients) -> Tally:
    """Solve or scan the tiles: from the coefficients to the writes and the states between tiles."""
    tally, C, v, k = Tally(), t.size, t.rows, t.columns
    keys, values, table = t.all * C * k, t.all * C * v, t.all * C * C
    if has.gate is not None:
        # F(t, i) and F(t, 0) as running products, and what each write is worth at the end
        tally.elementwise(3 * table + 2 * t.all * C, t.all * C, table)
    tally.elementwise(keys, keys, keys)
    states = t.all * t.state
    if has.reads is None:
        needs = (bool(has.offset), bool(has.target or has.gate))
        tally.product(2 * t.all * C * v * k, values, keys, states, needs)
        tally.elementwise(2 * states, 2 * states, states)
        return tally
    tally.product(2 * table * k, keys, keys, table, (has.reads, bool(has.target)))
    tally.elementwise(table, 2 * table, table)
    # (I - A)^-1 by substitution; its gradient is two products with the inverse
    tally.forward += Work(solves=table * C, bytes=2 * WIDTH * table)
    tally.backward += Work(products=4 * table * C, bytes=6 * WIDTH * table)
    tally.product(2 * table * v, table, values, values, (True, bool(has.offset)))
    tally.elementwise(keys, 2 * keys, keys)
    tally.product(2 * table * k, table, keys, keys)
    # from tile to tile: the writes that hang on the tile's first state, and the state after it
    tally.product(2 * t.all * C * v * k, keys, states, values)
    tally.product(2 * t.all * C * v * k, values, keys, states)
    tally.elementwise(values + 2 * states, 2 * values + 2 * states, values + states)
    return tally


def read(t: Tiling, has: Coefficients, queries: int) -> Tally:
    """Read the state of each token with `queries` vectors of a token."""
    tally, C, v, k = Tally(), t.size, t.rows, t.columns
    asked, answers = t.all * C * queries * k, t.all * C * queries * v
    table = t.all * C * C * queries
    keys, values, states = t.all * C * k, t.all * C * v, t.all * t.state
    tally.product(2 * table * k, asked, keys, table, (True, bool(has.target)))
    tally.elementwise(table, 2 * table, table)
    tally.product(2 * table * v, table, values, answers, (True, has.written))
    tally.product(2 * asked * v, asked, states, answers)
    tally.elementwise(2 * answers, 2 * answers, answers)
    return tally


def states(t: Tiling, has: Coefficients) -> Tally:
    """Give the state of each token as a whole."""
    tally, C, v, k = Tally(), t.size, t.rows, t.columns
    table, whole = t.all * C * C, t.all * C * t.state
    tally.elementwise(table * v, table + t.all * C * v, table * v)
    needs = (has.written or bool(has.gate), bool(has.target))
    tally.product(2 * table * t.state, table * v, t.all * C * k, whole, needs)
    tally.elementwise(2 * whole, 2 * whole, whole)
    return tally


def attend(lanes: int, rows: int, pairs: int, d_k: int, d_v: int) -> Tally:
    """Let rows attend to pairs, all scores computed; backward computes the scores once more."""
    tally = Tally()
    scores = lanes * rows * pairs
    moved = lanes * (rows * (d_k + d_v) + pairs * (d_k + d_v))
    tally.forward += Work(products=2 * scores * (d_k + d_v), bytes=WIDTH * moved)
    tally.backward += Work(products=2 * scores * (3 * d_k + 2 * d_v), bytes=2 * WIDTH * moved)
    tally.elementwise(4 * scores, 0, 0)
    return tally
