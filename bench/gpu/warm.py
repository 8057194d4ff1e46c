"""Compile what will be timed, in processes side by side: `python -m bench.gpu.warm CASE SIZE`.

fla's operations try many block sizes for each kernel, and compiling these one after another would
take longer than all measuring. A process here runs one case at a small size, each choice of block
sizes once; what it compiled lies in triton's cache on the disk afterwards.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, sleep
from typing import Any

from bench.gpu.cases import CASES, Shape
from bench.gpu.compare import forward, steps, whole
from bench.gpu.ops import installed

TOKENS = 1024  # a multiple of all that kernels are specialised for


def tune_briefly(once: bool = False) -> None:
    """Have triton's autotuners measure each choice for 20 ms, not 100; or only run it once."""
    import triton.testing
    from triton.runtime.autotuner import Autotuner

    def run(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
        call()
        return [1.0] * len(quantiles)

    how: Any = run if once else partial(triton.testing.do_bench, warmup=5, rep=20)
    Autotuner.do_bench = property(lambda self: how)


def compile_all(names: Sequence[str], sizes: Sequence[tuple[int, int]], seconds: float) -> float:
    """Compile cases at (heads, size), as many at a time as there are cores; give the seconds."""
    begun = monotonic()
    waiting = [(name, *size) for size in sizes for name in names]
    running: list[subprocess.Popen[bytes]] = []
    room = max(1, min(8, (os.cpu_count() or 2) - 1))
    try:
        while (waiting or running) and monotonic() < begun + seconds:
            running = [process for process in running if process.poll() is None]
            while waiting and len(running) < room:
                name, heads, size = waiting.pop(0)
                words = [sys.executable, "-W", "ignore", "-m", "bench.gpu.warm", name]
                words += [str(heads), str(size)]
                quiet = subprocess.DEVNULL
                running.append(subprocess.Popen(words, stdout=quiet, stderr=quiet))
            sleep(0.1)
    finally:
        # what is not compiled by now is compiled when it is timed
        for process in running:
            process.kill()
            process.wait()
    return monotonic() - begun


def one(name: str, heads: int, size: int, device: str = "cuda") -> None:
    """Run one case forward, backward and by one token."""
    case, shape = CASES[name], Shape(2, TOKENS, heads, size)
    streams = case.draw(shape, device)
    runs = [(case.ours(shape, device), streams)]
    if (theirs := case.theirs) is not None and installed():
        runs.append((theirs, [x.detach().contiguous() for x in case.turned(*streams)]))
    for run, given in runs:
        forward(run, given)()
        whole(run, given)()
    for step in steps(case, shape, device).values():
        step()


if __name__ == "__main__":
    tune_briefly(once=True)
    one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
