"""titans_lmm: Neural long-term memory of Titans (arXiv:2501.00663, eqs. 8-14)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    fast: every 1 token, chunk 16
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


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Give zeros in float32 or better, where states are kept."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


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


class Tensors(nn.Module):
    """Holds parameters by name, without values; whoever holds it draws them."""

    def __init__(self, device=None, dtype=None, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))


class MixerM(nn.Module):
    """Memory M: mlp(d_k -> 2*d_k -> d_v), one per heads; every 1 token.

    S = eta * S - theta * grad   (spec.nl:16)
    self = (1 - alpha) * self + S   (spec.nl:17)
    state  M [B, heads, 2*d_k, d_k]
    state  M [B, heads, d_v, 2*d_k]
    state  M.S.layer1.weight [B, heads, 2*d_k, d_k]
    state  M.S.layer2.weight [B, heads, d_v, 2*d_k]
    runs   sequential: its map has several parts
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

    def step(
        self,
        alpha: Tensor,
        eta: Tensor,
        theta: Tensor,
        k: Tensor,
        v: Tensor,
        M: dict[str, Tensor],
        M_S: dict[str, Tensor],
        M_start: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Move by one token."""
        layer2_weight = M_start["layer2.weight"]
        value = (1.0 - alpha).unsqueeze(2).unsqueeze(3)
        value_1 = eta.unsqueeze(2).unsqueeze(3)
        value_2 = theta.unsqueeze(2).unsqueeze(3)
        k = wide(k)
        value_3 = matvec(M_start["layer1.weight"], k)
        value_4 = F.gelu(value_3)
        difference = matvec(layer2_weight, value_4) - v
        product = 0.3989422804014327 * torch.exp(-0.5 * (value_3 * value_3))
        product_1 = 0.5 * (1.0 + torch.erf(0.7071067811865476 * value_3))
        value_5 = outer(matvec(layer2_weight.mT, difference) * (product_1 + value_3 * product), k)
        M_S_layer1_weight = value_1 * M_S["layer1.weight"] - value_2 * value_5
        M_layer1_weight = value * M["layer1.weight"] + M_S_layer1_weight
        M_S_layer2_weight = value_1 * M_S["layer2.weight"] - value_2 * outer(difference, value_4)
        M_layer2_weight = value * M["layer2.weight"] + M_S_layer2_weight
        M = {"layer1.weight": M_layer1_weight, "layer2.weight": M_layer2_weight}
        M_S = {"layer1.weight": M_S_layer1_weight, "layer2.weight": M_S_layer2_weight}
        return M, M_S

    def read_step(self, q: Tensor, M: dict[str, Tensor]) -> Tensor:
        """Read M(q) at one token."""
        return matvec(M["layer2.weight"], F.gelu(matvec(M["layer1.weight"], wide(q)))).to(q.dtype)


class Mixer(nn.Module):
    """Block mixer: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = nn.Linear(128, 128, bias=False, **new)
        self.W_k = nn.Linear(128, 128, bias=False, **new)
        self.W_v = nn.Linear(128, 128, bias=False, **new)
        self.W_o = nn.Linear(128, 128, bias=False, **new)
        self.W_lr = nn.Linear(128, 4, bias=True, **new)
        self.W_m = nn.Linear(128, 4, bias=True, **new)
        self.W_f = nn.Linear(128, 4, bias=True, **new)
        self.conv_q = Conv(128, 4, **new)
        self.conv_k = Conv(128, 4, **new)
        self.M = MixerM(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_o.reset_parameters()
        self.W_lr.reset_parameters()
        self.W_m.reset_parameters()
        self.W_f.reset_parameters()
        self.conv_q.reset_parameters()
        self.conv_k.reset_parameters()
        self.M.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        M, M_S = self.M.initial(batch, like)
        return {
            "M": M,
            "M.S": M_S,
            "M.start": M,
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
        # q = unit(silu(conv_q(W_q(x))))   (spec.nl:27)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_k = self.conv_k(
            self.W_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        # k = unit(silu(conv_k(W_k(x))))   (spec.nl:28)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        # v[heads, d_v] = silu(W_v(x))   (spec.nl:29)
        v = F.silu(wide(self.W_v(x).unflatten(-1, (4, 32))))
        # theta, eta, alpha = sigmoid(W_lr(x)), sigmoid(W_m(x)), sigmoid(W_f(x))   (spec.nl:30)
        theta = torch.sigmoid(wide(self.W_lr(x)))
        eta = torch.sigmoid(wide(self.W_m(x)))
        alpha = torch.sigmoid(wide(self.W_f(x)))
        M = state["M"]
        M_S = state["M.S"]
        M_start = state["M.start"]
        M_read_rows = []
        tokens = zip(
            alpha.unbind(1),
            eta.unbind(1),
            theta.unbind(1),
            k.unbind(1),
            v.unbind(1),
            q.unbind(1),
            strict=True,
        )
        for t, (alpha_t, eta_t, theta_t, k_t, v_t, q_t) in enumerate(tokens, start=position):
            M, M_S = self.M.step(alpha_t, eta_t, theta_t, k_t, v_t, M, M_S, M_start)
            M_read = self.M.read_step(q_t, M)
            M_start = M if (t + 1) % 16 == 0 else M_start
            M_read_rows.append(M_read)
        M_read_1 = torch.stack(M_read_rows, 1)
        # out = W_o(rmsnorm(M(q)))   (spec.nl:40)
        out = self.W_o(rmsnorm(M_read_1).flatten(-2).to(x.dtype))
        state = {
            "M": M,
            "M.S": M_S,
            "M.start": M_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "position": position + x.shape[1],
        }
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        M_start = state["M.start"]
        position = state["position"]
        convolved, conv_q = self.conv_q.step(
            self.W_q(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_q"]
        )
        # q = unit(silu(conv_q(W_q(x))))   (spec.nl:27)
        q = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        convolved, conv_k = self.conv_k.step(
            self.W_k(x).unflatten(-1, (4, 32)).flatten(-2), state["conv_k"]
        )
        # k = unit(silu(conv_k(W_k(x))))   (spec.nl:28)
        k = unit(F.silu(wide(convolved.unflatten(-1, (4, 32)))))
        # v[heads, d_v] = silu(W_v(x))   (spec.nl:29)
        v = F.silu(wide(self.W_v(x).unflatten(-1, (4, 32))))
        # theta, eta, alpha = sigmoid(W_lr(x)), sigmoid(W_m(x)), sigmoid(W_f(x))   (spec.nl:30)
        theta = torch.sigmoid(wide(self.W_lr(x)))
        eta = torch.sigmoid(wide(self.W_m(x)))
        alpha = torch.sigmoid(wide(self.W_f(x)))
        M, M_S = self.M.step(alpha, eta, theta, k, v, state["M"], state["M.S"], M_start)
        # out = W_o(rmsnorm(M(q)))   (spec.nl:40)
        out = self.W_o(rmsnorm(self.M.read_step(q, M)).flatten(-2).to(x.dtype))
        M_start = M if (position + 1) % 16 == 0 else M_start
        state = {
            "M": M,
            "M.S": M_S,
            "M.start": M_start,
            "conv_q": conv_q,
            "conv_k": conv_k,
            "position": position + 1,
        }
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
        # mixer(rmsnorm(x))   (spec.nl:46)
        mixer_out, mixer = self.mixer(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:46)
        x = x + mixer_out
        state = {"mixer": mixer}
        return x, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # mixer(rmsnorm(x))   (spec.nl:46)
        mixer_out, mixer = self.mixer.step(rmsnorm(x), state["mixer"])
        # x = x + mixer(rmsnorm(x))   (spec.nl:46)
        x = x + mixer_out
        state = {"mixer": mixer}
        return x, state


class Model(nn.Module):
    """The model titans_lmm: tokens [B, T] -> logits [B, T, 256]."""

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
        # x[d] = embed(tokens)   (spec.nl:45)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:47)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:45)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:47)
        logits = self.unembed(rmsnorm(x))
        state = {"repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
