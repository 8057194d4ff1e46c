"""Panels with lines and panels with dots, as parts of an SVG.

In: series of points, rows of dots, and where a panel stands. Out: elements of an SVG, styled by
classes: `c0` ... `c7` are the colours of series. A series is told from another by dashes too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nlc.view.drawing import text
from nlc.view.measure import fit, width

LABEL, TITLE = 12.0, 15.0
COLOURS = 8
DASHES = ("", "6 3", "2 3", "9 3 2 3")
# a panel's parts: room for the numbers on the left, and the lines of its legend
LEFT, LINE, SWATCH = 62.0, 17.0, 22.0
# so few points are marked one by one
FEW = 14


@dataclass(frozen=True)
class Point:
    """A value at x, with the range that it stands for."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A line with its name."""

    name: str
    points: tuple[Point, ...]
    dashed: bool = False
    # the colour, where several lines share one; else by its place
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over one axis; `note` says what is not shown."""

    title: str
    across: str
    series: tuple[Series, ...]
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Dots on one line, from 0 to 1; a heading has none."""

    name: str
    dots: tuple[tuple[int, Point], ...] = ()


class Scale:
    """From values to pixels; by decades where values span more than two of them."""

    def __init__(self, values: Sequence[float], first: float, last: float, whole: bool = False):
        finite = [v for v in values if math.isfinite(v)]
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        self.log = not whole and low > 0 and high / low > 100
        if self.log:
            low, high = math.log10(low), math.log10(high)
        elif not whole:
            low = 0.0 if 0 <= low < high else low
        if high - low < 1e-12:
            low, high = low - 0.5, high + 0.5
        room = 0.0 if whole else 0.04 * (high - low)
        self.low = low if low == 0 else low - room
        self.high, self.first, self.last = high + room, first, last

    def at(self, value: float) -> float:
        """The place of a value."""
        if self.log:
            value = math.log10(max(value, 10**self.low))
        share = (value - self.low) / (self.high - self.low)
        return round(self.first + (self.last - self.first) * min(max(share, 0.0), 1.0), 2)

    def ticks(self, most: int) -> list[float]:
        """Round numbers along the axis."""
        if self.log:
            first, last = math.ceil(self.low), math.floor(self.high)
            gap = max(1, math.ceil((last - first + 1) / most))
            found = [10.0**n for n in range(first, last + 1, gap)]
            return found if len(found) > 1 else _even(10**self.low, 10**self.high, most)
        return _even(self.low, self.high, most)


def _even(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    gap = next(m * size for m in (1, 2, 5, 10) if m * size >= raw)
    return [round(n * gap, 12) for n in range(math.ceil(low / gap), math.floor(high / gap) + 1)]


def written(value: float) -> str:
    """Write a number of an axis.

    >>> written(1000.0), written(0.001), written(1e-7), written(0.25)
    ('1000', '0.001', '1e-07', '0.25')
    """
    return f"{value:g}" if abs(value) < 1e5 else f"{value:.0e}".replace("e+0", "e")


def draw_chart(chart: Chart, x: float, y: float, wide: float, high: float) -> Iterator[str]:
    """Draw lines within a place; the legend stands under the title."""
    yield text(x, y + 14, chart.title, TITLE, "bold")
    top = y + 22.0
    if len(chart.series) > 1 or (chart.series[:1] and chart.series[0].name):
        for part, line in _legend(chart, x, wide):
            top = y + 22.0 + LINE * (line + 1)
            yield part(y + 22.0 + LINE * line)
    if chart.note:
        top += LINE
        yield text(x, top - 4, fit(chart.note, LABEL, wide), LABEL, "soft")
    left, right, top, bottom = x + LEFT, x + wide - 8, top + 8, y + high - 34
    points = [p for s in chart.series for p in s.points]
    spans = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    across = Scale([p.x for p in points], left, right, whole=True)
    up = Scale(spans, bottom, top)
    for tick in up.ticks(5):
        at = up.at(tick)
        yield f'<path d="M{left:g} {at:g}H{right:g}" class="grid"/>'
        yield text(left - 8, at + 4, written(tick), LABEL, "soft", "end")
    for tick in across.ticks(7):
        yield text(across.at(tick), bottom + 17, written(tick), LABEL, "soft", "middle")
    yield f'<path d="M{left:g} {bottom:g}H{right:g}" class="axis"/>'
    yield text((left + right) / 2, bottom + 32, chart.across, LABEL, "soft", "middle")
    for number, series in enumerate(chart.series):
        yield from _draw_series(series, number, across, up)


def _style(series: Series, number: int) -> str:
    colour = number if series.colour is None else series.colour
    dash = DASHES[1] if series.dashed else DASHES[number // COLOURS % len(DASHES)]
    return f'class="line c{colour % COLOURS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _draw_series(series: Series, number: int, across: Scale, up: Scale) -> Iterator[str]:
    points = series.points
    colour = (number if series.colour is None else series.colour) % COLOURS
    band = [(across.at(p.x), up.at(p.low), up.at(p.high))
            for p in points if p.low is not None and p.high is not None]  # fmt: skip
    if len(band) > 1 and any(low != high for _, low, high in band):
        there = "L".join(f"{x:g} {high:g}" for x, _, high in band)
        back = "L".join(f"{x:g} {low:g}" for x, low, _ in reversed(band))
        yield f'<path d="M{there}L{back}Z" class="band c{colour}"/>'
    elif len(band) == 1:
        x, low, high = band[0]
        yield f'<path d="M{x:g} {low:g}V{high:g}" {_style(series, number)}/>'
    if len(points) > 1:
        path = "L".join(f"{across.at(p.x):g} {up.at(p.y):g}" for p in points)
        yield f'<path d="M{path}" {_style(series, number)}/>'
    if len(points) <= FEW:
        for p in points:
            yield (
                f'<circle cx="{across.at(p.x):g}" cy="{up.at(p.y):g}" r="3" class="dot c{colour}"/>'
            )


def _legend(chart: Chart, x: float, wide: float) -> Iterator[tuple[Callable[[float], str], int]]:
    """Place the names of series in lines; gives what draws each at a height, and its line."""
    at, line = x, 0
    for number, series in enumerate(chart.series):
        name = fit(series.name, LABEL, wide - SWATCH - 8)
        need = SWATCH + width(name, LABEL) + 16
        if at > x and at + need > x + wide:
            at, line = x, line + 1

        def part(
            y: float, at: float = at, name: str = name, style: str = _style(series, number)
        ) -> str:
            swatch = f'<path d="M{at:g} {y + 8:g}h16" {style}/>'
            return swatch + text(at + SWATCH, y + 12, name, LABEL)

        yield part, line
        at += need


def draw_rows(rows: Sequence[Row], x: float, y: float, wide: float, names: float) -> Iterator[str]:
    """Draw rows of dots over an axis from 0 to 1, a line for each."""
    left, right = x + names, x + wide - 8
    scale = Scale([0.0, 1.0], left, right, whole=True)
    bottom = y + LINE * len(rows)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = scale.at(tick)
        yield f'<path d="M{at:g} {y:g}V{bottom:g}" class="grid"/>'
        yield text(at, bottom + 17, written(tick), LABEL, "soft", "middle")
    for number, row in enumerate(rows):
        middle = y + LINE * (number + 0.5)
        style = "" if row.dots else "bold"
        yield text(x, middle + 4, fit(row.name, LABEL, names - 12, bold=not row.dots), LABEL, style)
        for colour, p in row.dots:
            if p.low is not None and p.high is not None and p.low != p.high:
                low, high = scale.at(p.low), scale.at(p.high)
                yield f'<path d="M{low:g} {middle:g}H{high:g}" class="line c{colour}"/>'
            yield draw_mark(scale.at(p.y), middle, colour)


def draw_mark(x: float, y: float, colour: int) -> str:
    """Draw a dot: round, or square for every second colour."""
    if colour % 2:
        return f'<rect x="{x - 4:g}" y="{y - 4:g}" width="8" height="8" class="dot c{colour}"/>'
    return f'<circle cx="{x:g}" cy="{y:g}" r="4.5" class="dot c{colour}"/>'
