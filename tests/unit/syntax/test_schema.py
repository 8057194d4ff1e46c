"""The JSON Schema accepts what the YAML form accepts, and refuses what an editor should mark."""

from __future__ import annotations

import json
import pkgutil
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from nlc.errors import catalogue
from nlc.source import Source
from nlc.syntax import tree as t
from nlc.syntax.parse_text import parse_text
from nlc.syntax.print_yaml import print_yaml
from tests.strategies import specs
from tests.unit.syntax.test_text import CANONICAL
from tests.unit.syntax.test_yaml import BLOCK, MEMORY


def schema() -> dict[str, Any]:
    data = pkgutil.get_data("nlc.grammar", "spec.schema.json")
    assert data is not None
    loaded: dict[str, Any] = json.loads(data)
    return loaded


VALIDATOR = jsonschema.Draft7Validator(schema())


def faults(text: str) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))]


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(schema())


def test_a_whole_spec_is_accepted() -> None:
    assert faults(print_yaml(parse_text(Source("x.nl", CANONICAL)))) == []


@pytest.mark.parametrize(
    "right",
    [e.right for c, e in catalogue().items() if c.startswith("NL015") or c.startswith("NL016")],
)
def test_the_right_specs_of_the_catalogue_are_accepted(right: str) -> None:
    assert faults(right) == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(specs())
def test_what_is_printed_is_accepted(spec: t.Spec) -> None:
    assert faults(print_yaml(spec)) == []


@pytest.mark.parametrize(
    "text",
    [
        "dim: {d: 1}",
        "dims: [a, b]",
        "dims: {2d: 1}",
        "levels: {a: {chunk: 3}}",
        "levels: {a: {every: 1 second}}",
        "levels: {a: sometimes}",
        "rules: {sgd: {}}",
        "rules: {sgd(lr): {equations: []}}",
        "blocks: {f(x): {}}",
        "about: x",
        BLOCK + "    equations: y = x",
        BLOCK + "    equations: [{y: x}]",
        BLOCK + "    equations: [y]",
        BLOCK + "    weights: {W: {level: a}}",
        MEMORY + "objectiv: x",
        MEMORY + "through: half",
        MEMORY + "key: [k1, k2]",
        MEMORY + "update: [{when: x}]",
        MEMORY + "update: [{sometimes 4 steps: []}]",
        "model: {equations: [{when: x, do: []}]}",
    ],
)
def test_what_is_wrong_is_refused(text: str) -> None:
    assert faults(text) != []
