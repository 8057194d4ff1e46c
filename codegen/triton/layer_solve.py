"""Writes of a layer that read its states as they move from token to token of a chunk.

In: the kernels' builder and a part whose form has such writes. Out: what each of them adds, E_r
[C, m], solved within a tile, with W_a the states before it (of W^T where the form is that):

    A_rs[t, i] = <F(t-1, i) b_si, p_rt>     U_r = u_r + sum_a W_a F(t-1, 0) p_r + sum_s A_rs u_s
    E_r = sum_s A_rs E_s + U_r              s known in U, s that reads in E
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.codegen.triton.eliminate import eliminate, times
from nlc.codegen.triton.graph import Tile, renamed

if TYPE_CHECKING:
    from nlc.codegen.triton.layers import Layers


def solve_part(layers: Layers, part: str) -> dict[int, Tile]:
    """Solve all writes of a part that read its states, in this program."""
    return _Part(layers, part).solved()


class _Part:
    """The writes of one part, in the program that is being built."""

    def __init__(self, layers: Layers, part: str):
        self.layers, self.part, self.tiles = layers, part, layers.tiles
        self.form, self.gates = layers.forms[part], layers.gates[part]
        self.u_dims, self.b_dims = layers.sides(part)
        self.rows = [r for r, write in enumerate(self.form.writes) if not write.known]

    def solved(self) -> dict[int, Tile]:
        """E of each write."""
        A = {(r, s): self.scores(r, s) for r in self.rows for s in self.rows}
        given = {}
        for r in self.rows:
            value = self.given(r)
            given[r] = {} if value is None else {"u": value}
        found = eliminate(self.tiles, self.rows, A, given, lambda r: str(r + 1))
        nothing = self.tiles.spread(self.tiles.number(0.0), self.u_dims)
        return {r: found[r]["u"] if found[r] else nothing for r in self.rows}

    def asked(self, r: int) -> list[tuple[int, Tile]]:
        """What a write reads of which state."""
        reads = enumerate(self.form.writes[r].reads)
        return [
            (j, renamed(self.layers.made(p, self.b_dims), "p")) for j, p in reads if p is not None
        ]

    def scores(self, r: int, s: int) -> Tile | None:
        """A[t, i]: how much the reads of write r take of write s."""
        tiles, found = self.tiles, None
        for j, row in self.asked(r):
            for b, into in self.layers.keys(self.form.writes[s]):
                key = self.layers.made(b, self.b_dims)
                seen = self.gates.reach(into, j, row, key, late=False)
                found = found if seen is None else tiles.add(found, seen)
        for other, c in self.form.writes[r].earlier:
            if other == s:
                own = tiles.named("diagonal", self.layers.made(c, ("C",)))
                found = tiles.add(found, own)
        return found

    def given(self, r: int) -> Tile | None:
        """What a write is made of but for other writes that read."""
        layers, tiles = self.layers, self.tiles
        offset = self.form.writes[r].offset
        total = None if offset is None else layers.made(offset, self.u_dims)
        for s, write in enumerate(self.form.writes):
            if write.known and write.offset is not None:
                scores = self.scores(r, s)
                if scores is not None:
                    u = layers.made(write.offset, self.u_dims)
                    total = tiles.add(total, times(tiles, scores, u))
        rows: dict[int, Tile] = {}
        for j, row in self.asked(r):
            for a, x in self.gates.asked(j, row, late=False).items():
                rows[a] = tiles.add(rows.get(a), x)
        for a, x in rows.items():
            W = layers.before(self.part, a)
            if len(W.dims) == 1:
                total = tiles.add(total, layers.values.total(tiles.mul(x, W)))
                continue
            seen = tiles.dot(x, W, (False, not self.form.transposed), self.u_dims)
            total = tiles.add(total, seen)
        return total
