"""Measurements of tasks, as tables and as JSON, and the list of tasks.

In: rows measured by the lab, tasks. Out: text, plain data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nlc.cli.common import say
from nlc.cli.report import table
from nlc.cli.subjects import Answer, AnswerOption, as_json

if TYPE_CHECKING:
    from nlc.lab.lesson import Row
    from nlc.lab.tasks import Task

# tokens shown of an example
SHOWN = 24


def measured_text(name: str, rows: Sequence[Row], trained: int) -> str:
    """Write a line for each length."""
    lines = [["length", "accuracy", "exact", "guess", "bits/answer"]]
    for row in rows:
        a = row.answers
        numbers = [f"{x:.3f}" for x in (a.accuracy, a.exact, a.guess)]
        as_trained = ["as trained"] if row.length == trained else []
        lines.append([str(row.length), *numbers, f"{a.bits:.4f}", *as_trained])
    count = rows[0].answers.sequences
    return f"{name}, {count} new sequences of each length\n{table(lines)}"


def stream_text(name: str, rows: Sequence[Row], lost: float | None) -> str:
    """Write a line for each part of a stream, and what was forgotten."""
    lines = [["part", "accuracy", "told the part", "guess", "bits/answer"]]
    for row in rows:
        a = row.answers
        number = 0 if row.part is None else row.part + 1
        numbers = [a.accuracy, a.chosen / a.asked, a.guess]
        lines.append([str(number), *(f"{x:.3f}" for x in numbers), f"{a.bits:.4f}"])
    right = [sum(getattr(row.answers, n) for row in rows) for n in ("right", "chosen", "asked")]
    lines.append(["all", f"{right[0] / right[2]:.3f}", f"{right[1] / right[2]:.3f}"])
    text = f"{name}, {rows[0].answers.sequences} held-out passages of each part\n{table(lines)}"
    if lost is not None:
        text += f"  forgotten {lost:.3f} (best since a part was seen, less now; all but the last)\n"
    return text


def measured_json(rows: Sequence[Row], lost: float | None) -> dict[str, Any]:
    """Return the same as data."""
    found: list[dict[str, Any]] = []
    for row in rows:
        a = row.answers
        entry: dict[str, Any] = {"length": row.length}
        if row.part is not None:
            entry |= {"part": row.part, "told": a.chosen / a.asked}
        entry |= {"accuracy": a.accuracy, "exact": a.exact, "guess": a.guess}
        found.append(entry | {"bits_per_answer": a.bits, "sequences": a.sequences})
    answer: dict[str, Any] = {"measured": found}
    return answer if lost is None else {**answer, "forgotten": lost}


def tasks(
    name: Annotated[
        str | None, typer.Argument(metavar="TASK", help="A task, optionally with options.")
    ] = None,
    form: AnswerOption = Answer.text,
) -> None:
    """List the tasks that models can be trained on, or show one with an example.

    Options of a task follow its name: `--task mqar:pairs=16,keys=32`.

    Examples:

        nlc tasks
        nlc tasks mqar:pairs=4
        nlc train deltanet --task mqar --steps 1000
    """
    from nlc.lab.tasks import find_task

    if name is None:
        from nlc.cli.subjects import TASK_NAMES

        found = [find_task(word) for word in TASK_NAMES.split()]
        if form is Answer.json:
            say(as_json([task_json(task) for task in found]))
        else:
            say(table([[task.name, _about(task)[0]] for task in found], indent=""))
            say("\nnlc tasks NAME shows one of them: its source, its options, an example.")
        return
    task = find_task(name)
    say(as_json(task_json(task)) if form is Answer.json else task_text(task))


def _about(task: Task) -> list[str]:
    """The lines of a task's docstring."""
    return [line.strip() for line in (type(task).__doc__ or "").strip().splitlines()]


def task_json(task: Task) -> dict[str, Any]:
    """Return what there is to know of a task."""
    return {
        "name": task.name,
        "about": " ".join(filter(None, _about(task))),
        "source": task.source,
        "length": task.length,
        "longer": list(task.longer),
        "vocab": task.vocab,
        "options": {f.name: getattr(task, f.name) for f in fields(task)},
    }


def task_text(task: Task) -> str:
    """Describe a task, with an example: what is read, and below it what is asked."""
    from nlc.lab.tasks import NOTHING

    options = ", ".join(f"{f.name}={getattr(task, f.name)}" for f in fields(task))
    lines = [task.spelled, *(f"  {line}".rstrip() for line in _about(task)), ""]
    facts = [
        ["source", task.source],
        ["lengths", f"{task.length} in training; measured at {', '.join(map(str, _all(task)))}"],
        ["tokens", f"{task.vocab}; a model's vocab is as large or larger"],
        ["options", options or "none"],
    ]
    length = min(max(task.least(), SHOWN), task.length)
    example = task.examples(0, 0, 1, length, mixed=False)
    read, asked = example.inputs[0].tolist(), example.targets[0].tolist()
    cells = [
        [task.show(token) for token in read],
        ["" if token == NOTHING else task.show(token) for token in asked],
    ]
    widths = [max(map(len, pair)) for pair in zip(*cells, strict=True)]
    rows = [" ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in cells]
    shown = [f"  reads   {rows[0].rstrip()}", f"  asked   {rows[1].rstrip()}"]
    return "\n".join([*lines, table(facts), *shown]) + "\n"


def _all(task: Task) -> list[int]:
    return sorted({task.length, *task.longer})
