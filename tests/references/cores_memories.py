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
