"""How wide lines, frames and gutters are.

In: boxes with their widths, lines with their boxes and risers. Out: widths in pixels.
"""

from __future__ import annotations

from itertools import pairwise

from nlc.view.measure import width
from nlc.view.parts import (
    APART,
    ELBOW,
    GAP,
    LEFT,
    LOOP,
    PAD,
    PASSING,
    PORT,
    RIGHT,
    RISER,
    SMALL,
    Box,
    End,
    Frame,
    Node,
    Panel,
    Riser,
)  # fmt: skip


def port_need(end: End) -> float:
    """How much of a side an end takes."""
    return max(PORT, width(end.label, SMALL) + 9) if end.label else PORT


def between(a: Node, b: Node) -> float:
    """How far apart two neighbours in a line stand."""
    if isinstance(a, Box):
        return (GAP if isinstance(b, Box) else PASSING) + LOOP * len(a.loops)
    return PASSING if isinstance(b, Box) else RISER


def row_need(row: list[Node] | list[Box]) -> float:
    """How wide a line of a frame is."""
    nodes: list[Node] = list(row)
    total = sum(node.wide for node in nodes)
    total += sum(between(a, b) for a, b in pairwise(nodes))
    return total + (LOOP * len(nodes[-1].loops) if nodes and isinstance(nodes[-1], Box) else 0.0)


def named_need(frame: Frame) -> float:
    """How wide a frame is for its name."""
    return min(width(frame.title, SMALL) + 4, RIGHT - LEFT - 4 * PAD) if frame.title else 0.0


def padding(frame: Frame) -> float:
    """How much a frame takes besides its boxes."""
    return 2 * PAD if frame.title else 0.0


def frame_need(frame: Frame) -> float:
    """How wide a frame is, with its lines as they are."""
    widest = max(row_need(row) + 2 * elbow(row) for row in frame.rows.values())
    return max(widest, min(named_need(frame), 120.0)) + padding(frame)


def elbow(row: list[Node]) -> float:
    """How much stays free at each end of a line."""
    return ELBOW if any(isinstance(node, Riser) for node in row) else 0.0


def gutters_need(panel: Panel) -> float:
    """How wide all gutters are together."""
    return sum(gutter_need(panel, i) for i in range(len(panel.gutters)))


def gutter_need(panel: Panel, number: int) -> float:
    """How wide a gutter is: those at the ends only if nets pass there."""
    lanes = len(panel.gutters[number])
    outer = number in (0, len(panel.columns))
    return (RISER * lanes + PASSING if lanes else 0.0) + (0.0 if outer else APART)
