"""Hope, Hope-Attention and continuum memory systems by hand, as `library` has them.

How their levels learn stands in `test_cms`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references import cores
from tests.references.layers import conv, heads, linear, rmsnorm, rope, unit
from tests.references.library_test_time import self_modifying_chunks
from tests.references.mixers import Dims, Mixed, P, out, split
from tests.references.titans import gelu


def attended(p: P, q: Tensor, k: Tensor, x: Tensor, dims: Dims) -> Mixed:
    """Softmax attention over all pairs, scores <k, q> / sqrt(d_k)."""
    v = split(p, "W_v", x, dims)
    pairs = {"key": k.transpose(1, 2), "value": v.transpose(1, 2)}
    return out(p, cores.softmax_attention(q, k, v, None)), {"A": pairs}


def attention(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k = (rope(split(p, n, x, dims)) for n in ("W_q", "W_k"))
    return attended(p, q, k, x, dims)


def hope_attention(p: P, x: Tensor, dims: Dims) -> Mixed:
    """The same with q and k of length 1 after a convolution, and a scale of each head."""
    q, k = (
        rope(unit(heads(conv(p, f"conv_{of}", linear(p, f"W_{of}", x)), dims["heads"])))
        for of in "qk"
    )
    return attended(p, q * p["scale"][:, None] * dims["d_k"] ** 0.5, k, x, dims)


def hope(p: P, x: Tensor, dims: Dims) -> Mixed:
    return self_modifying_chunks(p, x, dims)


def answer(p: P, name: str, x: Tensor) -> Tensor:
    return gelu(x @ p[f"{name}.layer1.weight"].mT) @ p[f"{name}.layer2.weight"].mT


def chain(p: P, x: Tensor) -> Tensor:
    """F_3 after F_2 after F_1, each with a norm before it and a residual (eq. 70)."""
    for name in ("F_1", "F_2", "F_3"):
        x = x + answer(p, name, rmsnorm(x))
    return x


def independent(p: P, x: Tensor) -> Tensor:
    """A learned sum of what the MLPs say to the same input (eq. 74)."""
    y = rmsnorm(x)
    return x + torch.stack([p[f"a_{n}"] * answer(p, f"F_{n}", y) for n in (1, 2, 3)]).sum(0)


def nested(p: P, x: Tensor) -> Tensor:
    """F_1 alone; F_2 and F_3 are what it begins as (eq. 72)."""
    return x + answer(p, "F_1", rmsnorm(x))
