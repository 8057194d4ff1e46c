"""The arrows of a level score.

In: `Arrow`s between placed boxes and frames. Out: parts of an SVG. An arrow leaves and enters at
the top or bottom; those of one side share it out, ordered by where their other ends are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from xml.sax.saxutils import escape

from nlc.view.boxes import RAIL, Arrow, Box, Frame

# how long the tip is, and how far from the edge of a box it may stand
TIP, INSET = 7.0, 12.0
Port = tuple[int, str]


def draw_arrows(arrows: list[Arrow]) -> Iterator[str]:
    """Draw all arrows, the way of the gradient first so that the others lie on it."""
    sides = [_sides(arrow.source, arrow.target) for arrow in arrows]
    places = _places(arrows, sides)
    order = sorted(range(len(arrows)), key=lambda i: arrows[i].kind != "backprop")
    for i in order:
        arrow, (leave, enter) = arrows[i], sides[i]
        if arrow.source is arrow.target:
            yield _loop(arrow)
            continue
        if (leave, enter) == ("rail", "rail"):
            yield _rail(arrow)
            continue
        x1, y1 = places[i, 0], _edge(arrow.source, leave)
        x2, y2 = places[i, 1], _edge(arrow.target, enter)
        past1, past2 = _passes(arrow.source, leave, y2), _passes(arrow.target, enter, y1)
        if past1 is not None:
            x1 = past1
        if past2 is not None:
            x2 = past2
        yield _curve(arrow, (x1, y1, leave), (x2, y2, enter), past1, past2)


def _passes(box: Box | Frame, side: str, other: float) -> float | None:
    """Where an arrow to what is above passes the lines in front of a box, if it has to."""
    if isinstance(box, Frame) or side != "top" or other >= box.clear or box.clear >= box.y:
        return None
    return box.middle if box.door is None else box.door


def _sides(a: Box | Frame, b: Box | Frame) -> tuple[str, str]:
    """At which sides an arrow leaves and enters."""
    if isinstance(a, Box) and a.members[0].kind == "optimizer" and isinstance(b, Frame):
        return "rail", "rail"
    if a.y + a.high <= b.y:
        return "bottom", "top"
    if b.y + b.high <= a.y:
        return "top", "bottom"
    return "bottom", "bottom"


def _edge(box: Box | Frame, side: str) -> float:
    return box.y if side == "top" else box.y + box.high


def _places(arrows: list[Arrow], sides: list[tuple[str, str]]) -> dict[tuple[int, int], float]:
    """Share out the sides of boxes among the ends of arrows."""
    ends: dict[Port, list[tuple[float, int, int]]] = defaultdict(list)
    owners: dict[int, Box | Frame] = {}
    for i, (arrow, (leave, enter)) in enumerate(zip(arrows, sides, strict=True)):
        if arrow.source is arrow.target or leave == "rail":
            continue
        owners |= {id(arrow.source): arrow.source, id(arrow.target): arrow.target}
        ends[id(arrow.source), leave].append((arrow.target.middle, i, 0))
        ends[id(arrow.target), enter].append((arrow.source.middle, i, 1))
    places: dict[tuple[int, int], float] = {}
    for (key, _), here in ends.items():
        box = owners[key]
        room = box.wide - 2 * INSET
        step = min(24.0, room / max(1, len(here) - 1)) if len(here) > 1 else 0.0
        first = box.middle - step * (len(here) - 1) / 2
        for place, (other, i, end) in enumerate(sorted(here)):
            if isinstance(box, Frame) and len(here) == 1:
                # straight up or down to a wide frame, where that is possible
                low, high = box.x + 2 * INSET, box.x + box.wide - 2 * INSET
                places[i, end] = min(max(other, low), high)
            else:
                places[i, end] = first + step * place
    return places


def _curve(
    arrow: Arrow,
    start: tuple[float, float, str],
    end: tuple[float, float, str],
    past1: float | None,
    past2: float | None,
) -> str:
    x1, y1, leave = start
    x2, y2, enter = end
    down1, down2 = (1 if leave == "bottom" else -1), (1 if enter == "bottom" else -1)
    stop = y2 + down2 * TIP
    if leave == enter:
        bend = 10 + min(20.0, abs(x2 - x1) * 0.06)
        path = (
            f"M{x1:.1f} {y1:g}C{x1:.1f} {y1 + bend:.1f} "
            f"{x2:.1f} {stop + bend:.1f} {x2:.1f} {stop:g}"
        )
    else:
        begin, last = y1, stop
        if past1 is not None and isinstance(arrow.source, Box):
            begin = arrow.source.clear
        if past2 is not None and isinstance(arrow.target, Box):
            last = arrow.target.clear
        bend = max(14.0, abs(last - begin) * 0.45)
        path = (
            f"M{x1:.1f} {y1:g}V{begin:g}C{x1:.1f} {begin + down1 * bend:.1f} "
            f"{x2:.1f} {last + down2 * bend:.1f} {x2:.1f} {last:g}V{stop:g}"
        )
    tip = f"M{x2:.1f} {y2:g}l-3.5 {down2 * (TIP + 1):g}h7z"
    return _marked(arrow, path, tip)


def _loop(arrow: Arrow) -> str:
    """From a box to itself: it makes its own keys or values."""
    box = arrow.source
    x, y = box.x + box.wide, box.y + box.high / 2
    path = f"M{x:g} {y - 10:g}c26 -8 26 28 {TIP:g} 20"
    tip = f"M{x:g} {y + 10:g}l{TIP + 1:g} -3.5v7z"
    return _marked(arrow, path, tip)


def _rail(arrow: Arrow) -> str:
    """From an optimizer down the rail at the left, and into a frame from its side."""
    box, frame = arrow.source, arrow.target
    x = box.x + RAIL / 2 - 2
    y = frame.y + frame.high / 2
    path = f"M{x:g} {box.y + box.high:g}V{y - 8:g}q0 8 8 8H{frame.x - TIP:g}"
    return _marked(arrow, path, f"M{frame.x:g} {y:g}l{-TIP - 1:g} -3.5v7z")


def _marked(arrow: Arrow, path: str, tip: str) -> str:
    reasons = escape("\n".join(arrow.reasons))
    return (
        f'<g><title>{reasons}</title><path d="{path}" class="edge {arrow.kind}"/>'
        f'<path d="{tip}" class="tip {arrow.kind}"/></g>'
    )
