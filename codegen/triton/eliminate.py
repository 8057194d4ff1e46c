"""Writes that read what others have written, solved one after another.

In: for R writes, E_r = sum_s A_rs E_s + U_r, tables A_rs [C, I] and values U_r [C, axis], or [C],
by names. Out: E_r by the same names. A_rs is below the diagonal, or upto it for s < r, so what is
left of A_rr when the writes before r are taken out is below it again, and every write needs one
inverse:

    X_r = (I - A_rr)^-1,  A_qs <- A_qs + A_qr X_r A_rs,  U_q <- U_q + A_qr X_r U_r  for q, s > r
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nlc.codegen.triton.graph import Tile, Tiles, renamed

Given = dict[str, Tile]


def eliminate(
    tiles: Tiles,
    rows: Sequence[int],
    A: dict[tuple[int, int], Tile | None],
    given: dict[int, Given],
    label: Callable[[int], str],
) -> dict[int, Given]:
    """Solve all writes in `rows`; `label` tells the values of one from those of others."""
    X: dict[int, Tile] = {}
    for r in rows:
        own, rest = A[r, r], rows[rows.index(r) + 1 :]
        if own is not None:
            word = label(r) if len(rows) > 1 else ""
            renamed(own, f"A{word}", "<F(t-1, i) b_i, p_t>, i < t")
            X[r] = renamed(tiles.named("solved", own), f"X{word}", "(I - A)^-1")
        for q in rest:
            below = A[q, r]
            if below is None:
                continue
            if r in X:
                below = tiles.dot(below, X[r], (False, False), ("C", "I"))
            for s in rest:
                other = A[r, s]
                if other is not None:
                    more = tiles.dot(below, other, (False, False), ("C", "I"))
                    A[q, s] = tiles.add(A[q, s], more)
            _add(tiles, given[q], below, given[r])
    for r in reversed(rows):
        for s in rows[rows.index(r) + 1 :]:
            other = A[r, s]
            if other is not None:
                _add(tiles, given[r], other, given[s])
        if r in X:
            given[r] = {word: times(tiles, X[r], value) for word, value in given[r].items()}
    return given


def times(tiles: Tiles, table: Tile, value: Tile) -> Tile:
    """A table of tokens times a vector of each [C, axis], or a number [C]."""
    if len(value.dims) == 2:
        return tiles.dot(table, value, (False, False), value.dims)
    return tiles.sum(tiles.mul(table, tiles.make("turned", value, dims=("I",))), "I")


def _add(tiles: Tiles, into: Given, table: Tile, values: Given) -> None:
    """Add what a table takes of some values."""
    for word, value in values.items():
        into[word] = tiles.add(into.get(word), times(tiles, table, value))
