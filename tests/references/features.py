"""What loops by hand have in common: projections of the specs' frame, and a registry.

`FEATURES` holds, by name, a spec's text and a function (parameters, x) -> (out, states) that says
what it means; `features_memory`, `features_update` and others fill it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.references.layers import heads, linear
from tests.references.specs import block

P = dict[str, Tensor]
Hand = Callable[[P, Tensor], tuple[Tensor, dict[str, Any]]]
H, DK, DV = 2, 4, 3
FEATURES: dict[str, tuple[str, Hand]] = {}


def out(p: P, y: Tensor) -> Tensor:
    return linear(p, "W_o", y.flatten(-2))


def zeros(x: Tensor, *shape: int) -> Tensor:
    return torch.zeros(x.shape[0], *shape, dtype=torch.float64)


def copies(p: P, name: str, x: Tensor) -> Tensor:
    """A parameter once for each row."""
    return p[name].expand(x.shape[0], *p[name].shape)


def project(p: P, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, T, H, d] of the specs' frame."""
    q, k, v = (heads(linear(p, name, x), H) for name in ("W_q", "W_k", "W_v"))
    return q, k, v


def feature(name: str, body: str, **frame: str) -> Callable[[Hand], Hand]:
    """Register a spec's body with the loop that it means."""

    def register(hand: Hand) -> Hand:
        FEATURES[name] = (block(body, **frame), hand)
        return hand

    return register


def over_tokens(q: Tensor, state: Any, move: Callable[[int, Any], tuple[Any, Tensor]]) -> Any:
    """Run `move(t, state) -> (state, read)` over the tokens."""
    outs = []
    for t in range(q.shape[1]):
        state, y = move(t, state)
        outs.append(y)
    return state, torch.stack(outs, 1)
