"""What states of one row cost over a sequence: `codegen/library_scan.py`, counted and not run.

In: how many copies and states of how many entries there are, and which coefficients. Out: the
`Rows` of a course, from which reads are counted. There are no products of matrices in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlc.passes.sized import Sized, Sizes
from nlc.passes.tally import Tally


@dataclass(frozen=True)
class Rows:
    """A course of n states of `entries` numbers, `lanes` copies of each, over `tokens`."""

    tokens: int
    lanes: int
    entries: int
    n: int
    needs: bool

    def of_token(self, width: int, needs: bool) -> Sized:
        """Something for each token and copy."""
        return Sized((self.tokens, self.lanes, width), needs)


def scan_rows(
    rows: Rows, writes: int, width: int, needs_write: bool, needs_gate: bool
) -> tuple[Rows, Tally]:
    """Count the recurrence: `writes` products of numbers a token, gates of `width` entries."""
    tally = Tally()
    at, n, d = Sizes(tally), rows.n, rows.entries
    for _ in range(writes):
        at.each(rows.of_token(d, needs_write), rows.of_token(1, needs_write))
    x = at.each(rows.of_token(n * d, needs_write))
    w = at.each(rows.of_token(n * n * width, needs_gate))
    # within all tiles: what was added since their start, what is still there of it
    row = at.each(at.each(x, rows.of_token(n * d, needs_gate), flops=2 * n), x)
    at.each(w, w, flops=2 * n)
    # from tile to tile, then both together
    at.each(at.each(row, rows.of_token(n * d, needs_gate), flops=2 * n), row)
    # each token's states as they were before it
    at.each(row, flops=0)
    return rows, tally


def read_rows(rows: Rows, queries: int) -> Tally:
    """Count <h_t, q_t> for `queries` vectors of every token."""
    tally = Tally()
    at = Sizes(tally)
    asked = Sized((rows.tokens, rows.lanes, queries, rows.entries))
    held = Sized((rows.tokens, rows.lanes, 1, rows.entries), rows.needs)
    at.summed(at.each(asked, held), -1)
    return tally
