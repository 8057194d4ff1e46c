"""Which edges are drawn together: those of one kind and use, from or to one box.

In: a system's edges, and boxes in frames with their lines. Out: `Net`s with their ends. Every edge
is in one net, or inside one box, or goes out from a level's optimizer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nlc.ir.level_graph import EDGE_KINDS, Edge
from nlc.ir.system import System
from nlc.view.grouping import is_between_blocks, is_of_optimizer
from nlc.view.parts import Box, End, Frame, Net, Panel, Side

Pair = tuple[Box, Box]
# uses that belong to the source of an edge; others belong to its target
AT_SOURCE = ("out", "query")


@dataclass(frozen=True)
class Star:
    """Edges of one kind and use between one box and others, before boxes have their lines."""

    hub: Box
    leaving: bool
    rays: dict[Box, list[Edge]]
    role: str


@dataclass(frozen=True)
class Plan:
    """What is joined in a panel: stars, and the way of the gradient between frames."""

    stars: list[Star]
    between: list[Edge]
    owner: dict[str, Box]


def plan_nets(system: System, panel: Panel) -> Plan:
    """Find what is joined in a panel; edges within one box are given to the box."""
    owner = {c.name: box for box in panel.boxes for c in box.members if not box.elsewhere}
    again = {
        c.name: box
        for box in panel.boxes for c in box.members if box.elsewhere and not box.gradient
    }  # fmt: skip
    sources = again | owner
    by_name = {c.name: c for c in system.components}
    for box in panel.boxes:
        box.inside = []
    # by kind, use, and whether it leaves a frame
    used: dict[tuple[str, str, bool], dict[Pair, list[Edge]]]
    used = defaultdict(lambda: defaultdict(list))
    between: list[Edge] = []
    for edge in system.edges:
        source, target = by_name[edge.source], by_name[edge.target]
        if is_of_optimizer(source):
            continue
        if is_between_blocks(edge, source, target):
            between += [edge] if edge.source in owner or edge.target in owner else []
        elif edge.target in owner and edge.source in sources:
            a, b = sources[edge.source], owner[edge.target]
            if a is b:
                a.inside.append(edge)
            else:
                used[edge.kind, edge.role, a.frame is not b.frame][a, b].append(edge)
    kinds: list[str] = list(EDGE_KINDS)
    stars = [
        Star(hub, leaving, rays, key[1])
        for key, pairs in sorted(used.items(), key=lambda u: (kinds.index(u[0][0]), u[0][1:]))
        for hub, leaving, rays in _stars(pairs, key[1])
    ]
    return Plan(stars, between, owner)


def make_nets(plan: Plan, panel: Panel) -> list[Net]:
    """Make the nets of a panel; its boxes know their lines."""
    for box in panel.boxes:
        box.pins = set()
    nets = [net for star in plan.stars for net in _star(star)]
    return [*nets, _gradient(plan, panel)] if plan.between else nets


def _stars(
    pairs: dict[Pair, list[Edge]], role: str
) -> Iterator[tuple[Box, bool, dict[Box, list[Edge]]]]:
    """Split pairs of boxes into stars, the one with the most rays first.

    What has a use for a memory meets at that memory.
    """
    rest = dict(pairs)
    while rest:
        rays: Counter[tuple[Box, bool]] = Counter()
        for a, b in rest:
            if not role or role not in AT_SOURCE:
                rays[b, False] += 1
            if not role or role in AT_SOURCE:
                rays[a, True] += 1
        most = max(rays.values())
        hub, leaving = next(key for key, count in rays.items() if count == most)
        star = {
            (b if leaving else a): edges
            for (a, b), edges in rest.items() if (a if leaving else b) is hub
        }  # fmt: skip
        for other in star:
            del rest[(hub, other) if leaving else (other, hub)]
        yield hub, leaving, star


def _star(star: Star) -> Iterator[Net]:
    """Make a net upwards and a net downwards; to boxes of the same line it goes below."""
    hub = star.hub
    for side in ("top", "bottom"):
        here = {
            box: edges
            for box, edges in star.rays.items() if (box.line < hub.line) == (side == "top")
        }  # fmt: skip
        if not here:
            continue
        ends = [_end(hub, side, not star.leaving)]
        for box in here:
            entry: Side = "top" if side == "bottom" and box.line > hub.line else "bottom"
            ends.append(_end(box, entry, star.leaving))
        if star.role and hub.kind == "memory":
            ends[0].label = star.role
            hub.pins.add(ends[0].side)
        edges = [edge for found in here.values() for edge in found]
        frames = {hub.frame, *(box.frame for box in here)}
        yield Net(edges[0].kind, edges, ends, frame=hub.frame if len(frames) == 1 else None)


def _end(box: Box, side: Side, head: bool) -> End:
    return End(box, side, box.line if side == "bottom" else box.line - 1, head)


# ---- the way of the gradient from block to block -----------------------------------------------


def _gradient(plan: Plan, panel: Panel) -> Net:
    """Join all frames that the gradient passes: below the columns, or below the first shelf."""
    frames: dict[Frame, bool] = {}
    rest = next((box.frame for box in panel.boxes if box.gradient), None)
    for edge in plan.between:
        source, target = plan.owner.get(edge.source), plan.owner.get(edge.target)
        start, end = source.frame if source else rest, target.frame if target else rest
        if start is not None and end is not None:
            frames.setdefault(start, False)
            frames[end] = True
    first = min(frame.first for frame in panel.frames)
    above = panel.columns or [frame for frame in panel.frames if frame.first == first]
    middle = max(frame.last for frame in above)
    net = Net("backprop", plan.between, [])
    for frame, is_target in frames.items():
        if frame in above:
            net.ends.append(End(frame, "bottom", middle, is_target))
        else:
            net.ends.append(End(frame, "top", frame.first - 1, is_target))
    return net
