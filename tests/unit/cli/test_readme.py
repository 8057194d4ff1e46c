"""The README lists every command."""

from __future__ import annotations

from pathlib import Path

from nlc.cli.app import app

README = Path(__file__).resolve().parents[3] / "README.md"


def test_every_command_is_listed() -> None:
    text = README.read_text("utf-8")
    for command in app.registered_commands:
        assert f"`nlc {command.name} " in text or command.name == "specs"
