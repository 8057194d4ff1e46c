"""Calls that are wrong, help that teaches, and how a spec is found."""

from __future__ import annotations

import subprocess
import sys
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
        # each example stands on a line of its own, or two would read as one call
        _, examples = answer.out.split("Examples:")
        lines = [line.strip() for line in examples.splitlines() if " nlc " in line]
        assert lines and all(line.count("nlc ") == 1 for line in lines)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["check"],
        ["check", "nowhere.nl"],
        ["check", "."],
        ["check", ""],
        ["check", "/dev/null"],
        ["check", "a" * 5000],
        ["check", "a" * 5000 + ".nl"],
        ["check", "a\0b"],
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
    ids=lambda words: " ".join(words)[:40].replace("\0", ""),
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


def test_new_writes_either_form(call: Call) -> None:
    assert call("new", "tiny", "-o", "first.yaml").status == 0
    text = Path("first.yaml").read_text()
    assert "system: tiny" in text and "#   nlc check first.yaml  " in text
    assert call("check", "first.yaml", "--strict").out.startswith("tiny  fine\n")
    assert call("fmt", "--check", "first.yaml").status == 0
    answer = call("new", "tiny", "-o", "first.txt")
    assert answer.status == 2 and "no known form" in answer.err


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


def test_ctrl_c_is_quiet_also_while_packages_are_loaded() -> None:
    code = (
        "import builtins, signal, sys\n"
        "find = builtins.__import__\n"
        "def stop(name, *rest, **more):\n"
        "    if name.startswith(WHERE): raise KeyboardInterrupt\n"
        "    return find(name, *rest, **more)\n"
        "from nlc.cli import main\n"
        "builtins.__import__ = stop\n"
        "sys.argv = ['nlc', 'specs']\n"
        "main()\n"
    )
    for where in ("typer", "nlc.cli.app", "nlc.syntax", "lark"):
        command = [sys.executable, "-c", code.replace("WHERE", repr(where))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (130, ""), where


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "enough memory"),
        (MemoryError(), "enough memory"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_machine_lacks_is_no_bug(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("nlc.cli.read.shipped", fail)
    answer = call("specs")
    assert answer.status == 2 and words in answer.err and "hint" in answer.err


@pytest.mark.parametrize(
    "command", ["check", "fmt", "convert", "graph", "explain", "compile", "train"]
)
def test_every_command_that_reads_a_spec_takes_set(call: Call, command: str) -> None:
    call("new", "tiny")
    answer = call(command, "tiny.nl", "--set", "dims.nothing=3")
    assert answer.status == 2 and "`--set dims.nothing` changes nothing" in answer.err


def test_the_commands_that_read_load_no_torch(call: Call) -> None:
    call("new", "tiny")
    code = "import sys; from nlc.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'triton') if m in sys.modules], file=sys.stderr)"
    for words in (
        ["check", "tiny.nl"], ["fmt", "tiny.nl"], ["convert", "tiny.nl"], ["graph", "tiny.nl"],
        ["graph", "tiny.nl", "--format", "svg"], ["explain", "tiny.nl"], ["explain", "NL0203"],
        ["specs"], ["--help"], ["train", "--help"],
    ):  # fmt: skip
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stderr.strip() == "[]", words
