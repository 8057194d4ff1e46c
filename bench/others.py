"""What emitted code is measured against: loops, steps and layers as one writes them by hand.

q, k, kappa, share [B, T, H, d_k], v [B, T, H, d_v], numbers [B, T, H], gates g of the channels
[B, T, H, d_k]; the result is [B, T, H, d_v]. A token of the same has no T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# from a state and the streams of one token to the new state and what is read
Token = Callable[..., tuple[Any, Tensor]]


def loop(token: Token, streams: Sequence[Tensor], states: int = 1) -> Tensor:
    """Run a memory token by token, from states of zeros; keys and values have one size."""
    q = streams[0]
    zero = q.new_zeros(q.shape[0], q.shape[2], q.shape[-1], q.shape[-1])
    S: Any = zero if states == 1 else (zero,) * states
    out = []
    for t in range(q.shape[1]):
        S, y = token(S, *(x[:, t] for x in streams))
        out.append(y)
    return torch.stack(out, 1)


def delta(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S <- a S; S <- S + beta (v - S k) k^T."""
    if a is not None:
        S = a[..., None, None] * S
    S = S + outer(beta[..., None] * (v - read(S, k)), k)
    return S, read(S, q)


def kda(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """S <- S Diag(g); S <- S + beta (v - S k) k^T."""
    S = S * g[..., None, :]
    S = S + outer(beta[..., None] * (v - read(S, k)), k)
    return S, read(S, q)


def gla(S: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """S <- S Diag(g) + v k^T."""
    S = S * g[..., None, :] + outer(v, k)
    return S, read(S, q)


def retention(S: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """S <- gamma S + v k^T, with gamma = 1 - 2^(-5 - head)."""
    gamma = 1 - 2.0 ** (-5 - torch.arange(S.shape[1], device=S.device, dtype=S.dtype))
    S = gamma[:, None, None] * S + outer(v, k)
    return S, read(S, q)


def rwkv7(
    S: Tensor, q: Tensor, g: Tensor, k: Tensor, v: Tensor, kappa: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """S <- S Diag(g) - (S kappa) (share kappa)^T + v k^T."""
    S = S * g[..., None, :] - outer(read(S, kappa), share * kappa) + outer(v, k)
    return S, read(S, q)


def titans(
    state: tuple[Tensor, Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor,
    alpha: Tensor,
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """S <- eta S - theta (M k - v) k^T; M <- (1 - alpha) M + S."""
    M, S = state
    S = eta[..., None, None] * S - outer(theta[..., None] * (read(M, k) - v), k)
    M = (1 - alpha)[..., None, None] * M + S
    return (M, S), read(M, q)


def read(S: Tensor, q: Tensor) -> Tensor:
    """S q."""
    return (S @ q[..., None]).squeeze(-1)


def outer(e: Tensor, k: Tensor) -> Tensor:
    """e k^T."""
    return e[..., :, None] * k[..., None, :]


# ---- the layers with their projections, over an emitted layer's parameters ----------------------


def layer(m: Any, x: Tensor, heads: int, core: Callable[..., Tensor]) -> Tensor:
    """Run DeltaNet, Gated DeltaNet or Titans around `core`, with the emitted block m's parameters.

    It does what the shipped specs say: short convolutions, unit queries and keys, a norm per head.
    """
    q = F.normalize(F.silu(_conv(m.W_q(x), m.conv_q)).unflatten(-1, (heads, -1)), dim=-1)
    k = F.normalize(F.silu(_conv(m.W_k(x), m.conv_k)).unflatten(-1, (heads, -1)), dim=-1)
    v = F.silu(_conv(m.W_v(x), m.conv_v)).unflatten(-1, (heads, -1))
    return _after(m, x, core(q, k, v, *_gates(m, x)))


def layer_step(m: Any, x: Tensor, state: list[Tensor], heads: int) -> tuple[Tensor, list[Tensor]]:
    """Run one token of the same layer; `state` is S and the three windows of the convolutions."""
    S, *pasts = state
    mixed, windows = [], []
    for linear, conv, past in zip(
        (m.W_q, m.W_k, m.W_v), (m.conv_q, m.conv_k, m.conv_v), pasts, strict=True
    ):
        window = torch.cat((past, linear(x)[:, None]), 1)
        mixed.append(F.silu((window * conv.weight[:, 0].mT).sum(1)).unflatten(-1, (heads, -1)))
        windows.append(window[:, 1:])
    q, k, v = F.normalize(mixed[0], dim=-1), F.normalize(mixed[1], dim=-1), mixed[2]
    S, y = delta(S, q, k, v, *_gates(m, x))
    return _after(m, x, y), [S, *windows]


def _conv(x: Tensor, conv: nn.Module) -> Tensor:
    padded = F.pad(x.mT, (conv.weight.shape[-1] - 1, 0))
    return F.conv1d(padded, conv.weight, groups=x.shape[-1]).mT


def _gates(m: Any, x: Tensor) -> list[Tensor]:
    """What the memory is given beside query, key and value."""
    if hasattr(m, "W_theta"):
        theta, eta = torch.sigmoid(m.W_theta(x)), torch.sigmoid(m.W_eta(x))
        return [theta, eta, torch.sigmoid(m.W_alpha(x) - 4)]
    beta = torch.sigmoid(m.W_beta(x))
    return (
        [beta, torch.exp(-m.A.exp() * F.softplus(m.W_dt(x) + m.b))] if hasattr(m, "A") else [beta]
    )


def _after(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """The norm of each head's output, the gate and the last projection."""
    y = F.rms_norm(y, (y.shape[-1],), m.gain, 1e-6)
    if hasattr(m, "W_g"):
        y = y * F.silu(m.W_g(x)).unflatten(-1, y.shape[-2:])
    out: Tensor = m.W_o(y.flatten(-2))
    return out
