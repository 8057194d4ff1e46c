"""What a run learns: a text, or a task. Both give batches by step, and are measured in one way.

    Subject   what a run folder names: a corpus or a task
    Lesson    the subject at a run's settings: `at(step)` trains, `measure(model, step)` measures

In: a corpus or a task, and settings. Out: examples and measurements. Trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import nn

from nlc.lab import data
from nlc.lab.data import Batches, Corpus
from nlc.lab.evaluate import BYTES, Answers, answers, bits_per_byte
from nlc.lab.faults import LabError
from nlc.lab.run import Settings
from nlc.lab.tasks import Examples, Task, find_task

# sequences that a task is measured on, and the seed they are drawn with in every run
MEASURED, MEASURED_SEED = 128, 0

Subject = Corpus | Task


class Lesson(Protocol):
    """What training needs of its subject."""

    @property
    def unit(self) -> str:
        """Name what a measurement is in: `bits/byte`, `bits/answer`."""

    def at(self, step: int) -> Examples:
        """Return the batch of a step."""

    def measure(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Measure a model on what is held out; `held_out` is in the lesson's unit."""

    def piece(self, rows: int, tokens: int) -> Examples:
        """Return a small part of what is held out, as it is read at first."""


@dataclass(frozen=True, eq=False)
class TextLesson:
    """A text: every next byte is asked for."""

    corpus: Corpus
    settings: Settings
    unit: str = "bits/byte"

    @cached_property
    def batches(self) -> Batches:
        """The windows that are trained on."""
        s = self.settings
        return Batches(self.corpus.train, s.batch, s.length, s.seed)

    def at(self, step: int) -> Examples:
        """Return the windows of a step."""
        window = self.batches.at(step)
        return Examples(window[:, :-1], window[:, 1:])

    def measure(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Measure bits per byte of the text held out."""
        s = self.settings
        return {
            "held_out": bits_per_byte(model, self.corpus.held_out, s.batch, s.length, s.eval_bytes)
        }

    def piece(self, rows: int, tokens: int) -> Examples:
        """Return the beginning of the text held out."""
        window = next(data.windows(self.corpus.held_out, rows, tokens))
        return Examples(window[:, :-1], window[:, 1:])


@dataclass(frozen=True, eq=False)
class TaskLesson:
    """A task: some positions ask for an answer."""

    task: Task
    settings: Settings
    unit: str = "bits/answer"

    def at(self, step: int) -> Examples:
        """Return the sequences of a step."""
        s = self.settings
        return self.task.examples(s.seed, step, s.batch, s.length, part=self.task.part_of(step))

    def measure(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Measure answers at the length of training; of a stream, each of its parts.

        `known` is the accuracy on the parts up to now; `told` has each part's accuracy where the
        model need only choose among the answers of that part.
        """
        s = self.settings
        if self.task.parts == 1:
            found = measured(model, self.task, s.length)
            return found.as_dict()
        # the part that the last step saw
        now = self.task.part_of(max(step - 1, 0)) or 0
        parts = [measured(model, self.task, s.length, part=part) for part in range(self.task.parts)]
        known = parts[: now + 1]
        return {
            "held_out": math.fsum(p.bits for p in parts) / len(parts),
            "accuracy": math.fsum(p.accuracy for p in parts) / len(parts),
            "known": math.fsum(p.accuracy for p in known) / len(known),
            "part": now,
            "parts": [p.accuracy for p in parts],
            "told": [p.chosen / p.asked for p in parts],
        }

    def piece(self, rows: int, tokens: int) -> Examples:
        """Return the beginnings of sequences that the task is measured on."""
        found = self.task.examples(MEASURED_SEED, 0, rows, self.settings.length, mixed=False)
        return Examples(found.inputs[:, :tokens], found.targets[:, :tokens])


def lesson_of(subject: Subject, settings: Settings) -> TextLesson | TaskLesson:
    """Return a subject as a run learns it."""
    if isinstance(subject, Corpus):
        return TextLesson(subject, settings)
    return TaskLesson(subject, settings)


def measured(
    model: nn.Module, task: Task, length: int, count: int = MEASURED, part: int | None = None
) -> Answers:
    """Measure a model on sequences of a length that it was not trained on."""
    examples = task.examples(MEASURED_SEED, 0, count, length, mixed=False, part=part)
    return answers(model, examples, None if part is None else task.choices(part))


@dataclass(frozen=True)
class Row:
    """A task measured at a length, and of a stream on one part."""

    length: int
    part: int | None
    answers: Answers


def measured_at(
    model: nn.Module, task: Task, lengths: Iterable[int], by_part: bool = False
) -> list[Row]:
    """Measure a model on a task at several lengths, each part of a stream by itself if asked."""
    parts = range(task.parts) if by_part else [None]
    return [
        Row(length, part, measured(model, task, length, part=part))
        for length in sorted(set(lengths))
        for part in parts
    ]


def forgetting(measurements: list[dict[str, Any]]) -> float | None:
    """Return how much of the earlier parts of a stream is lost at its end.

    The mean, over all parts but the last, of the best accuracy measured on a part since it was
    seen, less the one at the end (Chaudhry et al., arXiv:1801.10112). None where there is none.
    """
    rows = [m for m in measurements if "parts" in m]
    if not rows or rows[-1]["part"] == 0:
        return None
    last = rows[-1]
    lost = [
        max(m["parts"][p] for m in rows if m["part"] >= p) - last["parts"][p]
        for p in range(last["part"])
    ]
    return math.fsum(lost) / len(lost)


def told(subject: Subject) -> str:
    """Say what a subject is, in a few words."""
    if isinstance(subject, Corpus):
        return f"{subject.name}, {len(subject.text):,} bytes"
    return f"the task {subject.spelled}"


def vocab_of(subject: Subject) -> tuple[int, str]:
    """Return how many tokens a subject has, and what they are."""
    if isinstance(subject, Corpus):
        return BYTES, "a text has {} different bytes"
    return subject.vocab, f"{subject.name} has {{}} different tokens"


def named(subject: Subject) -> Mapping[str, str]:
    """Write a subject down for a run folder."""
    if isinstance(subject, Corpus):
        return {"kind": subject.kind, "name": subject.name, "sha256": subject.sha256}
    return {"kind": "task", "name": subject.spelled, "sha256": subject.digest}


def again(written: Mapping[str, str]) -> Subject:
    """Return the subject that a run folder names; an error if it is not the same any more."""
    kind, name = written["kind"], written["name"]
    if kind == "task":
        task = find_task(name)
        if task.digest != written["sha256"]:
            raise LabError(
                f"{name} is not made of the text that this run began with", "the same Python"
            )
        return task
    corpus = data.again(kind, name)
    if corpus.sha256 != written["sha256"]:
        raise LabError(f"{name} is not the text that this run began with", "that text, unchanged")
    return corpus


def check_fit(subject: Subject, settings: Settings) -> None:
    """Refuse a subject that cannot be trained on at these settings."""
    if isinstance(subject, Corpus):
        Batches(subject.train, settings.batch, settings.length, settings.seed)
    else:
        subject.examples(settings.seed, 0, 1, settings.length)
