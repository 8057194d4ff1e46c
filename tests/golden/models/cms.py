"""cms: Continuum memory system: a chain of MLPs at three levels (arXiv:2512.24695, eqs. 70-71)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    now: always
    slow: every 1 step
    slower: every 4 steps
    slowest: every 16 steps
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


class MLP(nn.Module):
    """Linear layers with an activation between them; `norm`, then `residual` at the end."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        act: str = "gelu",
        bias: bool = False,
        residual: bool = False,
        norm: type[nn.LayerNorm] | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.act, self.residual, self.layers = act, residual, len(sizes) - 1
        for i in range(self.layers):
            layer = Linear(sizes[i], sizes[i + 1], bias=bias, **new)
            self.add_module(f"layer{i + 1}", layer)
        self.norm = None if norm is None else norm(sizes[-1], **new)

    def reset_parameters(self) -> None:
        for layer in self.children():
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(x)
        for i in range(1, self.layers):
            y = getattr(self, f"layer{i + 1}")(activation(self.act, y))
        y = y if self.norm is None else self.norm(y)
        return x + y if self.residual else y


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


class AttentionA(nn.Module):
    """Memory A: kernel(softmax), one per heads; always.

    runs   attention: every query attends to the stored pairs
    """

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
        return append_pairs(keys, values, A, None)

    def step(
        self, W_k: Tensor, place: Tensor, W_v: Tensor, A: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Add one token's pairs."""
        value = rotate(
            W_k, (place.unsqueeze(1) * torch.exp(-0.5756462732485115 * index(16, W_k))).unsqueeze(1)
        )
        keys = as_pairs(value, A, False)
        values = as_pairs(W_v, A, False)
        _, A = append_pairs(keys, values, A, None)
        return A

    def read(self, q: Tensor, pairs: Pairs) -> Tensor:
        """Read A(q) at every token, after its pairs are added."""
        return attend(q, pairs, 0.1767766952966369)

    def read_step(self, q: Tensor, A: dict[str, Tensor]) -> Tensor:
        """Read A(q) at one token."""
        return attend_step(q, A, 0.1767766952966369)


class Attention(nn.Module):
    """Block attention: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = Linear(128, 128, bias=False, **new)
        self.W_k = Linear(128, 128, bias=False, **new)
        self.W_v = Linear(128, 128, bias=False, **new)
        self.W_o = Linear(128, 128, bias=False, **new)
        self.A = AttentionA()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_o.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        A = self.A.initial(batch, like)
        return {"A": A, "position": 0}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        position = state["position"]
        value = positions(position, x.shape[1], x)
        A_path, A = self.A(
            self.W_k(x).unflatten(-1, (4, 32)),
            value,
            self.W_v(x).unflatten(-1, (4, 32)),
            state["A"],
        )
        # out = W_o(A(rope(W_q(x))))   (spec.nl:28)
        value_1 = rotate(
            self.W_q(x).unflatten(-1, (4, 32)),
            (value.unsqueeze(2) * torch.exp(-0.5756462732485115 * index(16, x))).unsqueeze(2),
        )
        out = self.W_o(self.A.read(value_1, A_path).flatten(-2))
        state = {"A": A, "position": position + x.shape[1]}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        position = state["position"]
        value = positions(position, 1, x).squeeze(1)
        A = self.A.step(
            self.W_k(x).unflatten(-1, (4, 32)),
            value,
            self.W_v(x).unflatten(-1, (4, 32)),
            state["A"],
        )
        value_1 = rotate(
            self.W_q(x).unflatten(-1, (4, 32)),
            (value.unsqueeze(1) * torch.exp(-0.5756462732485115 * index(16, x))).unsqueeze(1),
        )
        out = self.W_o(self.A.read_step(value_1, A).flatten(-2))
        state = {"A": A, "position": position + 1}
        return out, state


class Cms(nn.Module):
    """Block cms: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.F_1 = MLP((128, 256, 128), act="gelu", **new)
        self.F_2 = MLP((128, 256, 128), act="gelu", **new)
        self.F_3 = MLP((128, 256, 128), act="gelu", **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.F_1.reset_parameters()
        self.F_2.reset_parameters()
        self.F_3.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # y   = x + F_1(rmsnorm(x))   (spec.nl:36)
        y = x + self.F_1(rmsnorm(x))
        # z   = y + F_2(rmsnorm(y))   (spec.nl:37)
        z = y + self.F_2(rmsnorm(y))
        # out = z + F_3(rmsnorm(z))   (spec.nl:38)
        out = z + self.F_3(rmsnorm(z))
        state = {}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # y   = x + F_1(rmsnorm(x))   (spec.nl:36)
        y = x + self.F_1(rmsnorm(x))
        # z   = y + F_2(rmsnorm(y))   (spec.nl:37)
        z = y + self.F_2(rmsnorm(y))
        # out = z + F_3(rmsnorm(z))   (spec.nl:38)
        out = z + self.F_3(rmsnorm(z))
        state = {}
        return out, state


class ModelRepeat(nn.Module):
    """One pass of `repeat`."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.attention = Attention(**new)
        self.cms = Cms(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.attention.reset_parameters()
        self.cms.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "attention": self.attention.initial_state(batch, like),
            "cms": self.cms.initial_state(batch, like),
        }

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # attention(rmsnorm(x))   (spec.nl:45)
        attention_out, attention = self.attention(rmsnorm(x), state["attention"])
        # x = x + attention(rmsnorm(x))   (spec.nl:45)
        x = x + attention_out
        # cms(x)   (spec.nl:46)
        cms_out, cms = self.cms(x, state["cms"])
        state = {"attention": attention, "cms": cms}
        return cms_out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # attention(rmsnorm(x))   (spec.nl:45)
        attention_out, attention = self.attention.step(rmsnorm(x), state["attention"])
        # x = x + attention(rmsnorm(x))   (spec.nl:45)
        x = x + attention_out
        # cms(x)   (spec.nl:46)
        cms_out, cms = self.cms.step(x, state["cms"])
        state = {"attention": attention, "cms": cms}
        return cms_out, state


class Model(nn.Module):
    """The model cms: tokens [B, T] -> logits [B, T, 256]."""

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
        # x[d] = embed(tokens)   (spec.nl:43)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:48)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:43)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:48)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
