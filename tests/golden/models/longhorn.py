"""longhorn: Longhorn (arXiv:2407.14207)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    fast: every 1 token
    slow: every 1 step
"""

from __future__ import annotations

import math
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


def rmsnorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps)."""
    return x * torch.rsqrt(wide(x).square().mean(dim, keepdim=True) + eps).to(x.dtype)


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


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


class Write(NamedTuple):
    """One outer product for each token: e b^T with e = sum M_j p + u + sum c e_s."""

    p: list[tuple[Tensor, int]]  # what state j is read with
    u: Tensor | None
    b: list[tuple[Tensor, tuple[int, ...]]]  # along which it goes, and into which states
    c: tuple[tuple[Tensor, int], ...] = ()  # how much of the same token's write s it sees
    met: Tensor | None = None  # M p of the one state before the chunk, where that is known


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


def states_of_rows(path: Rows, late: bool = True, state: int = 0) -> Tensor:
    """h_t (late), or h_{t-1}, for every token: [B, T, *lead, 1, d]."""
    h = path.after if late else path.before
    return h.unflatten(-2, (path.n, -1))[..., state, :, :].mT


class MixerS(nn.Module):
    """Memory S: vector(d_k), one per d_v; every 1 token.

    S = (1 - e * k^2) * S + e * v * k   (spec.nl:34)
    state  S [B, d_v, d_k]
    runs   scan: affine in its state, channel by channel, and nothing in its writes reads it
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 256, 16)

    def forward(self, e: Tensor, k: Tensor, v: Tensor, S: Tensor) -> tuple[Rows, Tensor]:
        """Move over a sequence, its tiles side by side."""
        # e = u
        # S_t = S_{t-1} diag(g) + e b^T
        u = (e * v).unsqueeze(3)
        b = k.unsqueeze(2)
        e_1 = Write([], u, [(b, (0,))])
        g = 1.0 - e.unsqueeze(3) * k.square().unsqueeze(2)
        path, S = scan_rows([e_1], [[g]], [S.unsqueeze(-2)])
        return path, S.squeeze(-2)

    def states(self, path: Rows) -> Tensor:
        """Give S at every token, after its update."""
        return states_of_rows(path).squeeze(-2)

    def step(self, e: Tensor, k: Tensor, v: Tensor, S: Tensor) -> Tensor:
        """Move by one token."""
        # S = (1 - e * k^2) * S + e * v * k   (spec.nl:34)
        S = ((1.0 - e.unsqueeze(2) * k.square().unsqueeze(1)) * S).addcmul_(
            wide((e * v).unsqueeze(2)), wide(k.unsqueeze(1))
        )
        return S


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_v = Linear(128, 256, bias=False, **new)
        self.W_z = Linear(128, 256, bias=False, **new)
        self.W_q = Linear(256, 16, bias=False, **new)
        self.W_k = Linear(256, 16, bias=False, **new)
        self.W_r = Linear(256, 8, bias=False, **new)
        self.W_step = Linear(8, 256, bias=False, **new)
        self.W_o = Linear(256, 128, bias=False, **new)
        self.conv_v = Conv(256, 4, bias=True, **new)
        self.b = nn.Parameter(torch.empty(256, **new))
        self.D = nn.Parameter(torch.empty(256, **new))
        self.S = MixerS()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_v.reset_parameters()
        self.W_z.reset_parameters()
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_r.reset_parameters()
        self.W_step.reset_parameters()
        self.W_o.reset_parameters()
        self.conv_v.reset_parameters()
        nn.init.zeros_(self.b)
        nn.init.ones_(self.D)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        S = self.S.initial(batch, like)
        return {"S": S, "conv_v": like.new_zeros(batch, 3, 256)}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        convolved, conv_v = self.conv_v(self.W_v(x), state["conv_v"])
        # v    = silu(conv_v(W_v(x)))   (spec.nl:26)
        v = F.silu(wide(convolved))
        value = v.to(x.dtype)
        # q    = W_q(v)   (spec.nl:27)
        q = self.W_q(value)
        # k    = W_k(v)   (spec.nl:28)
        k = self.W_k(value)
        # step = sigmoid(W_step(W_r(v)) + b)   (spec.nl:29)
        step = torch.sigmoid(wide(self.W_step(self.W_r(value))) + self.b)
        k_1 = wide(k)
        # e    = step / (1 + step * ||k||^2)   (spec.nl:30)
        e = step / (1.0 + step * (k_1 * k_1).sum(-1).unsqueeze(2))
        S_path, S = self.S(e, k, v, state["S"])
        # out = W_o((<S, q> + D * v) * silu(W_z(x)))   (spec.nl:37)
        total = (self.S.states(S_path) * q.unsqueeze(2)).sum(-1) + self.D * v
        out = self.W_o((total * F.silu(self.W_z(x))).to(x.dtype))
        state = {"S": S, "conv_v": conv_v}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        convolved, conv_v = self.conv_v.step(self.W_v(x), state["conv_v"])
        # v    = silu(conv_v(W_v(x)))   (spec.nl:26)
        v = F.silu(wide(convolved))
        value = v.to(x.dtype)
        # q    = W_q(v)   (spec.nl:27)
        q = self.W_q(value)
        # k    = W_k(v)   (spec.nl:28)
        k = self.W_k(value)
        # step = sigmoid(W_step(W_r(v)) + b)   (spec.nl:29)
        step = torch.sigmoid(wide(self.W_step(self.W_r(value))) + self.b)
        k_1 = wide(k)
        # e    = step / (1 + step * ||k||^2)   (spec.nl:30)
        e = step / (1.0 + step * (k_1 * k_1).sum(-1).unsqueeze(1))
        S = self.S.step(e, k, v, state["S"])
        # out = W_o((<S, q> + D * v) * silu(W_z(x)))   (spec.nl:37)
        out = self.W_o(
            (((S * q.unsqueeze(1)).sum(-1) + self.D * v) * F.silu(self.W_z(x))).to(x.dtype)
        )
        state = {"S": S, "conv_v": conv_v}
        return out, state


class ModelRepeat(nn.Module):
    """One pass of `repeat`."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.mixer = Mixer(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.mixer.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {"mixer": self.mixer.initial_state(batch, like)}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:43)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:43)
        x = x + mixer_out
        state = {"mixer": mixer}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:43)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:43)
        x = x + mixer_out
        state = {"mixer": mixer}
        return x, state


class Model(nn.Module):
    """The model longhorn: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.repeat = nn.ModuleList(ModelRepeat(**new) for _ in range(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.normal_(self.embed.weight, std=0.02)
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
        # x[d] = embed(tokens)   (spec.nl:42)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x), tied)   (spec.nl:44)
        logits = F.linear(rmsnorm(x), self.embed.weight)
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:42)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x), tied)   (spec.nl:44)
        logits = F.linear(rmsnorm(x), self.embed.weight)
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
