"""Where each character of a YAML scalar stands in its source.

In: the value of a scalar and how it is written, quotes, escapes and folded lines included. Out: one
place per character and one for the end. Where the two cannot be matched, the nearest place.
"""

from __future__ import annotations

from collections.abc import Sequence

_ESCAPED = {"x": 2, "u": 4, "U": 8}


def scalar_offsets(value: str, written: str, style: str | None, start: int) -> Sequence[int]:
    """Return the places of the characters of `value`, whose written form begins at `start`."""
    if style is None and value == written:
        return range(start, start + len(value) + 1)
    places: list[int] = []
    at = _body(written, style)
    for char in value:
        at = _find(char, written, at, style)
        places.append(start + min(at, max(len(written) - 1, 0)))
        at = _after(char, written, at, style)
    places.append(start + min(at, len(written)))
    return places


def _body(written: str, style: str | None) -> int:
    """Return where the text begins: behind the quote, or below the line of `|` or `>`."""
    if style in ("'", '"'):
        return 1
    if style in ("|", ">"):
        line = written.find("\n")
        return line + 1 if line >= 0 else len(written)
    return 0


def _find(char: str, written: str, at: int, style: str | None) -> int:
    """Return where a character of the value is written, at or after `at`."""
    while at < len(written):
        found = written[at]
        if found == char or (char in " \n" and found in " \t\n"):
            return at
        if style == '"' and found == "\\":
            if written[at + 1 : at + 2] != "\n":
                return at
            at += 2  # a line that goes on
        elif found in " \t\n":
            at += 1  # indentation, which is not part of the value
        else:
            return at
    return at


def _after(char: str, written: str, at: int, style: str | None) -> int:
    """Return where the next character of the value is to be looked for."""
    if at >= len(written):
        return at
    found = written[at]
    if style == '"' and found == "\\":
        return at + 2 + _ESCAPED.get(written[at + 1 : at + 2], 0)
    if style == "'" and found == "'":
        return at + 2
    if char in " \n" and "\n" in written[at : _blank_end(written, at)]:
        return _blank_end(written, at) if style not in ("|", ">") else _next_line(written, at)
    return at + 1


def _blank_end(written: str, at: int) -> int:
    while at < len(written) and written[at] in " \t\n":
        at += 1
    return at


def _next_line(written: str, at: int) -> int:
    line = written.find("\n", at)
    return line + 1 if line >= 0 else len(written)
