"""Texts as bytes, split into what is trained on and what is held out, and cut into batches.

In: a file, or the name of a text that ships with Python. Out: a `Corpus`, and `Batches` that
depend on nothing but corpus, seed and step. Downloads nothing.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nlc.lab.faults import LabError

# the last tenth of a text is held out
HELD_OUT = 10

# larger files are refused: a text is held in memory
MAX_BYTES = 2**30

DEFAULT = "pydoc_data.topics"


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text: `kind` is `text` (a file's path) or `data` (a known name)."""

    kind: str
    name: str
    text: bytes = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Digest of the text, by which a resumed run knows it again."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def train(self) -> Tensor:
        """All but the last tenth, uint8 [bytes]."""
        return _tensor(self.text[: self._cut])

    @property
    def held_out(self) -> Tensor:
        """The last tenth, uint8 [bytes]."""
        return _tensor(self.text[self._cut :])

    @property
    def whole(self) -> Tensor:
        """All of it, uint8 [bytes]."""
        return _tensor(self.text)

    @property
    def _cut(self) -> int:
        return len(self.text) - len(self.text) // HELD_OUT


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text or b"\0"), dtype=torch.uint8)[: len(text)]


@dataclass(frozen=True, eq=False)
class Batches:
    """Windows of `length` + 1 bytes at random places, drawn anew from (seed, step) each time."""

    data: Tensor
    batch: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.data) <= self.length:
            raise LabError(
                f"the text is too short: {len(self.data)} of its bytes are there to train on, and "
                f"a window takes {self.length + 1}",
                "a longer text, or a smaller --length",
            )

    def at(self, step: int) -> Tensor:
        """Return the batch of a step, int64 [batch, length + 1]."""
        mixed = (self.seed * 0x9E3779B97F4A7C15 + step) % 2**63
        generator = torch.Generator().manual_seed(mixed)
        last = len(self.data) - self.length
        starts = torch.randint(0, last, (self.batch, 1), generator=generator)
        return self.data[starts + torch.arange(self.length + 1)].long()


def windows(data: Tensor, batch: int, length: int, limit: int | None = None) -> Iterator[Tensor]:
    """Yield a text once, in order, as batches of windows int64 [<= batch, length + 1].

    Neighbouring windows share a byte, which is a target in one and an input in the next. What is
    left at the end and fills no window is left out; a text shorter than a window is one window.
    """
    length = min(length, len(data) - 1)
    if length < 1:
        raise LabError("the text is too short to be evaluated", "a text of at least 20 bytes")
    count = (len(data) - 1) // length
    if limit is not None:
        count = max(1, min(count, limit // length))
    starts = torch.arange(count)[:, None] * length
    for first in range(0, count, batch):
        yield data[starts[first : first + batch] + torch.arange(length + 1)].long()


# ---- where texts come from ---------------------------------------------------------------------


def from_file(path: str) -> Corpus:
    """Read a file as bytes."""
    try:
        file = Path(path)
        if file.is_char_device() or file.is_block_device():
            raise LabError(f"{path} is a device", "the path of a text file")
        with open(file, "rb") as opened:
            # no more, also from a pipe without an end
            text = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        name = path if len(path) < 256 else f"{path[:256]}..."
        raise LabError(f"cannot read {name}: {reason}", "the path of a text file") from None
    if len(text) > MAX_BYTES:
        raise LabError(f"{path} is larger than {MAX_BYTES} bytes", "a part of it")
    if not text:
        raise LabError(f"{path} is empty", "a text file, the longer the better")
    return Corpus("text", str(file.resolve()), text)


def named(name: str) -> Corpus:
    """Return a text that ships with Python."""
    if name not in NAMED:
        raise LabError(
            f"there is no data named {name}",
            f"one of {', '.join(sorted(NAMED))}; or a file of your own with --text",
        )
    return Corpus("data", name, NAMED[name][1]())


def again(kind: str, name: str) -> Corpus:
    """Return the corpus that a run folder names."""
    return from_file(name) if kind == "text" else named(name)


def _topics() -> bytes:
    from pydoc_data import topics

    return "\n\n".join(text for _, text in sorted(topics.topics.items())).encode()


def _stdlib() -> bytes:
    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"}
    files = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*.py")
        if not left_out & set(path.relative_to(folder).parts)
    )
    return b"\n\n".join((folder / path).read_bytes() for path in files)


NAMED: dict[str, tuple[str, Callable[[], bytes]]] = {
    DEFAULT: ("Python's reference manual, English, 0.5 MB", _topics),
    "stdlib": ("the source of Python's standard library, 12 MB", _stdlib),
}
