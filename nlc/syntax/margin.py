"""The comments of a text, and to which statement each belongs.

In: the gaps between tokens of the text form, or the comments of a YAML file with their anchors.
Out: `Comments` for a statement or a clause with braces. A statement claims what stands above it,
behind it and within it; inner ones first, so that what is left falls to the one around them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort, insort_left
from dataclasses import dataclass, field

from nlc.syntax.tree import BLANK, Comments

_BREAKS = re.compile("[\x85\u2028\u2029]")


@dataclass(order=True)
class Note:
    """Comments at a token: above it (`anchor` is its start) or behind it (`anchor` is its end)."""

    anchor: int
    behind: bool
    lines: tuple[str, ...] = field(compare=False)


def comment_text(written: str) -> str:
    """Return what a comment says, from what is written after its `#`."""
    text = _BREAKS.sub(" ", written).rstrip()
    return text[1:] if text.startswith(" ") else text


@dataclass
class Margin:
    """All comments that no statement has claimed yet, in order."""

    notes: list[Note] = field(default_factory=list)

    def add(self, anchor: int, behind: bool, lines: tuple[str, ...]) -> None:
        """Record comments at a token."""
        if lines:
            insort(self.notes, Note(anchor, behind, lines))

    def gap(self, gap: str, end: int, start: int, after: str, before: str) -> None:
        """Record the comments between a token that ends at `end` and one that starts at `start`.

        `after` and `before` are the texts of the two tokens, empty at the ends of the file.
        """
        first, *rest = gap.split("\n")
        if not after:
            rest = [first, *rest]
        elif "#" in first:
            self.add(end, True, (comment_text(first[first.index("#") + 1 :]),))
        lines: list[str] = []
        for piece in rest[:-1] if before else rest:
            if "#" in piece:
                lines.append(comment_text(piece[piece.index("#") + 1 :]))
            elif not lines or lines[-1] != BLANK:
                lines.append(BLANK)
        closes = before in ("", "}")
        self.add(start, False, strip_blank(lines, after in ("", "{"), closes))

    def move(self, start: int, end: int, to: int) -> None:
        """Let what stands at [start, end] stand above the token that begins at `to`."""
        comments = self.statement(start, end)
        behind = () if comments.behind is None else (comments.behind,)
        lines = (*comments.above, *behind)
        if lines:
            insort_left(self.notes, Note(to, False, lines))

    def statement(self, start: int, end: int) -> Comments:
        """Claim the comments of a statement without braces."""
        above: list[str] = []
        behind: list[str] = []
        for note in self._claim(start, end):
            if note.behind and note.anchor == end:
                behind.extend(note.lines)
            elif not note.behind and note.anchor == start:
                above.extend(note.lines)
            else:
                above.extend(line for line in note.lines if line != BLANK)
        return Comments(tuple(above), "; ".join(behind) if behind else None)

    def braces(self, start: int, opening: int, end: int) -> Comments:
        """Claim the comments of a clause whose `{` stands at `opening` and whose `}` ends it."""
        head = self.statement(start, opening + 1)
        inside: list[str] = []
        behind = [] if head.behind is None else [head.behind]
        for note in self._claim(opening + 1, end):
            if note.behind and note.anchor == end and not behind:
                behind.extend(note.lines)
            else:
                inside.extend(note.lines)
        return Comments(head.above, "; ".join(behind) if behind else None, tuple(inside))

    def rest(self) -> tuple[str, ...]:
        """Claim all that is left."""
        left = [line for note in self.notes for line in note.lines]
        self.notes.clear()
        return strip_blank(left, False, True)

    def _claim(self, start: int, end: int) -> list[Note]:
        low = bisect_left(self.notes, start, key=lambda note: note.anchor)
        high = bisect_left(self.notes, end + 1, key=lambda note: note.anchor)
        claimed = self.notes[low:high]
        del self.notes[low:high]
        return claimed


def strip_blank(lines: list[str], at_start: bool, at_end: bool) -> tuple[str, ...]:
    """Drop the empty lines at the start, at the end, or both."""
    first, last = 0, len(lines)
    while at_start and first < last and lines[first] == BLANK:
        first += 1
    while at_end and last > first and lines[last - 1] == BLANK:
        last -= 1
    return tuple(lines[first:last])
