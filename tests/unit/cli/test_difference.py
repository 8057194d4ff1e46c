"""What differs between two specs: clauses, not lines."""

from __future__ import annotations

from pathlib import Path

import pytest

import nlc
from nlc.cli.difference import Difference, differences, shown
from nlc.cli.starter import starter
from nlc.source import Source
from nlc.syntax import tree
from nlc.syntax.parse_text import parse_text

SPECS = Path(nlc.__file__).parents[1] / "specs"
TINY = starter("tiny")


def parsed(text: str) -> tree.Spec:
    return parse_text(Source("<text>", text))


def found(old: str, new: str, text: str = TINY) -> list[tuple[str, str, str]]:
    assert old in text
    rows = differences(parsed(text), parsed(text.replace(old, new)))
    return [(d.clause, d.one, d.other) for d in rows]


def test_a_spec_differs_from_itself_in_nothing() -> None:
    for path in sorted(SPECS.glob("*.nl")):
        text = path.read_text("utf-8")
        assert differences(parsed(text), parsed(text)) == [], path.name


def test_names_comments_and_order_do_not_count() -> None:
    lines = TINY.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("q "))
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    other = "\n".join(lines).replace("system tiny", "system other").replace("# [heads, d_k]", "")
    assert differences(parsed(TINY), parsed(other)) == []


@pytest.mark.parametrize(
    ("old", "new", "row"),
    [
        ("d = 128", "d = 64", ("dims.d", "128", "64")),
        ("every 1 token", "every 4 tokens", ("level.fast", "every 1 token", "every 4 tokens")),
        (
            "lr = 1e-3",
            "lr = 3e-3",
            (
                "level.slow optimizer",
                "adamw(lr = 1e-3, weight_decay = 0.1)",
                "adamw(lr = 3e-3, weight_decay = 0.1)",
            ),
        ),
        ("key       k", "key       q", ("block.mixer M key", "k", "q")),
        (
            "sigmoid(W_b(x))",
            "tanh(W_b(x))",
            ("block.mixer beta", "sigmoid(W_b(x))", "tanh(W_b(x))"),
        ),
        (
            "mlp(d -> 4*d -> d)",
            "glu(d -> d -> d)",
            ("block.ffn F", "mlp(d -> 4*d -> d)", "glu(d -> d -> d)"),
        ),
    ],
)
def test_a_clause_that_differs_is_one_row(old: str, new: str, row: tuple[str, str, str]) -> None:
    assert found(old, new) == [row]


def test_an_update_is_shown_as_one_line() -> None:
    rows = found("self = alpha * self\n", "self = alpha * self - 0.1 * M(k) * 0\n")
    assert [r[0] for r in rows] == ["block.mixer M update"]
    assert rows[0][1] == "self = alpha * self; self = self - beta * grad(at = self)"


def test_what_one_spec_alone_has_is_one_row() -> None:
    start, end = TINY.index("# what each token does"), TINY.index("# how the blocks stack")
    without = TINY[:start] + TINY[end:].replace("    x = x + ffn(rmsnorm(x))\n", "")
    rows = differences(parsed(TINY), parsed(without))
    assert rows == [
        Difference("block.ffn", "(x[d]) -> out[d]: 1 weights", ""),
        Difference("model", "  x = x + ffn(rmsnorm(x))", ""),
    ]
    memory = differences(parsed(TINY), parsed(TINY.replace("memory M :", "memory N :")))
    assert (memory[0].clause, memory[0].other) == ("block.mixer M", "")
    assert not any(d.clause.startswith("block.mixer M ") for d in memory)


def test_long_clauses_are_cut_in_tables() -> None:
    assert shown("") == "-" and shown("a") == "a"
    assert len(shown("a" * 500)) == len(shown("b" * 60))


def test_any_two_shipped_specs_can_be_compared() -> None:
    trees = [parsed(path.read_text("utf-8")) for path in sorted(SPECS.glob("*.nl"))]
    for one in trees[:4]:
        for other in trees:
            for row in differences(one, other):
                assert row.one != row.other and row.clause and "\n" not in row.one + row.other
