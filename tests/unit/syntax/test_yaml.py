"""The YAML form: the same trees as the text form, positions, and a message for each mistake."""

from __future__ import annotations

import pytest

from nlc.diagnostics import Diagnostic, SpecError
from nlc.source import Source
from nlc.syntax import tree as t
from nlc.syntax.parse_text import parse_text
from nlc.syntax.parse_yaml import parse_yaml
from nlc.syntax.print_text import print_text
from nlc.syntax.print_yaml import print_yaml
from nlc.syntax.yaml_writer import scalar
from tests.unit.syntax.test_text import CANONICAL

BLOCK = "blocks:\n  f(x[d]) -> out[d]:\n"
MEMORY = BLOCK + "    memories:\n      M:\n        map: linear(d -> d)\n        "


def tree(text: str) -> t.Spec:
    return parse_yaml(Source("x.yaml", text))


def faults_of(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as caught:
        tree(text)
    return caught.value.diagnostics


def test_both_forms_give_one_tree() -> None:
    text = parse_text(Source("x.nl", CANONICAL))
    yaml = print_yaml(text)
    assert tree(yaml) == text
    assert print_text(tree(yaml)) == print_text(text)
    assert "# a licence" in yaml and "# closing words" in yaml and "# the end" in yaml


def test_the_traps_of_yaml_are_none() -> None:
    spec = tree(
        "system: on\ndims: {y: 1e3, no: 1_0, x: 2}\n".replace("1_0", "10")
        + "levels:\n  fast: {every: 1 token, chunk: 1}\n  off: never\n"
        + "model:\n  vocab: 0256\n  equations: [true = null, x = 1e-3]\n"
    )
    assert spec.name == "on" and [dim.name for dim in spec.dims] == ["y", "no", "x"]
    assert spec.dims[0].value == t.Number("1e3") and spec.levels[1].name == "off"
    assert spec.model and spec.model.vocab == t.Number("0256")
    assert spec.model.equations[0] == t.Assign((t.Target(("true",)),), (t.Name("null"),))


def test_aliases_and_merge_keys() -> None:
    spec = tree(
        "levels:\n  a: &a {every: &p 1 token, chunk: 4}\n"
        "  b: {<<: *a, chunk: 8}\n  c: {every: *p}\n"
    )
    a, b, c = spec.levels
    assert a.period == b.period == c.period
    assert b.chunk == t.Number("8") and c.chunk is None


@pytest.mark.parametrize(
    "value",
    [
        "a + b",
        '"a + b"',
        "'a + b'",
        "a +\n          b",
        ">\n          a +\n          b",
        "|\n          a +\n          b",
        '"a \\\n          + b"',
        '"a +\\x20\\u0062"',
    ],
)
def test_spans_point_into_the_yaml(value: str) -> None:
    found = tree(f"{MEMORY}route: {value}\n").blocks[0].memories[0]
    assert isinstance(found.route, t.Binary)
    assert found.route.left.span.text == "a"
    assert found.route.right.span.text in ("b", "\\")
    assert dict(found.clauses)["route"].text.startswith("route: ")


def test_comments_go_with_their_statements() -> None:
    text = """\
# head
system: a  # name
levels:
  # fast things
  fast: {every: 1 token}  # quick
blocks:
  f(x) -> y:
    equations:  # the equations
      # first
      - y = x  # copy
      # last
    # end of f
# end
"""
    spec = tree(text)
    assert spec.comments == t.Comments(("head",), "name", ("end",))
    assert spec.levels[0].comments == t.Comments(("fast things",), "quick")
    (equation,) = spec.blocks[0].equations
    assert equation.comments == t.Comments(("the equations", "first"), "copy")
    assert spec.blocks[0].comments.inside == ("last", "end of f")
    assert print_yaml(tree(print_yaml(spec))) == print_yaml(spec)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b", "a + b"),
        ("||e||", '"||e||"'),
        ("a: b", '"a: b"'),
        ("a # b", '"a # b"'),
        ("-a", "-a"),
        ("null", '"null"'),
        ("*a", '"*a"'),
        ("", '""'),
        ('say "x"', 'say "x"'),
        ('"x"', '"\\"x\\""'),
    ],
)
def test_quotes_stand_where_they_are_needed(text: str, expected: str) -> None:
    assert scalar(text) == expected


@pytest.mark.parametrize(
    ("text", "code", "at"),
    [
        (MEMORY + "objective: ||M(k) - v||^2", "NL0151", "|"),
        (MEMORY + "objective: @x", "NL0151", "@"),
        (MEMORY + "objective: `x`", "NL0151", "`"),
        (MEMORY + "key: * k", "NL0151", "*"),
        (MEMORY + "key: *k", "NL0161", "*k"),
        (MEMORY + "key: > 3", "NL0151", ">"),
        (MEMORY + "key: %k", "NL0151", "%"),
        (MEMORY + "key: !k", "NL0160", "!k"),
        (MEMORY + "key: &k", "NL0156", "&k"),
        (MEMORY + "key: [k1, k2]", "NL0155", "[k1, k2]"),
        (MEMORY + "key: {k}", "NL0155", "{k}"),
        (MEMORY + "update: [S = a, b = f(x, y)]", "NL0152", "b = f(x"),
        (MEMORY + "update: [S = v[heads], b = 1]", "NL0152", "["),
        (MEMORY + "update: [S = a, b = 2", "NL0165", "2"),
        (MEMORY + "update: a + b", "NL0132", "a + b"),
        (MEMORY + "objectiv: x", "NL0154", "objectiv"),
        (MEMORY + "through: ful", "NL0133", "ful"),
        (MEMORY + "reset: every 4 tokens", "NL0125", "every"),
        (MEMORY + "reset: 4", "NL0125", "4"),
        (MEMORY + "update:\n          - when: x > 0", "NL0158", "when"),
        (MEMORY + "update:\n          - whenn: x\n            do: []", "NL0166", "whenn"),
        (MEMORY + "update:\n          - every: 4 steps", "NL0166", "every"),
        ("levels: {a: {every: 1 step, optimizer: f(a = 1, b = 2)}}", "NL0152", "f(a = 1"),
        ("levels: {a: {chunk: 3}}", "NL0158", "a"),
        ("levels: {a: 1 token}", "NL0125", "1"),
        ("levels: {a: {every: 1 toke}}", "NL0125", "toke"),
        ("dims: {d: 1, d: 2}", "NL0153", "d"),
        ("dim: {d: 1}", "NL0154", "dim"),
        ("dims: [a, b]", "NL0155", "[a, b]"),
        ("dims:", "NL0156", ":"),
        ("dims: {d: }", "NL0156", ":"),
        ("system: a\nsystem: b", "NL0153", "system"),
        ("about: x", "NL0158", "about"),
        ("system: [a]", "NL0155", "[a]"),
        ("- a\n- b", "NL0155", "- a"),
        ("? [a]\n: b", "NL0155", "[a]"),
        ("system: a: b", "NL0159", ":"),
        ("dims:\n\td: 1", "NL0157", "\t"),
        ("dims: {d: 1", "NL0165", "1"),
        ("system: 'a", "NL0165", "a"),
        ("dims:\n  d: 1\n e: 2", "NL0164", "e"),
        ("system: a\n---\nsystem: b", "NL0163", "---"),
        ("levels: {a: {every: 1 token, <<: 3}}", "NL0162", "3"),
        (BLOCK + "    equations: y = x", "NL0155", "y = x"),
        (BLOCK + "    equations:\n      - y: x", "NL0166", "y"),
        (BLOCK + "    equations:\n      - every 4 steps: [y = x]", "NL0127", "every 4 steps"),
        (BLOCK + "    equations:\n      - y = x ** 2", "NL0109", "*"),
        (BLOCK + "    weights: {W: {level: a}}", "NL0158", "W"),
        ("blocks:\n  f(x): {}", "NL0124", ")"),
        ("rules:\n  f: {}", "NL0126", "f"),
        ("rules:\n  f(a[d]): {}", "NL0136", "a[d]"),
        ("model:\n  equations:\n    - repeat: 4", "NL0158", "repeat"),
        ("use: {a: b}", "NL0155", "{a: b}"),
    ],
)
def test_a_mistake(text: str, code: str, at: str) -> None:
    found = faults_of(text + "\n")
    assert [(fault.code, fault.labels[0].span.text) for fault in found] == [(code, at)]
    assert found[0].hint


def test_all_faults_are_found_also_after_one_of_yaml_itself() -> None:
    found = faults_of(
        "dims: {a: 1, a: 2}\n" + MEMORY + "objective: ||M||\n        key: @k\n        valu: v\n"
    )
    assert [fault.code for fault in found] == ["NL0153", "NL0151", "NL0151", "NL0154"]


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ("dims: {d:128, e: 2}\n", "NL0156", "write `d: 128`"),
        ("levels: {fast:always}\n", "NL0156", "write `fast: always`"),
        ("system:tiny\ndims: {d: 1}\n", "NL0159", "write `system: tiny`"),
    ],
)
def test_a_colon_without_a_space_says_so(text: str, code: str, hint: str) -> None:
    assert [(fault.code, fault.hint) for fault in faults_of(text)] == [(code, hint)]
