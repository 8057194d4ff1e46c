"""consolidation: A slow memory that takes over what a fast one has learned

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    awake: every 1 token
    asleep: every 64 tokens
    slow: every 1 step
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def matrix_products(a: Tensor, b: Tensor) -> Tensor:
    """[B, m, k], [B, k, n] -> [B, m, n], as `torch.bmm`.

    On a CPU that is MKL's product. Large ones go through oneDNN where no gradient of them is
    recorded: on an AMD EPYC it takes half the time.
    """
    work = a.shape[1] * a.shape[2] * b.shape[2]
    if work < 1 << 21 or a.shape[2] < 32 or torch.is_grad_enabled() or not by_onednn(a, b):
        return torch.bmm(a, b)
    found = [onednn(x, y.mT) for x, y in zip(a, b, strict=True)]
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


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


def rmsnorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps)."""
    return x * torch.rsqrt(wide(x).square().mean(dim, keepdim=True) + eps).to(x.dtype)


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def nothing_like(total: Tensor) -> Tensor:
    """Give a sum of nothing yet: one zero, seen as all entries."""
    return total.new_zeros(()).expand_as(total)


def read_linear(x: Tensor, weight: Tensor, lead: int) -> Tensor:
    """W x: x [B, *lead, *more, d_in], weight [B, *lead, d_out, d_in]."""
    if x.ndim == 2 + lead:
        return matvec(weight, x)
    y = x.flatten(1 + lead, -2) @ weight.mT
    return y.unflatten(1 + lead, x.shape[1 + lead : -1])


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """[..., m, k], [..., k] -> [..., m], as a row times a matrix: the fast side of a product."""
    return (x.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def matvecs(matrix: Tensor, x: Tensor) -> Tensor:
    """One matrix for all tokens: [B, *lead, m, k], [B, T, *lead, k] -> [B, T, *lead, m]."""
    if matrix.shape[:-2] != (x.shape[0], *x.shape[2:-1]):
        front = torch.broadcast_shapes(matrix.shape[:-2], (x.shape[0], *x.shape[2:-1]))
        x = x.expand(front[0], x.shape[1], *front[1:], x.shape[-1])
        matrix = matrix.expand(*front, *matrix.shape[-2:])
    return Matvecs.apply(matrix, x) if torch.is_grad_enabled() else Matvecs.of(matrix, x)


class Matvecs(torch.autograd.Function):
    """As `matvecs`; what comes out, and the gradients, lie in memory as matrices do."""

    @staticmethod
    def of(matrix, x):
        if x.ndim == 3:
            return matrix_products(x, matrix.mT)
        front = matrix.shape[:-2]
        x, matrix = x.movedim(1, -2).flatten(0, -3), matrix.flatten(0, -3)
        return matrix_products(x, matrix.mT).unflatten(0, front).movedim(-2, 1)

    @staticmethod
    def forward(ctx, matrix, x):
        ctx.save_for_backward(matrix, x)
        return Matvecs.of(matrix, x)

    @staticmethod
    def backward(ctx, dy):
        matrix, x = ctx.saved_tensors
        of_matrix, of_x = ctx.needs_input_grad
        front, turned = matrix.shape[:-2], matrix.stride(-1) > matrix.stride(-2)
        if x.ndim > 3:
            x, matrix = x.movedim(1, -2).flatten(0, -3), matrix.flatten(0, -3)
            dy = dy.movedim(1, -2).flatten(0, -3)
        dmatrix = dx = None
        if of_matrix:
            dmatrix = matrix_products(x.mT, dy).mT if turned else matrix_products(dy.mT, x)
        if of_x:
            dx = matrix_products(dy, matrix)
        if len(front) == 1:
            return dmatrix, dx
        dx = None if dx is None else dx.unflatten(0, front).movedim(-2, 1)
        return None if dmatrix is None else dmatrix.unflatten(0, front), dx


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], per token: [..., n], [...] -> [...]."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def uniform(weight: Tensor, fan_in: int) -> None:
    """Draw from the uniform distribution in +-1/sqrt(fan in)."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    nn.init.uniform_(weight, -bound, bound)


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


def cuts(position: int, tokens: int, chunk: int) -> list[int]:
    """Cut a sequence that begins at a position at the ends of its chunks: the lengths."""
    first = min(-position % chunk, tokens)
    whole, rest = (tokens - first) // chunk, (tokens - first) % chunk
    return [n for n in (first, *[chunk] * whole, rest) if n]


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
        tokens = g.shape[-1]
        one = g.new_ones(1 + tokens, 1 + tokens)
        lower, below = one.tril(), one[1:].tril()
        first = one[:1].expand(*g.shape[:-1], 1, 1 + tokens)
        # each number where its products go on, and 1 elsewhere
        rows = torch.addcmul(one[1:] - below, g.unsqueeze(-1), below)
        found = torch.cat([first, rows], -2).cumprod(-2).mul_(lower)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx, grad):
        (found,) = ctx.saved_tensors
        return (found[..., 1:].mT @ grad * found[..., :-1, :]).sum(-1)


class ScalarGate:
    """One number a token, multiplied forward; nothing is divided, so a gate of 0 is exact."""

    axes, n = 0, 1
    still = False  # whether it is 1 throughout

    def __init__(self, tile, table, still=False):
        self.tile, self.table, self.still = tile, table, still

    @classmethod
    def of(cls, gates, front, tile, like):
        g = gates[0][0]
        if isinstance(g, float) and g == 1.0:
            table = like.new_ones(1 + tile, 1 + tile).tril()
            return cls(tile, table.expand(-(-front[1] // tile), like.shape[0], -1, -1), True)
        g = gate_tiles(g, front, tile, like, 0, 1.0)
        return cls(tile, Products.apply(g.squeeze(-1)))

    def of_chunks(self, rows, n):
        cut = by_chunk(self.table, rows, n)
        return [ScalarGate(self.tile, table, self.still) for table in cut]

    def numbers(self, into, j):
        return self.table

    def seen(self, late):
        return self.table[..., 1:, :] if late else self.table[..., :-1, :]

    def rows(self, q, late=True):
        return q

    def keys(self, b):
        return b

    def reach(self, into, j, q, b, late=True):
        return per_row(self.seen(late)[..., 1:], q) * (q @ b.mT)

    def spread(self, into, j, s, b, late=True):
        return (per_row(self.seen(late)[..., 1:], s) * s) @ b

    def asked(self, reads, late=True):
        return self.kept(0, reads[0][0], late)

    def kept(self, j, M, late=True):
        return per_row(self.seen(late)[..., :1], M) * M

    def left(self, keys):
        return self.table[..., -1, 1:, None] * keys[0][0]

    def whole(self):
        return self.table[..., -1:, :1, None]


class MixerF(nn.Module):
    """Memory F: linear(d_k -> d_v), one per heads; every 1 token.

    self = alpha * self   (rules.nl:33)
    self = self - beta * grad(at = self)   (rules.nl:34)
    state  F [B, heads, d_v, d_k]
    runs   tile-solve: affine in its state, which its writes read
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 4, 32, 32)

    def forward(
        self, alpha: Tensor, beta: Tensor, k: Tensor, v: Tensor, F_: Tensor
    ) -> tuple[Tiles, Tensor]:
        """Move over a sequence, 32 tokens at a time."""
        # e = F__{t-1} p + u
        # F__t = F__{t-1} g + e b^T
        p = (-(beta * alpha)).unsqueeze(3) * k
        u = beta.unsqueeze(3) * v
        e = Write([(p, 0)], u, [(k, (0,))])
        path, F_ = solve_tiles([e], ScalarGate, [[alpha]], [F_], 32)
        return path, F_

    def read(self, q: Tensor, path: Tiles) -> Tensor:
        """Read F(q) at every token, after its update."""
        return read_tiles(q, path)

    def states(self, path: Tiles) -> Tensor:
        """Give F at every token, after its update."""
        return states_of_tiles(path)

    def step(self, alpha: Tensor, beta: Tensor, k: Tensor, v: Tensor, F_: Tensor) -> Tensor:
        """Move by one token."""
        # self = alpha * self   (rules.nl:33)
        F_ = alpha.unsqueeze(2).unsqueeze(3) * F_
        k = wide(k)
        # self = self - beta * grad(at = self)   (rules.nl:34)
        F_ = torch.addcmul(
            F_,
            beta.unsqueeze(2).unsqueeze(3) * (matvec(F_, k) - v).unsqueeze(3),
            k.unsqueeze(2),
            value=-1,
        )
        return F_

    def read_step(self, q: Tensor, F_: Tensor) -> Tensor:
        """Read F(q) at one token."""
        return read_linear(wide(q), F_, 1).to(q.dtype)


class MixerS(nn.Module):
    """Memory S: linear(d_k -> d_v), one per heads; every 64 tokens.

    S = lerp(S, F, mean(sigmoid(W_keep(x)), over = tokens))   (spec.nl:38)
    state  S [B, heads, d_v, d_k]
    runs   window: its state stays for 64 tokens: one pass over them, then its update
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 4, 32, 32)

    def empty(self, batch: int, like: Tensor) -> Tensor:
        """Give what is kept before the first token."""
        return zeros(like, batch, 4)

    def read(self, q: Tensor, S: Tensor) -> Tensor:
        """Read S(q) at all tokens of a window."""
        return matvecs(S, wide(q)).to(q.dtype)

    def collect(self, W_keep: Tensor, S_sum: Tensor) -> Tensor:
        """Take tokens into the window of 64."""
        S_sum = S_sum + wide(torch.sigmoid(W_keep)).sum(1)
        return S_sum

    def update(self, F_post: Tensor, S: Tensor, S_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Move at the end of a window of 64 tokens."""
        # S = lerp(S, F, mean(sigmoid(W_keep(x)), over = tokens))   (spec.nl:38)
        S = torch.addcmul(S, (S_sum / 64.0).unsqueeze(2).unsqueeze(3), F_post - S)
        return S, nothing_like(S_sum)

    def read_step(self, q: Tensor, S: Tensor) -> Tensor:
        """Read S(q) at one token."""
        return read_linear(wide(q), S, 1).to(q.dtype)


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = Linear(128, 128, bias=False, **new)
        self.W_k = Linear(128, 128, bias=False, **new)
        self.W_v = Linear(128, 128, bias=False, **new)
        self.W_g = Linear(128, 128, bias=False, **new)
        self.W_o = Linear(128, 128, bias=False, **new)
        self.W_alpha = Linear(128, 4, bias=True, **new)
        self.W_beta = Linear(128, 4, bias=True, **new)
        self.W_keep = Linear(128, 4, bias=True, **new)
        self.conv_q = Conv(128, 4, **new)
        self.conv_k = Conv(128, 4, **new)
        self.F = MixerF()
        self.S = MixerS()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_g.reset_parameters()
        self.W_o.reset_parameters()
        self.W_alpha.reset_parameters()
        self.W_beta.reset_parameters()
        self.W_keep.reset_parameters()
        self.conv_q.reset_parameters()
        self.conv_k.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        F_ = self.F.initial(batch, like)
        S = self.S.initial(batch, like)
        S_sum = self.S.empty(batch, like)
        return {
            "F": F_,
            "S": S,
            "S.sum": S_sum,
            "conv_q": like.new_zeros(batch, 3, 128),
            "conv_k": like.new_zeros(batch, 3, 128),
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
        convolved, conv_q = self.conv_q(
            self.W_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # q     = unit(silu(conv_q(W_q(x))))   (spec.nl:23)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_k = self.conv_k(
            self.W_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        # k     = unit(silu(conv_k(W_k(x))))   (spec.nl:24)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        # v     = silu(W_v(x))   (spec.nl:25)
        v = F.silu(wide(self.W_v(x).unflatten(-1, (4, 32))))
        # alpha = sigmoid(W_alpha(x) + 4)   (spec.nl:26)
        alpha = torch.sigmoid(wide(self.W_alpha(x)) + 4.0)
        # beta  = sigmoid(W_beta(x))   (spec.nl:27)
        beta = torch.sigmoid(wide(self.W_beta(x)))
        F_ = state["F"]
        S = state["S"]
        S_sum = state["S.sum"]
        t = position
        F_read_rows = []
        S_read_rows = []
        lengths = cuts(position, x.shape[1], 64)
        for n, alpha_w, beta_w, k_w, v_w, q_w, W_keep_w in zip(
            lengths,
            alpha.split(lengths, 1),
            beta.split(lengths, 1),
            k.split(lengths, 1),
            v.split(lengths, 1),
            q.split(lengths, 1),
            self.W_keep(x).split(lengths, 1),
            strict=True,
        ):
            F__path, F_ = self.F(alpha_w, beta_w, k_w, v_w, F_)
            F_read = self.F.read(q_w, F__path)
            S_read = self.S.read(q_w, S)
            S_sum = self.S.collect(W_keep_w, S_sum)
            t = t + n
            if t % 64 == 0:
                S, S_sum = self.S.update(F_, S, S_sum)
            F_ = self.F.initial(x.shape[0], x) if t % 64 == 0 else F_
            F_read_rows.append(F_read)
            S_read_rows.append(S_read)
        F_read_1 = torch.cat(F_read_rows, 1)
        S_read_1 = torch.cat(S_read_rows, 1)
        # out = W_o(rmsnorm(F(q) + S(q)) * silu(W_g(x)))   (spec.nl:41)
        product = rmsnorm(F_read_1 + S_read_1) * F.silu(self.W_g(x).unflatten(-1, (4, 32)))
        out = self.W_o(product.flatten(-2).to(x.dtype))
        state = {
            "F": F_,
            "S": S,
            "S.sum": S_sum,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "position": position + x.shape[1],
        }
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        S = state["S"]
        position = state["position"]
        convolved, conv_q = self.conv_q.step(
            self.W_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # q     = unit(silu(conv_q(W_q(x))))   (spec.nl:23)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_k = self.conv_k.step(
            self.W_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        # k     = unit(silu(conv_k(W_k(x))))   (spec.nl:24)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        # v     = silu(W_v(x))   (spec.nl:25)
        v = F.silu(wide(self.W_v(x).unflatten(-1, (4, 32))))
        # alpha = sigmoid(W_alpha(x) + 4)   (spec.nl:26)
        alpha = torch.sigmoid(wide(self.W_alpha(x)) + 4.0)
        # beta  = sigmoid(W_beta(x))   (spec.nl:27)
        beta = torch.sigmoid(wide(self.W_beta(x)))
        F_ = self.F.step(alpha, beta, k, v, state["F"])
        S_sum = self.S.collect(self.W_keep(x).unsqueeze(1), state["S.sum"])
        S_1 = S
        if (position + 1) % 64 == 0:
            S_2, S_sum = self.S.update(F_, S_1, S_sum)
            S_1 = S_2
        # out = W_o(rmsnorm(F(q) + S(q)) * silu(W_g(x)))   (spec.nl:41)
        value = rmsnorm(self.F.read_step(q, F_) + self.S.read_step(q, S))
        out = self.W_o((value * F.silu(self.W_g(x).unflatten(-1, (4, 32)))).flatten(-2).to(x.dtype))
        F_ = self.F.initial(x.shape[0], x) if (position + 1) % 64 == 0 else F_
        state = {
            "F": F_,
            "S": S_1,
            "S.sum": S_sum,
            "conv_q": conv_q,
            "conv_k": conv_k,
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
        # out = F(x)   (spec.nl:47)
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
        # mixer(rmsnorm(x))   (spec.nl:54)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:54)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:55)
        ffn_out, ffn = self.ffn(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:55)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:54)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:54)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:55)
        ffn_out, ffn = self.ffn.step(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:55)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state


class Model(nn.Module):
    """The model consolidation: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = Linear(128, 256, bias=False, **new)
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
        # x[d] = embed(tokens)   (spec.nl:52)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:57)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:52)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:57)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
