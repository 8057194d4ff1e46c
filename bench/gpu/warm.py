"""Compile what will be timed, in processes side by side: `python -m bench.gpu.warm ...`.

fla's operations try many block sizes for each kernel, about a thousand at each size, and compiling
these one after another would take longer than all measuring. A process here runs one case at small
sizes, a part of these choices once; what it compiled lies in triton's cache on the disk afterwards.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, sleep
from typing import Any

from bench.gpu.cases import CASES, Shape
from bench.gpu.compare import CHECKED, forward, steps, whole
from bench.gpu.ops import installed

# what compiles longest
LONG = ("rwkv7", "gla", "kda", "retnet")
# multiples of all that kernels are specialised for; and what is checked
SHAPES = ((2, 1024), (1, 1024), (1, CHECKED))
# processes that share the choices of one case at one size
PARTS = 4
MILLISECONDS = 10  # that a choice is measured


def tune_briefly() -> None:
    """Have triton's autotuners measure each choice for 10 ms, not 100."""
    import triton.testing
    from triton.runtime.autotuner import Autotuner

    how: Any = partial(triton.testing.do_bench, warmup=2, rep=MILLISECONDS)
    Autotuner.do_bench = property(lambda self: how)


def run_a_part(part: int, parts: int) -> None:
    """Have triton's autotuners run every choice of a part once, and no other."""
    from triton.runtime.autotuner import Autotuner

    asked: Counter[int] = Counter()

    def run(tuner: int, call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
        mine = asked[tuner] % parts == part
        asked[tuner] += 1
        if mine:
            call()
        # what was not run is chosen only where nothing of this part can run
        return [1.0 if mine else 2.0] * len(quantiles)

    Autotuner.do_bench = property(lambda self: partial(run, id(self)))


def tasks(names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[list[str]]:
    """List the words of all processes: cases at (heads, size) and a part, long ones first."""
    found: list[list[str]] = []
    compiled: set[str] = set()
    for name in sorted(names, key=lambda name: LONG.index(name) if name in LONG else len(LONG)):
        # two cases may have the same operation of fla
        parts = PARTS if CASES[name].name not in {*compiled, ""} else 1
        compiled.add(CASES[name].name)
        for heads, size in sizes:
            words = [name, str(heads), str(size)]
            found += [[*words, str(part), str(parts)] for part in range(parts)]
    return found


def compile_all(names: Sequence[str], sizes: Sequence[tuple[int, int]], seconds: float) -> float:
    """Compile cases at (heads, size), as many at a time as there are cores; give the seconds."""
    begun = monotonic()
    waiting = tasks(names, sizes)
    running: list[subprocess.Popen[bytes]] = []
    room = max(1, min(15, (os.cpu_count() or 2) - 1))
    try:
        while (waiting or running) and monotonic() < begun + seconds:
            running = [process for process in running if process.poll() is None]
            while waiting and len(running) < room:
                words = [sys.executable, "-W", "ignore", "-m", "bench.gpu.warm", *waiting.pop(0)]
                quiet = subprocess.DEVNULL
                running.append(subprocess.Popen(words, stdout=quiet, stderr=quiet))
            sleep(0.1)
    finally:
        # what is not compiled by now is compiled when it is timed
        for process in running:
            process.kill()
            process.wait()
    return monotonic() - begun


def one(name: str, heads: int, size: int, part: int, parts: int, device: str = "cuda") -> None:
    """Run one case forward, backward and by one token: ours in the first part, theirs if split."""
    case = CASES[name]
    for B, T in SHAPES:
        shape = Shape(B, T, heads, size)
        streams = case.draw(shape, device)
        runs = [(case.ours(shape, device), streams)] if part == 0 else []
        if (theirs := case.theirs) is not None and installed() and parts > 1:
            runs.append((theirs, [x.detach().contiguous() for x in case.turned(*streams)]))
        for run, given in runs:
            forward(run, given)()
            whole(run, given)()
        for label, step in steps(case, shape, device).items():
            if (part == 0) if label == "nlc" else parts > 1:
                step()


if __name__ == "__main__":
    run_a_part(int(sys.argv[4]), int(sys.argv[5]))
    one(sys.argv[1], *(int(word) for word in sys.argv[2:6]))
