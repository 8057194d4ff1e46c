"""Forward and backward: cores and layers beside loops and references, and beside each other.

Before anything is timed its outputs and gradients are compared. Prints Markdown tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from bench import others
from bench.cores import CORES, HEADS, SIZE
from bench.layers import LAYERS, WIDTH, layer
from bench.measure import shown, side_by_side

BATCH = 1
# what is slower, what it is measured against
PAIRS = (
    ("titans_linear", "gated_deltanet"),
    ("kda_free", "kda_kept"),
    ("gla_free", "gla_kept"),
)
Run = Callable[[], object]


def training(tokens: int, rounds: int) -> None:
    """Compare forward and backward of cores and layers."""
    print(f"Forward and backward, B = {BATCH}, {HEADS} heads of {SIZE}, T = {tokens}:\n")
    print("| | nlc | token loop | fla naive chunkwise | loop / nlc | fla / nlc |")
    print("|---|---|---|---|---|---|")
    runs = {f"{core.name}, core": partial(core_runs, name) for name, core in CORES.items()}
    runs |= {f"{CORES[name].title}, layer": partial(layer_runs, name) for name in LAYERS}
    for title, make in runs.items():
        took = side_by_side(make(tokens), rounds)
        cells = [shown(took[n]) if n in took else "-" for n in ("nlc", "loop", "fla")]
        cells += [f"{took[n] / took['nlc']:.1f}" if n in took else "-" for n in ("loop", "fla")]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)
    print(f"\nMemories compared with each other:\n\n| | | compared with | | ratio |\n{'|---' * 5}|")
    for name, other in PAIRS:
        beside("core", core_runs, name, other, tokens, rounds)
        if name in LAYERS:
            beside("layer", layer_runs, name, other, tokens, rounds)
    print(flush=True)


def beside(
    kind: str,
    make: Callable[[str, int], dict[str, Run]],
    name: str,
    other: str,
    tokens: int,
    rounds: int,
) -> None:
    """Time two emitted blocks in turns and print a row."""
    both = {n: make(n, tokens)["nlc"] for n in (name, other)}
    took = side_by_side(both, 3 * rounds)
    cells = [x for n in (name, other) for x in (f"{CORES[n].name}, {kind}", shown(took[n]))]
    print(f"| {' | '.join(cells)} | {took[name] / took[other]:.2f} |", flush=True)


def core_runs(name: str, tokens: int) -> dict[str, Run]:
    """Make the runs of a bare core, after comparing what they give."""
    core = CORES[name]
    streams = [x.requires_grad_() for x in core.draw(BATCH, tokens)]
    runs = {label: partial(run, *streams) for label, run in core.runs().items()}
    return checked(runs, streams)


def layer_runs(name: str, tokens: int) -> dict[str, Run]:
    """Make the runs of a layer with its projections; all use the same parameters."""
    core, block = CORES[name], layer(name).block("mixer")
    x = torch.randn(BATCH, tokens, WIDTH, requires_grad=True)
    runs: dict[str, Callable[[], Tensor]] = {"nlc": lambda: block(x)[0]}
    cores = {label: run for label, run in core.runs().items() if label != "nlc"}
    runs |= {label: partial(others.layer, block, x, HEADS, run) for label, run in cores.items()}
    return checked(runs, [x, *block.parameters()])


def checked(runs: Mapping[str, Callable[[], Tensor]], inputs: list[Tensor]) -> dict[str, Run]:
    """Add the backward pass to each run, after comparing outputs and gradients with nlc's."""
    weight = torch.randn_like(runs["nlc"]())

    def whole(run: Callable[[], Tensor]) -> list[Tensor]:
        out = run()
        return [out, *torch.autograd.grad(out, inputs, weight)]

    ours = whole(runs["nlc"])
    for name, run in runs.items():
        if name == "nlc":
            continue
        for mine, other in zip(ours, whole(run), strict=True):
            error = float((mine - other).detach().norm() / other.detach().norm().clamp_min(1e-6))
            if not error < 1e-3:
                sys.exit(f"{name} and nlc disagree: relative error {error:.1e}")
    return {name: partial(whole, run) for name, run in runs.items()}
