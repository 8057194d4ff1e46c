"""How a matrix spreads over its directions: singular values, spectral entropy, effective rank.

    p_i = s_i / sum s        H = -sum p_i log p_i        effective rank = exp(H)

(Roy and Vetterli, EUSIPCO 2007.) H is 0 for a matrix of rank 1 and log min(m, n), the most there
is, where all singular values are equal.

In: tensors. Out: plain numbers; None where a matrix is zero and has no directions.
"""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor


class Spread(TypedDict):
    """Entropy and effective rank, the mean over a batch of matrices; `full` is min(m, n)."""

    entropy: float
    rank: float
    full: int


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of matrices [..., m, n], falling, in float32 or better."""
    wide = matrix.detach().to("cpu", torch.promote_types(matrix.dtype, torch.float32))
    found: Tensor = torch.linalg.svdvals(wide)
    return found


def entropy(values: Tensor) -> Tensor:
    """Return H of singular values [..., r]; nan where all are zero.

    >>> round(float(entropy(torch.ones(8)).exp()), 6)
    8.0
    >>> float(entropy(torch.tensor([3.0, 0.0, 0.0])))
    0.0
    """
    values = values.double()
    p = values / values.sum(-1, keepdim=True)
    found: Tensor = torch.special.entr(p).sum(-1)
    return found


def spread(matrix: Tensor) -> Spread | None:
    """Measure matrices [..., m, n]; None for what has one row or column, or is zero everywhere."""
    if matrix.dim() < 2 or min(matrix.shape[-2:]) < 2 or not bool(torch.isfinite(matrix).all()):
        return None
    found = entropy(singular_values(matrix)).flatten()
    found = found[~found.isnan()]
    if not len(found):
        return None
    return {
        "entropy": short(float(found.mean())),
        "rank": short(float(found.exp().mean())),
        "full": min(matrix.shape[-2:]),
    }


def short(value: float) -> float:
    """Round to five digits, so that a line of measurements stays readable.

    >>> short(0.123456789)
    0.12346
    """
    return float(f"{value:.5g}")


def number(value: float) -> float | None:
    """Give a number that JSON can hold: None for what is not finite."""
    return short(value) if math.isfinite(value) else None
