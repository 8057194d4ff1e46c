"""Random systems with windows agree with the interpreter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nlc
from tests.random_windows import Writer
from tests.unit.codegen.agree import agree

TOKENS = st.sampled_from([1, 2, 5, 8, 11])


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), TOKENS)
def test_windows_agree_with_the_interpreter(seed: int, tokens: int) -> None:
    agree(nlc.parse(Writer(seed).text()), tokens=tokens)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10**9), TOKENS)
def test_other_windows_at_each_run(seed: int, tokens: int) -> None:
    agree(nlc.parse(Writer(seed).text()), tokens=tokens)
