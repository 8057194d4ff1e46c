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


def gelu_with_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(x) and its derivative."""
    if torch.is_grad_enabled() and x.requires_grad:
        return GeluWithSlope.apply(x)
    return GeluWithSlope.of(x)


class GeluWithSlope(torch.autograd.Function):
    """x F(x) and F(x) + x F'(x), F the normal distribution; that of it is F'(x) (2 - x^2)."""

    @staticmethod
    def of(x):
        return F.gelu(x), torch.ops.aten.gelu_backward(torch.ones_like(x), x)

    @staticmethod
    def forward(ctx, x):
        y, slope = GeluWithSlope.of(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, slope)
        return y, slope

    @staticmethod
    def backward(ctx, dy, dslope):
        x, slope = ctx.saved_tensors
        if dslope is None:
            return None if dy is None else dy * slope
        square = x * x
        # exp(-x^2 / 2), by the faster of two functions
        bell = torch.exp2(-0.7213475204444817 * square) * (2 - square)
        if dy is None:
            return dslope * bell * 0.3989422804014327
        return torch.addcmul(dy * slope, dslope, bell, value=0.3989422804014327)


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
    still = False

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

    def numbers(self, into, j):
        """F(t, i), of writes into some states, where it is one number a token."""
        found = [t for a in into if (t := self.tables[a][j]) is not None]
        return sum(found[1:], found[0]).squeeze(-1) if found else None

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


class Stacked:
    """n states M_j^T in one tensor: [G, n * d_k, d_v], or [G, d_k, n * d_v] if that is `wide`.

    In memory they lie one behind the other in both cases.
    """

    def __init__(self, whole, n, wide, first=None):
        self.whole, self.n, self.wide, self.first = whole, n, wide, first

    @classmethod
    def of(cls, states):
        """Put states together."""
        wide = states[0].shape[-2] > states[0].shape[-1]
        if len(states) == 1:
            return cls(states[0], 1, wide)
        whole = torch.cat([x.mT for x in states], -2).mT if wide else torch.cat(states, -2)
        return cls(whole, len(states), wide, states[0])

    def __getitem__(self, j):
        """State j, as M_j^T [G, d_k, d_v]."""
        if self.n == 1:
            return self.whole
        if j == 0 and self.first is not None:
            return self.first
        return self.whole.chunk(self.n, -1 if self.wide else -2)[j]

    def __len__(self):
        return self.n

    @property
    def shape(self):
        """d_k and d_v of a state."""
        d_k, d_v = self.whole.shape[-2:]
        return (d_k, d_v // self.n) if self.wide else (d_k // self.n, d_v)

    def rows(self):
        """The states below each other."""
        return torch.cat(list(self), -2) if self.wide and self.n > 1 else self.whole


class Along(NamedTuple):
    """What of a tile is asked for."""

    n: int
    wide: bool
    flows: tuple[tuple[int, int], ...]  # a, j where state a flows into another state j
    read: bool
    move: bool


class AlongTile(torch.autograd.Function):
    """How states are read over a tile, and how they move, both with their gradients.

    y = sum_a s_a (q M_a^T) + sum_r (T_r * q b_r^T) e_r
    M_j <- sum_a w_aj M_a + sum_r (l_rj b_r)^T e_r

    Given are the states, the queries, numbers s [G, C, n, 1] and w_jj [G, n, 1], the other
    w_aj [G, 1, 1], then e, b, T [G, C, C] and l [G, C, n, 1] of each write. None stands for a table
    that is 0 and for numbers that are 1. The first state after the tile is given by itself, too.
    """

    @staticmethod
    def forward(ctx, how, S, q, s, own, *given):
        ctx.how, met, y, after, first = how, [], None, None, None
        flows, writes = parted(how, given)
        if how.read:
            y, met = read_along(how, S, q, s, writes)
        if how.move:
            after = flowed(how, how.flows, S, own, flows)
            for e, b, _, left in writes:
                # as the states lie in memory
                x, z, to = (
                    (by_state(e, left), b, after.mT) if how.wide else (by_state(b, left), e, after)
                )
                added(to, x.mT, z)
            first = state_in(how, after, 0).detach() if how.n > 1 else None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(S, q, s, own, *given, *met)
        return y, after, first

    @staticmethod
    def backward(ctx, dy, dafter, dfirst):
        how, (S, q, s, own, *given) = ctx.how, ctx.saved_tensors
        _, of_S, of_q, of_s, of_own, *needs = ctx.needs_input_grad
        given, met = given[: len(needs)], given[len(needs) :]
        (flows, writes), (of_flows, of_writes) = parted(how, given), parted(how, needs)
        if torch.is_grad_enabled() and dy is not None:
            # this is differentiated again, and then what the states and writes met hangs on them
            _, met = read_along(how, S, q, s, writes)
        dwrites, dflows = [[None] * 4 for _ in writes], [None] * len(flows)
        dS = dq = ds = down = None
        if dafter is not None or dfirst is not None:
            dafter = with_first(how, S, dafter, dfirst)
            dS = flowed(how, [(j, a) for a, j in how.flows], dafter, own, flows) if of_S else None
            down, dflows = flows_back(how, S, dafter, of_own, of_flows)
            for back, write, wanted in zip(dwrites, writes, of_writes, strict=True):
                move_back(how, dafter, write, wanted, back)
        if dy is not None:
            x, y, dq, ds = read_back(how, S, q, s, met, dy, of_q, of_s)
            if of_S and how.wide:
                dS = added(None if dS is None else dS.mT, y.mT, x).mT
            elif of_S:
                dS = added(dS, x.mT, y)
            for back, write, wanted, x in zip(dwrites, writes, of_writes, met[1:], strict=True):
                dq = scores_back(q, dy, x, dq, write, wanted, back)
        return None, dS, dq, ds, down, *dflows, *[x for back in dwrites for x in back]


def parted(how: Along, given: Any) -> tuple[Any, list[Any]]:
    """Cut what is given into numbers between states, and each write."""
    at = len(how.flows) if how.move else 0
    return given[:at], [given[i : i + 4] for i in range(at, len(given), 4)]


def by_state(x: Tensor, numbers: Tensor | None) -> Tensor:
    """Each state's number times x, side by side: [G, C, d] -> [G, C, n * d]."""
    return x if numbers is None else (x.unsqueeze(2) * numbers).flatten(2)


def over_states(x: Tensor, numbers: Tensor | None) -> Tensor:
    """The sum of what stands side by side, each times its state's number."""
    if numbers is None:
        return x
    first, *more = zip(x.chunk(numbers.shape[2], 2), numbers.unbind(2), strict=True)
    total = first[0] * first[1]
    for part, number in more:
        total = torch.addcmul(total, part, number)
    return total


def products(parts: Tensor, x: Tensor) -> Tensor:
    """The products with x of what stands side by side, token by token [G, C, n, 1]."""
    return (parts.unflatten(2, (-1, x.shape[2])) * x.unsqueeze(2)).sum(-1, keepdim=True)


def by_states(how: Along, S: Tensor) -> Tensor:
    """States apart: [G, n, d_k, d_v], or [G, n, d_v, d_k] where they are wide."""
    return (S.mT if how.wide else S).unflatten(-2, (how.n, -1))


def state_in(how: Along, S: Tensor, j: int) -> Tensor:
    """State j, as a view."""
    axis = -1 if how.wide else -2
    size = S.shape[axis] // how.n
    return S.narrow(axis, j * size, size)


def flowed(how: Along, pairs: Any, S: Tensor, own: Tensor | None, flows: Any) -> Tensor:
    """sum_a w_aj M_a of each state j."""
    if how.n == 1:
        return S.clone() if own is None else S * own
    after = (by_states(how, S) * own.unsqueeze(-1)).flatten(1, 2)
    after = after.mT if how.wide else after
    for (a, j), number in zip(pairs, flows, strict=True):
        state_in(how, after, j).addcmul_(state_in(how, S, a), number)
    return after


def flows_back(how: Along, S: Tensor, dafter: Tensor, of_own: bool, needs: Any) -> tuple[Any, Any]:
    """The gradients of the numbers in `flowed`."""
    if how.n == 1 or not (of_own or any(needs)):
        return (S * dafter).sum((1, 2)).view(-1, 1, 1) if of_own else None, [None] * len(needs)
    pairs = by_states(how, S).flatten(2) @ by_states(how, dafter).flatten(2).mT
    own = pairs.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return own, [pairs[:, a, j, None, None] for a, j in how.flows]


def with_first(how: Along, S: Tensor, dafter: Tensor | None, dfirst: Tensor | None) -> Tensor:
    """The gradient of all states, with that of the first by itself."""
    if dafter is not None and how.wide:
        # it lies in memory as the states do
        dafter = dafter.mT.contiguous().mT
    if dfirst is None:
        return dafter
    total = torch.zeros_like(S) if dafter is None else dafter.clone()
    state_in(how, total, 0).add_(dfirst)
    return total


def move_back(how: Along, dafter: Tensor, write: Any, needs: Any, back: list[Any]) -> None:
    """Add to the gradients of a write what comes from the states after it."""
    e, b, _, left = write
    of_e, of_b, _, of_left = needs
    if how.wide:
        dafter, small, large, of_small, of_large = dafter.mT, e, b, of_e, of_b
    else:
        small, large, of_small, of_large = b, e, of_b, of_e
    dsmall = dlarge = None
    if of_large and not of_small and of_left:
        # what the numbers are given then needs no product of its own
        asked = torch.cat([matrix_products(small, x) for x in dafter.chunk(how.n, -2)], -1)
        dlarge, back[3] = over_states(asked, left), products(asked, large)
    else:
        dlarge = matrix_products(by_state(small, left), dafter) if of_large else None
        if of_small or of_left:
            asked = matrix_products(large, dafter.mT)
            dsmall = over_states(asked, left) if of_small else None
            back[3] = products(asked, small) if of_left else None
    back[:2] = (dsmall, dlarge) if how.wide else (dlarge, dsmall)


def read_along(how: Along, S: Tensor, q: Tensor, s: Any, writes: Any) -> tuple[Tensor, list[Any]]:
    """The answers, and for gradients what met the states and the scores of each write."""
    if how.wide:
        asked = matrix_products(q, S)
        y, met = over_states(asked, s), [None if s is None else asked]
    else:
        y, met = matrix_products(by_state(q, s), S), [None]
    for e, b, table, _ in writes:
        met.append(None if table is None else matrix_products(q, b.mT))
        y = y if table is None else added(y, met[-1] * table, e)
    return y, met


def read_back(
    how: Along, S: Tensor, q: Tensor, s: Any, met: Any, dy: Tensor, of_q: bool, of_s: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of what the states were asked: theirs is x^T y, then of queries and numbers."""
    if how.wide:
        y = by_state(dy, s)
        dq = matrix_products(y, S.mT) if of_q else None
        return q, y, dq, products(met[0], dy) if of_s else None
    asked = matrix_products(dy, S.mT) if of_q or of_s else None
    dq = over_states(asked, s) if of_q else None
    return by_state(q, s), dy, dq, products(asked, q) if of_s else None


def scores_back(
    q: Tensor, dy: Tensor, scores: Any, dq: Any, write: Any, needs: Any, back: list[Any]
) -> Tensor | None:
    """Add to the gradients of a write what comes from its answers; return that of the queries."""
    e, b, table, _ = write
    of_e, of_b, of_table, _ = needs
    if table is None:
        return dq
    if of_e:
        back[0] = added(back[0], (table * scores).mT, dy)
    if dq is None and not of_b and not of_table:
        return dq
    dscores = matrix_products(dy, e.mT)
    back[2] = dscores * scores if of_table else None
    dscores = dscores * table
    if of_b:
        back[1] = added(back[1], dscores.mT, q)
    return dq if dq is None else added(dq, dscores, b)


def added(total: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """total + x y, None for nothing; what was made for this alone takes it in."""
    if total is None:
        return matrix_products(x, y)
    return torch.baddbmm(total, x, y) if torch.is_grad_enabled() else total.baddbmm_(x, y)


class Numbers:
    """F(t, i) of gates that are one number a token, of n chunks of one tile each.

    What is asked for is made for all chunks at once. None stands for a table that is 0, and for
    numbers that are 1.
    """

    def __init__(self, kind, gates, front, like, rows, n):
        self.rows, self.n, self.states = rows, n, range(len(gates))
        self.all = lambda: kind.of(gates, front, front[1], like)
        # whether it is 1 throughout
        self.still = len(gates) == 1 and isinstance(gates[0][0], float) and gates[0][0] == 1.0
        own = {(j, j) for j in self.states}
        pairs = own | {(a, j) for a in self.states for j in self.states if gates[a][j] is not None}
        self.gates = {
            (a, j): gate_tiles(gates[a][j], front, front[1], like, 0, 1.0)[0]
            for a, j in sorted(pairs)
        }
        # which states flow into which others in the end
        for m in self.states:
            pairs |= {(a, j) for a, b in pairs for c, j in pairs if b == c == m}
        self.flows = tuple(sorted(pairs - own))
        self.made, self.cut = {}, {}

    def of_chunks(self, rows, n):
        """The same, of each chunk alone."""
        return [NumbersOfChunk(self, chunk) for chunk in range(n)]

    def general(self):
        """The gates as all of `library_gates` are."""
        if "general" not in self.made:
            self.made["general"] = self.all()
        return self.made["general"]

    def reach(self, into, j, late=True):
        """F(t, i), or F(t-1, i): what is in state j of a write into some states [G, C, C]."""
        return self.given("reach", into, j, late)

    def since(self, j, late=True):
        """F(t, 0), or F(t-1, 0): what is left of each first state in state j [G, C, n, 1]."""
        return self.given("since", (), j, late)

    def left(self, into):
        """F(C, i): what is left of a write in each state at the tile's end [G, C, n, 1]."""
        return self.given("left", into, 0, True)

    def own(self):
        """F(C, 0) of each state in itself [G, n, 1]."""
        return self.given("own", (), 0, True)

    def whole(self, a, j):
        """F(C, 0) of state a in another state j [G, 1, 1]."""
        return self.given("whole", (a,), j, True)

    def given(self, *key):
        """Make a table, once."""
        if key not in self.made:
            self.made[key] = self.table(*key)
        return self.made[key]

    def table(self, kind, into, j, late):
        if kind == "parts":
            return TableParts.apply(self.general().numbers(into, j)[0])
        if self.still:
            like = self.gates[0, 0]
            one = like.new_ones(like.shape[1], like.shape[1])
            return (
                one.tril(0 if late else -1).expand(len(like), -1, -1) if kind == "reach" else None
            )
        since, left, inside = self.course(into if kind in ("reach", "left") else None)
        match kind:
            case "since":
                return (since[:, 1:, j] if late else since[:, :-1, j]).unsqueeze(-1)
            case "left":
                return left.unsqueeze(-1)
            case "own":
                return since[:, -1].diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
            case "whole":
                return since[:, -1, j, into[0], None, None]
        if j not in into and not any((a, j) in self.flows for a in into):
            return None
        found = inside[j].contiguous()
        return found if late else F.pad(found[:, :-1], (0, 0, 1, 0))

    def course(self, into):
        """All of F(t, 0), and F(t, i) of writes into some states; None for what is there."""
        found = [key for key in self.made if key[0] == "course"]
        key = (found or [("course", ())])[0] if into is None else ("course", into)
        if key not in self.made:
            # where rows are few, an operation for each token takes longer than whole tables
            few = len(self.gates[0, 0]) < 16
            self.made[key] = self.from_tables(key[1]) if few else self.token_by_token(key[1])
        return self.made[key]

    def token_by_token(self, into):
        n, pairs = len(self.states), tuple(self.gates)
        since, left, *inside = RunningNumbers.apply(n, into, pairs, *self.gates.values())
        return since, left, inside

    def from_tables(self, into):
        pairs = {(j, j) for j in self.states} | set(self.flows)
        parts = {pair: self.given("parts", pair[:1], pair[1], True) for pair in sorted(pairs)}
        inside, since, left = [], [], []
        for j in self.states:
            none = [torch.zeros_like(x) for x in parts[j, j]]
            since.append(torch.stack([parts.get((a, j), none)[1] for a in self.states], -1))
            found = [parts[a, j] for a in into if (a, j) in pairs] or [none]
            here, _, last = (sum(some[1:], some[0]) for some in zip(*found, strict=True))
            inside.append(here)
            left.append(last)
        return torch.stack(since, 2), torch.stack(left, 2), inside


class NumbersOfChunk(Numbers):
    """As `Numbers`, cut where it is that of one chunk."""

    def __init__(self, of, chunk):
        self.of, self.chunk, self.flows = of, chunk, of.flows

    def general(self):
        """The gates as all of `library_gates` are."""
        if "general" not in self.of.cut:
            self.of.cut["general"] = self.of.general().of_chunks(self.of.rows, self.of.n)
        return self.of.cut["general"][self.chunk]

    def given(self, *key):
        """Cut a table, once."""
        found, of = self.of.given(*key), self.of
        if found is None:
            return None
        if key not in of.cut:
            by_chunk = found.unflatten(0, (of.rows, of.n, -1)).transpose(0, 1)
            of.cut[key] = by_chunk.flatten(1, 2).unbind(0)
        return of.cut[key][self.chunk]


class TableParts(torch.autograd.Function):
    """What is taken from a table [N, 1 + C, 1 + C], its first row but for i = 0 being 0."""

    @staticmethod
    def forward(ctx, table):
        return table[:, 1:, 1:].contiguous(), table[:, :, 0].clone(), table[:, -1, 1:].clone()

    @staticmethod
    def backward(ctx, inside, first, last):
        grad = F.pad(inside, (1, 0, 1, 0))
        grad[:, :, 0] = first
        grad[:, -1, 1:] += last
        return grad


class RunningNumbers(torch.autograd.Function):
    """F(t, i), token after token, of first states and of writes `into` some states.

    Gates [G, C, 1] lead from one state to another, as `pairs` say, and from each to itself. Gives
    what is left of each first state in each state [G, 1 + C, n, n], what is left of each write at
    the end [G, C, n], and what is in each state of each write, n of [G, C, C].
    """

    @staticmethod
    def forward(ctx, n, into, pairs, *gates):
        found = at_first(n, into, gates[0])
        rows = found.unbind(1)
        own, between = by_token(pairs, gates)
        for before, row, number, numbers in zip(rows, rows[1:], own, between, strict=False):
            row.addcmul_(before, number)
            for (a, j), other in numbers:
                row[:, j].addcmul_(before[:, a], other)
        ctx.how = n, into, pairs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(found, *gates)
        since, left, *inside = asked_of(found, n)
        return since.contiguous(), left.contiguous(), *inside

    @staticmethod
    def backward(ctx, *given):
        (n, into, pairs), (found, *gates) = ctx.how, ctx.saved_tensors
        if torch.is_grad_enabled():
            # this is differentiated again, and then nothing may be written in place
            again = asked_of(course_of(n, into, pairs, gates), n)
            return None, None, None, *gradients_again(again, gates, given)
        total = torch.zeros_like(found)
        for part, dx in zip(asked_of(total, n), given, strict=True):
            if dx is not None:
                part.add_(dx)
        rows = total.unbind(1)
        own, between = by_token(pairs, gates)
        for i in reversed(range(len(rows) - 1)):
            rows[i].addcmul_(rows[i + 1], own[i])
            for (a, j), other in between[i]:
                rows[i][:, a].addcmul_(rows[i + 1][:, j], other)
        after, before = total[:, 1:], found[:, :-1]
        dgates = [(after[:, :, j] * before[:, :, a]).sum(-1, keepdim=True) for a, j in pairs]
        return None, None, None, *dgates


def at_first(n, into, like):
    """The course before any gate: 1 where a state or a write begins [G, 1 + C, n, n + C]."""
    tokens = like.shape[1]
    one = like.new_zeros(1 + tokens, n, n + tokens)
    one[0, :, :n].fill_diagonal_(1)
    for j in into:
        one[1:, j, n:].fill_diagonal_(1)
    return one.repeat(like.shape[0], 1, 1, 1)


def asked_of(course, n):
    """What `RunningNumbers` gives of it all."""
    since, inside = course[..., :n], course[:, 1:, :, n:]
    return since, inside[:, -1].mT, *inside.unbind(2)


def by_token(pairs, gates):
    """The numbers of each token: of all states in themselves [G, n, 1], and between others."""
    of = dict(zip(pairs, gates, strict=True))
    own = torch.stack([g for (a, j), g in of.items() if a == j], 2).unbind(1)
    between = [[(pair, x) for x in g.unbind(1)] for pair, g in of.items() if pair[0] != pair[1]]
    return own, [*zip(*between, strict=True)] if between else [()] * len(own)


def course_of(n, into, pairs, gates):
    """The course again, for gradients of any order."""
    rows = list(at_first(n, into, gates[0]).unbind(1))
    own, between = by_token(pairs, gates)
    for i, numbers in enumerate(between):
        moved = list((rows[i] * own[i]).unbind(1))
        for (a, j), other in numbers:
            moved[j] = moved[j] + rows[i][:, a] * other
        rows[i + 1] = rows[i + 1] + torch.stack(moved, 1)
    return torch.stack(rows, 1)


def gradients_again(of, at, given):
    """The gradients of some values at others, to be differentiated again; None where none is."""
    pairs = [(y, dy) for y, dy in zip(of, given, strict=True) if dy is not None]
    needed = [x for x in at if x.requires_grad]
    ys, dys = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ys, needed, dys, create_graph=True, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in at]


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


class Chosen(NamedTuple):
    """The parts that one token of each sequence selects, one row for each of R = B * lead * count.

    `parts` and `groups` are the rows' places among all parts and among all leading axes but the
    slots, `weights` their weights; `front` is [B, *lead, count].
    """

    parts: Tensor
    groups: Tensor
    weights: Tensor
    front: tuple[int, ...]


def rows(x: Tensor, chosen: Chosen, has: tuple[bool, ...]) -> Tensor:
    """What each row sees of x [B, *leading axes, ...], of which it `has` some: [R, 1 ..., ...]."""
    for place, here in enumerate(has):
        x = x if here else x.unsqueeze(1 + place)
    slots = len(has)
    rest = x.shape[1 + slots :]
    each = x.shape[slots] > 1
    x = x.expand(*chosen.front[:-1], x.shape[slots], *rest).flatten(0, slots)
    found = x.index_select(0, chosen.parts if each else chosen.groups)
    return found.view(found.shape[0], *[1] * sum(has), *rest)


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

        negative = -wide(theta)
        value = unit(F.silu(wide(conv_k.unflatten(-1, (4, 32)))))
        value_1 = F.silu(wide(M_v))

        def writes(negative, value, value_1, start):
            """What the tokens of a chunk write, from the state before it."""
            layer2_weight = start["layer2.weight"]
            b, slope = gelu_with_slope(matvecs(start["layer1.weight"], value))
            u = negative.unsqueeze(2) * (matvecs(layer2_weight, b) - value_1)
            u_1 = matvecs(layer2_weight.mT, u) * slope
            e = Write([], u_1, [(value, (0, 1))])
            e_1 = Write([], u, [(b, (0, 1))])
            return {"layer1.weight": [e], "layer2.weight": [e_1]}

        # e = u
        # M.layer1.weight_t = M.layer1.weight_{t-1} g11 + M_S.layer1.weight_{t-1} g21 + e b^T
        # M_S.layer1.weight_t = M_S.layer1.weight_{t-1} g22 + e b^T
        g = 1.0 - alpha
        moves = {
            "layer1.weight": Moves([[g, None], [eta, eta]], CoupledGates, 64),
            "layer2.weight": Moves([[g, None], [eta, eta]], CoupledGates, 64),
        }
        path, M, M_S, M_start = run_copies(
            (4,), writes, [negative, value, value_1], moves, [M, M_S], M_start, position, 16
        )
        return path, M, M_S, M_start

    def read(self, q: Tensor, path: list[Chunks]) -> Tensor:
        """Read M(q) at every token, after its update."""

        def read(q, chunks):
            value = read_part(
                F.gelu(read_part(wide(q), chunks.tiles["layer1.weight"])),
                chunks.tiles["layer2.weight"],
            )
            result = value.to(q.dtype)
            return result

        return over_copies((4,), read, path, q)

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
        value = eta.unsqueeze(2).unsqueeze(3)
        value_1 = wide(unit(F.silu(conv_k.unflatten(-1, (4, 32)))))
        gelu, slope = gelu_with_slope(matvec(M_start["layer1.weight"], value_1))
        difference = matvec(layer2_weight, gelu) - F.silu(M_v)
        value_2 = theta.unsqueeze(2).unsqueeze(3)
        # S = eta * S - theta * grad   (rules.nl:27)
        M_S_layer1_weight = (value * M_S["layer1.weight"]).addcmul_(
            value_2 * (matvec(layer2_weight.mT, difference) * slope).unsqueeze(3),
            value_1.unsqueeze(2),
            value=-1,
        )
        value_3 = wide((1.0 - alpha).unsqueeze(2).unsqueeze(3))
        # self = (1 - alpha) * self + S   (rules.nl:28)
        M_layer1_weight = torch.addcmul(M_S_layer1_weight, value_3, M["layer1.weight"])
        M_S_layer2_weight = (value * M_S["layer2.weight"]).addcmul_(
            value_2 * difference.unsqueeze(3), gelu.unsqueeze(2), value=-1
        )
        M_layer2_weight = torch.addcmul(M_S_layer2_weight, value_3, M["layer2.weight"])
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
        self.W_q = Linear(128, 128, bias=False, **new)
        self.W_k = Linear(128, 128, bias=False, **new)
        self.W_v = Linear(128, 128, bias=False, **new)
        self.M_q = Linear(128, 128, bias=False, **new)
        self.M_k = Linear(128, 128, bias=False, **new)
        self.M_v = Linear(128, 128, bias=False, **new)
        self.W_y = Linear(128, 128, bias=False, **new)
        self.W_o = Linear(128, 128, bias=False, **new)
        self.W_lr = Linear(128, 4, bias=True, **new)
        self.W_m = Linear(128, 4, bias=True, **new)
        self.W_f = Linear(128, 4, bias=True, **new)
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
