"""A step of optimizers on a GPU: rules as kernels beside torch's, and beside matrix products.

In: a timer and a clock. Out: a Markdown table. The parameters are those of a transformer; AdamW is
compared with torch's before it is timed, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import nlc
from bench.gpu import compare
from bench.gpu.floor import Work
from bench.gpu.timer import Clock, Runs, Timer, free, tried
from bench.measure import shown
from bench.optimizers import parameters, products

WIDTH, LAYERS = 1024, 24
# read: value, gradient, two states; written: value, two states
MOVED = 7 * 4


def optimizers(
    found: compare.Found, timer: Timer, clock: Clock, width: int = WIDTH, layers: int = LAYERS
) -> None:
    """Print a row for each rule and what it is beside."""
    clock.check()
    make = partial(parameters, width, layers, found.device)
    rules = nlc.compile(nlc.parse("system rules\ndims { n = 1 }"), target="triton")
    count = sum(p.numel() for p in make())
    print(f"A step of an optimizer, {count / 1e6:.0f} million parameters, float32:\n")
    print("| rule | error | nlc | compared with | time | other / nlc | floor | nlc at |")
    print("|" + "---|" * 8)
    adamw = rules.rule("adamw")
    wrong = checked(lambda p: adamw(p, lr=1e-3), partial(parameters, 64, 1, found.device))
    runs: Runs = {
        "nlc": adamw(make(), lr=1e-3).step,
        "torch's fused AdamW": torch.optim.AdamW(make(), lr=1e-3, fused=True).step,
        "torch's foreach AdamW": torch.optim.AdamW(make(), lr=1e-3, foreach=True).step,
    }
    moved = float(MOVED * count)
    rows(found, timer, "adamw", wrong, runs, Work((moved, moved), (0.0, 0.0)))
    clock.check()
    matrices = [p for p in make() if p.ndim == 2]
    muon = rules.rule("muon")(matrices, lr=1e-3)
    runs = {"nlc": muon.step, "its matrix products": partial(products, matrices)}
    rows(found, timer, "muon", "-", runs, None)
    free()
    print()


def rows(
    found: compare.Found, timer: Timer, rule: str, wrong: str, runs: Runs, work: Work | None
) -> None:
    """Time a rule, and print a row for each other."""
    took = timer(runs)
    mine = took["nlc"]
    floor = "-" if work is None else shown(work.floor(found.machine, False))
    at = "-" if work is None else compare.share(work.floor(found.machine, False), mine)
    for name in list(took)[1:]:
        other = took[name]
        cells = [compare.written(mine), name, compare.written(other), compare.over(other, mine)]
        print(f"| {rule} | {wrong} | {' | '.join(cells)} | {floor} | {at} |", flush=True)


def checked(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    draw: Callable[[], list[nn.Parameter]],
) -> str:
    """The largest error of a few steps of AdamW, to torch's own."""
    ours, theirs = draw(), draw()
    mine = make(ours)
    truth = torch.optim.AdamW(theirs, lr=1e-3, foreach=True)

    def steps() -> None:
        for _ in range(3):
            mine.step()
            truth.step()

    fault = tried(steps)
    pairs: list[tuple[Tensor, Tensor]] = list(zip(ours, theirs, strict=True))
    return fault or f"{max(compare.ratio(a, b.double()) for a, b in pairs):.1e}"
