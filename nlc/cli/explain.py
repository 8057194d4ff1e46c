"""`nlc explain`: a code of the catalogue, or how a spec runs and why.

In: a code or a spec. Out: text. Loads no torch.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.common import CallError, Format, SetOption, colored, find_spec, say, settings
from nlc.cli.faults import faults_shown
from nlc.diagnostics import Diagnostic, Faults, SpecError
from nlc.errors import Entry, codes, entry, nearest
from nlc.ir.system import System

CODE = re.compile(r"[Nn][Ll]\d+")


def explain(
    what: Annotated[
        str, typer.Argument(metavar="CODE|SPEC", help="A code such as NL0203, or a spec.")
    ],
    change: SetOption = None,
    form: Annotated[
        Format, typer.Option("--format", help="As text, or as JSON for programs.")
    ] = Format.text,
) -> None:
    """Tell what a code means, or how a spec runs: levels, normal forms, schedules, cost.

    For a code: its cause, a spec that gives it with the message, and the mended spec.

    Examples:

        nlc explain NL0203
        nlc explain deltanet
        nlc explain deltanet --format json
    """
    if form is Format.github:
        raise CallError("explain writes no annotations", "--format text or --format json")
    if CODE.fullmatch(what) and not Path(what).is_file():
        _explain_code(what, form)
    else:
        _explain_spec(find_spec(what), change, form)


def _explain_code(word: str, form: Format) -> None:
    found = entry(word)
    if found is None:
        close = nearest(word.upper(), codes())
        raise CallError(
            f"there is no code {word.upper()}",
            f"the nearest one is {close}" if close else "a code that a message shows: NL0203",
        )
    if form is Format.json:
        facts = {
            name: getattr(found, name) for name in ("code", "title", "cause", "wrong", "right")
        }
        say(json.dumps({**facts, "form": found.form}, ensure_ascii=False))
        return
    bold, plain = ("\x1b[1m", "\x1b[0m") if colored(sys.stdout) else ("", "")
    say(f"{bold}{found.code}  {found.title}{plain}\n")
    say(found.cause.strip() + "\n")
    say(f"{bold}Wrong:{plain}\n")
    say(_indented(found.wrong))
    say(shown_fault(found, colored(sys.stdout)))
    say(f"{bold}Right:{plain}\n")
    say(_indented(found.right))


def shown_fault(found: Entry, color: bool) -> str:
    """Return the message that an entry's wrong spec gives."""
    from nlc.render import render_text

    return render_text(
        [d for d in faults_of(found.wrong, found.form) if d.code == found.code], color
    )


def faults_of(text: str, form: str) -> list[Diagnostic]:
    """Return all faults of a text: errors, warnings, and what cannot be compiled yet."""
    import nlc

    try:
        system = nlc.parse(text, form=form)
        return [*nlc.check(system).diagnostics, *_unsupported(system)]
    except SpecError as error:
        return list(error.diagnostics)


def _unsupported(system: System) -> list[Diagnostic]:
    from nlc.optimizers import optimizer_faults

    faults = Faults()
    for code, words, span in system.unsupported:
        faults.error(code, words, span, "not supported yet", "leave it out for now")
    faults.found += optimizer_faults(system)
    return faults.found


def _indented(text: str) -> str:
    lines = text.rstrip("\n").splitlines()
    return "".join(f"    {line}".rstrip() + "\n" for line in lines) + "\n"


def _explain_spec(path: Path, change: list[str] | None, form: Format) -> None:
    import nlc
    from nlc.cli.explanation import explanation
    from nlc.cli.told import as_json
    from nlc.cli.what_if import chunks_that_help

    given = settings(change)
    with faults_shown(form, str(path)):
        system = nlc.load(path, set=given)
        report = nlc.check(system)
    chunks = chunks_that_help(system, report, lambda more: nlc.load(path, set={**given, **more}))
    if form is Format.json:
        say(json.dumps(as_json(str(path), system, report, chunks), ensure_ascii=False))
    else:
        say(explanation(system, report, chunks))
