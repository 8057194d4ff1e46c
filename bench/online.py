"""A continuum memory system that learns while it reads, beside nested-learning's block.

Their block is given its teach signal, and moves each level by its own error alone; here the whole
model is read, with its loss, and each level moves by the gradient of that. So it is not the same
mathematics, but the same shapes: one layer of width 256, MLPs of 1024 after 16, 64 and 256 tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

import nlc
from bench.measure import shown, side_by_side
from nlc.library import library_folder

SIZES = {"dims.d": 256, "dims.hidden": 1024, "dims.d_k": 64, "dims.d_v": 64, "model.repeat": 1}
PERIODS = {"beat": 16, "phrase": 64, "page": 256}


@torch.no_grad()
def online(tokens: int, rounds: int) -> None:
    """Compare a forward pass in which three levels learn."""
    text = torch.randint(256, (1, tokens))
    runs = {
        "through full": partial(ours("full"), text),
        "through first_order": partial(ours("first_order"), text),
    }
    block = theirs()
    if block is not None:
        x = torch.randn(1, tokens, SIZES["dims.d"])
        runs["nested-learning"] = partial(block, x, teach_signal=0.01 * torch.randn_like(x))
    took = side_by_side(runs, rounds)
    print(f"Hope-Attention whose MLPs learn while it reads, forward, {tokens} tokens:\n")
    print(f"| {' | '.join(took)} |\n|{'---|' * len(took)}")
    print(f"| {' | '.join(map(shown, took.values()))} |\n", flush=True)


def ours(through: str) -> nn.Module:
    """Make the shipped model at these sizes; its updates pass gradients on, or do not."""
    spec = (library_folder() / "hope_attention_online.nl").read_text("utf-8")
    for number, level in enumerate(PERIODS, 1):
        weights = f"weights F_{number} : mlp(d -> hidden -> d) at {level}"
        memory = f"{weights.replace('weights', 'memory')} {{ objective task; through {through} }}"
        assert weights in spec
        spec = spec.replace(weights, memory)
    return nlc.compile(nlc.parse(spec, set=SIZES), target="torch").model()


def theirs() -> Any:
    """Make the block of the package `nested-learning`, where that is installed."""
    try:
        from nested_learning.hope.block import HOPEAttentionBlock, HOPEAttentionBlockConfig
        from nested_learning.levels import LevelSpec
    except ImportError:
        print("(nested-learning is not installed: pip install --no-deps nested-learning)\n")
        return None
    levels = [LevelSpec(name=name, update_period=count) for name, count in PERIODS.items()]
    return HOPEAttentionBlock(
        HOPEAttentionBlockConfig(dim=SIZES["dims.d"], heads=4, cms_levels=levels)
    )
