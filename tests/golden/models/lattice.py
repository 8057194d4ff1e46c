"""lattice: Lattice: unit slots that take in only what is orthogonal to them (arXiv:2504.05646)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
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


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: [..., m], [..., n] -> [..., m, n]."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)


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


class Entries(NamedTuple):
    """The course over one chunk: each state by part, after its tokens [B, C, ...] and before."""

    after: list[dict[str, Tensor]]
    first: list[dict[str, Tensor]]
    start: dict[str, Tensor]


def scan_entries(gate: Any, added: Any, first: Tensor, tokens: int) -> Tensor:
    """Z_t = gate_t * Z_{t-1} + added_t for all tokens of a chunk: [B, tokens, ...]."""
    if isinstance(gate, float) and gate == 1.0 and added is None:
        return first.unsqueeze(1).expand(-1, tokens, *first.shape[1:])
    shape = (first.shape[0], tokens, *first.shape[1:])
    if gate is None:
        return first.new_zeros(shape) if added is None else added.to(first.dtype).expand(shape)
    found, Z = [], first
    gates = gate.unbind(1) if isinstance(gate, Tensor) else (gate,)
    more = (None,) if added is None else added.unbind(1)
    for t in range(tokens):
        g, x = gates[t if len(gates) > 1 else 0], more[t if len(more) > 1 else 0]
        Z = g * Z if x is None else g * Z + x
        found.append(Z)
    return torch.stack(found, 1)


def before_entries(course: Tensor, first: Tensor) -> Tensor:
    """A state before each token of a chunk, from its course and what it was before the first."""
    return torch.cat([first.unsqueeze(1), course[:, :-1]], 1)


def run_entries(
    moves: Any,
    streams: list[Tensor],
    states: list[dict[str, Tensor]],
    start: dict[str, Tensor],
    position: int,
    chunk: int,
    ends: tuple[int, Any] | None = None,
    reset: tuple[int, list[dict[str, Tensor]]] | None = None,
) -> tuple[Any, ...]:
    """Run a sequence: its course, the states after it and the one before the open chunk.

    `ends` has a period and how a token at whose end it ends moves; `reset` a period and the states
    to go back to.
    """
    course, at, tokens = [], 0, streams[0].shape[1]
    while at < tokens:
        length = min(chunk - position % chunk, tokens - at)
        now = [x[:, at : at + length] for x in streams]
        at, position, first = at + length, position + length, states
        last = ends is not None and position % ends[0] == 0
        after: list[list[dict[str, Tensor]]] = []
        if length > last:
            inner = [x[:, : length - last] for x in now]
            after.append(moves(*inner, *states, start))
            states = [{part: Z[:, -1] for part, Z in state.items()} for state in after[0]]
        if ends is not None and last:
            states = ends[1](*[x[:, -1] for x in now], *states, start, position)
            after.append([{p: Z.unsqueeze(1) for p, Z in state.items()} for state in states])
        course.append(Entries(joined_entries(after), first, start))
        if reset is not None and position % reset[0] == 0:
            states = reset[1]
        if position % chunk == 0:
            start = states[0]
    return course, *states, start


def joined_entries(pieces: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """Join what tokens one after another have left."""
    if len(pieces) == 1:
        return pieces[0]
    by_state = zip(*pieces, strict=True)
    return [{p: torch.cat([x[p] for x in found], 1) for p in found[0]} for found in by_state]


def over_entries(read: Any, course: list[Entries], when: str, state: int, *q: Tensor) -> Tensor:
    """Read a course: `read(*q, parts)` for each chunk, with a state at its tokens, by part."""
    found, at = [], 0
    for piece in course:
        length = next(iter(piece.after[state].values())).shape[1]
        here = [x[:, at : at + length] for x in q]
        found.append(read(*here, parts_of_entries(piece, when, state)))
        at += length
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def parts_of_entries(piece: Entries, when: str, state: int) -> dict[str, Tensor]:
    """A state at every token of a chunk, by part: after it, before it, or before the chunk."""
    after = piece.after[state]
    if when == "after":
        return after
    if when == "before":
        return {p: before_entries(Z, piece.first[state][p]) for p, Z in after.items()}
    return {p: piece.start[p].unsqueeze(1).expand_as(Z) for p, Z in after.items()}


class MixerS(nn.Module):
    """Memory S: linear(m -> d_v), one per heads; every 1 token.

    S = S - beta * grad   (spec.nl:39)
    S = unit(S, over = out)   (spec.nl:40)
    state  S [B, heads, d_v, m]
    runs   scan: entry by entry, as what is added is known at the chunk's start; the last of each 16
        tokens by itself
    """

    def initial(self, batch: int, like: Tensor, S_0_weight: Tensor) -> Tensor:
        """Give the state at the start."""
        return wide(unit(S_0_weight, dim=-2)).expand(batch, 4, 32, 16)

    def forward(
        self, beta: Tensor, k: Tensor, v: Tensor, S: Tensor, S_start: Tensor, position: int
    ) -> tuple[list[Entries], Tensor, Tensor]:
        """Move over a sequence, a chunk of 16 tokens at a time, entry by entry."""

        def moves(beta, k, v, S, S_start):
            """The states after each token of a chunk, from those before it."""
            weight = S_start["weight"]
            value = unit(weight, dim=-2)
            k = wide(k)
            value_1 = outer(matvecs(value, k) - v, k)
            value_2 = torch.linalg.vector_norm(weight, dim=-2, keepdim=True)
            value = value.unsqueeze(1)
            value_3 = torch.where(
                (value_2 > 1e-12).unsqueeze(1), value * (value_1 * value).sum(-2, keepdim=True), 0.0
            )
            quotient = (value_1 - value_3) / value_2.clamp_min(1e-12).unsqueeze(1)
            S_weight = scan_entries(
                1.0, -(beta.unsqueeze(3).unsqueeze(4) * quotient), S["weight"], beta.shape[1]
            )
            return [
                {"weight": S_weight},
            ]

        def alone(beta, k, v, S, S_start, position):
            """The states after a token at which a period ends."""
            found = self.step(
                beta, k, v, S["weight"], S_start["weight"], ends_16=position % 16 == 0
            )
            return [{"weight": found}]

        path, S, S_start = run_entries(
            moves,
            [beta, k, v],
            [{"weight": S}],
            {"weight": S_start},
            position,
            16,
            ends=(16, alone),
        )
        return path, S["weight"], S_start["weight"]

    def read(self, q: Tensor, path: list[Entries]) -> Tensor:
        """Read S(q) at every token, after its update."""

        def read(q, parts):
            return matvec(parts["weight"], wide(q)).to(q.dtype)

        return over_entries(read, path, "after", 0, q)

    def step(
        self, beta: Tensor, k: Tensor, v: Tensor, S: Tensor, S_start: Tensor, ends_16: bool
    ) -> Tensor:
        """Move by one token."""
        value = unit(S_start, dim=-2)
        k = wide(k)
        value_1 = outer(matvec(value, k) - v, k)
        value_2 = torch.linalg.vector_norm(S_start, dim=-2, keepdim=True)
        # S = S - beta * grad   (spec.nl:39)
        value_3 = torch.where(value_2 > 1e-12, value * (value_1 * value).sum(-2, keepdim=True), 0.0)
        S = torch.addcmul(
            S,
            wide(beta.unsqueeze(2).unsqueeze(3)),
            (value_1 - value_3) / value_2.clamp_min(1e-12),
            value=-1,
        )
        if ends_16:
            # S = unit(S, over = out)   (spec.nl:40)
            S = unit(S, dim=-2)
        return S

    def read_step(self, q: Tensor, S: Tensor) -> Tensor:
        """Read S(q) at one token."""
        return read_linear(wide(q), S, 1).to(q.dtype)


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = Linear(128, 64, bias=False, **new)
        self.W_k = Linear(128, 64, bias=False, **new)
        self.W_v = Linear(128, 128, bias=False, **new)
        self.W_g = Linear(128, 128, bias=False, **new)
        self.W_o = Linear(128, 128, bias=False, **new)
        self.W_beta = Linear(128, 4, bias=True, **new)
        self.conv_q = Conv(64, 4, **new)
        self.conv_k = Conv(64, 4, **new)
        self.conv_v = Conv(128, 4, **new)
        self.S_0 = Tensors(weight=(4, 32, 16), **new)
        self.gain = nn.Parameter(torch.empty(32, **new))
        self.S = MixerS()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_g.reset_parameters()
        self.W_o.reset_parameters()
        self.W_beta.reset_parameters()
        self.conv_q.reset_parameters()
        self.conv_k.reset_parameters()
        self.conv_v.reset_parameters()
        uniform(self.S_0.weight, 16)
        nn.init.ones_(self.gain)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        S = self.S.initial(batch, like, self.S_0.weight)
        return {
            "S": S,
            "S.start": S,
            "conv_q": like.new_zeros(batch, 3, 64),
            "conv_k": like.new_zeros(batch, 3, 64),
            "conv_v": like.new_zeros(batch, 3, 128),
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
            self.W_q(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_q"]
        )
        # q    = unit(silu(conv_q(W_q(x))))   (spec.nl:29)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 16)))))
        convolved, conv_k = self.conv_k(
            self.W_k(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_k"]
        )
        # k    = unit(silu(conv_k(W_k(x))))   (spec.nl:30)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 16)))))
        convolved, conv_v = self.conv_v(
            self.W_v(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_v"]
        )
        # v    = silu(conv_v(W_v(x)))   (spec.nl:31)
        v = F.silu(wide(convolved.unflatten(-1, (4, 32))))
        # beta = sigmoid(W_beta(x))   (spec.nl:32)
        beta = torch.sigmoid(wide(self.W_beta(x)))
        S_path, S, S_start = self.S(beta, k, v, state["S"], state["S.start"], position)
        # out = W_o(rmsnorm(S(q), gain = gain) * silu(W_g(x)))   (spec.nl:45)
        product = rmsnorm(self.S.read(q, S_path)) * self.gain.unsqueeze(0)
        out = self.W_o(
            (product * F.silu(self.W_g(x).unflatten(-1, (4, 32)))).flatten(-2).to(x.dtype)
        )
        state = {
            "S": S,
            "S.start": S_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "conv_v": conv_v,
            "position": position + x.shape[1],
        }
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        S_start = state["S.start"]
        position = state["position"]
        convolved, conv_q = self.conv_q.step(
            self.W_q(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_q"]
        )
        # q    = unit(silu(conv_q(W_q(x))))   (spec.nl:29)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 16)))))
        convolved, conv_k = self.conv_k.step(
            self.W_k(x).unflatten(-1, (4, 16)).flatten(-2), state["conv_k"]
        )
        # k    = unit(silu(conv_k(W_k(x))))   (spec.nl:30)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 16)))))
        convolved, conv_v = self.conv_v.step(
            self.W_v(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_v"]
        )
        # v    = silu(conv_v(W_v(x)))   (spec.nl:31)
        v = F.silu(wide(convolved.unflatten(-1, (4, 32))))
        # beta = sigmoid(W_beta(x))   (spec.nl:32)
        beta = torch.sigmoid(wide(self.W_beta(x)))
        S = self.S.step(beta, k, v, state["S"], S_start, (position + 1) % 16 == 0)
        # out = W_o(rmsnorm(S(q), gain = gain) * silu(W_g(x)))   (spec.nl:45)
        product = rmsnorm(self.S.read_step(q, S)) * self.gain.unsqueeze(0)
        out = self.W_o(
            (product * F.silu(self.W_g(x).unflatten(-1, (4, 32)))).flatten(-2).to(x.dtype)
        )
        S_start = S if (position + 1) % 16 == 0 else S_start
        state = {
            "S": S,
            "S.start": S_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "conv_v": conv_v,
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
        # out = F(x)   (spec.nl:51)
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
        # mixer(rmsnorm(x))   (spec.nl:58)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:58)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:59)
        ffn_out, ffn = self.ffn(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:59)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:58)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:58)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:59)
        ffn_out, ffn = self.ffn.step(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:59)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state


class Model(nn.Module):
    """The model lattice: tokens [B, T] -> logits [B, T, 256]."""

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
        # x[d] = embed(tokens)   (spec.nl:56)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:61)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:56)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:61)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
