"""The boxes of a level score: components that are alike and joined with the same others share one.

In: components and edges. Out: `Box`es with texts and widths, in lines, in a `Frame` for each block,
in rows, in a `Band` for each level. Gives nothing its place.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from nlc.ir.level_graph import Component, Edge
from nlc.ir.system import Level, System
from nlc.view.formats import filled
from nlc.view.words import amount, at, fit, map_of, ranks, width

# all in pixels of a page 1200 wide: where the parts begin and end
LEFT, RIGHT = 196.0, 876.0
# the rail from an optimizer down to what it moves
RAIL = 22.0
BOX, SMALLEST, WIDEST = 40.0, 64.0, 230.0
GAP, LINE_GAP, BAND_GAP = 12.0, 36.0, 22.0
# a frame around the boxes of a block, and the line for its name
PAD, HEAD = 10.0, 20.0
NAME_SIZE, MAP_SIZE = 13.0, 11.0
# names in one box
SHOWN = 4


@dataclass(eq=False)
class Box:
    """One component, or several that are alike."""

    members: tuple[Component, ...]
    title: str
    about: str
    wide: float
    x: float = 0.0
    y: float = 0.0
    high: float = BOX
    # where an arrow from above comes past the line in front of it, and how far down that is
    door: float | None = None
    clear: float = 0.0

    @property
    def middle(self) -> float:
        """Where its middle is, from the left."""
        return self.x + self.wide / 2


@dataclass(eq=False)
class Frame:
    """Around the boxes of one block in one row."""

    block: str
    title: str
    lines: list[list[Box]]
    reaches: bool = False
    x: float = 0.0
    y: float = 0.0
    wide: float = 0.0
    high: float = 0.0

    @property
    def middle(self) -> float:
        """Where its middle is, from the left."""
        return self.x + self.wide / 2

    @property
    def is_optimizer(self) -> bool:
        """Say whether the states of an optimizer are in it."""
        return self.lines[0][0].members[0].kind == "optimizer"


@dataclass
class Band:
    """One level: rows of frames, the faster components above."""

    level: Level
    rows: list[list[Frame]]
    top: float = 0.0
    bottom: float = 0.0


@dataclass(frozen=True)
class Arrow:
    """From one box or frame to another; `count` edges are drawn as this one."""

    source: Box | Frame
    target: Box | Frame
    kind: str
    reasons: tuple[str, ...]


@dataclass
class Layout:
    """All of it; `bottom` is where the last band ends."""

    bands: list[Band]
    arrows: list[Arrow]
    bottom: float = 0.0
    boxes: dict[str, Box] = field(default_factory=dict)


# ---- boxes -------------------------------------------------------------------------------------


def make_boxes(system: System, edges: list[Edge]) -> dict[str, Box]:
    """Make the boxes: components with the same neighbours and the same map share one."""
    joined: dict[str, set[tuple[str, str, bool]]] = defaultdict(set)
    for edge in edges:
        # what makes keys stands apart from what makes values
        way = edge.reason if edge.kind == "generates" else edge.kind
        joined[edge.source].add((edge.target, way, True))
        joined[edge.target].add((edge.source, way, False))
    groups: dict[object, list[Component]] = defaultdict(list)
    for c in system.components:
        if c.kind == "optimizer":
            groups[c.level, c.rank, c.kind].append(c)
        elif c.kind == "weights" and joined[c.name]:
            groups[c.level, c.rank, c.block, c.map, c.lead, frozenset(joined[c.name])].append(c)
        else:
            groups[c.name].append(c)
    return {c.name: box for group in groups.values() for box in [_box(group)] for c in group}


def _box(members: list[Component]) -> Box:
    first = members[0]
    if first.kind == "optimizer":
        _, rule, *_ = first.name.rsplit(".", 2)
        names = [c.name.rsplit(".", 1)[1] for c in members]
        about = f"states of {rule}"
    else:
        names = [c.label for c in members]
        about = map_of(first)
        about = about if len(members) == 1 else f"{about} each"
    if len(names) > SHOWN:
        names = [*names[: SHOWN - 1], f"+{len(names) - SHOWN + 1}"]
    room = WIDEST - 16
    title, about = fit(", ".join(names), NAME_SIZE, room), fit(about, MAP_SIZE, room)
    wide = max(SMALLEST, 18 + max(width(title, NAME_SIZE * 1.1), width(about, MAP_SIZE)))
    return Box(tuple(members), title, about, round(wide, 1))


def tooltip(box: Box) -> str:
    """Tell all of a box."""
    lines = []
    for c in box.members:
        learned = f", {amount(c.parameters)} parameters" if c.parameters else ""
        lines.append(f"{c.name}: {map_of(c)}{learned}")
    return "\n".join(lines)


# ---- frames and lines --------------------------------------------------------------------------


def _merged(rows: list[list[Frame]]) -> list[list[Frame]]:
    """Put the ranks of one block into one frame, where nothing else stands beside them."""
    found: list[list[Frame]] = []
    for row in rows:
        above = found[-1] if found else []
        alone = len(row) == len(above) == 1 and row[0].block == above[0].block != ""
        if alone:
            above[0].lines += row[0].lines
        else:
            found.append(row)
    return found


def _frames(row: list[Component], boxes: dict[str, Box], edges: list[Edge]) -> list[Frame]:
    blocks: dict[str, list[Box]] = defaultdict(list)
    for component in row:
        box = boxes[component.name]
        if box not in blocks[component.block]:
            blocks[component.block].append(box)
    frames = []
    for block, inside in blocks.items():
        copies = inside[0].members[0].copies
        title = f"{block} ×{copies}" if copies > 1 else block
        frames.append(Frame(block, title, _lines(inside, boxes, edges)))
    # what is joined with other rows stands above what is not, and the model's own weights last
    here = {id(boxes[c.name]) for c in row}
    reaching = {
        boxes[a].members[0].block
        for e in edges
        for a, b in ((e.source, e.target), (e.target, e.source))
        if id(boxes[a]) in here and id(boxes[b]) not in here
    }
    for frame in frames:
        frame.reaches = bool(frame.block) and frame.block in reaching
    return sorted(frames, key=lambda frame: (not frame.block, not frame.reaches))


def _lines(inside: list[Box], boxes: dict[str, Box], edges: list[Edge]) -> list[list[Box]]:
    """Put what is joined with other rows in front, and behind it what is joined with that."""
    here = set(map(id, inside))
    ends = [(boxes[e.source], boxes[e.target]) for e in edges]
    depth = {
        id(box): 0
        for a, b in ends
        for box, other in ((a, b), (b, a))
        if id(box) in here and id(other) not in here
    }
    for _ in inside:
        more = {
            id(box): depth[id(other)] + 1
            for a, b in ends
            for box, other in ((a, b), (b, a))
            if id(box) in here and id(box) not in depth and id(other) in depth
        }
        depth |= more
    last = max(depth.values(), default=0)
    layers: dict[int, list[Box]] = defaultdict(list)
    for box in inside:
        layers[min(depth.get(id(box), last), 3)].append(box)
    return [line for _, layer in sorted(layers.items()) for line in _broken(layer)]


def _broken(layer: list[Box]) -> list[list[Box]]:
    """Break a layer that is too wide into lines of about the same width."""
    room = RIGHT - LEFT - RAIL - 2 * PAD
    total = sum(box.wide + GAP for box in layer) - GAP
    pieces = int(total // room) + 1
    lines: list[list[Box]] = [[]]
    used = 0.0
    for box in layer:
        over = used + box.wide > room
        if lines[-1] and (over or used > total / pieces):
            lines.append([])
            used = 0.0
        lines[-1].append(box)
        used += box.wide + GAP
    return lines


def make_bands(system: System, boxes: dict[str, Box], edges: list[Edge]) -> list[Band]:
    """Make a band for each level that holds something."""
    return [
        Band(level, _merged([_frames(row, boxes, edges) for row in ranks(at(system, level))]))
        for level in filled(system)
    ]
