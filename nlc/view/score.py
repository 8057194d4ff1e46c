"""The level score: rows are levels, fastest first; marks show where each changes in time.

In: a `System`. Out: one SVG of 1200 pixels width that follows the reader's light or dark theme. The
left part is what lives at a level; the right part is time, tokens and training steps side by side.
"""

from __future__ import annotations

import unicodedata
from xml.sax.saxutils import escape

from nlc.ir.system import Level, System
from nlc.view.formats import by_level

WIDTH, LEFT, BOXES, SCORE, STEPS = 1200, 32, 250, 700, 1010
TOKENS = 64
LINE, BOX = 34, 26

STYLE = """
  .page { fill: #ffffff } .text { fill: #1f2328 } .soft { fill: #59636e }
  .rule { stroke: #d1d9e0 } .box { fill: #eef4fb; stroke: #9db8d6 }
  .memory { fill: #fdf0e3; stroke: #d9a76a } .optimizer { fill: #f1ecfa; stroke: #b09ad6 }
  .mark { fill: #0969da } .step { fill: #8250df }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .text { fill: #e6edf3 } .soft { fill: #9198a1 }
    .rule { stroke: #3d444d } .box { fill: #14233a; stroke: #3d5f8a }
    .memory { fill: #35230f; stroke: #8a6330 } .optimizer { fill: #261c3d; stroke: #65509a }
    .mark { fill: #4493f8 } .step { fill: #ab7df8 }
  }
"""


def _wide(text: str, size: float) -> float:
    """Estimate a text's width: wide characters count as two."""
    units = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.61 for c in text)
    return units * size


def _text(x: float, y: float, text: str, kind: str, size: int, weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" class="{kind}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def as_svg(system: System) -> str:
    """Draw the level score of a system."""
    parts: list[str] = []
    parts.append(_text(LEFT, 46, system.name, "text", 24, "600"))
    title, room = system.about, WIDTH - 2 * LEFT
    while _wide(title, 15) > room:
        title = title[:-2].rstrip() + "…"
    parts.append(_text(LEFT, 72, title, "soft", 15))
    y = 112
    parts.append(_text(BOXES, y, "what changes", "soft", 13))
    parts.append(_text(SCORE, y, f"tokens 1 to {TOKENS}", "soft", 13))
    parts.append(_text(STEPS, y, "training steps 1 to 8", "soft", 13))
    y += 14
    for level, names in by_level(system):
        y = _row(parts, system, level, names, y)
    parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - LEFT}" y2="{y}" class="rule"/>')
    y += 28
    x: float = LEFT
    for kind, word in (("box", "weights"), ("memory", "memory and its states"),
                       ("optimizer", "optimizer state")):  # fmt: skip
        parts.append(f'<rect x="{x:g}" y="{y - 11}" width="14" height="14" rx="3" class="{kind}"/>')
        parts.append(_text(x + 20, y, word, "soft", 13))
        x += 44 + _wide(word, 13)
    height = y + 22
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" '
        'font-family="ui-sans-serif, system-ui, Segoe UI, Noto Sans, Noto Sans CJK SC, sans-serif">',
        f"<title>{escape(system.name)}: level score</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" class="page"/>',
        *parts,
        "</svg>",
    ]) + "\n"  # fmt: skip


def _row(parts: list[str], system: System, level: Level, names: list[str], y: float) -> float:
    """Draw one level; give where the next begins."""
    graph = system.graph
    parts.append(f'<line x1="{LEFT}" y1="{y:g}" x2="{WIDTH - LEFT}" y2="{y:g}" class="rule"/>')
    top = y + 12
    parts.append(_text(LEFT, top + 18, level.name, "text", 16, "600"))
    period = str(level.period) + (f", chunk {level.chunk}" if level.chunk > 1 else "")
    parts.append(_text(LEFT, top + 38, period, "soft", 13))
    if level.optimizer is not None:
        parts.append(_text(LEFT, top + 56, level.optimizer.rule, "soft", 13))
    x, line = float(BOXES), top
    for name in names:
        kind = graph.nodes[name]["kind"]
        style = {"weights": "box", "optimizer": "optimizer"}.get(kind, "memory")
        width = _wide(name, 13) + 18
        if x + width > SCORE - 24 and x > BOXES:
            x, line = float(BOXES), line + LINE
        parts.append(
            f'<rect x="{x:g}" y="{line:g}" width="{width:.1f}" height="{BOX}" rx="5" '
            f'class="{style}"/>'
        )
        parts.append(_text(x + 9, line + 17.5, name, "text", 13))
        x += width + 8
    bottom = max(line + BOX, top + (60 if level.optimizer else 42)) + 12
    _marks(parts, level, (top + bottom - 12) / 2)
    return bottom


def _marks(parts: list[str], level: Level, middle: float) -> None:
    unit, period = level.period.unit, level.period.count
    token = (STEPS - 40 - SCORE) / TOKENS
    step = (WIDTH - LEFT - STEPS) / 8
    if unit == "always":
        parts.append(
            f'<rect x="{SCORE}" y="{middle - 5:g}" width="{TOKENS * token:g}" height="10" rx="5" '
            'class="mark" opacity="0.35"/>'
        )
        parts.append(_text(SCORE + 8, middle - 11, "recomputed for each query", "soft", 12))
    elif unit == "never":
        parts.append(_text(SCORE, middle + 4, "never changes", "soft", 12))
    elif unit == "tokens":
        if period > TOKENS:
            parts.append(_text(SCORE, middle + 4, f"after every {period} tokens", "soft", 12))
        for t in range(period, TOKENS + 1, period):
            x = SCORE + t * token - token / 2
            big = level.chunk > 1 and t % level.chunk == 0
            high = 18 if period > 1 or big else 10
            parts.append(
                f'<rect x="{x - 1:g}" y="{middle - high / 2:g}" width="2" height="{high}" '
                'class="mark"/>'
            )
    else:
        if period > 8:
            parts.append(_text(STEPS, middle + 4, f"every {period} steps", "soft", 12))
        for t in range(period, 9, period):
            x = STEPS + t * step - step / 2
            parts.append(f'<circle cx="{x:g}" cy="{middle:g}" r="5" class="step"/>')
