"""What emitted code is measured against: loops and steps as one writes them by hand, and fla's
naive chunkwise references.

q, k [B, T, H, d_k], v [B, T, H, d_v], beta, a [B, T, H]; the result is [B, T, H, d_v]. `a` is None
for the delta rule without a decay.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loop(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor | None = None) -> Tensor:
    """Run the rule token by token: S <- a S; S <- S + beta (v - S k) k^T; out = S q."""
    S = q.new_zeros(q.shape[0], q.shape[2], v.shape[-1], k.shape[-1])
    out = []
    for t in range(q.shape[1]):
        S, y = token(S, q[:, t], k[:, t], v[:, t], beta[:, t], None if a is None else a[:, t])
        out.append(y)
    return torch.stack(out, 1)


def token(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run one token of the rule; give the state and what is read."""
    if a is not None:
        S = a[..., None, None] * S
    error = v - (S @ k[..., None]).squeeze(-1)
    S = S + (beta[..., None] * error)[..., :, None] * k[..., None, :]
    return S, (S @ q[..., None]).squeeze(-1)


def fla(name: str) -> ModuleType | None:
    """Load one file of fla alone, without triton; None where fla is not installed."""
    found = importlib.util.find_spec("fla")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / "ops" / name / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chunkwise(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor | None = None) -> Tensor:
    """Run fla's naive chunkwise reference, with its own chunk sizes; its scale is undone."""
    q = q * q.shape[-1] ** 0.5
    if a is None:
        heads_first = [x.transpose(1, 2) for x in (q, k, v, beta)]
        out: Tensor = _module("delta_rule").delta_rule_chunkwise(*heads_first)[0]
        return out.transpose(1, 2)
    gated = _module("gated_delta_rule").naive_chunk_gated_delta_rule
    found: Tensor = gated(q, k, v, a.log(), beta)[0]
    return found


_loaded: dict[str, ModuleType] = {}


def _module(name: str) -> ModuleType:
    if name not in _loaded:
        module = fla(name)
        assert module is not None, "fla-core is not installed"
        _loaded[name] = module
    return _loaded[name]


# ---- the layer with its projections, written by hand over an emitted layer's parameters ---------


def layer(m: Any, x: Tensor, heads: int, core: Any) -> Tensor:
    """Run DeltaNet or Gated DeltaNet around `core`, with the parameters of the emitted block m.

    It does what the shipped specs say: short convolutions, unit queries and keys, a norm per head.
    """
    q = F.normalize(F.silu(_conv(m.W_q(x), m.conv_q)).unflatten(-1, (heads, -1)), dim=-1)
    k = F.normalize(F.silu(_conv(m.W_k(x), m.conv_k)).unflatten(-1, (heads, -1)), dim=-1)
    v = F.silu(_conv(m.W_v(x), m.conv_v)).unflatten(-1, (heads, -1))
    beta = torch.sigmoid(m.W_beta(x))
    a = torch.exp(-m.A.exp() * F.softplus(m.W_dt(x) + m.b)) if hasattr(m, "A") else None
    y = F.rms_norm(core(q, k, v, beta, a), (v.shape[-1],), m.gain, 1e-6)
    if hasattr(m, "W_g"):
        y = y * F.silu(m.W_g(x)).unflatten(-1, (heads, -1))
    out: Tensor = m.W_o(y.flatten(-2))
    return out


def _conv(x: Tensor, conv: nn.Module) -> Tensor:
    padded = F.pad(x.mT, (conv.weight.shape[-1] - 1, 0))
    return F.conv1d(padded, conv.weight, groups=x.shape[-1]).mT


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
    a = torch.exp(-m.A.exp() * F.softplus(m.W_dt(x) + m.b)) if hasattr(m, "A") else None
    S, y = token(S, q, k, v, torch.sigmoid(m.W_beta(x)), a)
    y = F.rms_norm(y, (v.shape[-1],), m.gain, 1e-6)
    if hasattr(m, "W_g"):
        y = y * F.silu(m.W_g(x)).unflatten(-1, (heads, -1))
    return m.W_o(y.flatten(-2)), [S, *windows]
