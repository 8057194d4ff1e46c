"""The chunkwise references of flash-linear-attention, in plain PyTorch, called as our cores are.

In: q, k [B, T, H, d_k], v [B, T, H, d_v], numbers [B, T, H], gates of channels [B, T, H, d_k]. Out:
[B, T, H, d_v]. Their scale of the queries is undone; chunk sizes are their own.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from torch import Tensor


def installed() -> bool:
    """Say whether fla-core is there."""
    return importlib.util.find_spec("fla") is not None


@cache
def naive(name: str) -> ModuleType:
    """Load one file of fla alone, without triton."""
    found = importlib.util.find_spec("fla")
    assert found is not None and found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / "ops" / name / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{name.replace('/', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Run the delta rule."""
    heads_first = [x.transpose(1, 2) for x in (scaled(q), k, v, beta)]
    out: Tensor = naive("delta_rule").delta_rule_chunkwise(*heads_first)[0]
    return out.transpose(1, 2)


def gated_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor) -> Tensor:
    """Run the gated delta rule."""
    run = naive("gated_delta_rule").naive_chunk_gated_delta_rule
    out: Tensor = run(scaled(q), k, v, a.log(), beta)[0]
    return out


def rwkv7(q: Tensor, g: Tensor, k: Tensor, v: Tensor, kappa: Tensor, share: Tensor) -> Tensor:
    """Run RWKV-7 as a diagonal decay and a product of low rank."""
    heads_first = [x.transpose(1, 2) for x in (scaled(q), k, v, -kappa, share * kappa, g.log())]
    out: Tensor = naive("generalized_delta_rule/dplr").dplr_chunkwise(*heads_first)[0]
    return out.transpose(1, 2)


def kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    """Run Kimi Delta Attention."""
    out: Tensor = naive("kda").naive_chunk_kda(q, k, v, g.log(), beta, scale=1.0)[0]
    return out


def scaled(q: Tensor) -> Tensor:
    """Undo the scale that is put on the queries."""
    return q * q.shape[-1] ** 0.5
