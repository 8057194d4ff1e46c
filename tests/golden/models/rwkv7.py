"""rwkv7: RWKV-7 Goose (arXiv:2503.14456)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    fast: every 1 token
    slow: every 1 step
"""

from __future__ import annotations

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


def layernorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps)."""
    x_wide = wide(x)
    variance, mean = torch.var_mean(x_wide, dim, correction=0, keepdim=True)
    return ((x_wide - mean) * torch.rsqrt(variance + eps)).to(x.dtype)


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
    """[..., m, k], [..., k] -> [..., m]."""
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: [..., m], [..., n] -> [..., m, n]."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)


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
        # out = layernorm(x, gain = gain, offset = offset)   (spec.nl:34)
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

    S = S @ (diag(w) - outer(kappa, a * kappa)) + outer(v, k)   (spec.nl:79)
    state  S [B, heads, d_v, d_k]
    runs   sequential: affine, but 2 writes for each token
    """

    def initial(self, batch: int, like: Tensor) -> Tensor:
        """Give the state at the start."""
        return zeros(like, batch, 4, 32, 32)

    def step(self, w: Tensor, kappa: Tensor, a: Tensor, v: Tensor, k: Tensor, S: Tensor) -> Tensor:
        """Move by one token."""
        S = S * w.unsqueeze(2) - outer(matvec(S, wide(kappa)), wide(a * kappa)) + outer(v, k)
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
        self.W_r = nn.Linear(128, 128, bias=False, **new)
        self.W_k = nn.Linear(128, 128, bias=False, **new)
        self.W_v = nn.Linear(128, 128, bias=False, **new)
        self.W_o = nn.Linear(128, 128, bias=False, **new)
        self.w1 = nn.Linear(128, 32, bias=False, **new)
        self.a1 = nn.Linear(128, 32, bias=False, **new)
        self.v1 = nn.Linear(128, 32, bias=False, **new)
        self.g1 = nn.Linear(128, 64, bias=False, **new)
        self.w2 = nn.Linear(32, 128, bias=False, **new)
        self.a2 = nn.Linear(32, 128, bias=False, **new)
        self.v2 = nn.Linear(32, 128, bias=False, **new)
        self.g2 = nn.Linear(64, 128, bias=False, **new)
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
            self.x_r.copy_(1.0 - torch.pow(index(128, self.x_r.double()) / 128.0, 0.1))
        with torch.no_grad():
            self.x_g.copy_(1.0 - torch.pow(index(128, self.x_g.double()) / 128.0, 0.1))
        with torch.no_grad():
            self.x_w.copy_(1.0 - torch.pow(index(128, self.x_w.double()) / 128.0, 0.45))
        with torch.no_grad():
            self.x_a.copy_(1.0 - torch.pow(index(128, self.x_a.double()) / 128.0, 0.45))
        with torch.no_grad():
            self.x_k.copy_(1.0 - torch.pow(index(128, self.x_k.double()) / 128.0, 0.35))
        with torch.no_grad():
            self.x_v.copy_(1.0 - torch.pow(index(128, self.x_v.double()) / 128.0, 0.35))
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
        total = -5.5 + 6.0 * torch.pow(index(128, value).unflatten(-1, (4, 32)) / 127.0, 1.81)
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
        # r    = W_r(lerp(x, past, x_r))   (spec.nl:65)
        r = self.W_r((x_1 + self.x_r * difference).to(x.dtype)).unflatten(-1, (4, 32))
        value = (x_1 + self.x_v * difference).to(x.dtype)
        # own  = W_v(lerp(x, past, x_v))   (spec.nl:66)
        own = self.W_v(value).unflatten(-1, (4, 32))
        v_first = given(v_first, own)
        own = wide(own)
        # v    = lerp(own, v_first, sigmoid(v0 + v2(v1(lerp(x, past, x_v)))))   (spec.nl:67)
        value_1 = torch.sigmoid(self.v0 + wide(self.v2(self.v1(value)).unflatten(-1, (4, 32))))
        v = own + value_1 * (wide(v_first) - own)
        # w    = exp(-exp(-0.5) * sigmoid(w0 + w2(tanh(w1(lerp(x, past, x_w))))))   (spec.nl:68)
        value = self.w2(
            torch.tanh(wide(self.w1((x_1 + self.x_w * difference).to(x.dtype)))).to(x.dtype)
        )
        value_2 = torch.sigmoid(self.w0 + wide(value.unflatten(-1, (4, 32))))
        w = torch.exp(number(-0.6065306597126334, x).unsqueeze(0).unsqueeze(1) * value_2)
        # a    = sigmoid(a0 + a2(a1(lerp(x, past, x_a))))   (spec.nl:69)
        value = wide(
            self.a2(self.a1((x_1 + self.x_a * difference).to(x.dtype))).unflatten(-1, (4, 32))
        )
        a = torch.sigmoid(self.a0 + value)
        # g    = g2(sigmoid(g1(lerp(x, past, x_g))))   (spec.nl:70)
        g = self.g2(torch.sigmoid(self.g1((x + self.x_g * difference).to(x.dtype)))).unflatten(
            -1, (4, 32)
        )
        # key_  = W_k(lerp(x, past, x_k))   (spec.nl:72)
        key_ = self.W_k((x_1 + self.x_k * difference).to(x.dtype)).unflatten(-1, (4, 32))
        key_ = wide(key_)
        # kappa = unit(key_ * k_k)   (spec.nl:73)
        kappa = unit(key_ * self.k_k)
        # k     = key_ * lerp(1, a, k_a)   (spec.nl:74)
        k = key_ * (1.0 + self.k_a * (a - 1.0))
        S = state["S"]
        S_read_rows = []
        for w_t, kappa_t, a_t, v_t, k_t, r_t in zip(
            w.unbind(1),
            kappa.unbind(1),
            a.unbind(1),
            v.unbind(1),
            k.unbind(1),
            r.unbind(1),
            strict=True,
        ):
            S = self.S.step(w_t, kappa_t, a_t, v_t, k_t, S)
            S_read = self.S.read_step(r_t, S)
            S_read_rows.append(S_read)
        S_read_1 = torch.stack(S_read_rows, 1)
        # y     = layernorm(S(r), gain = gain, offset = offset, eps = 64e-5)   (spec.nl:82)
        y = layernorm(S_read_1, eps=0.00064) * self.gain + self.offset
        # bonus = <r, r_k * k> * v   (spec.nl:83)
        bonus = (r * (self.r_k * k)).sum(-1).unsqueeze(3) * v
        # out   = W_o(g * (y + bonus))   (spec.nl:84)
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
        # r    = W_r(lerp(x, past, x_r))   (spec.nl:65)
        r = self.W_r((x_1 + self.x_r * difference).to(x.dtype)).unflatten(-1, (4, 32))
        value = (x_1 + self.x_v * difference).to(x.dtype)
        # own  = W_v(lerp(x, past, x_v))   (spec.nl:66)
        own = self.W_v(value).unflatten(-1, (4, 32))
        v_first = given(v_first, own)
        own = wide(own)
        # v    = lerp(own, v_first, sigmoid(v0 + v2(v1(lerp(x, past, x_v)))))   (spec.nl:67)
        value_1 = torch.sigmoid(self.v0 + wide(self.v2(self.v1(value)).unflatten(-1, (4, 32))))
        v = own + value_1 * (wide(v_first) - own)
        # w    = exp(-exp(-0.5) * sigmoid(w0 + w2(tanh(w1(lerp(x, past, x_w))))))   (spec.nl:68)
        value = self.w2(
            torch.tanh(wide(self.w1((x_1 + self.x_w * difference).to(x.dtype)))).to(x.dtype)
        )
        value_2 = torch.sigmoid(self.w0 + wide(value.unflatten(-1, (4, 32))))
        w = torch.exp(number(-0.6065306597126334, x).unsqueeze(0).unsqueeze(1) * value_2)
        # a    = sigmoid(a0 + a2(a1(lerp(x, past, x_a))))   (spec.nl:69)
        value = wide(
            self.a2(self.a1((x_1 + self.x_a * difference).to(x.dtype))).unflatten(-1, (4, 32))
        )
        a = torch.sigmoid(self.a0 + value)
        # g    = g2(sigmoid(g1(lerp(x, past, x_g))))   (spec.nl:70)
        g = self.g2(torch.sigmoid(self.g1((x + self.x_g * difference).to(x.dtype)))).unflatten(
            -1, (4, 32)
        )
        # key_  = W_k(lerp(x, past, x_k))   (spec.nl:72)
        key_ = self.W_k((x_1 + self.x_k * difference).to(x.dtype)).unflatten(-1, (4, 32))
        key_ = wide(key_)
        # kappa = unit(key_ * k_k)   (spec.nl:73)
        kappa = unit(key_ * self.k_k)
        # k     = key_ * lerp(1, a, k_a)   (spec.nl:74)
        k = key_ * (1.0 + self.k_a * (a - 1.0))
        S = self.S.step(w, kappa, a, v, k, state["S"])
        # y     = layernorm(S(r), gain = gain, offset = offset, eps = 64e-5)   (spec.nl:82)
        y = layernorm(self.S.read_step(r, S), eps=0.00064) * self.gain + self.offset
        # bonus = <r, r_k * k> * v   (spec.nl:83)
        bonus = (r * (self.r_k * k)).sum(-1).unsqueeze(2) * v
        # out   = W_o(g * (y + bonus))   (spec.nl:84)
        out = self.W_o((g * (y + bonus)).flatten(-2).to(x.dtype))
        state = {"S": S, "shift_1": shift_1}
        return (out, v_first), state


class ChannelMix(nn.Module):
    """Block channel_mix: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.x_k = nn.Parameter(torch.empty(128, **new))
        self.W_k = nn.Linear(128, 512, bias=False, **new)
        self.W_v = nn.Linear(512, 128, bias=False, **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        with torch.no_grad():
            self.x_k.copy_(1.0 - torch.pow(index(128, self.x_k.double()) / 128.0, 0.0625))
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
        # out = W_v(relu(W_k(lerp(x, shift(x), x_k)))^2)   (spec.nl:92)
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
        # ln(x)   (spec.nl:100)
        ln_out, ln = self.ln(x, state["ln"])
        # time_mix(ln(x), v_first)   (spec.nl:100)
        time_mix_out, time_mix = self.time_mix(ln_out, v_first, state["time_mix"])
        time_mix_out_1, time_mix_v_first = time_mix_out
        # x = x + y   (spec.nl:101)
        x = x + time_mix_out_1
        # ln(x)   (spec.nl:102)
        ln_1_out, ln_1 = self.ln_1(x, state["ln_1"])
        # channel_mix(ln(x))   (spec.nl:102)
        channel_mix_out, channel_mix = self.channel_mix(ln_1_out, state["channel_mix"])
        # x = x + channel_mix(ln(x))   (spec.nl:102)
        x = x + channel_mix_out
        state = {"ln": ln, "time_mix": time_mix, "ln_1": ln_1, "channel_mix": channel_mix}
        return (time_mix_v_first, x), state

    def step(
        self, x: Tensor, v_first: Tensor | None, state: dict[str, Any] | None = None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Run one token: x [B, d], v_first [B, heads, d_v]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # ln(x)   (spec.nl:100)
        ln_out, ln = self.ln.step(x, state["ln"])
        # time_mix(ln(x), v_first)   (spec.nl:100)
        time_mix_out, time_mix = self.time_mix.step(ln_out, v_first, state["time_mix"])
        time_mix_out_1, time_mix_v_first = time_mix_out
        # x = x + y   (spec.nl:101)
        x = x + time_mix_out_1
        # ln(x)   (spec.nl:102)
        ln_1_out, ln_1 = self.ln_1.step(x, state["ln_1"])
        # channel_mix(ln(x))   (spec.nl:102)
        channel_mix_out, channel_mix = self.channel_mix.step(ln_1_out, state["channel_mix"])
        # x = x + channel_mix(ln(x))   (spec.nl:102)
        x = x + channel_mix_out
        state = {"ln": ln, "time_mix": time_mix, "ln_1": ln_1, "channel_mix": channel_mix}
        return (time_mix_v_first, x), state


class Model(nn.Module):
    """The model rwkv7: tokens [B, T] -> logits [B, T, 256]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = nn.Linear(128, 256, bias=False, **new)
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
        # x[d] = embed(tokens)   (spec.nl:97)
        x = self.embed(tokens)
        # ln(x)   (spec.nl:98)
        ln_out, ln = self.ln(x, state["ln"])
        v_first = None
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            (v_first, ln_out), repeat_states[str(i)] = layer(
                ln_out, v_first, state["repeat"][str(i)]
            )
        # ln(x)   (spec.nl:104)
        ln_1_out, ln_1 = self.ln_1(ln_out, state["ln_1"])
        # logits = unembed(ln(x))   (spec.nl:104)
        logits = self.unembed(ln_1_out)
        state = {"ln": ln, "repeat": repeat_states, "ln_1": ln_1}
        return logits, state

    def step(
        self, tokens: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: tokens [B]."""
        if state is None:
            state = self.initial_state(tokens.shape[0], self.embed.weight)
        # x[d] = embed(tokens)   (spec.nl:97)
        x = self.embed(tokens)
        # ln(x)   (spec.nl:98)
        ln_out, ln = self.ln.step(x, state["ln"])
        v_first = None
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            (v_first, ln_out), repeat_states[str(i)] = layer.step(
                ln_out, v_first, state["repeat"][str(i)]
            )
        # ln(x)   (spec.nl:104)
        ln_1_out, ln_1 = self.ln_1.step(ln_out, state["ln_1"])
        # logits = unembed(ln(x))   (spec.nl:104)
        logits = self.unembed(ln_1_out)
        state = {"ln": ln, "repeat": repeat_states, "ln_1": ln_1}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()
