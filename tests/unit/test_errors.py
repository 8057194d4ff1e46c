"""The catalogue of codes, and the nearest known word."""

from __future__ import annotations

import re

import pytest

from nlc.errors import InternalError, catalogue, codes, entry, form_of, nearest


@pytest.mark.parametrize(
    ("word", "candidates", "expected"),
    [
        ("momentun", ["momentum", "decay"], "momentum"),
        ("W_Q", ["W_k", "W_q"], "W_q"),
        ("sigmiod", ["sigmoid", "silu"], "sigmoid"),
        ("fsat", ["fast", "slow"], "fast"),
        ("sdg", ["dgd", "sgd"], "sgd"),
        ("zebra", ["fast", "slow"], None),
        ("x", [], None),
    ],
)
def test_nearest(word: str, candidates: list[str], expected: str | None) -> None:
    assert nearest(word, candidates) == expected


def test_nearest_does_not_depend_on_the_order() -> None:
    assert nearest("ab1", ["ab2", "ab3"]) == nearest("ab1", ["ab3", "ab2"])


def test_form_of_a_text() -> None:
    assert form_of("# c\n\nsystem: a\n") == "yaml"
    assert form_of("system a\n") == "nl"


def test_codes_are_sorted_and_well_formed() -> None:
    assert list(codes()) == sorted(codes())
    assert all(re.fullmatch(r"NL0[1-9]\d\d", code) for code in codes())


def test_entries_are_whole() -> None:
    for found in catalogue().values():
        assert found.title and found.cause and found.wrong and found.right, found.code
        assert found.wrong != found.right, found.code
        assert not found.title.endswith("."), found.code


def test_an_entry_is_found_in_any_case() -> None:
    for code in codes():
        assert entry(code.lower()) == entry(code)
    assert entry("NL0000") is None


def test_an_internal_error_says_whose_fault_it_is() -> None:
    assert "bug of nlc, not of your spec: x" in str(InternalError("x"))
