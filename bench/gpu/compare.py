"""Ours beside the others: correctness first, then time, a table each; rows are printed as found.

In: cases, shapes, a timer and a clock. Out: what was found, for the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu import floor, ops
from bench.gpu.cases import CASES, PAIRS, SHAPES, Case, Shape
from bench.gpu.floor import Machine, Work
from bench.gpu.timer import Clock, Runs, Timer, Took, free, graphed, tried
from bench.measure import shown

# the largest error of outputs and gradients, as RMS ratio to float64
MOST = 5e-3
# tokens of a check: no multiple of a tile, but one of 16, for which kernels are compiled anyway
CHECKED = 336


@dataclass
class Found:
    """What was measured: seconds by case, shape and whether backward; errors; what is left.

    `tokens` are those of a check.
    """

    machine: Machine
    device: str = "cuda"
    tokens: int = CHECKED
    errors: dict[tuple[str, int], tuple[float, float] | str] = field(default_factory=dict)
    took: dict[tuple[str, Shape, bool], Took] = field(default_factory=dict)
    decoded: dict[tuple[str, Shape], Took] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def ratio(ours: Tensor, truth: Tensor) -> float:
    """The error relative to the size of what is true."""
    error = (ours.detach().double() - truth.detach()).square().mean().sqrt()
    return float(error / truth.detach().square().mean().sqrt().clamp_min(1e-12))


# ---- correctness -------------------------------------------------------------------------------


def correctness(found: Found, clock: Clock, shapes: Sequence[Shape]) -> None:
    """Hold outputs and gradients of ours and theirs against float64, a row each.

    A sequence has the heads and sizes of what is timed: fla's autotuners tune for these.
    """
    print(f"RMS ratio to float64, B = 1, T = {found.tokens}, bfloat16:\n")
    print("| | d | nlc | nlc, gradients | fla | fla, gradients |\n|---|---|---|---|---|---|")
    for name, case in CASES.items():
        for H, size in dict.fromkeys((shape.H, shape.d) for shape in shapes):
            clock.check()
            shape = Shape(1, found.tokens, H, size)
            ours, theirs = checked(case, shape, found.device)
            found.errors[name, size] = ours
            print(f"| {case.title} | {size} | {error(ours)} | {error(theirs)} |", flush=True)
    print()


def error(of: tuple[float, float] | str) -> str:
    """Write the errors of outputs and gradients; mark what is too large."""
    if isinstance(of, str):
        return f"{of} | {of}"
    return " | ".join(f"{x:.1e}" + (" (!)" if not x < MOST else "") for x in of)


def checked(
    case: Case, shape: Shape, device: str
) -> tuple[tuple[float, float] | str, tuple[float, float] | str]:
    """The largest errors of ours and of theirs, in outputs and gradients; or why there are none."""
    torch.manual_seed(0)
    streams = [x.requires_grad_() for x in case.draw(shape, device)]
    y = case.truth(streams)
    weight = torch.randn_like(y)
    grads = torch.autograd.grad(y, streams, weight)
    runs: list[Callable[..., Tensor]] = [case.ours(shape, device)]
    if (theirs := case.theirs) is not None and ops.installed():
        runs.append(lambda *x: theirs(*case.turned(*x)))
    errors: list[tuple[float, float] | str] = []
    for run in runs:
        got: list[tuple[float, float]] = []

        def once(run: Callable[..., Tensor] = run, got: Any = got) -> None:
            out = run(*streams)
            own = torch.autograd.grad(out, streams, weight.to(out.dtype))
            pairs = zip(own, grads, strict=True)
            # the gradients come in the streams' types: what is true is rounded as well
            worst = max(ratio(a, b.double()) for a, b in pairs)
            got.append((ratio(out, y), worst))

        fault = tried(once)
        errors.append(fault or got[0])
    ours, *rest = errors
    return ours, rest[0] if rest else "-"


# ---- time --------------------------------------------------------------------------------------


def times(
    found: Found, timer: Timer, clock: Clock, shape: Shape, cases: Sequence[str] | None = None
) -> None:
    """Time all cases at one shape, forward, and forward and backward."""
    print(f"(B, T, H, d) = {shape}, bfloat16:\n")
    print("| | pass | nlc | fla | fla / nlc | SDPA / nlc | floor | nlc at |\n|" + "---|" * 8)
    attended = sdpa(timer, clock, shape, found.device)
    for back in (False, True):
        least = floor.attention(*shape).floor(found.machine, back)
        cells = ["-", "-", "-", written(attended[back]), shown(least), share(least, attended[back])]
        print(f"| SDPA, causal, its own time | {passes(back)} | {' | '.join(cells)} |", flush=True)
    for name in cases or CASES:
        case = CASES[name]
        clock.check()
        for back, runs, work in both(case, shape, found.device):
            took = timer(runs)
            found.took[name, shape, back] = took
            ours, other = took["nlc"], took.get("fla", "-")
            least = work.floor(found.machine, back)
            cells = [written(ours), written(other), over(other, ours), over(attended[back], ours)]
            cells += [shown(least), share(least, ours)]
            print(f"| {case.title} | {passes(back)} | {' | '.join(cells)} |", flush=True)
        free()
    print()


def passes(back: bool) -> str:
    """Name what is timed."""
    return "forward, backward" if back else "forward"


def written(taken: float | str) -> str:
    """Write a time, or why there is none."""
    return taken if isinstance(taken, str) else shown(taken)


def over(a: float | str, b: float | str) -> str:
    """Write a ratio of two times."""
    return "-" if isinstance(a, str) or isinstance(b, str) else f"{a / b:.2f}"


def share(least: float, taken: float | str) -> str:
    """Write which share of the floor is reached."""
    return "-" if isinstance(taken, str) else f"{100 * least / taken:.0f} %"


def both(case: Case, shape: Shape, device: str) -> Iterator[tuple[bool, Runs, Work]]:
    """Make the runs of a case forward, and forward and backward, with their work."""
    torch.manual_seed(0)
    ours = case.ours(shape, device)
    streams = case.draw(shape, device)
    given: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {"nlc": (ours, streams)}
    theirs = case.theirs
    if theirs is not None and ops.installed():
        # what makes fla's streams of ours is not timed
        given["fla"] = (theirs, [x.detach().contiguous() for x in case.turned(*streams)])
    out = streams[0].element_size() * shape.B * shape.T * shape.H * shape.d
    work = floor.memory(case.form(shape), streams, out, shape.d, shape.d)
    yield False, {n: forward(run, x) for n, (run, x) in given.items()}, work
    yield True, {n: whole(run, x) for n, (run, x) in given.items()}, work


def forward(run: Callable[..., Tensor], streams: Sequence[Tensor]) -> Callable[[], object]:
    """Run forward alone."""

    @torch.no_grad()
    def once() -> Tensor:
        return run(*streams)

    return once


def whole(run: Callable[..., Tensor], streams: Sequence[Tensor]) -> Callable[[], object]:
    """Run forward and backward, with gradients of all streams."""
    leaves = [x.detach().requires_grad_() for x in streams]
    weights: list[Tensor] = []

    def once() -> object:
        y = run(*leaves)
        if not weights:
            weights.append(torch.randn_like(y))
        return torch.autograd.grad(y, leaves, weights[0])

    return once


def sdpa(timer: Timer, clock: Clock, shape: Shape, device: str) -> tuple[float | str, float | str]:
    """Time torch's attention, forward, and forward and backward."""
    clock.check()
    sizes = (shape.B, shape.H, shape.T, shape.d)
    qkv = [torch.randn(sizes, dtype=torch.bfloat16, device=device) for _ in range(3)]

    def run(*x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*x, is_causal=True)

    took = timer({"forward": forward(run, qkv), "whole": whole(run, qkv)})
    free()
    return took["forward"], took["whole"]


# ---- one token ---------------------------------------------------------------------------------


@torch.no_grad()
def decoding(found: Found, timer: Timer, clock: Clock, shapes: Sequence[Shape]) -> None:
    """Time a token beside fla's fused recurrent step, called one by one and as a CUDA graph."""
    print("One token, (B, H, d), called from Python and as a CUDA graph:\n")
    head = ["", "B, H, d", "nlc", "fla", "fla / nlc"]
    print("| " + " | ".join([*head, "graph: nlc", "fla", "fla / nlc", "floor", "graph at"]) + " |")
    print("|" + "---|" * 10)
    for shape in shapes:
        for name, case in CASES.items():
            clock.check()
            runs = steps(case, shape, found.device)
            took = timer(runs)
            graphs = {n: graphed(run) for n, run in runs.items() if not isinstance(took[n], str)}
            fast = timer({n: run for n, run in graphs.items() if run is not None})
            found.decoded[name, shape] = took | {f"graph: {n}": t for n, t in fast.items()}
            states = len(case.form(shape).states)
            least = floor.step(shape.B, shape.H, shape.d, shape.d, states).floor(
                found.machine, False
            )
            cells = [f"{shape.B}, {shape.H}, {shape.d}"]
            for which in (took, fast):
                mine, other = which.get("nlc", "-"), which.get("fla", "-")
                cells += [written(mine), written(other), over(other, mine)]
            cells += [shown(least), share(least, fast.get("nlc", "-"))]
            print(f"| {case.title} | {' | '.join(cells)} |", flush=True)
    print()


def steps(case: Case, shape: Shape, device: str) -> Runs:
    """Make the runs of one token, from a state that some tokens have left."""
    block: Any = case.block(shape, device)
    few = Shape(shape.B, 16, shape.H, shape.d)
    _, state = block(*case.draw(few, device))
    x = case.draw(shape, device, tokens=False)
    runs: dict[str, Callable[[], object]] = {
        "nlc": torch.no_grad()(lambda: block.step(*x, state=state))
    }
    if case.name and ops.installed():
        own = state["M"].mT.float().contiguous()
        step, given = ops.step(case.name), case.turned(*x)
        runs["fla"] = torch.no_grad()(lambda: step(*given, state=own))
    return runs


# ---- the end -----------------------------------------------------------------------------------


def summary(found: Found) -> list[str]:
    """Say what was found, in lines; what was not reached is said as well."""
    lines = []
    ratios = {
        (name, shape): float(took["fla"]) / float(took["nlc"])
        for (name, shape, back), took in found.took.items()
        if back and all(isinstance(took.get(n), float) for n in ("fla", "nlc"))
    }
    if ratios:
        (name, shape), least = min(ratios.items(), key=lambda pair: pair[1])
        lines += [
            f"fla / nlc, forward and backward: geometric mean {geometric_mean(ratios.values()):.2f}"
            f" over {len(ratios)} cases; the least {least:.2f}, {CASES[name].title} at {shape}"
        ]
    for slow, other in PAIRS:
        for shape in SHAPES:
            pair = [found.took.get((n, shape, True), {}).get("nlc") for n in (slow, other)]
            if all(isinstance(x, float) for x in pair):
                words = f"{CASES[slow].title} / {CASES[other].title}, both nlc's, at {shape}"
                lines.append(f"{words}: {over(*pair)}")  # type: ignore[arg-type]
    decoded = [
        float(took[f"{how}fla"]) / float(took[f"{how}nlc"])
        for took in found.decoded.values()
        for how in ("", "graph: ")
        if all(isinstance(took.get(f"{how}{n}"), float) for n in ("fla", "nlc"))
    ]
    if decoded:
        lines.append(f"fla / nlc, one token: geometric mean {geometric_mean(decoded):.2f}")
    worst = [
        f"{CASES[name].title} at d = {size}"
        for (name, size), errors in found.errors.items()
        if isinstance(errors, str) or not max(errors) < MOST
    ]
    lines += [f"NOT within {MOST} of float64: {', '.join(worst)}"] if worst else []
    lines += [f"not measured: {what}" for what in found.left]
    return lines
