"""The commands of the page of results are calls that nlc takes."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from nlc.cli import main
from tests.unit.docs.fences import ROOT

PAGE = (ROOT / "docs" / "results.md").read_text("utf-8")
COMMANDS = re.findall(r"^\$ (nlc (?:compare|sweep|train) .*)$", PAGE, re.MULTILINE)


def test_every_table_has_its_command() -> None:
    tables = re.findall(r"^\|[ :-]+\|[ :|-]*$", PAGE, re.MULTILINE)
    assert len(tables) >= 4 and len(COMMANDS) >= len(tables)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_taken(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is checked and written down, as it is before the first run; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    for spec in re.findall(r"^```nl\n(# ([\w.]+\.nl)\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        Path(spec[1]).write_text(spec[0])
    monkeypatch.setattr("nlc.cli.series._run", lambda *_: None)
    monkeypatch.setattr("nlc.cli.lab._train", lambda *_: None)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (0, None)
