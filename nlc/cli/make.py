"""Commands that write something: a first spec, an emitted package.

In: a name or a spec. Out: a file or a folder. `compile` loads torch, `new` does not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.common import (
    CallError,
    Format,
    FormatOption,
    SetOption,
    SpecArgument,
    find_spec,
    say,
    settings,
    write_file,
)
from nlc.cli.faults import faults_shown
from nlc.cli.forms import form_of_path, printed
from nlc.cli.kernels_report import no_kernels
from nlc.cli.lab import Target, TargetOption
from nlc.cli.starter import starter


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The system's name.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: NAME.nl")
    ] = None,
) -> None:
    """Write a first spec: small, complete, and explained line by line.

    The ending of the output file selects the form, .nl or .yaml.

    Examples:

        nlc new tiny
        nlc new tiny -o tiny.yaml
    """
    if not re.fullmatch(r"[^\W\d]\w{0,63}", name):
        raise CallError(f"`{name}` cannot name a system", "a letter, then letters, digits and _")
    path = output or Path(f"{name}.nl")
    if path.exists():
        raise CallError(f"{path} is already there", "another name, or -o FILE")
    form = form_of_path(path)
    text = starter(name, path.name)
    if form == "yaml":
        from nlc.syntax.read import parse

        text = printed(parse(text), form)
    write_file(path, text)
    say(f"wrote {path}; next:  nlc check {path}")


def compile_spec(
    spec: SpecArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The package's folder. Default: build/NAME.")
    ] = None,
    target: TargetOption = Target.auto,
    change: SetOption = None,
    form: FormatOption = Format.text,
) -> None:
    """Compile a spec to a self-contained package of readable PyTorch.

    The package imports torch, not nlc: copy it into a project, read it, change it. An existing
    folder is replaced only once the new package is complete.

    Examples:

        nlc compile deltanet --out build/deltanet
        nlc compile my.nl --set levels.fast.chunk=1
    """
    path = find_spec(spec)
    import nlc

    with faults_shown(form, str(path)):
        system = nlc.load(path, set=settings(change))
        compiled = nlc.compile(system, target=str(target))
    folder = out or Path("build") / system.name
    try:
        compiled.write(folder)
    except OSError as error:
        raise CallError(
            f"cannot write {folder}: {error.strerror or error}", "another --out"
        ) from None
    say(f"{system.name} -> {folder}")
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        say(f"  {file.relative_to(folder)}")
    if target is Target.triton and (why := compiled.kernels_refused):
        say(no_kernels(why))
