"""The interpreter against loops written by hand from the papers' equations."""

from __future__ import annotations

import pytest

from tests.references.compare import compare, compare_cuts, compare_rows
from tests.references.specs import resolve
from tests.references.systems import SYSTEMS


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_agrees_with_the_loop_of_the_paper(name: str) -> None:
    text, hand = SYSTEMS[name]
    compare(resolve(text), "mixer", hand)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_any_cut_of_the_sequence_is_one_pass(name: str) -> None:
    compare_cuts(resolve(SYSTEMS[name][0]), "mixer")


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_rows_of_a_batch_do_not_meet(name: str) -> None:
    compare_rows(resolve(SYSTEMS[name][0]), "mixer")
