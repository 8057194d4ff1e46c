"""What the commands say of real specs: good ones, wrong ones, both forms."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlc.cli.common import shipped
from nlc.cli.starter import starter

Call = Callable[..., Any]
WRONG = starter("wrong").replace("d_k = 32,", "d_k = 32.5,")


@pytest.fixture
def tiny(call: Call) -> Path:
    assert call("new", "tiny").status == 0
    return Path("tiny.nl")


def test_the_first_spec_is_fine_and_canonical(call: Call, tiny: Path) -> None:
    answer = call("check", tiny, "--strict")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.splitlines()[0] == "tiny  fine"
    fast, slow = answer.out.splitlines()[1:3]
    assert fast.split() == [
        "fast",
        "every",
        "1",
        "token",
        "M",
        "linear",
        "32-32,",
        "4",
        "heads",
        "tile-solve",
        "contractive",
    ]
    assert "every 1 step, adamw" in slow and slow.endswith("460.8 k parameters")
    assert call("fmt", "--check", tiny).status == 0
    assert call("fmt", tiny).out == tiny.read_text()


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_spec_is_fine(call: Call, name: str) -> None:
    answer = call("check", name, "--format", "json", "--strict")
    found = json.loads(answer.out)
    assert answer.status == 0 and found["diagnostics"] == []
    periods = [level["frequency"] for level in found["levels"]]
    assert all(f["unit"] in ("always", "tokens", "steps", "never") for f in periods)
    assert call("check", name).out.splitlines()[0].endswith("fine")


def test_counted_parameters_are_those_of_the_model(call: Call, tiny: Path) -> None:
    import nlc

    found = json.loads(call("check", tiny, "--format", "json").out)
    counted = sum(
        c["parameters"] * c["copies"] for level in found["levels"] for c in level["components"]
    )
    model = nlc.compile(nlc.load(tiny)).model()
    assert counted == sum(p.numel() for p in model.parameters())


def test_json_tells_what_each_memory_and_level_costs(call: Call, tiny: Path) -> None:
    cost = json.loads(call("check", tiny, "--format", "json").out)["cost"]
    assert set(cost) == {"tokens", "dtype", "memories", "blocks", "levels", "equations", "total"}
    memory, total = cost["memories"]["mixer.M"], cost["total"]
    # each copy has 4 heads of 32 x 32 numbers
    assert memory["state_bytes"] == memory["copies"] * 4 * 32 * 32 * 4
    assert list(cost["levels"]) == ["fast", "slow"]
    for numbers in (memory, total, *cost["levels"].values(), *cost["blocks"].values()):
        assert set(numbers) >= {"parameters", "state_bytes", "forward", "backward", "decode"}
        assert set(numbers["decode"]) == {"flops", "products", "solves", "elementwise", "bytes"}
    assert total["parameters"] == cost["levels"]["slow"]["parameters"] == 460_816


def test_a_wrong_spec_ends_with_1_and_shows_the_place(call: Call) -> None:
    Path("wrong.nl").write_text(WRONG)
    answer = call("check", "wrong.nl")
    assert answer.status == 1 and answer.out == ""
    assert re.search(r"error\[NL\d{4}\]: ", answer.err) and "--> wrong.nl:9:" in answer.err
    assert "= hint: " in answer.err and answer.err.rstrip().endswith("wrong.nl  1 error")
    found = json.loads(call("check", "wrong.nl", "--format", "json").out)
    assert found["levels"] is found["stability"] is found["cost"] is None
    assert found["diagnostics"][0]["labels"][0]["start"]["line"] == 9
    github = call("check", "wrong.nl", "--format", "github")
    assert github.status == 1 and github.out.startswith("::error file=wrong.nl,line=9,")
    for command in ("graph", "explain", "compile"):
        assert call(command, "wrong.nl").status == 1


def test_all_specs_are_checked_and_the_worst_counts(call: Call, tiny: Path) -> None:
    Path("wrong.nl").write_text(WRONG)
    answer = call("check", "wrong.nl", tiny)
    assert answer.status == 1 and "tiny  fine" in answer.out and "wrong.nl" in answer.err


def test_set_changes_a_spec(call: Call, tiny: Path) -> None:
    answer = call("check", tiny, "--set", "dims.heads=2", "--set", "levels.fast.chunk=8")
    assert answer.status == 0 and "chunk 8" in answer.out and "2 heads" in answer.out
    assert call("check", tiny, "--set", "dims.nothing=2").status == 2
    assert call("check", tiny, "--set", "dims.d=x").status in (1, 2)


def test_fmt_finds_writes_and_shows(call: Call, tiny: Path) -> None:
    good = tiny.read_text()
    tiny.write_text(good.replace("d = 128, heads = 4", "d=128,  heads=4"))
    answer = call("fmt", "--check", "--diff", tiny)
    assert answer.status == 1
    assert "-dims { d=128,  heads=4" in answer.out and "+dims { d = 128, heads = 4" in answer.out
    assert call("fmt", "-w", tiny).status == 0
    assert tiny.read_text() == good


def test_convert_goes_both_ways_and_keeps_comments(call: Call, tiny: Path) -> None:
    assert call("convert", tiny, "-o", "tiny.yaml").status == 0
    assert "# what each token does on its own" in Path("tiny.yaml").read_text()
    assert call("convert", "tiny.yaml").out == tiny.read_text()
    assert call("check", "tiny.yaml").out == call("check", tiny).out
    assert call("convert", tiny, "-o", "other.nl").status == 2


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("text", "tiny"),
        ("svg", "<svg"),
        ("dot", "digraph"),
        ("mermaid", "flowchart"),
        ("json", "{"),
    ],
)
def test_graph_has_five_formats(call: Call, tiny: Path, form: str, start: str) -> None:
    assert call("graph", tiny, "--format", form).out.lstrip().startswith(start)


def test_graph_tells_the_format_from_the_file(call: Call, tiny: Path) -> None:
    assert call("graph", tiny, "-o", "a.svg").status == 0
    assert Path("a.svg").read_text().startswith("<svg")
    assert call("graph", tiny, "-o", "a.gif").status == 2


def test_explain_tells_how_a_memory_runs(call: Call, tiny: Path) -> None:
    out = call("explain", tiny).out
    for words in ("memory M of mixer, at fast", "self = alpha * self", "M' = ", "tile-solve"):
        assert words in out


def test_specs_lists_all_and_their_rules(call: Call) -> None:
    out = call("specs").out
    assert all(name in out for name in shipped() if name != "rules")
    assert "adamw" in out and "momentum" in out


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"{" * 5000, b"\x00" * 10, b"dims { d = 9^9^9^9 }"]
)
def test_no_file_makes_a_traceback(call: Call, content: bytes) -> None:
    for name in ("odd.nl", "odd.yaml"):
        Path(name).write_bytes(content)
        for command in ("check", "fmt", "convert", "graph", "explain"):
            assert call(command, name).status in (0, 1)


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("d=12", "did you mean `dims.d`?"),
        ("dims.dd=12", "did you mean `d`?"),
        ("blocks.mixer.W_q=3", "did you mean `blocks.mixer.weights.W_q.level`?"),
        ("blocks.mixr.weights.W_q.level=slow", "did you mean `mixer`?"),
        ("levels.fast.every=2", "write `4 tokens`, `1 step`, `always` or `never`"),
    ],
)
def test_a_setting_without_a_place_says_which_is_meant(
    call: Call, tiny: Path, setting: str, hint: str
) -> None:
    answer = call("check", tiny, "--set", setting)
    assert answer.status == 2 and f"= hint: {hint}" in answer.err


def test_fmt_and_convert_write_what_set_changes(call: Call, tiny: Path) -> None:
    assert "d = 64, heads = 4" in call("fmt", tiny, "--set", "dims.d=64").out
    assert "{d: 64, heads: 4" in call("convert", tiny, "--set", "dims.d=64").out
    assert call("fmt", "-w", tiny, "--set", "levels.slow.every=2 steps").status == 0
    assert "level slow every 2 steps, optimizer" in tiny.read_text()
