"""A stream of classes: a few at a time, and none of the earlier ones comes back.

In: the source of Python's standard library. Out: short passages, and the module they are from.
Nothing is downloaded; what Python ships differs between its versions, so a run keeps a digest.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from nlc.lab.faults import LabError
from nlc.lab.tasks.base import NOTHING, Examples, Task, batch, between, task

# modules that every Python has, long, and unlike each other
MODULES = (
    "html/entities",
    "_pydecimal",
    "locale",
    "pickletools",
    "ssl",
    "calendar",
    "ipaddress",
    "typing",
    "mailbox",
    "encodings/cp037",
)
# the last fifth of a module is held out
HELD_OUT = 5
# asks for the class; no byte of ASCII text
ASK = 1
LABELS = 128


@cache
def texts() -> tuple[bytes, ...]:
    """Read the modules, as ASCII."""
    folder = Path(sysconfig.get_path("stdlib"))
    try:
        return tuple(
            (folder / f"{name}.py").read_text("utf-8").encode("ascii", "replace")
            for name in MODULES
        )
    except OSError as error:
        raise LabError(
            f"cannot read {error.filename}: {error.strerror}", "a Python with its standard library"
        ) from None


@task("modules")
@dataclass(frozen=True)
class Modules(Task):
    """A class-incremental stream: from which module of Python's library is this passage?

    `group` classes at a time, each group for `steps` training steps, never to come back; measured
    on passages held out of all groups. How much of the earlier ones is lost is the forgetting.
    """

    source: ClassVar[str] = "after arXiv:2512.24695, figure 6, at a small size"
    length: ClassVar[int] = 64
    longer: ClassVar[tuple[int, ...]] = ()
    classes: int = 10
    group: int = 2
    steps: int = 60

    def __post_init__(self) -> None:
        between("modules:classes", self.classes, 2, len(MODULES))
        between("modules:group", self.group, 1, self.classes)
        between("modules:steps", self.steps, 1, 10**9)

    @property
    def vocab(self) -> int:
        """Bytes of text, then the classes."""
        return LABELS + self.classes

    @property
    def parts(self) -> int:
        """The groups of classes."""
        return -(-self.classes // self.group)

    @property
    def each(self) -> int:
        """The training steps of a group."""
        return self.steps

    @property
    def digest(self) -> str:
        """Tell the texts by."""
        return hashlib.sha256(b"\0".join(texts())).hexdigest()

    def choices(self, part: int) -> range:
        """The classes of a part."""
        first = LABELS + part * self.group
        return range(first, min(first + self.group, LABELS + self.classes))

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw classes of a part, and a passage of each."""
        every = range(LABELS, LABELS + self.classes)
        classes = every if part is None else self.choices(part)
        labels = draw.integers(classes.start, classes.stop, count) - LABELS
        inputs = np.full((count, length), ASK, dtype=np.int64)
        targets = np.full((count, length), NOTHING, dtype=np.int64)
        targets[:, -1] = LABELS + labels
        for row, label in enumerate(labels):
            text = np.frombuffer(texts()[label], dtype=np.uint8)
            cut = len(text) - len(text) // HELD_OUT
            text = text[:cut] if mixed else text[cut:]
            start = int(draw.integers(0, max(len(text) - length + 2, 1)))
            passage = text[start : start + length - 1]
            inputs[row, length - 1 - len(passage) : -1] = passage
        return batch(inputs, targets)

    def show(self, token: int) -> str:
        """Write text as it is, a class by its module."""
        if token >= LABELS:
            return f" {MODULES[token - LABELS]}"
        return "|" if token == ASK else repr(chr(token))[1:-1]
