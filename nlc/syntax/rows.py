"""Rows of text, aligned: how the canonical form is laid out.

In: rows with their comments and bodies. Out: lines. Knows nothing of the language but `#`, braces
and after which words a line may be broken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nlc.syntax.tree import BLANK, Comments

NO_COMMENTS = Comments()
INDENT = "  "
WIDTH = 100
SPREAD = 4  # left sides that differ by more are not aligned
_BREAK = re.compile(r"(?:,| [-+*/@]| ->) (?! )")


@dataclass(frozen=True)
class Row:
    """A line, or `left right` with a body and `}`.

    Left sides of neighbours in one `group` are padded to one width; `apart` puts an empty line
    before it, `short` lets a body of one row stand on the line, `solid` forbids to break it.
    """

    left: str
    right: str = ""
    group: str = ""
    comments: Comments = NO_COMMENTS
    body: tuple[Row, ...] | None = None
    apart: bool = False
    short: bool = False
    solid: bool = False


def render(rows: Sequence[Row], indent: str) -> list[str]:
    """Return rows as lines."""
    lines: list[str] = []
    texts = [_text(row, width, indent) for row, width in zip(rows, _widths(rows), strict=True)]
    columns = _comment_columns(rows, texts)
    for index, row in enumerate(rows):
        lines.extend(_above(row, indent, first=index == 0))
        *before, last = texts[index]
        lines.extend(before)
        lines.append(_with_comment(last, row.comments.behind, columns[index]))
        if row.body is not None and not _one_line(row, indent):
            body = render(row.body, indent + INDENT)
            inside = comment_lines(row.comments.inside, indent + INDENT, strip=not body)
            lines.extend([*body, *inside, f"{indent}}}"])
    return lines


def comment_lines(comments: Sequence[str], indent: str, strip: bool = False) -> list[str]:
    """Return comments as lines of their own; `strip` drops an empty line at the start."""
    lines = ["" if text == BLANK else f"{indent}{comment(text)}" for text in comments]
    while strip and lines and not lines[0]:
        lines.pop(0)
    return lines


def comment(text: str) -> str:
    """Return a comment with its `#`."""
    return f"# {text}" if text and not text.startswith("#") else f"#{text}"


def _above(row: Row, indent: str, first: bool) -> list[str]:
    lines = comment_lines(row.comments.above, indent, strip=True)
    blank = row.apart or row.comments.above[:1] == (BLANK,)
    return ["", *lines] if blank and not first else lines


def _with_comment(line: str, behind: str | None, column: int) -> str:
    return line if behind is None else f"{line.ljust(column)}{comment(behind)}"


# ---- widths ------------------------------------------------------------------------------------


def _widths(rows: Sequence[Row]) -> list[int]:
    """Return to which width each left side is padded."""
    widths = [len(row.left) for row in rows]
    clauses = [len(row.left) for row in rows if row.group == "clause"]
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and _aligned(rows, widths[start:end], rows[end], rows[start]):
            end += 1
        if rows[start].group:
            shared = clauses if rows[start].group == "clause" else widths[start:end]
            widths[start:end] = [max(shared)] * (end - start)
        start = end
    return widths


def _aligned(rows: Sequence[Row], widths: Sequence[int], row: Row, first: Row) -> bool:
    """Say whether a row continues the run of aligned rows that begins with `first`."""
    if not row.group or row.group != first.group or row.apart or row.comments.above:
        return False
    every = [*widths, len(row.left)]
    return row.group != "assign" or max(every) - min(every) <= SPREAD


def _comment_columns(rows: Sequence[Row], texts: Sequence[list[str]]) -> list[int]:
    """Return the columns of the comments behind: one column within a run of lines."""
    columns = [len(lines[-1]) + 2 for lines in texts]
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and _neighbours(rows[end - 1], rows[end]):
            end += 1
        run = [i for i in range(start, end) if rows[i].comments.behind is not None]
        for index in run:
            columns[index] = max(len(texts[i][-1]) for i in run) + 2
        start = end
    return columns


def _neighbours(upper: Row, lower: Row) -> bool:
    one_line = upper.body is None and lower.body is None
    return one_line and not lower.apart and not lower.comments.above


# ---- one row -----------------------------------------------------------------------------------


def _text(row: Row, width: int, indent: str) -> list[str]:
    """Return the lines of a row's own text, without its body."""
    whole = _one_line(row, indent)
    if whole:
        return [whole]
    text = f"{indent}{row.left.ljust(width) if row.right else row.left}{row.right}"
    return [text] if row.solid else break_line(text, indent + INDENT * 2)


def _one_line(row: Row, indent: str) -> str:
    """Return a row with its body on one line, or nothing where that is not possible."""
    if row.body == () and not row.comments.inside:
        return f"{indent}{row.left}{row.right} }}"
    if not row.short or row.body is None or len(row.body) != 1 or row.comments.inside:
        return ""
    (inner,) = row.body
    if inner.body is not None or _speaks(inner.comments):
        return ""
    text = f"{indent}{row.left}{row.right} {inner.left}{inner.right} }}"
    return text if len(text) <= WIDTH else ""


def _speaks(comments: Comments) -> bool:
    return comments.behind is not None or any(line != BLANK for line in comments.above)


def break_line(text: str, indent: str) -> list[str]:
    """Break a line that is too long, after the outermost comma or operator that fits."""
    lines: list[str] = []
    while len(text) > WIDTH:
        place = _best_break(text, len(indent))
        if place is None:
            break
        lines.append(text[:place].rstrip())
        text = indent + text[place:]
    return [*lines, text]


def _best_break(text: str, least: int) -> int | None:
    """Return the last of the outermost places to break at, or None."""
    ends = {found.end() for found in _BREAK.finditer(text)}
    best: tuple[int, int] | None = None
    depth = 0
    for index, char in enumerate(text[: WIDTH + 1]):
        if index in ends and index > least + 8 and (best is None or depth <= best[0]):
            best = (depth, index)
        depth += (char in "([") - (char in ")]")
    return best[1] if best else None
