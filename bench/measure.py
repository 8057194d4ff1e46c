"""Time alternatives side by side.

In: functions by name. Out: the median seconds of each. Every round runs all of them once, so that
what slows the machine for a while slows all; the first round is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter


def side_by_side(
    of: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = perf_counter
) -> dict[str, float]:
    """Return the median seconds of each function over the rounds, by a clock."""
    times: dict[str, list[float]] = {name: [] for name in of}
    for turn in range(rounds + 1):
        for name, run in of.items():
            start = clock()
            run()
            if turn:
                times[name].append(clock() - start)
    return {name: median(seconds) for name, seconds in times.items()}


def shown(seconds: float) -> str:
    """Write a time with a fitting unit.

    >>> shown(0.01234)
    '12.3 ms'
    """
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
