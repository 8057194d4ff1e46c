"""A continuum memory system that learns while it reads, beside nested-learning's block.

Their block is handed a teach signal, and each level moves by an error of its own, local to it. The
first table compares that: the same block as a spec, with their rule and with plain gradient descent
(as in the shipped specs), from the same weights equal to theirs. The second is the shipped model at
the same sizes, which takes the gradients of its loss through all levels above.
"""

from __future__ import annotations

from functools import partial
from time import process_time

import torch
from torch import nn

import nlc
from bench import teach
from bench.measure import shown, side_by_side
from nlc.library import library_folder

SIZES = {"dims.d": 256, "dims.hidden": 1024, "dims.d_k": 64, "dims.d_v": 64, "model.repeat": 1}


@torch.no_grad()
def online(tokens: int, rounds: int) -> None:
    """Compare a forward pass in which three levels learn."""
    text, x = torch.randint(256, (1, tokens)), torch.randn(1, tokens, 256)
    signal = 0.01 * torch.randn_like(x)
    runs = {
        "block, gradient descent": partial(teach.ours("sgd"), x, signal),
        "block, their rule": partial(teach.ours("preconditioned"), x, signal),
        "model, through first_order": partial(ours("first_order"), text),
        "model, through full": partial(ours("full"), text),
    }
    block = teach.theirs()
    if block is not None:
        runs["nested-learning's block"] = partial(block, x, teach_signal=signal)
    took = side_by_side(runs, rounds, process_time)
    print(f"Hope-Attention whose MLPs learn while it reads, forward, {tokens} tokens")
    print("(seconds of the processor):\n")
    print(f"| {' | '.join(took)} |\n|{'---|' * len(took)}")
    print(f"| {' | '.join(map(shown, took.values()))} |\n", flush=True)
    if block is not None:
        last = took.pop("nested-learning's block")
        ratios = ", ".join(f"{name}: {last / seconds:.2f}x" for name, seconds in took.items())
        print(f"Beside nested-learning's block: {ratios}")
        print(f"Outputs of the block with their rule differ by {teach.difference(320):.0e}\n")


def ours(through: str) -> nn.Module:
    """Make the shipped model at these sizes; its updates pass gradients on, or do not."""
    spec = (library_folder() / "hope_attention_online.nl").read_text("utf-8")
    for number, level in enumerate(teach.PERIODS, 1):
        weights = f"weights F_{number} : mlp(d -> hidden -> d) at {level}"
        memory = f"{weights.replace('weights', 'memory')} {{ objective task; through {through} }}"
        assert weights in spec
        spec = spec.replace(weights, memory)
    return nlc.compile(nlc.parse(spec, set=SIZES), target="torch").model()
