"""Memories whose updates read the state before a chunk; the functions a module uses are copied.

A chunk is C tokens, counted from the start of the sequence. What its tokens write is made for all
of them at once, from the state before the chunk; then each part of the memory (a matrix, a vector
or a number) moves through the chunk as `library_tiles` says. Chunks of one length stand as rows of
a batch, so that products of gates, and reads afterwards, are taken for all of them at once.

In: what the tokens of one chunk write, as a function of their streams and of the state before the
chunk; states as dicts by part. Out: a list of `Chunks`, from which the memory is read, and the
states after the last token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from nlc.codegen.library_tiles import Tiles, solve, stacked
from torch import Tensor


class Moves(NamedTuple):
    """How a part moves: its gates D_aj [B, T, *lead], their class, and the tokens of a tile."""

    gates: list[list[Any]]
    kind: Any
    tile: int
    rank: int = 2  # of the part: a matrix, a vector (one row), a number
    turned: bool = False  # whether all is said of the transposed part


class Chunks(NamedTuple):
    """A course over n chunks of one length, which stand as rows of a batch [B * n, C, ...]."""

    tiles: dict[str, Tiles]  # the course of each part
    origin: dict[str, Tensor]  # each part before its chunk [B * n, *lead, ...]
    n: int


def run_chunks(
    writes: Any,
    streams: list[Tensor],
    moves: dict[str, Moves],
    states: list[dict[str, Tensor]],
    start: dict[str, Tensor],
    position: int,
    chunk: int,
    reset: tuple[int, list[dict[str, Tensor]]] | None = None,
) -> tuple[Any, ...]:
    """Run a sequence: its course, the states after it and the one before the open chunk.

    `writes(*streams, start)` gives the writes of each part; `reset` has a period and the states to
    go back to.
    """
    course: list[Chunks] = []
    at = 0
    for length, n in chunk_runs(position, streams[0].shape[1], chunk):
        spans = [x[:, at : at + length * n].split(length, 1) for x in streams]
        gates = {part: gates_of_run(m, states[0][part], at, length, n) for part, m in moves.items()}
        rows = streams[0].shape[0]
        by_chunk = {part: D.of_chunks(rows, n) for part, D in gates.items()}
        M = {part: below([s[part] for s in states], m) for part, m in moves.items()}
        starts, found = [], []
        for i, now in enumerate(zip(*spans, strict=True)):
            made = writes(*now, start)
            starts.append(start)
            solved = {}
            for part, m in moves.items():
                lead, d_k = size_of(states[0][part], m)
                front = (rows, length, *lead)
                *solved[part], M[part] = solve(made[part], by_chunk[part][i], front, M[part], d_k)
            found.append(solved)
            position += length
            if reset is not None and position % reset[0] == 0:
                M = {part: below([s[part] for s in reset[1]], m) for part, m in moves.items()}
            if position % chunk == 0:
                start = {part: above(M[part], m, states[0][part])[0] for part, m in moves.items()}
        parts = {part: above(M[part], m, states[0][part]) for part, m in moves.items()}
        states = [{part: parts[part][j] for part in moves} for j in range(len(states))]
        at += length * n
        tiles = {
            part: tiles_of_run([x[part] for x in found], gates[part], length, starts[0][part], m)
            for part, m in moves.items()
        }
        origin = {part: in_one_batch([s[part] for s in starts]) for part in moves}
        course.append(Chunks(tiles, origin, n))
    return course, *states, start


def chunk_runs(position: int, tokens: int, chunk: int) -> list[tuple[int, int]]:
    """Cut a sequence that begins at a position at the ends of its chunks: (length, how many)."""
    first = min(-position % chunk, tokens)
    whole, rest = divmod(tokens - first, chunk)
    return [(length, n) for length, n in ((first, 1), (chunk, whole), (rest, 1)) if length and n]


def as_matrix(x: Tensor, m: Moves) -> Tensor:
    """A part as a matrix: a vector is one row, a number a matrix of one entry."""
    for _ in range(2 - m.rank):
        x = x.unsqueeze(-2 if m.rank == 1 else -1)
    return x.mT if m.turned else x


def from_matrix(x: Tensor, m: Moves) -> Tensor:
    """Undo `as_matrix`."""
    x = x.mT if m.turned else x
    for _ in range(2 - m.rank):
        x = x.squeeze(-2 if m.rank == 1 else -1)
    return x


def below(states: list[Tensor], m: Moves) -> Tensor:
    """The states of a part as tiles take them: [B, *lead, *part] -> [G, n * d_k, d_v]."""
    return stacked([as_matrix(x, m) for x in states])


def above(M: Tensor, m: Moves, like: Tensor) -> list[Tensor]:
    """Undo `below`."""
    shape = as_matrix(like, m).shape
    return [from_matrix(Z.mT.reshape(shape), m) for Z in M.split(shape[-1], -2)]


def size_of(state: Tensor, m: Moves) -> tuple[tuple[int, ...], int]:
    """The leading axes of a part, and the size of its keys."""
    shape = as_matrix(state, m).shape
    return tuple(shape[1:-2]), shape[-1]


def gates_of_run(m: Moves, state: Tensor, at: int, length: int, n: int) -> Any:
    """The products of gates of n chunks, rows of one batch."""
    rows, (lead, _) = state.shape[0], size_of(state, m)
    like = below([state], m).repeat_interleave(n, 0)

    def spread(g: Any) -> Any:
        if not isinstance(g, Tensor):
            return g
        g = g if g.shape[1] == 1 else g[:, at : at + length * n]
        return g.expand(rows, length * n, *g.shape[2:]).unflatten(1, (n, length)).flatten(0, 1)

    gates = [[spread(g) for g in row] for row in m.gates]
    return m.kind.of(gates, (rows * n, length, *lead), min(m.tile, length), like)


def in_one_batch(parts: list[Tensor]) -> Tensor:
    """n of [B, ...] as one [B * n, ...], so that row b * n + i is that of chunk i."""
    return parts[0] if len(parts) == 1 else torch.stack(parts, 1).flatten(0, 1)


def in_one_row(parts: list[Any], rows: int) -> Any:
    """As `in_one_batch`, for what tiles hold: n of [N, B * H, ...] as one [N, B * n * H, ...]."""
    if isinstance(parts[0], tuple):
        return tuple(in_one_row(list(x), rows) for x in zip(*parts, strict=True))
    if len(parts) == 1:
        return parts[0]
    return torch.stack([x.unflatten(1, (rows, -1)) for x in parts], 2).flatten(1, 3)


def tiles_of_run(found: list[Any], D: Any, length: int, state: Tensor, m: Moves) -> Tiles:
    """The course of one part over n chunks, from what was solved for each."""
    rows, (lead, _) = state.shape[0], size_of(state, m)
    E = [in_one_row(list(e), rows) for e in zip(*(chunk[0] for chunk in found), strict=True)]
    keys = []
    for same in zip(*(chunk[1] for chunk in found), strict=True):
        joined = [in_one_row([b for b, _ in pairs], rows) for pairs in zip(*same, strict=True)]
        keys.append([(b, into) for b, (_, into) in zip(joined, same[0], strict=True)])
    starts = in_one_row([chunk[2] for chunk in found], rows)
    return Tiles(D, E, keys, starts, (rows * len(found), length, *lead))


def over_chunks(read: Any, course: list[Chunks], *q: Tensor) -> Tensor:
    """Read a course: `read(*q, chunks)` for each run of chunks, q [B, T, ...] cut alike."""
    found, at = [], 0
    for chunks in course:
        length = next(iter(chunks.tiles.values())).front[1]
        here = [x[:, at : at + length * chunks.n] for x in q]
        here = [x.unflatten(1, (chunks.n, length)).flatten(0, 1) for x in here]
        y = read(*here, chunks)
        found.append(y.unflatten(0, (-1, chunks.n)).flatten(1, 2))
        at += length * chunks.n
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def origin_of(chunks: Chunks, part: str) -> Tensor:
    """The state before the chunk, for every token of it."""
    origin, tokens = chunks.origin[part], chunks.tiles[part].front[1]
    return origin.unsqueeze(1).expand(origin.shape[0], tokens, *origin.shape[1:])
