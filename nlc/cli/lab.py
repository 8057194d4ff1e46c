"""Commands that run a model: train, generate, eval.

In: a spec or a run folder. Out: a run folder, text, a number. These load torch.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nlc.cli.common import (
    CallError,
    Format,
    SetOption,
    find_spec,
    say,
    settings,
)
from nlc.cli.faults import faults_shown


class Target(StrEnum):
    """What a spec is compiled to."""

    auto = "auto"
    torch = "torch"


TargetOption = Annotated[Target, typer.Option(help="What to compile to; `auto` decides.")]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/NAME-001.")
]
TextOption = Annotated[Path | None, typer.Option(metavar="FILE", help="A text file of your own.")]
DataOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A text that ships with Python: pydoc_data.topics, stdlib."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]

# how long training goes on if nothing is said
MINUTES = 5.0


def train(
    context: typer.Context,
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC", help="A spec file, or a shipped one by its name."),
    ] = None,
    text: TextOption = None,
    data: DataOption = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help=f"How long. Default {MINUTES:g}, unless --steps.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="How many training steps.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder. Default runs/NAME-001, ...")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with a run, exactly where it was.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Bytes in a sequence.")] = 256,
    seed: Annotated[int, typer.Option(help="For initial values and batches.")] = 0,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between measurements.")] = 100,
    eval_bytes: Annotated[int, typer.Option(min=1, help="Held-out bytes to measure.")] = 32768,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints. Default: 30 seconds.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch. Default: what torch takes.")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Bytes of text to write at the end.")] = 300,
    target: TargetOption = Target.auto,
    device: DeviceOption = "auto",
    change: SetOption = None,
) -> None:
    """Train a byte-level language model, and show how well it predicts text held out.

    Stop it with Ctrl-C and go on with `nlc train --resume DIR`: the numbers are those of a run
    that was never stopped. The run folder holds the spec, the emitted package, checkpoints,
    measurements (metrics.jsonl), versions, seed and command.

    Examples:

        nlc train deltanet --minutes 2
        nlc train my.nl --text book.txt --steps 2000 --set dims.d=256
        nlc train --resume runs/deltanet-001
    """
    if (spec is None) == (resume is None):
        raise CallError("train takes a SPEC or --resume DIR", "nlc train SPEC")
    if resume is not None:
        _refuse_changes(context)
        path = None
    else:
        path = find_spec(spec or "")
    from nlc.lab import session
    from nlc.lab.run import Settings

    if path is None:
        budget = {"minutes": minutes, "steps": steps}
        changed = budget if any(v is not None for v in budget.values()) else {}
        with faults_shown(Format.text, str(resume)):
            run, compiled, corpus = session.reopen(resume or Path(), **changed)
    else:
        corpus = _corpus(text, data)
        if minutes is None and steps is None:
            minutes = MINUTES
        chosen = Settings(
            batch=batch,
            length=length,
            seed=seed,
            steps=steps,
            minutes=minutes,
            eval_every=eval_every,
            save_every=save_every,
            eval_bytes=eval_bytes,
            device=_device(device),
            threads=threads or _torch_threads(),
        )
        with faults_shown(Format.text, str(path)):
            run, compiled = session.begin(path, settings(change), str(target), corpus, chosen, out)
    _train(run, compiled, corpus, sample)


def _train(run: Any, compiled: Any, corpus: Any, sample: int) -> None:
    from nlc.lab.generate import Sampling
    from nlc.lab.progress import Shown, clock
    from nlc.lab.train import train as learn

    say(
        f"{run.origin.name}: training on {corpus.name}, {len(corpus.text):,} bytes, in {run.folder}"
    )
    progress = Shown(run.settings.steps, run.settings.minutes)
    outcome = learn(run, compiled, corpus, progress)
    held = "" if outcome.held_out is None else f", held out {outcome.held_out:.4f} bits/byte"
    say(f"{outcome.how} at step {outcome.step:,} after {clock(outcome.seconds)}{held}")
    if outcome.how == "stopped":
        say(f"go on with   nlc train --resume {run.folder}")
        raise typer.Exit(130)
    if sample:
        say("a sample:\n")
        start = bytes(corpus.held_out[:64].tolist())
        _write_text(run, compiled, start, sample, Sampling())
        say()
    say(f"checkpoint   {outcome.checkpoint}")
    say(f"measured     {run.metrics}")
    say(f"package      {run.folder / 'package'}")
    say(f"try          nlc generate {run.folder} --prompt 'The '")


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "The ",
    tokens: Annotated[int, typer.Option(min=0, help="Bytes to write.")] = 400,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest byte; higher is wilder.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Draw only among the K likeliest bytes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue a prompt with a trained model.

    Memory per token is constant for systems without softmax attention, however long the text.

    Examples:

        nlc generate runs/deltanet-001 --prompt 'The class statement' --tokens 1000
    """
    from nlc.lab.generate import Sampling
    from nlc.lab.run import read
    from nlc.lab.session import compiled_of

    sampling = Sampling(temperature, top_k, seed)
    found = read(run)
    with faults_shown(Format.text, str(found.spec)):
        compiled = compiled_of(found)
    _write_text(found, compiled, os.fsencode(prompt), tokens, sampling)


def _write_text(run: Any, compiled: Any, prompt: bytes, count: int, sampling: Any) -> None:
    """Print a prompt and its continuation as it comes."""
    from nlc.lab.generate import continue_text, decoded
    from nlc.lab.session import trained_model
    from nlc.render import printable

    model = trained_model(run, compiled, "cpu")
    # a terminal is not to be steered by what a model dreams up; a file gets it as it is
    steered = sys.stdout.isatty()
    say_piece = sys.stdout.write
    say_piece(prompt.decode("utf-8", "replace"))
    for piece in decoded(continue_text(model, prompt, count, sampling)):
        say_piece(printable(piece, keep="\n\t") if steered else piece)
        sys.stdout.flush()
    say_piece("\n")


def evaluate(
    run: RunArgument,
    text: TextOption = None,
    data: DataOption = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Bytes read in one go. Default: as in training.")
    ] = None,
) -> None:
    """Measure how well a trained model predicts text: bits per byte.

    Without --text or --data it is all of the text held out from the run's own.

    Examples:

        nlc eval runs/deltanet-001
        nlc eval runs/deltanet-001 --text book.txt --length 4096
    """
    from nlc.lab.evaluate import bits_per_byte
    from nlc.lab.run import read
    from nlc.lab.session import compiled_of, corpus_of, trained_model

    found = read(run)
    own = text is None and data is None
    corpus = corpus_of(found) if own else _corpus(text, data)
    measured = corpus.held_out if own else corpus.whole
    with faults_shown(Format.text, str(found.spec)):
        model = trained_model(found, compiled_of(found), found.settings.device)
    bits = bits_per_byte(model, measured, found.settings.batch, length or found.settings.length)
    what = "held out" if own else "whole text"
    say(f"{bits:.4f} bits/byte   {corpus.name}, {what}, {len(measured):,} bytes")


def _corpus(text: Path | None, data: str | None) -> Any:
    from nlc.lab.data import DEFAULT, from_file, named

    if text is not None and data is not None:
        raise CallError("--text and --data are two texts", "one of them")
    return from_file(str(text)) if text is not None else named(data or DEFAULT)


def _refuse_changes(context: typer.Context) -> None:
    """With --resume, only the budget and the sample can be chosen anew."""
    for name in context.params.keys() - {"resume", "minutes", "steps", "sample"}:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            word = {"change": "set"}.get(name, name).replace("_", "-")
            raise CallError(
                f"--{word} cannot change when a run is resumed", "only --minutes and --steps can"
            )


def _device(word: str) -> str:
    import torch

    if word == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=word)
    except (RuntimeError, AssertionError):
        raise CallError(f"there is no device {word} here", "cpu, cuda or auto") from None
    return word


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()
