"""Time on a GPU by its events, within a budget; and what the machine reaches.

In: functions by name. Out: the median seconds of each, or in words why there is none. Rounds run
all functions in turns, as `bench.measure` does. A clock says how much of the budget is left.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import median
from time import monotonic
from typing import Protocol

import torch

from bench.gpu.floor import Machine

Runs = Mapping[str, Callable[[], object]]
# seconds, or why there are none
Took = dict[str, float | str]
ROUNDS, LEAST = 30, 5
SECONDS = 2.0  # after which a comparison has no further rounds


class OutOfTime(Exception):
    """The budget is used up."""


class Clock:
    """What is left of a budget of seconds; at its end, whatever runs is interrupted."""

    def __init__(self, budget: float) -> None:
        self.end = monotonic() + budget

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - monotonic()

    def check(self) -> None:
        """Stop where nothing is left."""
        if self.left() <= 0:
            raise OutOfTime

    def alarm(self) -> None:
        """Have `OutOfTime` raised at the end, in the middle of anything."""

        def ring(*_: object) -> None:
            raise OutOfTime

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(self.left(), 0.001))

    @staticmethod
    def quiet() -> None:
        """Take the alarm back."""
        signal.setitimer(signal.ITIMER_REAL, 0)


class Timer(Protocol):
    """What gives the seconds of functions."""

    def __call__(self, runs: Runs) -> Took: ...


def why(error: Exception) -> str:
    """Say in a few words why something did not run."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"fails: {type(error).__name__}"


def tried(run: Callable[[], object]) -> str:
    """Run once; give why it fails, or nothing."""
    try:
        run()
    except OutOfTime:
        raise
    except Exception as error:  # another package's fault is a cell of the table
        return why(error)
    return ""


def on_cuda(runs: Runs) -> Took:
    """Time functions by CUDA events."""
    took: Took = {}
    sound: dict[str, Callable[[], object]] = {}
    for name, run in runs.items():
        # twice: what is compiled, tuned or allocated at the first call is not counted
        fault = tried(run) or tried(run) or tried(torch.cuda.synchronize)
        if fault:
            took[name] = fault
            free()
        else:
            sound[name] = run
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in sound}
    end = monotonic() + SECONDS
    for turn in range(ROUNDS):
        if turn >= LEAST and monotonic() > end:
            break
        for name, run in sound.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            events[name].append((start, stop))
        torch.cuda.synchronize()
    for name, pairs in events.items():
        took[name] = median(start.elapsed_time(stop) for start, stop in pairs) / 1e3
    return {name: took[name] for name in runs}


def free() -> None:
    """Give back memory that nothing holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def graphed(run: Callable[[], object]) -> Callable[[], object] | None:
    """Capture a function as a CUDA graph, or give nothing where that is not possible."""
    with suppress(RuntimeError):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay
    return None


def machine() -> Machine:
    """Measure what the GPU copies and multiplies in a second."""
    x = torch.empty(2**29, dtype=torch.int8, device="cuda")
    y = torch.empty_like(x)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    took = on_cuda({"copy": lambda: y.copy_(x), "product": lambda: a @ b})
    copy, product = (float(took[name]) for name in ("copy", "product"))
    return Machine(2 * x.numel() / copy, 2.0 * 8192**3 / product)
