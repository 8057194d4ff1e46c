"""The time side of a level score: when each level changes, to scale.

In: bands, and a `Scale`: how many tokens and training steps are shown. Out: parts of an SVG. Tokens
and steps have an axis each, for a step is a whole batch of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nlc.ir.system import Period, System
from nlc.view.boxes import Band

FIRST, LAST = 896.0, 1168.0
# marks closer than this are drawn as one bar
CLOSE = 2.4
LANE = 40.0
Text = Callable[[float, float, str, float, str, str], str]


@dataclass(frozen=True)
class Scale:
    """How many tokens and how many training steps the axes show."""

    tokens: int
    steps: int

    def at(self, unit: str, number: float) -> float:
        """The place of a token's or step's end."""
        shown = self.steps if unit == "steps" else self.tokens
        return FIRST + (LAST - FIRST) * number / shown


def scale_of(system: System) -> Scale:
    """Show at least two periods and chunks of the slowest level, of tokens and of steps."""
    tokens = [c.period.count for c in system.components if c.period.unit == "tokens"]
    chunks = [level.chunk for level in system.levels]
    steps = [c.period.count for c in system.components if c.period.unit == "steps"]
    return Scale(
        max(32, 2 * max(tokens, default=1), 2 * max(chunks, default=1)),
        max(6, 2 * max(steps, default=1)),
    )


def _axis_unit(band: Band) -> str:
    return "steps" if band.level.period.unit in ("steps", "never") else "tokens"


def draw_axis(band: Band, system: System, scale: Scale, text: Text) -> Iterator[str]:
    """Draw the axis above the first level of tokens and above the first level of steps."""
    bands = [level for level in system.levels if level.components]
    unit = _axis_unit(band)
    same = [lv for lv in bands if (lv.period.unit in ("steps", "never")) == (unit == "steps")]
    if same[0] is not band.level:
        return
    y = _lanes(band, system)[0][1] - 32
    shown = scale.steps if unit == "steps" else scale.tokens
    words = "training steps" if unit == "steps" else "tokens of a sequence"
    yield text(FIRST, y, words, 11, "soft", "start")
    yield text(LAST, y, f"{shown}", 11, "soft", "end")
    yield f'<path d="M{FIRST:g} {y + 10:g}v-4M{FIRST:g} {y + 6:g}H{LAST:g}v4" class="time"/>'


def draw_marks(band: Band, system: System, scale: Scale, text: Text) -> Iterator[str]:
    """Draw a lane for each period at a level, the level's own last."""
    for period, y in _lanes(band, system):
        chunk = band.level.chunk if period == band.level.period else 1
        yield from _lane(period, chunk, y, scale, text)


def _lanes(band: Band, system: System) -> list[tuple[Period, float]]:
    """The periods at a level, the faster above, and where their lanes are."""
    level = band.level
    found = {c.period for c in system.components if c.level == level.name} | {level.period}
    middle = (band.top + band.bottom) / 2 + 6
    first = middle - LANE * (len(found) - 1) / 2
    ordered = sorted(found, key=lambda period: -period.frequency)
    return [(period, first + LANE * place) for place, period in enumerate(ordered)]


def _lane(period: Period, chunk: int, y: float, scale: Scale, text: Text) -> Iterator[str]:
    unit = period.unit
    below = y + 27
    if unit == "always":
        yield (
            f'<rect x="{FIRST:g}" y="{y - 6:g}" width="{LAST - FIRST:g}" height="12" rx="6" '
            'class="thin"/>'
        )
        yield text(FIRST, below, "recomputed for each query", 11, "soft", "start")
        return
    if unit == "never":
        yield f'<path d="M{FIRST:g} {y:g}H{LAST:g}" class="time" stroke-dasharray="2 5"/>'
        yield text(FIRST, below, "frozen", 11, "soft", "start")
        return
    yield f'<path d="M{FIRST:g} {y:g}H{LAST:g}" class="time"/>'
    shown = scale.steps if unit == "steps" else scale.tokens
    gap = (LAST - FIRST) * period.count / shown
    times = range(period.count, shown + 1, period.count)
    if unit == "steps":
        radius = max(1.5, min(5.0, gap / 3))
        for time in times:
            place = scale.at(unit, time - 0.5)
            yield f'<circle cx="{place:.1f}" cy="{y:g}" r="{radius:g}" class="mark"/>'
    else:
        if gap < CLOSE:
            yield (
                f'<rect x="{FIRST:g}" y="{y - 6:g}" width="{LAST - FIRST:g}" height="12" '
                'class="thin"/>'
            )
        else:
            for time in times:
                yield _tick(scale.at(unit, time), y, 7, min(2.0, gap / 2.5))
        if chunk > 1:
            for time in range(chunk, shown + 1, chunk):
                yield _tick(scale.at(unit, time), y, 13, 2.5)
    words = f"{period}, frozen reads renewed each {chunk}" if chunk > 1 else str(period)
    yield text(FIRST, below, words, 11, "soft", "start")


def _tick(x: float, y: float, half: float, wide: float) -> str:
    return (
        f'<rect x="{x - wide / 2:.2f}" y="{y - half:g}" width="{wide:.2g}" '
        f'height="{2 * half:g}" class="mark"/>'
    )
