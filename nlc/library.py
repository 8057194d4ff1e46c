"""The shipped library: where its specs lie, and its rules by name.

In: nothing. Out: a folder, rules. Reads the library's own files only.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from nlc.source import Source
from nlc.syntax import tree
from nlc.syntax.read import parse_source, read_source

RULES = "rules"


def library_folder() -> Path:
    """The folder of the shipped specs."""
    return Path(str(files("nlc.specs")))


@cache
def shipped_rules() -> dict[str, tree.Rule]:
    """The rules of the library, by name."""
    file = library_folder() / f"{RULES}.nl"
    source, form = read_source(file)
    # where nlc is installed is no part of what a message says
    source = Source(f"<library>/{file.name}", source.text)
    return {rule.name: rule for rule in parse_source(source, form).rules}
