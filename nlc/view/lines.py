"""Which boxes stand in which line, and where nets pass the lines.

In: a panel whose frames have boxes. Out: the same with lines, nets and risers; and whether all of
it fits the page. Within a level the faster components stand above the slower; then what is joined
with other levels above what is not; and a line that is too wide is broken.
"""

from __future__ import annotations

from collections import defaultdict

from nlc.ir.system import Level, System
from nlc.view.nets import Plan, make_nets, plan_nets
from nlc.view.parts import (
    APART,
    INSET,
    LEFT,
    PAD,
    PIN,
    PORT,
    RIGHT,
    RISER,
    Box,
    End,
    Frame,
    Line,
    Net,
    Panel,
    Riser,
)  # fmt: skip
from nlc.view.widths import (
    elbow,
    frame_need,
    gutters_need,
    named_need,
    padding,
    port_need,
    row_need,
)  # fmt: skip

Near = dict[Box, list[Box]]
# how often lines are broken anew because more nets pass them than was thought
TRIES = 12
# how finely the widths of columns are tried
STEPS = 5
# a row of a level in a frame: (level, rank)
Row = tuple[str, int]


def fill_lines(system: System, panel: Panel, near: Near) -> bool:
    """Give each box its line; say whether the columns fit beside each other.

    If they do not with as few lines as can be, each is made narrower, by the same part of what it
    can spare.
    """
    whole = RIGHT - LEFT
    plan = plan_nets(system, panel)
    rooms = dict.fromkeys(panel.frames, whole)
    if _fits(system, panel, near, plan, rooms):
        return True
    wide = {frame: frame_need(frame) for frame in panel.columns}
    nothing = dict.fromkeys(panel.columns, 0.0)
    if not _fits(system, panel, near, plan, {**rooms, **nothing}):
        return False
    narrow = {frame: min(frame_need(frame), wide[frame]) for frame in panel.columns}
    found, low, high = narrow, 0.0, 1.0
    for _ in range(STEPS):
        part = (low + high) / 2
        tried = {f: narrow[f] + part * (wide[f] - narrow[f]) for f in panel.columns}
        if _fits(system, panel, near, plan, {**rooms, **tried}):
            found, low = tried, part
        else:
            high = part
    return _fits(system, panel, near, plan, {**rooms, **found})


def _fits(system: System, panel: Panel, near: Near, plan: Plan, rooms: dict[Frame, float]) -> bool:
    _settle(system, panel, near, plan, rooms)
    return sum(map(frame_need, panel.columns)) + gutters_need(panel) <= RIGHT - LEFT


def _settle(
    system: System, panel: Panel, near: Near, plan: Plan, rooms: dict[Frame, float]
) -> None:
    """Break lines until the nets that pass them have room too."""
    reserve: dict[tuple[Frame, Row, int], float] = defaultdict(float)
    for _ in range(TRIES):
        where = _break_lines(system, panel, near, rooms, reserve)
        panel.nets = make_nets(plan, panel)
        _widen(panel)
        _pass_lines(panel)
        full = False
        for frame in panel.frames:
            for line, row in frame.rows.items():
                over = row_need(row) + 2 * elbow(row) + 2 * PAD - rooms[frame]
                boxes = [node for node in row if isinstance(node, Box)]
                if over > 0 and len(boxes) > 1:
                    reserve[(frame, *where[line])] += max(over, RISER)
                    full = True
        if not full:
            return


# ---- lines -------------------------------------------------------------------------------------


def _break_lines(
    system: System, panel: Panel, near: Near, rooms: dict[Frame, float],
    reserve: dict[tuple[Frame, Row, int], float],
) -> dict[int, tuple[Row, int]]:  # fmt: skip
    """Make all lines of a panel; return for each line its row and its number within it."""
    panel.lines = []
    where: dict[int, tuple[Row, int]] = {}
    for frame in panel.frames:
        frame.rows = {}
    for level in system.levels:
        inside = [f for f in panel.frames if any(b.members[0].level == level.name for b in f.boxes)]
        columns = [f for f in inside if f in panel.columns]
        _stand(panel, level, columns, near, rooms, reserve, where)
        for shelf in _shelves([f for f in inside if f not in panel.columns], near, rooms):
            _stand(panel, level, shelf, near, rooms, reserve, where)
    for frame in panel.frames:
        frame.first, frame.last = min(frame.rows), max(frame.rows)
        for line in range(frame.first, frame.last + 1):
            frame.rows.setdefault(line, [])
    return where


def _stand(
    panel: Panel, level: Level, frames: list[Frame], near: Near, rooms: dict[Frame, float],
    reserve: dict[tuple[Frame, Row, int], float], where: dict[int, tuple[Row, int]],
) -> None:  # fmt: skip
    """Put the boxes of some frames at one level into new lines, rank by rank."""
    ranks = {b.members[0].rank for f in frames for b in f.boxes if _at(b, level)}
    for rank in sorted(ranks):
        start = len(panel.lines)
        row: Row = (level.name, rank)
        for frame in frames:
            boxes = [b for b in frame.boxes if _at(b, level) and b.members[0].rank == rank]
            for number, line in enumerate(_broken(frame, boxes, near, rooms, reserve, row)):
                if start + number == len(panel.lines):
                    where[len(panel.lines)] = (row, number)
                    panel.lines.append(Line(level))
                frame.rows[start + number] = list(line)
                for box in line:
                    box.line = start + number


def _at(box: Box, level: Level) -> bool:
    return box.members[0].level == level.name


def _broken(
    frame: Frame, boxes: list[Box], near: Near, rooms: dict[Frame, float],
    reserve: dict[tuple[Frame, Row, int], float], row: Row,
) -> list[list[Box]]:  # fmt: skip
    """Break the boxes of one rank into lines."""
    lines: list[list[Box]] = []
    for layer in _layers(boxes, near):
        first = True
        for box in layer:
            room = rooms[frame] - 2 * PAD - reserve[frame, row, len(lines) - 1]
            if first or row_need([*lines[-1], box]) > room:
                lines.append([])
                first = False
            lines[-1].append(box)
    return lines


def _layers(boxes: list[Box], near: Near) -> list[list[Box]]:
    """Put what is joined with other rows in front, and behind it what is joined with that."""
    here = set(boxes)
    depth = {box: 0 for box in boxes if any(other not in here for other in near[box])}
    if not depth:
        return [boxes] if boxes else []
    for distance in range(1, len(boxes) + 1):
        more = [
            box for box in boxes
            if box not in depth and any(depth.get(other) == distance - 1 for other in near[box])
        ]  # fmt: skip
        depth |= dict.fromkeys(more, distance)
    last = max(depth.values())
    layers: list[list[Box]] = [[] for _ in range(last + 1)]
    for box in boxes:
        layers[depth.get(box, last)].append(box)
    return layers


def _shelves(frames: list[Frame], near: Near, rooms: dict[Frame, float]) -> list[list[Frame]]:
    """Put frames of one level side by side, in as many rows as they need."""
    shelves: list[list[Frame]] = []
    used = 0.0
    for frame in frames:
        need = max(row_need(list(layer)) for layer in _layers(frame.boxes, near))
        need = min(max(need, named_need(frame)) + padding(frame), rooms[frame])
        if not shelves or used + need > RIGHT - LEFT - 2 * APART:
            shelves.append([])
            used = 0.0
        shelves[-1].append(frame)
        used += need + APART
    return shelves


# ---- nets that pass ----------------------------------------------------------------------------


def _pass_lines(panel: Panel) -> None:
    """Give each net a riser in each line that it passes, or a lane beside the columns."""
    panel.gutters = [[] for _ in range(len(panel.columns) + 1)]
    for net in panel.nets:
        passed = net.channels[1:]
        if not passed:
            continue
        if net.frame is None:
            net.lane = _gutter(net, panel)
            panel.gutters[net.lane].append(net)
        for line in passed:
            riser = Riser(net, line)
            net.risers[line] = riser
            if net.frame is not None:
                net.frame.rows[line].append(riser)


def _gutter(net: Net, panel: Panel) -> int:
    """The gutter by which a net passes: beside the leftmost of its columns."""
    places = sorted(panel.columns.index(f) for end in net.ends if (f := end.frame) in panel.columns)
    shelves = any(end.frame not in panel.columns for end in net.ends)
    if not places or shelves:
        return 0 if places and places[0] == 0 else len(panel.columns)
    return places[0] + 1


def _widen(panel: Panel) -> None:
    """Make boxes wide enough for the ends of their nets."""
    ends: dict[tuple[Box, str], list[End]] = defaultdict(list)
    for net in panel.nets:
        for end in net.ends:
            if isinstance(end.at, Box):
                ends[end.at, end.side].append(end)
    for box in panel.boxes:
        box.wide = box.least
        box.high = box.plain + PIN * len(box.pins)
    for (box, _), here in ends.items():
        box.wide = max(box.wide, 2 * INSET + sum(port_need(end) for end in here) - PORT / 2)
