"""The table of commands.

Out: the typer application. What each command does stands in its own module.
"""

from __future__ import annotations

from typing import Annotated

import typer

from nlc.cli import bench, explain, lab, make, probe, read, series, task_report

app = typer.Typer(
    name="nlc",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""A compiler for Nested Learning systems.

    A spec says which maps a model has, on which time scale each of them changes, and by which
    rule. nlc checks the spec, compiles it to readable PyTorch, trains it and generates from it.

    A first session: `nlc new tiny`, `nlc check tiny.nl`, `nlc train tiny.nl --minutes 2`,
    `nlc generate runs/tiny-001`.

    Exit status: 0 success, 1 an error in the spec, 2 an error in the command line.""",
)

READING, MAKING, RUNNING = "Write specs", "Understand and compile", "Train and use"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"nlc {version('nlc')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


app.command("new", rich_help_panel=READING)(make.new)
app.command("specs", rich_help_panel=READING)(read.specs)
app.command("check", rich_help_panel=READING)(read.check)
app.command("fmt", rich_help_panel=READING)(read.fmt)
app.command("convert", rich_help_panel=READING)(read.convert)
app.command("graph", rich_help_panel=MAKING)(read.graph)
app.command("explain", rich_help_panel=MAKING)(explain.explain)
app.command("compile", rich_help_panel=MAKING)(make.compile_spec)
app.command("bench", rich_help_panel=MAKING)(bench.bench)
app.command("train", rich_help_panel=RUNNING)(lab.train)
app.command("compare", rich_help_panel=RUNNING)(series.compare)
app.command("sweep", rich_help_panel=RUNNING)(series.sweep)
app.command("tasks", rich_help_panel=RUNNING)(task_report.tasks)
app.command("generate", rich_help_panel=RUNNING)(lab.generate)
app.command("eval", rich_help_panel=RUNNING)(lab.evaluate)
app.command("probe", rich_help_panel=RUNNING)(probe.probe)
