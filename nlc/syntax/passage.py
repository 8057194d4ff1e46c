"""A text to parse, and where each of its characters stands in the source.

In: a source, or the value of a YAML scalar. Out: `Passage`, which turns places in the parsed text
into spans of the source. Does not parse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nlc.source import Source, Span


@dataclass(frozen=True, eq=False)
class Passage:
    """`offsets[i]` is the place in `source` of `text[i]`; one more entry gives the end."""

    source: Source
    text: str = field(repr=False)
    offsets: Sequence[int] = field(repr=False)

    @staticmethod
    def whole(source: Source) -> Passage:
        """Return the passage that is all of a source."""
        return Passage(source, source.text, range(len(source.text) + 1))

    def span(self, start: int, end: int) -> Span:
        """Return the span of text[start:end] in the source; never an empty one inside the text."""
        first = self.offsets[start]
        if end <= start:
            return Span(self.source, first, first)
        return Span(self.source, first, self.offsets[end - 1] + 1)
