"""Which components share a box: those that are alike and joined with the same others.

In: a `System`. Out: groups of components, and boxes with their texts. Where a block has more boxes
at a level than one can take in, its components are compared less closely: first without their maps,
then by where they lead to, at last by their kind alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from nlc.ir.level_graph import Component, Edge
from nlc.ir.system import System
from nlc.view.measure import fit, width, wrap
from nlc.view.parts import NAME, NARROWEST, SMALL, WIDEST, Box
from nlc.view.words import amount, map_of

# how loosely components are compared at most
LOOSEST = 5
# how much a way within a level weighs beside a box, and a way of any kind
WITHIN, IN_ALL = 0.6, 0.35
# names in one box
SHOWN = 4
Cell = tuple[str, str]


def is_of_optimizer(component: Component) -> bool:
    """Say whether it is a state of a level's optimizer, which stands beside the level's name."""
    return component.kind == "optimizer"


def is_between_blocks(edge: Edge, source: Component, target: Component) -> bool:
    """Say whether an edge is the way of the gradient from block to block."""
    apart = edge.across or source.block != target.block or not source.block
    return edge.kind == "backprop" and apart


def group(system: System, most: int) -> list[tuple[Component, ...]]:
    """Group the components in blocks; a block has about `most` boxes at a level, or less."""
    parts = [c for c in system.components if not is_of_optimizer(c)]
    by_name = {c.name: c for c in parts}
    edges = [
        e for e in system.edges
        if e.source in by_name and e.target in by_name
        and not is_between_blocks(e, by_name[e.source], by_name[e.target])
    ]  # fmt: skip
    looseness: dict[Cell, int] = defaultdict(int)
    while True:
        groups = _partition(parts, edges, looseness)
        crowded = [
            cell for cell, load in _loads(groups, edges).items()
            if load > most and looseness[cell] < LOOSEST
        ]  # fmt: skip
        if not crowded:
            return groups
        looseness[crowded[0]] += 1


def _loads(groups: list[tuple[Component, ...]], edges: list[Edge]) -> dict[Cell, float]:
    """How full each block is at each level: of boxes, and of ways within it and to others."""
    owner = {c.name: i for i, members in enumerate(groups) for c in members}
    cell = [_cell(members[0]) for members in groups]
    boxes: dict[Cell, int] = defaultdict(int)
    for place in cell:
        boxes[place] += 1
    inner: dict[Cell, set[tuple[int, int, str]]] = defaultdict(set)
    outer: dict[Cell, set[tuple[int, int, str]]] = defaultdict(set)
    for e in edges:
        a, b = owner[e.source], owner[e.target]
        if a == b:
            continue
        for place in {cell[a], cell[b]}:
            outer[place].add((a, b, e.kind))
        if cell[a] == cell[b]:
            inner[cell[a]].add((a, b, e.kind))
    return {
        place: max(count, len(inner[place]) * WITHIN, len(outer[place]) * IN_ALL)
        for place, count in boxes.items()
    }


def _cell(component: Component) -> Cell:
    return component.block, component.level


class Way(NamedTuple):
    """How a component is joined with another: `place` is the other's block, level and kind."""

    other: str
    place: Hashable
    same_cell: bool
    kind: str
    role: str
    leaving: bool


def _ways(parts: list[Component], edges: list[Edge]) -> dict[str, set[Way]]:
    by_name = {c.name: c for c in parts}
    ways: dict[str, set[Way]] = defaultdict(set)
    for e in edges:
        a, b = by_name[e.source], by_name[e.target]
        same = _cell(a) == _cell(b)
        # what makes keys stands apart from what makes values
        ways[a.name].add(Way(b.name, (*_cell(b), b.kind), same, e.kind, e.role, True))
        ways[b.name].add(Way(a.name, (*_cell(a), a.kind), same, e.kind, e.role, False))
    return ways


def _partition(
    parts: list[Component], edges: list[Edge], looseness: dict[Cell, int]
) -> list[tuple[Component, ...]]:
    """Compare components until no more of them turn out alike."""
    ways = _ways(parts, edges)
    found: list[tuple[Component, ...]] = [(c,) for c in parts]
    for _ in parts:
        group_of = {c.name: members[0].name for members in found for c in members}
        marks: dict[Hashable, list[Component]] = defaultdict(list)
        for c in parts:
            marks[_mark(c, ways[c.name], looseness[_cell(c)], group_of)].append(c)
        named = [tuple(members) for members in marks.values()]
        if named == found:
            break
        found = named
    return found


def _mark(c: Component, ways: set[Way], looseness: int, group_of: dict[str, str]) -> Hashable:
    """What a component must share with others of its box."""
    frame = (c.block or c.name, c.level, c.rank, c.kind)
    outer = [w for w in ways if not w.same_cell]
    match looseness:
        case 0 | 1 if c.kind == "memory" or not ways:
            return c.name
        case 0:
            same = frozenset((group_of[w.other], w.kind, w.role, w.leaving) for w in ways)
            return (*frame, c.map, c.lead, same)
        case 1:
            far = frozenset((group_of[w.other], w.kind, w.role, w.leaving) for w in outer)
            return (*frame, far, frozenset((w.kind, w.leaving) for w in ways if w.same_cell))
        case 2:
            return (*frame, frozenset((w.place, w.kind, w.role, w.leaving) for w in outer))
        case 3:
            return (*frame, frozenset((w.place, w.kind, w.leaving) for w in outer))
        case 4:
            return (*frame, frozenset((w.kind, w.leaving) for w in outer))
        case _:
            return frame


# ---- boxes -------------------------------------------------------------------------------------


def make_box(members: tuple[Component, ...], room: float = WIDEST) -> Box:
    """Make a box with its texts, no wider than `room`."""
    inner = room - 16
    labels = [_label(c) for c in members]
    if len(labels) == 1:
        title = wrap(labels[0], NAME, inner, 2, bold=True)
    else:
        title = [_names(labels, inner)]
    about = wrap(_about(members), SMALL, inner, 2)
    wide = max(
        max(width(line, NAME, bold=True) for line in title),
        max((width(line, SMALL) for line in about), default=0.0),
    )
    least = round(min(room, max(NARROWEST, wide + 16)), 1)
    box = Box(members, title, about or [""], least, wide=least)
    box.high = box.plain
    return box


def _label(component: Component) -> str:
    """The name of a component where it stands: of an optimizer's state without the rule's."""
    if is_of_optimizer(component):
        return component.name.rsplit(".", 1)[1]
    return component.label


def _names(labels: list[str], room: float) -> str:
    """List as many names as there is room for: `W_q, W_k, W_v, +4`."""
    for shown in range(min(len(labels), SHOWN), 0, -1):
        more = len(labels) - shown
        words = ", ".join([*labels[:shown], *([f"+{more}"] if more else [])])
        if more != 1 and width(words, NAME, bold=True) <= room:
            return words
    words = f", +{len(labels) - 1}"
    return fit(labels[0], NAME, room - width(words, NAME, bold=True), bold=True) + words


def _about(members: tuple[Component, ...]) -> str:
    first = members[0]
    if first.kind == "optimizer":
        return ", ".join(dict.fromkeys(c.map for c in members))
    if len(members) == 1:
        return map_of(first)
    total = amount(sum(c.size for c in members))
    if len({map_of(c) for c in members}) == 1:
        return f"{len(members)} × {map_of(first)}"
    words = {c.map.split(" ")[0] for c in members}
    what = f"{words.pop()}s" if len(words) == 1 else "maps"
    return f"{len(members)} {what}, {total}"


def tooltip(members: Iterable[Component]) -> str:
    """Tell all of a box."""
    lines = []
    for c in members:
        learned = f", {amount(c.parameters)} parameters" if c.parameters else ""
        copies = f", {c.copies} copies" if c.copies > 1 else ""
        lines.append(f"{c.name}: {c.kind}, {map_of(c)}{learned}{copies}")
    return "\n".join(lines)
