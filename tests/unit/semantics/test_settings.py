"""A setting gives a stream another equation, and says what it could not find."""

from __future__ import annotations

from pathlib import Path

import pytest

import nlc
from nlc.semantics.settings import apply_settings
from nlc.source import Source
from nlc.syntax import tree
from nlc.syntax.parse_text import parse_text

SPEC = Path(nlc.__file__).parents[1] / "specs" / "deltanet.nl"
BETA = "blocks.mixer.equations.beta"


def parsed(text: str) -> tree.Spec:
    return parse_text(Source("<text>", text))


def test_a_stream_can_have_another_equation() -> None:
    text = SPEC.read_text("utf-8")
    written = text.replace("beta = sigmoid(W_beta(x))", "beta = 2 * sigmoid(W_beta(x))")
    assert written != text
    assert apply_settings(parsed(text), {BETA: "2*sigmoid(W_beta(x))"}) == parsed(written)
    nlc.parse(text, set={BETA: "2*sigmoid(W_beta(x))"})


def test_one_of_several_equations_on_a_line_can_be_set() -> None:
    line = "beta = sigmoid(W_beta(x))"
    text = SPEC.read_text("utf-8").replace(line, "beta[heads], u = sigmoid(W_beta(x)), 2 * x")
    wanted = text.replace("2 * x", "3 * x")
    assert apply_settings(parsed(text), {"blocks.mixer.equations.u": "3*x"}) == parsed(wanted)


def test_one_result_of_a_call_cannot_be_set_alone() -> None:
    text = """system s
block two(x[d]) -> a[d], b[d] { a = x; b = x }
block one(x[d]) -> y[d] { u, w = two(x); y = u + w }
dims { d = 4 }
"""
    with pytest.raises(nlc.SpecError) as caught:
        nlc.parse(text, set={"blocks.one.equations.u": "x"})
    assert "no equation of `u` alone" in caught.value.diagnostics[0].title


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("blocks.mixer.equations.bta", "did you mean `beta`?"),
        ("blocks.mixr.equations.beta", "did you mean `mixer`?"),
        ("blocks.mixer.beta", f"did you mean `{BETA}`?"),
        ("blocks.mixer.equations.M", "known here"),
    ],
)
def test_a_stream_that_is_not_there_is_said(path: str, hint: str) -> None:
    with pytest.raises(nlc.SpecError) as caught:
        nlc.load(SPEC, set={path: "1"})
    assert [d.code for d in caught.value.diagnostics] == ["NL0313"]
    assert hint in str(caught.value.diagnostics[0].hint)


def test_an_equation_with_a_fault_has_its_own_message() -> None:
    for value in ("2*sigmoid(", "2*sigmoid(W_bta(x))"):
        with pytest.raises(nlc.SpecError) as caught:
            nlc.load(SPEC, set={BETA: value})
        assert "NL0313" not in [d.code for d in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("path", "code", "said", "place"),
    [
        ("levels.slow.optimizer.rate", "NL0506", "no argument `rate`", "--set levels.slow"),
        ("levels.slow", "NL0313", "no path `levels.slow`", ""),
        (".", "NL0313", "a part without a name", ""),
    ],
)
def test_a_wrong_path_is_said_with_its_place(path: str, code: str, said: str, place: str) -> None:
    with pytest.raises(nlc.SpecError) as caught:
        nlc.load(SPEC, set={path: "1"})
    (found,) = caught.value.diagnostics
    assert found.code == code
    assert said in found.title
    places = [label.span.source.name for label in found.labels if label.primary]
    assert all(name.startswith(place) for name in places)
    assert bool(places) == bool(place)
