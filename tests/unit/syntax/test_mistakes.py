"""Each common mistake of the text form has its own message."""

from __future__ import annotations

import re

import pytest

from nlc.diagnostics import Diagnostic, Faults, SpecError
from nlc.source import Source
from nlc.syntax.mistakes import mistakes, table
from nlc.syntax.parse_text import parse_passage, parse_text
from nlc.syntax.passage import Passage

MEMORY = "block f(x[d]) -> out[d] {\n  memory M : linear(d -> d) at fast {\n    %s\n  }\n}"
WITHIN = {
    "spec": "%s",
    "dims": "dims {\n  %s\n}",
    "block": "block f(x[d]) -> out[d] {\n  %s\n}",
    "rule": "rule f(lr) {\n  %s\n}",
    "model": "model {\n  %s\n}",
    "memory": MEMORY,
    "update": MEMORY % "update {\n      %s\n    }",
}
# what the YAML form writes as a text of its own
STARTS = {
    "period": "period",
    "level": "level_tail",
    "block_head": "block_head",
    "rule_head": "rule_head",
}
EXAMPLES = [
    (row["code"], row.get("in") or (row.get("place") or ["block"])[0], example)
    for row in table()["mistakes"]
    for example in row["examples"]
]


def faults_of(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as caught:
        parse_text(Source("x.nl", text))
    return caught.value.diagnostics


@pytest.mark.parametrize(("code", "place", "example"), EXAMPLES)
def test_a_mistake_has_its_own_code_and_no_other_follows(
    code: str, place: str, example: str
) -> None:
    if place in STARTS:
        faults = Faults()
        parse_passage(Passage.whole(Source("x", example)), STARTS[place], place, faults)
        found = faults.found
    else:
        found = list(faults_of(WITHIN[place] % example))
    assert [fault.code for fault in found] == [code]
    assert found[0].hint and found[0].labels[0].primary
    assert "{" not in re.sub(r"`[^`]*`", "", found[0].title + found[0].hint)


def test_every_row_has_examples() -> None:
    assert all(row["examples"] for row in table()["mistakes"])
    assert len(mistakes()) == len(table()["mistakes"])


@pytest.mark.parametrize("character", sorted(table()["characters"]))
def test_a_character_of_mathematics_says_what_to_write(character: str) -> None:
    faults = faults_of(f"block f(x) -> y {{\n  y = x {character} x\n}}")
    assert faults[0].code in ("NL0102", "NL0142")


@pytest.mark.parametrize(
    ("text", "code", "primary"),
    [
        ("block f(x[d] -> y {\n  y = x\n}", "NL0104", "("),
        ("block f(x) -> y {\n  y = f(x\n  z = x\n}", "NL0104", "("),
        ("block f(x) -> y {\n  y = ||x\n  z = x\n}", "NL0104", "||"),
        ("block f(x) -> y {\n  y = f(x]\n}", "NL0104", "("),
        ("block f(x) -> y {\n  y = x)\n}", "NL0106", ")"),
        ("level a never\n}\n", "NL0106", "}"),
        ("block f(x) -> y {\n  y = x\n", "NL0105", "{"),
        ("block f(x) -> y {\n  y = x\nmodel {\n  vocab 2\n}\n", "NL0105", "{"),
        (MEMORY % "key k\n  out = x", "NL0105", "{"),
        ("block f(x) -> y {\n  y = x; z = x +; w = y\n}", "NL0141", "+"),
        ("dims { d = 1\n  e = 2,\n  f = (3\n  g = 4 }", "NL0104", "("),
    ],
)
def test_brackets(text: str, code: str, primary: str) -> None:
    fault = faults_of(text)[0]
    assert (fault.code, fault.labels[0].span.text) == (code, primary)


def test_an_unknown_token_says_what_is_expected() -> None:
    (fault,) = faults_of("level a never -> 3")
    assert fault.code == "NL0101"
    assert fault.hint == "expected: `,` or the end of the line"


def test_places_count_code_points_and_lines_from_one() -> None:
    (fault,) = faults_of("block f(θ) -> y {\n  # 😀\n  ŷ = θ ** 2\n}")
    assert fault.code == "NL0109"
    span = fault.labels[0].span
    assert span.source.position(span.start) == (3, 9)


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("dims d = 1, e = 2 }\nlevel a never\n", ["NL0107"]),
        ("level a never }\nlevel b never }\n", ["NL0106", "NL0106"]),
        ("level a never\n}\n}\nlevel b\n", ["NL0106", "NL0106", "NL0125"]),
    ],
)
def test_a_brace_that_closes_nothing_is_one_fault(text: str, codes: list[str]) -> None:
    assert [fault.code for fault in faults_of(text)] == codes
