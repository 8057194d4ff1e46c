"""Printing and parsing undo each other, in both forms, and keep every comment."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlc.diagnostics import SpecError
from nlc.source import Source
from nlc.syntax import tree as t
from nlc.syntax.parse_text import parse_text
from nlc.syntax.parse_yaml import parse_yaml
from nlc.syntax.print_expression import print_expression
from nlc.syntax.print_text import print_text
from nlc.syntax.print_yaml import print_yaml
from tests.strategies import expressions, specs

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
thorough = settings(max_examples=60, deadline=None, suppress_health_check=SLOW)


def text_tree(text: str) -> t.Spec:
    return parse_text(Source("x.nl", text))


def yaml_tree(text: str) -> t.Spec:
    return parse_yaml(Source("x.yaml", text))


def words_of(spec: t.Spec) -> list[str]:
    """All that the comments of a tree say, in no order."""
    return sorted(_comments(spec))


def _comments(node: object) -> list[str]:
    found: list[str] = []
    if isinstance(node, t.Comments):
        behind = [] if node.behind is None else node.behind.split("; ")
        lines = [*node.above, *behind, *node.inside]
        found.extend(piece for line in lines if line != t.BLANK for piece in line.split("; "))
    elif isinstance(node, tuple):
        for item in node:
            found.extend(_comments(item))
    elif isinstance(node, t.Node):
        for value in vars(node).values():
            found.extend(_comments(value))
    return found


@thorough
@given(expressions)
def test_an_expression_survives_printing(expression: t.Expr) -> None:
    text = f"block f() -> y {{\n  y = {print_expression(expression)}\n}}\n"
    (equation,) = text_tree(text).blocks[0].equations
    assert isinstance(equation, t.Assign)
    assert equation.values == (expression,)


@thorough
@given(specs())
def test_text_parses_to_the_tree_it_was_printed_from(spec: t.Spec) -> None:
    text = print_text(spec)
    again = text_tree(text)
    assert again == spec
    assert print_text(again) == text
    assert words_of(again) == words_of(spec)


@thorough
@given(specs())
def test_yaml_parses_to_the_tree_it_was_printed_from(spec: t.Spec) -> None:
    text = print_yaml(spec)
    again = yaml_tree(text)
    assert again == spec
    assert print_yaml(again) == text
    assert words_of(again) == words_of(spec)


@thorough
@given(specs())
def test_conversion_is_stable_both_ways(spec: t.Spec) -> None:
    text = print_text(spec)
    yaml = print_yaml(text_tree(text))
    assert print_text(yaml_tree(yaml)) == text
    assert print_yaml(text_tree(print_text(yaml_tree(yaml)))) == yaml


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    for parse in (text_tree, yaml_tree):
        try:
            parse(text)
        except SpecError as error:
            assert 1 <= len(error.diagnostics) <= 20
