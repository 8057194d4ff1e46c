"""Affine memories over many tokens at once; the functions a module uses are copied into it.

States M_1 .. M_n [d_v, d_k] move token by token, with gates D, numbers or one for each channel:

    e_r = sum_j M_j p_rj + u_r,    M_j <- sum_l M_l D_lj + sum_r e_r b_rj^T

They are solved in tiles of C tokens. With F(t, i) = D_{i+1} ... D_t in a tile, for one state:

    A[t, i] = <F(t-1, i) b_i, p_t>  for i < t,    E = (I - A)^-1 (U + F(t-1, 0) p_t M_0^T)
    M_C = M_0 F(C, 0) + sum_i e_i (F(C, i) b_i)^T
    y_t = M_0 F(t, 0) q_t + sum_{i<=t} <F(t, i) b_i, q_t> e_i

In: p, b [B, T, *lead, d_k], u [B, T, *lead, d_v], M [B, *lead, d_v, d_k]. Out: `Tiles`, from which
any token's states can be read, and the states after the last token. How the gates enter stands in
`library_gates`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Write(NamedTuple):
    """One outer product for each token: e b^T with e = sum M_j p + u + sum c e_s."""

    p: list[tuple[Tensor, int]]  # what state j is read with
    u: Tensor | None
    b: list[tuple[Tensor, tuple[int, ...]]]  # along which it goes, and into which states
    c: tuple[tuple[Tensor, int], ...] = ()  # how much of the same token's write s it sees
    met: Tensor | None = None  # M p of the one state before the chunk, where that is known


class Tiles(NamedTuple):
    """A memory's course over a sequence: N tiles of C tokens, G rows and copies, n states."""

    gates: Any  # products of gates from token to token
    writes: list[Tensor]  # e of each write [N, G, C, d_v]
    keys: list[list[tuple[Tensor, tuple[int, ...]]]]  # b of each write, as `gates` takes it
    starts: Tensor  # the states before each tile, each M_j^T below the other [N, G, n * d_k, d_v]
    front: tuple[int, ...]  # B, T, *lead


def unit_lower_inverse(A: Tensor) -> Tensor:
    """(I - A)^-1 for A below the diagonal; nothing above it is looked at."""
    one = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.linalg.solve_triangular(
        one - A, one.expand(A.shape), upper=False, unitriangular=True
    )


def tiled(x: Tensor, front: tuple[int, ...], d: int, tile: int, fill: float = 0.0) -> Tensor:
    """Cut the sequence into tiles: [B, T, *lead, d] -> [N, G, C, d], G rows and copies."""
    rows, tokens = front[:2]
    x = x.expand(*front, d).reshape(rows, tokens, -1, d)
    if tokens % tile:
        x = F.pad(x, (0, 0, 0, 0, 0, -tokens % tile), value=fill)
    x = x.unflatten(1, (-1, tile)).permute(1, 0, 3, 2, 4)
    return x.contiguous().flatten(1, 2)


def untiled(x: Tensor, front: tuple[int, ...]) -> Tensor:
    """Join tiles again: [N, G, C, ...] -> [B, T, *lead, ...]."""
    x = x.unflatten(1, (front[0], -1))
    x = x.permute(1, 0, 3, 2, *range(4, x.ndim)).flatten(1, 2)[:, : front[1]]
    return x.reshape(*front, *x.shape[3:])


def solve_tiles(
    writes: list[Write], kind: Any, gates: list[list[Any]], states: list[Tensor], tile: int
) -> tuple[Any, ...]:
    """Solve the writes of all tokens: the course and the states after it; `gates[a][j]` is D_aj."""
    M = stacked(states)
    least = (states[0].shape[0], 1, *states[0].shape[1:-2])
    front = common_front(writes, kind, gates, least)
    D = kind.of(gates, front, tile, M)
    E, keys, starts, M = solve(writes, D, front, M, states[0].shape[-1])
    after = [Z.mT.reshape(states[0].shape) for Z in M.split(states[0].shape[-1], -2)]
    return Tiles(D, E, keys, starts, front), *after


def stacked(states: list[Tensor]) -> Tensor:
    """Each M_j^T below the other: [B, *lead, d_v, d_k] -> [G, n * d_k, d_v]."""
    return torch.cat([Z.reshape(-1, *Z.shape[-2:]).mT for Z in states], -2)


def solve(
    writes: list[Write], D: Any, front: tuple[int, ...], M: Tensor, d_k: int
) -> tuple[Any, ...]:
    """Solve the writes: e and b of each, the states before each tile, and after the last."""
    d_v = M.shape[-1]

    def cut(x: Tensor, d: int) -> Tensor:
        return tiled(x.to(M.dtype), front, d, D.tile)

    keys = [[(D.keys(cut(b, d_k)), into) for b, into in w.b] for w in writes]
    E = [cut(M.new_zeros(1) if w.u is None else w.u, d_v) for w in writes]
    open_ = [r for r, w in enumerate(writes) if w.p or w.c]
    known = [r for r in range(len(writes)) if r not in open_]
    # what the known writes leave in the states at each tile's end
    add = sum(D.left(keys[s]).mT @ E[s] for s in known) if known else None
    if not open_:
        starts, M = scan_known(add, D.whole(), M)
        return E, keys, starts, M
    reads = {r: [(D.rows(cut(p, d_k), late=False), j) for p, j in writes[r].p] for r in open_}
    sees = {r: {s: cut(c.unsqueeze(-1), 1) for c, s in writes[r].c} for r in open_}

    def A(r: int, s: int) -> Tensor:
        found = reached(D, reads[r], keys[s], sees[r].get(s))
        return M.new_zeros(*E[s].shape[:-1], D.tile) if found is None else found

    def asked(r: int) -> Tensor:
        found = D.asked(reads[r], late=False) if reads[r] else M.new_zeros(1)
        return found.expand(*E[r].shape[:-1], M.shape[-2])

    # E = A E + U + P M^T: what hangs on each other, is known, and hangs on the first states
    U = woven([sum((A(r, s) @ E[s] for s in known), E[r]) for r in open_])
    P, b = woven([asked(r) for r in open_]), woven([D.left(keys[r]) for r in open_])
    square = woven_square([[A(r, s) for s in open_] for r in open_])
    solved, starts, M = TileScan.apply(square, U, P, b, D.whole(), add, M)
    for place, r in enumerate(open_):
        E[r] = solved if len(open_) == 1 else solved[..., place :: len(open_), :]
    return E, keys, starts, M


def common_front(
    writes: list[Write], kind: Any, gates: list[list[Any]], least: tuple[int, ...]
) -> tuple[int, ...]:
    """B, T, *lead of all that is given, some of which may be one for all tokens or copies."""
    vectors = [x for w in writes for x, _ in (*w.p, *w.b)]
    vectors += [w.u for w in writes if w.u is not None]
    numbers = [c for w in writes for c, _ in w.c]
    given = [g for row in gates for g in row if isinstance(g, Tensor)]
    fronts = [x.shape[:-1] for x in vectors] + [x.shape for x in numbers]
    fronts += [g.shape[: g.ndim - kind.axes] for g in given]
    return tuple(torch.broadcast_shapes(*fronts, least))


def reached(
    D: Any, reads: list[tuple[Tensor, int]], keys: list[tuple[Tensor, tuple[int, ...]]], c: Any
) -> Tensor | None:
    """A[t, i]: how much the reads of token t take of a write of token i < t, or i = t by c."""
    found = [D.reach(into, j, p, b, late=False) for p, j in reads for b, into in keys]
    found += [] if c is None else [torch.diag_embed(c.squeeze(-1))]
    found = [x for x in found if x is not None]
    return sum(found[1:], found[0]) if found else None


def woven(rows: list[Tensor]) -> Tensor:
    """Put the writes of a token one after another: R of [.., C, d] -> [.., C * R, d]."""
    return rows[0] if len(rows) == 1 else torch.stack(rows, -2).flatten(-3, -2)


def woven_square(blocks: list[list[Tensor]]) -> Tensor:
    """As `woven`, for both axes: R x R of [.., C, C] -> [.., C * R, C * R]."""
    if len(blocks) == 1:
        return blocks[0][0]
    shape = torch.broadcast_shapes(*(b.shape for row in blocks for b in row))
    rows = [torch.stack([b.expand(shape) for b in row], -1).flatten(-2) for row in blocks]
    return torch.stack(rows, -2).flatten(-3, -2)


def carried(M: Tensor, w: Tensor) -> Tensor:
    """M_j <- sum_a M_a w_aj, transposed: M [.., n * d_k, d_v], w [.., n, n, 1 or d_k]."""
    n = w.shape[-2]
    if n == 1:
        return w.squeeze(-3).mT * M
    M = M.unflatten(-2, (n, -1))
    if w.shape[-1] == 1 < M.shape[-1]:
        moved = w.squeeze(-1).mT @ M.flatten(-2)
        return moved.unflatten(-1, M.shape[-2:]).flatten(-3, -2)
    return (w.unsqueeze(-1) * M.unsqueeze(-3)).sum(-4).flatten(-3, -2)


class TileScan(torch.autograd.Function):
    """From tile to tile: E = A E + U + P M, then M <- carried(M, w) + b^T E + add; M is transposed.

    A [N, G, C, C] below the diagonal, U [N, G, C, d_v], P, b [N, G, C, n * d_k],
    w [N, G, n, n, 1 or d_k], M [G, n * d_k, d_v]. Gives the writes E, the states before each tile
    and the last ones. Its gradient runs from the last tile to the first, and takes all that no
    other tile waits for at once.
    """

    @staticmethod
    def forward(ctx, A, U, P, b, w, add, M):
        writes, starts, solve = [], [], unit_lower_inverse(A)
        more = [None] * U.shape[0] if add is None else add
        for inverse, u, p, key, decay, known in zip(solve, U, P, b, w, more, strict=True):
            starts.append(M)
            writes.append(inverse @ torch.baddbmm(u, p, M))
            M = carried(M, decay) if known is None else carried(M, decay) + known
            M = torch.baddbmm(M, key.mT, writes[-1])
        E, S = torch.stack(writes), torch.stack(starts)
        ctx.save_for_backward(A, solve, P, b, w, E, S)
        ctx.adds = add is not None
        return E, S, M

    @staticmethod
    def backward(ctx, dE, dS, dM):
        A, solve, P, b, w, E, S = ctx.saved_tensors
        if torch.is_grad_enabled():
            # this is differentiated again, and then the inverse hangs on A
            solve = unit_lower_inverse(A)
        back, known, after = w.transpose(-3, -2), [], []
        for i in reversed(range(E.shape[0])):
            after.append(dM)
            known.append(solve[i].mT @ torch.baddbmm(dE[i], b[i], dM))
            dM = torch.baddbmm(carried(dM, back[i]) + dS[i], P[i].mT, known[-1])
        dU, dS = torch.stack(known[::-1]), torch.stack(after[::-1])
        dw, dadd = of_decays(S, dS, w), dS if ctx.adds else None
        return dU @ E.mT, dU, dU @ S.mT, E @ dS.mT, dw, dadd, dM


def of_decays(before: Tensor, after: Tensor, w: Tensor) -> Tensor:
    """The gradient of w in `carried`, from the states before and the gradient of those after."""
    n = w.shape[-2]
    before, after = before.unflatten(-2, (n, -1)), after.unflatten(-2, (n, -1))
    if w.shape[-1] == 1:
        return (before.flatten(-2) @ after.flatten(-2).mT).unsqueeze(-1)
    return (before.unsqueeze(-3) * after.unsqueeze(-4)).sum(-1)


def scan_known(add: Tensor, w: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """As `TileScan`, with writes that do not hang on the state."""
    starts = []
    for known, decay in zip(add, w, strict=True):
        starts.append(M)
        M = carried(M, decay) + known
    return torch.stack(starts), M


# ---- reading a course --------------------------------------------------------------------------


def queries(q: Tensor, path: Tiles) -> Tensor:
    """Cut queries into tiles: [B, T, *lead, *more, d] -> [N, G, C * more, d]."""
    more = q.shape[len(path.front) : -1]
    rows = q.to(path.starts.dtype).expand(*path.front, *more, q.shape[-1])
    rows = rows.reshape(*path.front, -1)
    rows = tiled(rows, path.front, rows.shape[-1], path.gates.tile)
    return rows.unflatten(-1, (-1, q.shape[-1])).flatten(-3, -2) if more else rows


def answers(y: Tensor, q: Tensor, path: Tiles) -> Tensor:
    """Undo `queries` for what was read."""
    more = q.shape[len(path.front) : -1]
    y = y.unflatten(-2, (path.gates.tile, -1)) if more else y
    y = untiled(y, path.front)
    return (y.unflatten(-2, more) if more else y).to(q.dtype)


def read_tiles(q: Tensor, path: Tiles, late: bool = True, state: int = 0) -> Tensor:
    """M_t q_t (late), or M_{t-1} q_t: q [B, T, *lead, *more, d_k] -> [B, T, *lead, *more, d_v]."""
    D = path.gates
    rows = D.rows(queries(q, path), late)
    y = D.asked([(rows, state)], late) @ path.starts
    for e, keys in zip(path.writes, path.keys, strict=True):
        for b, into in keys:
            scores = D.reach(into, state, rows, b, late)
            y = y if scores is None else y + scores @ e
    return answers(y, q, path)


def read_turned(q: Tensor, path: Tiles, late: bool = True, state: int = 0) -> Tensor:
    """As `read_tiles`, of the transposed state: M_t^T q_t, q [.., d_v]."""
    D, rows = path.gates, queries(q, path)
    y = D.kept(state, rows @ path.starts.mT, late)
    for e, keys in zip(path.writes, path.keys, strict=True):
        for b, into in keys:
            given = D.spread(into, state, rows @ e.mT, b, late)
            y = y if given is None else y + given
    return answers(y, q, path)


def states_of_tiles(path: Tiles, late: bool = True, state: int = 0) -> Tensor:
    """M_t (late), or M_{t-1}, for every token: [B, T, *lead, d_v, d_k]."""
    D, d_v = path.gates, path.starts.shape[-1]
    # every row of the start states, as each token sees it
    first = path.starts.mT.unsqueeze(-3)
    first = first.expand(*first.shape[:-3], D.tile, *first.shape[-2:]).flatten(-3, -2)
    states = D.kept(state, first, late).unflatten(-2, (D.tile, d_v))
    for e, keys in zip(path.writes, path.keys, strict=True):
        for b, into in keys:
            scores = e.mT.unsqueeze(-3).expand(*e.shape[:-2], D.tile, *e.mT.shape[-2:])
            given = D.spread(into, state, scores.flatten(-3, -2), b, late)
            if given is not None:
                states = states + given.unflatten(-2, (D.tile, d_v))
    return untiled(states, path.front)


def held(p: list[tuple[Tensor, int]], u: Tensor | None, path: Tiles) -> Tensor:
    """At every token, before its update: sum M_j p + u."""
    found = [read_tiles(x.to(path.starts.dtype), path, False, j) for x, j in p]
    return sum(found[1:], found[0]) if u is None else sum(found, u)


# ---- courses of several chunks -----------------------------------------------------------------


def cuts(position: int, tokens: int, chunk: int) -> list[int]:
    """Cut a sequence that begins at a position at the ends of its chunks: the lengths."""
    first = min(-position % chunk, tokens)
    whole, rest = (tokens - first) // chunk, (tokens - first) % chunk
    return [n for n in (first, *[chunk] * whole, rest) if n]


def read_chunks(
    q: Tensor, paths: list[Tiles], late: bool = True, state: int = 0, turned: bool = False
) -> Tensor:
    """Read a course of several chunks; see `read_tiles`."""
    pieces = q.split([path.front[1] for path in paths], 1)
    read = read_turned if turned else read_tiles
    return torch.cat([read(x, c, late, state) for x, c in zip(pieces, paths, strict=True)], 1)


def states_of_chunks(paths: list[Tiles], late: bool = True, state: int = 0) -> Tensor:
    """The state at every token of a course of several chunks; see `states_of_tiles`."""
    return torch.cat([states_of_tiles(path, late, state) for path in paths], 1)
