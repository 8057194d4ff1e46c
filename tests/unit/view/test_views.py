"""Text, JSON, DOT, Mermaid and HTML: the same bytes each time, whole, and well formed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nlc
from nlc.ir.system import System
from nlc.view import as_dot, as_html, as_json, as_mermaid, as_svg, as_text
from nlc.view.measure import columns, fit, width, wrap
from tests.unit.view.systems import every_file, hard, load, path_of

STRANGE = """
system 記憶システム "<b>&amp; \\" 入れ子学習 \\\\ — много слов ]]> {long}"
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


@pytest.fixture(scope="module")
def strange() -> System:
    return nlc.parse(STRANGE.format(long="wort " * 60, name="lang" * 12))


VIEWS = [as_text, as_dot, as_mermaid, as_html, lambda s: json.dumps(as_json(s))]


@every_file
def test_same_spec_same_bytes(path: Path) -> None:
    again = nlc.load(path)
    for view in VIEWS:
        assert view(load(path)) == view(again)


# ---- text --------------------------------------------------------------------------------------


@every_file
def test_text_names_every_component_in_order(path: Path) -> None:
    system = load(path)
    words = re.split(r"[\s,]+", as_text(system))
    for component in system.components:
        name = component.name.rsplit(".", 1)[1] if component.kind == "optimizer" else None
        assert (name or component.label) in words
    heads = [line.split()[0] for line in as_text(system).splitlines()[1:] if line[:1].strip()]
    assert heads == [level.name for level in system.levels if level.components]


def test_text_names_what_is_faster() -> None:
    lines = as_text(load(path_of("titans_lmm"))).splitlines()
    order = [
        next(i for i, line in enumerate(lines) if line.split()[:1] == [n]) for n in ("M.S", "M")
    ]
    between = lines[order[0] : order[1]]
    assert any("faster than" in line for line in between)


def test_text_says_at_a_memory_what_makes_its_parts() -> None:
    lines = [" ".join(line.split()) for line in as_text(load(path_of("titans_lmm"))).splitlines()]
    for line in ("query conv_q", "keys conv_k", "values W_v", "read by M.S, W_o", "start M.start"):
        assert line in lines
    assert any(line.startswith("gates W_") for line in lines)
    assert "m, v, n states of adamw (like each, 1 for each): for all 12 that learn here" in lines


@pytest.mark.parametrize("name", ["chinese", "hope", "titans_lmm"])
def test_columns_of_text_are_aligned_in_a_terminal(name: str) -> None:
    system = load(path_of(name))
    maps = {c.map for c in system.components if c.kind != "optimizer"}
    starts = set()
    for line in as_text(system).splitlines():
        found = re.match(r"^( +)(\S+)( {2,})(\S.*)$", line)
        if found and any(found[4].startswith(m) for m in maps):
            starts.add(columns("".join(found.groups()[:3])))
    assert len(starts) == 1


# ---- JSON --------------------------------------------------------------------------------------


@every_file
def test_json_has_the_documented_shape(path: Path) -> None:
    system = load(path)
    data = json.loads(json.dumps(as_json(system), allow_nan=False))
    assert list(data) == ["system", "about", "levels", "components", "edges"]
    for level in data["levels"]:
        assert list(level) == ["name", "period", "frequency", "chunk", "optimizer", "components"]
        assert level["frequency"]["unit"] in ("always", "tokens", "steps", "never")
    for component in data["components"]:
        assert list(component) == (
            [
                "name",
                "block",
                "level",
                "rank",
                "period",
                "frequency",
                "kind",
                "map",
                "size",
                "parameters",
                "copies",
            ]
        )
    for edge in data["edges"]:
        assert list(edge) == ["source", "target", "kind", "role", "reason", "same_time", "across"]
    ranks = [component["rank"] for component in data["components"]]
    assert ranks == sorted(ranks)
    names = {component["name"] for component in data["components"]}
    assert {n for edge in data["edges"] for n in (edge["source"], edge["target"])} <= names
    assert {n for level in data["levels"] for n in level["components"]} == names


def test_json_lists_the_fastest_level_first(strange: System) -> None:
    data = as_json(strange)
    assert data["levels"][0]["name"] == "now"
    assert data["levels"][0]["frequency"] == {"unit": "always", "rate": None}


# ---- DOT: a small parser of Graphviz's language -------------------------------------------------

DOT = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(->|[{}\[\]=;,])|([A-Za-z_]\w*|-?[\d.]+))')


def _dot(text: str) -> tuple[set[str], list[tuple[str, str, dict[str, str]]]]:
    """Parse a digraph; return its nodes and its edges with their attributes."""
    tokens, place = [], 0
    while place < len(text.rstrip()):
        found = DOT.match(text, place)
        assert found, text[place : place + 40]
        tokens.append(found.group().strip())
        place = found.end()
    nodes: set[str] = set()
    edges: list[tuple[str, str, dict[str, str]]] = []

    def attributes(i: int) -> tuple[dict[str, str], int]:
        given: dict[str, str] = {}
        if tokens[i] != "[":
            return given, i
        i += 1
        while tokens[i] != "]":
            assert tokens[i + 1] == "=", tokens[i : i + 3]
            given[tokens[i]] = tokens[i + 2]
            i += 3 + (tokens[i + 3] == ",")
        return given, i + 1

    def block(i: int) -> int:
        assert tokens[i] == "{"
        i += 1
        while tokens[i] != "}":
            if tokens[i] == "subgraph":
                i = block(i + 2)
                continue
            if tokens[i + 1] == "=":
                i += 3
            elif tokens[i + 1] == "->":
                given, end = attributes(i + 3)
                edges.append((tokens[i], tokens[i + 2], given))
                i = end
            else:
                if tokens[i] not in ("node", "edge"):
                    nodes.add(tokens[i])
                _, i = attributes(i + 1)
            assert tokens[i] == ";", tokens[i - 3 : i + 3]
            i += 1
        return i + 1

    assert tokens[0] == "digraph"
    assert block(2) == len(tokens)
    return nodes, edges


@every_file
def test_dot_is_a_graph_with_every_component_and_edge(path: Path) -> None:
    _check_dot(load(path))


def test_dot_quotes_what_it_must(strange: System) -> None:
    _check_dot(strange)
    assert '\\"' in as_dot(strange)


def _check_dot(system: System) -> None:
    nodes, edges = _dot(as_dot(system))
    assert nodes == {f'"{c.name}"' for c in system.components}
    drawn = {(a, b) for a, b, given in edges if given.get("style") != "invis"}
    wanted = {(f'"{e.source}"', f'"{e.target}"') for e in system.edges}
    assert drawn <= wanted
    # an optimizer's state has one edge, to the cluster of all that it moves
    to_all = {a for a, _, given in edges if "lhead" in given}
    assert {pair for pair in wanted - drawn if pair[0] not in to_all} == set()


# ---- Mermaid -----------------------------------------------------------------------------------

LABEL = r'"(?:[^"#;<>&`\\]|#\d+;|<br>)*"'
MERMAID = [
    re.compile(rf"  +subgraph (\w+) \[{LABEL}\]"),
    re.compile(r"  +end"),
    re.compile(rf"  +(c\d+)(?:\[{LABEL}\]|\(\[{LABEL}\]\)|\[\[{LABEL}\]\])"),
    re.compile(r"  (c\d+) (-->|==>|-\.->)\|[\w ]+\| (\w+)"),
]


@every_file
def test_mermaid_is_well_formed_and_whole(path: Path) -> None:
    _check_mermaid(load(path))


def test_mermaid_writes_odd_characters_as_entities(strange: System) -> None:
    _check_mermaid(strange)


def _check_mermaid(system: System) -> None:
    first, *lines = as_mermaid(system).splitlines()
    assert first == "flowchart TB"
    depth, nodes, groups, edges = 0, [], set(), 0
    for line in lines:
        found = next((m for form in MERMAID if (m := form.fullmatch(line))), None)
        assert found, line
        depth += line.strip().startswith("subgraph") - (line.strip() == "end")
        match found.groups():
            case (source, _, target):
                assert source in nodes, line
                assert target in nodes or target in groups, line
                edges += 1
            case (name,) if name.startswith("level"):
                groups.add(name)
            case (name,):
                nodes.append(name)
        assert depth >= 0
    assert depth == 0
    assert len(nodes) == len(set(nodes)) == len(system.components)
    # what Mermaid draws without being asked for more
    assert edges <= min(500, len(system.edges))


# ---- HTML and the rest -------------------------------------------------------------------------


def test_the_page_has_picture_and_tables(strange: System) -> None:
    text = as_html(strange)
    assert as_svg(strange).strip() in text
    assert text.count("<table>") == 3
    assert not re.search(r"(href|src|url)\s*[=(]", text)
    assert "<script" not in text


def test_words_break_at_blanks_or_anywhere() -> None:
    assert wrap("one two three four", 10, 60, 3) == ["one two", "three four"]
    assert all(width(line, 10) <= 60 for line in wrap("長" * 20, 10, 60, 3))
    assert wrap("weights_that_make_the_key", 10, 90, 2) == ["weights_that_", "make_the_key"]
    assert fit("short", 10, 100) == "short"


def test_no_line_begins_with_a_comma() -> None:
    assert wrap("記憶と学習、記憶と学習、記憶", 10, 55, 3)[1][0] not in "、，。"


def test_the_views_load_no_torch() -> None:
    code = (
        "import sys, nlc\n"
        "from nlc import view\n"
        "system = nlc.load('specs/hybrid.nl')\n"
        "for name in view.__all__: getattr(view, name)(system)\n"
        "print(sorted({'torch', 'numpy', 'networkx', 'triton'} & set(sys.modules)))\n"
    )
    root = path_of("hybrid").parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_system_of_many_levels_has_all_of_them_in_text() -> None:
    heads = [line for line in as_text(hard("hope")).splitlines() if line[:1].strip()][1:]
    assert [line.split("  ")[0] for line in heads] == [
        "self_mod", "beat", "phrase", "period", "slow", "glacial",
    ]  # fmt: skip
    assert "(f = 1/256 per token)" in heads[3] and "(f = 1/8 per step)" in heads[5]
