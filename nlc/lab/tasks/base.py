"""What a task is: a generator of sequences with answers, deterministic by seed.

    Examples   tokens that a model reads, and what is asked of it at each of them
    Task       a small frozen dataclass: its fields are options, its docstring says what is asked

In: a random generator, a number of sequences, a length. Out: `Examples`. A task knows no model: its
tokens are small integers, so that every spec with as large a vocab, such as `vocab bytes`, can try
it as it is. To add one, write the class, decorate it with `@task("name")`, and import its module in
`tasks/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from nlc.errors import nearest
from nlc.lab.faults import LabError

# the target where nothing is asked
NOTHING = -1

# streams of random numbers: what is trained on is never what is measured
TRAINING, MEASURING = 0, 1


@dataclass(frozen=True, eq=False)
class Examples:
    """`inputs` int64 [count, length], and `targets` of that shape: the answer, or NOTHING."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def asked(self) -> Tensor:
        """Where something is asked, bool [count, length]."""
        return self.targets != NOTHING


@dataclass(frozen=True)
class Task:
    """The base of tasks. `make` draws sequences; the rest describes them.

    `parts` above 1 makes a stream: training sees part 0 for `each` steps, then part 1, and so on.
    """

    # set by `task`
    name: ClassVar[str] = ""
    # the paper that the task is from
    source: ClassVar[str] = ""
    # the length that is trained on, and the lengths that are measured besides
    length: ClassVar[int] = 64
    longer: ClassVar[tuple[int, ...]] = ()
    # what a table shows: `accuracy`, the share of right answers, or `exact`, that of sequences
    metric: ClassVar[str] = "accuracy"

    @property
    def vocab(self) -> int:
        """Return a number above all tokens and answers."""
        raise NotImplementedError

    @property
    def parts(self) -> int:
        """Return how many parts a stream has; 1 for what is no stream."""
        return 1

    @property
    def each(self) -> int:
        """Return the training steps of a part."""
        return 1

    def choices(self, part: int) -> range | None:
        """Return the answers that a part of a stream has, None where that is all of them."""
        return None

    @property
    def digest(self) -> str:
        """Name the data that the task is made of, besides its options; "" for none."""
        return ""

    def least(self) -> int:
        """Return the shortest length that can be asked for."""
        return 2

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw sequences of at most `length` tokens, padded to it.

        `mixed` ones are of all lengths up to it, as training wants them; else each is as long as
        fits. `part` is that of a stream, None for all parts alike; `mixed` ones of a stream are
        drawn from what is trained on, others from what is held out.
        """
        raise NotImplementedError

    def show(self, token: int) -> str:
        """Write a token or an answer for people."""
        return str(token)

    # ---- what is the same for all tasks --------------------------------------------------------

    @property
    def spelled(self) -> str:
        """The task with the options that are not at their defaults: `mqar:pairs=16`."""
        changed = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return ":".join([self.name, *([",".join(changed)] if changed else [])])

    def examples(
        self,
        seed: int,
        step: int,
        count: int,
        length: int,
        *,
        mixed: bool = True,
        part: int | None = None,
    ) -> Examples:
        """Return a batch: the same arguments give the same numbers."""
        if length < self.least():
            raise LabError(
                f"{self.name} cannot be made in {length} tokens",
                f"a length of at least {self.least()}",
            )
        stream = TRAINING if mixed else MEASURING
        key = [seed % 2**63, stream, step, length, -1 % 2**32 if part is None else part]
        return self.make(np.random.default_rng(key), count, length, mixed, part)

    def part_of(self, step: int) -> int | None:
        """Return the part of a stream that a training step sees, None where there is one only."""
        return None if self.parts == 1 else min(step // self.each, self.parts - 1)


Made = TypeVar("Made", bound=type[Task])

TASKS: dict[str, type[Task]] = {}


def task(name: str) -> Callable[[Made], Made]:
    """Register a task under a name."""

    def add(kind: Made) -> Made:
        kind.name = name
        TASKS[name] = kind
        return kind

    return add


def find_task(words: str) -> Task:
    """Return the task that a command names: `parity`, `mqar:pairs=16`, `s5:swaps=1`."""
    name, _, rest = words.strip().partition(":")
    kind = TASKS.get(name.strip().replace("-", "_"))
    if kind is None:
        close = nearest(name, TASKS)
        raise LabError(
            f"there is no task named {name}",
            f"did you mean {close}?" if close else f"one of {', '.join(TASKS)}",
        )
    options: dict[str, int] = {}
    known = [f.name for f in fields(kind)]
    for word in filter(None, (part.strip() for part in rest.split(","))):
        option, _, value = (part.strip() for part in word.partition("="))
        if option not in known:
            raise LabError(
                f"{kind.name} has no option {option}",
                f"its options are {', '.join(known)}" if known else "no options",
            )
        try:
            options[option] = int(value)
        except ValueError:
            raise LabError(
                f"{word} is not an option: options are integers",
                f"{kind.name}:{option}=1",
            ) from None
    return kind(**options)


def between(what: str, value: int, least: int, most: int) -> None:
    """Refuse an option's value that is out of its range."""
    if not least <= value <= most:
        raise LabError(f"{what}={value} is out of range", f"{least} to {most}")


def padded(rows: Iterable[tuple[Sequence[int], Sequence[int]]], length: int) -> Examples:
    """Put rows of (inputs, targets) into one batch; what is left behind them is 0, unasked."""
    rows = list(rows)
    inputs = np.zeros((len(rows), length), dtype=np.int64)
    targets = np.full((len(rows), length), NOTHING, dtype=np.int64)
    for i, (read, asked) in enumerate(rows):
        inputs[i, : len(read)] = read
        targets[i, : len(asked)] = asked
    return batch(inputs, targets)


def batch(inputs: np.ndarray, targets: np.ndarray) -> Examples:
    """Make examples of two arrays."""
    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))
