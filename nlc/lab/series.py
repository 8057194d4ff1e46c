"""Several runs as one: the same subject and budget for each, and what all of them come to.

    Cell     one run that is to be made: a spec, its settings, a folder
    Series   a folder of runs: series.json (the plan), specs/, and a run folder for each cell
    Result   what a cell came to; kept as result.json in its run folder

In: a plan. Out: results. A series that is stopped or killed goes on where it was: finished cells
are read, the one at work resumes exactly, the others are made.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

import nlc
from nlc.lab import lesson, session
from nlc.lab import run as folders
from nlc.lab.checkpoint import write_text
from nlc.lab.faults import Diverged, LabError
from nlc.lab.lesson import Subject, TaskLesson, lesson_of
from nlc.lab.progress import Progress
from nlc.lab.run import Run, Settings
from nlc.lab.tasks import Task
from nlc.lab.train import train
from nlc.passes.cost import cost
from nlc.passes.plan import plan


@dataclass(frozen=True)
class Cell:
    """A run of a series: `label` names its row, `folder` its run folder, `spec` its copy."""

    label: str
    folder: str
    spec: str
    set: Mapping[str, str]
    settings: Settings


@dataclass(frozen=True)
class Result:
    """What a run came to.

    `measured` has an entry for each length of a task, or one with `bits_per_byte`. `state_bytes` is
    what one sequence of `length` tokens carries on, None where it is not known. `fault` says why a
    run has no numbers.
    """

    parameters: int
    state_bytes: int | None
    tokens_per_second: float
    steps: int
    tokens: int
    seconds: float
    measured: tuple[Mapping[str, Any], ...] = ()
    forgotten: float | None = None
    fault: str = ""


@dataclass(frozen=True)
class Series:
    """A series that is written down. `kind` is the command that made it."""

    folder: Path
    kind: str
    subject: Subject
    lengths: tuple[int, ...]
    target: str
    cells: tuple[Cell, ...]

    def result(self, cell: Cell) -> Result | None:
        """Read what a cell came to, None where it is not finished."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            text = (self.folder / cell.folder / "result.json").read_text("utf-8")
            found = Result(**json.loads(text))
            return replace(found, measured=tuple(found.measured))
        return None


def begin(
    out: Path | None,
    kind: str,
    subject: Subject,
    lengths: Sequence[int],
    target: str,
    cells: Sequence[tuple[Path, Cell]],
) -> Series:
    """Check all cells, then write a series down; a wrong one raises and leaves nothing."""
    seen: set[tuple[Path, str]] = set()
    for spec, cell in cells:
        key = (spec, json.dumps(dict(cell.set)))
        if key not in seen:
            seen.add(key)
            system = nlc.load(spec, set=dict(cell.set))
            session.check_model(system, subject)
            nlc.compile(system, target=target)
        lesson.check_fit(subject, cell.settings)
    with folders.new_folder(out, kind) as folder:
        (folder / "checkpoints").rmdir()
        copies: dict[Path, str] = {}
        for spec, _ in cells:
            if spec not in copies:
                place = folder / "specs" / f"{len(copies) + 1:02d}"
                copied = session.copy_spec(spec, place)
                copies[spec] = str(copied.relative_to(folder))
        made = tuple(replace(cell, spec=copies[spec]) for spec, cell in cells)
        series = Series(folder, kind, subject, tuple(lengths), target, made)
        _write(series)
    return series


def _write(series: Series) -> None:
    plan = {
        "kind": series.kind,
        "command": folders.command(),
        "subject": dict(lesson.named(series.subject)),
        "lengths": series.lengths,
        "target": series.target,
        "cells": [asdict(cell) for cell in series.cells],
    }
    write_text(series.folder / "series.json", json.dumps(plan, indent=2) + "\n")


def reopen(folder: Path, kind: str) -> Series:
    """Read a series again."""
    hint = f"a folder made by `nlc {kind}`"
    try:
        found = json.loads((folder / "series.json").read_text("utf-8"))
        cells = tuple(
            Cell(**{**cell, "settings": Settings(**cell["settings"])}) for cell in found["cells"]
        )
        subject = lesson.again(found["subject"])
        series = Series(
            folder, found["kind"], subject, tuple(found["lengths"]), found["target"], cells
        )
    except (FileNotFoundError, NotADirectoryError):
        raise LabError(f"{folder} is not a series: it has no series.json", hint) from None
    except OSError as error:
        raise LabError(f"cannot read {folder}/series.json: {error.strerror}", hint) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabError(f"{folder}/series.json is damaged: {error}", hint) from None
    if series.kind != kind:
        raise LabError(f"{folder} was made by `nlc {series.kind}`", hint)
    return series


def work(series: Series, progress: Callable[[Cell, int], Progress]) -> bool:
    """Make the runs that are not finished, in order; say whether all are, or the user stopped."""
    for number, cell in enumerate(series.cells):
        if series.result(cell) is None and not _work_on(series, cell, progress(cell, number)):
            return False
    return True


def _work_on(series: Series, cell: Cell, progress: Progress) -> bool:
    """Make one run or go on with it; keep its result. False where the user stopped it."""
    folder = series.folder / cell.folder
    if (folder / "run.json").exists():
        run, compiled, subject = session.reopen(folder)
    else:
        # what a kill left of the making of a run folder
        shutil.rmtree(folder, ignore_errors=True)
        subject = series.subject
        run, compiled = session.begin(
            series.folder / cell.spec, cell.set, series.target, subject, cell.settings, folder
        )
    try:
        outcome = train(run, compiled, subject, progress)
        if outcome.how == "stopped":
            return False
        found = _result(run, compiled, series)
    except Diverged as error:
        found = replace(_effort(run, compiled), fault=str(error).partition("\n")[0])
    write_text(folder / "result.json", json.dumps(asdict(found), indent=2) + "\n")
    return True


def _effort(run: Run, compiled: Any) -> Result:
    """Return what a run took, without what it came to."""
    lines = [m for m in run.measurements() if "train" in m]
    settings = run.settings
    times = [0.0, *(m["seconds"] for m in lines)]
    steps = [b - a for a, b in pairwise(times) if b > a]
    per_step = settings.batch * settings.length
    system = compiled.system
    counted = cost(system, plan(system), settings.length)
    return Result(
        parameters=sum(p.numel() for p in compiled.model().parameters()),
        state_bytes=None if counted is None else counted.total.state_bytes,
        tokens_per_second=per_step / median(steps) if steps else 0.0,
        steps=lines[-1]["step"] if lines else 0,
        tokens=lines[-1]["tokens"] if lines else 0,
        seconds=times[-1],
    )


def _result(run: Run, compiled: Any, series: Series) -> Result:
    """Measure a run that is finished."""
    effort = _effort(run, compiled)
    model = session.trained_model(run, compiled, run.settings.device)
    subject = series.subject
    if not isinstance(subject, Task):
        # all of the text that is held out, not only what training looks at
        whole = replace(run.settings, eval_bytes=len(subject.text))
        bits = lesson_of(subject, whole).measure(model, effort.steps)["held_out"]
        return replace(effort, measured=({"bits_per_byte": bits},))
    if subject.parts > 1:
        found = TaskLesson(subject, run.settings).measure(model, effort.steps)
        lost = lesson.forgetting(run.measurements())
        return replace(effort, measured=({"length": run.settings.length, **found},), forgotten=lost)
    torch.set_num_threads(run.settings.threads)
    rows = lesson.measured_at(model, subject, {run.settings.length, *series.lengths})
    return replace(
        effort, measured=tuple({"length": row.length, **row.answers.as_dict()} for row in rows)
    )
