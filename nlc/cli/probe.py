"""The command that looks inside a trained system.

In: a run folder or one of its checkpoints. Out: a report, a line of measurements, a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlc.cli.common import CallError, Format, say
from nlc.cli.faults import faults_shown


def probe(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A run folder, or a checkpoint in one."),
    ],
    tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens to read from each sequence. Default: at most 128."),
    ] = None,
) -> None:
    """Look inside a trained system: what each level and memory learns and keeps.

    Shows surprise (the inner loss), norms of states and updates, gates with their half-life,
    spectral entropy and effective rank of updates and of W_T - W_0, and singular values of
    activations. Also written to metrics.jsonl and drawn in probes.svg. `nlc train --probe` does
    this at each measurement.

    Examples:

        nlc probe runs/deltanet-001
        nlc probe runs/deltanet-001/checkpoints/step-00000500.safetensors
    """
    from nlc.lab.lesson import told
    from nlc.lab.probe import look_at
    from nlc.lab.probe_report import report
    from nlc.lab.run import read
    from nlc.lab.session import compiled_of, subject_of

    at = checkpoint if checkpoint.suffix == ".safetensors" else None
    if at is not None and not at.is_file():
        raise CallError(
            f"there is no checkpoint {at}", "a run folder, or a file in its checkpoints"
        )
    run = read(checkpoint if at is None else at.resolve().parent.parent)
    subject = subject_of(run)
    with faults_shown(Format.text, str(run.spec)):
        compiled = compiled_of(run)
    found = look_at(run, compiled, subject, at, tokens)
    say(f"{run.origin.name} at step {found['step']:,}, over {told(subject)}, held out")
    for line in report(compiled.system, found["probe"]):
        say(line)
    say(f"measured     {run.metrics}")
    say(f"picture      {run.figure}")
