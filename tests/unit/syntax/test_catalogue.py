"""Every code of the syntax is explained: its wrong spec gives it, its right one parses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nlc.syntax
from nlc.diagnostics import SpecError
from nlc.errors import Entry, catalogue
from nlc.syntax.mistakes import table
from nlc.syntax.read import parse

# these speak of a file, not of what stands in it
OF_FILES = {"NL0180", "NL0181", "NL0182", "NL0183", "NL0184", "NL0185"}
ENTRIES = [found for code, found in catalogue().items() if code.startswith("NL01")]


@pytest.mark.parametrize("found", ENTRIES, ids=lambda found: found.code)
def test_the_wrong_spec_gives_the_code_and_the_right_one_parses(found: Entry) -> None:
    parse(found.right, found.form if found.wrong.strip().startswith("system") else "nl")
    if found.code in OF_FILES:
        return
    with pytest.raises(SpecError) as caught:
        parse(found.wrong, found.form)
    assert [fault.code for fault in caught.value.diagnostics] == [found.code]


def test_every_code_has_an_entry_and_every_entry_a_code() -> None:
    written = {row["code"] for row in table()["mistakes"]}
    for path in Path(nlc.syntax.__file__).parent.glob("*.py"):
        written.update(re.findall(r'"(NL01\d\d)"', path.read_text("utf-8")))
    assert written == {found.code for found in ENTRIES}
