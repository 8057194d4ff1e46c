"""Ways made straight: ends and risers moved a little, where there is room, so that nets bend less.

In: a panel with places from left to right. Out: the same with other places of ends and risers. No
box moves, and nothing changes its order. What would lie on another way is moved aside.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from nlc.view.parts import INSET, PAD, Box, End, Frame, Net, Panel, Riser, Touch, touches
from nlc.view.tracks import BESIDE, TOO_NEAR, is_straight, on_another
from nlc.view.widths import between, port_need

Room = tuple[float, float]
# by how much two ends may come nearer to each other, each; those without labels, where they must
SLACK, TIGHT = 2.0, 4.5
# ways that have to part come no nearer to each other, and to what passes beside them by so much
NARROW, SQUEEZE = 5.0, 5.0
# how often ways that lie on each other are parted
PASSES = 8


def straighten(panel: Panel) -> None:
    """Make the ways of all nets straight, from their hubs on; the long ones first."""
    rooms = Rooms(panel)
    for net in sorted(panel.nets, key=lambda net: -len(net.channels)):
        for thread in _threads(net):
            rooms.pull(thread)
    for _ in range(PASSES):
        if not rooms.part():
            break


def _threads(net: Net) -> list[list[End | Riser]]:
    """The ways of a net that can be straight: along its risers, and to single ends."""
    first = net.ends[0]
    down = first.side == "bottom"
    risers = [r for _, r in sorted(net.risers.items(), reverse=not down)]
    thread: list[End | Riser] = [first, *risers]
    last = net.channels[-1] if down else net.channels[0]
    ends = [e for e in net.ends[1:] if e.channel == last and e.side != first.side]
    if len(ends) == 1:
        thread.append(ends[0])
    return [thread]


class Rooms:
    """Where ends and risers may stand."""

    def __init__(self, panel: Panel):
        self.sides: dict[tuple[Box | Frame, str], list[End]] = defaultdict(list)
        self.channels = touches(panel)
        # for each end and riser, what else comes into its channels
        self.around: dict[End | Riser, list[Touch]] = defaultdict(list)
        for net in panel.nets:
            for end in net.ends:
                self.sides[end.at, end.side].append(end)
        for nets in self.channels.values():
            for net, here in nets:
                others = [t for n, there in nets for t in there if n is not net]
                for touch in here:
                    self.around[touch.at] += others

    def room(self, at: End | Riser, tight: bool = False) -> Room:
        """How far an end or a riser may be moved to either side; `tight`, where it has to be."""
        if isinstance(at, Riser):
            return _riser_room(at, SQUEEZE if tight else 0.0)
        if isinstance(at.at, Frame):
            low, high = at.at.low + 2 * INSET, at.at.high - 2 * INSET
            return (low, high) if low < high else (at.x, at.x)
        slack = TIGHT if tight else SLACK
        own = port_need(at) / 2 - (SLACK if at.label else slack)
        low, high = at.at.left + own + 3, at.at.right - own - 3
        for other in self.sides[at.at, at.side]:
            apart = own + port_need(other) / 2 - (SLACK if other.label else slack)
            if other is not at and other.x <= at.x:
                low = max(low, other.x + apart)
            elif other is not at:
                high = min(high, other.x - apart)
        return (low, high) if low <= high else (at.x, at.x)

    def pull(self, thread: list[End | Riser]) -> None:
        """Make a thread straight, in as few pieces as can be."""
        start = 0
        while start < len(thread):
            end = start + 1
            common = self.common(thread[start:end])
            while end < len(thread):
                longer = self.common(thread[start : end + 1])
                if longer is None:
                    break
                common, end = longer, end + 1
            piece = thread[start:end]
            x = self.choose(piece, common or (piece[0].x, piece[0].x))
            for at in piece:
                at.x = x
            start = end

    def common(self, piece: list[End | Riser]) -> Room | None:
        """The room that a piece of a thread has for one place: rather a tight one than a bend."""
        for tight in (False, True):
            rooms = [self.room(at, tight) for at in piece]
            low, high = max(r[0] for r in rooms), min(r[1] for r in rooms)
            if low <= high:
                return low, high
        return None

    def choose(self, piece: list[End | Riser], room: Room) -> float:
        """Choose a place, the nearest that is not beside other nets' ways."""
        low, high = room
        first = min(max(piece[0].x, low), high)
        others = [t.x for at in piece for t in self.around[at]]

        def price(x: float) -> tuple[int, float]:
            return sum(abs(x - o) < BESIDE for o in others), abs(x - first)

        steps = int((high - low) // 3)
        places = [first, *(low + 3 * i for i in range(min(steps, 60) + 1)), high]
        best: float = min(places, key=price)
        return round(best, 1)

    def part(self) -> bool:
        """Move ends and risers that would lie on another way; say whether any had to be."""
        moved = False
        for number, nets in self.channels.items():
            for pair in on_another(nets, number):
                straight = [
                    is_straight(next(here for _, here in nets if touch in here)) for touch in pair
                ]
                moved |= self.move(list(pair), straight)
        return moved

    def move(self, pair: list[Touch], straight: list[bool]) -> bool:
        """Part two ways: move the one that bends anyway, or has the shorter way to go."""
        if abs(pair[0].x - pair[1].x) >= TOO_NEAR:
            return True
        options = [
            (straight[i], abs(x - touch.x), i, x)
            for i, touch in enumerate(pair) if (x := self.free(touch.at)) is not None
        ]  # fmt: skip
        for _, _, i, x in sorted(options)[:1]:
            pair[i].at.x = x
        return bool(options)

    def free(self, at: End | Riser) -> float | None:
        """The nearest place that is not beside other ways, or else the best there is."""
        low, high = self.room(at, tight=True)
        others = sorted({low - NARROW, high + NARROW, *(t.x for t in self.around[at])})

        def apart(x: float) -> float:
            return min(abs(x - o) for o in others)

        for wanted in (BESIDE, NARROW):
            places = [o + side * wanted for o in others for side in (-1, 1)]
            fit = [p for p in places if low <= p <= high and apart(p) >= wanted - 0.01]
            if fit:
                nearest: float = min(fit, key=lambda p: abs(p - at.x))
                return round(nearest, 1)
        middles = [(a + b) / 2 for a, b in pairwise(others) if low <= (a + b) / 2 <= high]
        best: float = max(middles, key=apart, default=at.x)
        return round(best, 1) if apart(best) > apart(at.x) + 0.2 else None


def _riser_room(riser: Riser, less: float) -> Room:
    frame = riser.net.frame
    if frame is None:
        return riser.x, riser.x
    row = frame.rows[riser.line]
    place = row.index(riser)
    pad = PAD if frame.title else 0.0
    low, high = frame.low + pad, frame.high - pad
    if place:
        before = row[place - 1]
        low = before.x + before.wide / 2 + between(before, riser) - less
    if place + 1 < len(row):
        after = row[place + 1]
        high = after.x - after.wide / 2 - between(riser, after) + less
    return (low, high) if low <= high else (riser.x, riser.x)
