"""The level score: rows are levels, fastest first; marks show when each of them changes.

In: a `System`. Out: one SVG, 1200 pixels wide, that stands alone and follows the reader's light or
dark theme. On the left is each level's name, in the middle what lives there, with arrows for how
knowledge passes, and on the right time, to scale.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlc.ir.system import System
from nlc.view.across import place_across
from nlc.view.down import place_down
from nlc.view.drawing import attribute, draw_boxes, draw_frame, draw_name, escaped, text
from nlc.view.legend import draw_legend
from nlc.view.measure import fit, width, wrap
from nlc.view.names import Names
from nlc.view.panels import make_panels
from nlc.view.parts import ABOUT, MARGIN, PAGE, TITLE, Panel
from nlc.view.style import SCORE, STYLE
from nlc.view.time import AXIS, Timeline
from nlc.view.wires import draw_nets
from nlc.view.words import amount

ROOM = PAGE - 2 * MARGIN
# above the first level, between two panels, and above the legend
TOP, BETWEEN = 30.0, 44.0


def as_svg(system: System) -> str:
    """Draw the level score of a system."""
    head, y = _head(system)
    parts = list(head)
    names, time = Names(system), Timeline(system)
    panels = make_panels(system)
    extra = AXIS if len(panels) > 1 else 0.0
    least = {
        level.name: max(names.need(level.name), time.need(level.name) + extra)
        for level in system.levels if level.components
    }  # fmt: skip
    for number, panel in enumerate(panels):
        y += BETWEEN if number else 0.0
        place_across(panel)
        place_down(panel, y, least)
        parts += _panel(panel, names, time)
        y = panel.bottom
    if not panels:
        parts += _empty(system, y)
        y += 30
    legend, y = draw_legend(system, panels, y)
    return _document(system, [*parts, '<g class="legend">', *legend, "</g>"], y)


def _document(system: System, parts: list[str], high: float) -> str:
    about = f": {system.about}" if system.about else ""
    size = f'width="{PAGE:g}" height="{high:g}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {PAGE:g} {high:g}" '
            f'class="{SCORE}" role="img" aria-label="{attribute(system.name)}: levels">',
            f"<title>{escaped(system.name + about)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect {size} class="page"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _head(system: System) -> tuple[list[str], float]:
    """Write the title, what the system is, and its size; return also where that ends."""
    learned = sum(c.parameters * c.copies for c in system.components)
    size = f"{amount(learned)} parameters" if learned else ""
    room = ROOM - (width(size, ABOUT) + 40 if size else 0.0)
    parts = [text(MARGIN, 46, fit(system.name, TITLE, room, bold=True), TITLE, "bold")]
    if size:
        parts.append(text(PAGE - MARGIN, 46, size, ABOUT, "soft", "end"))
    y = 46.0
    for line in wrap(system.about, ABOUT, ROOM, 2):
        y += 24
        parts.append(text(MARGIN, y, line, ABOUT, "soft"))
    return parts, y + TOP


def _empty(system: System, y: float) -> Iterator[str]:
    """Say what a spec without components is for."""
    names = ", ".join(rule.name for rule in system.rules)
    words = f"Rules for other specs: {names}" if names else "Nothing lives at a level."
    yield text(MARGIN, y, fit(words, ABOUT, ROOM), ABOUT, "soft")


def _panel(panel: Panel, names: Names, time: Timeline) -> Iterator[str]:
    for band in panel.bands:
        yield f'<path d="M0 {band.top:g}H{PAGE:g}" class="rule"/>'
    yield f'<path d="M0 {panel.bottom:g}H{PAGE:g}" class="rule"/>'
    for frame in panel.frames:
        yield from draw_frame(frame)
    yield from draw_nets(panel)
    for frame in panel.frames:
        yield from draw_name(frame)
    yield from draw_boxes(panel)
    yield from names.draw(panel)
    yield from time.draw(panel.bands)
