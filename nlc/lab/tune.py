"""Find block sizes of a spec's kernels by measuring: what `nlc bench --tune` does.

In: a compiled system, the size of a batch, a timer. Out: a `Tuning` for each memory that has
kernels, whose row can extend the committed table. A row is searched place by place, the others
held, over two rounds; what gives other numbers, or cannot be launched, is no candidate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlc.codegen.triton.table import OF_LAYERS, OF_LOOP, OF_SLICES, Measured, Row, size_of
from nlc.ir.kernel import Emitted
from nlc.lab.faults import LabError

if TYPE_CHECKING:
    from nlc.compiled import Compiled

# what each place of a row is tried with: tokens, channels, warps, warps of a loop, stages
PLACES: tuple[tuple[int, ...], ...] = (
    (16, 32, 64), (16, 32, 64, 128, 256), (2, 4, 8), (2, 4, 8), (1, 2, 3),
)  # fmt: skip
# a loop holds little: one warp may be enough
ONE = 1
ROUNDS = 2
# a row has to be so much faster to be taken: less is noise
GAIN = 0.98
# how far outputs and gradients may be from those of the first row, as RMS ratio, in bfloat16
MOST = 2e-2
Times = Callable[[Row], float]
# seconds of a function
Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Tuning:
    """What was found for one memory: its row, seconds before and after, how many were tried."""

    memory: str
    measured: Measured
    before: float
    after: float
    tried: int


def find_gpu() -> str:
    """Name the GPU; refuse where there is none, or where its kernels would be interpreted."""
    if not torch.cuda.is_available():
        raise LabError(
            "there is no GPU here, and block sizes are found by measuring on one",
            "a machine where torch.cuda.is_available(); kernels run with the table as it is",
        )
    if os.environ.get("TRITON_INTERPRET", "") not in ("", "0"):
        raise LabError("TRITON_INTERPRET is set, so kernels would be interpreted", "unset it")
    return torch.cuda.get_device_name(0)


def on_cuda(run: Callable[[], object], rounds: int = 15) -> float:
    """The median seconds of a function by CUDA events."""
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        stop.record()
        times.append((start, stop))
    torch.cuda.synchronize()
    return float(median(start.elapsed_time(stop) for start, stop in times)) / 1e3


def candidates(place: int, emitted: Emitted) -> Iterator[int]:
    """What one place of a row may be, by how gates are kept and the sizes."""
    gates = emitted.gates
    if place == 1 and emitted.channels != (0, 0):
        least, most = emitted.channels
        yield from (1 << bits for bits in range(10) if least <= 1 << bits <= most)
        return
    for value in (ONE, *PLACES[place]) if place in (2, 3) and gates == OF_LOOP else PLACES[place]:
        if place == 0 and gates == "ChannelGates":
            # it goes token by token inside tiles of 16
            continue
        if place == 0 and gates in ("RelativeGates", OF_LAYERS, OF_SLICES) and value > emitted.tile:
            continue
        if place == 1 and value > size_of(16, emitted.d_v):
            continue
        yield value


def search(
    row: Row, times: Times, emitted: Emitted, rounds: int = ROUNDS
) -> tuple[Row, float, float, int]:
    """Find a faster row: it, the seconds before and after, and how many were tried.

    `times` gives infinity for what cannot run.
    """
    known = {row: times(row)}
    best = row
    for _ in range(rounds):
        begun = best
        for place in range(len(PLACES)):
            for value in candidates(place, emitted):
                tokens, channels, warps, loop, stages = (
                    value if at == place else old for at, old in enumerate(best)
                )
                other = (tokens, channels, warps, loop, stages)
                if other not in known:
                    known[other] = times(other)
                if known[other] < GAIN * known[best]:
                    best = other
        if best == begun:
            break
    return best, known[row], known[best], len(known)


@dataclass(frozen=True)
class Bench:
    """On what kernels are measured: sequences, tokens, the machine and how it is timed."""

    batch: int
    length: int
    machine: str
    timer: Timer
    device: str = "cuda"
    kind: torch.dtype = torch.bfloat16


def tune(compiled: Compiled, on: Bench, wanted: bool = True) -> Iterator[Tuning]:
    """Measure every memory that has kernels over a sequence; tune it where that is wanted."""
    made: dict[str, Emitted] = {}
    for kernel in compiled.with_kernels.kernels:
        if kernel.gates:
            made.setdefault(kernel.memory, kernel)
    if not made:
        raise LabError(
            "no memory of this spec has kernels over a sequence, so there is nothing to tune",
            "`nlc explain SPEC --target triton` says why; deltanet and gla have such kernels",
        )
    for block in compiled.system.blocks:
        names = [name for name in made if name.startswith(f"{block.name.lower()}_")]
        if not names:
            continue
        module = compiled.block(block.name).to(on.device, on.kind)
        xs = [
            torch.randn(
                on.batch, on.length, *(axis.size for axis in entry.shape),
                dtype=on.kind, device=on.device,
            )
            for entry in block.inputs
        ]  # fmt: skip
        for name in names:
            times = Trial(compiled, made.pop(name), module, xs, on.timer)
            own = times.emitted
            row, before, after, count = search(times.row, times, own, ROUNDS if wanted else 0)
            times.use(row)
            size = own.size or size_of(own.d_k, own.d_v)
            shape = (on.batch, on.length, own.d_k, own.d_v)
            found = Measured(times.architecture, own.gates, size, row, on.machine, shape)
            yield Tuning(name, found, before, after, count)


class Trial:
    """One memory's kernels with any row: the seconds of its block, forward and backward."""

    def __init__(
        self, compiled: Compiled, emitted: Emitted, module: Any, xs: list[Tensor], timer: Timer
    ) -> None:
        self.emitted, self.module, self.xs, self.timer = emitted, module, xs, timer
        self.kernels: Any = compiled.module.kernels
        self.architecture: str = self.kernels.architecture(xs[0].device)
        self.table: dict[str, Any] = getattr(self.kernels, emitted.table)
        self.row: Row = tuple(self.table[self.architecture])
        self.truth: list[Tensor] | None = None

    def use(self, row: Row) -> None:
        """Have the kernels cut as a row says."""
        self.table[self.architecture] = self.kernels.Blocks(*row)

    def run(self) -> list[Tensor]:
        """Run the block forward and backward."""
        given = [x.detach().requires_grad_() for x in self.xs]
        found = self.module(*given)[0]
        outputs = found if isinstance(found, tuple) else (found,)
        loss = torch.stack([y.float().square().mean() for y in outputs]).sum()
        grads = torch.autograd.grad(loss, given, allow_unused=True)
        return [y.detach() for y in outputs] + [g for g in grads if g is not None]

    def __call__(self, row: Row) -> float:
        self.use(row)
        try:
            values = self.run()
            if self.truth is None:
                self.truth = values
            if any(_far(a, b) for a, b in zip(values, self.truth, strict=True)):
                return inf
            return self.timer(self.run)
        except Exception as error:
            # a row that asks for more than the machine has; the first one must run
            if self.truth is None:
                raise LabError(
                    f"the kernels of {self.emitted.memory} do not run here: {error}",
                    "a smaller --batch or --length",
                ) from None
            return inf


def _far(ours: Tensor, truth: Tensor) -> bool:
    error = (ours.float() - truth.float()).square().mean().sqrt()
    return not bool(error <= MOST * truth.float().square().mean().sqrt().clamp_min(1e-12))
