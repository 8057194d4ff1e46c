"""Affine memories over many tokens at once; the functions a module uses are copied into it.

A state M [d_v, d_k] that moves by M_t = g_t M_{t-1} + e_t b_t^T, with writes
e_t = M_{t-1} p_t + u_t, is solved in tiles of C tokens. With F(t, i) = g_{i+1} ... g_t in a tile:

    A[t, i] = F(t-1, i) <b_i, p_t>  for i < t,    E = (I - A)^-1 (U + F(t-1, 0) p_t M_0^T)
    M_C = F(C, 0) M_0 + sum_i F(C, i) e_i b_i^T
    y_t = F(t, 0) M_0 q_t + sum_{i<=t} F(t, i) <b_i, q_t> e_i

Products of gates run forward and nothing is divided, so a gate of 0 is exact.

In: p, b [B, T, *lead, d_k], u [B, T, *lead, d_v], g [B, T, *lead], M [B, *lead, d_v, d_k]. Out:
`Tiles`, from which any token's state can be read, and the state after the last token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Tiles(NamedTuple):
    """A memory's course over a sequence; N tiles of C tokens, H copies.

    Token t of a tile has M_t = since[t] M_0 + sum_{i<=t} products[t, i] writes[i] keys[i]^T.
    """

    keys: Tensor  # b [B, N, H, C, d_k]
    writes: Tensor  # e [B, N, H, C, d_v]
    products: Tensor  # F(t, i) [B, N, H, C, C] or [C, C], 0 above the diagonal
    since: Tensor  # F(t, 0) [B, N, H, C]
    starts: Tensor  # M_0 of each tile [B, N, H, d_v, d_k]
    tokens: int
    lead: tuple[int, ...]
    origin: Tensor | None = None  # the state before the chunk, as it is


class UnitLowerInverse(torch.autograd.Function):
    """(I - A)^-1 for A below the diagonal; its gradient is X^T G X^T, masked by A's own."""

    @staticmethod
    def forward(ctx, lower):
        one = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(
            one - lower, one.expand(lower.shape), upper=False, unitriangular=True
        )
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        return inverse.mT @ grad @ inverse.mT


def tiled(x: Tensor, front: tuple[int, ...], d: int, tile: int, fill: float = 0.0) -> Tensor:
    """Cut the sequence into tiles: [B, T, *lead, d] -> [B, N, H, C, d]."""
    tokens = front[1]
    x = x.expand(*front, d).reshape(front[0], tokens, -1, d)
    if tokens % tile:
        x = F.pad(x, (0, 0, 0, 0, 0, -tokens % tile), value=fill)
    return x.unflatten(1, (-1, tile)).transpose(2, 3).contiguous()


def untiled(x: Tensor, tokens: int, lead: tuple[int, ...]) -> Tensor:
    """Join tiles again: [B, N, H, C, ...] -> [B, T, *lead, ...]."""
    x = x.transpose(2, 3).flatten(1, 2)[:, :tokens]
    return x.reshape(*x.shape[:2], *lead, *x.shape[3:])


def gate_products(gates: Tensor) -> tuple[Tensor, Tensor]:
    """F(t, i) and F(t, 0) of gates [..., C]; F(t, i) is 0 for i > t."""
    size = gates.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=gates.device).tril(-1)
    products = torch.where(below, gates.unsqueeze(-1), 1.0).cumprod(-2).tril()
    return products, gates.cumprod(-1)


def before(products: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
    """F(t-1, i) and F(t-1, 0): as the token before saw the tile."""
    return F.pad(products, (0, 0, 1, -1)), F.pad(since, (1, -1), value=1.0)


def solve_tiles(
    p: Tensor | None, u: Tensor | None, b: Tensor, g: Tensor | None, M: Tensor, tile: int
) -> tuple[Tiles, Tensor]:
    """Solve M_t = g M_{t-1} + (M_{t-1} p + u) b^T; p, u None: 0, g None: 1."""
    lead, (d_v, d_k) = tuple(M.shape[1:-2]), M.shape[-2:]
    p, u, b = (x if x is None or x.ndim else x.unsqueeze(0) for x in (p, u, b))
    fronts = [x.shape[:-1] for x in (p, u, b) if x is not None]
    fronts += [g.shape] if g is not None else []
    front = tuple(torch.broadcast_shapes(*fronts, (M.shape[0], 1, *lead)))
    M = M.reshape(M.shape[0], -1, d_v, d_k)
    b = tiled(b.to(M.dtype), front, d_k, tile)
    if g is None:
        since, products = b.new_ones(*b.shape[:3], tile), b.new_ones(tile, tile).tril()
    else:
        gates = tiled(g.to(M.dtype).unsqueeze(-1), front, 1, tile, fill=1.0).squeeze(-1)
        products, since = gate_products(gates)
    to_end = products[..., -1, :, None] * b  # F(C, i) b_i
    decay = since[..., -1, None, None]
    X = b.new_zeros(*b.shape[:-1], d_v) if u is None else tiled(u.to(M.dtype), front, d_v, tile)
    if p is None:
        writes, starts, M = scan_known(X, to_end, decay, M)
    else:
        # E = X + Y M_0^T: what of the writes is known, and what hangs on the tile's first state
        p = tiled(p.to(M.dtype), front, d_k, tile)
        products_before, since_before = before(products, since)
        inverse = UnitLowerInverse.apply(products_before * (p @ b.mT))
        Y = inverse @ (since_before.unsqueeze(-1) * p)
        writes, starts, M = TileScan.apply(inverse @ X, Y, to_end, decay, M)
    path = Tiles(b, writes, products, since, starts, front[1], lead)
    return path, M.reshape(M.shape[0], *lead, d_v, d_k)


class TileScan(torch.autograd.Function):
    """From tile to tile: E = X + Y M^T, then M <- w M + E^T b.

    X [B, N, H, C, d_v], Y, b [B, N, H, C, d_k], w [B, N, H, 1, 1], M [B, H, d_v, d_k]. Gives the
    writes E, the state before each tile and the last one. Its gradient runs from the last tile to
    the first with two products a tile, and takes all others at once.
    """

    @staticmethod
    def forward(ctx, X, Y, b, w, M):
        writes, starts = [], []
        for x, y, key, decay in zip(
            X.unbind(1), Y.unbind(1), b.unbind(1), w.unbind(1), strict=True
        ):
            starts.append(M)
            writes.append(x + y @ M.mT)
            M = decay * M + writes[-1].mT @ key
        E, S = torch.stack(writes, 1), torch.stack(starts, 1)
        ctx.save_for_backward(Y, b, w, E, S)
        return E, S, M

    @staticmethod
    def backward(ctx, dE, dS, dM):
        Y, b, w, E, S = ctx.saved_tensors
        writes, after = [], []
        for i in reversed(range(E.shape[1])):
            after.append(dM)
            writes.append(dE[:, i] + b[:, i] @ dM.mT)
            dM = dS[:, i] + w[:, i] * dM + writes[-1].mT @ Y[:, i]
        dX, A = torch.stack(writes[::-1], 1), torch.stack(after[::-1], 1)
        return dX, dX @ S, E @ A, (A * S).sum((-1, -2), keepdim=True), dM


def scan_known(X: Tensor, b: Tensor, w: Tensor, M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `TileScan`, with writes that do not hang on the state."""
    starts = []
    for add, decay in zip((X.mT @ b).unbind(1), w.unbind(1), strict=True):
        starts.append(M)
        M = decay * M + add
    return X, torch.stack(starts, 1), M


def read_tiles(q: Tensor, path: Tiles, late: bool = True) -> Tensor:
    """M_t q_t (late), or M_{t-1} q_t: q [B, T, *lead, *more, d_k] -> [B, T, *lead, *more, d_v]."""
    keys, writes, products, since, starts, tokens, lead, _ = path
    if not late:
        products, since = before(products, since)
    more = q.shape[2 + len(lead) : -1]
    front = (keys.shape[0], tokens, *lead)
    rows = q.to(keys.dtype).expand(*front, *more, q.shape[-1])
    rows = rows.reshape(*front, -1) if more else rows
    rows = tiled(rows, front, rows.shape[-1], keys.shape[3])
    if not more:
        y = (products * (rows @ keys.mT)) @ writes + since.unsqueeze(-1) * (rows @ starts.mT)
        return untiled(y, tokens, lead).to(q.dtype)
    # several queries of one token: one more axis before the tile's tokens
    rows = rows.unflatten(-1, (-1, q.shape[-1])).transpose(3, 4)
    scores = products.unsqueeze(-3) * (rows @ keys.unsqueeze(3).mT)
    y = scores @ writes.unsqueeze(3)
    y = y + since[:, :, :, None, :, None] * (rows @ starts.unsqueeze(3).mT)
    y = untiled(y.transpose(3, 4), tokens, lead)
    return y.reshape(*front, *more, writes.shape[-1]).to(q.dtype)


def cuts(position: int, tokens: int, chunk: int) -> list[int]:
    """Cut a sequence that begins at a position at the ends of its chunks: the lengths."""
    first = min(-position % chunk, tokens)
    whole, rest = divmod(tokens - first, chunk)
    return [n for n in (first, *[chunk] * whole, rest) if n]


def read_chunks(
    q: Tensor, paths: list[Tiles], late: bool = True, transposed: bool = False
) -> Tensor:
    """Read a course of several chunks; see `read_tiles`."""
    pieces = q.split([path.tokens for path in paths], 1)
    courses = [turned(path) for path in paths] if transposed else paths
    return torch.cat([read_tiles(x, c, late) for x, c in zip(pieces, courses, strict=True)], 1)


def states_of_chunks(paths: list[Tiles], late: bool = True) -> Tensor:
    """The state at every token of a course of several chunks; see `states_of_tiles`."""
    return torch.cat([states_of_tiles(path, late) for path in paths], 1)


def read_starts(q: Tensor, paths: list[Tiles]) -> Tensor:
    """M_c q_t, with the state M_c before the token's chunk."""
    found = []
    for x, path in zip(q.split([path.tokens for path in paths], 1), paths, strict=True):
        assert path.origin is not None
        lead = path.origin.ndim - 3
        matrix = path.origin.flatten(1, -3) if lead > 1 else path.origin
        matrix = matrix if lead else matrix.unsqueeze(1)
        rows = x.to(matrix.dtype).reshape(x.shape[0], x.shape[1], matrix.shape[1], -1, x.shape[-1])
        y = torch.einsum("bhoi,bthmi->bthmo", matrix, rows)
        found.append(y.reshape(*x.shape[:-1], y.shape[-1]).to(q.dtype))
    return torch.cat(found, 1)


def states_of_starts(paths: list[Tiles]) -> Tensor:
    """The state before the chunk of every token."""
    found = []
    for path in paths:
        assert path.origin is not None
        origin = path.origin.unsqueeze(1)
        found.append(origin.expand(origin.shape[0], path.tokens, *origin.shape[2:]))
    return torch.cat(found, 1)


def turned(path: Tiles) -> Tiles:
    """The same course of the transposed state."""
    keys, writes, products, since, starts, tokens, lead, _ = path
    return Tiles(writes, keys, products, since, starts.mT, tokens, lead)


def states_of_tiles(path: Tiles, late: bool = True) -> Tensor:
    """M_t (late), or M_{t-1}, for every token: [B, T, *lead, d_v, d_k]."""
    keys, writes, products, since, starts, tokens, lead, _ = path
    if not late:
        products, since = before(products, since)
    products = products.expand(*since.shape, since.shape[-1])
    states = torch.einsum("bnhti,bnhiv,bnhik->bnhtvk", products, writes, keys)
    states = states + since[..., None, None] * starts.unsqueeze(3)
    return untiled(states, tokens, lead)
