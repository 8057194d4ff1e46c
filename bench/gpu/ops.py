"""The Triton operations of flash-linear-attention 0.6, called as our cores are.

In: q, k [B, T, H, d_k], v [B, T, H, d_v], numbers and logarithms of gates [B, T, H], logarithms of
the gates of channels [B, T, H, d_k]. Out: [B, T, H, d_v]; a step also takes and gives the state
[B, H, d_k, d_v]. No scale is put on the queries. fla is imported where an operation is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from bench.fla import installed as installed


def operation(module: str, name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Find an operation of fla; `module` is a folder of `fla.ops`."""
    found: Callable[..., tuple[Tensor, Tensor]] = getattr(
        importlib.import_module(f"fla.ops.{module}"), name
    )
    return found


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Run the delta rule."""
    return operation("delta_rule", "chunk_delta_rule")(q=q, k=k, v=v, beta=beta, scale=1.0)[0]


def gated_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """Run the gated delta rule."""
    run = operation("gated_delta_rule", "chunk_gated_delta_rule")
    return run(q=q, k=k, v=v, g=decay, beta=beta, scale=1.0)[0]


def rwkv7(q: Tensor, decays: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Run RWKV-7, S <- S Diag(exp decays) + (S a) b^T + v k^T."""
    return operation("rwkv7", "chunk_rwkv7")(r=q, w=decays, k=k, v=v, a=a, b=b, scale=1.0)[0]


def gla(q: Tensor, k: Tensor, v: Tensor, decays: Tensor) -> Tensor:
    """Run gated linear attention."""
    return operation("gla", "chunk_gla")(q=q, k=k, v=v, g=decays, scale=1.0)[0]


def kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decays: Tensor) -> Tensor:
    """Run Kimi Delta Attention."""
    return operation("kda", "chunk_kda")(q=q, k=k, v=v, g=decays, beta=beta, scale=1.0)[0]


def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run retention, whose heads forget at fixed rates."""
    return operation("retention", "chunk_retention")(q=q, k=k, v=v, scale=1.0)[0]


# ---- one token ---------------------------------------------------------------------------------

Step = Callable[..., tuple[Tensor, Tensor]]
# the name of an operation, and how it calls the streams, in the order of the functions above
STEPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "delta": ("delta_rule", "fused_recurrent_delta_rule", ("q", "k", "v", "beta")),
    "gated_delta": (
        "gated_delta_rule", "fused_recurrent_gated_delta_rule", ("q", "k", "v", "beta", "g"),
    ),
    "rwkv7": ("rwkv7", "fused_recurrent_rwkv7", ("r", "w", "k", "v", "a", "b")),
    "gla": ("gla", "fused_recurrent_gla", ("q", "k", "v", "gk")),
    "kda": ("kda", "fused_recurrent_kda", ("q", "k", "v", "beta", "g")),
    "retention": ("retention", "fused_recurrent_retention", ("q", "k", "v")),
}  # fmt: skip


def step(name: str) -> Step:
    """Make a function of the streams of one token [B, H, ...] and a state, `run(*x, state=S)`."""
    module, word, names = STEPS[name]

    def run(*streams: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        given: dict[str, Any] = {n: x[:, None] for n, x in zip(names, streams, strict=True)}
        y, after = operation(module, word)(
            **given, scale=1.0, initial_state=state, output_final_state=True
        )
        return y[:, 0], after

    return run
