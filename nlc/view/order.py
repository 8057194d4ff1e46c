"""The order of boxes in their lines, and their places from left to right.

In: a panel whose frames have their places. Out: the same with `x` for boxes, risers and ends. Boxes
are put in the order, and near the places, of what they are joined with; few crossings come first,
short ways second, and where nothing else decides, the order of what they are for.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations, pairwise

from nlc.view.parts import (
    INSET,
    LOOP,
    PAD,
    Box,
    End,
    Frame,
    Node,
    Panel,
    Riser,
    Touch,
    touches,
)  # fmt: skip
from nlc.view.widths import between, elbow, port_need

SWEEPS = 8
# how often boxes make way for nets that pass, and how much these are worth
ROUNDS, STRAIGHT = 8, 12.0
# what crossings cost, in pixels; and what another order must be better by
CROSSING, WORTH = 60.0, 30.0
# the order of uses, where nothing else says one
ORDER = ["query", "keys", "keys and values", "values", "objective", "gates", "", "pairs", "start",
         "out"]  # fmt: skip


def order_boxes(panel: Panel) -> None:
    """Order and place all boxes, risers and ends of a panel."""
    work = Work(panel)
    work.start()
    work.improve()
    for frame, line in work.rows:
        for node in frame.rows[line]:
            node.x = round(node.x, 1)
    work.share()


Goals = dict[Node, tuple[float, float]]


class Work:
    """Places the boxes of a panel step by step."""

    def __init__(self, panel: Panel):
        self.panel = panel
        self.touches = touches(panel)
        self.ends: dict[tuple[Box | Frame, str], list[End]] = defaultdict(list)
        # for each node, where nets touch it: the channel, the touch, and the net's others there
        self.joined: dict[Node, list[tuple[Touch, list[Touch]]]] = defaultdict(list)
        self.others: dict[End, list[Touch]] = {}
        for nets in self.touches.values():
            for _, here in nets:
                for touch in here:
                    others = [t for t in here if t is not touch]
                    node = touch.at if isinstance(touch.at, Riser) else touch.at.at
                    if not isinstance(node, Frame):
                        self.joined[node].append((touch, others))
                    if isinstance(touch.at, End):
                        self.others[touch.at] = others
        for net in panel.nets:
            for end in net.ends:
                self.ends[end.at, end.side].append(end)

    @property
    def rows(self) -> list[tuple[Frame, int]]:
        """All lines of all frames, from the top."""
        found = [(f, line) for f in self.panel.frames for line in f.rows if f.rows[line]]
        return sorted(found, key=lambda row: row[1])

    def start(self) -> None:
        """Put each line in the order of what its boxes are for."""
        uses = self.uses()
        for frame, line in self.rows:
            row = frame.rows[line]
            row.sort(key=lambda node: uses.get(node, ORDER.index("")))
            middle = (frame.low + frame.high) / 2
            _settle(frame, line, dict.fromkeys(row, (middle, 1.0)))
        self.share()

    def uses(self) -> dict[Node, int]:
        """The first use of each box, or of the net that passes."""
        uses: dict[Node, int] = {}
        for net in self.panel.nets:
            role = net.edges[0].role
            use = ORDER.index(role if role in ORDER else "")
            nodes: list[Node] = [end.at for end in net.ends if isinstance(end.at, Box)]
            for node in [*nodes, *net.risers.values()]:
                uses[node] = min(use, uses.get(node, use))
        return uses

    def wanted(self, node: Node, above: bool | None = None) -> tuple[float, float] | None:
        """The mean place of what a node is joined with, all around or on one side; and how much."""
        total = weight = 0.0
        for touch, others in self.joined[node]:
            if not others or (above is not None and touch.above == above):
                continue
            mean = sum(other.x for other in others) / len(others) - (touch.x - node.x)
            part = _weight(touch, others)
            total += part * mean
            weight += part
        return (total / weight, weight) if weight else None

    def goals(self, frame: Frame, line: int, above: bool | None = None) -> Goals:
        """Where the nodes of a line are wanted; those that nothing wants stay."""
        return {node: self.wanted(node, above) or (node.x, 0.1) for node in frame.rows[line]}

    def share(self, near: int | None = None) -> None:
        """Share out the sides of boxes among ends, ordered by where the nets lead."""
        for (at, _), ends in self.ends.items():
            if isinstance(at, Box):
                if near is None or abs(at.line - near) <= 1:
                    self.share_side(at, ends)
                continue
            for end in ends:
                low, high = at.low + 2 * INSET, at.high - 2 * INSET
                place = self.mean(end)
                end.x = min(max(place, low), high) if low < high else (low + high) / 2

    def share_side(self, box: Box, ends: list[End]) -> None:
        """Share out one side of a box."""
        if len(ends) > 1:
            ends.sort(key=self.mean)
        needs = [port_need(end) for end in ends]
        x = box.x - sum(needs) / 2
        for end, need in zip(ends, needs, strict=True):
            end.x = x + need / 2
            x += need

    def mean(self, end: End) -> float:
        """The mean place of the others that an end is joined with."""
        others = self.others[end]
        return sum(t.x for t in others) / len(others) if others else 0.0

    def improve(self) -> None:
        """Sweep down and up, keep the best, and swap neighbours while that helps."""
        self.centre()
        best, kept = self.cost(), self.picture()
        for number in range(SWEEPS):
            down = number % 2 == 0
            for frame, line in self.rows if down else reversed(self.rows):
                goals = self.goals(frame, line, above=not down)
                frame.rows[line].sort(key=lambda n: goals[n][0])
                _settle(frame, line, goals)
                self.share(line)
            self.centre()
            cost = self.cost()
            if cost < best - WORTH:
                best, kept = cost, self.picture()
        self.restore(kept)
        for _ in range(3):
            if not self.swap():
                break
        for _ in range(ROUNDS):
            self.centre(along=True)

    def centre(self, along: bool = False) -> None:
        """Move boxes towards all that they are joined with, without changing an order.

        `along`: what passes several lines wants to pass them at one place.
        """
        for frame, line in [*self.rows, *reversed(self.rows)]:
            goals = self.goals(frame, line)
            for node in frame.rows[line] if along else ():
                if isinstance(node, Riser) and len(node.net.risers) > 1:
                    others = [r.x for r in node.net.risers.values()]
                    goals[node] = (sum(others) / len(others), STRAIGHT)
            _settle(frame, line, goals)
            self.share(line)

    def swap(self) -> bool:
        """Swap neighbours in a line where there are fewer crossings for it; say whether any."""
        better = False
        for frame, line in self.rows:
            row = frame.rows[line]
            for i in range(len(row) - 1):
                kept = [(n, n.x) for n in row]
                before = self.cost(line)
                row[i], row[i + 1] = row[i + 1], row[i]
                _settle(frame, line, self.goals(frame, line))
                self.share(line)
                if self.cost(line) < before - WORTH:
                    better = True
                    continue
                row[:] = [n for n, _ in kept]
                for node, x in kept:
                    node.x = x
                self.share(line)
        return better

    def picture(self) -> list[tuple[Frame, int, list[tuple[Node, float]]]]:
        """Remember orders and places."""
        return [(f, line, [(n, n.x) for n in f.rows[line]]) for f, line in self.rows]

    def restore(self, picture: list[tuple[Frame, int, list[tuple[Node, float]]]]) -> None:
        """Go back to orders and places."""
        for frame, line, row in picture:
            frame.rows[line][:] = [node for node, _ in row]
            for node, x in row:
                node.x = x
        self.share()
        self.share()

    def cost(self, line: int | None = None) -> float:
        """Crossings, and how far nets run level; of all channels or of those around a line."""
        channels = self.touches if line is None else (line - 1, line)
        total = 0.0
        for channel in channels:
            spans = []
            for _, here in self.touches.get(channel, []):
                xs = [t.x for t in here]
                total += max(xs) - min(xs)
                up = [t.x for t in here if t.above]
                down = [t.x for t in here if not t.above]
                spans.append((min(xs), max(xs), up, down))
            for a, b in combinations(spans, 2):
                if a[0] <= b[1] and b[0] <= a[1]:
                    total += CROSSING * min(_meet(a, b), _meet(b, a))
        return total


def _weight(touch: Touch, others: list[Touch]) -> float:
    """How much straight ways are worth: most of all where a net passes two lines in a row."""
    if not isinstance(touch.at, Riser):
        return 1.0
    return 8.0 if any(isinstance(t.at, Riser) and t.above != touch.above for t in others) else 2.0


def _settle(frame: Frame, line: int, goals: Goals) -> None:
    """Place a line as near as can be to where its nodes are wanted, in their order."""
    row = frame.rows[line]
    pad = (PAD if frame.title else 0.0) + elbow(row)
    low, high = frame.low + pad, frame.high - pad
    offsets = [0.0]
    for a, b in pairwise(row):
        offsets.append(offsets[-1] + a.wide / 2 + between(a, b) + b.wide / 2)
    last = row[-1]
    end = last.wide / 2 + (LOOP * len(last.loops) if isinstance(last, Box) else 0.0)
    least, most = low + row[0].wide / 2, max(high - end - offsets[-1], low + row[0].wide / 2)
    wanted = [(goals[n][0] - o, goals[n][1]) for n, o in zip(row, offsets, strict=True)]
    for node, place, offset in zip(row, _rising(wanted), offsets, strict=True):
        node.x = min(max(place, least), most) + offset


def _meet(
    a: tuple[float, float, list[float], list[float]],
    b: tuple[float, float, list[float], list[float]],
) -> int:
    """How often two nets cross in a channel, if the first runs above the second."""
    return sum(b[0] <= x <= b[1] for x in a[3]) + sum(a[0] <= x <= a[1] for x in b[2])


def _rising(wanted: list[tuple[float, float]]) -> list[float]:
    """The nearest numbers, by weighted least squares, none of which is less than the one before.

    >>> _rising([(1.0, 1.0), (3.0, 1.0), (2.0, 1.0), (5.0, 1.0)])
    [1.0, 2.5, 2.5, 5.0]
    """
    pools: list[tuple[float, float, int]] = []
    for number, weight in wanted:
        pools.append((number, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m, i), (b, n, j) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n, i + j)]
    return [mean for mean, _, count in pools for _ in range(count)]
