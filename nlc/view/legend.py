"""The legend of a level score: the kinds of boxes and of nets that are in it.

In: placed panels. Out: parts of an SVG.
"""

from __future__ import annotations

from nlc.ir.level_graph import EDGE_KINDS
from nlc.ir.system import System
from nlc.view.drawing import rect, text
from nlc.view.measure import width
from nlc.view.parts import MARGIN, PAGE, SMALL, Panel
from nlc.view.wires import sample

BOX_WORDS = {
    "weights": "weights",
    "memory": "memory",
    "state": "extra state of a memory",
    "start": "learned start",
    "pairs": "learned pairs",
    "optimizer": "states of an optimizer",
    "elsewhere": "shown in another part",
}
NET_WORDS = {
    "generates": "generates keys, values or gates",
    "reads": "is read by",
    "initialises": "is the start of",
    "optimises": "moves",
    "backprop": "passes the gradient to",
}
ROW, APART = 26.0, 28.0


def draw_legend(system: System, panels: list[Panel], y: float) -> tuple[list[str], float]:
    """Draw the legend below `y`; return also where it ends."""
    boxes = {"elsewhere" if b.elsewhere else b.kind for panel in panels for b in panel.boxes}
    boxes |= {c.kind for c in system.components if c.kind == "optimizer"}
    nets = {edge.kind for edge in system.edges}
    entries: list[list[tuple[str, str, str]]] = [
        [("box", kind, words) for kind, words in BOX_WORDS.items() if kind in boxes],
        [("net", kind, NET_WORDS[kind]) for kind in EDGE_KINDS if kind in nets],
    ]
    parts: list[str] = []
    y += 10
    for row in entries:
        x, y = MARGIN, y + (ROW if row else 0.0)
        for form, kind, words in row:
            wide = 44 + width(words, SMALL)
            if x + wide > PAGE - MARGIN:
                x, y = MARGIN, y + ROW
            if form == "box":
                parts.append(rect(x, y - 13, 28, 18, kind))
            else:
                parts += sample(x, y - 4, kind)
            parts.append(text(x + 37, y, words, SMALL))
            x += wide + APART
    return parts, y + 24
