"""The emitted code of the library's specs, as golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import nlc

SPECS = sorted(Path(nlc.__file__).parents[1].joinpath("specs").glob("*.nl"))


@pytest.mark.parametrize("spec", [p.stem for p in SPECS if p.stem != "rules"])
def test_emitted_model(spec: str, golden: Callable[[str, str], None]) -> None:
    compiled = nlc.compile(nlc.load(next(p for p in SPECS if p.stem == spec)))
    golden(f"models/{spec}.py", compiled.source)


def test_emitted_optimizers(golden: Callable[[str, str], None]) -> None:
    compiled = nlc.compile(nlc.load(next(p for p in SPECS if p.stem == "gated_deltanet")))
    golden("models/gated_deltanet_optimizers.py", compiled.optimizers_source)


def test_emitted_optimizers_with_kernels(golden: Callable[[str, str], None]) -> None:
    pytest.importorskip("triton")
    spec = next(p for p in SPECS if p.stem == "gated_deltanet")
    compiled = nlc.compile(nlc.load(spec), target="triton")
    golden("models/gated_deltanet_optimizers_kernels.py", compiled.optimizers_source)


def test_emitted_rules(golden: Callable[[str, str], None]) -> None:
    compiled = nlc.compile(nlc.load(next(p for p in SPECS if p.stem == "rules")))
    golden("models/rules_optimizers.py", compiled.optimizers_source)
