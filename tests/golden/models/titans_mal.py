"""titans_mal: Titans, memory as a layer (arXiv:2501.00663, section 4.3)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    now: always
    fast: every 1 token, chunk 16
    slow: every 1 step
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """Give x in float32 or better: the precision of states and decays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-12) -> Tensor:
    """x / max(||x||, eps)."""
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)


def rmsnorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps)."""
    return x * torch.rsqrt(wide(x).square().mean(dim, keepdim=True) + eps).to(x.dtype)


def index(n: int, like: Tensor) -> Tensor:
    """0 ... n-1, in float32 or better."""
    return torch.arange(n, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def positions(start: int, tokens: int, like: Tensor) -> Tensor:
    """Count the tokens from the sequence's start: [1, T], in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.arange(start, start + tokens, device=like.device, dtype=dtype)[None]


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """[..., m, k], [..., k] -> [..., m]."""
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: [..., m], [..., n] -> [..., m, n]."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last axis: x [..., n], angle [..., n/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = torch.cos(angle), torch.sin(angle)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).to(x.dtype)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], per token: [..., n], [...] -> [...]."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def uniform(weight: Tensor, fan_in: int) -> None:
    """Draw from the uniform distribution in +-1/sqrt(fan in)."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    nn.init.uniform_(weight, -bound, bound)


class Conv(nn.Module):
    """Depthwise causal convolution over time; the last tap is the present token."""

    def __init__(self, channels: int, width: int, bias: bool = False, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(channels, 1, width, **new))
        self.bias = nn.Parameter(torch.empty(channels, **new)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        uniform(self.weight, self.weight.shape[-1])
        if self.bias is not None:
            uniform(self.bias, self.weight.shape[-1])

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, channels], past [B, width - 1, channels] -> y, new past."""
        joined = torch.cat((past.to(x.dtype), x), 1)
        y = F.conv1d(joined.mT, self.weight, self.bias, groups=self.weight.shape[0]).mT
        return y, joined[:, x.shape[1] :].to(past.dtype)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, channels] of one token -> y, new past."""
        joined = torch.cat((past.to(x.dtype), x[:, None]), 1)
        y = (joined * self.weight[:, 0].mT).sum(1)
        y = y if self.bias is None else y + self.bias
        return y, joined[:, 1:].to(past.dtype)


class Tensors(nn.Module):
    """Holds parameters by name, without values; whoever holds it draws them."""

    def __init__(self, device=None, dtype=None, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))


def activation(name: str, x: Tensor) -> Tensor:
    """The activation of a map by its name in the spec."""
    match name:
        case "none":
            return x
        case "exp":
            return torch.exp(x)
        case "softplus":
            return torch.logaddexp(x, x.new_zeros(()))
        case _:
            return getattr(F, name)(x)


class GLU(nn.Module):
    """down (act(gate x) * (up x))."""

    def __init__(
        self, d_in: int, hidden: int, d_out: int, act: str = "silu", device=None, dtype=None
    ):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.act = act
        self.gate = nn.Parameter(torch.empty(hidden, d_in, **new))
        self.up = nn.Parameter(torch.empty(hidden, d_in, **new))
        self.down = nn.Parameter(torch.empty(d_out, hidden, **new))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.gate, self.up, self.down):
            uniform(weight, weight.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        gated = activation(self.act, F.linear(x, self.gate)) * F.linear(x, self.up)
        return F.linear(gated, self.down)


class Write(NamedTuple):
    """One outer product for each token: e b^T with e = sum M_j p + u + sum c e_s."""

    p: list[tuple[Tensor, int]]  # what state j is read with
    u: Tensor | None
    b: list[tuple[Tensor, tuple[int, ...]]]  # along which it goes, and into which states
    c: tuple[tuple[Tensor, int], ...] = ()  # how much of the same token's write s it sees


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


def per_row(table: Tensor, rows: Tensor, dim: int = -2) -> Tensor:
    """Repeat a table's row of each token for all its queries."""
    times = rows.shape[-2] // table.shape[dim]
    return table if times == 1 else table.repeat_interleave(times, dim)


def gate_tiles(
    g: Tensor | float | None,
    front: tuple[int, ...],
    tile: int,
    like: Tensor,
    axes: int,
    fill: float,
) -> Tensor:
    """Cut gates into tiles [N, G, C, 1 or d_k]; tokens beyond the last change nothing."""
    if not isinstance(g, Tensor):
        g = like.new_full((1,), g or 0.0)
    elif axes == 0:
        g = g.unsqueeze(-1)
    return tiled(g.to(like.dtype), front, g.shape[-1], tile, fill)


def by_chunk(x: Tensor | None, rows: int, n: int) -> list[Tensor | None]:
    """What n chunks have, which stand as rows of a batch: n of [N, G, ...]; None is 0 for all."""
    if x is None:
        return [None] * n
    return [part.flatten(1, 2) for part in x.unflatten(1, (rows, n, -1)).unbind(2)]


class Products(torch.autograd.Function):
    """g_{i+1} ... g_t for 0 <= i <= t <= C, else 0: [.., C] -> [.., 1 + C, 1 + C].

    They are the inverse X of I - A, where A has g below its diagonal; nothing is divided. Its
    gradient is that of any inverse, X^T G X^T, of which only what stands in the place of g counts.
    """

    @staticmethod
    def forward(ctx, g):
        found = unit_lower_inverse(torch.diag_embed(g, -1))
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx, grad):
        (found,) = ctx.saved_tensors
        return (found[..., 1:].mT @ grad * found[..., :-1, :]).sum(-1)


class DecayedKeys(torch.autograd.Function):
    """g_{i+1} ... g_t b_i for i <= t, else 0, channel by channel: [.., C, d] -> [.., C, C, d].

    Its last row, t = C, is given once more for itself.
    """

    @staticmethod
    def forward(ctx, g, b):
        found = b.new_zeros(*b.shape[:-2], b.shape[-2], *b.shape[-2:])
        for t in range(b.shape[-2]):
            if t:
                found[..., t, :t, :] = found[..., t - 1, :t, :] * g[..., t, None, :]
            found[..., t, t, :] = b[..., t, :]
        ctx.save_for_backward(g, found)
        return found, found[..., -1, :, :].clone()

    @staticmethod
    def backward(ctx, grad, last):
        g, found = ctx.saved_tensors
        dg, db = torch.zeros_like(g), torch.empty_like(g)
        row = grad[..., -1, :, :] + last
        for t in reversed(range(g.shape[-2])):
            db[..., t, :] = row[..., t, :]
            if t:
                dg[..., t, :] = (row[..., :t, :] * found[..., t - 1, :t, :]).sum(-2)
                row = grad[..., t - 1, :t, :] + row[..., :t, :] * g[..., t, None, :]
        return dg, db


class CoupledGates:
    """Gates between n states, one number a token.

    `tables[a][j]` holds F_aj(t, i) [.., 1 + C, 1 + C, 1 or d_k], with i = 0 the tile's start.
    """

    axes = 0

    def __init__(self, tile, tables):
        self.tile, self.n, self.tables = tile, len(tables), tables

    @classmethod
    def of(cls, gates, front, tile, like):
        def cut(a, j):
            if gates[a][j] is None and a != j:
                return None
            return gate_tiles(gates[a][j], front, tile, like, cls.axes, float(a == j))

        states = range(len(gates))
        return cls(tile, coupled_tables([[cut(a, j) for j in states] for a in states]))

    def of_chunks(self, rows, n):
        cut = [[by_chunk(x, rows, n) for x in row] for row in self.tables]
        return [CoupledGates(self.tile, [[x[i] for x in row] for row in cut]) for i in range(n)]

    def rows(self, q, late=True):
        return q

    def keys(self, b):
        return b

    def total(self, into, j):
        """What of a write into some states reaches state j."""
        found = [t for a in into if (t := self.tables[a][j]) is not None]
        return sum(found[1:], found[0])[..., 1:, :] if found else None

    def seen(self, into, j, late, rows):
        """The same, as each row of a token sees it."""
        table = self.total(into, j)
        if table is None:
            return None
        return per_row(table[..., 1:, :, :] if late else table[..., :-1, :, :], rows, -3)

    def reach(self, into, j, q, b, late=True):
        table = self.seen(into, j, late, q)
        if table is None:
            return None
        if table.shape[-1] == 1:
            return table.squeeze(-1) * (q @ b.mT)
        return (q.unsqueeze(-2) * table * b.unsqueeze(-3)).sum(-1)

    def spread(self, into, j, s, b, late=True):
        table = self.seen(into, j, late, s)
        if table is None:
            return None
        if table.shape[-1] == 1:
            return (table.squeeze(-1) * s) @ b
        return (s.unsqueeze(-1) * table * b.unsqueeze(-3)).sum(-2)

    def since(self, j, late, rows):
        """How much of each of the first states is in state j: [C, n, 1 or d_k]."""
        found = side_by_side([None if row[j] is None else row[j][..., 0, :] for row in self.tables])
        return per_row(found[..., 1:, :, :] if late else found[..., :-1, :, :], rows, -3)

    def asked(self, reads, late=True):
        return sum((self.since(j, late, q) * q.unsqueeze(-2)).flatten(-2) for q, j in reads)

    def kept(self, j, M, late=True):
        return (self.since(j, late, M) * M.unflatten(-1, (self.n, -1))).sum(-2)

    def left(self, keys):
        found = 0.0
        for b, into in keys:
            tables = [self.total(into, j) for j in range(self.n)]
            last = side_by_side([None if t is None else t[..., -1, :, :] for t in tables])
            found = found + (last * b.unsqueeze(-2)).flatten(-2)
        return found

    def whole(self):
        last = [[None if t is None else t[..., -1, 0, :] for t in row] for row in self.tables]
        return side_by_side([side_by_side(row) for row in last], -3)


def side_by_side(parts: list[Tensor | None], dim: int = -2) -> Tensor:
    """Stack what may have one channel or all of them, None 0."""
    shape = torch.broadcast_shapes(*(x.shape for x in parts if x is not None))
    blank = next(x for x in parts if x is not None).new_zeros(1)
    return torch.stack([(blank if x is None else x).expand(shape) for x in parts], dim)


def coupled_tables(D: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    """F(t, i) of gates D_aj [.., C, 1 or d]: tables [.., 1 + C, 1 + C, 1 or d].

    A state that others flow into: F_aj = F_jj (sum_m D_mj F_am), its own products times what came
    to it, one token later. Where states flow in a circle, token by token.
    """
    n = len(D)
    tables: list[list[Tensor | None]] = [[None] * n for _ in range(n)]
    waiting = list(range(n))
    while waiting:
        free = [j for j in waiting if all(D[m][j] is None for m in waiting if m != j)]
        if not free:
            return circular_tables(D)
        for j in free:
            tables[j][j] = own_table(D[j][j])
            for a in range(n):
                came = [
                    D[m][j].unsqueeze(-2) * tables[a][m][..., :-1, :, :]
                    for m in range(n)
                    if m != j and D[m][j] is not None and tables[a][m] is not None
                ]
                if a != j and came:
                    tables[a][j] = after(tables[j][j][..., 1:, :], sum(came[1:], came[0]))
            waiting.remove(j)
    return tables


def own_table(g: Tensor) -> Tensor:
    """F(t, i) of one state: [.., C, 1 or d] -> [.., 1 + C, 1 + C, 1 or d]."""
    if g.shape[-1] == 1:
        return Products.apply(g.squeeze(-1)).unsqueeze(-1)
    g = F.pad(g, (0, 0, 1, 0), value=1.0)
    return DecayedKeys.apply(g, torch.ones_like(g))[0]


def after(table: Tensor, came: Tensor) -> Tensor:
    """sum_s table[t, s] came[s, i], for each channel."""
    if table.shape[-1] == came.shape[-1] == 1:
        return (table.squeeze(-1) @ came.squeeze(-1)).unsqueeze(-1)
    return torch.einsum("...tsk,...sik->...tik", table, came)


def circular_tables(D: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    """As `coupled_tables`, one token after another."""
    n, C = len(D), D[0][0].shape[-2]
    d = max(g.shape[-1] for row in D for g in row if g is not None)
    zero = D[0][0].new_zeros(*D[0][0].shape[:-2], 1 + C, d)
    one = torch.eye(1 + C, dtype=zero.dtype, device=zero.device).unsqueeze(-1)
    states = range(n)
    now = [[zero + one[0] if a == j else zero for j in states] for a in states]
    rows = [now]
    for t in range(C):
        new = [[zero + one[t + 1] if a == j else zero for j in states] for a in states]
        for a in states:
            for j in states:
                for m in states:
                    if D[m][j] is not None:
                        new[a][j] = new[a][j] + now[a][m] * D[m][j][..., t, None, :]
        now = new
        rows.append(now)
    return [[torch.stack([row[a][j] for row in rows], -3) for j in states] for a in states]


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


class Pairs(NamedTuple):
    """What a softmax memory holds over a sequence; the first `before` pairs are older than it."""

    keys: Tensor
    values: Tensor
    before: int
    position: int = 0


def as_pairs(x: Tensor, cache: dict[str, Tensor], sequence: bool) -> Tensor:
    """Lay out keys or values as pairs: [B, T, *lead, d], or [B, *lead, d] -> [B, *lead, T, d]."""
    front = cache["key"].shape[:-2]
    x = x if sequence else x.unsqueeze(1)
    return x.expand(front[0], x.shape[1], *front[1:], x.shape[-1]).movedim(1, -2)


def append_pairs(
    keys: Tensor,
    values: Tensor,
    cache: dict[str, Tensor],
    window: int | None,
    per_token: int = 1,
    reset: int | None = None,
    position: int = 0,
) -> tuple[Pairs, dict[str, Tensor]]:
    """Add pairs [B, *lead, n, d] to a cache; the new cache keeps only the window.

    `reset`: pairs are forgotten at the end of each so many tokens; `position` is the first token's.
    """
    tokens = keys.shape[-2] // per_token
    older = cache["key"].shape[-2]
    keys = torch.cat((cache["key"], keys.to(cache["key"].dtype)), -2)
    values = torch.cat((cache["value"], values.to(cache["value"].dtype)), -2)
    first = 0 if window is None else max(keys.shape[-2] - window, 0)
    if reset is not None:
        last = (position + tokens) // reset * reset - position
        first = max(first, older + per_token * last) if last > 0 else first
    kept = {"key": keys[..., first:, :], "value": values[..., first:, :]}
    return Pairs(keys, values, older, position), kept


def attend(
    q: Tensor,
    pairs: Pairs,
    scale: float,
    per_token: int = 1,
    window: int | None = None,
    late: bool = True,
    lead: int = 1,
    first: tuple[Tensor, Tensor] | None = None,
    reset: int | None = None,
) -> Tensor:
    """Read for all tokens at once; `late` sees the token's own pairs, `first` are always seen."""
    keys, values, older, position = pairs
    tokens, more = q.shape[1], q.shape[2 + lead : -1]
    front = keys.shape[: 1 + lead]
    # [B, T, *lead, *more, d] -> [B, H, more * T, d]
    rows = q.expand(front[0], tokens, *front[1:], *more, q.shape[-1])
    rows = rows.to(keys.dtype).reshape(front[0], tokens, -1, max(more.numel(), 1), q.shape[-1])
    rows = rows.permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys = keys.reshape(front[0], -1, *keys.shape[-2:])
    values = values.reshape(front[0], -1, *values.shape[-2:])
    total, always = keys.shape[2], 0
    if first is not None:
        always = first[0].shape[-2]
        kept = [x.reshape(1, -1, *x.shape[-2:]).expand(front[0], -1, -1, -1) for x in first]
        keys = torch.cat((kept[0].to(keys.dtype), keys), 2)
        values = torch.cat((kept[1].to(values.dtype), values), 2)
    alone = window is None and reset is None
    if late and alone and older == 0 and always == 0 and per_token == 1 and not more:
        y = F.scaled_dot_product_attention(rows, keys, values, is_causal=True, scale=scale)
    else:
        # token t sees the pairs from `low` up to, not including, `high`
        token = torch.arange(tokens, device=q.device)[:, None]
        high = older + per_token * (token + (1 if late else 0))
        pair = torch.arange(total, device=q.device)[None]
        seen = pair < high
        if window is not None:
            seen = seen & (pair >= high - window)
        if reset is not None:
            begin = (position + token) // reset * reset - position
            seen = seen & ((begin <= 0) | (pair >= older + per_token * begin))
        seen = torch.cat((seen.new_ones(tokens, always), seen), 1).repeat(max(more.numel(), 1), 1)
        if total + always == 0:
            y = rows.new_zeros(*rows.shape[:-1], values.shape[-1])
        else:
            # an empty set reads 0: let it see everything, and drop what it reads
            some = seen.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(
                rows, keys, values, attn_mask=seen | ~some, scale=scale
            )
            y = torch.where(some, y, 0.0)
    y = y.unflatten(2, (-1, tokens)).permute(0, 3, 1, 2, 4)
    return y.reshape(front[0], tokens, *front[1:], *more, values.shape[-1]).to(q.dtype)


def attend_step(
    q: Tensor,
    cache: dict[str, Tensor],
    scale: float,
    lead: int = 1,
    first: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Read for one token: q [B, *lead, *more, d_k] sees all pairs of the cache."""
    keys, values = cache["key"], cache["value"]
    front, more = keys.shape[: 1 + lead], q.shape[1 + lead : -1]
    if first is not None:
        kept = [x.expand(*front, *x.shape[-2:]) for x in first]
        keys = torch.cat((kept[0].to(keys.dtype), keys), -2)
        values = torch.cat((kept[1].to(values.dtype), values), -2)
    rows = q.to(keys.dtype).expand(*front, *more, q.shape[-1])
    rows = rows.reshape(*front, -1, q.shape[-1])
    if keys.shape[-2] == 0:
        y = rows.new_zeros(*rows.shape[:-1], values.shape[-1])
    else:
        y = F.scaled_dot_product_attention(rows, keys, values, scale=scale)
    return y.reshape(*front, *more, values.shape[-1]).to(q.dtype)


class MixerM(nn.Module):
    """Memory M: mlp(d_k -> 2*d_k -> d_k), one per heads; every 1 token.

    S = eta * S - theta * grad   (rules.nl:27)
    self = (1 - alpha) * self + S   (rules.nl:28)
    state  M.layer1.weight [B, heads, 2*d_k, d_k]
    state  M.layer2.weight [B, heads, d_k, 2*d_k]
    state  M.S.layer1.weight [B, heads, 2*d_k, d_k]
    state  M.S.layer2.weight [B, heads, d_k, 2*d_k]
    runs   tile-scan: affine in its state, and its writes are known at the chunk's start
    """

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.layer1 = Tensors(weight=(4, 64, 32), **new)
        self.layer2 = Tensors(weight=(4, 32, 64), **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial state anew."""
        uniform(self.layer1.weight, 32)
        uniform(self.layer2.weight, 64)

    def initial(self, batch: int, like: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the state at the start."""
        M = {
            "layer1.weight": wide(self.layer1.weight).expand(batch, 4, 64, 32),
            "layer2.weight": wide(self.layer2.weight).expand(batch, 4, 32, 64),
        }
        M_S = {
            "layer1.weight": zeros(like, batch, 4, 64, 32),
            "layer2.weight": zeros(like, batch, 4, 32, 64),
        }
        return M, M_S

    def forward(
        self,
        alpha: Tensor,
        eta: Tensor,
        theta: Tensor,
        conv_k: Tensor,
        M_v: Tensor,
        M: dict[str, Tensor],
        M_S: dict[str, Tensor],
        M_start: dict[str, Tensor],
        position: int,
    ) -> tuple[list[Chunks], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Move over a sequence, a chunk of 16 tokens at a time."""

        def writes(theta, conv_k, M_v, start):
            """What the tokens of a chunk write, from the state before it."""
            layer2_weight = start["layer2.weight"]
            b = unit(F.silu(conv_k.unflatten(-1, (4, 32))))
            value = torch.einsum("bhoi,bthi->btho", start["layer1.weight"], wide(b))
            b_1 = F.gelu(value)
            difference = torch.einsum("bhoi,bthi->btho", layer2_weight, b_1) - F.silu(M_v)
            product = value * (0.3989422804014327 * torch.exp(-0.5 * (value * value)))
            value_1 = torch.einsum("bhoi,bthi->btho", layer2_weight.mT, difference)
            product_1 = value_1 * (0.5 * (1.0 + torch.erf(0.7071067811865476 * value)) + product)
            u = -(theta.unsqueeze(3) * product_1)
            e = Write([], u, [(b, (0, 1))])
            u = (-theta).unsqueeze(3) * difference
            e_1 = Write([], u, [(b_1, (0, 1))])
            return {"layer1.weight": [e], "layer2.weight": [e_1]}

        # e = u
        # M.layer1.weight_t = M.layer1.weight_{t-1} g11 + M_S.layer1.weight_{t-1} g21 + e b^T
        # M_S.layer1.weight_t = M_S.layer1.weight_{t-1} g22 + e b^T
        g = 1.0 - alpha
        moves = {
            "layer1.weight": Moves([[g, None], [eta, eta]], CoupledGates, 64),
            "layer2.weight": Moves([[g, None], [eta, eta]], CoupledGates, 64),
        }
        path, M, M_S, M_start = run_chunks(
            writes, [theta, conv_k, M_v], moves, [M, M_S], M_start, position, 16
        )
        return path, M, M_S, M_start

    def read(self, q: Tensor, path: list[Chunks]) -> Tensor:
        """Read M(q) at every token, after its update."""

        def read(q, chunks):
            value = read_tiles(
                F.gelu(read_tiles(wide(q), chunks.tiles["layer1.weight"])),
                chunks.tiles["layer2.weight"],
            )
            result = value.to(q.dtype)
            return result

        return over_chunks(read, path, q)

    def step(
        self,
        alpha: Tensor,
        eta: Tensor,
        theta: Tensor,
        conv_k: Tensor,
        M_v: Tensor,
        M: dict[str, Tensor],
        M_S: dict[str, Tensor],
        M_start: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Move by one token."""
        layer2_weight = M_start["layer2.weight"]
        value = (1.0 - alpha).unsqueeze(2).unsqueeze(3)
        value_1 = eta.unsqueeze(2).unsqueeze(3)
        value_2 = theta.unsqueeze(2).unsqueeze(3)
        value_3 = wide(unit(F.silu(conv_k.unflatten(-1, (4, 32)))))
        value_4 = matvec(M_start["layer1.weight"], value_3)
        value_5 = F.gelu(value_4)
        difference = matvec(layer2_weight, value_5) - F.silu(M_v)
        # S = eta * S - theta * grad   (rules.nl:27)
        product = 0.3989422804014327 * torch.exp(-0.5 * (value_4 * value_4))
        product_1 = 0.5 * (1.0 + torch.erf(0.7071067811865476 * value_4))
        value_6 = outer(
            matvec(layer2_weight.mT, difference) * (product_1 + value_4 * product), value_3
        )
        M_S_layer1_weight = value_1 * M_S["layer1.weight"] - value_2 * value_6
        # self = (1 - alpha) * self + S   (rules.nl:28)
        M_layer1_weight = value * M["layer1.weight"] + M_S_layer1_weight
        M_S_layer2_weight = value_1 * M_S["layer2.weight"] - value_2 * outer(difference, value_5)
        M_layer2_weight = value * M["layer2.weight"] + M_S_layer2_weight
        M = {"layer1.weight": M_layer1_weight, "layer2.weight": M_layer2_weight}
        M_S = {"layer1.weight": M_S_layer1_weight, "layer2.weight": M_S_layer2_weight}
        return M, M_S

    def read_step(self, q: Tensor, M: dict[str, Tensor]) -> Tensor:
        """Read M(q) at one token."""
        return matvec(M["layer2.weight"], F.gelu(matvec(M["layer1.weight"], wide(q)))).to(q.dtype)


class MixerA(nn.Module):
    """Memory A: kernel(softmax, window = window), one per heads; always.

    runs   attention: every query attends to the stored pairs
    """

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.key = nn.Parameter(torch.empty(4, 4, 32, **new))
        self.value = nn.Parameter(torch.empty(4, 4, 32, **new))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial state anew."""
        uniform(self.key, 32)
        uniform(self.value, 32)

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Give the empty cache."""
        key = like.new_zeros(batch, 4, 0, 32)
        value = like.new_zeros(batch, 4, 0, 32)
        return {"key": key, "value": value}

    def forward(
        self, W_k: Tensor, place: Tensor, W_v: Tensor, A: dict[str, Tensor]
    ) -> tuple[Pairs, dict[str, Tensor]]:
        """Add the pairs of a sequence."""
        value = rotate(
            W_k, (place.unsqueeze(2) * torch.exp(-0.5756462732485115 * index(16, W_k))).unsqueeze(2)
        )
        keys = as_pairs(value, A, True)
        values = as_pairs(W_v, A, True)
        return append_pairs(keys, values, A, 64)

    def step(
        self, W_k: Tensor, place: Tensor, W_v: Tensor, A: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Add one token's pairs."""
        value = rotate(
            W_k, (place.unsqueeze(1) * torch.exp(-0.5756462732485115 * index(16, W_k))).unsqueeze(1)
        )
        keys = as_pairs(value, A, False)
        values = as_pairs(W_v, A, False)
        _, A = append_pairs(keys, values, A, 64)
        return A

    def read(self, q: Tensor, pairs: Pairs) -> Tensor:
        """Read A(q) at every token, after its pairs are added."""
        return attend(q, pairs, 0.1767766952966369, first=(self.key, self.value), window=64)

    def read_step(self, q: Tensor, A: dict[str, Tensor]) -> Tensor:
        """Read A(q) at one token."""
        return attend_step(q, A, 0.1767766952966369, first=(self.key, self.value))


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = nn.Linear(128, 128, bias=False, **new)
        self.W_k = nn.Linear(128, 128, bias=False, **new)
        self.W_v = nn.Linear(128, 128, bias=False, **new)
        self.M_q = nn.Linear(128, 128, bias=False, **new)
        self.M_k = nn.Linear(128, 128, bias=False, **new)
        self.M_v = nn.Linear(128, 128, bias=False, **new)
        self.W_y = nn.Linear(128, 128, bias=False, **new)
        self.W_o = nn.Linear(128, 128, bias=False, **new)
        self.W_lr = nn.Linear(128, 4, bias=True, **new)
        self.W_m = nn.Linear(128, 4, bias=True, **new)
        self.W_f = nn.Linear(128, 4, bias=True, **new)
        self.conv_q = Conv(128, 4, **new)
        self.conv_k = Conv(128, 4, **new)
        self.M = MixerM(**new)
        self.A = MixerA(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.M_q.reset_parameters()
        self.M_k.reset_parameters()
        self.M_v.reset_parameters()
        self.W_y.reset_parameters()
        self.W_o.reset_parameters()
        self.W_lr.reset_parameters()
        self.W_m.reset_parameters()
        self.W_f.reset_parameters()
        self.conv_q.reset_parameters()
        self.conv_k.reset_parameters()
        self.M.reset_parameters()
        self.A.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        M, M_S = self.M.initial(batch, like)
        A = self.A.initial(batch, like)
        return {
            "M": M,
            "M.S": M_S,
            "M.start": M,
            "A": A,
            "conv_k": like.new_zeros(batch, 3, 128),
            "conv_q": like.new_zeros(batch, 3, 128),
            "position": 0,
        }

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        position = state["position"]
        # theta, eta, alpha = sigmoid(W_lr(x)) / 64, sigmoid(W_m(x)), sigmoid(W_f(x) - 6)
        # (spec.nl:24)
        theta = torch.sigmoid(wide(self.W_lr(x))) / 64.0
        eta = torch.sigmoid(wide(self.W_m(x)))
        alpha = torch.sigmoid(wide(self.W_f(x)) - 6.0)
        convolved, conv_k = self.conv_k(
            self.M_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        M_path, M, M_S, M_start = self.M(
            alpha,
            eta,
            theta,
            convolved,
            self.M_v(x).unflatten(-1, (4, 32)),
            state["M"],
            state["M.S"],
            state["M.start"],
            position,
        )
        convolved, conv_q = self.conv_q(
            self.M_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # y = W_y(rmsnorm(M(unit(silu(conv_q(M_q(x)))))))   (spec.nl:34)
        y = self.W_y(
            rmsnorm(self.M.read(unit(F.silu(convolved.unflatten(-1, (4, 32)))), M_path)).flatten(-2)
        )
        value = positions(position, x.shape[1], x)
        A_path, A = self.A(
            self.W_k(y).unflatten(-1, (4, 32)),
            value,
            self.W_v(y).unflatten(-1, (4, 32)),
            state["A"],
        )
        # out = W_o(A(rope(W_q(y))))   (spec.nl:42)
        value_1 = rotate(
            self.W_q(y).unflatten(-1, (4, 32)),
            (value.unsqueeze(2) * torch.exp(-0.5756462732485115 * index(16, x))).unsqueeze(2),
        )
        out = self.W_o(self.A.read(value_1, A_path).flatten(-2))
        state = {
            "M": M,
            "M.S": M_S,
            "M.start": M_start,
            "A": A,
            "conv_k": conv_k,
            "conv_q": conv_q,
            "position": position + x.shape[1],
        }
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        M_start = state["M.start"]
        position = state["position"]
        # theta, eta, alpha = sigmoid(W_lr(x)) / 64, sigmoid(W_m(x)), sigmoid(W_f(x) - 6)
        # (spec.nl:24)
        theta = torch.sigmoid(wide(self.W_lr(x))) / 64.0
        eta = torch.sigmoid(wide(self.W_m(x)))
        alpha = torch.sigmoid(wide(self.W_f(x)) - 6.0)
        convolved, conv_k = self.conv_k.step(
            self.M_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        M, M_S = self.M.step(
            alpha,
            eta,
            theta,
            convolved,
            self.M_v(x).unflatten(-1, (4, 32)),
            state["M"],
            state["M.S"],
            M_start,
        )
        convolved, conv_q = self.conv_q.step(
            self.M_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # y = W_y(rmsnorm(M(unit(silu(conv_q(M_q(x)))))))   (spec.nl:34)
        y = self.W_y(
            rmsnorm(self.M.read_step(unit(F.silu(convolved.unflatten(-1, (4, 32)))), M)).flatten(-2)
        )
        value = positions(position, 1, x).squeeze(1)
        A = self.A.step(
            self.W_k(y).unflatten(-1, (4, 32)),
            value,
            self.W_v(y).unflatten(-1, (4, 32)),
            state["A"],
        )
        # out = W_o(A(rope(W_q(y))))   (spec.nl:42)
        value_1 = rotate(
            self.W_q(y).unflatten(-1, (4, 32)),
            (value.unsqueeze(1) * torch.exp(-0.5756462732485115 * index(16, x))).unsqueeze(1),
        )
        out = self.W_o(self.A.read_step(value_1, A).flatten(-2))
        M_start = M if (position + 1) % 16 == 0 else M_start
        state = {
            "M": M,
            "M.S": M_S,
            "M.start": M_start,
            "A": A,
            "conv_k": conv_k,
            "conv_q": conv_q,
            "position": position + 1,
        }
        return out, state


class Ffn(nn.Module):
    """Block ffn: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.F = GLU(128, 384, 128, act="silu", **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.F.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # out = F(x)   (spec.nl:48)
        out = self.F(x)
        state = {}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        out = self.F(x)
        state = {}
        return out, state


class ModelRepeat(nn.Module):
    """One pass of `repeat`."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.mixer = Mixer(**new)
        self.ffn = Ffn(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.mixer.reset_parameters()
        self.ffn.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "mixer": self.mixer.initial_state(batch, like),
            "ffn": self.ffn.initial_state(batch, like),
        }

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:55)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:55)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:56)
        ffn_out, ffn = self.ffn(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:56)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:55)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:55)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:56)
        ffn_out, ffn = self.ffn.step(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:56)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state


class Model(nn.Module):
    """The model titans_mal: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = nn.Linear(128, 256, bias=False, **new)
        self.repeat = nn.ModuleList(ModelRepeat(**new) for _ in range(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.normal_(self.embed.weight, std=0.02)
        self.unembed.reset_parameters()
        for layer in self.repeat:
            layer.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "repeat": {
                str(i): layer.initial_state(batch, like) for i, layer in enumerate(self.repeat)
            },
        }

    def forward(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: tokens [B, T]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:53)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:58)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:53)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:58)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
