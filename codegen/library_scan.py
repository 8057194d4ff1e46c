"""States of one row over many tokens at once; the functions a module uses are copied into it.

h_j <- sum_a g_aj * h_a + x_j, channel by channel, for n states h [d]. The sequence is cut into
about sqrt(T) tiles; all tiles run together, token by token, and then what each hands to the next.

In: writes that read no state (see `library_tiles`), gates [B, T, *lead, 1 or d], states
[B, *lead, 1, d]. Out: `Rows`, and the states after the last token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from nlc.codegen.library_tiles import Write, carried
from torch import Tensor


class Rows(NamedTuple):
    """A course: states below each other [B, T, *lead, n * d, 1], after each token and before it."""

    after: Tensor
    before: Tensor
    n: int


def scan_rows(writes: list[Write], gates: list[list[Any]], states: list[Tensor]) -> tuple[Any, ...]:
    """Run the recurrence: its course, and the states after it; `gates[a][j]` is g_aj, None 0."""
    n, d, h = len(states), states[0].shape[-1], torch.cat(states, -1).mT
    added = [[w.u * b for w in writes for b, into in w.b if j in into] for j in range(n)]
    given = [g for row in gates for g in row if isinstance(g, Tensor)]
    fronts = [x.shape[:-1] for x in (*given, *(x for row in added for x in row))]
    front = tuple(torch.broadcast_shapes(*fronts, (h.shape[0], 1, *h.shape[1:-2])))
    zero = h.new_zeros(*front, d)
    x = torch.cat([sum(row, zero) for row in added], -1).unsqueeze(-1)
    width = max([1, *(g.shape[-1] for g in given)])

    def entry(g: Any) -> Tensor:
        g = g.to(h.dtype) if isinstance(g, Tensor) else h.new_full((1,), g or 0.0)
        return g.expand(*front, width)

    w = torch.stack([torch.stack([entry(g) for g in row], -2) for row in gates], -3)
    after = scanned(w, x, h)
    before = torch.cat([h.unsqueeze(1), after[:, :-1]], 1)
    return Rows(after, before, n), *after[:, -1].mT.split(d, -1)


def given_rows(states: list[Tensor], rows: list[Tensor]) -> Rows:
    """The course of states [B, *lead, d] that are known after every token: [B, T, *lead, d]."""
    after = torch.cat(rows, -1).unsqueeze(-1)
    first = torch.cat(states, -1)[:, None, ..., None]
    return Rows(after, torch.cat([first, after[:, :-1]], 1), len(states))


def scanned(w: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """h_t = carried(h_{t-1}, w_t) + x_t for x [B, T, .., n * d, 1], w [B, T, .., n, n, 1 or d]."""
    tokens, n = x.shape[1], w.shape[-2]
    size = max(round(tokens**0.5), 1)
    one = torch.eye(n, dtype=w.dtype, device=w.device).unsqueeze(-1)
    if tokens % size:
        missing = -tokens % size
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)
        w = torch.cat([w, one.expand(w.shape[0], missing, *w.shape[2:])], 1)
    x, w = x.unflatten(1, (-1, size)), w.unflatten(1, (-1, size))
    # from each tile's start: what was added since, and what became of a state that was there
    row, still = torch.zeros_like(x[:, :, 0]), one.expand(w[:, :, 0].shape).flatten(-2).mT
    rows, stills = [], []
    for x_t, w_t in zip(x.unbind(2), w.unbind(2), strict=True):
        row, still = carried(row, w_t) + x_t, carried(still, w_t)
        rows.append(row)
        stills.append(still.mT.unflatten(-1, (n, -1)))
    starts = []
    for added, kept in zip(rows[-1].unbind(1), stills[-1].unbind(1), strict=True):
        starts.append(h)
        h = carried(h, kept) + added
    start = torch.stack(starts, 1).unsqueeze(2)
    found = torch.stack(rows, 2) + carried(start, torch.stack(stills, 2))
    return found.flatten(1, 2)[:, :tokens]


def read_rows(q: Tensor, path: Rows, late: bool = True, state: int = 0) -> Tensor:
    """<h_t, q_t> (late), or <h_{t-1}, q_t>: [B, T, *lead, *more, d] -> [B, T, *lead, *more, 1]."""
    h = states_of_rows(path, late, state)
    more = q.ndim - h.ndim + 1
    h = h.reshape(*h.shape[:-2], *[1] * more, h.shape[-1])
    return (h * q.to(h.dtype)).sum(-1, keepdim=True).to(q.dtype)


def states_of_rows(path: Rows, late: bool = True, state: int = 0) -> Tensor:
    """h_t (late), or h_{t-1}, for every token: [B, T, *lead, 1, d]."""
    h = path.after if late else path.before
    return h.unflatten(-2, (path.n, -1))[..., state, :, :].mT
