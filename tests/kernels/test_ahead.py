"""Kernels compile for every architecture, without a GPU, and keep within what a machine has.

The registers, spills and shared memory of each are a golden table: `golden/kernels/`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlc

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
# bytes that a kernel may spill, for each thread
BUDGET = 1024
# ... in kernels of maps with layers, which hold the states of one layer at a time
LAYERS = 2048
SYSTEMS = ("gated_deltanet", "titans_linear", "rwkv7", "gla")
# those that walk token by token, without chunks
LOOPS = ("ttt_linear", "surprise", "titans_lmm")


def compiled(name: str, architecture: str, chunk: int = 0, **dims: int) -> list[dict[str, Any]]:
    """What each kernel of a shipped spec takes, from a process that interprets nothing.

    With a chunk of 1, some specs have no normal form.
    """
    words = [word for key, size in dims.items() for word in ("--set", f"dims.{key}={size}")]
    words += ["--set", f"levels.fast.chunk={chunk}"] if chunk else []
    command = [sys.executable, "-m", "nlc", "explain", name]
    command += ["--format", "json", *words]
    command += ["--target", "triton", "--arch", architecture]
    keep = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=keep)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["kernels"]
    assert found["missing"] is None
    return list(found["kernels"])


def check(kernels: list[dict[str, Any]], budget: int = BUDGET) -> None:
    """The gates that every kernel passes."""
    for kernel in kernels:
        assert kernel["faults"] == [], (kernel["name"], kernel["architecture"])
        assert kernel["spilled"] <= budget, (kernel["name"], kernel["architecture"])


def test_kernels_compile_ahead_of_time() -> None:
    check(compiled("linear_attention", "sm_90", d_k=16, d_v=16))
    check(compiled("surprise", "sm_90", chunk=1, d_k=16, d_v=16))


HEAD = "kernel        machine  warps registers spilled  shared tensor"


def _rows(kernels: list[dict[str, Any]], architecture: str) -> list[str]:
    return [
        f"{k['role']:<13} {architecture:<8} {k['warps']:>5} {k['registers']:>9} "
        f"{k['spilled']:>7} {k['shared']:>7} {k['tensor']:>6}"
        for k in kernels
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SYSTEMS, *LOOPS])
def test_what_kernels_take(name: str, golden: Callable[[str, str], None]) -> None:
    lines = [HEAD]
    for architecture in ARCHITECTURES:
        known = dict(nlc.load(f"specs/{name}.nl").dims)
        wanted = () if name in LOOPS else ("d_k", "d_v", "head")
        sizes = {key: 64 for key in wanted if key in known}
        kernels = compiled(name, architecture, int(name in LOOPS), **sizes)
        lines += _rows(kernels, architecture)
        check(kernels)
    golden(f"kernels/{name}.txt", "\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chunk", "size", "table"),
    [
        ("titans_lmm", 64, 64, "chunks"),
        ("ttt_linear", 16, 64, "chunks"),
        # a gate of each channel
        ("yaad", 16, 32, "chunks"),
        # a hidden width of 256, in slices
        ("titans_lmm", 64, 128, "slices"),
    ],
)
def test_what_kernels_of_maps_with_layers_take(
    name: str, chunk: int, size: int, table: str, golden: Callable[[str, str], None]
) -> None:
    lines = [HEAD]
    for architecture in ARCHITECTURES:
        known = dict(nlc.load(f"specs/{name}.nl").dims)
        sizes = {key: size for key in ("d_k", "d_v") if key in known}
        kernels = compiled(name, architecture, chunk, **sizes)
        assert any(kernel["sliced"] for kernel in kernels) == (table == "slices")
        lines += _rows(kernels, architecture)
        check(kernels, LAYERS)
    golden(f"kernels/{name}_{table}.txt", "\n".join(lines) + "\n")


@pytest.mark.slow
def test_what_kernels_of_ends_of_windows_take(golden: Callable[[str, str], None]) -> None:
    lines = [HEAD]
    for architecture in ARCHITECTURES:
        kernels = compiled("lact", architecture)
        lines += _rows(kernels, architecture)
        check(kernels, 0)
    check(compiled("lact", "sm_90", d_k=128, width=1024), 0)
    golden("kernels/lact.txt", "\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 128, 256])
def test_kernels_of_other_sizes_compile(size: int) -> None:
    for architecture in ARCHITECTURES:
        check(compiled("gated_deltanet", architecture, d_k=size, d_v=size))


@pytest.mark.slow
def test_kernels_that_walk_128_channels_keep_within_the_budget() -> None:
    check(compiled("kda", "sm_90", d_k=128, d_v=128))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["titans_linear", "rwkv7", "gla"])
def test_kernels_of_128_channels_spill_little(name: str) -> None:
    known = dict(nlc.load(f"specs/{name}.nl").dims)
    sizes = {key: 128 for key in ("d_k", "d_v") if key in known}
    for kernel in compiled(name, "sm_90", **sizes):
        assert kernel["faults"] == []
        assert kernel["spilled"] <= 128, kernel["role"]
