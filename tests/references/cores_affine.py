"""More recurrences of papers, one plain loop each; shapes are those of `cores`.

They differ from the delta rule in what is erased, where it is read, how often a token writes, or on
which side of the state all this happens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.references.cores import Result, outer, read


def gated_delta_rule_2(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, e: Tensor, w: Tensor, S: Tensor
) -> Result:
    """S = S Diag(alpha) (I - (e . k) k^T) + (w . v) k^T (2605.22791)."""
    out = []
    for t in range(q.shape[1]):
        S = S * alpha[:, t, :, None, :]
        S = S + outer(w[:, t] * v[:, t] - read(S, e[:, t] * k[:, t]), k[:, t])
        out.append(read(S, q[:, t]))
    return torch.stack(out, 1), S


def comba(q: Tensor, k: Tensor, v: Tensor, p: Tensor, a: Tensor, beta: Tensor, S: Tensor) -> Result:
    """S = S (a - b p k^T) + b v k^T (2506.02475): the feedback S p is read before the decay."""
    out = []
    for t in range(q.shape[1]):
        error = v[:, t] - read(S, p[:, t])
        S = a[:, t, :, None, None] * S + outer(beta[:, t, :, None] * error, k[:, t])
        out.append(read(S, q[:, t]))
    return torch.stack(out, 1), S


def gated_delta_product(
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    betas: Sequence[Tensor],
    a: Tensor,
    S: Tensor,
) -> Result:
    """S = a S, then S = S (I - b_j k_j k_j^T) + b_j v_j k_j^T for each j in turn (2502.10297)."""
    out = []
    for t in range(q.shape[1]):
        S = a[:, t, :, None, None] * S
        for k, v, beta in zip(ks, vs, betas, strict=True):
            error = v[:, t] - read(S, k[:, t])
            S = S + outer(beta[:, t, :, None] * error, k[:, t])
        out.append(read(S, q[:, t]))
    return torch.stack(out, 1), S


def gated_oja(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, S: Tensor) -> Result:
    """S = Diag(alpha) S, then S = S + b v (k - S^T v)^T; alpha [B, T, H, d_v]."""
    out = []
    for t in range(q.shape[1]):
        S = alpha[:, t, :, :, None] * S
        error = k[:, t] - read(S.mT, v[:, t])
        S = S + outer(beta[:, t, :, None] * v[:, t], error)
        out.append(read(S, q[:, t]))
    return torch.stack(out, 1), S


def longhorn(
    q: Tensor, k: Tensor, v: Tensor, step: Tensor, S: Tensor, exact: bool = False
) -> Result:
    """Each row s of S [B, d_v, d_k] minimises |s' - s|^2 + step (s' k - v)^2 (2407.14207).

    q, k [B, T, d_k], v, step [B, T, d_v]. `exact` solves for the minimum; else only the diagonal of
    k k^T in its closed form is kept, as the paper's layer does.
    """
    out = []
    eye = torch.eye(k.shape[-1], dtype=k.dtype)
    for t in range(q.shape[1]):
        kk, b = k[:, t], step[:, t, :, None]
        if exact:
            left = eye + b[..., None] * outer(kk, kk)[:, None]
            right = S + b * v[:, t, :, None] * kk[:, None]
            S = torch.linalg.solve(left, right)
        else:
            e = b / (1 + b * kk.pow(2).sum(-1)[:, None, None])
            S = S - e * kk.pow(2)[:, None] * S + e * v[:, t, :, None] * kk[:, None]
        out.append(torch.einsum("bvk,bk->bv", S, q[:, t]))
    return torch.stack(out, 1), S
