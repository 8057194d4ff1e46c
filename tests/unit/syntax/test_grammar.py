"""The grammar has no conflict, and reading a spec stays quick."""

from __future__ import annotations

import json
import subprocess
import sys

from nlc.syntax.grammar import STARTS, build, parser


def test_the_grammar_is_lalr_without_conflicts() -> None:
    strict = build(strict=True)
    assert not [t.name for t in strict.terminals if t.name.startswith("__ANON")]
    assert set(STARTS) == set(strict.options.start)


def test_the_parser_is_built_once() -> None:
    assert parser() is parser()


def test_reading_loads_nothing_large() -> None:
    code = (
        "import sys, json; from nlc.syntax.read import parse; parse('level a never');"
        "parse('system: a', 'yaml'); print(json.dumps(sorted(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(out.stdout))
    assert not loaded & {"torch", "numpy", "triton"}
