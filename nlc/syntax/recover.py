"""Where a faulty line ends, and which brace was forgotten before it.

In: the text and the place of a fault. Out: the place at which reading goes on. Judges by brackets
and by indentation, since after a fault the grammar cannot say.
"""

from __future__ import annotations

import re

from nlc.syntax.stumble import Stumble

_PIECES = re.compile(r'"(?:\\.|[^"\\\n])*"|#[^\n]*|[()\[\]{}\n;]')
_LINE_START = re.compile(r"[ \t]*(\S?)")


def end_of_line(text: str, start: int, fault: int, inside: bool = True) -> int:
    """Return where the line that begins at `start` ends, at least beyond `fault`.

    Braces within the line are skipped whole; one that closes what is around ends it, where the
    line stands `inside` of something. An open `(` or `[` holds the lines together that are
    indented deeper than the first.
    """
    indentation = _indentation(text, start)
    braces = brackets = 0
    for piece in _PIECES.finditer(text, start):
        mark, at = piece.group(), piece.start()
        if mark == "{":
            braces += 1
        elif mark == "}":
            if inside and braces == 0 and at >= fault and at > start:
                return at
            braces = max(braces - 1, 0)
        elif mark in "([":
            brackets += 1
        elif mark in ")]":
            brackets = max(brackets - 1, 0)
        elif mark in "\n;" and braces == 0 and at >= fault:
            if mark == ";":
                if brackets == 0:
                    return at + 1
                continue
            following = _LINE_START.match(text, at + 1)
            assert following is not None
            if following.group(1) == "{":
                continue
            if brackets and following.end() - 1 - (at + 1) > indentation:
                continue
            if brackets and following.group(1) in ")]":
                continue
            return at + 1
    return len(text)


def _indentation(text: str, offset: int) -> int:
    begin = text.rfind("\n", 0, offset) + 1
    found = _LINE_START.match(text, begin)
    assert found is not None
    return found.end() - 1 - begin


def unclosed_before(stumble: Stumble) -> int | None:
    """Return the depth of the outermost clause whose `}` seems forgotten before this line.

    That is so where the faulty line stands no deeper than the clause around it, although the lines
    of that clause stood deeper before.
    """
    line = stumble.line
    if stumble.kind == "RBRACE" or not line.first_in_text(stumble.passage.text):
        return None
    for depth, around in enumerate(stumble.around):
        inner = around.inner_column
        deeper = inner is not None and line.start != around.start and inner > around.column
        if deeper and line.column <= around.column:
            return depth
    return None
