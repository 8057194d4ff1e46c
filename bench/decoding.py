"""One token: emitted steps at several positions beside steps written by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import others
from bench.cores import CORES, HEADS
from bench.layers import LAYERS, WIDTH, layer
from bench.measure import shown, side_by_side

BATCH = 1
PLACES = (16, 1024, 8192)  # positions at which a token is decoded
# a step, with the token and the state it is called with
Step = tuple[Callable[..., tuple[Tensor, object]], object, object]


@torch.no_grad()
def decoding(rounds: int) -> None:
    """Compare steps at several positions with steps written by hand."""
    steps, rounds = 20, 20 * rounds
    print(f"One token, median of {rounds} rounds of {steps} steps:\n")
    print("| | " + " | ".join(f"at {p}" for p in PLACES) + " | by hand | nlc / by hand |")
    print("|---|" + "---|" * (len(PLACES) + 2))
    of_cores, of_layers = ("deltanet", "gated_deltanet", "rwkv7", "titans_linear"), LAYERS[:2]
    makes = {f"{CORES[name].title}, core": partial(core_steps, name) for name in of_cores}
    makes |= {f"{CORES[name].title}, layer": partial(layer_steps, name) for name in of_layers}
    for title, make in makes.items():
        runs = {name: partial(advance, *run, steps) for name, run in make().items()}
        took = {n: seconds / steps for n, seconds in side_by_side(runs, rounds).items()}
        ratio = took[f"at {PLACES[-1]}"] / took["by hand"]
        cells = [shown(seconds) for seconds in took.values()]
        print(f"| {title} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)
    print()


def core_steps(name: str) -> dict[str, Step]:
    """Make the steps of a bare core: what is called with a token and a state, and these two."""
    core = CORES[name]
    block = core.compiled().block("core")

    def ours(x: list[Tensor], state: object) -> tuple[Tensor, object]:
        found: tuple[Tensor, object] = block.step(*x, state=state)
        return found

    def hand(x: list[Tensor], state: Any) -> tuple[Tensor, object]:
        S, y = core.token(state, *core.given(x))
        return y, S

    x = core.draw(BATCH)
    states = {place: block(*core.draw(BATCH, place))[1] for place in PLACES}
    first = states[PLACES[0]]
    own = (first["M"], first["M.S"]) if core.states else first["M"]
    agree(ours(x, first)[0], hand(x, own)[0])
    runs: dict[str, Step] = {f"at {place}": (ours, x, state) for place, state in states.items()}
    return {**runs, "by hand": (hand, x, own)}


def layer_steps(name: str) -> dict[str, Step]:
    """Make the steps of a layer with its projections."""
    block = layer(name).block("mixer")
    x = torch.randn(BATCH, WIDTH)
    states = {place: block(torch.randn(BATCH, place, WIDTH))[1] for place in PLACES}
    state = states[PLACES[0]]
    own = [state["M" if "M" in state else "S"]]
    own += [state[f"conv_{name}"] for name in ("q", "k", "v")]
    hand = partial(others.layer_step, block, heads=HEADS)
    agree(block.step(x, state)[0], hand(x, own)[0])
    runs: dict[str, Step] = {
        f"at {place}": (block.step, x, state) for place, state in states.items()
    }
    return {**runs, "by hand": (hand, x, own)}


def agree(ours: Tensor, other: Tensor) -> None:
    """Stop unless two steps give the same."""
    if not torch.allclose(ours, other, atol=1e-4):
        sys.exit("nlc's step and the one by hand disagree")


@torch.no_grad()
def advance(step: Callable[..., tuple[Tensor, object]], x: object, state: object, n: int) -> None:
    """Take n steps from a state."""
    for _ in range(n):
        _, state = step(x, state)
