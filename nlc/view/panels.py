"""Which frames stand where: columns for blocks of several levels, shelves for the others.

In: a `System`. Out: `Panel`s with frames, lines and nets, without places. A block that lives at
several levels is a column; blocks and weights of one level stand below the columns, or are columns
too where one of the columns goes on below. What does not fit beside each other goes to a further
panel, as the lines of a score follow each other on a page; what comes from there is shown again,
as a box without a fill.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from nlc.ir.level_graph import Component
from nlc.ir.system import System
from nlc.view.grouping import group, is_between_blocks, is_of_optimizer, make_box
from nlc.view.lines import Near, fill_lines
from nlc.view.measure import width, wrap
from nlc.view.parts import NAME, SMALL, WIDEST, Box, Frame, Panel
from nlc.view.words import block_words

# boxes that a block may have at a level, by the number of columns
CROWDED = {0: 10, 1: 10, 2: 9, 3: 8}
FEWEST = 6


def make_panels(system: System) -> list[Panel]:
    """Make the panels, each with its lines filled."""
    tall = {
        block.name for block in system.blocks
        if len({c.level for c in system.components if c.block == block.name}) > 1
    }  # fmt: skip
    frames = _frames(system, tall)
    near = _neighbours(system, frames)
    columns = [f for f in frames if f.block in tall]
    flat = [f for f in frames if f.block not in tall]
    panels = []
    while columns or flat:
        panel = _next_panel(system, frames, near, columns, flat)
        panels.append(panel)
        columns = [f for f in columns if f not in panel.frames]
        flat = [f for f in flat if f not in panel.frames]
    return panels


def _next_panel(
    system: System, frames: list[Frame], near: Near, columns: list[Frame], flat: list[Frame]
) -> Panel:
    """Make a panel of as many columns as fit; what is at one level stands in the last one."""
    tries = [(columns, flat), *((columns[:n], []) for n in range(len(columns), 0, -1))]
    panel = Panel([])
    for some, rest in tries:
        panel = _panel(system, frames, some, rest)
        if fill_lines(system, panel, near):
            break
    return panel


def _panel(system: System, frames: list[Frame], columns: list[Frame], flat: list[Frame]) -> Panel:
    levels = {level.name: i for i, level in enumerate(system.levels)}
    here = [*columns, *flat]
    stubs = list(_stubs(system, frames, here)) if len(here) < len(frames) else []
    ends = max((levels[b.members[0].level] for f in columns for b in f.boxes), default=-1)
    beside = [f for f in (*flat, *stubs) if any(levels[b.members[0].level] < ends for b in f.boxes)]
    return Panel([*here, *stubs], columns=[*columns, *beside])


def _frames(system: System, tall: set[str]) -> list[Frame]:
    """Make all frames: one for each block, and one for each box of the model's own weights."""
    blocks: dict[str, list[Box]] = defaultdict(list)
    for members in group(system, CROWDED.get(len(tall), FEWEST)):
        # the names of blocks have no blanks
        blocks[members[0].block or f" {members[0].name}"].append(make_box(members))
    frames = []
    order = {block.name: i for i, block in enumerate(system.blocks)}
    for _, boxes in sorted(blocks.items(), key=lambda b: order.get(b[0], len(order))):
        first = boxes[0].members[0]
        frames.append(_framed(first.block, block_words(first), boxes))
    return frames


def _framed(block: str, title: str, boxes: list[Box]) -> Frame:
    frame = Frame(block, title, boxes)
    for box in boxes:
        box.frame = frame
    return frame


def _neighbours(system: System, frames: list[Frame]) -> Near:
    """The boxes that each is joined with, in its own block."""
    owner = {c.name: box for frame in frames for box in frame.boxes for c in box.members}
    by_name = {c.name: c for c in system.components}
    near: Near = defaultdict(list)
    for edge in system.edges:
        source, target = by_name[edge.source], by_name[edge.target]
        if is_of_optimizer(source) or is_between_blocks(edge, source, target):
            continue
        a, b = owner[edge.source], owner[edge.target]
        if a is not b and a.frame is b.frame:
            near[a] += [b] if b not in near[a] else []
            near[b] += [a] if a not in near[b] else []
    return near


def _stubs(system: System, frames: list[Frame], here: list[Frame]) -> Iterator[Frame]:
    """Show again what comes from other panels, and that the gradient passes to them."""
    owner = {c.name: box for frame in frames for box in frame.boxes for c in box.members}
    by_name = {c.name: c for c in system.components}
    inside = {c.name for frame in here for box in frame.boxes for c in box.members}
    levels = {c.level for c in system.components if c.name in inside}
    shown: set[Box] = set()
    others: list[Component] = []
    for edge in system.edges:
        source, target = by_name[edge.source], by_name[edge.target]
        if is_of_optimizer(source) or (source.name in inside) == (target.name in inside):
            continue
        if is_between_blocks(edge, source, target):
            others.append(target if source.name in inside else source)
        elif target.name in inside and owner[source.name] not in shown:
            box = owner[source.name]
            shown.add(box)
            yield _stub(box.members, box.title, f"of {box.frame.title or 'the model'}")
    if others:
        at = next((c for c in others if c.level in levels), others[0])
        frame = _stub((at,), ["other blocks"], "in another part")
        frame.boxes[0].gradient = True
        yield frame


def _stub(members: tuple[Component, ...], title: list[str], about: str) -> Frame:
    words = wrap(about, SMALL, WIDEST - 16, 2)
    texts = [width(line, NAME, bold=True) for line in title] + [width(w, SMALL) for w in words]
    box = Box(members, title, words, max(texts) + 16)
    box.elsewhere = True
    return _framed("", "", [box])
