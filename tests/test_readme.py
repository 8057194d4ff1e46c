"""The README says what is so: its spec, its answers, its Python, its commands and its systems."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nlc
from nlc.cli.app import app
from nlc.cli.common import shipped

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_spec_gives_the_answer_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nlc.cli import main

    spec = next(text for _, text in BLOCKS if text.startswith("system "))
    answer = next(text for _, text in BLOCKS if text.startswith("tiny  fine"))
    (tmp_path / "tiny.nl").write_text(spec)
    monkeypatch.setattr("sys.argv", ["nlc", "check", str(tmp_path / "tiny.nl")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == answer


def test_the_message_is_what_the_spec_gives() -> None:
    from nlc.render import render_text

    message = next(text for _, text in BLOCKS if text.startswith("error["))
    lines = ["system hope", "", "dims { d = 8 }", "", "", ""]
    lines += re.findall(r"^ \d \| (.*)$", message, re.MULTILINE)[::-1]
    lines += ["block b(x[d]) -> y[d] { y = x }"]
    with pytest.raises(nlc.SpecError) as caught:
        nlc.parse("\n".join(lines) + "\n")
    shown = render_text(caught.value.diagnostics, color=False)
    assert shown.replace("<text>", "hope.nl") == message


def test_the_python_runs(tmp_path: Path) -> None:
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    for kind, text in BLOCKS:
        if kind == "python":
            subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True)


def test_every_command_is_listed() -> None:
    for command in app.registered_commands:
        assert f"`nlc {command.name} " in README or command.name == "specs"


def test_every_system_is_listed() -> None:
    for name, path in shipped().items():
        if nlc.load(path).blocks:
            assert f"| `{name}` |" in README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
