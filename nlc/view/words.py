"""Words and widths that the views share.

In: levels, periods, components, texts. Out: short texts, and how wide a text will be drawn.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from nlc.ir.level_graph import Component
from nlc.ir.system import Level, Period, System

# a letter's width by its kind, in units of the font's size
WIDE, CAPITAL, NARROW, USUAL = 1.0, 0.68, 0.32, 0.56


def width(text: str, size: float) -> float:
    """Estimate how wide a text is drawn; Chinese, Japanese and Korean letters are square.

    >>> width("W_q", 10) < width("記憶器", 10)
    True
    """
    return size * sum(map(_letter, text))


def _letter(char: str) -> float:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0.0
    if unicodedata.east_asian_width(char) in "WF":
        return WIDE
    if char in "MWmw@%":
        return 0.86
    if char in "iljtfr.,:;'|!()[] I":
        return NARROW
    return CAPITAL if char.isupper() else USUAL


def fit(text: str, size: float, room: float) -> str:
    """Cut a text that is wider than its room, with an ellipsis.

    >>> fit("a long name indeed", 10, 60)
    'a long na…'
    """
    if width(text, size) <= room:
        return text
    while text and width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, size: float, room: float, lines: int) -> list[str]:
    """Break a text into lines at blanks, or within a word that has none; cut the last one."""
    found: list[str] = []
    rest = text.strip()
    while rest and len(found) < lines - 1 and width(rest, size) > room:
        end = len(rest)
        while end > 1 and width(rest[:end], size) > room:
            end -= 1
        blank = rest.rfind(" ", 0, end + 1)
        end = blank if blank > end // 2 else end
        found.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*found, fit(rest, size, room)] if rest else found


def frequency_words(period: Period) -> str:
    """Write how often something changes: `1 per token`, `1/16 per token`."""
    match period.unit:
        case "always":
            return "∞"
        case "never":
            return "0"
        case _:
            rate = "1" if period.count == 1 else f"1/{period.count}"
            return f"{rate} per {period.unit[:-1]}"


def level_words(level: Level) -> str:
    """Write a level's period, chunk and optimizer: `every 1 token, chunk 16`."""
    parts = [str(level.period)]
    if level.chunk > 1:
        parts.append(f"chunk {level.chunk}")
    if level.optimizer is not None:
        parts.append(level.optimizer.rule)
    return ", ".join(parts)


def amount(number: int) -> str:
    """Write a number shortly.

    >>> amount(960), amount(41_300), amount(1_234_567)
    ('960', '41.3 k', '1.2 M')
    """
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def map_of(component: Component) -> str:
    """Write a component's map with its leading axes: `mlp 64-128-64, 4 heads`."""
    return ", ".join(filter(None, (component.map, component.lead)))


def at(system: System, level: Level) -> list[Component]:
    """List the components of a level, fastest first."""
    return [c for c in system.components if c.level == level.name]


def ranks(components: Sequence[Component]) -> list[list[Component]]:
    """Split components into antichains, fastest first."""
    found: dict[int, list[Component]] = {}
    for component in components:
        found.setdefault(component.rank, []).append(component)
    return [found[rank] for rank in sorted(found)]
