"""`make bench`: ratios of emitted code to loops, to fla's references and to hand-written steps.

Everything that is compared runs in the same process, in turns, with one thread, in float32. Prints
Markdown tables, as docs/performance.md has them.
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

import torch

from bench.decoding import decoding
from bench.deep import decoding_deep, deep
from bench.measure import shown, side_by_side
from bench.modifying import modifying
from bench.online import online
from bench.optimizers import optimizers
from bench.training import training


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="length of a sequence (2048)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (5)")
    parser.add_argument("--only", metavar="PART", help=f"one part: {', '.join(PARTS)}")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine(), "\n")
    if wanted.only and wanted.only not in PARTS:
        parser.error(f"--only takes one of {', '.join(PARTS)}")
    for name, run in PARTS.items():
        if wanted.only in (None, name):
            run(wanted.tokens, wanted.rounds)


PARTS: dict[str, Callable[[int, int], None]] = {
    "training": training,
    "deep": deep,
    "modifying": lambda tokens, rounds: modifying(rounds),
    "decoding": lambda tokens, rounds: decoding(rounds),
    "decoding-deep": lambda tokens, rounds: decoding_deep(rounds),
    "optimizers": lambda tokens, rounds: optimizers(rounds),
    "online": online,
    "compiling": lambda tokens, rounds: compiling(rounds),
}


def machine() -> str:
    """Describe the machine and the versions in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
    python = platform.python_version()
    where = f"{model or platform.machine()}, {os.cpu_count()} cores, one used"
    return f"{where}; Python {python}, torch {torch.__version__}, {platform.system()}"


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
