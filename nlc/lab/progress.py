"""What training shows while it runs.

In: a step's numbers. Out: a bar on a terminal, else a line now and then, on standard error.
"""

from __future__ import annotations

import sys
from collections import deque
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

# seconds between two lines where there is no terminal
QUIET = 10.0
# steps over which the shown numbers are averaged
SMOOTH = 20


class Progress(Protocol):
    """Something that is told of each step."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def step(self, step: int, seconds: float, bits: float, tokens: int) -> None:
        """A step of `tokens` bytes was made at `seconds` into the run."""

    def held_out(self, step: int, bits: float) -> None:
        """What is held out was measured."""


class Shown:
    """A progress bar, with bits per byte (or the unit that is given) and tokens per second."""

    def __init__(
        self,
        steps: int | None,
        minutes: float | None,
        done: float = 0.0,
        unit: str = "bits/byte",
        title: str = "",
    ):
        self.steps, self.minutes, self.unit = steps, minutes, unit
        self.title = f"{title}  " if title else ""
        self.console = Console(file=sys.stderr, highlight=False)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}"),
            console=self.console,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=1.0, state="")
        self.bar.update(self.task, completed=done)
        self.recent: deque[float] = deque(maxlen=SMOOTH)
        self.bits: deque[float] = deque(maxlen=SMOOTH)
        self.held = ""
        self.said = -QUIET

    def __enter__(self) -> Shown:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def step(self, step: int, seconds: float, bits: float, tokens: int) -> None:
        """Show a step."""
        self.recent.append(seconds)
        self.bits.append(bits)
        mean = sum(self.bits) / len(self.bits)
        passed = self.recent[-1] - self.recent[0]
        speed = f"  {(len(self.recent) - 1) * tokens / passed:,.0f} tokens/s" if passed > 0 else ""
        state = f"{mean:.3f} {self.unit}{self.held}{speed}"
        parts = [seconds / (60 * self.minutes)] if self.minutes else []
        parts += [step / self.steps] if self.steps else []
        self.bar.update(
            self.task,
            completed=min(max(parts, default=0.0), 1.0),
            description=f"{self.title}step {step}  {clock(seconds)}",
            state=state,
        )
        if not self.console.is_terminal and seconds - self.said >= QUIET:
            self.said = seconds
            self.console.print(
                f"{self.title}step {step:>6}  {clock(seconds)}  {state}", soft_wrap=True
            )

    def held_out(self, step: int, bits: float) -> None:
        """Show a measurement of what is held out."""
        self.held = f"  held out {bits:.3f}"
        # the time it took is none of training's
        self.recent.clear()
        self.console.print(
            f"{self.title}step {step:>6}  held out {bits:.4f} {self.unit}", soft_wrap=True
        )


def clock(seconds: float) -> str:
    """Write a time as minutes and seconds.

    >>> clock(61.5)
    '1:01'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
