"""What `make bench` compares gives the same numbers, and runs as its titles say."""

from __future__ import annotations

import pytest

from bench.cores import CORES
from bench.decoding import core_steps
from bench.layers import LAYERS
from bench.training import core_runs, layer_runs


@pytest.mark.parametrize("name", CORES)
def test_cores_agree_with_loops_and_references(name: str) -> None:
    # making the runs compares their outputs and gradients; fla's chunks hold 64 tokens
    runs = core_runs(name, 64)
    assert {"nlc", "loop"} <= set(runs)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_layers_by_hand(name: str) -> None:
    assert "loop" in layer_runs(name, 64)


@pytest.mark.parametrize("name", ["gated_deltanet", "titans_linear", "rwkv7"])
def test_steps_agree_with_steps_by_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.decoding.PLACES", (16,))
    assert "by hand" in core_steps(name)


def test_titles_say_how_gates_are_kept() -> None:
    for name, core in CORES.items():
        if name.endswith("_free"):
            assert core.name.endswith("gates direct")
        if name.endswith("_kept"):
            assert core.name.endswith("gates factored")
