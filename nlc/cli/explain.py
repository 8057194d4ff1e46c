"""`nlc explain`: a code of the catalogue, or how a spec runs and why.

In: a code or a spec. Out: text. Loads no torch.
"""

from __future__ import annotations

import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.common import CallError, Format, SetOption, colored, find_spec, say, settings
from nlc.cli.faults import faults_shown
from nlc.cli.lab import Target
from nlc.diagnostics import Diagnostic, Faults, SpecError
from nlc.errors import Entry, codes, entry, nearest
from nlc.ir.system import System


class Architecture(StrEnum):
    """A GPU that kernels can be compiled for ahead of time."""

    sm_80 = "sm_80"
    sm_90 = "sm_90"
    sm_100 = "sm_100"
    gfx942 = "gfx942"


CODE = re.compile(r"[Nn][Ll]\d+")


def explain(
    what: Annotated[
        str, typer.Argument(metavar="CODE|SPEC", help="An error code such as NL0203, or a spec.")
    ],
    change: SetOption = None,
    form: Annotated[
        Format, typer.Option("--format", help="As text, or as JSON for programs.")
    ] = Format.text,
    target: Annotated[
        Target, typer.Option(help="`triton` adds the kernels that would be written.")
    ] = Target.torch,
    architecture: Annotated[
        Architecture, typer.Option("--arch", help="The GPU that kernels are compiled for.")
    ] = Architecture.sm_90,
) -> None:
    """Explain an error code, or how a spec runs: levels, normal forms, schedules, cost.

    For a code: its cause, a spec with this error, the message, and the corrected spec.

    Examples:

        nlc explain NL0203
        nlc explain deltanet
        nlc explain deltanet --format json
        nlc explain deltanet --target triton --arch sm_80
    """
    if form is Format.github:
        raise CallError("explain writes no annotations", "--format text or --format json")
    if CODE.fullmatch(what) and not Path(what).is_file():
        _explain_code(what, form)
    else:
        arch = str(architecture) if target is Target.triton else ""
        _explain_spec(find_spec(what), change, form, arch)


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
    for code, words, span, hint in system.unsupported:
        faults.error(code, words, span, "not supported yet", hint)
    faults.found += optimizer_faults(system)
    return faults.found


def _indented(text: str) -> str:
    lines = text.rstrip("\n").splitlines()
    return "".join(f"    {line}".rstrip() + "\n" for line in lines) + "\n"


def _explain_spec(path: Path, change: list[str] | None, form: Format, arch: str) -> None:
    import nlc
    from nlc.cli.explanation import explanation
    from nlc.cli.told import as_json
    from nlc.cli.what_if import chunks_that_help

    given = settings(change)
    with faults_shown(form, str(path)):
        system = nlc.load(path, set=given)
        report = nlc.check(system)
    chunks = chunks_that_help(system, report, lambda more: nlc.load(path, set={**given, **more}))
    kernels = None
    if arch:
        from nlc.cli.kernels_report import kernels_json, kernels_report, kernels_text

        with faults_shown(form, str(path)):
            kernels = kernels_report(system, arch)
    if form is Format.json:
        facts = as_json(str(path), system, report, chunks)
        more = {"kernels": kernels_json(kernels)} if kernels is not None else {}
        say(json.dumps({**facts, **more}, ensure_ascii=False))
    else:
        say(explanation(system, report, chunks))
        if kernels is not None:
            say("\n" + kernels_text(kernels))
