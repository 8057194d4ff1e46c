"""Kernels, forward and backward, in Triton's interpreter agree with PyTorch in float64."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")


def interpreted(*names: str) -> dict[str, dict[str, Any]]:
    """Run cases in a process where kernels are interpreted."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.interpreted", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("case"): line for line in lines}


def small(found: dict[str, dict[str, Any]], most: float = 2e-5) -> None:
    """Hold all errors below a bound."""
    for name, errors in found.items():
        for what, error in errors.items():
            assert error < most, (name, what, error)


def sound(found: dict[str, dict[str, Any]], kind: str) -> None:
    """Hold a block in half precision, and what torch asks of operations."""
    assert found[f"{kind}:half"]["half"] < 5e-3
    checked = found[f"{kind}:operations"]
    assert checked.pop("fullgraph") < 1e-6
    assert len(checked) >= 4
    assert all(result == ["SUCCESS"] for result in checked.values()), checked


def test_kernels_of_one_state_agree_forward_and_backward() -> None:
    small(interpreted("gated_deltanet", "linear_attention", "earlier"))


def test_kernels_with_gates_by_channel_and_of_several_states_agree() -> None:
    small(interpreted("rwkv7", "states"))


def test_kernels_of_several_writes_by_channel_and_transposed_agree() -> None:
    small(interpreted("turned", "channels", "reset", "both"))


def test_kernels_in_half_precision_and_their_operations() -> None:
    found = interpreted("half", "operations")
    assert found["half"]["half"] < 5e-3
    checked = found["operations"]
    assert checked.pop("fullgraph") < 1e-6
    assert len(checked) >= 6
    assert all(result == ["SUCCESS"] for result in checked.values()), checked


def test_kernels_of_maps_with_layers_agree_forward_and_backward() -> None:
    small(interpreted("layers:deep", "layers:ttt_linear", "layers:making", "layers:yaad"))
    small(interpreted("slices:small"))


def test_memories_that_share_a_class_share_its_kernels() -> None:
    small(interpreted("alike"))


@pytest.mark.slow
def test_kernels_of_other_maps_with_layers_agree_and_are_sound_operations() -> None:
    names = (
        "tiles",
        "gated",
        "first",
        "ttt_mlp",
        "titans_lmm",
        "omeganet",
        "tnt",
        "sizes",
        "channels",
        "roots",
        "moving",
        "moving_tiles",
        "making_tiles",
        "making_chunks",
        "self_modifying",
        "numbers",
        "numbers_tiles",
        "twice",
        "erased",
    )
    small(interpreted(*(f"layers:{name}" for name in names)))
    sound(interpreted("layers:half", "layers:operations"), "layers")


@pytest.mark.slow
def test_kernels_that_walk_layers_in_slices_agree_and_are_sound_operations() -> None:
    names = ("tiles", "gated", "long", "moving", "erased", "shipped")
    small(interpreted(*(f"slices:{name}" for name in names)))
    small(interpreted("slices:deep"), 1e-4)
    sound(interpreted("slices:half", "slices:operations"), "slices")


def test_one_token_is_one_kernel_where_nobody_asks_for_gradients() -> None:
    found = interpreted("step:nonlinear", "step:titans_linear", "step:alone", "step:operation")
    small(found)


def test_all_memories_of_a_block_are_one_launch_for_one_token() -> None:
    small(interpreted("token:self_modifying_titans", "token:tied", "token:titans_mag"))
    assert interpreted("token:half")["token:half"]["half"] < 5e-3


def test_kernels_over_blocks_of_values_agree() -> None:
    small(interpreted("wide:gated_deltanet", "wide:titans_linear"))


def test_block_sizes_are_found_by_measuring() -> None:
    found = interpreted("tuned")["tuned"]
    assert found["row"] == found["now"] == [64, 16, 2, 2, 1]
    assert found["gates"] == "ScalarGate"
    assert found["seen"] == found["tried"] >= 8


@pytest.mark.slow
def test_block_sizes_of_layers_and_loops_are_found_by_measuring() -> None:
    found = interpreted("tuned:loop")["tuned:loop"]
    assert found["gates"] == "loop"
    assert found["row"] == found["now"]
    assert found["row"][0] == 64
    assert found["row"][2:] == [1, 1, 1]
    assert found["size"] == 32
    found = interpreted("tuned:layers")["tuned:layers"]
    assert found["gates"] == "layers"
    assert found["row"] == found["now"] == [32, 1, 2, 2, 1]


def test_a_loop_over_tokens_is_one_kernel_each_way() -> None:
    small(interpreted("loop:rows", "loop:starts", "loop:surprise"))
    small(interpreted("scan:longhorn", "scan:random:0"))


def test_loops_in_half_precision_and_their_operations() -> None:
    found = interpreted("loop:half", "loop:operations")
    assert found["loop:half"]["half"] < 5e-3
    checked = found["loop:operations"]
    assert checked.pop("fullgraph") < 1e-6
    assert len(checked) == 2
    assert all(result == ["SUCCESS"] for result in checked.values()), checked


def test_where_a_window_ends_all_parts_of_a_memory_are_launches() -> None:
    small(interpreted("window:both_ways", "window:between", "window:parts"))
    # adam divides by roots of what is small
    small(interpreted("window:task"), 1e-4)


def test_ends_of_windows_in_half_precision_and_their_operations() -> None:
    found = interpreted("window:half", "window:operations")
    assert found["window:half"]["half"] < 5e-3
    checked = found["window:operations"]
    assert checked.pop("fullgraph") < 1e-6
    assert len(checked) == 2
    assert all(result == ["SUCCESS"] for result in checked.values()), checked


@pytest.mark.slow
def test_ends_of_random_windows_are_launches() -> None:
    small(interpreted("window:tnt", "window:adam", "window:consolidation"))
    # five steps of an orthogonalisation: PyTorch in float32 has as much
    small(interpreted("window:lact"), 1e-3)
    small(interpreted(*(f"window:random:{seed}" for seed in range(12))), 1e-4)


@pytest.mark.slow
def test_loops_of_other_updates_are_kernels() -> None:
    small(interpreted("loop:square", "loop:whole", "loop:tied", "loop:recurrent"))
    names = ("titans_lmm", "ttt_linear", "ttt_mlp", "yaad", "memora", "omeganet", "tnt")
    small(interpreted(*(f"loop:{name}" for name in names)))


@pytest.mark.slow
def test_loops_of_random_updates_are_kernels() -> None:
    small(interpreted(*(f"loop:random:{seed}" for seed in range(12))), 1e-4)
    small(interpreted(*(f"scan:random:{seed}" for seed in range(12)), "scan:linear_attention"))


@pytest.mark.slow
def test_steps_of_other_systems_are_one_kernel_each() -> None:
    names = (
        "deltanet",
        "gated_deltanet",
        "states",
        "mesanet",
        "omega",
        "gla",
        "gated_oja",
        "kda",
        "rwkv7",
    )
    more = ("comba", "gdn2", "linear_attention", "gated_deltaproduct")
    small(interpreted(*(f"step:{name}" for name in (*names, *more))))
    deep = ("ttt_mlp", "tnt", "omeganet", "consolidation", "routed_slots", "hybrid", "longhorn")
    small(interpreted(*(f"token:{name}" for name in (*deep, "surprise", "memora"))))
    small(interpreted(*(f"step:random:{seed}" for seed in range(12))), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "deltanet",
        "comba",
        "mamba2",
        "titans_linear",
        "mesanet",
        "retnet",
        "gated_deltaproduct",
        "gated_oja",
        "omega",
        "gla",
        "kda",
        "gdn2",
    ],
)
def test_kernels_of_shipped_systems_agree(name: str) -> None:
    small(interpreted(name))


@pytest.mark.slow
def test_kernels_over_blocks_of_values_with_gates_by_channel_agree() -> None:
    small(interpreted("wide:gla", "wide:kda"))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 60, 10))
def test_kernels_of_random_affine_systems_agree(first: int) -> None:
    found = interpreted(*(f"random:{seed}" for seed in range(first, first + 10)))
    small(found, 1e-4)
