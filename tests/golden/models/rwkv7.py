"""rwkv7: RWKV-7 Goose (arXiv:2503.14456)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    fast: every 1 token
    slow: every 1 step
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def onednn(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """x W^T + b, of which no gradient is recorded."""
    # of matrices with gaps between rows oneDNN has no fast product
    W = W if W.is_contiguous() or W.mT.is_contiguous() else W.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")


def by_onednn(a: Tensor, b: Tensor) -> bool:
    """Say whether oneDNN takes these, and nothing has to see how they are multiplied."""
    kinds = a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu"
    mkldnn = torch.backends.mkldnn
    there = mkldnn.is_available() and mkldnn.enabled and torch.backends.mkl.is_available()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not kinds or not there:
        return False
    if torch._C._len_torch_dispatch_stack() or torch.overrides.has_torch_function((a, b)):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def wide(x: Tensor) -> Tensor:
    """Give x in float32 or better: the precision of states and decays."""
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-12) -> Tensor:
    """x / max(||x||, eps)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return Unit.apply(x, dim, eps)
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)


class Unit(torch.autograd.Function):
    """As `unit`; its gradient has nothing along y, where x is longer than eps."""

    @staticmethod
    def forward(ctx, x, dim, eps):
        ctx.save_for_backward(x)
        ctx.dim, ctx.eps = dim, eps
        return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        length = torch.linalg.vector_norm(x, dim=ctx.dim, keepdim=True)
        scale = 1 / length.clamp_min(ctx.eps)
        y = x * scale
        along = (dy * y).sum(ctx.dim, keepdim=True) * (length > ctx.eps)
        # as x lies in memory, in which what made x goes on
        return (y * -along + dy) * scale, None, None


def layernorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps)."""
    if dim == -1 and not torch.is_grad_enabled():
        return torch.native_layer_norm(wide(x), x.shape[-1:], None, None, eps)[0].to(x.dtype)
    centred = wide(x) - wide(x).mean(dim, keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean(dim, keepdim=True) + eps)).to(x.dtype)


def power(x: Tensor, p: float) -> Tensor:
    """x^p for a p > 0 that is no whole number, with derivatives of 0 at 0."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x**p
    zero = x == 0
    return (x.masked_fill(zero, 1.0) ** p).masked_fill(zero, 0.0)


def number(value: float, like: Tensor) -> Tensor:
    """Give a number as a tensor, in float32 or better."""
    return wide(like.new_full((), value))


def index(n: int, like: Tensor) -> Tensor:
    """0 ... n-1, in float32 or better."""
    return torch.arange(n, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def read_linear(x: Tensor, weight: Tensor, lead: int) -> Tensor:
    """W x: x [B, *lead, *more, d_in], weight [B, *lead, d_out, d_in]."""
    if x.ndim == 2 + lead:
        return matvec(weight, x)
    y = x.flatten(1 + lead, -2) @ weight.mT
    return y.unflatten(1 + lead, x.shape[1 + lead : -1])


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """[..., m, k], [..., k] -> [..., m], as a row times a matrix: the fast side of a product."""
    return (x.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], per token: [..., n], [...] -> [...]."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def given(x: Tensor | None, default: Tensor) -> Tensor:
    """An input, or its default where the call gives none."""
    return default if x is None else x


def shift(x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """x of n tokens ago: x [B, T, ...], past [B, n, ...] -> shifted [B, T, ...], new past."""
    joined = torch.cat((past.to(x.dtype), x), 1)
    return joined[:, : x.shape[1]], joined[:, x.shape[1] :].to(past.dtype)


def shift_step(x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """x of n tokens ago, for one token: x [B, ...], past [B, n, ...]."""
    return past[:, 0].to(x.dtype), torch.cat((past[:, 1:], x[:, None].to(past.dtype)), 1)


class Linear(nn.Linear):
    """As in torch; large ones go through oneDNN on a CPU: MKL is slow on processors not Intel's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim > 2 and self.large(x):
            return OneDNNLinear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def large(self, x: Tensor) -> bool:
        """Say whether x has so many rows that oneDNN is worth its preparations, and takes it."""
        if torch.compiler.is_compiling() or min(self.weight.shape) < 32:
            return False
        return x.numel() * self.out_features >= 1 << 24 and by_onednn(x, self.weight)


class OneDNNLinear(torch.autograd.Function):
    """x W^T + b, with gradients of every order and transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, W, b):
        return onednn(x, W, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx, dx, dW, db):
        x, W = ctx.saved_tensors
        return F.linear(dx, W, db) + F.linear(x, dW)

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        of_x, of_W, of_b = ctx.needs_input_grad
        # that of torch where this is differentiated again
        product = F.linear if torch.is_grad_enabled() else onednn
        rows, drows = x.flatten(0, -2), dy.flatten(0, -2)
        dx = product(dy, W.mT) if of_x else None
        dW = product(drows.mT, rows.mT) if of_W else None
        return dx, dW, drows.sum(0) if of_b else None


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


class BothProducts(torch.autograd.Function):
    """g_1 ... g_t for each t, and one over it, for gates that are away from 0: [.., C, d]."""

    @staticmethod
    def forward(ctx, g):
        found = g.cumprod(-2)
        inverse = found.reciprocal()
        ctx.save_for_backward(g, found, inverse)
        return found, inverse

    @staticmethod
    def backward(ctx, dfound, dinverse):
        g, found, inverse = ctx.saved_tensors
        dlog = dfound * found - dinverse * inverse
        return dlog.flip(-2).cumsum(-2).flip(-2) / g


class ChannelGates:
    """A gate for each channel of the key, multiplied forward: keys as every later token sees them.

    `since` is F(t, 0).
    """

    axes = 1

    def __init__(self, tile, g, since):
        self.tile, self.g, self.since = tile, g, since

    @classmethod
    def of(cls, gates, front, tile, like):
        g = gate_tiles(gates[0][0], front, tile, like, 1, 1.0)
        return cls(tile, g, F.pad(g.cumprod(-2), (0, 0, 1, 0), value=1.0))

    def of_chunks(self, rows, n):
        parts = zip(*(by_chunk(x, rows, n) for x in (self.g, self.since)), strict=True)
        return [ChannelGates(self.tile, g, since) for g, since in parts]

    def rows(self, q, late=True):
        return q

    def keys(self, b):
        return DecayedKeys.apply(self.g, b)

    def seen(self, x, late):
        """Rows x of each token to the keys that it sees: [C * m, d] -> [C, m, d]."""
        x = x.unflatten(-2, (self.tile, -1))
        return x if late else F.pad(x[..., 1:, :, :], (0, 0, 0, 0, 0, 1))

    def told(self, x, late):
        """What the rows of each token found, [C, m, d] -> [C * m, d]; before the first, nothing."""
        x = x if late else F.pad(x[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
        return x.flatten(-3, -2)

    def reach(self, into, j, q, b, late=True):
        return self.told(self.seen(q, late) @ b[0].mT, late)

    def spread(self, into, j, s, b, late=True):
        return self.told(self.seen(s, late) @ b[0], late)

    def asked(self, reads, late=True):
        return self.kept(0, reads[0][0], late)

    def kept(self, j, M, late=True):
        return per_row(self.since[..., 1:, :] if late else self.since[..., :-1, :], M) * M

    def left(self, keys):
        return keys[0][0][1]

    def whole(self):
        return self.since[..., -1:, None, :]


class RelativeGates(ChannelGates):
    """A gate for each channel, whose products are proved to stay within exp(-60) and exp(60).

    Then F(t, i) = F(t, 0) / F(i, 0) may be split: rows and keys are taken relative to the start.
    """

    def __init__(self, tile, since, inverse):
        self.tile, self.since, self.inverse = tile, since, inverse
        self.mask = since.new_ones(1 + tile, 1 + tile).tril()[:, 1:]

    @classmethod
    def of(cls, gates, front, tile, like):
        since, inverse = BothProducts.apply(gate_tiles(gates[0][0], front, tile, like, 1, 1.0))
        return cls(tile, F.pad(since, (0, 0, 1, 0), value=1.0), inverse)

    def of_chunks(self, rows, n):
        parts = zip(*(by_chunk(x, rows, n) for x in (self.since, self.inverse)), strict=True)
        return [RelativeGates(self.tile, since, inverse) for since, inverse in parts]

    def rows(self, q, late=True):
        return self.kept(0, q, late)

    def keys(self, b):
        return self.inverse * b

    def seen(self, x, late):
        return per_row(self.mask[1:] if late else self.mask[:-1], x) * x

    def reach(self, into, j, q, b, late=True):
        return self.seen(q @ b.mT, late)

    def spread(self, into, j, s, b, late=True):
        return self.kept(0, self.seen(s, late) @ b, late)

    def asked(self, reads, late=True):
        return reads[0][0]

    def left(self, keys):
        return self.since[..., -1:, :] * keys[0][0]


class Ln(nn.Module):
    """Block ln: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.gain = nn.Parameter(torch.empty(128, **new))
        self.offset = nn.Parameter(torch.empty(128, **new))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.offset)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # out = layernorm(x, gain = gain, offset = offset)   (spec.nl:35)
        out = layernorm(x) * self.gain + self.offset
        state = {}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        out = layernorm(x) * self.gain + self.offset
        state = {}
        return out, state


class TimeMixS(nn.Module):
    """Memory S: linear(d_k -> d_v), one per heads; every 1 token.

    S = S @ (diag(w) - outer(kappa, a * kappa)) + outer(v, k)   (spec.nl:80)
    state  S [B, heads, d_v, d_k]
    runs   tile-solve: affine in its state, which its writes read
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 4, 32, 32)

    def forward(
        self, w: Tensor, kappa: Tensor, a: Tensor, v: Tensor, k: Tensor, S: Tensor
    ) -> tuple[Tiles, Tensor]:
        """Move over a sequence, 32 tokens at a time."""
        # e1 = S_{t-1} p
        # e2 = u
        # S_t = S_{t-1} diag(g) + e1 b^T + e2 b^T
        p = -kappa
        b = a * kappa
        e1 = Write([(p, 0)], None, [(b, (0,))])
        e2 = Write([], v, [(k, (0,))])
        path, S = solve_tiles([e1, e2], RelativeGates, [[w]], [S], 32)
        return path, S

    def read(self, q: Tensor, path: Tiles) -> Tensor:
        """Read S(q) at every token, after its update."""
        return read_tiles(q, path)

    def step(self, w: Tensor, kappa: Tensor, a: Tensor, v: Tensor, k: Tensor, S: Tensor) -> Tensor:
        """Move by one token."""
        # S = S @ (diag(w) - outer(kappa, a * kappa)) + outer(v, k)   (spec.nl:80)
        value = (S * w.unsqueeze(2)).addcmul_(
            matvec(S, wide(kappa)).unsqueeze(3), wide(a * kappa).unsqueeze(2), value=-1
        )
        S = torch.addcmul(value, wide(v).unsqueeze(3), wide(k).unsqueeze(2))
        return S

    def read_step(self, q: Tensor, S: Tensor) -> Tensor:
        """Read S(q) at one token."""
        return read_linear(wide(q), S, 1).to(q.dtype)


class TimeMix(nn.Module):
    """Block time_mix: x[d], v_first[heads, d_v] -> out[d], v_first[heads, d_v]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.x_r = nn.Parameter(torch.empty(128, **new))
        self.x_g = nn.Parameter(torch.empty(128, **new))
        self.x_w = nn.Parameter(torch.empty(128, **new))
        self.x_a = nn.Parameter(torch.empty(128, **new))
        self.x_k = nn.Parameter(torch.empty(128, **new))
        self.x_v = nn.Parameter(torch.empty(128, **new))
        self.W_r = Linear(128, 128, bias=False, **new)
        self.W_k = Linear(128, 128, bias=False, **new)
        self.W_v = Linear(128, 128, bias=False, **new)
        self.W_o = Linear(128, 128, bias=False, **new)
        self.w1 = Linear(128, 32, bias=False, **new)
        self.a1 = Linear(128, 32, bias=False, **new)
        self.v1 = Linear(128, 32, bias=False, **new)
        self.g1 = Linear(128, 64, bias=False, **new)
        self.w2 = Linear(32, 128, bias=False, **new)
        self.a2 = Linear(32, 128, bias=False, **new)
        self.v2 = Linear(32, 128, bias=False, **new)
        self.g2 = Linear(64, 128, bias=False, **new)
        self.w0 = nn.Parameter(torch.empty(4, 32, **new))
        self.a0 = nn.Parameter(torch.empty(4, 32, **new))
        self.v0 = nn.Parameter(torch.empty(4, 32, **new))
        self.k_k = nn.Parameter(torch.empty(4, 32, **new))
        self.k_a = nn.Parameter(torch.empty(4, 32, **new))
        self.r_k = nn.Parameter(torch.empty(4, 32, **new))
        self.gain = nn.Parameter(torch.empty(4, 32, **new))
        self.offset = nn.Parameter(torch.empty(4, 32, **new))
        self.S = TimeMixS()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        with torch.no_grad():
            self.x_r.copy_(1.0 - power(index(128, self.x_r.double()) / 128.0, 0.1))
        with torch.no_grad():
            self.x_g.copy_(1.0 - power(index(128, self.x_g.double()) / 128.0, 0.1))
        with torch.no_grad():
            self.x_w.copy_(1.0 - power(index(128, self.x_w.double()) / 128.0, 0.45))
        with torch.no_grad():
            self.x_a.copy_(1.0 - power(index(128, self.x_a.double()) / 128.0, 0.45))
        with torch.no_grad():
            self.x_k.copy_(1.0 - power(index(128, self.x_k.double()) / 128.0, 0.35))
        with torch.no_grad():
            self.x_v.copy_(1.0 - power(index(128, self.x_v.double()) / 128.0, 0.35))
        nn.init.normal_(self.W_r.weight, std=0.08838834764831843)
        nn.init.normal_(self.W_k.weight, std=0.008838834764831844)
        nn.init.normal_(self.W_v.weight, std=0.08838834764831843)
        nn.init.zeros_(self.W_o.weight)
        nn.init.zeros_(self.w1.weight)
        nn.init.zeros_(self.a1.weight)
        nn.init.zeros_(self.v1.weight)
        nn.init.zeros_(self.g1.weight)
        nn.init.normal_(self.w2.weight, std=0.008838834764831844)
        nn.init.normal_(self.a2.weight, std=0.008838834764831844)
        nn.init.normal_(self.v2.weight, std=0.008838834764831844)
        nn.init.normal_(self.g2.weight, std=0.008838834764831844)
        value = self.w0.double()
        difference = 2.0 * index(32, value) / 31.0 - 1.0
        total = -5.5 + 6.0 * power(index(128, value).unflatten(-1, (4, 32)) / 127.0, 1.81)
        result = total + (2.5 * difference * torch.abs(difference)).unsqueeze(0)
        with torch.no_grad():
            self.w0.copy_(result)
        value = self.a0.double()
        difference = 2.0 * index(32, value) / 31.0 - 1.0
        total = -0.39 + 0.4 * index(128, value).unflatten(-1, (4, 32)) / 127.0
        result = total + (0.3 * difference * torch.abs(difference)).unsqueeze(0)
        with torch.no_grad():
            self.a0.copy_(result)
        with torch.no_grad():
            self.v0.copy_(0.93 - 0.4 * index(128, self.v0.double()).unflatten(-1, (4, 32)) / 127.0)
        with torch.no_grad():
            self.k_k.copy_(
                0.76 - 0.1 * index(128, self.k_k.double()).unflatten(-1, (4, 32)) / 127.0
            )
        nn.init.constant_(self.k_a, 1.02)
        nn.init.constant_(self.r_k, -0.04)
        nn.init.constant_(self.gain, 0.62)
        nn.init.zeros_(self.offset)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        S = self.S.initial(batch, like)
        return {"S": S, "shift_1": like.new_zeros(batch, 1, 128)}

    def forward(
        self, x: Tensor, v_first: Tensor | None = None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run a whole sequence: x [B, T, d], v_first [B, T, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return (x.new_zeros(x.shape[0], 0, 128), x.new_zeros(x.shape[0], 0, 4, 32)), state
        shifted, shift_1 = shift(x, state["shift_1"])
        x_1 = wide(x)
        difference = wide(shifted) - x_1
        # r    = W_r(lerp(x, past, x_r))   (spec.nl:66)
        r = self.W_r((x_1 + self.x_r * difference).to(x.dtype)).unflatten(-1, (4, 32))
        value = (x_1 + self.x_v * difference).to(x.dtype)
        # own  = W_v(lerp(x, past, x_v))   (spec.nl:67)
        own = self.W_v(value).unflatten(-1, (4, 32))
        v_first = given(v_first, own)
        own = wide(own)
        # v    = lerp(own, v_first, sigmoid(v0 + v2(v1(lerp(x, past, x_v)))))   (spec.nl:68)
        value_1 = torch.sigmoid(self.v0 + wide(self.v2(self.v1(value)).unflatten(-1, (4, 32))))
        v = own + value_1 * (wide(v_first) - own)
        # w    = exp(-exp(-0.5) * sigmoid(w0 + w2(tanh(w1(lerp(x, past, x_w))))))   (spec.nl:69)
        value = self.w2(
            torch.tanh(wide(self.w1((x_1 + self.x_w * difference).to(x.dtype)))).to(x.dtype)
        )
        value_2 = torch.sigmoid(self.w0 + wide(value.unflatten(-1, (4, 32))))
        w = torch.exp(number(-0.6065306597126334, x).unsqueeze(0).unsqueeze(1) * value_2)
        # a    = sigmoid(a0 + a2(a1(lerp(x, past, x_a))))   (spec.nl:70)
        value = wide(
            self.a2(self.a1((x_1 + self.x_a * difference).to(x.dtype))).unflatten(-1, (4, 32))
        )
        a = torch.sigmoid(self.a0 + value)
        # g    = g2(sigmoid(g1(lerp(x, past, x_g))))   (spec.nl:71)
        g = self.g2(torch.sigmoid(self.g1((x + self.x_g * difference).to(x.dtype)))).unflatten(
            -1, (4, 32)
        )
        # key_  = W_k(lerp(x, past, x_k))   (spec.nl:73)
        key_ = self.W_k((x_1 + self.x_k * difference).to(x.dtype)).unflatten(-1, (4, 32))
        key_ = wide(key_)
        # kappa = unit(key_ * k_k)   (spec.nl:74)
        kappa = unit(key_ * self.k_k)
        # k     = key_ * lerp(1, a, k_a)   (spec.nl:75)
        k = key_ * (1.0 + self.k_a * (a - 1.0))
        S_path, S = self.S(w, kappa, a, v, k, state["S"])
        # y     = layernorm(S(r), gain = gain, offset = offset, eps = 64e-5)   (spec.nl:83)
        y = layernorm(self.S.read(r, S_path), eps=0.00064) * self.gain + self.offset
        # bonus = <r, r_k * k> * v   (spec.nl:84)
        bonus = (r * (self.r_k * k)).sum(-1).unsqueeze(3) * v
        # out   = W_o(g * (y + bonus))   (spec.nl:85)
        out = self.W_o((g * (y + bonus)).flatten(-2).to(x.dtype))
        state = {"S": S, "shift_1": shift_1}
        return (out, v_first), state

    def step(
        self, x: Tensor, v_first: Tensor | None = None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run one token: x [B, d], v_first [B, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        shifted, shift_1 = shift_step(x, state["shift_1"])
        x_1 = wide(x)
        difference = wide(shifted) - x_1
        # r    = W_r(lerp(x, past, x_r))   (spec.nl:66)
        r = self.W_r((x_1 + self.x_r * difference).to(x.dtype)).unflatten(-1, (4, 32))
        value = (x_1 + self.x_v * difference).to(x.dtype)
        # own  = W_v(lerp(x, past, x_v))   (spec.nl:67)
        own = self.W_v(value).unflatten(-1, (4, 32))
        v_first = given(v_first, own)
        own = wide(own)
        # v    = lerp(own, v_first, sigmoid(v0 + v2(v1(lerp(x, past, x_v)))))   (spec.nl:68)
        value_1 = torch.sigmoid(self.v0 + wide(self.v2(self.v1(value)).unflatten(-1, (4, 32))))
        v = own + value_1 * (wide(v_first) - own)
        # w    = exp(-exp(-0.5) * sigmoid(w0 + w2(tanh(w1(lerp(x, past, x_w))))))   (spec.nl:69)
        value = self.w2(
            torch.tanh(wide(self.w1((x_1 + self.x_w * difference).to(x.dtype)))).to(x.dtype)
        )
        value_2 = torch.sigmoid(self.w0 + wide(value.unflatten(-1, (4, 32))))
        w = torch.exp(number(-0.6065306597126334, x).unsqueeze(0).unsqueeze(1) * value_2)
        # a    = sigmoid(a0 + a2(a1(lerp(x, past, x_a))))   (spec.nl:70)
        value = wide(
            self.a2(self.a1((x_1 + self.x_a * difference).to(x.dtype))).unflatten(-1, (4, 32))
        )
        a = torch.sigmoid(self.a0 + value)
        # g    = g2(sigmoid(g1(lerp(x, past, x_g))))   (spec.nl:71)
        g = self.g2(torch.sigmoid(self.g1((x + self.x_g * difference).to(x.dtype)))).unflatten(
            -1, (4, 32)
        )
        # key_  = W_k(lerp(x, past, x_k))   (spec.nl:73)
        key_ = self.W_k((x_1 + self.x_k * difference).to(x.dtype)).unflatten(-1, (4, 32))
        key_ = wide(key_)
        # kappa = unit(key_ * k_k)   (spec.nl:74)
        kappa = unit(key_ * self.k_k)
        # k     = key_ * lerp(1, a, k_a)   (spec.nl:75)
        k = key_ * (1.0 + self.k_a * (a - 1.0))
        S = self.S.step(w, kappa, a, v, k, state["S"])
        # y     = layernorm(S(r), gain = gain, offset = offset, eps = 64e-5)   (spec.nl:83)
        y = layernorm(self.S.read_step(r, S), eps=0.00064) * self.gain + self.offset
        # bonus = <r, r_k * k> * v   (spec.nl:84)
        bonus = (r * (self.r_k * k)).sum(-1).unsqueeze(2) * v
        # out   = W_o(g * (y + bonus))   (spec.nl:85)
        out = self.W_o((g * (y + bonus)).flatten(-2).to(x.dtype))
        state = {"S": S, "shift_1": shift_1}
        return (out, v_first), state


class ChannelMix(nn.Module):
    """Block channel_mix: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.x_k = nn.Parameter(torch.empty(128, **new))
        self.W_k = Linear(128, 512, bias=False, **new)
        self.W_v = Linear(512, 128, bias=False, **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        with torch.no_grad():
            self.x_k.copy_(1.0 - power(index(128, self.x_k.double()) / 128.0, 0.0625))
        nn.init.normal_(self.W_k.weight, std=0.044194173824159216)
        nn.init.zeros_(self.W_v.weight)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {"shift_1": like.new_zeros(batch, 1, 128)}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        shifted, shift_1 = shift(x, state["shift_1"])
        # out = W_v(relu(W_k(lerp(x, shift(x), x_k)))^2)   (spec.nl:93)
        out = self.W_v(F.relu(self.W_k(x + self.x_k * (shifted - x))).square())
        state = {"shift_1": shift_1}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        shifted, shift_1 = shift_step(x, state["shift_1"])
        out = self.W_v(F.relu(self.W_k(x + self.x_k * (shifted - x))).square())
        state = {"shift_1": shift_1}
        return out, state


class ModelRepeat(nn.Module):
    """One pass of `repeat`."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.ln = Ln(**new)
        self.time_mix = TimeMix(**new)
        self.ln_1 = Ln(**new)
        self.channel_mix = ChannelMix(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.ln.reset_parameters()
        self.time_mix.reset_parameters()
        self.ln_1.reset_parameters()
        self.channel_mix.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "ln": self.ln.initial_state(batch, like),
            "time_mix": self.time_mix.initial_state(batch, like),
            "ln_1": self.ln_1.initial_state(batch, like),
            "channel_mix": self.channel_mix.initial_state(batch, like),
        }

    def forward(
        self, x: Tensor, v_first: Tensor | None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run a whole sequence: x [B, T, d], v_first [B, T, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # ln(x)   (spec.nl:101)
        ln_out, ln = self.ln(x, state["ln"])
        # time_mix(ln(x), v_first)   (spec.nl:101)
        time_mix_out, time_mix = self.time_mix(ln_out, v_first, state["time_mix"])
        time_mix_out_1, time_mix_v_first = time_mix_out
        # x = x + y   (spec.nl:102)
        x = x + time_mix_out_1
        # ln(x)   (spec.nl:103)
        ln_1_out, ln_1 = self.ln_1(x, state["ln_1"])
        # channel_mix(ln(x))   (spec.nl:103)
        channel_mix_out, channel_mix = self.channel_mix(ln_1_out, state["channel_mix"])
        # x = x + channel_mix(ln(x))   (spec.nl:103)
        x = x + channel_mix_out
        state = {"ln": ln, "time_mix": time_mix, "ln_1": ln_1, "channel_mix": channel_mix}
        return (time_mix_v_first, x), state

    def step(
        self, x: Tensor, v_first: Tensor | None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run one token: x [B, d], v_first [B, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # ln(x)   (spec.nl:101)
        ln_out, ln = self.ln.step(x, state["ln"])
        # time_mix(ln(x), v_first)   (spec.nl:101)
        time_mix_out, time_mix = self.time_mix.step(ln_out, v_first, state["time_mix"])
        time_mix_out_1, time_mix_v_first = time_mix_out
        # x = x + y   (spec.nl:102)
        x = x + time_mix_out_1
        # ln(x)   (spec.nl:103)
        ln_1_out, ln_1 = self.ln_1.step(x, state["ln_1"])
        # channel_mix(ln(x))   (spec.nl:103)
        channel_mix_out, channel_mix = self.channel_mix.step(ln_1_out, state["channel_mix"])
        # x = x + channel_mix(ln(x))   (spec.nl:103)
        x = x + channel_mix_out
        state = {"ln": ln, "time_mix": time_mix, "ln_1": ln_1, "channel_mix": channel_mix}
        return (time_mix_v_first, x), state


class Model(nn.Module):
    """The model rwkv7: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = Linear(128, 256, bias=False, **new)
        self.ln = Ln(**new)
        self.repeat = nn.ModuleList(ModelRepeat(**new) for _ in range(4))
        self.ln_1 = Ln(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.normal_(self.embed.weight, std=0.02)
        self.unembed.reset_parameters()
        self.ln.reset_parameters()
        for layer in self.repeat:
            layer.reset_parameters()
        self.ln_1.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "ln": self.ln.initial_state(batch, like),
            "repeat": {
                str(i): layer.initial_state(batch, like) for i, layer in enumerate(self.repeat)
            },
            "ln_1": self.ln_1.initial_state(batch, like),
        }

    def forward(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: tokens [B, T]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:98)
        x = self.embed(tokens)
        # ln(x)   (spec.nl:99)
        ln_out, ln = self.ln(x, state["ln"])
        v_first = None
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            (v_first, ln_out), repeat_states[str(i)] = layer(
                ln_out, v_first, state["repeat"][str(i)]
            )
        # ln(x)   (spec.nl:105)
        ln_1_out, ln_1 = self.ln_1(ln_out, state["ln_1"])
        # logits = unembed(ln(x))   (spec.nl:105)
        logits = self.unembed(ln_1_out)
        state = {"ln": ln, "repeat": repeat_states, "ln_1": ln_1}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:98)
        x = self.embed(tokens)
        # ln(x)   (spec.nl:99)
        ln_out, ln = self.ln.step(x, state["ln"])
        v_first = None
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            (v_first, ln_out), repeat_states[str(i)] = layer.step(
                ln_out, v_first, state["repeat"][str(i)]
            )
        # ln(x)   (spec.nl:105)
        ln_1_out, ln_1 = self.ln_1.step(ln_out, state["ln_1"])
        # logits = unembed(ln(x))   (spec.nl:105)
        logits = self.unembed(ln_1_out)
        state = {"ln": ln, "repeat": repeat_states, "ln_1": ln_1}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
