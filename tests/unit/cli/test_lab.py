"""Wrong calls of the lab's commands, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlc.cli.starter import starter

Call = Callable[..., Any]
TINY = ["--set", "dims.d=16", "--set", "dims.d_k=8", "--batch", "2", "--length", "16"]


@pytest.fixture(autouse=True)
def specs(call: Call) -> None:
    blocks = starter("blocks")
    Path("tiny.nl").write_text(starter("tiny"))
    Path("blocks.nl").write_text(blocks[: blocks.index("# how the blocks stack")])
    Path("short.txt").write_text("short")


@pytest.mark.parametrize(
    "words",
    [
        ["tiny.nl", "--text", "short.txt"],
        ["tiny.nl", "--text", "missing.txt"],
        ["tiny.nl", "--data", "pile"],
        ["tiny.nl", "--text", "tiny.nl", "--data", "stdlib"],
        ["tiny.nl", "--out", "."],
        ["tiny.nl", "--device", "abacus"],
        ["blocks.nl"],
        ["tiny.nl", "--set", "model.vocab=100"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_ends_with_2(call: Call, words: list[str]) -> None:
    answer = call("train", *words, "--steps", 1)
    assert answer.status == 2 and "hint" in answer.err


def test_a_diverging_run_says_so(call: Call) -> None:
    words = ["--set", "levels.slow.optimizer=sgd(lr = 1e30)"]
    answer = call("train", "tiny.nl", "--steps", 9, *TINY, *words)
    assert answer.status == 1
    assert "training stopped; the last good checkpoint is" in answer.err


def test_an_occupied_folder_is_not_compiled_into(call: Call) -> None:
    answer = call("compile", "tiny.nl", "--out", ".")
    assert answer.status == 2 and "holds other files" in answer.err
    assert Path("tiny.nl").is_file()


@pytest.mark.parametrize("text", ["short.txt", "/dev/zero", "missing.txt"])
def test_no_folder_is_left_by_a_text_that_cannot_be_trained_on(call: Call, text: str) -> None:
    answer = call("train", "tiny.nl", "--text", text, "--steps", 1)
    assert answer.status == 2 and not Path("runs").exists()


def test_no_folder_is_left_by_a_run_that_could_not_begin(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nlc.lab.session.copy_spec", full)
    Path("mine").mkdir()
    for folder, left in (("new", False), ("mine", True)):
        answer = call("train", "tiny.nl", "--out", folder, "--steps", 1, *TINY)
        assert answer.status == 2 and "No space left" in answer.err
        assert Path(folder).exists() is left
    assert not list(Path("mine").iterdir())


def test_a_pipe_gets_every_byte_that_is_text(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("train", "tiny.nl", "--steps", 1, "--out", "run", "--sample", 0, *TINY).status == 0
    written = [b"a", b"\x7f", b"\x1b", "é".encode(), b"\n"]
    monkeypatch.setattr("nlc.lab.generate.continue_text", lambda *_: iter(written))
    assert call("generate", "run", "--prompt", "").out == "a\x7f\x1bé\n\n"


# ---- tasks ------------------------------------------------------------------------------------


def test_a_task_is_trained_on_and_measured_at_longer_lengths(call: Call) -> None:
    answer = call("train", "tiny.nl", "--task", "mqar:pairs=2", "--steps", 2, "--out", "run", *TINY)
    assert answer.status == 0 and "training on the task mqar:pairs=2, in run" in answer.out
    assert "new sequences of each length" in answer.out and "as trained" in answer.out
    found = json.loads(call("eval", "run", "--lengths", "16,40", "--format", "json").out)
    assert found["task"] == "mqar:pairs=2"
    assert [row["length"] for row in found["measured"]] == [16, 40]
    assert set(found["measured"][0]) == {
        "length",
        "accuracy",
        "exact",
        "guess",
        "bits_per_answer",
        "sequences",
    }
    other = json.loads(call("eval", "run", "--task", "parity", "--format", "json").out)
    assert [row["length"] for row in other["measured"]] == [16, 64, 128, 256]
    text = json.loads(call("eval", "run", "--text", "tiny.nl", "--format", "json").out)
    assert text["what"] == "whole text" and text["bits_per_byte"] > 0
    assert call("generate", "run", "--tokens", 2).status == 0


def test_a_stream_is_trained_through_once(call: Call) -> None:
    words = ["--task", "modules:classes=4,steps=2", "--out", "run", *TINY]
    answer = call("train", "tiny.nl", *words)
    assert answer.status == 0 and "finished at step 4" in answer.out
    assert "held-out passages of each part" in answer.out and "forgotten" in answer.out
    found = json.loads(call("eval", "run", "--format", "json").out)
    assert [row["part"] for row in found["measured"]] == [0, 1] and "forgotten" in found


def test_tasks_are_listed_and_shown(call: Call) -> None:
    names = [line.split()[0] for line in call("tasks").out.splitlines() if line]
    assert names[:3] == ["copy", "selective_copy", "mqar"]
    shown = call("tasks", "parity").out
    assert "arXiv:2009.11264" in shown and "{01.}" in shown
    listed = json.loads(call("tasks", "--format", "json").out)
    assert {"name", "about", "source", "length", "longer", "vocab", "options"} == set(listed[0])
    assert json.loads(call("tasks", "s5:n=3", "--format", "json").out)["vocab"] == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny.nl", "--task", "party"], "did you mean parity?"),
        (["tiny.nl", "--task", "mqar:keys=0"], "1 to 126"),
        (["tiny.nl", "--task", "mqar", "--data", "stdlib"], "one of them"),
        (["tiny.nl", "--task", "mqar", "--set", "model.vocab=100"], "--set model.vocab=256"),
        (["tiny.nl", "--task", "mqar", "--length", "4"], "a length of at least 8"),
        (["blocks.nl", "--task", "parity"], "a spec with a `model`"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else None,
)
def test_a_wrong_call_for_a_task_says_what_is_accepted(
    call: Call, words: list[str], said: str
) -> None:
    answer = call("train", *words, "--steps", 1)
    assert answer.status == 2 and said in answer.err and not Path("runs").exists()


def test_a_small_vocab_is_enough_for_a_small_task(call: Call) -> None:
    words = ["--set", "model.vocab=12", "--steps", 1, "--out", "run", *TINY]
    assert call("train", "tiny.nl", "--task", "parity", *words).status == 0
    assert "vocab is 12, and mqar has 130" in call("eval", "run", "--task", "mqar").err
    assert call("eval", "run", "--lengths", "0").status == 2
    assert call("eval", "run", "--length", "5").status == 2
    assert call("eval", "run", "--text", "tiny.nl").status == 2
    assert "cannot be continued" in call("generate", "run").err
