"""What a level score is made of: boxes in frames, lines of boxes, nets that join them.

Data only, with the sizes that all of the layout shares. A score is laid out like a circuit: boxes
stand in lines; between two lines is a channel, in which nets run level on tracks of their own;
a net passes a line where no box stands. So no net ever crosses a box.

    Panel = frames, side by side      Frame = the boxes of one block
    Line  = what stands at one height Net   = one or several edges of one kind, drawn as one
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nlc.ir.level_graph import EDGE_KINDS, Component, Edge, EdgeKind
from nlc.ir.system import Level

# ---- sizes, in pixels of a page that is 1200 wide ----------------------------------------------

PAGE, MARGIN = 1200.0, 28.0
# the names of levels, the boxes, and time
NAMES_END = 178.0
LEFT, RIGHT = 204.0, 902.0
FIRST, LAST = 930.0, 1164.0

TITLE, ABOUT, LEVEL, NAME, SMALL = 23.0, 15.0, 18.0, 14.0, 12.0
NAME_LINE, SMALL_LINE = 17.0, 15.0
# a box without pins, the room for a row of pins, and limits of its width
BOX, PIN, NARROWEST, WIDEST = 42.0, 15.0, 56.0, 236.0
# between two boxes, a box and a net that passes, and two nets; beside a box for a way to itself
GAP, PASSING, RISER, LOOP = 14.0, 11.0, 10.0, 18.0
# kept free at both ends of a line that nets pass, for them to make way for each other
ELBOW = 8.0
# around the boxes of a frame, and above or below them for its name
PAD, HEAD, FOOT = 12.0, 22.0, 12.0
# the distance of two tracks, and of the first and last from a line
TRACK, BEFORE, AFTER = 9.0, 12.0, 17.0
# a channel without tracks; between frames; and between a level's border and what stands in it
CHANNEL, APART, BORDER = 24.0, 20.0, 16.0
# ends of nets at one side of a box
PORT, INSET = 15.0, 10.0

Side = Literal["top", "bottom"]


@dataclass(eq=False)
class Box:
    """One component, or several that are alike; `x` is its middle, `y` its top."""

    members: tuple[Component, ...]
    title: list[str]
    about: list[str]
    frame: Frame = field(init=False)
    # for its texts
    least: float = NARROWEST
    line: int = 0
    wide: float = NARROWEST
    high: float = BOX
    x: float = 0.0
    y: float = 0.0
    # its components stand in another panel; it stands for all that the gradient passes there
    elsewhere: bool = False
    gradient: bool = False
    # sides with labels
    pins: set[Side] = field(default_factory=set)
    # its members are joined with each other, or it makes its own keys or values
    inside: list[Edge] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The kind of its components."""
        return self.members[0].kind

    @property
    def loops(self) -> list[EdgeKind]:
        """The kinds of ways from it to itself."""
        return [kind for kind in EDGE_KINDS if any(e.kind == kind for e in self.inside)]

    @property
    def plain(self) -> float:
        """How high it is without labels."""
        return BOX + NAME_LINE * (len(self.title) - 1) + SMALL_LINE * (len(self.about) - 1)

    @property
    def left(self) -> float:
        """Where it begins."""
        return self.x - self.wide / 2

    @property
    def right(self) -> float:
        """Where it ends."""
        return self.x + self.wide / 2

    @property
    def bottom(self) -> float:
        """Where it ends below."""
        return self.y + self.high


@dataclass(eq=False)
class Riser:
    """Where a net passes a line."""

    net: Net
    line: int
    x: float = 0.0
    wide: float = 0.0


Node = Box | Riser


@dataclass(eq=False)
class Frame:
    """The boxes of one block (`block` is "" for weights of the model: each stands alone).

    It reaches from line `first` to `last`; `rows` has the boxes and risers of each of these lines.
    """

    block: str
    title: str
    boxes: list[Box]
    first: int = 0
    last: int = 0
    rows: dict[int, list[Node]] = field(default_factory=dict)
    # where its name begins and how much room it has; at the bottom, if ways come in at the top
    name_at: tuple[float, float] = (0.0, 0.0)
    footer: bool = False
    # the room it is given, and what it takes of that
    low: float = 0.0
    high: float = 0.0
    x1: float = 0.0
    x2: float = 0.0
    y1: float = 0.0
    y2: float = 0.0


@dataclass(eq=False)
class End:
    """Where a net ends: at a side of a box, or of a frame; `x` is its place, `channel` the channel.

    Channel i is below line i; channel -1 is above the first line.
    """

    at: Box | Frame
    side: Side
    channel: int
    head: bool
    label: str = ""
    x: float = 0.0
    y: float = 0.0

    @property
    def frame(self) -> Frame:
        """The frame it is at, or whose box it is at."""
        return self.at.frame if isinstance(self.at, Box) else self.at


@dataclass(eq=False)
class Net:
    """Edges of one kind, from or to one box (`hub`), or between frames (the way of the gradient).

    `frame` is the frame it stays in, None if it leaves one; then `lane` is where it passes lines.
    """

    kind: EdgeKind
    edges: list[Edge]
    ends: list[End]
    frame: Frame | None = None
    lane: int = 0
    risers: dict[int, Riser] = field(default_factory=dict)
    # by channel, the height of its level part; none where it goes straight down
    tracks: dict[int, float] = field(default_factory=dict)

    @property
    def channels(self) -> range:
        """The channels it is in."""
        all = [end.channel for end in self.ends]
        return range(min(all), max(all) + 1)


@dataclass(eq=False)
class Line:
    """Boxes at one height: of one level, and of one rank within it; `y` is its top."""

    level: Level
    y: float = 0.0
    bottom: float = 0.0


@dataclass(eq=False)
class Band:
    """One level on the page."""

    level: Level
    lines: range
    top: float = 0.0
    bottom: float = 0.0


@dataclass(eq=False)
class Panel:
    """Frames that fit beside each other, with all their levels."""

    frames: list[Frame]
    lines: list[Line] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    nets: list[Net] = field(default_factory=list)
    # the columns, from the left, and the lanes in the gutters between and beside them
    columns: list[Frame] = field(default_factory=list)
    gutters: list[list[Net]] = field(default_factory=list)
    top: float = 0.0
    bottom: float = 0.0

    @property
    def boxes(self) -> list[Box]:
        """All boxes, by frame."""
        return [box for frame in self.frames for box in frame.boxes]


# ---- where nets come into channels -------------------------------------------------------------


@dataclass(frozen=True)
class Touch:
    """A net comes into a channel: from above or below, at an end or a riser."""

    at: End | Riser
    above: bool

    @property
    def x(self) -> float:
        """Its place."""
        return self.at.x


Touches = dict[int, list[tuple[Net, list[Touch]]]]


def touches(panel: Panel) -> Touches:
    """Where each net comes into each channel."""
    found: Touches = {}
    for net in panel.nets:
        for channel in net.channels:
            here = [Touch(e, e.side == "bottom") for e in net.ends if e.channel == channel]
            here += [
                Touch(riser, line == channel)
                for line, riser in net.risers.items() if line in (channel, channel + 1)
            ]  # fmt: skip
            found.setdefault(channel, []).append((net, here))
    return found
