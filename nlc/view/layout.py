"""Where everything in a level score stands, and which arrows are drawn.

In: a `System`. Out: a `Layout` whose boxes, frames and bands have their places. Draws nothing.
"""

from __future__ import annotations

from itertools import pairwise

from nlc.ir.level_graph import EDGE_KINDS, Edge
from nlc.ir.system import System
from nlc.view.boxes import (
    BAND_GAP,
    BOX,
    GAP,
    HEAD,
    LEFT,
    LINE_GAP,
    MAP_SIZE,
    PAD,
    RAIL,
    RIGHT,
    Arrow,
    Box,
    Frame,
    Layout,
    make_bands,
    make_boxes,
)  # fmt: skip
from nlc.view.words import fit, width


def lay_out(system: System, top: float, least: float) -> Layout:
    """Place everything from `top` on; a band is at least `least` high."""
    shown = [e for e in system.edges if not e.across and e.kind != "optimises"]
    shown += [e for e in system.edges if e.kind == "optimises" and not _of_optimizer(system, e)]
    boxes = make_boxes(system, shown)
    bands = make_bands(system, boxes, shown)
    layout = Layout(bands, [], boxes=boxes)
    # lower levels first: what they feed stands above them
    for band in reversed(bands):
        for row in reversed(band.rows):
            _place_across(row, boxes, shown)
    _place_down(layout, top, least)
    layout.arrows = _arrows(system, layout)
    return layout


def _of_optimizer(system: System, edge: Edge) -> bool:
    return system.component(edge.source).kind == "optimizer"


# ---- places ------------------------------------------------------------------------------------


def _place_across(row: list[Frame], boxes: dict[str, Box], edges: list[Edge]) -> None:
    """Place the frames of a row side by side where they fit, else below each other; centred."""
    for frame in row:
        pad = PAD if frame.title else 0.0
        # the name of a frame is never wider than the frame
        named = width(frame.title, MAP_SIZE) + 24 if frame.title else 0.0
        widest = max(sum(b.wide + GAP for b in line) - GAP for line in frame.lines)
        frame.wide = max(widest + 2 * pad, min(named, RIGHT - LEFT - RAIL))
        frame.title = fit(frame.title, MAP_SIZE, frame.wide - 16)
    total = sum(frame.wide + GAP for frame in row) - GAP
    low = LEFT if all(frame.is_optimizer for frame in row) else LEFT + RAIL
    if total > RIGHT - low:
        # below each other; if several reach up, the first at the left and the next at the right
        parts = iter([0.0, 1.0] if sum(frame.reaches for frame in row) > 1 else [])
        for frame in row:
            part = next(parts, 0.5) if frame.reaches else 0.5
            frame.x = low + part * (RIGHT - low - frame.wide)
    else:
        x = low if low == LEFT else max(low, (LEFT + RIGHT - total) / 2)
        for frame in row:
            frame.x = x
            x += frame.wide + GAP
        inside = [box for frame in row for line in frame.lines for box in line]
        wanted = [w for box in inside if (w := _wanted(box, boxes, edges)) is not None]
        if wanted and low != LEFT:
            middle = (row[0].x + row[-1].x + row[-1].wide) / 2
            shift = sum(wanted) / len(wanted) - middle
            shift = min(max(shift, low - row[0].x), RIGHT - row[-1].x - row[-1].wide)
            for frame in row:
                frame.x += shift
    for frame in row:
        for number, line in enumerate(frame.lines):
            _place_line(frame, line, boxes, edges)
            if number:
                _find_doors(frame.lines[number - 1], line)


def _find_doors(front: list[Box], line: list[Box]) -> None:
    """Find for each box the gap in the line in front of it that an arrow can come through."""
    ends = [(a.x + a.wide + b.x) / 2 for a, b in pairwise(front)]
    ends += [front[0].x - GAP / 2, front[-1].x + front[-1].wide + GAP / 2]
    for box in line:
        inside = [e for e in ends if box.x + 6 <= e <= box.x + box.wide - 6]
        box.door = min(inside, key=lambda e: abs(e - box.middle), default=None)


def _place_line(frame: Frame, line: list[Box], boxes: dict[str, Box], edges: list[Edge]) -> None:
    """Put each box near the middle of what it is joined with, as far as there is room."""
    pad = PAD if frame.title else 0.0
    low, high = frame.x + pad, frame.x + frame.wide - pad
    wanted = {id(box): _wanted(box, boxes, edges) for box in line}
    if all(w is None for w in wanted.values()):
        total = sum(box.wide for box in line)
        gap = min(3 * GAP, (high - low - total) / max(1, len(line) - 1))
        x = frame.middle - (total + gap * (len(line) - 1)) / 2
        for box in line:
            box.x = round(x, 1)
            x += box.wide + gap
        return
    middles = {key: frame.middle if w is None else w for key, w in wanted.items()}
    line.sort(key=lambda box: middles[id(box)])
    edge = low
    for box in line:
        box.x = max(edge, middles[id(box)] - box.wide / 2)
        edge = box.x + box.wide + GAP
    edge = high
    for box in reversed(line):
        box.x = round(min(box.x, edge - box.wide), 1)
        edge = box.x - GAP


def _wanted(box: Box, boxes: dict[str, Box], edges: list[Edge]) -> float | None:
    """The mean place of what a box is joined with and that has its place already."""
    ends = [(boxes[e.source], boxes[e.target]) for e in edges]
    others = [b.middle for a, b in ends if a is box and b is not box and b.x]
    others += [a.middle for a, b in ends if b is box and a is not box and a.x]
    return sum(others) / len(others) if others else None


def _place_down(layout: Layout, top: float, least: float) -> None:
    y = top
    for band in layout.bands:
        band.top = y
        y += BAND_GAP
        for number, row in enumerate(band.rows):
            y += LINE_GAP if number else 0.0
            total = sum(frame.wide + GAP for frame in row) - GAP
            stacked = total > RIGHT - LEFT - RAIL
            start = bottom = y
            for frame in row:
                frame.y = bottom + 2 * GAP if stacked and bottom > start else y
                _place_frame(frame)
                bottom = max(bottom, frame.y + frame.high)
            if not stacked:
                for frame in row:
                    if not frame.title:
                        _move(frame, (bottom - start - frame.high) / 2)
            y = bottom
        spare = max(0.0, band.top + least - (y + BAND_GAP))
        for row in band.rows:
            for frame in row:
                _move(frame, spare / 2)
        y += BAND_GAP + spare
        band.bottom = y
    layout.bottom = y


def _move(frame: Frame, down: float) -> None:
    frame.y += down
    for line in frame.lines:
        for box in line:
            box.y += down
            box.clear += down


def _place_frame(frame: Frame) -> None:
    y = frame.y + (HEAD if frame.title else 0.0)
    for number, line in enumerate(frame.lines):
        y += LINE_GAP if number else 0.0
        for box in line:
            box.y = y
            box.clear = frame.lines[0][0].y
        y += BOX
    frame.high = y - frame.y + (PAD if frame.title else 0.0)


# ---- arrows ------------------------------------------------------------------------------------


def _arrows(system: System, layout: Layout) -> list[Arrow]:
    """Join boxes; what passes between blocks, or from an optimizer, ends at a frame."""
    frames: dict[int, Frame] = {}
    for band in layout.bands:
        for row in band.rows:
            for frame in row:
                for line in frame.lines:
                    for box in line:
                        frames[id(box)] = frame
    found: dict[tuple[int, int, str], tuple[Box | Frame, Box | Frame, list[str]]] = {}
    kinds = list(EDGE_KINDS)
    several = len({c.block for c in system.components if c.block}) > 1
    for edge in sorted(system.edges, key=lambda e: kinds.index(e.kind)):
        a, b = layout.boxes[edge.source], layout.boxes[edge.target]
        one, other = system.component(edge.source), system.component(edge.target)
        source: Box | Frame = a
        target: Box | Frame = b
        if edge.across:
            # with several blocks, every gradient passes through all of them
            if one.block == other.block or several:
                continue
            source = frames[id(a)] if one.block else a
            target = frames[id(b)] if other.block else b
        elif edge.kind == "optimises" and one.kind == "optimizer":
            target = frames[id(b)]
        elif source is target and one.name != other.name:
            continue
        key = (id(source), id(target), edge.kind)
        found.setdefault(key, (source, target, []))[2].append(edge.reason)
    return [
        Arrow(source, target, kind, tuple(dict.fromkeys(reasons)))
        for (_, _, kind), (source, target, reasons) in found.items()
    ]
