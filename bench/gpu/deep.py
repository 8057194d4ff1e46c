"""Titans' memory of two layers beside titans-pytorch on a GPU: forward, and forward and backward.

The other's memory is alike, not the same (it reads a token later), so nothing but time is compared;
ours is held against its PyTorch form in float64 on few tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import nlc
from bench.deep import TITANS, neural_memory
from bench.gpu import compare, floor
from bench.gpu.cases import Shape
from bench.gpu.timer import Clock, Runs, Timer, free, tried
from nlc.ir.system import System

CHUNKS = (64, 16)


def deep(
    found: compare.Found,
    timer: Timer,
    clock: Clock,
    shape: Shape,
    chunks: Sequence[int] = CHUNKS,
) -> None:
    """Print a row for each chunk size and pass."""
    print(f"Titans' MLP, {shape.d}-{4 * shape.d}-{shape.d}, (B, T, H, d) = {shape}, bfloat16:\n")
    print("| | pass | error | nlc | titans-pytorch | other / nlc | floor | nlc at |")
    print("|" + "---|" * 8)
    for chunk in chunks:
        clock.check()
        block = ours(chunk, shape, found.device)
        wrong = checked(chunk, shape, found.device)
        work = floor.deep(*shape, hidden=4 * shape.d)
        for back in (False, True):
            took = timer(runs(block, chunk, shape, found.device, back))
            found.took[f"titans, chunk {chunk}", shape, back] = took
            mine, other = took["nlc"], took.get("titans-pytorch", "-")
            least = work.floor(found.machine, back)
            cells = [compare.passes(back), wrong, compare.written(mine), compare.written(other)]
            cells += [compare.over(other, mine), compare.shown(least), compare.share(least, mine)]
            print(f"| chunk {chunk} | {' | '.join(cells)} |", flush=True)
            free()
    print()


def ours(chunk: int, shape: Shape, device: str, target: str = "triton") -> Any:
    """Compile the block at a size."""
    torch.manual_seed(0)
    return nlc.compile(titans(chunk, shape), target=target).block("mixer").to(device)


def titans(chunk: int, shape: Shape) -> System:
    """The system at a size."""
    sizes = {"dims.d": shape.H * shape.d, "dims.heads": shape.H}
    sizes |= {"dims.d_k": shape.d, "dims.h": 4 * shape.d}
    return nlc.parse(TITANS.format(chunk=chunk), set=sizes)


def checked(chunk: int, shape: Shape, device: str) -> str:
    """The largest error of outputs and gradients of inputs in float32, to float64."""
    mine, truth = (ours(chunk, shape, device, t) for t in ("triton", "torch"))
    truth.load_state_dict(mine.state_dict())
    x = torch.randn(1, 2 * chunk + 5, shape.H * shape.d, device=device)
    got: list[float] = []

    def once() -> None:
        both: list[tuple[Tensor, Tensor]] = []
        for module, kind in ((mine, torch.float32), (truth.double(), torch.float64)):
            given = x.to(kind).requires_grad_()
            y = module(given)[0]
            both.append((y, torch.autograd.grad(y.sum(), given)[0]))
        got.append(max(compare.ratio(a, b) for a, b in zip(*both, strict=True)))

    fault = tried(once)
    return fault or f"{got[0]:.1e}"


def runs(block: nn.Module, chunk: int, shape: Shape, device: str, back: bool) -> Runs:
    """Make the runs of ours and of titans-pytorch, whose gradients are taken anew in each chunk."""
    x = torch.randn(shape.B, shape.T, shape.H * shape.d, dtype=torch.bfloat16, device=device)
    found = {"nlc": once(block.bfloat16(), x, back)}
    if importlib.util.find_spec("titans_pytorch"):
        other = neural_memory(chunk, chunk, shape.H, shape.d).to(device, torch.bfloat16)
        found["titans-pytorch"] = once(other, x, back)
    return found


def once(module: nn.Module, x: Tensor, back: bool) -> Callable[[], object]:
    """Run a module, and its gradients of input and parameters."""
    if not back:
        return torch.no_grad()(lambda: module(x)[0])
    given = x.detach().requires_grad_()
    wanted = [given, *module.parameters()]

    def run() -> object:
        return torch.autograd.grad(module(given)[0].sum(), wanted, allow_unused=True)

    return run
