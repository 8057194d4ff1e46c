"""Memories that make each other's keys run through their chunks in parallel, and agree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nlc
from tests.random_groups import group
from tests.unit.codegen.agree import agree


def check(seed: int, tokens: int) -> None:
    compiled = agree(nlc.parse(group(seed)), tokens=tokens)
    assert {s.kind for s in compiled.schedules.values()} <= {"tile-scan", "tile-solve"}, seed


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([7, 13]))
def test_random_groups_agree_with_the_interpreter(seed: int, tokens: int) -> None:
    check(seed, tokens)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 13, 17]))
def test_many_random_groups_agree_with_the_interpreter(seed: int, tokens: int) -> None:
    check(seed, tokens)
