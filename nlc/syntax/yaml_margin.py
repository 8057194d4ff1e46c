"""The comments of a YAML text, and to which node each belongs.

In: the source and the places of its scalars and flow collections. Out: a `Margin` with what stands
above and behind them, and the comments that close a list: those indented deeper than what follows.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from nlc.syntax.margin import Margin, comment_text, strip_blank
from nlc.syntax.tree import BLANK

_COMMENT = re.compile(r"(?:^|(?<=\s))#")


@dataclass
class Closing:
    """A comment below the last line of a list or mapping, with its column."""

    anchor: int
    column: int
    text: str


@dataclass
class YamlMargin(Margin):
    """A margin that also holds closing comments."""

    closings: list[Closing] = field(default_factory=list)  # in order of their anchors

    def closing(self, start: int, end: int, column: int) -> tuple[str, ...]:
        """Claim the comments that close what stands at [start, end], `column` deep."""
        low = bisect_left(self.closings, start, key=lambda c: c.anchor)
        high = bisect_right(self.closings, end, key=lambda c: c.anchor)
        within = self.closings[low:high]
        self.closings[low:high] = [c for c in within if c.column < column]
        return strip_blank([c.text for c in within if c.column >= column], False, True)

    def rest(self) -> tuple[str, ...]:
        """Claim all that is left."""
        left = [c.text for c in self.closings]
        self.closings = []
        return (*strip_blank(left, True, True), *super().rest())


def margin_of(text: str, places: Sequence[tuple[int, int]]) -> YamlMargin:
    """Return the comments of a text whose scalars stand at `places`, in order."""
    margin = YamlMargin()
    ends = [0, *(end for _, end in places)]
    starts = [*(start for start, _ in places), len(text)]
    for index, (end, start) in enumerate(zip(ends, starts, strict=True)):
        if start > end and ("#" in text[end:start] or text.count("\n", end, start) > 1):
            last = index == len(places)
            _gap(margin, text, end, start, first=index == 0, last=last)
    return margin


def _gap(margin: YamlMargin, text: str, end: int, start: int, first: bool, last: bool) -> None:
    """Record the comments between two scalars."""
    pieces = text[end:start].split("\n")
    column = 0
    if not last:
        line = text.rfind("\n", 0, start) + 1
        column = len(text[line:]) - len(text[line:].lstrip())
    own: list[tuple[int, str]] = []
    for index, piece in enumerate(pieces):
        found = _COMMENT.search(piece)
        if index == len(pieces) - 1 and not last and found is None:
            continue
        if found is None:
            if index > 0 and not piece.strip() and index < len(pieces) - 1:
                own.append((-1, BLANK))
            continue
        words = comment_text(piece[found.end() :])
        if (index == 0 and not first) or piece[: found.start()].strip():
            margin.add(end, True, (words,))
        else:
            own.append((found.start(), words))
    closes = max((i for i, (at, _) in enumerate(own) if at > column), default=-1)
    if not first:
        for index, (at, words) in enumerate(own[: closes + 1]):
            following = next((a for a, _ in own[index : closes + 1] if a >= 0), at)
            margin.closings.append(Closing(end, following, words))
        own = own[closes + 1 :]
    lines: list[str] = []
    for _, words in own:
        if words != BLANK or not lines or lines[-1] != BLANK:
            lines.append(words)
    margin.add(start, False, strip_blank(lines, first, last))
