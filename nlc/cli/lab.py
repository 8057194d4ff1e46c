"""Commands that run a model: train, generate, eval.

In: a spec or a run folder. Out: a run folder, text, numbers. These load torch.
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
from nlc.cli.subjects import (
    Answer,
    AnswerOption,
    DataOption,
    LengthsOption,
    TaskOption,
    TextOption,
    as_json,
    lengths_of,
    subject_of,
    training,
)
from nlc.cli.task_report import measured_json, measured_text, stream_text


class Target(StrEnum):
    """What a spec is compiled to."""

    auto = "auto"
    torch = "torch"
    triton = "triton"


TargetOption = Annotated[
    Target, typer.Option(help="What to compile to; `auto` takes Triton kernels if there is a GPU.")
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/NAME-001.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]

ProbeOption = Annotated[
    bool, typer.Option("--probe", help="Probe the model at each measurement; see `nlc probe`.")
]
ProbeTokens = Annotated[
    int, typer.Option(min=2, help="Tokens of each sequence that a probe reads.")
]

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
    task: TaskOption = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help=f"How long to train. Default: {MINUTES:g}, unless --steps."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Number of training steps.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder. Default: runs/NAME-001, ...")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue a run exactly where it stopped.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Sequences in a step. Default: 8, for a task 32.")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in a sequence. Default: 256, or that of the task."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of initial values and batches.")] = 0,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between measurements. Default: 100.")
    ] = None,
    eval_bytes: Annotated[int, typer.Option(min=1, help="Held-out bytes to measure.")] = 32768,
    save_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between checkpoints. Default: every 30 seconds."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for torch. Default: as torch chooses.")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Bytes of text to generate at the end.")] = 300,
    probe: ProbeOption = False,
    probe_tokens: ProbeTokens = 128,
    target: TargetOption = Target.auto,
    device: DeviceOption = "auto",
    change: SetOption = None,
) -> None:
    """Train a model on text, byte by byte, or on a task, and show how well it does.

    A task is a generator of sequences with answers, such as parity or recall of pairs; `nlc tasks`
    lists them. Every spec with `vocab bytes` can try every task.

    Stop it with Ctrl-C and continue with `nlc train --resume DIR`: the numbers are those of a run
    that was never stopped. The run folder holds the spec, the emitted package, checkpoints,
    measurements (metrics.jsonl), versions, seed and command.

    Examples:

        nlc train deltanet --minutes 2
        nlc train my.nl --text book.txt --steps 2000 --set dims.d=256
        nlc train deltanet --task mqar:pairs=16 --steps 1000
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

    if path is None:
        budget = {"minutes": minutes, "steps": steps}
        changed = budget if any(v is not None for v in budget.values()) else {}
        with faults_shown(Format.text, str(resume)):
            run, compiled, subject = session.reopen(resume or Path(), **changed)
    else:
        subject = subject_of(text, data, task)
        chosen = training(
            subject,
            batch=batch,
            length=length,
            seed=seed,
            steps=steps,
            minutes=minutes,
            eval_every=eval_every,
            save_every=save_every,
            eval_bytes=eval_bytes,
            device=device_of(device),
            threads=threads or torch_threads(),
            probe=probe_tokens if probe else None,
        )
        with faults_shown(Format.text, str(path)):
            run, compiled = session.begin(path, settings(change), str(target), subject, chosen, out)
    _train(run, compiled, subject, sample)


def _train(run: Any, compiled: Any, subject: Any, sample: int) -> None:
    from nlc.lab.lesson import lesson_of, told
    from nlc.lab.probe import prober
    from nlc.lab.progress import Shown, clock
    from nlc.lab.tasks import Task
    from nlc.lab.train import train as learn

    say(f"{run.origin.name}: training on {told(subject)}, in {run.folder}")
    unit = lesson_of(subject, run.settings).unit
    progress = Shown(run.settings.steps, run.settings.minutes, unit=unit)
    probe = None if run.settings.probe is None else prober(run, compiled, subject)
    outcome = learn(run, compiled, subject, progress, probe)
    held = "" if outcome.held_out is None else f", held out {outcome.held_out:.4f} {unit}"
    say(f"{outcome.how} at step {outcome.step:,} after {clock(outcome.seconds)}{held}")
    if outcome.how == "stopped":
        say(f"go on with   nlc train --resume {run.folder}")
        raise typer.Exit(130)
    if isinstance(subject, Task):
        _show_task(run, compiled, subject, None, Answer.text)
    elif sample:
        say("a sample:\n")
        start = bytes(subject.held_out[:64].tolist())
        _write_text(run, compiled, start, sample, _sampling())
        say()
    say(f"checkpoint   {outcome.checkpoint}")
    say(f"measured     {run.metrics}")
    say(f"package      {run.folder / 'package'}")
    if probe is not None:
        say(f"probes       {run.figure}")
    again = "nlc eval {}" if isinstance(subject, Task) else "nlc generate {} --prompt 'The '"
    say(f"try          {again.format(run.folder)}")


def _sampling() -> Any:
    from nlc.lab.generate import Sampling

    return Sampling()


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "The ",
    tokens: Annotated[int, typer.Option(min=0, help="Bytes to generate.")] = 400,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely byte; higher values vary more.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Sample only from the K most likely bytes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue a prompt with a trained model.

    Systems without softmax attention use constant memory, however long the text.

    Examples:

        nlc generate runs/deltanet-001 --prompt 'The class statement' --tokens 1000
    """
    from nlc.lab.evaluate import BYTES
    from nlc.lab.generate import Sampling
    from nlc.lab.run import read
    from nlc.lab.session import compiled_of

    sampling = Sampling(temperature, top_k, seed)
    found = read(run)
    with faults_shown(Format.text, str(found.spec)):
        compiled = compiled_of(found)
    vocab = compiled.system.model.vocab
    if vocab < BYTES:
        raise CallError(
            f"a text cannot be continued with a vocab of {vocab}", "a run with `vocab bytes`"
        )
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
    task: TaskOption = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Bytes read at once. Default: as in training.")
    ] = None,
    lengths: LengthsOption = None,
    form: AnswerOption = Answer.text,
) -> None:
    """Measure a trained model: bits per byte of a text, or accuracy on a task.

    Without --text, --data or --task it is measured on what it was trained on: all held-out text,
    or new sequences of the task, also longer ones than in training. `exact` is the share of
    sequences without a mistake, `guess` the accuracy of always giving the most frequent answer.

    Examples:

        nlc eval runs/deltanet-001
        nlc eval runs/deltanet-001 --text book.txt --length 4096
        nlc eval runs/deltanet-002 --task parity --lengths 40,256,1024
    """
    from nlc.lab.evaluate import bits_per_byte
    from nlc.lab.run import read
    from nlc.lab.session import check_model, compiled_of, trained_model
    from nlc.lab.session import subject_of as trained_on
    from nlc.lab.tasks import Task

    found = read(run)
    own = text is None and data is None and task is None
    subject = trained_on(found) if own else subject_of(text, data, task)
    with faults_shown(Format.text, str(found.spec)):
        compiled = compiled_of(found)
        check_model(compiled.system, subject)
        if isinstance(subject, Task):
            if length is not None:
                raise CallError("--length is for texts", "--lengths 64,128 for a task")
            _show_task(found, compiled, subject, lengths_of(lengths), form)
            return
        model = trained_model(found, compiled, found.settings.device)
    if lengths is not None:
        raise CallError("--lengths is for tasks", "--length 256 for a text")
    measured = subject.held_out if own else subject.whole
    read_at_once = length or found.settings.length
    bits = bits_per_byte(model, measured, found.settings.batch, read_at_once)
    what = "held out" if own else "whole text"
    if form is Answer.json:
        answer = {"text": subject.name, "what": what, "bytes": len(measured)}
        say(as_json({**answer, "length": read_at_once, "bits_per_byte": bits}))
    else:
        say(f"{bits:.4f} bits/byte   {subject.name}, {what}, {len(measured):,} bytes")


def _show_task(
    run: Any, compiled: Any, task: Any, lengths: tuple[int, ...] | None, form: Answer
) -> None:
    """Measure a trained model on a task and print the table of it."""
    from nlc.lab.lesson import forgetting, measured_at
    from nlc.lab.session import trained_model

    model = trained_model(run, compiled, run.settings.device)
    rows = measured_at(model, task, lengths or (run.settings.length, *task.longer))
    if task.parts > 1:
        rows = measured_at(model, task, lengths or (run.settings.length,), by_part=True)
    history = run.measurements() if run.origin.data["name"] == task.spelled else []
    if form is Answer.json:
        say(as_json({"task": task.spelled, **measured_json(rows, forgetting(history))}))
    elif task.parts > 1:
        say(stream_text(task.spelled, rows, forgetting(history)))
    else:
        say(measured_text(task.spelled, rows, run.settings.length))


def _refuse_changes(context: typer.Context) -> None:
    """With --resume, only the budget and the sample can be chosen anew."""
    for name in context.params.keys() - {"resume", "minutes", "steps", "sample"}:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            word = {"change": "set"}.get(name, name).replace("_", "-")
            raise CallError(
                f"--{word} cannot change when a run is resumed", "only --minutes and --steps can"
            )


def device_of(word: str) -> str:
    """Return the device that a word means; an error if it is not there."""
    import torch

    if word == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=word)
    except (RuntimeError, AssertionError):
        raise CallError(f"there is no device {word} here", "cpu, cuda or auto") from None
    return word


def torch_threads() -> int:
    """Return the number of threads that torch takes by itself."""
    import torch

    return torch.get_num_threads()
