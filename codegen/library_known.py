"""Tiles whose gates are one number a token, each by itself; what a module uses is copied.

What `library_tiles` composes of many operations stands here for one tile at a time, whose reading
and moving are one function of `library_states`; a write that reads the states is solved before.

In: states M_j^T [G, d_k, d_v], for G rows and copies, writes e_r [G, C, d_v] along b_r [G, C, d_k];
numbers F(t, i) between states as `Numbers` of `library_numbers` has them. Out: states and answers.
"""

from __future__ import annotations

from typing import Any

import torch
from nlc.codegen.library_numbers import Numbers
from nlc.codegen.library_states import Along, AlongTile, Stacked
from nlc.codegen.library_tiles import unit_lower_inverse
from torch import Tensor


class Tile:
    """A course over one tile: as `Tiles` of one tile, with numbers for gates.

    Where it `goes_on`, the states after it are found with what is read first, or when asked for.
    """

    def __init__(self, gates, writes, keys, starts, front, goes_on=False):
        self.gates = gates
        self.writes = writes  # e of each write [G, C, d_v]
        self.keys = keys  # b of each write [G, C, d_k], and into which states
        self.starts = starts  # the states before the tile, `Stacked`
        self.front = front  # B, C, *lead
        self.goes_on, self.after = goes_on, None

    def without(self, r):
        """The same tile without a write."""
        writes, keys = ([*x[:r], *x[r + 1 :]] for x in (self.writes, self.keys))
        return Tile(self.gates, writes, keys, self.starts, self.front)

    def moved(self):
        """The states after the tile."""
        if self.after is None:
            self.along()
        return self.after

    def along(self, q=None, late=True, state=0):
        """Read with queries [G, C, d_k], and move if the tile has not yet."""
        D, S, move = self.gates, self.starts, self.goes_on and self.after is None
        how = Along(S.n, S.wide, D.flows, q is not None, move)
        given = []
        for e, keys in zip(self.writes, self.keys, strict=True):
            for b, into in keys:
                table = None if q is None else D.reach(into, state, late)
                given += [e, b, table, D.left(into) if move else None]
        # after what is left of writes, which is found with what is left of first states
        given = [*(D.whole(*pair) for pair in D.flows if move), *given]
        since = None if q is None else D.since(state, late)
        own = D.own() if move else None
        y, after, first = AlongTile.apply(how, S.whole, q, since, own, *given)
        if move:
            self.after = Stacked(after, S.n, S.wide, first)
        return y


def in_rows(x: Tensor, front: tuple[int, ...]) -> Tensor:
    """Put the tokens of each row and copy together: [B, C, *lead, d] -> [G, C, d]."""
    x = x if x.shape[:-1] == front else x.expand(*front, x.shape[-1])
    return x if len(front) == 2 else x.movedim(1, -2).reshape(-1, front[1], x.shape[-1])


def from_rows(y: Tensor, front: tuple[int, ...]) -> Tensor:
    """Undo `in_rows`."""
    if len(front) == 2:
        return y
    return y.view(front[0], *front[2:], *y.shape[1:]).movedim(-2, 1)


def move_tile(
    writes: list[Any], D: Numbers, front: tuple[int, ...], states: Any, begins: bool
) -> Tile:
    """The course over one tile, which knows the states after it; `begins` says a chunk does."""
    states = states if isinstance(states, Stacked) else Stacked.of(states)
    like, (d_k, d_v) = states.whole, states.shape

    def rows(x: Tensor, d: int) -> Tensor:
        x = x.to(like.dtype)
        return in_rows(x if x.shape[-1] == d else x.expand(*x.shape[:-1], d), front)

    E = [rows(like.new_zeros(1) if w.u is None else w.u, d_v) for w in writes]
    keys = [[(rows(b, d_k), into) for b, into in w.b] for w in writes]
    for r, w in enumerate(writes):
        if w.p:
            asked = [(rows(p, d_k), j) for p, j in w.p]
            met = rows(w.met, d_v) if begins and w.met is not None else None
            E[r] = solve_tile(r, asked, Tile(D, E, keys, states, front), met)
    return Tile(D, E, keys, states, front, goes_on=True)


def solve_tile(r: int, asked: list[tuple[Tensor, int]], path: Tile, met: Tensor | None) -> Tensor:
    """e = sum_j M_j p_j + u of the one write r that reads what runs.

    Others are known; `met` is what it reads of the one state before the tile, if that is known.
    """
    D, e, pairs = path.gates, path.writes[r], []
    for p, j in asked:
        if met is None:
            e = e + path.without(r).along(p, False, j)
        else:
            since = D.since(j, late=False)
            e = e + met if since is None else torch.addcmul(e, met, since.squeeze(2))
        for b, into in path.keys[r]:
            table = D.reach(into, j, late=False)
            pairs += [] if table is None else [p, b, table]
    return SolveTile.apply(e, *pairs) if pairs else e


class SolveTile(torch.autograd.Function):
    """E = A E + V with A = sum T * p b^T, where the tables T are below their diagonal."""

    @staticmethod
    def forward(ctx, V, *pairs):
        scores = [torch.bmm(p, b.mT) for p, b, _ in triples(pairs)]
        solve = unit_lower_inverse(scored(scores, pairs))
        E = torch.bmm(solve, V)
        ctx.save_for_backward(*pairs, *scores, solve, E)
        return E

    @staticmethod
    def backward(ctx, dE):
        *given, solve, E = ctx.saved_tensors
        _, *needs = ctx.needs_input_grad
        pairs, scores = given[: len(needs)], given[len(needs) :]
        if torch.is_grad_enabled():
            # this is differentiated again, and then the inverse hangs on what made it
            scores = [torch.bmm(p, b.mT) for p, b, _ in triples(pairs)]
            solve = unit_lower_inverse(scored(scores, pairs))
        dV = torch.bmm(solve.mT, dE)
        dA, found = torch.bmm(dV, E.mT), []
        for (p, b, table), met, (of_p, of_b, of_table) in zip(
            triples(pairs), scores, triples(needs), strict=True
        ):
            dscores = dA * table if of_p or of_b else None
            found += [torch.bmm(dscores, b) if of_p else None]
            found += [torch.bmm(dscores.mT, p) if of_b else None]
            found += [dA * met if of_table else None]
        return dV, *found


def scored(scores: list[Tensor], pairs: Any) -> Tensor:
    """A, from the products that each pair's table goes to."""
    found = [x * table for x, (_, _, table) in zip(scores, triples(pairs), strict=True)]
    return sum(found[1:], found[0])


def triples(x: Any) -> list[Any]:
    """Cut a list into threes."""
    return [x[i : i + 3] for i in range(0, len(x), 3)]


def read_tile(q: Tensor, path: Tile, late: bool = True, state: int = 0) -> Tensor:
    """M_t q_t (late), or M_{t-1} q_t: q [B, C, *lead, d_k] -> [B, C, *lead, d_v]."""
    rows = in_rows(q.to(path.starts.whole.dtype), path.front)
    return from_rows(path.along(rows, late, state), path.front).to(q.dtype)
