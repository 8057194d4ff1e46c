"""`make bench-gpu`: emitted kernels beside flash-linear-attention, titans-pytorch and SDPA.

Needs a GPU; everything happens in one run of at most eight minutes, correctness first. Prints
Markdown tables, as docs/performance.md has them. What there was no time for is named at the end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

import torch

from bench.gpu import compare, warm
from bench.gpu.cases import CASES, SHAPES, Shape
from bench.gpu.deep import deep
from bench.gpu.steps import optimizers
from bench.gpu.timer import Clock, OutOfTime, Timer, machine, on_cuda

MINUTES = 8.0
COMPILING = 0.45  # the share of the budget in which compiling may go on by itself
PACKAGES = ("torch", "triton", "fla-core", "titans-pytorch")
Section = tuple[str, Callable[[], None]]


def main() -> None:
    """Measure, within the minutes that the command line gives."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="most it may take (8)")
    wanted = parser.parse_args()
    reason = missing()
    if reason:
        sys.exit(reason)
    clock = Clock(60 * wanted.minutes - 5)
    clock.alarm()
    found = None
    try:
        found = begin(clock)
        run(sections(found, on_cuda, clock), found)
    except OutOfTime:
        print("\nno time was left to begin")
    finally:
        clock.quiet()
    lines = compare.summary(found) if found else []
    print("\n".join(lines))
    sys.exit(any(line.startswith("NOT") for line in lines))


def missing() -> str:
    """Say why nothing can be measured, or nothing."""
    if not torch.cuda.is_available():
        return (
            "bench-gpu: torch finds no GPU here (torch.cuda.is_available() is False), so nothing "
            "was measured.\nRun it on a machine with one; `make bench` measures on a CPU."
        )
    if os.environ.get("TRITON_INTERPRET", "") not in ("", "0"):
        return "bench-gpu: TRITON_INTERPRET is set, so kernels would be interpreted: unset it."
    return ""


def begin(clock: Clock) -> compare.Found:
    """Describe the machine, and compile everything."""
    # float32 is exact where it is held against float64
    torch.backends.cuda.matmul.allow_tf32 = False
    print(described(), "\n", flush=True)
    found = compare.Found(machine())
    rates = found.machine
    print(
        f"In this run a copy moves {rates.bytes / 1e12:.2f} TB/s, a product of bfloat16 makes "
        f"{rates.operations / 1e12:.0f} TFLOP/s; floors are at these rates.\n"
    )
    sizes = list(dict.fromkeys((shape.H, shape.d) for shape in SHAPES))
    took = warm.compile_all([*CASES], sizes, COMPILING * clock.left())
    print(f"Compiled in {took:.0f} s.\n", flush=True)
    warm.tune_briefly()
    return found


def described() -> str:
    """Describe the machine and the versions in one line."""
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    name = torch.cuda.get_device_name(0)
    return f"{datetime.now(UTC):%Y-%m-%d}, {name}; {', '.join(versions)}"


def sections(
    found: compare.Found, timer: Timer, clock: Clock, shapes: Sequence[Shape] = SHAPES
) -> list[Section]:
    """List what is measured, what matters most first."""
    first, *others = shapes
    decoded = list({(s.B, s.H, s.d): s for s in reversed(shapes)}.values())
    listed: list[Section] = [
        ("correctness", partial(compare.correctness, found, clock, shapes)),
        (f"{first}", partial(compare.times, found, timer, clock, first)),
        ("one token", partial(compare.decoding, found, timer, clock, decoded)),
        (f"deep memory at {first}", partial(deep, found, timer, clock, first)),
        ("optimizers", partial(optimizers, found, timer, clock)),
    ]
    for shape in others:
        listed.append((f"{shape}", partial(compare.times, found, timer, clock, shape)))
    for shape in others:
        listed.append((f"deep memory at {shape}", partial(deep, found, timer, clock, shape)))
    return listed


def run(listed: Sequence[Section], found: compare.Found) -> None:
    """Run sections until the time is used up; name what is left, and what broke off."""
    for i, (name, measure) in enumerate(listed):
        try:
            measure()
        except OutOfTime:
            later = [other for other, _ in listed[i + 1 :]]
            found.left += [f"{what}: no time" for what in (f"the rest of {name}", *later)]
            print("\nthe time is used up\n")
            return
        except Exception as error:  # what was measured so far is worth more than a traceback
            words = str(error).strip().partition("\n")[0]
            found.left.append(f"the rest of {name}: {type(error).__name__}, {words}")
            print(f"\n{name} broke off\n")


if __name__ == "__main__":
    main()
