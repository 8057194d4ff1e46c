"""The two forms of a spec, by the ending of its file.

In: a path. Out: its text and syntax tree, and a tree printed. Looks no name up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nlc.cli.common import FORMS, CallError

if TYPE_CHECKING:
    from nlc.syntax import tree as t

NOTHING: Mapping[str, str] = {}


def form_of_path(path: Path) -> str:
    """Return `nl` or `yaml`."""
    ending = path.suffix.lower()
    if ending not in FORMS:
        raise CallError(f"{path} has no known form", f"a file ending with {', '.join(FORMS)}")
    return "nl" if ending == ".nl" else "yaml"


def tree_of(path: Path, changes: Mapping[str, str] = NOTHING) -> tuple[str, t.Spec]:
    """Read a spec and change it; raises `SpecError` for its faults of syntax."""
    from nlc.semantics.settings import apply_settings
    from nlc.syntax.read import parse_source, read_source

    source, form = read_source(path)
    return source.text, apply_settings(parse_source(source, form), changes)


def printed(tree: t.Spec, form: str) -> str:
    """Print a tree in one of the forms."""
    from nlc.syntax.print_text import print_text
    from nlc.syntax.print_yaml import print_yaml

    return print_text(tree) if form == "nl" else print_yaml(tree)
