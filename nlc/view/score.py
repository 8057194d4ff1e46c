"""The level score: rows are levels, fastest first; marks show when each of them changes.

In: a `System`. Out: one SVG, 1200 pixels wide, that stands alone and follows the reader's light or
dark theme. On the left is what lives at a level, with arrows for how knowledge passes; on the right
is time, to scale: tokens for the levels of tokens, training steps for those of steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.sax.saxutils import escape

from nlc.ir.level_graph import EDGE_KINDS
from nlc.ir.system import System
from nlc.view.arrows import draw_arrows
from nlc.view.boxes import MAP_SIZE, NAME_SIZE, Band, Box, Frame, Layout, tooltip
from nlc.view.layout import lay_out
from nlc.view.marks import Scale, draw_axis, draw_marks, scale_of
from nlc.view.words import fit, frequency_words, width, wrap

PAGE, MARGIN = 1200.0, 28.0
NAMES_END = 186.0
LEAST = 104.0
# what XML cannot hold, even escaped
FORBIDDEN = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")

STYLE = """
text{font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI","Noto Sans","Noto Sans CJK SC",
"PingFang SC","Microsoft YaHei",sans-serif;fill:#1f2328}
.page{fill:#fff}.band{fill:#f6f8fa}.soft{fill:#59636e}.bold{font-weight:600}
.rule{stroke:#d1d9e0;fill:none}.frame{fill:none;stroke:#afb8c1;stroke-dasharray:3 3}
.box{stroke-width:1.2}.weights{fill:#fff;stroke:#8c959f}.memory{fill:#fff1e0;stroke:#bc6c00}
.state{fill:#fff8ee;stroke:#d19a4e}.start,.pairs{fill:#f3ecff;stroke:#8250df}
.optimizer{fill:#ffeef0;stroke:#cf222e}
.edge{fill:none;stroke-width:1.4}.backprop.edge{stroke-dasharray:4 3;stroke-width:1.1}
.optimises.edge{stroke-width:2}.initialises.edge{stroke-dasharray:1.5 2.5;stroke-width:1.8}
.generates{stroke:#1a7f37}.reads{stroke:#0969da}.initialises{stroke:#8250df}
.optimises{stroke:#cf222e}.backprop{stroke:#9a6700}
.tip.generates{fill:#1a7f37}.tip.reads{fill:#0969da}.tip.initialises{fill:#8250df}
.tip.optimises{fill:#cf222e}.tip.backprop{fill:#9a6700}.tip{stroke:none}
.time{stroke:#afb8c1;fill:none}.mark{fill:#1f2328}.thin{fill:#1f2328;opacity:.5}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.page{fill:#0d1117}.band{fill:#151b23}.soft{fill:#9198a1}
.rule{stroke:#3d444d}.frame{stroke:#656c76}
.weights{fill:#0d1117;stroke:#9198a1}.memory{fill:#3a2508;stroke:#e09b3d}
.state{fill:#241a0c;stroke:#a8742d}.start,.pairs{fill:#221a3a;stroke:#ab7df8}
.optimizer{fill:#351418;stroke:#ff7b72}
.generates{stroke:#3fb950}.reads{stroke:#58a6ff}.initialises{stroke:#bc8cff}
.optimises{stroke:#ff7b72}.backprop{stroke:#d29922}
.tip.generates{fill:#3fb950}.tip.reads{fill:#58a6ff}.tip.initialises{fill:#bc8cff}
.tip.optimises{fill:#ff7b72}.tip.backprop{fill:#d29922}
.time{stroke:#656c76}.mark,.thin{fill:#e6edf3}}
@media print{.page{fill:#fff}}
"""


def as_svg(system: System) -> str:
    """Draw the level score of a system."""
    parts = list(_title(system))
    top = 96.0 if not system.about else 84.0 + 20 * len(_about(system))
    layout = lay_out(system, top, LEAST)
    scale = scale_of(system)
    for number, band in enumerate(layout.bands):
        parts += _band(band, number, system, scale)
    for band in layout.bands:
        for row in band.rows:
            for frame in row:
                parts += _frame(frame)
    parts += draw_arrows(layout.arrows)
    for band in layout.bands:
        for row in band.rows:
            for frame in row:
                for line in frame.lines:
                    parts += [part for box in line for part in _box(box)]
    legend, high = _legend(layout, layout.bottom + 34)
    return _document(system, [*parts, *legend], high + 20)


def _document(system: System, parts: list[str], high: float) -> str:
    about = f": {system.about}" if system.about else ""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{PAGE:g}" height="{high:g}" '
        f'viewBox="0 0 {PAGE:g} {high:g}" role="img" '
        f'aria-label="{_attribute(system.name)}: levels">'
    )
    return "\n".join(
        [
            head,
            f"<title>{_escaped(system.name + about)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect width="{PAGE:g}" height="{high:g}" class="page"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _escaped(text: str) -> str:
    return escape(FORBIDDEN.sub("�", text))


def _attribute(text: str) -> str:
    return escape(FORBIDDEN.sub("�", text), {'"': "&quot;", "\n": " "})


def _text(
    x: float, y: float, words: str, size: float, style: str = "", anchor: str = "start"
) -> str:
    named = f' class="{style}"' if style else ""
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{named}{where}>{_escaped(words)}</text>'


def _about(system: System) -> list[str]:
    return wrap(system.about, 14, PAGE - 2 * MARGIN, 2)


def _title(system: System) -> Iterator[str]:
    yield _text(MARGIN, 46, fit(system.name, 23, PAGE - 2 * MARGIN), 23, "bold")
    for number, line in enumerate(_about(system)):
        yield _text(MARGIN, 70 + 20 * number, line, 14, "soft")


# ---- bands -------------------------------------------------------------------------------------


def _band(band: Band, number: int, system: System, scale: Scale) -> Iterator[str]:
    level, top, bottom = band.level, band.top, band.bottom
    if number % 2 == 0:
        yield f'<rect y="{top:g}" width="{PAGE:g}" height="{bottom - top:g}" class="band"/>'
    yield f'<path d="M0 {top:g}H{PAGE:g}M0 {bottom:g}H{PAGE:g}" class="rule"/>'
    room = NAMES_END - MARGIN
    words = [str(level.period)]
    words += [f"chunk {level.chunk}"] if level.chunk > 1 else []
    words += [f"optimizer {level.optimizer.rule}"] if level.optimizer else []
    words.append(f"frequency {frequency_words(level.period)}")
    y = (top + bottom) / 2 - (16 * len(words)) / 2
    yield _text(MARGIN, y + 4, fit(level.name, 17, room), 17, "bold")
    for place, word in enumerate(words):
        yield _text(MARGIN, y + 23 + 16 * place, fit(word, 12, room), 12, "soft")
    yield from draw_axis(band, system, scale, _text)
    yield from draw_marks(band, system, scale, _text)


def _frame(frame: Frame) -> Iterator[str]:
    if not frame.title:
        return
    yield (
        f'<rect x="{frame.x:g}" y="{frame.y:g}" width="{frame.wide:g}" height="{frame.high:g}" '
        'rx="8" class="frame"/>'
    )
    yield _text(frame.x + 9, frame.y + 14, frame.title, MAP_SIZE, "soft")


def _box(box: Box) -> Iterator[str]:
    kind = box.members[0].kind
    yield (
        f'<g><title>{_escaped(tooltip(box))}</title><rect x="{box.x:g}" y="{box.y:g}" '
        f'width="{box.wide:g}" height="{box.high:g}" rx="6" class="box {kind}"/>'
    )
    yield _text(box.middle, box.y + 17, box.title, NAME_SIZE, "bold", "middle")
    yield _text(box.middle, box.y + 32, box.about, MAP_SIZE, "soft", "middle") + "</g>"


# ---- legend ------------------------------------------------------------------------------------

BOX_WORDS = {
    "weights": "weights",
    "memory": "memory",
    "state": "its extra state",
    "start": "learned start",
    "pairs": "learned pairs",
    "optimizer": "optimizer state",
}
ARROW_WORDS = {
    "generates": "makes keys, values or gates of",
    "reads": "is read by",
    "initialises": "is the start of",
    "optimises": "moves",
    "backprop": "passes the gradient to",
}


def _legend(layout: Layout, y: float) -> tuple[list[str], float]:
    boxes = {c.kind for box in layout.boxes.values() for c in box.members}
    arrows = {arrow.kind for arrow in layout.arrows}
    parts: list[str] = []
    x = MARGIN
    for kind, words in BOX_WORDS.items():
        if kind in boxes:
            parts.append(
                f'<rect x="{x:g}" y="{y - 11:g}" width="22" height="14" rx="4" class="box {kind}"/>'
            )
            parts.append(_text(x + 29, y, words, 12))
            x += 29 + width(words, 12) + 26
    y += 26
    x = MARGIN
    for kind in EDGE_KINDS:
        if kind not in arrows:
            continue
        words = f"{kind}: {ARROW_WORDS[kind]}"
        wide = 37 + width(words, 12)
        if x + wide > PAGE - MARGIN:
            x, y = MARGIN, y + 24
        parts.append(f'<path d="M{x:g} {y - 4:g}h24" class="edge {kind}"/>')
        parts.append(f'<path d="M{x + 30:g} {y - 4:g}l-8 -3.5v7z" class="tip {kind}"/>')
        parts.append(_text(x + 37, y, words, 12))
        x += wide + 22
    return parts, y
