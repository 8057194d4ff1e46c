"""Rules as kernels agree with their PyTorch form, and compile for every architecture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
RULES = ("adamw", "sgd", "muon")


def steps(*names: str) -> dict[str, dict[str, Any]]:
    """Run cases in a process where kernels are interpreted."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.steps", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("case"): line for line in lines}


def small(found: dict[str, dict[str, Any]], most: float = 1e-6) -> None:
    for name, case in found.items():
        assert case["error"] < most, (name, case)


def test_rules_as_kernels_agree_with_pytorch() -> None:
    found = steps("adamw", "muon", "m3", "odd", "misaligned", "saved", "levels", "half:adamw")
    small(found)
    small(steps("elsewhere"))
    # at each of four steps: what is even and what is not; two steps lack gradients of one kind
    assert 4 <= found["adamw"]["launches"] <= 8
    assert found["odd"]["launches"]


def test_parameters_in_bfloat16_are_read_and_written_as_they_are() -> None:
    small(steps("bfloat16:adamw"), 2**-7)


@pytest.mark.slow
def test_all_rules_as_kernels_agree() -> None:
    small(steps("sgd", "momentum", "nesterov", "titans", "adam", "adagrad", "adamuon", "rmsuon",
                "delta_momentum", "half:muon"))  # fmt: skip


@pytest.mark.slow
def test_random_rules_as_kernels_agree() -> None:
    found = steps("random:40")["random:40"]
    assert found["error"] < 1e-3
    assert found["launches"] > 300


def taken(architecture: str) -> list[dict[str, Any]]:
    """What the kernels of some rules take, from a process that interprets nothing."""
    keep = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.test_steps", architecture]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=keep, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert kernel["faults"] == [], kernel
        assert kernel["spilled"] == 0, kernel
        # a thread moves 16 bytes at a time
        assert kernel["wide"], kernel


def test_kernels_of_rules_compile_ahead_of_time() -> None:
    check(taken("sm_90"))


@pytest.mark.slow
def test_what_kernels_of_rules_take(golden: Callable[[str, str], None]) -> None:
    lines = ["kernel          machine  warps registers spilled  shared"]
    for architecture in ARCHITECTURES:
        kernels = taken(architecture)
        for k in kernels:
            lines.append(
                f"{k['kernel']:<15} {architecture:<8} {k['warps']:>5} {k['registers']:>9} "
                f"{k['spilled']:>7} {k['shared']:>7}"
            )
        check(kernels)
    golden("kernels/rules.txt", "\n".join(lines) + "\n")


def main(architecture: str) -> None:
    """Print what the kernels of some rules take."""
    from dataclasses import asdict

    from nlc.codegen.optimizer import emit_optimizers

    import nlc
    from nlc.library import shipped_rules
    from nlc.optimizers import rule_as_optimizer
    from nlc.runtime.ahead import compile_steps

    system = nlc.parse("system rules\ndims { n = 1 }")
    rules = [rule_as_optimizer(system, shipped_rules()[name]) for name in RULES]
    wide = r"\.v4\.b32|dwordx4"
    for found, assembly in compile_steps(emit_optimizers(system, rules, True), architecture):
        whole = re.search(wide, assembly) is not None
        print(json.dumps({**asdict(found), "faults": found.faults, "wide": whole}))


if __name__ == "__main__":
    main(sys.argv[1])
