"""Commands that read a spec and change no meaning: check, fmt, convert, graph, specs.

In: specs. Out: faults, levels, a spec in its canonical or its other form, pictures. No torch.
"""

from __future__ import annotations

import json
import sys
from difflib import unified_diff
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.common import (
    CallError,
    Format,
    FormatOption,
    SetOption,
    SpecArgument,
    StrictOption,
    colored,
    find_spec,
    say,
    settings,
    shipped,
    write_file,
)
from nlc.cli.faults import counted, faults_shown, show_faults, status_of
from nlc.diagnostics import SpecError

SpecsArgument = Annotated[
    list[str],
    typer.Argument(metavar="SPEC", help="Spec files (.nl or .yaml), or shipped ones by name."),
]


def check(
    specs: SpecsArgument,
    change: SetOption = None,
    form: FormatOption = Format.text,
    strict: StrictOption = False,
) -> None:
    """Check specs: report what is wrong, or show their levels.

    All errors of a stage are shown, each with its code, the lines it concerns and a hint;
    `nlc explain CODE` explains it. For a correct spec the levels are shown, fastest first. JSON
    has one line per spec, GitHub annotations one per error.

    Examples:

        nlc check my.nl
        nlc check deltanet --set levels.fast.chunk=64
        nlc check specs/*.nl --format github --strict
    """
    paths = [find_spec(word) for word in specs]
    changed = settings(change)
    status = max(_check_one(path, changed, form, strict) for path in paths)
    if status:
        raise typer.Exit(status)


def _check_one(path: Path, changed: dict[str, str], form: Format, strict: bool) -> int:
    """Check a spec and show what was found; return its exit status."""
    import nlc
    from nlc.cli.report import Findings, levels_text

    try:
        system = nlc.load(path, set=changed)
        report = nlc.check(system)
    except SpecError as error:
        show_faults(error.diagnostics, form, str(path))
        if form is Format.text:
            say(f"{path}  {counted(error.diagnostics)}", error=True)
        return status_of(error.diagnostics)
    findings = Findings.of(report)
    warned = counted(report.diagnostics)
    match form:
        case Format.text:
            show_faults(report.diagnostics)
            say(f"{system.name}  {warned or 'fine'}")
            say(levels_text(system, findings))
        case Format.json:
            say(json.dumps(findings.as_json(str(path), system), ensure_ascii=False))
        case Format.github:
            show_faults(report.diagnostics, form, str(path))
    return 1 if strict and warned else 0


def fmt(
    specs: SpecsArgument,
    write: Annotated[bool, typer.Option("--write", "-w", help="Change the files.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only say which files would change; exit 1 if any.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what would change.")] = False,
    change: SetOption = None,
) -> None:
    """Format specs canonically; comments are kept.

    Without --write, --check or --diff the result is printed.

    Examples:

        nlc fmt my.nl
        nlc fmt -w my.nl other.yaml
        nlc fmt -w my.nl --set dims.d=256
        nlc fmt --check --diff specs/*.nl
    """
    from nlc.cli.forms import form_of_path, printed, tree_of

    changed = []
    for path in [find_spec(word) for word in specs]:
        with faults_shown(Format.text, str(path)):
            before, tree = tree_of(path, settings(change))
        after = printed(tree, form_of_path(path))
        if before != after:
            changed.append(path)
        if diff:
            _show_diff(path, before, after)
        if write and before != after:
            write_file(path, after)
            say(f"wrote {path}", error=True)
        if not (write or check or diff):
            sys.stdout.write(after)
    if check:
        for path in changed:
            say(f"{path} is not in its canonical format", error=True)
        if changed:
            raise typer.Exit(1)


def _show_diff(path: Path, before: str, after: str) -> None:
    lines = unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        f"{path}",
        f"{path} (canonical)",
    )
    for line in lines:
        sys.stdout.write(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")


def convert(
    spec: SpecArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .nl or .yaml file to write."),
    ] = None,
    change: SetOption = None,
) -> None:
    """Print a spec in its other form: text as YAML, YAML as text.

    Comments are kept.

    Examples:

        nlc convert my.nl > my.yaml
        nlc convert my.yaml -o my.nl
    """
    from nlc.cli.forms import form_of_path, printed, tree_of

    path = find_spec(spec)
    form = "yaml" if form_of_path(path) == "nl" else "nl"
    if output is not None and form_of_path(output) != form:
        raise CallError(f"{output} has not the ending of the other form", f"a name with .{form}")
    with faults_shown(Format.text, str(path)):
        _, tree = tree_of(path, settings(change))
    text = printed(tree, form)
    if output is None:
        sys.stdout.write(text)
    else:
        write_file(output, text)


class Picture(StrEnum):
    """What the level graph is written as."""

    text = "text"
    svg = "svg"
    html = "html"
    dot = "dot"
    mermaid = "mermaid"
    json = "json"


def graph(
    spec: SpecArgument,
    form: Annotated[
        Picture | None,
        typer.Option("--format", help="Default: text, or as the ending of FILE says."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A file to write.")
    ] = None,
    change: SetOption = None,
) -> None:
    """Show the levels, what lives there, and how knowledge passes between them.

    The SVG is the level score: a row for each level, fastest first, with a mark for each update
    along the sequence.

    Examples:

        nlc graph deltanet
        nlc graph my.nl -o my.svg
        nlc graph my.nl --format mermaid
    """
    path = find_spec(spec)
    picture = form or _picture_of(output)
    import nlc
    from nlc import view

    with faults_shown(Format.text, str(path)):
        system = nlc.load(path, set=settings(change))
        match picture:
            case Picture.text:
                text = view.as_text(system)
            case Picture.svg:
                text = view.as_svg(system)
            case Picture.html:
                text = view.as_html(system)
            case Picture.dot:
                text = view.as_dot(system)
            case Picture.mermaid:
                text = view.as_mermaid(system)
            case Picture.json:
                text = json.dumps(view.as_json(system), ensure_ascii=False, indent=2)
    if output is None:
        say(text)
    else:
        write_file(output, text)


def _picture_of(output: Path | None) -> Picture:
    """Tell the format from a file's ending."""
    if output is None:
        return Picture.text
    endings = {".txt": Picture.text, ".mmd": Picture.mermaid}
    endings |= {f".{picture}": picture for picture in Picture}
    if output.suffix not in endings:
        raise CallError(f"the ending of {output} names no format", "--format, or FILE.svg")
    return endings[output.suffix]


def specs() -> None:
    """List the shipped specs. Each can be used by its name, and with `use NAME` in a spec."""
    from nlc.cli.forms import tree_of

    bold, plain = ("\x1b[1m", "\x1b[0m") if colored(sys.stdout) else ("", "")
    rules = []
    library = shipped()
    width = max(map(len, library), default=0)
    for name, path in library.items():
        with faults_shown(Format.text, str(path)):
            _, tree = tree_of(path)
        if tree.blocks:
            say(f"{bold}{name:<{width}}{plain}  {tree.about or ''}".rstrip())
        else:
            rules += [rule.name for rule in tree.rules]
    say(f"\nrules, for an update or as an optimizer: {' '.join(rules)}")
