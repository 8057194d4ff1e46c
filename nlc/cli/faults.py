"""How a command shows the faults of a spec, in the format that was asked for.

In: diagnostics. Out: text on standard error; JSON and annotations on standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import typer

from nlc.cli.common import Format, colored, say
from nlc.diagnostics import Diagnostic, SpecError
from nlc.render import render_github, render_json, render_text

# the code of a `--set` that has no place in the spec: the call is wrong, not the spec
SETTING = "NL0313"


def show_faults(
    diagnostics: Iterable[Diagnostic], form: Format = Format.text, file: str = ""
) -> None:
    """Show faults; JSON is the caller's whole answer, so it is printed even if there are none."""
    found = list(diagnostics)
    match form:
        case Format.text if found:
            say(render_text(found, colored(sys.stderr)), error=True)
        case Format.json:
            say(json.dumps(render_json(file, found), ensure_ascii=False))
        case Format.github:
            sys.stdout.write(render_github(file, found))


@contextmanager
def faults_shown(form: Format, file: str) -> Iterator[None]:
    """Show the faults of a spec in the wanted format and leave with their status."""
    try:
        yield
    except SpecError as error:
        show_faults(error.diagnostics, form, file)
        raise typer.Exit(status_of(error.diagnostics)) from None


def status_of(diagnostics: Iterable[Diagnostic]) -> int:
    """Return 1, or 2 where all that is wrong is what `--set` was given."""
    return 2 if all(d.code == SETTING for d in diagnostics) else 1


def counted(diagnostics: Sequence[Diagnostic]) -> str:
    """Say how many there are: `2 errors, 1 warning`."""
    parts = []
    for word in ("error", "warning"):
        number = sum(d.severity == word for d in diagnostics)
        if number:
            parts.append(f"{number} {word}{'s' if number > 1 else ''}")
    return ", ".join(parts)
