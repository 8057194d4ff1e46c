"""Where everything stands from top to bottom: lines, the tracks of nets between them, levels.

In: panels whose boxes and nets have their places from left to right. Out: the same with `y`s. Nets
of one channel that would lie on each other get tracks of their own, in the order that gives the
fewest crossings.
"""

from __future__ import annotations

from nlc.view.parts import (
    AFTER,
    BEFORE,
    BORDER,
    CHANNEL,
    FOOT,
    HEAD,
    PAD,
    PIN,
    TRACK,
    Band,
    Box,
    Net,
    Panel,
    touches,
)  # fmt: skip
from nlc.view.tracks import Channel, channel_of


def place_down(panel: Panel, top: float, least: dict[str, float]) -> None:
    """Place a panel from `top` on; a level is at least so high as `least` says for its name."""
    found = touches(panel)
    channels = [channel_of(found.get(c, []), c) for c in range(-1, len(panel.lines))]
    _place_lines(panel, channels, top, {})
    spare = {
        band.level.name: max(0.0, least[band.level.name] - (band.bottom - band.top))
        for band in panel.bands
    }
    _place_lines(panel, channels, top, spare)
    _place_nets(panel)


# ---- lines -------------------------------------------------------------------------------------


def _deep(tracks: dict[Net, int], before: float = BEFORE, after: float = AFTER) -> float:
    """How much room tracks take, with the way to what is above and below."""
    return before + TRACK * max(tracks.values()) + after if tracks else 0.0


def _place_lines(
    panel: Panel, channels: list[Channel], top: float, spare: dict[str, float]
) -> None:
    """Go down line by line; `spare` is what a level has to be higher than its lines."""
    panel.top = y = top
    panel.bands = _bands(panel)
    for band in panel.bands:
        band.top = y
        half = spare.get(band.level.name, 0.0) / 2
        y += BORDER + half
        for number in band.lines:
            y += _gap(channels[number], number - 1, y, number == band.lines[0])
            y = _place_line(panel, number, channels[number + 1].inner, y)
        if band.lines[-1] == len(panel.lines) - 1:
            y += _gap(channels[-1], band.lines[-1], y, is_first=True)
        y += BORDER + half
        band.bottom = y
    panel.bottom = y


def _bands(panel: Panel) -> list[Band]:
    bands: list[Band] = []
    for number, line in enumerate(panel.lines):
        if bands and bands[-1].level is line.level:
            bands[-1].lines = range(bands[-1].lines.start, number + 1)
        else:
            bands.append(Band(line.level, range(number, number + 1)))
    return bands


def _gap(channel: Channel, number: int, y: float, is_first: bool) -> float:
    """The room above a line, with tracks."""
    for net, track in channel.outer.items():
        net.tracks[number] = y + BEFORE + TRACK * track
    deep = _deep(channel.outer)
    return deep if is_first else max(CHANNEL, deep)


def _place_line(panel: Panel, number: int, inner: dict[Net, int], y: float) -> float:
    """Place the boxes of a line, with the frames that begin and end there."""
    line = panel.lines[number]
    begin = [f for f in panel.frames if f.first == number]
    if any(f.title for f in begin):
        y += HEAD
    boxes = [b for f in panel.frames for b in f.rows.get(number, []) if isinstance(b, Box)]
    line.y = y
    above = PIN if any("top" in box.pins for box in boxes) else 0.0
    for box in boxes:
        box.y = y + above - (PIN if "top" in box.pins else 0.0)
    line.bottom = y = max(box.bottom for box in boxes)
    for frame in begin:
        frame.y1 = line.y - HEAD if frame.title else frame.boxes[0].y
    for net, track in inner.items():
        net.tracks[number] = y + BEFORE + TRACK * track
    y += _deep(inner, after=4.0)
    ending = [f for f in panel.frames if f.last == number]
    foot = 0.0
    for frame in ending:
        deep = (PAD + (FOOT if frame.footer else 0.0)) if frame.title else 0.0
        frame.y2 = y + deep if frame.title else frame.boxes[0].bottom
        foot = max(foot, deep)
    return y + foot


# ---- ends and frames ---------------------------------------------------------------------------


def _place_nets(panel: Panel) -> None:
    for net in panel.nets:
        for end in net.ends:
            top, bottom = (
                (end.at.y, end.at.bottom) if isinstance(end.at, Box) else (end.at.y1, end.at.y2)
            )
            end.y = top if end.side == "top" else bottom
