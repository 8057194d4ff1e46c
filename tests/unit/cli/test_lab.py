"""Wrong calls of the lab's commands, in this process."""

from __future__ import annotations

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

    monkeypatch.setattr("nlc.lab.session._copy_spec", full)
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
