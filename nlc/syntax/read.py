"""Reading: a file or a text, in either form, to a tree.

`compiler.py` calls exactly these two: `read_source(path) -> (Source, form)` and
`parse_source(source, form) -> Spec`, form being `nl` or `yaml`; both raise `SpecError`.
"""

from __future__ import annotations

from pathlib import Path

from nlc.source import Source
from nlc.syntax import tree
from nlc.syntax.parse_text import parse_text

SUFFIXES = {".nl": "nl", ".yaml": "yaml", ".yml": "yaml"}


def read_source(path: Path) -> tuple[Source, str]:
    """Read a spec file; its form follows from its suffix."""
    return Source(str(path), path.read_text("utf-8")), SUFFIXES.get(path.suffix, "nl")


def parse_source(source: Source, form: str) -> tree.Spec:
    """Parse a source in one of the forms."""
    if form == "yaml":
        from nlc.syntax.parse_yaml import parse_yaml

        return parse_yaml(source)
    return parse_text(source)
