"""The command that measures kernels on a GPU and extends the table of their block sizes.

In: a spec. Out: a table of what was found, and rows in a file. Loads torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.common import (
    CallError,
    Format,
    SetOption,
    SpecArgument,
    find_spec,
    say,
    settings,
    write_file,
)
from nlc.cli.faults import faults_shown
from nlc.cli.report import table


def bench(
    spec: SpecArgument,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Search for faster block sizes, and add them to the table."),
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")] = 2048,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The table. Default: the one used by nlc compile."),
    ] = None,
    change: SetOption = None,
) -> None:
    """Measure a spec's Triton kernels on the GPU of this machine, forward and backward.

    With --tune it tries other block sizes, warps and stages for each memory and keeps the faster
    ones, by architecture, kind of gates and size. Nothing is tuned when a model runs.

    Examples:

        nlc bench gated_deltanet --set dims.d_k=128 --set dims.d_v=128
        nlc bench gated_deltanet --tune --set dims.d_k=128 --set dims.d_v=128
    """
    import nlc
    from nlc.codegen.triton.table import MEASURED, extended
    from nlc.compiled import compile_system
    from nlc.lab.tune import Bench, find_gpu, on_cuda
    from nlc.lab.tune import tune as tuned

    path = find_spec(spec)
    machine = find_gpu()
    with faults_shown(Format.text, str(path)):
        compiled = compile_system(nlc.load(path, set=settings(change)), "triton")
    file = out or MEASURED
    text = file.read_text("utf-8") if file.is_file() else "[]"
    try:
        extended(text, [])
    except ValueError as error:
        raise CallError(f"{file} is not a table: {error}", "a file that `--tune` wrote") from None
    rows = [["memory", "kind", "size", "tokens", "channels", "warps", "loop", "stages", "takes"]]
    rows[0] += ["took", "tried"] if tune else []
    found = []
    for entry in tuned(compiled, Bench(batch, length, machine, on_cuda), tune):
        own = entry.measured
        found.append(own)
        rows.append([entry.memory, own.gates, str(own.size), *map(str, own.row)])
        rows[-1] += [f"{1e3 * entry.after:.3f} ms"]
        rows[-1] += [f"{1e3 * entry.before:.3f} ms", str(entry.tried)] if tune else []
    say(f"{machine}, {batch} sequences of {length} tokens, bfloat16, forward and backward")
    say(table(rows))
    if tune:
        write_file(file, extended(text, found))
        say(f"rows written to {file}")
