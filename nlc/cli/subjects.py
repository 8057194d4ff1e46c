"""What a model is trained on or measured on, as the command line names it, and for how long.

In: options. Out: a text or a task, and the settings of a run. Loads torch only when asked for one.
"""

from __future__ import annotations

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nlc.cli.common import CallError

# a test compares these with what is registered, which takes torch to load
TASK_NAMES = (
    "copy selective_copy mqar fuzzy_recall needle parity aa abab anbn anbncn shuffle2 "
    "modular_arithmetic s5 modules"
)

# how long training goes on if nothing is said
MINUTES = 5.0

# what a run has where nothing is said: of a text, of a task
BATCH, TASK_BATCH = 8, 32
LENGTH = 256
EVAL_EVERY = 100


class Answer(StrEnum):
    """How numbers are written."""

    text = "text"
    json = "json"


TextOption = Annotated[Path | None, typer.Option(metavar="FILE", help="A text file of your own.")]
DataOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A text that ships with Python: pydoc_data.topics, stdlib."),
]
TaskOption = Annotated[
    str | None,
    typer.Option(metavar="NAME[:OPTION=N,...]", help=f"A task: {', '.join(TASK_NAMES.split())}."),
]
LengthsOption = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...", help="Lengths of a task's sequences. Default: in training, and longer."
    ),
]
AnswerOption = Annotated[Answer, typer.Option("--format", help="How the numbers are written.")]


def as_json(answer: object) -> str:
    """Write an answer as JSON, null where a number is not finite.

    >>> as_json({"bits": float("nan"), "lengths": (16, 32)})
    '{"bits": null, "lengths": [16, 32]}'
    """
    return json.dumps(_finite(answer))


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value


def subject_of(text: Path | None, data: str | None, task: str | None) -> Any:
    """Return the text or the task that the options name; the default text where none does."""
    given = [
        name
        for name, value in (("--text", text), ("--data", data), ("--task", task))
        if value is not None
    ]
    if len(given) > 1:
        raise CallError(f"{' and '.join(given)} are {len(given)} subjects", "one of them")
    if task is not None:
        from nlc.lab.tasks import find_task

        return find_task(task)
    from nlc.lab.data import DEFAULT, from_file, named

    return from_file(str(text)) if text is not None else named(data or DEFAULT)


def training(subject: Any, **given: Any) -> Any:
    """Return the settings of a run; what is None takes the subject's default."""
    from nlc.lab.run import Settings
    from nlc.lab.tasks import Task

    task = subject if isinstance(subject, Task) else None
    stream = task is not None and task.parts > 1
    chosen = {name: value for name, value in given.items() if value is not None}
    if given["minutes"] is None and given["steps"] is None:
        if task is not None and stream:
            chosen["steps"] = task.parts * task.each
        else:
            chosen["minutes"] = MINUTES
    defaults = {
        "batch": BATCH if task is None else TASK_BATCH,
        "length": LENGTH if task is None else task.length,
        "eval_every": task.each if task is not None and stream else EVAL_EVERY,
    }
    return Settings(**(defaults | chosen))


def lengths_of(words: str | None) -> tuple[int, ...] | None:
    """Read `--lengths 64,128`."""
    if words is None:
        return None
    try:
        found = tuple(int(word) for word in words.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise CallError(f"--lengths {words} are not lengths", "numbers, such as 64,128,256")
    return found
