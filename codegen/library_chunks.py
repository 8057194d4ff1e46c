"""Memories whose updates read the state before a chunk; the functions a module uses are copied.

A chunk is C tokens, counted from the start of the sequence. What its tokens write is made for all
of them at once, from the state before the chunk; then each part of the memory (a matrix, a vector
or a number) moves through the chunk as `library_tiles` says. Chunks of one length stand as rows of
a batch, so that products of gates, and reads afterwards, are taken for all of them at once; large
states on a CPU are read chunk by chunk, and on the way where the queries are known.

In: what the tokens of one chunk write, as a function of their streams and of the state before the
chunk; states as dicts by part. Out: a list of `Chunks`, from which the memory is read, and the
states after the last token.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from nlc.codegen.library_known import Tile, move_tile, read_tile
from nlc.codegen.library_numbers import Numbers
from nlc.codegen.library_states import Stacked
from nlc.codegen.library_tiles import Tiles, read_tiles, solve
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

    tiles: dict[str, Tiles]  # the course of each part that moves
    still: list[dict[str, Tensor]]  # the others, of each state [B * n, *lead, ...]
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
    asked: tuple[Any, ...] | None = None,
) -> tuple[Any, ...]:
    """Run a sequence: its course, the states after it and the one before the open chunk.

    `writes(*streams, start)` gives the writes of each part that moves, as `moves` says; others stay
    as they are. `reset` has a period and the states to go back to. `asked` is a read and its
    queries [B, T, ...], and how it ends for all tokens at once where it does not end by chunks:
    what is read stands for the course.
    """
    course: list[Any] = []
    at, turns = 0, in_turns(states)
    # whether the states are those before the chunk
    begins = all(states[0][part] is start[part] for part in moves)
    for length, n in chunk_runs(position, streams[0].shape[1], chunk):
        rows = streams[0].shape[0]
        lead = lead_of(*next((states[0][part], m) for part, m in moves.items()))
        spans = [pieces(x[:, at : at + length * n], n, lead) for x in streams]
        gates = gates_of_run(moves, states[0], at, length, n)
        by_chunk = {part: D.of_chunks(rows, n) for part, D in gates.items()}
        M = {part: below([s[part] for s in states], m) for part, m in moves.items()}
        # read as it moves, so that gradients, too, run through all of a chunk before the next
        read, q = asked[:2] if turns and asked is not None else (None, None)
        queries = [None] * n if q is None else pieces(q[:, at : at + length * n], n, lead)
        found = []
        for i, now in enumerate(zip(*spans, strict=True)):
            made = writes(*now, start)
            tiles = {}
            for part in moves:
                front = (rows, length, *lead)
                D = by_chunk[part][i]
                tiles[part], M[part] = move(made[part], D, front, M[part], begins)
            chunks = Chunks(tiles, [unmoved(state, moves) for state in states], start, 1)
            found.append(chunks if read is None else read(queries[i], chunks))
            # a tile that was read has moved with it
            M = {part: x.moved() if isinstance(x, Tile) else x for part, x in M.items()}
            position += length
            begins = position % chunk == 0
            if reset is not None and position % reset[0] == 0:
                states = reset[1]
                M = {part: below([s[part] for s in states], m) for part, m in moves.items()}
            if begins:
                start = moved(states, M, moves, 0)
        states = [
            start if begins and j == 0 else moved(states, M, moves, j) for j in range(len(states))
        ]
        at += length * n
        if read is not None:
            course.append(torch.stack(found, 1).flatten(1, 2))
        elif turns:
            course += found
        else:
            course.append(in_one_run(found, gates, rows))
    if asked is not None:
        read, q, *end = asked
        course = torch.cat(course, 1) if turns else over_chunks(read, course, q)
        for finish in end:
            course = finish(q, course, [unmoved(state, moves) for state in states])
    return course, *states, start


def unmoved(state: dict[str, Tensor], moves: dict[str, Moves]) -> dict[str, Tensor]:
    """The parts of a state that stay as they are."""
    return {part: x for part, x in state.items() if part not in moves}


def moved(
    states: list[dict[str, Tensor]], M: dict[str, list[Tensor]], moves: dict[str, Moves], j: int
) -> dict[str, Tensor]:
    """State j by part, from where tiles have left those that move."""
    return states[j] | {part: above(M[part][j], m, states[0][part]) for part, m in moves.items()}


def run_copies(
    lead: tuple[int, ...],
    writes: Any,
    streams: list[Tensor],
    moves: dict[str, Moves],
    states: list[dict[str, Tensor]],
    start: dict[str, Tensor],
    position: int,
    chunk: int,
    reset: tuple[int, list[dict[str, Tensor]]] | None = None,
    asked: tuple[Any, ...] | None = None,
) -> tuple[Any, ...]:
    """As `run_chunks`, with the copies [*lead] of the memory as further rows of the batch.

    `writes` and what reads take and give those of single copies.
    """
    rows, done = next(iter(start.values())).shape[0], {}

    def gate(g: Any) -> Any:
        if id(g) not in done:
            done[id(g)] = as_rows(g, rows, lead) if isinstance(g, Tensor) else g
        return done[id(g)]

    moves = {
        p: m._replace(gates=[[gate(g) for g in row] for row in m.gates]) for p, m in moves.items()
    }
    if asked is not None:
        asked = (asked[0], as_rows(asked[1], rows, lead), *asked[2:])
    again = None if reset is None else (reset[0], [rows_of(s, lead) for s in reset[1]])
    course, *after = run_chunks(
        writes,
        [as_rows(x, rows, lead) for x in streams],
        moves,
        [rows_of(s, lead) for s in states],
        rows_of(start, lead),
        position,
        chunk,
        again,
        asked,
    )
    after = [{p: x.unflatten(0, (rows, *lead)) for p, x in state.items()} for state in after]
    return course if asked is None else from_copies(course, lead), *after


def rows_of(state: dict[str, Tensor], lead: tuple[int, ...]) -> dict[str, Tensor]:
    """The copies of a state as rows: [B, *lead, ...] -> [B * copies, ...]."""
    return {part: x.flatten(0, len(lead)) for part, x in state.items()}


def as_rows(x: Tensor, rows: int, lead: tuple[int, ...]) -> Tensor:
    """Copies as rows of the batch: [B, T, *lead, ...] -> [B * copies, T, ...]."""
    return AsRows.apply(x.expand(rows, x.shape[1], *lead, *x.shape[2 + len(lead) :]), len(lead))


class AsRows(torch.autograd.Function):
    """Tokens behind leading axes, these as rows; its gradient lies in memory as x does."""

    @staticmethod
    def forward(ctx, x, lead):
        ctx.front = (x.shape[0], *x.shape[2 : 2 + lead])
        return x.movedim(1, 1 + lead).flatten(0, lead).contiguous()

    @staticmethod
    def backward(ctx, grad):
        return grad.unflatten(0, ctx.front).movedim(len(ctx.front), 1).contiguous(), None


def from_copies(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """Undo `as_rows`."""
    return x.unflatten(0, (-1, *lead)).movedim(1 + len(lead), 1)


def for_copies(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """What all copies have in common, for each: [B, T, ...] -> [B, T, *lead, ...]."""
    more = x.shape[2:]
    return x.reshape(*x.shape[:2], *(1 for _ in lead), *more).expand(*x.shape[:2], *lead, *more)


def in_one_run(found: list[Chunks], gates: dict[str, Any], rows: int) -> Chunks:
    """Chunks of one length as rows of one batch."""
    tiles = {part: joined([x.tiles[part] for x in found], D, rows) for part, D in gates.items()}
    still = [by_part(list(each)) for each in zip(*(x.still for x in found), strict=True)]
    return Chunks(tiles, still, by_part([x.origin for x in found]), len(found))


def by_part(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """States of several chunks as rows of one batch."""
    return {part: in_one_batch([x[part] for x in found]) for part in found[0]}


def in_turns(states: list[dict[str, Tensor]]) -> bool:
    """Say whether chunks are better read one after another: large states that stay in a cache."""
    parts = [x for state in states for x in state.values()]
    return parts[0].device.type == "cpu" and sum(x.numel() for x in parts) >= 2**13


def pieces(x: Tensor, n: int, lead: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Cut a stream into n chunks [B, C, ...], in which copies of the memory lie apart."""
    x = x.unflatten(1, (n, -1))
    if x.shape[3 : 3 + len(lead)] != lead or not lead:
        return x.unbind(1)
    # tokens behind the leading axes in memory, where matrix products want them
    last = 2 + len(lead)
    return tuple(y.movedim(last - 1, 1) for y in x.movedim(2, last).contiguous().unbind(1))


def move(
    writes: list[Any], D: Any, front: tuple[int, ...], M: Any, begins: bool
) -> tuple[Any, ...]:
    """Move a part over a chunk: its course, and what has the states after it."""
    if isinstance(D, Numbers):
        if sum(bool(w.p) for w in writes) < 2 and not any(w.c for w in writes):
            tile = move_tile(writes, D, front, M, begins)
            return tile, tile
        D = D.general()
    d_k = M[0].shape[-2]
    *solved, after = solve(writes, D, front, M[0] if len(M) == 1 else torch.cat(M, -2), d_k)
    return Tiles(D, *solved, front), [after] if len(M) == 1 else list(after.split(d_k, -2))


def chunk_runs(position: int, tokens: int, chunk: int) -> list[tuple[int, int]]:
    """Cut a sequence that begins at a position at the ends of its chunks: (length, how many)."""
    first = min(-position % chunk, tokens)
    whole, rest = (tokens - first) // chunk, (tokens - first) % chunk
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


def below(states: list[Tensor], m: Moves) -> list[Tensor]:
    """The states of a part as tiles take them: [B, *lead, *part] -> M_j^T [G, d_k, d_v]."""
    found = [as_matrix(x, m) for x in states]
    return [x.mT.contiguous().flatten(0, -3) for x in found]


def above(M: Tensor, m: Moves, like: Tensor) -> Tensor:
    """Undo `below` for one state."""
    x, shape = M.mT, as_matrix(like, m).shape
    return from_matrix(x if x.shape == shape else x.reshape(shape), m)


def lead_of(state: Tensor, m: Moves) -> tuple[int, ...]:
    """The leading axes of a part."""
    return tuple(as_matrix(state, m).shape[1:-2])


def gates_of_run(
    moves: dict[str, Moves], states: dict[str, Tensor], at: int, length: int, n: int
) -> dict[str, Any]:
    """The products of gates of n chunks, rows of one batch; parts that move alike share them."""
    found, made = {}, {}
    for part, m in moves.items():
        rows, lead, tile = states[part].shape[0], lead_of(states[part], m), min(m.tile, length)
        like = states[part].new_empty(rows * n * math.prod(lead), 1)

        def spread(g: Any, rows: int = rows) -> Any:
            if not isinstance(g, Tensor):
                return g
            g = g if g.shape[1] == 1 else g[:, at : at + length * n]
            return g.expand(rows, length * n, *g.shape[2:]).unflatten(1, (n, length)).flatten(0, 1)

        key = (m.kind, tile, lead, *(id(g) for row in m.gates for g in row))
        if key not in made:
            gates = [[spread(g) for g in row] for row in m.gates]
            front = (rows * n, length, *lead)
            if m.kind.axes == 0 and tile == length:
                made[key] = Numbers(m.kind, gates, front, like, rows, n)
            else:
                made[key] = m.kind.of(gates, front, tile, like)
        found[part] = made[key]
    return found


def in_one_batch(parts: list[Tensor]) -> Tensor:
    """n of [B, ...] as one [B * n, ...], so that row b * n + i is that of chunk i."""
    return parts[0] if len(parts) == 1 else torch.stack(parts, 1).flatten(0, 1)


def in_one_row(parts: list[Any], rows: int, axis: int) -> Any:
    """As `in_one_batch`, for what tiles hold: n of [.., B * H, ...] as one [.., B * n * H, ...]."""
    if isinstance(parts[0], tuple):
        return tuple(in_one_row(list(x), rows, axis) for x in zip(*parts, strict=True))
    if len(parts) == 1:
        return parts[0]
    cut = [x.unflatten(axis, (rows, -1)) for x in parts]
    return torch.stack(cut, axis + 1).flatten(axis, axis + 2)


def joined(found: list[Any], D: Any, rows: int) -> Any:
    """The course of one part over n chunks, from that over each."""
    apart = isinstance(found[0], Tile)
    axis = 0 if apart else 1

    def join(parts: Any) -> Any:
        return in_one_row(list(parts), rows, axis)

    E = [join(e) for e in zip(*(x.writes for x in found), strict=True)]
    keys = []
    for same in zip(*(x.keys for x in found), strict=True):
        of_keys = [join(b for b, _ in pairs) for pairs in zip(*same, strict=True)]
        keys.append([(b, into) for b, (_, into) in zip(of_keys, same[0], strict=True)])
    front = (rows * len(found), *found[0].front[1:])
    if apart:
        first = found[0].starts
        starts = Stacked(join(x.starts.whole for x in found), first.n, first.wide)
        return Tile(D, E, keys, starts, front)
    D = D.general() if isinstance(D, Numbers) else D
    return Tiles(D, E, keys, join(x.starts for x in found), front)


def as_tiles(path: Any) -> Tiles:
    """A course as what reads states in other ways takes it."""
    if isinstance(path, Tiles):
        return path
    D, starts = path.gates.general(), path.starts.rows().unsqueeze(0)
    E = [e.unsqueeze(0) for e in path.writes]
    keys = [[(D.keys(b.unsqueeze(0)), into) for b, into in pairs] for pairs in path.keys]
    return Tiles(D, E, keys, starts, path.front)


def read_part(q: Tensor, path: Any, late: bool = True, state: int = 0) -> Tensor:
    """M_t q_t (late), or M_{t-1} q_t: q [B, C, *lead, *more, d_k] -> [B, C, *lead, *more, d_v]."""
    if isinstance(path, Tile) and q.ndim == len(path.front) + 1:
        return read_tile(q, path, late, state)
    return read_tiles(q, as_tiles(path), late, state)


def over_chunks(read: Any, course: list[Chunks], *q: Tensor) -> Tensor:
    """Read a course: `read(*q, chunks)` for each run of chunks, q [B, T, ...] cut alike."""
    found, at = [], 0
    for length, n, lead, chunks in runs_of(course):
        here = [x[:, at : at + length * n] for x in q]
        at += length * n
        if len(chunks) == n:
            spans = [pieces(x, n, lead) for x in here] or [[]]
            turns = zip(*spans, chunks, strict=True) if q else ((c,) for c in chunks)
            found.append(torch.stack([read(*turn) for turn in turns], 1).flatten(1, 2))
            continue
        y = read(*(x.unflatten(1, (n, length)).flatten(0, 1) for x in here), *chunks)
        found.append(y.unflatten(0, (-1, n)).flatten(1, 2))
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def over_copies(lead: tuple[int, ...], read: Any, course: list[Chunks], *q: Tensor) -> Tensor:
    """As `over_chunks`, where the copies of the memory are rows of the batch."""
    first = course[0]
    rows = next(iter(first.tiles.values())).front[0] // (first.n * math.prod(lead))
    return from_copies(over_chunks(read, course, *(as_rows(x, rows, lead) for x in q)), lead)


def runs_of(course: list[Chunks]) -> list[tuple[int, int, tuple[int, ...], list[Chunks]]]:
    """Runs of chunks of one length: that length, how many, the leading axes of states."""
    found: list[Any] = []
    for chunks in course:
        front = next(iter(chunks.tiles.values())).front
        if (
            chunks.n == 1
            and found
            and found[-1][0] == front[1]
            and found[-1][1] == len(found[-1][3])
        ):
            length, n, lead, same = found.pop()
            found.append((length, n + 1, lead, [*same, chunks]))
        else:
            found.append((front[1], chunks.n, front[2:], [chunks]))
    return found


def origin_of(chunks: Chunks, part: str) -> Tensor:
    """The state before the chunk, for every token of it."""
    return for_tokens(chunks.origin[part], chunks)


def for_tokens(state: Tensor, chunks: Chunks) -> Tensor:
    """A state that is one for a chunk, for every token of it."""
    tokens = next(iter(chunks.tiles.values())).front[1]
    return state.unsqueeze(1).expand(state.shape[0], tokens, *state.shape[1:])
