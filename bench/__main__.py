"""`make bench`: ratios of emitted code to loops, to fla's references and to hand-written steps.

Everything that is compared runs in the same process, in turns, with one thread, in float32. Before
anything is timed its numbers are compared. Prints Markdown tables, as docs/performance.md has them.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import others, specs
from bench.measure import shown, side_by_side

HEADS, SIZE, BATCH = 4, 64, 1
PLACES = (16, 1024, 8192)  # positions at which a token is decoded
NAMES = {False: "DeltaNet", True: "Gated DeltaNet"}
Run = Callable[[], object]
# a step, with the token and the state it is called with
Step = tuple[Callable[..., tuple[Tensor, object]], object, object]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="length of a sequence (2048)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (5)")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine(), "\n")
    training(wanted.tokens, wanted.rounds)
    decoding(wanted.rounds)
    compiling(wanted.rounds)


def machine() -> str:
    """Describe the machine and the versions in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
    python = platform.python_version()
    where = f"{model or platform.machine()}, {os.cpu_count()} cores, one used"
    return f"{where}; Python {python}, torch {torch.__version__}, {platform.system()}"


# ---- forward and backward ----------------------------------------------------------------------


def training(tokens: int, rounds: int) -> None:
    """Compare forward and backward of cores and layers."""
    print(f"Forward and backward, B = {BATCH}, {HEADS} heads of {SIZE}, T = {tokens}:\n")
    print("| | nlc | token loop | fla naive chunkwise | loop / nlc | fla / nlc |")
    print("|---|---|---|---|---|---|")
    for gated in (False, True):
        row(f"{NAMES[gated]}, core", core_runs(gated, tokens), rounds)
    for gated in (False, True):
        row(f"{NAMES[gated]}, layer", layer_runs(gated, tokens), rounds)
    print(flush=True)


def row(title: str, runs: dict[str, Run], rounds: int) -> None:
    """Time the runs and print a row of the table."""
    took = side_by_side(runs, rounds)
    ratios = {name: f"{seconds / took['nlc']:.1f}" for name, seconds in took.items()}
    cells = [shown(took[n]) if n in took else "-" for n in ("nlc", "loop", "fla")]
    cells += [ratios.get(n, "-") for n in ("loop", "fla")]
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


def core_runs(gated: bool, tokens: int) -> dict[str, Run]:
    """Make the runs of a bare core, after comparing their outputs."""
    shape = (BATCH, tokens, HEADS)
    q, k = (torch.nn.functional.normalize(torch.randn(*shape, SIZE), dim=-1) for _ in range(2))
    streams = [q, k, torch.randn(*shape, SIZE), torch.rand(shape)]
    streams += [1 - 0.1 * torch.rand(shape)] if gated else []
    streams = [x.requires_grad_() for x in streams]
    block = specs.core(gated, HEADS, SIZE).block("core")
    cores: dict[str, Callable[..., Tensor]] = {"nlc": lambda *s: block(*s)[0], "loop": others.loop}
    cores |= with_fla()
    return checked({n: partial(core, *streams) for n, core in cores.items()}, streams)


def layer_runs(gated: bool, tokens: int) -> dict[str, Run]:
    """Make the runs of a layer with its projections; all use the same parameters."""
    block = specs.layer(gated, HEADS, SIZE).block("mixer")
    x = torch.randn(BATCH, tokens, HEADS * SIZE, requires_grad=True)
    cores = {"loop": others.loop, **with_fla()}
    runs: dict[str, Callable[[], Tensor]] = {"nlc": lambda: block(x)[0]}
    runs |= {n: partial(others.layer, block, x, HEADS, core) for n, core in cores.items()}
    return checked(runs, [x, *block.parameters()])


def with_fla() -> dict[str, Callable[..., Tensor]]:
    """Return fla's reference by name, nothing where it is not installed."""
    return {"fla": others.chunkwise} if others.fla("delta_rule") else {}


def checked(runs: dict[str, Callable[[], Tensor]], inputs: list[Tensor]) -> dict[str, Run]:
    """Add the backward pass to each run, after comparing outputs and gradients with nlc's."""
    weight = torch.randn_like(runs["nlc"]())

    def whole(run: Callable[[], Tensor]) -> list[Tensor]:
        out = run()
        return [out, *torch.autograd.grad(out, inputs, weight)]

    ours = whole(runs["nlc"])
    for name, run in runs.items():
        for mine, other in zip(ours, whole(run), strict=True):
            error = float((mine - other).detach().norm() / other.detach().norm().clamp_min(1e-6))
            if error > 1e-3:
                sys.exit(f"{name} and nlc disagree: relative error {error:.1e}")
    return {name: partial(whole, run) for name, run in runs.items()}


# ---- decoding ----------------------------------------------------------------------------------


@torch.no_grad()
def decoding(rounds: int) -> None:
    """Compare steps at several positions with steps written by hand."""
    steps, rounds = 20, 20 * rounds
    print(f"One token, median of {rounds} rounds of {steps} steps:\n")
    print("| | " + " | ".join(f"at {p}" for p in PLACES) + " | by hand | nlc / by hand |")
    print("|---|" + "---|" * (len(PLACES) + 2))
    for title, make in (("core", core_steps), ("layer", layer_steps)):
        for gated in (False, True):
            runs = {name: partial(advance, *run, steps) for name, run in make(gated).items()}
            took = {n: seconds / steps for n, seconds in side_by_side(runs, rounds).items()}
            ratio = took[f"at {PLACES[-1]}"] / took["by hand"]
            cells = [shown(seconds) for seconds in took.values()]
            print(f"| {NAMES[gated]}, {title} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)
    print()


def core_steps(gated: bool) -> dict[str, Step]:
    """Make the steps of a bare core: what is called with a token and a state, and these two."""
    block = specs.core(gated, HEADS, SIZE).block("core")

    def draw(*front: int) -> list[Tensor]:
        q, k, v = (torch.randn(*front, HEADS, SIZE) for _ in range(3))
        k = torch.nn.functional.normalize(k, dim=-1)
        gates = [torch.rand(*front, HEADS) for _ in range(1 + gated)]
        return [q, k, v, *gates]

    def ours(x: list[Tensor], state: object) -> tuple[Tensor, object]:
        found: tuple[Tensor, object] = block.step(*x, state=state)
        return found

    def hand(x: list[Tensor], state: Any) -> tuple[Tensor, object]:
        S, y = others.token(state, *x[:4], x[4] if gated else None)
        return y, S

    x = draw(BATCH)
    states = {place: block(*draw(BATCH, place))[1] for place in PLACES}
    agree(ours(x, states[PLACES[0]])[0], hand(x, states[PLACES[0]]["M"])[0])
    runs: dict[str, Step] = {f"at {place}": (ours, x, state) for place, state in states.items()}
    return {**runs, "by hand": (hand, x, states[PLACES[0]]["M"])}


def layer_steps(gated: bool) -> dict[str, Step]:
    """Make the steps of a layer with its projections."""
    block = specs.layer(gated, HEADS, SIZE).block("mixer")
    x = torch.randn(BATCH, HEADS * SIZE)
    states = {place: block(torch.randn(BATCH, place, HEADS * SIZE))[1] for place in PLACES}
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


# ---- compiling ---------------------------------------------------------------------------------


def compiling(rounds: int) -> None:
    """Compare `nlc compile` in a fresh process with importing torch alone."""
    with tempfile.TemporaryDirectory() as folder:
        nlc = ["-c", "from nlc.cli import main; main()"]
        words = ["compile", "gated_deltanet", "--out", f"{folder}/package"]
        took = side_by_side(
            {
                "importing torch": partial(alone, ["-c", "import torch"]),
                "nlc check": partial(alone, [*nlc, "check", "gated_deltanet"]),
                "nlc compile": partial(alone, [*nlc, *words]),
            },
            rounds,
        )
    print("A fresh process:\n")
    print("| " + " | ".join([*took, "compile beyond torch"]) + " |")
    print("|" + "---|" * (len(took) + 1))
    beyond = took["nlc compile"] - took["importing torch"]
    print("| " + " | ".join(map(shown, [*took.values(), max(beyond, 0)])) + " |")


def alone(words: list[str]) -> None:
    """Run Python with these words."""
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
