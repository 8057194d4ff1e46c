"""The time side of a level score: when each level changes, to scale.

In: bands, and what changes at them. Out: parts of an SVG. Tokens and training steps have axes of
their own, for a step is a whole batch of sequences. Where one axis cannot show two periods apart,
the faster one begins a finer axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nlc.ir.system import Level, Period, System
from nlc.view.drawing import text
from nlc.view.measure import wrap
from nlc.view.parts import FIRST, LAST, SMALL, Band
from nlc.view.words import whole

# marks closer than this are drawn as one bar
CLOSE = 2.4
# the height of an axis, of a lane with its first line of words, and of a further line
AXIS, LANE, MORE = 40.0, 46.0, 15.0
# at least so many are shown
TOKENS, STEPS = 32, 6
HALF, TALL, DOT = 7.0, 12.0, 4.5


@dataclass(frozen=True)
class Scale:
    """An axis: its unit, how many of them it shows, and the slowest period on it."""

    unit: str
    shown: int
    slowest: int

    def at(self, number: float) -> float:
        """The place of the end of a token or step."""
        return round(FIRST + (LAST - FIRST) * number / self.shown, 2)

    def gap(self, count: int) -> float:
        """How far apart marks are."""
        return (LAST - FIRST) * count / self.shown


@dataclass(frozen=True)
class Lane:
    """One period at a level, with the chunk after which frozen reads are renewed."""

    period: Period
    chunk: int

    def words(self, scale: Scale) -> list[str]:
        """What stands below it."""
        match self.period.unit:
            case "always":
                return ["recomputed for each query"]
            case "never":
                return ["never changes"]
            case _:
                return [*wrap(str(self.period), SMALL, LAST - FIRST, 2), *self._of_chunk(scale)]

    def _of_chunk(self, scale: Scale) -> list[str]:
        if self.chunk == 1:
            return []
        if self.chunks(scale):
            return ["tall: frozen reads are renewed"]
        return wrap(f"frozen reads: renewed each {whole(self.chunk)}", SMALL, LAST - FIRST, 2)

    def chunks(self, scale: Scale) -> range:
        """When chunks end, where that can be shown."""
        if self.chunk == 1 or scale.gap(self.chunk) < CLOSE:
            return range(0)
        return range(self.chunk, scale.shown + 1, self.chunk)

    def deep(self, scale: Scale) -> float:
        """How high it is."""
        return LANE + MORE * (len(self.words(scale)) - 1)


def lanes_of(system: System, level: Level) -> list[Lane]:
    """The periods at a level, the faster above."""
    found = {c.period for c in system.components if c.level == level.name} | {level.period}
    ordered = sorted(found, key=lambda period: -period.frequency)
    return [Lane(period, level.chunk if period == level.period else 1) for period in ordered]


class Timeline:
    """All axes of a score, and what is drawn on them."""

    def __init__(self, system: System):
        self.lanes = {lv.name: lanes_of(system, lv) for lv in system.levels if lv.components}
        self.scales: dict[tuple[str, Period], Scale] = {}
        self.first: set[tuple[str, Period]] = set()
        for unit in ("tokens", "steps"):
            self._choose(unit)

    def _choose(self, unit: str) -> None:
        """Find the axes for a unit, from the slowest period on."""
        waiting = [
            (level, lane) for level, lanes in self.lanes.items() for lane in lanes
            if _unit(lane.period) == unit
        ]  # fmt: skip
        while waiting:
            counts = [_count(lane.period) for _, lane in waiting]
            chunk = max(lane.chunk for _, lane in waiting)
            least = TOKENS if unit == "tokens" else STEPS
            scale = Scale(unit, max(least, 2 * max(counts), 2 * min(chunk, least)), max(counts))
            # the last of those that would be bars begins a new axis, with all faster ones
            bars = [i for i, c in enumerate(counts) if 0 < scale.gap(c) < CLOSE and c]
            start = bars[-1] if len({counts[i] for i in bars}) > 1 else 0
            here, waiting = waiting[start:], waiting[:start]
            for level, lane in here:
                self.scales[level, lane.period] = scale
            level, lane = here[0]
            self.first.add((level, lane.period))

    def need(self, level: str) -> float:
        """How high a level is at least for its lanes."""
        lanes = self.lanes[level]
        axes = sum((level, lane.period) in self.first for lane in lanes)
        deep = sum(lane.deep(self.scales[level, lane.period]) for lane in lanes)
        return deep + AXIS * axes + 24

    def draw(self, bands: list[Band]) -> Iterator[str]:
        """Draw all axes, bar lines, marks and words beside the bands of a panel."""
        # by axis, from where to where its bar lines go
        bars: dict[Scale, list[tuple[float, float]]] = {}
        below: dict[Scale, float] = {}
        marks: list[str] = []
        for band in bands:
            name = band.level.name
            y = round((band.top + band.bottom - self.need(name)) / 2 + 12, 1)
            for lane in self.lanes[name]:
                scale = self.scales[name, lane.period]
                if scale not in bars:
                    marks += _axis(scale, y)
                    bars[scale], below[scale] = [], y + 18
                    y += AXIS
                bars[scale].append((below[scale], y + HALF + TALL))
                marks += _lane(lane, scale, y + HALF)
                y += lane.deep(scale)
                below[scale] = y - 8
        for scale, pieces in bars.items():
            yield _bars(scale, pieces)
        yield from marks


def _unit(period: Period) -> str:
    return "steps" if period.unit in ("steps", "never") else "tokens"


def _count(period: Period) -> int:
    """The count of a period; 0 where it has none."""
    return period.count if period.unit in ("tokens", "steps") else 0


def _axis(scale: Scale, y: float) -> Iterator[str]:
    words = "tokens of a sequence" if scale.unit == "tokens" else "training steps"
    yield text(FIRST, y + 10, words, SMALL, "soft")
    yield text(LAST, y + 10, whole(scale.shown), SMALL, "soft", "end")
    ends = f"M{FIRST:g} {y + 20:g}v-4M{LAST:g} {y + 20:g}v-4"
    yield f'<path d="M{FIRST:g} {y + 18:g}H{LAST:g}{ends}" class="axis"/>'


def _bars(scale: Scale, pieces: list[tuple[float, float]]) -> str:
    """Draw bar lines where the slowest period on an axis ends, but not through words."""
    times = range(scale.slowest, scale.shown + 1, scale.slowest) if scale.slowest else ()
    if len(times) > 4:
        times = range(scale.shown, scale.shown + 1)
    path = "".join(f"M{scale.at(t):g} {a:g}V{b:g}" for t in times for a, b in pieces)
    return f'<path d="{path}" class="bar"/>' if path else ""


def _lane(lane: Lane, scale: Scale, y: float) -> Iterator[str]:
    period = lane.period
    for number, words in enumerate(lane.words(scale)):
        yield text(FIRST, y + 24 + MORE * number, words, SMALL, "soft")
    match period.unit:
        case "always":
            yield _bar(y, "always")
        case "never":
            yield f'<path d="M{FIRST:g} {y:g}H{LAST:g}" class="axis frozen"/>'
        case _:
            yield from _marks(period, scale, y)
            for time in lane.chunks(scale):
                yield _tick(scale.at(time), y, TALL, 2.4)


def _marks(period: Period, scale: Scale, y: float) -> Iterator[str]:
    """Draw a mark at the end of each period, or a bar where they are too close."""
    gap = scale.gap(period.count)
    if gap < CLOSE:
        yield _bar(y, "dense")
        return
    yield f'<path d="M{FIRST:g} {y:g}H{LAST:g}" class="axis"/>'
    for time in range(period.count, scale.shown + 1, period.count):
        if period.unit == "steps":
            radius = round(min(DOT, gap / 2.5), 2)
            yield f'<circle cx="{scale.at(time):g}" cy="{y:g}" r="{radius:g}" class="mark"/>'
        else:
            yield _tick(scale.at(time), y, HALF, min(2.0, gap / 2.5))


def _bar(y: float, style: str) -> str:
    return (
        f'<rect x="{FIRST:g}" y="{y - HALF:g}" width="{LAST - FIRST:g}" height="{2 * HALF:g}" '
        f'class="mark {style}"/>'
    )


def _tick(x: float, y: float, half: float, wide: float) -> str:
    wide = round(wide, 2)
    return (
        f'<rect x="{x - wide / 2:g}" y="{y - half:g}" width="{wide:g}" height="{2 * half:g}" '
        'class="mark"/>'
    )
