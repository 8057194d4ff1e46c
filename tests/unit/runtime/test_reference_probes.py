"""Specs of one thing each: any cut is one pass, rows do not meet."""

from __future__ import annotations

import pytest

from tests.references.compare import compare_cuts, compare_rows
from tests.references.probes import PROBES
from tests.references.specs import resolve


@pytest.mark.parametrize("name", sorted(PROBES))
def test_runs_the_same_however_it_is_cut(name: str) -> None:
    system = resolve(PROBES[name])
    compare_cuts(system, "mixer", length=4)
    compare_rows(system, "mixer", length=3)
