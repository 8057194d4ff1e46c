"""Pieces of an SVG: texts, boxes and frames.

In: words and placed parts. Out: text of an SVG.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.sax.saxutils import escape

from nlc.view.grouping import tooltip
from nlc.view.measure import fit
from nlc.view.parts import NAME, NAME_LINE, PIN, SMALL, SMALL_LINE, Box, End, Frame, Panel

# what XML cannot hold, even escaped
FORBIDDEN = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")


def escaped(words: str) -> str:
    """Write words as the text of an element."""
    return escape(FORBIDDEN.sub("�", words))


def attribute(words: str) -> str:
    """Write words as the value of an attribute."""
    return escape(FORBIDDEN.sub("�", words), {'"': "&quot;", "\n": " "})


def text(
    x: float, y: float, words: str, size: float, style: str = "", anchor: str = "start"
) -> str:
    """Write a line of text."""
    named = f' class="{style}"' if style else ""
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{named}{where}>{escaped(words)}</text>'


def draw_frame(frame: Frame) -> Iterator[str]:
    """Draw a frame around a block."""
    if not frame.title:
        return
    wide, high = frame.x2 - frame.x1, frame.y2 - frame.y1
    yield (
        f'<rect x="{frame.x1:g}" y="{frame.y1:g}" width="{wide:g}" height="{high:g}" rx="8" '
        'class="frame"/>'
    )


def draw_name(frame: Frame) -> Iterator[str]:
    """Write the name of a block into its frame."""
    if frame.title:
        x, room = frame.name_at
        y = frame.y2 - 7 if frame.footer else frame.y1 + 15
        yield text(x, y, fit(frame.title, SMALL, room), SMALL, "soft")


# how round the corners of a box are
ROUND = {"start": 16.0, "pairs": 16.0}


def draw_box(box: Box, ends: list[End], more: str = "") -> Iterator[str]:
    """Draw a box with its texts, and what the ends at it are for."""
    kind = "elsewhere" if box.elsewhere else box.kind
    yield f'<g class="component"><title>{escaped(tooltip(box.members) + more)}</title>'
    yield rect(box.left, box.y, box.wide, box.high, kind)
    y = box.y + (PIN if "top" in box.pins else 0.0) + 1
    for line in box.title:
        y += NAME_LINE
        yield text(box.x, y, line, NAME, "bold", "middle")
    y += 1
    for line in box.about:
        y += SMALL_LINE
        yield text(box.x, y, line, SMALL, "soft", "middle")
    for end in ends:
        if end.label:
            place = box.y + 14 if end.side == "top" else box.bottom - 6
            yield text(end.x, place, end.label, SMALL, "soft", "middle")
    yield "</g>"


def rect(x: float, y: float, wide: float, high: float, kind: str) -> str:
    """Draw the form of a kind of box."""
    form = (
        f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" '
        f'rx="{min(ROUND.get(kind, 4.0), high / 2):g}" class="box {kind}"/>'
    )
    if kind == "optimizer":
        # a double border
        form += (
            f'<rect x="{x + 3:g}" y="{y + 3:g}" width="{wide - 6:g}" height="{high - 6:g}" '
            f'rx="2" class="inner {kind}"/>'
        )
    return form


def draw_boxes(panel: Panel) -> Iterator[str]:
    """Draw all boxes of a panel."""
    ends: dict[int, list[End]] = {}
    for net in panel.nets:
        for end in net.ends:
            ends.setdefault(id(end.at), []).append(end)
    for frame in panel.frames:
        for box in frame.boxes:
            yield from draw_box(box, ends.get(id(box), []))
