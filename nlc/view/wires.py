"""Nets as paths of an SVG.

In: a placed panel. Out: parts of an SVG. A net is drawn with a halo, so that where two cross, one
is seen to pass over the other; branches bend towards the net's hub.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlc.ir.level_graph import EDGE_KINDS, Edge
from nlc.view.drawing import escaped
from nlc.view.parts import LOOP, Box, End, Net, Panel, Touch, touches
from nlc.view.tracks import is_straight

# the corner's radius, and how long a tip is
BEND, TIP = 7.0, 9.0


def draw_nets(panel: Panel) -> Iterator[str]:
    """Draw all nets, the way of the gradient first so that the others lie on it."""
    order = ["backprop", *(kind for kind in EDGE_KINDS if kind != "backprop")]
    channels = touches(panel)
    for net in sorted(panel.nets, key=lambda net: order.index(net.kind)):
        parts: list[str] = []
        for channel in net.channels:
            here = next(t for n, t in channels[channel] if n is net)
            parts += _in_channel(net, panel, channel, here)
        path = "".join(parts)
        tips = "".join(_tip(net, end) for end in net.ends if end.head)
        yield (
            f'<g class="edge">{title(net.edges)}<path d="{path}" class="halo"/>'
            f'<path d="{path}" class="net {net.kind}"/>{tips}</g>'
        )
    for box in panel.boxes:
        for number, kind in enumerate(box.loops):
            yield _loop(box, kind, number)


def title(edges: list[Edge]) -> str:
    """Tell all edges of a net."""
    lines = [f"{e.source} → {e.target} ({e.kind}): {e.reason}" for e in edges]
    return f"<title>{escaped(chr(10).join(lines))}</title>"


def _in_channel(net: Net, panel: Panel, channel: int, here: list[Touch]) -> Iterator[str]:
    """Draw a net between two lines: up and down to what it touches, and level between."""
    if is_straight(here):
        ys = [_reach(t, panel) for t in here]
        yield f"M{here[0].x:g} {min(ys):g}V{max(ys):g}"
        return
    level = net.tracks[channel]
    low, high = min(t.x for t in here), max(t.x for t in here)
    hub = _towards_hub(net, channel, here)
    yield _level(here, low, high, level, panel)
    for touch in here:
        at_end = touch.x in (low, high) and sum(t.x == touch.x for t in here) == 1
        if at_end:
            continue
        y = _reach(touch, panel)
        if touch.x == hub:
            yield f"M{touch.x:g} {y:g}V{level:g}"
            continue
        side = 1 if hub > touch.x else -1
        bend = min(BEND, abs(hub - touch.x))
        back = level + (-bend if touch.above else bend)
        x = touch.x + side * bend
        yield f"M{touch.x:g} {y:g}V{back:g}Q{touch.x:g} {level:g} {x:g} {level:g}"


def _level(here: list[Touch], low: float, high: float, level: float, panel: Panel) -> str:
    """Draw the level part, with the corners at its ends."""
    path = ""
    bend = min(BEND, (high - low) / 2)
    for x, side in ((low, 1), (high, -1)):
        own = [t for t in here if t.x == x]
        if len(own) > 1:
            path += f"M{low:g} {level:g}" if side == 1 else f"H{high:g}"
            continue
        y = _reach(own[0], panel)
        back = level + (-bend if own[0].above else bend)
        if side == 1:
            path += f"M{x:g} {y:g}V{back:g}Q{x:g} {level:g} {x + bend:g} {level:g}"
        else:
            path += f"H{x - bend:g}Q{x:g} {level:g} {x:g} {back:g}V{y:g}"
    return path


def _towards_hub(net: Net, channel: int, here: list[Touch]) -> float:
    """The place in a channel where a net comes from its hub."""
    first = net.ends[0]
    if first.channel == channel:
        return first.x
    above = first.channel < channel
    return next((t.x for t in here if not isinstance(t.at, End) and t.above == above), first.x)


def _reach(touch: Touch, panel: Panel) -> float:
    """How far a net goes from the channel: to a box, or through a line to its middle."""
    if isinstance(touch.at, End):
        end = touch.at
        if not end.head:
            return end.y
        return end.y + (-TIP if end.side == "top" else TIP) * 0.9
    line = panel.lines[touch.at.line]
    return round((line.y + line.bottom) / 2, 1)


def _tip(net: Net, end: End) -> str:
    """Draw the tip at an end."""
    down = 1 if end.side == "bottom" else -1
    half = 5.0 if net.kind == "optimises" else 4.0
    path = f"M{end.x:g} {end.y:g}l{-half:g} {down * TIP:g}h{2 * half:g}z"
    return f'<path d="{path}" class="tip {net.kind}"/>'


def sample(x: float, y: float, kind: str) -> Iterator[str]:
    """Draw a short piece of a kind of net, for the legend."""
    half = 5.0 if kind == "optimises" else 4.0
    yield f'<path d="M{x:g} {y:g}H{x + 28 - TIP:g}" class="net {kind}"/>'
    yield f'<path d="M{x + 28:g} {y:g}l{-TIP:g} {-half:g}v{2 * half:g}z" class="tip {kind}"/>'


def _loop(box: Box, kind: str, number: int) -> str:
    """Draw a way from a box to itself, or between those in it."""
    edges = [e for e in box.inside if e.kind == kind]
    x, y = box.right, box.y + box.high / 2
    out, high = x + LOOP * (number + 1) - 4, 9.0 + 4 * number
    top, bottom = y - high, y + high
    path = (
        f"M{x:g} {top:g}H{out - BEND:g}Q{out:g} {top:g} {out:g} {top + BEND:g}"
        f"V{bottom - BEND:g}Q{out:g} {bottom:g} {out - BEND:g} {bottom:g}H{x + TIP:g}"
    )
    tip = f"M{x:g} {bottom:g}l{TIP:g} -4v8z"
    return (
        f'<g class="edge">{title(edges)}<path d="{path}" class="net {kind}"/>'
        f'<path d="{tip}" class="tip {kind}"/></g>'
    )
