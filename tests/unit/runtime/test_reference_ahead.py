"""What the interpreter runs ahead of the emitters, against loops that say what it means."""

from __future__ import annotations

import pytest

from tests.references import features_slots
from tests.references.compare import compare, compare_cuts, compare_rows
from tests.references.features import AHEAD
from tests.references.specs import resolve

# importing it fills the registry
assert features_slots


@pytest.mark.parametrize("name", sorted(AHEAD))
def test_means_what_the_loop_says(name: str) -> None:
    text, hand = AHEAD[name]
    compare(resolve(text), "mixer", hand, length=8)


@pytest.mark.parametrize("name", sorted(AHEAD))
def test_can_be_cut_anywhere(name: str) -> None:
    system = resolve(AHEAD[name][0])
    compare_cuts(system, "mixer", length=8)
    compare_rows(system, "mixer", length=6)
