"""Calls that are wrong, help that teaches, and how a spec is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlc.cli.app import app
from nlc.cli.common import CallError, find_spec, settings, shipped
from nlc.cli.report import amount, table

Call = Callable[..., Any]
COMMANDS = [command.name for command in app.registered_commands]


def test_help_lists_every_command(call: Call) -> None:
    answer = call("--help")
    assert answer.status == 0
    assert all(str(name) in answer.out for name in COMMANDS)
    assert call().out.splitlines()[1:3] == answer.out.splitlines()[1:3]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(call: Call, name: str) -> None:
    answer = call(name, "--help")
    assert answer.status == 0 and f"nlc {name}" in answer.out
    if name != "specs":
        assert "Examples" in answer.out


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["check"],
        ["check", "nowhere.nl"],
        ["check", "."],
        ["check", "a", "--format", "xml"],
        ["fmt"],
        ["explain", "NL0000"],
        ["new", "9lives"],
        ["new", "a/b"],
        ["train"],
        ["train", "a", "--steps", "-1"],
        ["train", "--resume", "nowhere"],
        ["train", "--resume", "nowhere", "--batch", "2"],
        ["generate", "nowhere"],
        ["generate", "."],
        ["eval", "nowhere"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_ends_with_2_and_says_why(call: Call, words: list[str]) -> None:
    answer = call(*words)
    assert answer.status == 2
    assert answer.err.strip() and not answer.out.strip()


def test_a_misspelt_name_gets_the_nearest(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlc.cli.common.shipped", lambda: {"deltanet": Path("deltanet.nl")})
    answer = call("check", "detlanet")
    assert answer.status == 2 and "did you mean `deltanet`?" in answer.err


def test_a_file_comes_before_a_shipped_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(iter(shipped()))
    assert find_spec(name).is_file()
    Path(name).write_text("mine")
    assert find_spec(name) == Path(name)


def test_set_splits_at_the_first_equals_sign() -> None:
    assert settings(["a.b=1", "c = 2.5", "d=adamw(lr = 1e-3)"]) == {
        "a.b": "1",
        "c": "2.5",
        "d": "adamw(lr = 1e-3)",
    }
    for wrong in ["a", "a=", "=1"]:
        with pytest.raises(CallError):
            settings([wrong])
    with pytest.raises(CallError, match="twice"):
        settings(["a=1", "a=2"])


def test_new_writes_once(call: Call) -> None:
    answer = call("new", "tiny")
    assert answer.status == 0 and "nlc check tiny.nl" in answer.out
    assert Path("tiny.nl").read_text().count("tiny") >= 3
    assert call("new", "tiny").status == 2
    assert call("new", "tiny", "-o", "nowhere/tiny.nl").status == 2


def test_version(call: Call) -> None:
    assert call("--version").out.startswith("nlc 0.")


def test_tables_align() -> None:
    assert table([["a", "bbb"], ["cc", "", "d"]]) == "  a    bbb\n  cc         d\n"
    assert [amount(n) for n in (7, 1000, 2_500_000, 10**9)] == ["7", "1.0 k", "2.5 M", "1.0 G"]


def test_a_bug_says_that_it_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlc.cli import BUG, main

    monkeypatch.setattr("sys.argv", ["nlc", "specs"])
    monkeypatch.setattr("nlc.cli.read.shipped", lambda: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    assert ended.value.code == BUG == 3
    assert "Traceback" in printed and "a bug of nlc, not of your spec: ZeroDivisionError" in printed
