"""compare and sweep: equal budgets, one table, nothing trained twice, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nlc.cli.common import CallError
from nlc.cli.series import split_values
from nlc.cli.starter import starter
from nlc.cli.subjects import as_json
from nlc.lab import series as lab
from nlc.lab.run import read

Call = Callable[..., Any]
SMALL = ["--set", "dims.d=16", "--set", "dims.d_k=8", "--set", "dims.d_v=8"]
SHORT = ["--batch", 2, "--length", 16, "--steps", 3, "--threads", 1]
TASK = ["--task", "mqar:pairs=2", "--lengths", "24", *SHORT]
SEVERAL = ["compare", "tiny.nl", "erases.nl", *TASK, *SMALL, "--seeds", 2, "--out", "all"]


@pytest.fixture(autouse=True)
def specs(call: Call) -> None:
    tiny = starter("tiny")
    Path("tiny.nl").write_text(tiny)
    Path("erases.nl").write_text(tiny.replace("sigmoid(W_b(x))", "2 * sigmoid(W_b(x))"))
    blocks = starter("blocks")
    Path("blocks.nl").write_text(blocks[: blocks.index("# how the blocks stack")])


def test_specs_are_compared_with_equal_budgets(call: Call) -> None:
    answer = call(*SEVERAL)
    assert answer.status == 0
    lines = answer.out.splitlines()
    assert lines[0] == ("the task mqar:pairs=2: 3 steps of 2 sequences of 16 tokens, 2 seeds")
    head, *rows = (line.split("   ") for line in lines[1:4])
    assert [w.strip() for w in head if w.strip()] == [
        "accuracy at 16",
        "accuracy at 24",
        "parameters",
        "state at 16",
        "tokens/s",
    ]
    assert [row[0].strip() for row in rows] == ["tiny", "erases"]
    assert "block.mixer beta   sigmoid(W_b(x))   2 * sigmoid(W_b(x))" in answer.out
    runs = sorted(p.name for p in Path("all").iterdir() if p.is_dir())
    assert runs == [
        "01-tiny-seed0",
        "01-tiny-seed1",
        "02-erases-seed0",
        "02-erases-seed1",
        "specs",
    ]
    settings = [read(Path("all") / name).settings for name in runs[:4]]
    assert [s.seed for s in settings] == [0, 1, 0, 1]
    assert {(s.steps, s.batch, s.length) for s in settings} == {(3, 2, 16)}
    assert call("eval", "all/02-erases-seed1").status == 0


def test_the_table_comes_again_and_nothing_is_trained_twice(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call(*SEVERAL)
    monkeypatch.setattr("nlc.lab.series.train", lambda *_: pytest.fail("trained again"))
    # the specs it began with are its own
    Path("tiny.nl").unlink()
    again = call("compare", "--resume", "all")
    assert again.status == 0 and again.out == first.out
    found = json.loads(call("compare", "--resume", "all", "--format", "json").out)
    assert [row["label"] for row in found["rows"]] == ["tiny", "erases"]
    assert found["against"] == "tiny"
    assert [d["clause"] for d in found["differences"]["erases"]] == ["block.mixer beta"]
    result = found["rows"][0]["runs"][1]["result"]
    assert [m["length"] for m in result["measured"]] == [16, 24]
    assert result["steps"] == 3 and result["tokens"] == 96 and result["state_bytes"] > 0
    assert {"mean", "deviation"} == set(found["rows"][0]["accuracy at 16"])
    exact = call("compare", "--resume", "all", "--metric", "exact")
    assert "exact at 24" in exact.out


def test_a_series_that_is_stopped_goes_on_exactly(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(*SEVERAL)
    real, made = lab.train, []

    def stops(run: Any, *rest: Any) -> Any:
        """Stop in the middle of the second run, as Ctrl-C does."""
        made.append(run.folder.name)
        if len(made) == 2:
            short = replace(run, settings=replace(run.settings, steps=1))
            return replace(real(short, *rest), how="stopped")
        return real(run, *rest)

    monkeypatch.setattr("nlc.lab.series.train", stops)
    answer = call(*SEVERAL[:-1], "cut")
    assert answer.status == 130 and "go on with   nlc compare --resume cut" in answer.err
    assert "1 of 2 not finished" in answer.out and "2 of 2 not finished" in answer.out
    assert made == ["01-tiny-seed0", "01-tiny-seed1"]
    monkeypatch.setattr("nlc.lab.series.train", real)
    # what a kill leaves of the making of a run folder is no obstacle
    (Path("cut") / "02-erases-seed0" / "package").mkdir(parents=True)
    assert call("compare", "--resume", "cut").status == 0
    for name in ("01-tiny-seed1", "02-erases-seed0", "02-erases-seed1"):
        one, other = (
            json.loads((Path(folder) / name / "result.json").read_text())
            for folder in ("all", "cut")
        )
        for clock in ("seconds", "tokens_per_second"):
            one.pop(clock), other.pop(clock)
        assert one == other, name


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(call: Call) -> None:
    wild = "levels.slow.optimizer=sgd(lr = 1e30),sgd(lr = 0.1)"
    answer = call("sweep", "tiny.nl", *TASK, *SMALL, "--set", wild, "--out", "all")
    assert answer.status == 0
    rows = answer.out.splitlines()[2:4]
    assert "at step" in rows[0] and " - " in rows[0] and "at step" not in rows[1]
    assert call("sweep", "--resume", "all").out == answer.out


def test_a_sweep_tries_all_combinations(call: Call) -> None:
    words = ["--set", "levels.fast.chunk=1,16", "--over", "batch=1,2", *TASK[:4]]
    answer = call("sweep", "tiny.nl", *words, "--length", 16, "--steps", 2, *SMALL, "--out", "all")
    assert answer.status == 0
    labels = [line[2:].partition("   ")[0] for line in answer.out.splitlines()[2:6]]
    assert labels == [
        "levels.fast.chunk=1  batch=1",
        "levels.fast.chunk=1  batch=2",
        "levels.fast.chunk=16  batch=1",
        "levels.fast.chunk=16  batch=2",
    ]
    found = [read(p) for p in sorted(Path("all").glob("*-seed0"))]
    assert [(r.origin.set["levels.fast.chunk"], r.settings.batch) for r in found] == [
        ("1", 1),
        ("1", 2),
        ("16", 1),
        ("16", 2),
    ]


def test_texts_and_streams_are_compared_too(call: Call) -> None:
    text = call("compare", "tiny.nl", "erases.nl", "--text", "tiny.nl", *SHORT, *SMALL)
    assert text.status == 0 and "bits/byte" in text.out
    stream = ["--task", "modules:classes=4,steps=2", "--batch", 2, "--length", 16, *SMALL]
    answer = call("compare", "tiny.nl", "erases.nl", *stream)
    assert answer.status == 0 and "forgotten" in answer.out and "4 steps of 2" in answer.out


def test_a_setting_can_be_for_one_spec(call: Call) -> None:
    words = [*SMALL, "--set", "erases:dims.d=32"]
    assert call("compare", "tiny.nl", "erases.nl", *words, *TASK, "--out", "all").status == 0
    runs = [read(p) for p in sorted(Path("all").glob("*-seed0"))]
    assert [r.origin.set["dims.d"] for r in runs] == ["16", "32"]
    answer = call("compare", "tiny.nl", "tiny.nl", *SMALL, "--set", "tiny-2:dims.d=8", "--plan")
    assert "dims.d 16 8" in " ".join(answer.out.split())
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "tiny.nl"], "nlc compare SPEC SPEC"),
        (["compare", "tiny.nl", "gone.nl"], "there is no file gone.nl"),
        (["compare", "tiny.nl", "blocks.nl"], "a spec with a `model`"),
        (["compare", "tiny.nl", "erases.nl", "--set", "other:dims.d=8"], "there is no other here"),
        (["compare", "tiny.nl", "erases.nl", "--set", "dims.q=8"], "NL0313"),
        (["compare", "tiny.nl", "erases.nl", "--task", "party"], "did you mean parity?"),
        (["compare", "tiny.nl", "erases.nl", "--out", "."], "is not empty"),
        (["compare", "tiny.nl", "erases.nl", "--lengths", "9"], "--task NAME"),
        (["compare", "--resume", "gone"], "it has no series.json"),
        (["compare", "tiny.nl", "--resume", "gone"], "no SPEC"),
        (["compare", "--resume", "gone", "--seeds", "3"], "cannot change"),
        (["sweep"], "nlc sweep SPEC"),
        (["sweep", "tiny.nl"], "there is nothing to try"),
        (["sweep", "tiny.nl", "--set", "dims.d=8"], "there is nothing to try"),
        (["sweep", "tiny.nl", "--set", "dims.d=8,,9"], "is empty"),
        (["sweep", "tiny.nl", "--set", "dims.q=8,9"], "NL0313"),
        (["sweep", "tiny.nl", "--over", "seed=1,2"], "batch, length or steps"),
        (["sweep", "tiny.nl", "--over", "batch=0,2"], "are not numbers"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else None,
)
def test_a_wrong_call_says_what_is_accepted(call: Call, words: list[str], said: str) -> None:
    answer = call(*words)
    assert answer.status == 2 and said in answer.err
    assert not Path("runs").exists()


def test_a_series_of_the_other_command_or_a_damaged_one_is_refused(call: Call) -> None:
    Path("all").mkdir()
    Path("all/series.json").write_text("{}")
    assert "is damaged" in call("sweep", "--resume", "all").err
    words = ["--set", "levels.fast.chunk=1,16", *TASK, *SMALL]
    assert call("sweep", "tiny.nl", *words, "--out", "new").status == 0
    assert "was made by `nlc sweep`" in call("compare", "--resume", "new").err


def test_commas_in_brackets_do_not_part_values() -> None:
    assert split_values("a(b, c), d[e, f], g") == ["a(b, c)", "d[e, f]", "g"]
    assert split_values("1,1, 2") == ["1", "2"]
    with pytest.raises(CallError):
        split_values("1,")


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    found = as_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}, "d": (2, "x")})
    assert json.loads(found) == {"a": [None, 1.5], "b": {"c": None}, "d": [2, "x"]}
