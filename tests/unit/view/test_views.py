"""The views: the same bytes each time, well formed whatever the names, and within the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import nlc
from nlc.ir.system import System
from nlc.view import as_dot, as_html, as_json, as_mermaid, as_svg, as_text
from nlc.view.measure import fit, width, wrap

SPECS = sorted(p for p in (Path(__file__).parents[3] / "specs").glob("*.nl"))

STRANGE = """
system 記憶システム "<b>&amp; \\" 入れ子学習 — много слов ]]> {long}"
dims {{ d = 8, heads = 2, d_k = 4, d_v = 4 }}
level now always
level beat every 1 token, chunk 4
level {name} every 64 tokens
level slow every 1 step, optimizer adamw(lr = 1e-3)
level ice never
block mixer(x[d]) -> out[d] {{
  weights W_q, W_k : linear(d -> heads*d_k)
  weights W_v : linear(d -> heads*d_v)
  weights φ : linear(heads*d_k -> heads*d_k) at ice
  weights W_{name} : linear(heads*d_v -> d)
  q, k, v = unit(φ(W_q(x))), unit(φ(W_k(x))), W_v(x)
  memory 記 : linear(d_k -> d_v) at {name} {{ key k; value v; update sgd(lr = 0.1) }}
  memory A : kernel(softmax) at now {{ key k; value v }}
  memory N : linear(d_k -> d_v) at beat {{ key k; value v; update sgd(lr = 0.1) }}
  out = W_{name}(rmsnorm(記(q) + A(q) + N(q)))
}}
"""


def load(path: Path) -> System:
    return nlc.load(path)


@pytest.fixture(scope="module")
def strange() -> System:
    return nlc.parse(STRANGE.format(long="wort " * 60, name="lang" * 12))


VIEWS = [as_text, as_dot, as_mermaid, as_svg, as_html, lambda s: json.dumps(as_json(s))]


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_same_spec_same_bytes(path: Path) -> None:
    for view in VIEWS:
        assert view(load(path)) == view(load(path))


def test_the_page_has_picture_and_tables(strange: System) -> None:
    text = as_html(strange)
    assert as_svg(strange).strip() in text
    assert text.count("<table>") == 3
    assert not re.search(r"(href|src|url)\s*[=(]", text)
    assert "<script" not in text


def test_json_has_the_order_and_no_infinity(strange: System) -> None:
    data = json.loads(json.dumps(as_json(strange), allow_nan=False))
    assert data["levels"][0]["name"] == "now"
    ranks = [component["rank"] for component in data["components"]]
    assert ranks == sorted(ranks)
    names = {component["name"] for component in data["components"]}
    assert {n for edge in data["edges"] for n in (edge["source"], edge["target"])} <= names


def test_dot_and_mermaid_quote_what_they_must(strange: System) -> None:
    assert '\\"' in as_dot(strange)
    assert as_dot(strange).count("{") == as_dot(strange).count("}")
    for line in as_mermaid(strange).splitlines():
        assert line.count('"') in (0, 2)


def test_text_names_what_is_faster() -> None:
    text = as_text(load(next(p for p in SPECS if p.stem == "titans_lmm")))
    lines = text.splitlines()
    order = [
        next(i for i, line in enumerate(lines) if line.split()[:1] == [n]) for n in ("M.S", "M")
    ]
    between = lines[order[0] : order[1]]
    assert any("faster than" in line for line in between)


def test_words_break_at_blanks_or_anywhere() -> None:
    assert wrap("one two three four", 10, 60, 3) == ["one two", "three four"]
    assert all(width(line, 10) <= 60 for line in wrap("長" * 20, 10, 60, 3))
    assert fit("short", 10, 100) == "short"
