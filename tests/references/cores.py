"""The recurrences of the papers, one plain loop each.

q, k [B, T, H, d_k], v [B, T, H, d_v], gates [B, T, H] or [B, T, H, d_k], state S [B, H, d_v, d_k]:
a write is v k^T and a read S q. Each returns the outputs [B, T, H, d_v] and the last state.
"""

from __future__ import annotations

import torch
from torch import Tensor

Result = tuple[Tensor, Tensor]


def outer(v: Tensor, k: Tensor) -> Tensor:
    return v[..., :, None] * k[..., None, :]


def read(S: Tensor, q: Tensor) -> Tensor:
    return torch.einsum("bhvk,bhk->bhv", S, q)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, S: Tensor) -> Result:
    """S = S + v k^T (Katharopoulos et al., 2020, without the normaliser)."""
    out = []
    for t in range(q.shape[1]):
        S = S + outer(v[:, t], k[:, t])
        out.append(read(S, q[:, t]))
    return torch.stack(out, 1), S


def decayed_attention(q: Tensor, k: Tensor, v: Tensor, a: Tensor, S: Tensor) -> Result:
    """S = S Diag(a) + v k^T: RetNet (2307.08621), Mamba-2, GLA (2312.06635) by what a is."""
    out = []
    for t in range(q.shape[1]):
        decay = a[:, t]
        S = S * (decay[..., None, :] if decay.dim() == 3 else decay[..., None, None])
        S = S + outer(v[:, t], k[:, t])
        out.append(read(S, q[:, t]))
    return torch.stack(out, 1), S


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor) -> Result:
    """S = S (I - b k k^T) + b v k^T (2406.06484)."""
    out = []
    for t in range(q.shape[1]):
        error = v[:, t] - read(S, k[:, t])
        S = S + outer(beta[:, t, :, None] * error, k[:, t])
        out.append(read(S, q[:, t]))
    return torch.stack(out, 1), S


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, a: Tensor, beta: Tensor, S: Tensor) -> Result:
    """S = a S (I - b k k^T) + b v k^T (2412.06464): decay first, then the delta rule."""
    out = []
    for t in range(q.shape[1]):
        S = S * (a[:, t, ..., None] if a.dim() == 3 else a[:, t])[..., None, :]
        error = v[:, t] - read(S, k[:, t])
        S = S + outer(beta[:, t, :, None] * error, k[:, t])
        out.append(read(S, q[:, t]))
    return torch.stack(out, 1), S


def rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, S: Tensor
) -> Result:
    """S = S (Diag(w) - kappa (a . kappa)^T) + v k^T (2503.14456, eqs. 16-17)."""
    out = []
    for t in range(r.shape[1]):
        removed = outer(read(S, kappa[:, t]), a[:, t] * kappa[:, t])
        S = S * w[:, t, :, None, :] - removed + outer(v[:, t], k[:, t])
        out.append(read(S, r[:, t]))
    return torch.stack(out, 1), S


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, scale: float | None = None
) -> Tensor:
    """Causal softmax attention; a window of w tokens includes the present one."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = []
    for t in range(q.shape[1]):
        first = 0 if window is None else max(t + 1 - window, 0)
        score = scale * torch.einsum("bhd,bshd->bhs", q[:, t], k[:, first : t + 1])
        out.append(torch.einsum("bhs,bshd->bhd", score.softmax(-1), v[:, first : t + 1]))
    return torch.stack(out, 1)
