"""The left side of a level score: each level's name, how often it changes, and its optimizer.

In: levels and bands. Out: parts of an SVG. The states of a level's optimizer are boxes here, with
an arrow to a bracket around all that they move.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from nlc.ir.level_graph import Component, Edge
from nlc.ir.system import Level, System
from nlc.view.drawing import draw_box, text
from nlc.view.grouping import make_box
from nlc.view.measure import wrap
from nlc.view.parts import LEVEL, MARGIN, NAMES_END, SMALL, Band, Box, Panel
from nlc.view.wires import TIP, title
from nlc.view.words import amount, frequency_words

ROOM = NAMES_END - MARGIN
WORD, LINE, SPACE = 16.0, 21.0, 10.0
BRACKET = NAMES_END + 12.0
# the tip of an arrow between two states of an optimizer
SMALL_TIP = 6.0


class Names:
    """What stands at the left of each level."""

    def __init__(self, system: System):
        self.system = system
        self.boxes = {level.name: _optimizer_boxes(system, level) for level in system.levels}
        self.titles = {lv.name: wrap(lv.name, LEVEL, ROOM, 3, bold=True) for lv in system.levels}
        self.words = {lv.name: _words(system, lv) for lv in system.levels}

    def need(self, level: str) -> float:
        """How high a level is at least for its name."""
        boxes = sum(box.high + SPACE for box in self.boxes[level])
        return LINE * len(self.titles[level]) + WORD * len(self.words[level]) + boxes + 36

    def draw(self, panel: Panel) -> Iterator[str]:
        """Draw the names of all levels of a panel."""
        for band in panel.bands:
            level = band.level.name
            y = (band.top + band.bottom - self.need(level)) / 2 + 18
            for line in self.titles[level]:
                y += LINE
                yield text(MARGIN, y - 5, line, LEVEL, "bold")
            for line in self.words[level]:
                y += WORD
                yield text(MARGIN, y - 2, line, SMALL, "soft")
            for box in self.boxes[level]:
                y += SPACE
                box.x, box.y = MARGIN + box.wide / 2, round(y, 1)
                y += box.high
            if self.boxes[level]:
                yield from self._optimizer(panel, band)

    def _optimizer(self, panel: Panel, band: Band) -> Iterator[str]:
        boxes = self.boxes[band.level.name]
        moved = [
            box for box in panel.boxes
            if box.members[0].level == band.level.name
            and box.kind in ("weights", "start", "pairs") and not box.elsewhere
        ]  # fmt: skip
        edges: dict[int, list[Edge]] = defaultdict(list)
        between: list[Edge] = []
        place = {c.name: i for i, box in enumerate(boxes) for c in box.members}
        for edge in self.system.edges:
            if edge.source in place and edge.target in place:
                between.append(edge)
            elif edge.source in place:
                edges[place[edge.source]].append(edge)
        yield from _bracket(boxes, moved, edges, between)
        for box in boxes:
            yield from draw_box(box, [])


def _bracket(
    boxes: list[Box], moved: list[Box], edges: dict[int, list[Edge]], between: list[Edge]
) -> Iterator[str]:
    """Draw the way from an optimizer's states to what they move."""
    if moved:
        ys = [boxes[i].y + boxes[i].high / 2 for i in edges]
        top = min([box.y for box in moved] + [y - 8 for y in ys])
        bottom = max([box.bottom for box in moved] + [y + 8 for y in ys])
        path = f"M{BRACKET + 7:g} {top:g}H{BRACKET:g}V{bottom:g}H{BRACKET + 7:g}"
        yield f'<path d="{path}" class="bracket"/>'
    for i, found in edges.items():
        x, y = boxes[i].right, boxes[i].y + boxes[i].high / 2
        end = BRACKET
        yield (
            f'<g class="edge">{title(found)}<path d="M{x:g} {y:g}H{end - TIP:g}" '
            f'class="net optimises"/><path d="M{end:g} {y:g}l{-TIP:g} -5v10z" '
            'class="tip optimises"/></g>'
        )
    places = {c.name: i for i, box in enumerate(boxes) for c in box.members}
    ways: dict[tuple[int, int], list[Edge]] = defaultdict(list)
    for edge in between:
        ways[places[edge.source], places[edge.target]].append(edge)
    for number, ((i, j), found) in enumerate(sorted(ways.items())):
        path = _way(boxes[i], boxes[j], abs(i - j), number)
        yield f'<g class="edge">{title(found)}{path}</g>'


def _way(source: Box, target: Box, apart: int, number: int) -> str:
    """Draw how one state is read by another: to the next box, or around those between them."""
    if not apart:
        return '<path d="" class="net reads"/>'
    down = target.y > source.y
    if apart == 1:
        x = MARGIN + 14
        y = target.y if down else target.bottom
        start = source.bottom if down else source.y
        back = -SMALL_TIP if down else SMALL_TIP
        line, tip = f"M{x:g} {start:g}V{y + back:g}", f"M{x:g} {y:g}l-4 {back:g}h8z"
    else:
        x = MARGIN - 7 - 4 * (number % 4)
        a, b = source.y + source.high / 2 + 5, target.y + target.high / 2 - 5
        line = f"M{source.left:g} {a:g}H{x:g}V{b:g}H{target.left - SMALL_TIP:g}"
        tip = f"M{target.left:g} {b:g}l{-SMALL_TIP:g} -4v8z"
    return f'<path d="{line}" class="net reads"/><path d="{tip}" class="tip reads"/>'


def _words(system: System, level: Level) -> list[str]:
    words = [str(level.period)]
    words += [f"in chunks of {level.chunk}"] if level.chunk > 1 else []
    words += [f"f = {frequency_words(level.period)}"]
    learned = sum(c.parameters * c.copies for c in system.components if c.level == level.name)
    words += [f"{amount(learned)} parameters"] if learned else []
    has_states = any(c.kind == "optimizer" and c.level == level.name for c in system.components)
    if level.optimizer is not None:
        words.append(
            f"{level.optimizer.rule}, with states:" if has_states else level.optimizer.rule
        )
    return [line for word in words for line in wrap(word, SMALL, ROOM, 2)]


def _optimizer_boxes(system: System, level: Level) -> list[Box]:
    """Make a box for each rank of an optimizer's states, which fits beneath the name."""
    ranks: dict[int, list[Component]] = defaultdict(list)
    for c in system.components:
        if c.kind == "optimizer" and c.level == level.name:
            ranks[c.rank].append(c)
    boxes = []
    for _, members in sorted(ranks.items()):
        boxes.append(make_box(tuple(members), room=ROOM))
    for box in boxes:
        box.wide = max(other.least for other in boxes)
    return boxes
