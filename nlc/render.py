"""How faults are shown: text for people, JSON for programs, annotations for GitHub.

In: `Diagnostic`s. Out: a string, or for JSON a plain dict. Prints nothing, and decides nothing
about what is wrong. Source text is shown as written, except that control characters, which could
steer a terminal, are replaced, and that long lines are clipped around what is marked.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from nlc.diagnostics import Diagnostic, Label
from nlc.source import Span

# columns of source text that are shown at most
WIDTH = 100
TAB = "    "

STYLES = {
    "error": "\x1b[1;31m",
    "warning": "\x1b[1;33m",
    "other": "\x1b[1;34m",
    "hint": "\x1b[1;32m",
    "bold": "\x1b[1m",
}
RESET = "\x1b[0m"


# ---- text --------------------------------------------------------------------------------------


def render_text(diagnostics: Iterable[Diagnostic], color: bool) -> str:
    """Render faults for a terminal, one paragraph each; "" if there are none."""
    return "\n".join(_paragraph(d, _Paint(color)) for d in diagnostics)


@dataclass(frozen=True)
class _Paint:
    """Wraps words in a color, or does not."""

    on: bool

    def __call__(self, style: str, text: str) -> str:
        return f"{STYLES[style]}{text}{RESET}" if self.on and text else text


@dataclass(frozen=True)
class _Mark:
    """A stretch of one line that a label points at; `text` is "" but at the label's end."""

    line: int
    start: int
    end: int
    text: str
    primary: bool
    more: bool = False


def _paragraph(d: Diagnostic, paint: _Paint) -> str:
    head = paint(d.severity, f"{d.severity}[{d.code}]") + paint("bold", f": {printable(d.title)}")
    labels = sorted(d.labels, key=lambda label: not label.primary)
    groups = [
        (source, [mark for label in group for mark in _marks(label)])
        for source, group in groupby(labels, lambda label: label.span.source)
    ]
    numbers = [mark.line for _, marks in groups for mark in marks]
    width = len(str(max(numbers, default=0)))
    bar = paint("other", " " * (width + 2) + "|")
    lines = [head]
    for i, (source, marks) in enumerate(groups):
        start = next(label.span.start for label in labels if label.span.source is source)
        line, column = source.position(start)
        arrow = "-->" if i == 0 else ":::"
        place = f"{printable(source.name)}:{line}:{column}"
        lines += [paint("other", " " * (width + 1) + arrow) + f" {place}", bar]
        for number, group in groupby(marks, lambda mark: mark.line):
            on_line = list(group)
            lines += _line(source.line(number), number, width, on_line, d.severity, paint)
            if on_line[-1].more:
                lines.append(paint("other", " " * (width + 2) + "..."))
    if d.hint is not None:
        if groups:
            lines.append(bar)
        indent = "\n" + " " * (width + 10)
        hint = printable(d.hint, keep="\n").replace("\n", indent)
        equals = paint("other", " " * (width + 2) + "=")
        lines.append(f"{equals} {paint('hint', 'hint')}: {hint}")
    return "\n".join(lines) + "\n"


def _marks(label: Label) -> list[_Mark]:
    """Split a label into marks on single lines: one, or the first and the last line of several."""
    span = label.span
    first, start = span.source.position(span.start)
    last, end = span.source.position(max(span.start, span.end - 1))
    if first == last:
        return [_Mark(first, start - 1, max(end, start), label.text, label.primary)]
    opening = span.source.line(first)
    closing = span.source.line(last)
    indent = len(closing) - len(closing.lstrip())
    return [
        _Mark(first, start - 1, max(len(opening), start), "", label.primary, more=last > first + 1),
        _Mark(last, min(indent, end - 1), end, label.text, label.primary),
    ]


def _line(
    text: str, number: int, width: int, marks: list[_Mark], severity: str, paint: _Paint
) -> list[str]:
    """One line of source and under it a row per mark."""
    low, high = min(m.start for m in marks), max(m.end for m in marks)
    begin, stop = _window(text, low, high)
    shown = ("…" if begin else "") + _visible(text[begin:stop]) + ("…" if stop < len(text) else "")
    rows = [paint("other", f" {number:>{width}} |") + (f" {shown}" if shown else "")]
    for mark in marks:
        before = _columns(text[begin : max(mark.start, begin)]) + (1 if begin else 0)
        covered = text[max(mark.start, begin) : min(mark.end, stop)]
        arrows = ("^" if mark.primary else "-") * max(_columns(covered), 1)
        style = severity if mark.primary else "other"
        words = f"{arrows} {printable(mark.text)}".rstrip()
        gutter = paint("other", " " * (width + 2) + "|")
        rows.append(f"{gutter} {' ' * before}{paint(style, words)}")
    return rows


def _window(text: str, low: int, high: int) -> tuple[int, int]:
    """The part of a line to show: all of it, or about WIDTH columns that hold the marks' start."""
    if _columns(text) <= WIDTH:
        return 0, len(text)
    begin = 0
    if _columns(text[:high]) > WIDTH:
        begin = max(0, min(low, high - WIDTH // 2) - WIDTH // 4)
        begin = max(begin, low - WIDTH // 2)
    stop = begin
    room = WIDTH
    while stop < len(text) and (room := room - _columns(text[stop])) >= 0:
        stop += 1
    return begin, stop


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_width, _visible(text)))


def _width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _visible(text: str) -> str:
    """A line of source as shown: tabs as blanks, one replacement for each control character."""
    return "".join(TAB if c == "\t" else "�" if _steers(c) else c for c in text)


def printable(text: str, keep: str = "") -> str:
    """Return a message's text with what could steer a terminal written as an escape."""
    return "".join(c if c in keep or not _steers(c) else f"\\u{ord(c):04x}" for c in text)


def _steers(char: str) -> bool:
    """Control characters, lone surrogates, and marks that reorder text."""
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or (
        "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069"
    )


# ---- JSON --------------------------------------------------------------------------------------


def render_json(
    file: str,
    diagnostics: Iterable[Diagnostic],
    levels: object = None,
    stability: object = None,
    cost: object = None,
) -> dict[str, object]:
    """Return what `--format json` prints; the reports are null when there are errors."""
    found = list(diagnostics)
    wrong = any(d.severity == "error" for d in found)
    return {
        "file": file,
        "diagnostics": [_diagnostic(d) for d in found],
        "levels": None if wrong else levels,
        "stability": None if wrong else stability,
        "cost": None if wrong else cost,
    }


def _diagnostic(d: Diagnostic) -> dict[str, object]:
    return {
        "code": d.code,
        "severity": d.severity,
        "title": d.title,
        "labels": [
            {
                "primary": label.primary,
                "text": label.text,
                "start": _point(label.span, label.span.start),
                "end": _point(label.span, label.span.end),
            }
            for label in d.labels
        ],
        "hint": d.hint,
    }


def _point(span: Span, offset: int) -> dict[str, int]:
    line, column = span.source.position(offset)
    return {"line": line, "column": column}


# ---- GitHub ------------------------------------------------------------------------------------


def render_github(file: str, diagnostics: Iterable[Diagnostic]) -> str:
    """Return a workflow command for each fault, which GitHub shows beside the line."""
    return "".join(_annotation(file, d) + "\n" for d in diagnostics)


def _annotation(file: str, d: Diagnostic) -> str:
    properties = {"file": file}
    primary = next((label for label in d.labels if label.primary), None)
    message = d.title
    if primary is not None:
        span = primary.span
        start, end = span.source.position(span.start), span.source.position(span.end)
        properties = {
            "file": span.source.name,
            "line": str(start[0]),
            "col": str(start[1]),
            "endLine": str(end[0]),
            "endColumn": str(end[1]),
        }
        message = f"{d.title}: {primary.text}" if primary.text else d.title
    if d.hint is not None:
        message += f"\nhint: {d.hint}"
    properties["title"] = f"{d.code} {d.title}"
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{d.severity} {listed}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
