"""longhorn: Longhorn (arXiv:2407.14207)

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


class MixerS(nn.Module):
    """Memory S: vector(d_k), one per d_v; every 1 token.

    S = (1 - e * k^2) * S + e * v * k   (spec.nl:34)
    state  S [B, d_v, d_k]
    runs   sequential: affine, but its gate is per channel
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 256, 16)

    def step(self, e: Tensor, k: Tensor, v: Tensor, S: Tensor) -> Tensor:
        """Move by one token."""
        product = (1.0 - e.unsqueeze(2) * k.square().unsqueeze(1)) * S
        S = product + (e * v).unsqueeze(2) * k.unsqueeze(1)
        return S


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_v = nn.Linear(128, 256, bias=False, **new)
        self.W_z = nn.Linear(128, 256, bias=False, **new)
        self.W_q = nn.Linear(256, 16, bias=False, **new)
        self.W_k = nn.Linear(256, 16, bias=False, **new)
        self.W_r = nn.Linear(256, 8, bias=False, **new)
        self.W_step = nn.Linear(8, 256, bias=False, **new)
        self.W_o = nn.Linear(256, 128, bias=False, **new)
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
        # e    = step / (1 + step * ||k||^2)   (spec.nl:30)
        e = step / (1.0 + step * (wide(k) * wide(k)).sum(-1).unsqueeze(2))
        S = state["S"]
        S_state_rows = []
        for e_t, k_t, v_t in zip(e.unbind(1), k.unbind(1), v.unbind(1), strict=True):
            S = self.S.step(e_t, k_t, v_t, S)
            S_state_rows.append(S)
        S_state = torch.stack(S_state_rows, 1)
        # out = W_o((<S, q> + D * v) * silu(W_z(x)))   (spec.nl:37)
        out = self.W_o(
            (((S_state * q.unsqueeze(2)).sum(-1) + self.D * v) * F.silu(self.W_z(x))).to(x.dtype)
        )
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
        # e    = step / (1 + step * ||k||^2)   (spec.nl:30)
        e = step / (1.0 + step * (wide(k) * wide(k)).sum(-1).unsqueeze(1))
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
