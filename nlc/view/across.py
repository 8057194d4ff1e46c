"""Where everything stands from left to right.

In: panels with lines, nets and risers. Out: the same with places for frames and their names, boxes,
risers and the ends of nets.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from nlc.view.measure import width
from nlc.view.order import order_boxes
from nlc.view.parts import (
    APART,
    LEFT,
    LOOP,
    PAD,
    PASSING,
    RIGHT,
    RISER,
    SMALL,
    Box,
    Frame,
    Net,
    Panel,
)  # fmt: skip
from nlc.view.straight import straighten
from nlc.view.widths import frame_need, gutter_need, named_need


def place_across(panel: Panel) -> None:
    """Place frames, then boxes, risers and the ends of nets."""
    _place_frames(panel)
    order_boxes(panel)
    straighten(panel)
    for frame in panel.frames:
        _trim(frame)
        _place_name(frame, panel)


# ---- frames ------------------------------------------------------------------------------------


def _place_frames(panel: Panel) -> None:
    total = sum(map(frame_need, panel.columns))
    gutters = [gutter_need(panel, i) for i in range(len(panel.gutters))]
    low, high = LEFT + gutters[0], RIGHT - (gutters[-1] if len(gutters) > 1 else 0.0)
    x = low + max(0.0, high - low - total - sum(gutters[1:-1])) / 2
    _place_lanes(panel.gutters[0], LEFT)
    for frame, gutter, lanes in zip(panel.columns, gutters[1:], panel.gutters[1:], strict=True):
        frame.low, frame.high = x, x + frame_need(frame)
        last = frame is panel.columns[-1]
        _place_lanes(lanes, high + PASSING if last else frame.high + APART / 2 + PASSING / 2)
        x = frame.high + gutter
    shelves: dict[int, list[Frame]] = defaultdict(list)
    for frame in panel.frames:
        if frame not in panel.columns:
            shelves[frame.first].append(frame)
    for shelf in shelves.values():
        need = sum(map(frame_need, shelf))
        gap = min(2 * APART, (high - low - need) / max(1, len(shelf) - 1))
        x = (low + high - need - gap * (len(shelf) - 1)) / 2
        for frame in shelf:
            frame.low, frame.high = x, x + frame_need(frame)
            x = frame.high + gap


def _place_lanes(nets: list[Net], x: float) -> None:
    for number, net in enumerate(nets):
        for riser in net.risers.values():
            riser.x = x + RISER * number


def _trim(frame: Frame) -> None:
    """Draw a frame no wider than what is in it, or its name."""
    pad = PAD if frame.title else 0.0
    nodes = [node for row in frame.rows.values() for node in row]
    x1 = min(n.left if isinstance(n, Box) else n.x for n in nodes)
    x2 = max(n.right + LOOP * len(n.loops) if isinstance(n, Box) else n.x for n in nodes)
    short = named_need(frame) - (x2 - x1)
    x1 = max(frame.low, x1 - pad - max(0.0, short / 2))
    x2 = min(frame.high, x2 + pad + max(0.0, short / 2))
    frame.x1, frame.x2 = round(x1, 1), round(x2, 1)


def _place_name(frame: Frame, panel: Panel) -> None:
    """Find a place for a frame's name beside the ways that come in: at the top or the bottom."""
    need = width(frame.title, SMALL)
    found = []
    for side, channel in (("top", frame.first - 1), ("bottom", frame.last)):
        ways = [
            end.x for net in panel.nets for end in net.ends
            if isinstance(end.at, Box) and end.frame is frame
            and end.side == side and end.channel == channel
        ]  # fmt: skip
        for a, b in pairwise([frame.x1 + 3, *sorted(ways), frame.x2 - 3]):
            room = b - a - 12
            found.append((-min(room, need), side == "bottom", a + 6, room))
    _, frame.footer, x, room = min(found)
    frame.name_at = (round(x, 1), room)
