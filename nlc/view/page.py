"""A page on a system: the level score and its tables in one file of HTML that stands alone.

In: a `System`. Out: HTML without scripts, and with nothing to load.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from nlc.ir.system import System
from nlc.view.score import as_svg
from nlc.view.words import amount, filled, frequency_words, level_words, map_of

STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,"Noto Sans",
"Noto Sans CJK SC",sans-serif;margin:0 auto;max-width:1200px;padding:16px}
svg{max-width:100%;height:auto}
table{border-collapse:collapse;width:100%;margin:8px 0 28px}
th,td{text-align:left;padding:4px 12px 4px 0;border-bottom:1px solid #8884;vertical-align:top}
td.number{text-align:right;font-variant-numeric:tabular-nums}code{font-size:13px}
"""


def as_html(system: System) -> str:
    """Write the page."""
    levels = [
        [level.name, level_words(level), frequency_words(level.period), str(len(level.components))]
        for level in filled(system)
    ]
    components = [
        [c.name, c.level, c.kind, map_of(c), amount(c.parameters), str(c.copies)]
        for c in system.components
    ]
    edges = [[e.source, e.kind, e.target, e.reason] for e in system.edges]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(system.name)}</title>',
            f"<style>{STYLE}</style></head><body>",
            as_svg(system).rstrip(),
            "<h2>Levels</h2>",
            _table(["level", "changes", "frequency", "components"], levels),
            "<h2>Components</h2>",
            _table(["name", "level", "kind", "map", "parameters", "copies"], components),
            "<h2>How knowledge passes</h2>",
            _table(["from", "way", "to", "because"], edges),
            "</body></html>\n",
        ]
    )


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    titles = "".join(f"<th>{escape(word)}</th>" for word in head)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>\n<tr>{titles}</tr>\n{body}\n</table>"
