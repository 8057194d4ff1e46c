"""Recurrences that look at several tokens or hold several states, one plain loop each.

Shapes as in `cores`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references.cores import Result, outer, read


def omega_rule(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, gamma: Tensor, M: Tensor, window: int
) -> Result:
    """M = alpha M - sum over the last i of gamma_i (M k_i - v_i) k_i^T (2505.23735, eq. 11)."""
    out = []
    for t in range(q.shape[1]):
        step = torch.zeros_like(M)
        for i in range(max(t + 1 - window, 0), t + 1):
            error = read(M, k[:, i]) - v[:, i]
            step = step + outer(gamma[:, i, :, None] * error, k[:, i])
        M = alpha[:, t, :, None, None] * M - step
        out.append(read(M, q[:, t]))
    return torch.stack(out, 1), M


def mesa(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y = M q with the M that is least in sum_i w_i |M k_i - v_i|^2 + tr(M Diag(strength) M^T).

    w_i is beta_i times all gamma after i (2506.05233, eq. 5). The regression is solved anew for
    each token, by least squares with sqrt(w) k and sqrt(strength) stacked. Returns y and the sums
    of w v k^T and w k k^T.
    """
    out = []
    weights = q.new_zeros(*q.shape[:1], q.shape[2], 0)
    ridge = torch.diag_embed(strength.sqrt()).expand(q.shape[0], *strength.shape, -1)
    for t in range(q.shape[1]):
        weights = torch.cat([gamma[:, t, :, None] * weights, beta[:, t, :, None]], -1)
        root = weights.sqrt()[..., None]
        keys = root * k[:, : t + 1].transpose(1, 2)
        values = root * v[:, : t + 1].transpose(1, 2)
        design = torch.cat([keys, ridge], -2)
        goal = torch.cat([values, values.new_zeros(*ridge.shape[:-1], v.shape[-1])], -2)
        M = torch.linalg.pinv(design) @ goal
        out.append(torch.einsum("bhkv,bhk->bhv", M, q[:, t]))
    k_last, v_last = k.transpose(1, 2), v.transpose(1, 2)
    H = torch.einsum("bht,bhtk,bhtl->bhkl", weights, k_last, k_last)
    G = torch.einsum("bht,bhtv,bhtk->bhvk", weights, v_last, k_last)
    return torch.stack(out, 1), G, H
