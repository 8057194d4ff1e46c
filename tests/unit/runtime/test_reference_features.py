"""One feature of the language each, against a loop that says what it means."""

from __future__ import annotations

import pytest

from tests.references import (
    features_chunk,
    features_entries,
    features_memory,
    features_slots,
    features_times,
    features_update,
    features_window,
)
from tests.references.compare import compare, compare_cuts
from tests.references.features import FEATURES
from tests.references.specs import resolve

# importing them fills the registry
assert features_chunk and features_memory and features_update
assert features_entries and features_slots and features_times and features_window


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_means_what_the_loop_says(name: str) -> None:
    text, hand = FEATURES[name]
    compare(resolve(text), "mixer", hand)


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_can_be_cut_anywhere(name: str) -> None:
    compare_cuts(resolve(FEATURES[name][0]), "mixer")
