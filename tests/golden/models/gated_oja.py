"""gated_oja: Gated Oja rule (J. Hu, in flash-linear-attention; arXiv:2512.24695)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    fast: every 1 token
    slow: every 1 step
"""

from __future__ import annotations

import math
from typing import Any

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


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.logaddexp(x, x.new_zeros(()))


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
    """[..., m, k], [..., k] -> [..., m]."""
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


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


class MixerS(nn.Module):
    """Memory S: linear(d_k -> d_v), one per heads; every 1 token.

    S = diag(alpha) @ S   (spec.nl:42)
    S = S - beta * grad(at = S)   (spec.nl:43)
    state  S [B, heads, d_v, d_k]
    runs   sequential: affine, but its gate is per channel
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 4, 32, 32)

    def step(self, alpha: Tensor, beta: Tensor, v: Tensor, k: Tensor, S: Tensor) -> Tensor:
        """Move by one token."""
        v_1 = wide(v)
        difference = outer(v_1, matvec((S.mT * alpha.unsqueeze(2)).mT.mT, v_1)) - outer(v, k)
        S = (S.mT * alpha.unsqueeze(2)).mT - beta.unsqueeze(2).unsqueeze(3) * difference
        return S

    def read_step(self, q: Tensor, S: Tensor) -> Tensor:
        """Read S(q) at one token."""
        return read_linear(wide(q), S, 1).to(q.dtype)


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = nn.Linear(128, 128, bias=False, **new)
        self.W_k = nn.Linear(128, 128, bias=False, **new)
        self.W_v = nn.Linear(128, 128, bias=False, **new)
        self.W_beta = nn.Linear(128, 4, bias=False, **new)
        self.F_down = nn.Linear(128, 32, bias=False, **new)
        self.G_down = nn.Linear(128, 32, bias=False, **new)
        self.F_up = nn.Linear(32, 128, bias=False, **new)
        self.G_up = nn.Linear(32, 128, bias=True, **new)
        self.W_o = nn.Linear(128, 128, bias=False, **new)
        self.conv_q = Conv(128, 4, **new)
        self.conv_k = Conv(128, 4, **new)
        self.conv_v = Conv(128, 4, **new)
        self.A = nn.Parameter(torch.empty(4, **new))
        self.b = nn.Parameter(torch.empty(4, 32, **new))
        self.gain = nn.Parameter(torch.empty(32, **new))
        self.S = MixerS()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_beta.reset_parameters()
        self.F_down.reset_parameters()
        self.G_down.reset_parameters()
        self.F_up.reset_parameters()
        self.G_up.reset_parameters()
        self.W_o.reset_parameters()
        self.conv_q.reset_parameters()
        self.conv_k.reset_parameters()
        self.conv_v.reset_parameters()
        with torch.no_grad():
            self.A.copy_(torch.log(1.0 + 15.0 * (index(4, self.A.double()) + 0.5) / 4.0))
        value = torch.log(
            torch.exp(torch.pow(10.0, (2.0 * index(32, self.b.double()) + 1.0) / 32.0 - 3.0)) - 1.0
        )
        result = value.unsqueeze(0)
        with torch.no_grad():
            self.b.copy_(result)
        nn.init.ones_(self.gain)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        S = self.S.initial(batch, like)
        return {
            "S": S,
            "conv_q": like.new_zeros(batch, 3, 128),
            "conv_k": like.new_zeros(batch, 3, 128),
            "conv_v": like.new_zeros(batch, 3, 128),
        }

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        convolved, conv_q = self.conv_q(
            self.W_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # q     = unit(silu(conv_q(W_q(x))))   (spec.nl:31)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_k = self.conv_k(
            self.W_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        # k     = unit(silu(conv_k(W_k(x))))   (spec.nl:32)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_v = self.conv_v(
            self.W_v(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_v"]
        )
        # v     = unit(silu(conv_v(W_v(x))))   (spec.nl:33)
        v = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        # beta  = sigmoid(W_beta(x))   (spec.nl:34)
        beta = torch.sigmoid(wide(self.W_beta(x)))
        # alpha = exp(-exp(A) * softplus(F_up(F_down(x)) + b))   (spec.nl:35)
        value = softplus(wide(self.F_up(self.F_down(x)).unflatten(-1, (4, 32))) + self.b)
        alpha = torch.exp((-wide(torch.exp(self.A))).unsqueeze(1) * value)
        S = state["S"]
        S_read_rows = []
        for alpha_t, beta_t, v_t, k_t, q_t in zip(
            alpha.unbind(1), beta.unbind(1), v.unbind(1), k.unbind(1), q.unbind(1), strict=True
        ):
            S = self.S.step(alpha_t, beta_t, v_t, k_t, S)
            S_read = self.S.read_step(q_t, S)
            S_read_rows.append(S_read)
        S_read_1 = torch.stack(S_read_rows, 1)
        # out = W_o(rmsnorm(S(q), gain = gain) * sigmoid(G_up(G_down(x))))   (spec.nl:47)
        value = torch.sigmoid(self.G_up(self.G_down(x)).unflatten(-1, (4, 32)))
        out = self.W_o((rmsnorm(S_read_1) * self.gain.unsqueeze(0) * value).flatten(-2).to(x.dtype))
        state = {"S": S, "conv_q": conv_q, "conv_k": conv_k, "conv_v": conv_v}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        convolved, conv_q = self.conv_q.step(
            self.W_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # q     = unit(silu(conv_q(W_q(x))))   (spec.nl:31)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_k = self.conv_k.step(
            self.W_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        # k     = unit(silu(conv_k(W_k(x))))   (spec.nl:32)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_v = self.conv_v.step(
            self.W_v(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_v"]
        )
        # v     = unit(silu(conv_v(W_v(x))))   (spec.nl:33)
        v = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        # beta  = sigmoid(W_beta(x))   (spec.nl:34)
        beta = torch.sigmoid(wide(self.W_beta(x)))
        # alpha = exp(-exp(A) * softplus(F_up(F_down(x)) + b))   (spec.nl:35)
        value = softplus(wide(self.F_up(self.F_down(x)).unflatten(-1, (4, 32))) + self.b)
        alpha = torch.exp((-wide(torch.exp(self.A))).unsqueeze(1) * value)
        S = self.S.step(alpha, beta, v, k, state["S"])
        # out = W_o(rmsnorm(S(q), gain = gain) * sigmoid(G_up(G_down(x))))   (spec.nl:47)
        value = torch.sigmoid(self.G_up(self.G_down(x)).unflatten(-1, (4, 32)))
        value_1 = (rmsnorm(self.S.read_step(q, S)) * self.gain.unsqueeze(0) * value).flatten(-2)
        out = self.W_o(value_1.to(x.dtype))
        state = {"S": S, "conv_q": conv_q, "conv_k": conv_k, "conv_v": conv_v}
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
        # out = F(x)   (spec.nl:53)
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
        # mixer(rmsnorm(x))   (spec.nl:60)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:60)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:61)
        ffn_out, ffn = self.ffn(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:61)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:60)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:60)
        x = x + mixer_out
        # ffn(rmsnorm(x))   (spec.nl:61)
        ffn_out, ffn = self.ffn.step(rmsnorm(x), state["ffn"])
        # x = x + ffn(rmsnorm(x))   (spec.nl:61)
        x = x + ffn_out
        state = {"mixer": mixer, "ffn": ffn}
        return x, state


class Model(nn.Module):
    """The model gated_oja: tokens [B, T] -> logits [B, T, 256]."""

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
        # x[d] = embed(tokens)   (spec.nl:58)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:63)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:58)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:63)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
