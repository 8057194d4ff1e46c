"""Commands that train several models: compare, sweep.

In: specs, a subject, a budget. Out: a folder of runs, and a table of what they came to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nlc.cli.common import CallError, Format, SetOption, find_spec, say, settings
from nlc.cli.faults import faults_shown
from nlc.cli.forms import tree_of
from nlc.cli.lab import DeviceOption, Target, TargetOption, device_of, torch_threads
from nlc.cli.series_report import (
    Metric,
    difference_text,
    grouped,
    plan_text,
    series_json,
    series_text,
)
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

# the budget of each run if nothing is said
STEPS = 500

MinutesOption = Annotated[
    float | None, typer.Option(min=0, help="The budget of each run, instead of steps.")
]
StepsOption = Annotated[
    int | None, typer.Option(min=0, help=f"The budget of each run. Default: {STEPS} steps.")
]
BatchOption = Annotated[
    int | None, typer.Option(min=1, help="Sequences in a step. Default: 8, for a task 32.")
]
LengthOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens in a sequence. Default: 256, or that of the task.")
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Runs of each spec, with seeds 0, 1, ...")]
OutOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The folder of all runs. Default: runs/...-001.")
]
ResumeOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Continue where it stopped, or show its table.")
]
MetricOption = Annotated[
    Metric | None,
    typer.Option(help="The score of a task: right answers, or sequences without a mistake."),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads for torch. Default: as torch chooses.")
]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Train nothing; only show what would be trained.")
]


def compare(
    context: typer.Context,
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="SPEC...", help="Spec files, or shipped ones by name."),
    ] = None,
    text: TextOption = None,
    data: DataOption = None,
    task: TaskOption = None,
    seeds: SeedsOption = 1,
    steps: StepsOption = None,
    minutes: MinutesOption = None,
    batch: BatchOption = None,
    length: LengthOption = None,
    lengths: LengthsOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    metric: MetricOption = None,
    threads: ThreadsOption = None,
    target: TargetOption = Target.auto,
    device: DeviceOption = "auto",
    change: SetOption = None,
    plan: PlanOption = False,
    form: AnswerOption = Answer.text,
) -> None:
    """Train several specs with equal budgets, and show which is better and how they differ.

    Each spec gets the same steps, batches, lengths and seeds. The table shows the mean over seeds,
    with minimum and maximum in brackets; parameters; the state that one sequence of the training
    length carries; tokens per second; and below it every clause that differs from the first
    spec's.

    Stop it with Ctrl-C; `nlc compare --resume DIR` goes on, and nothing is trained twice.
    `--set PATH=VALUE` changes all specs, `--set NAME:PATH=VALUE` the one of that name.

    Examples:

        nlc compare deltanet gated_deltanet transformer --task mqar --seeds 3
        nlc compare my.nl deltanet --minutes 5 --set dims.d=64 --set deltanet:dims.d_k=16
        nlc compare deltanet transformer --plan
        nlc compare --resume runs/compare-001
    """
    if resume is not None:
        refuse_others(context, specs)
        _run("compare", _reopened(resume, "compare"), metric, form)
        return
    if not specs or len(specs) < 2:
        raise CallError("compare takes two specs or more", "nlc compare SPEC SPEC")
    paths = _labelled(specs)
    changes = _changes_of(change, paths)
    if plan:
        _show_plan(paths, changes, length)
        return
    subject = subject_of(text, data, task)
    chosen = _training(subject, steps, minutes, batch, length, device, threads)
    variants = [(label, path, changes[label], chosen) for label, path in paths.items()]
    series = _begun("compare", out, subject, lengths, target, _cells(variants, range(seeds)))
    _run("compare", series, metric, form)


def sweep(
    context: typer.Context,
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC", help="A spec file, or a shipped one by its name."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=V1,V2,...",
            help="Values of the spec to try, such as `dims.d=64,128`; one value applies to all.",
        ),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2,...",
            help="Values of an option to try: batch, length or steps.",
        ),
    ] = None,
    text: TextOption = None,
    data: DataOption = None,
    task: TaskOption = None,
    seeds: SeedsOption = 1,
    steps: StepsOption = None,
    minutes: MinutesOption = None,
    batch: BatchOption = None,
    length: LengthOption = None,
    lengths: LengthsOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    metric: MetricOption = None,
    threads: ThreadsOption = None,
    target: TargetOption = Target.auto,
    device: DeviceOption = "auto",
    form: AnswerOption = Answer.text,
) -> None:
    """Train a spec with all combinations of the given values, and show a table of them.

    A comma inside brackets belongs to the value, so optimizers can be tried as they are written.

    Stop it with Ctrl-C; `nlc sweep --resume DIR` continues, and nothing is trained twice.

    Examples:

        nlc sweep deltanet --task mqar --set dims.d_k=16,32 --set levels.slow.optimizer.lr=1e-3,3e-3
        nlc sweep transformer --set "levels.slow.optimizer=adamw(lr=1e-3),muon(lr=2e-2)" --steps 300
        nlc sweep deltanet --over batch=8,32 --steps 200
        nlc sweep --resume runs/sweep-001
    """
    if resume is not None:
        refuse_others(context, spec)
        _run("sweep", _reopened(resume, "sweep"), metric, form)
        return
    if spec is None:
        raise CallError("sweep takes a SPEC or --resume DIR", "nlc sweep SPEC --set PATH=V1,V2")
    path = find_spec(spec)
    values = {name: split_values(value) for name, value in settings(change).items()}
    options = _options_of(over)
    swept = [name for name, found in (values | options).items() if len(found) > 1]
    if not swept:
        raise CallError("there is nothing to try", "--set PATH=V1,V2,... or --over batch=8,32")
    subject = subject_of(text, data, task)
    variants = []
    for chosen in itertools.product(*(values | options).values()):
        named = dict(zip(values | options, chosen, strict=True))
        own: dict[str, Any] = {"steps": steps, "batch": batch, "length": length}
        own |= {name: int(named[name]) for name in options}
        label = "  ".join(f"{name}={named[name]}" for name in swept)
        budget = _training(
            subject, own["steps"], minutes, own["batch"], own["length"], device, threads
        )
        variants.append((label, path, {name: named[name] for name in values}, budget))
    series = _begun("sweep", out, subject, lengths, target, _cells(variants, range(seeds)))
    _run("sweep", series, metric, form)


# ---- what the words mean -----------------------------------------------------------------------


def split_values(words: str) -> list[str]:
    """Split at commas that no bracket holds.

    >>> split_values("adamw(lr = 1e-3, eps = 0), muon , 3")
    ['adamw(lr = 1e-3, eps = 0)', 'muon', '3']
    """
    found, depth = [""], 0
    for sign in words:
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            found.append("")
        else:
            found[-1] += sign
    found = [value.strip() for value in found]
    if not all(found):
        raise CallError(f"a value in {words} is empty", "values with commas between them")
    return list(dict.fromkeys(found))


def _options_of(words: list[str] | None) -> dict[str, list[str]]:
    """Read `--over batch=8,32`."""
    found: dict[str, list[str]] = {}
    for name, values in settings(words).items():
        if name not in ("batch", "length", "steps"):
            raise CallError(f"--over {name} cannot be varied", "batch, length or steps")
        found[name] = split_values(values)
        if not all(v.isdigit() and int(v) > 0 for v in found[name]):
            raise CallError(f"--over {name}={values} are not numbers", f"--over {name}=8,32")
    return found


def _labelled(specs: list[str]) -> dict[str, Path]:
    """Name each spec by its file, with a number where a name comes again."""
    found: dict[str, Path] = {}
    for word in specs:
        path = find_spec(word)
        label, number = path.stem, 2
        while label in found:
            label, number = f"{path.stem}-{number}", number + 1
        found[label] = path
    return found


def _changes_of(words: list[str] | None, paths: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Sort `--set [NAME:]PATH=VALUE` by spec; what names one stands above what names none."""
    common: list[str] = []
    own: dict[str, list[str]] = {label: [] for label in paths}
    for word in words or []:
        name, colon, rest = word.partition(":")
        if colon and "=" not in name:
            if name.strip() not in own:
                raise CallError(f"--set {word}: there is no {name} here", ", ".join(paths))
            own[name.strip()].append(rest)
        else:
            common.append(word)
    return {label: settings(common) | settings(own[label]) for label in paths}


def _training(
    subject: Any,
    steps: int | None,
    minutes: float | None,
    batch: int | None,
    length: int | None,
    device: str,
    threads: int | None,
) -> Any:
    from nlc.lab.tasks import Task

    stream = isinstance(subject, Task) and subject.parts > 1
    if steps is None and minutes is None and not stream:
        steps = STEPS
    return training(
        subject,
        batch=batch,
        length=length,
        steps=steps,
        minutes=minutes,
        device=device_of(device),
        threads=threads or torch_threads(),
    )


def _cells(
    variants: Iterable[tuple[str, Path, Mapping[str, str], Any]], seeds: Iterable[int]
) -> list[tuple[Path, Any]]:
    """Make a cell for each variant and seed."""
    from dataclasses import replace

    from nlc.lab.series import Cell

    cells = []
    for number, (label, path, changes, chosen) in enumerate(variants, 1):
        for seed in seeds:
            folder = f"{number:02d}-{path.stem}-seed{seed}"
            cell = Cell(label, folder, "", changes, replace(chosen, seed=seed))
            cells.append((path, cell))
    return cells


def refuse_others(context: typer.Context, spec: object) -> None:
    """With --resume, only what is shown can be chosen anew."""
    if spec:
        raise CallError("--resume takes its specs from its folder", "no SPEC")
    for name in context.params.keys() - {"resume", "metric", "form"}:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            word = {"change": "set"}.get(name, name)
            raise CallError(f"--{word} cannot change when a series goes on", "only --metric can")


# ---- at work -----------------------------------------------------------------------------------


def _begun(
    kind: str, out: Path | None, subject: Any, lengths: str | None, target: Target, cells: Any
) -> Any:
    from nlc.lab import series
    from nlc.lab.tasks import Task

    chosen = lengths_of(lengths)
    if chosen and not isinstance(subject, Task):
        raise CallError("--lengths is for tasks", "--task NAME")
    longer = subject.longer if isinstance(subject, Task) else ()
    with faults_shown(Format.text, ""):
        return series.begin(out, kind, subject, chosen or longer, str(target), cells)


def _reopened(folder: Path, kind: str) -> Any:
    from nlc.lab import series

    return series.reopen(folder, kind)


def _run(kind: str, series: Any, metric: Metric | None, form: Answer) -> None:
    """Make what is not made yet, then show the table of all that is finished."""
    from nlc.lab.lesson import lesson_of, told
    from nlc.lab.progress import Shown
    from nlc.lab.series import work

    count = len(series.cells)
    say(f"{count} runs on {told(series.subject)}, in {series.folder}", error=True)

    def progress(cell: Any, number: int) -> Shown:
        unit = lesson_of(series.subject, cell.settings).unit
        title = f"[{number + 1}/{count}] {cell.label}, seed {cell.settings.seed}"
        return Shown(cell.settings.steps, cell.settings.minutes, unit=unit, title=title)

    with faults_shown(Format.text, str(series.folder)):
        finished = work(series, progress)
    groups = grouped(series)
    trees = _trees(series) if kind == "compare" else {}
    if form is Answer.json:
        say(as_json(series_json(series, groups, trees)))
    else:
        say(series_text(series, groups, metric))
        if trees:
            say(difference_text(trees))
    if not finished:
        say(f"go on with   nlc {kind} --resume {series.folder}", error=True)
        raise typer.Exit(130)


def _trees(series: Any) -> dict[str, Any]:
    """Read the specs of a series, each with what was set in it."""
    found = {}
    for cell in series.cells:
        if cell.label not in found:
            _, found[cell.label] = tree_of(series.folder / cell.spec, cell.set)
    return found


def _show_plan(
    paths: Mapping[str, Path], changes: Mapping[str, Mapping[str, str]], length: int | None
) -> None:
    """Say what would be compared; no torch is loaded."""
    import nlc
    from nlc.passes.cost import cost
    from nlc.passes.plan import plan

    rows, trees = [], {}
    for label, path in paths.items():
        with faults_shown(Format.text, str(path)):
            system = nlc.load(path, set=changes[label])
            _, trees[label] = tree_of(path, changes[label])
        tokens = length or 256
        rows.append((label, cost(system, plan(system), tokens)))
    say(plan_text(rows, length or 256))
    say(difference_text(trees))
