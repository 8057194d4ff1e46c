"""The place where the parser could not go on.

In: what the reader knows there. Out: `Stumble`, which messages and recovery look at: the line in
progress, the clauses and brackets around it, the text before and after. Judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lark import Token

from nlc.source import Span
from nlc.syntax.passage import Passage

HOLDS = {
    "dims": "dims",
    "rule": "rule",
    "block": "block",
    "memory": "memory",
    "model": "model",
    "update": "update",
    "every": "update",
    "when": "update",
}


@dataclass
class Line:
    """A line in progress: where it begins, in which kind of clause, the parser's state there."""

    start: int
    word: str
    place: str
    states: list[Any] = field(repr=False)
    values: list[Any] = field(repr=False)
    begin: int  # of the line of text it stands on
    inner_column: int | None = None  # of the first line within its braces

    @property
    def column(self) -> int:
        """How far it is indented."""
        return self.start - self.begin

    @property
    def holds(self) -> str:
        """The kind of clause that its braces make."""
        if self.word == "repeat":
            return "model" if self.place == "model" else "update"
        return HOLDS.get(self.word, "spec")

    def first_in_text(self, text: str) -> bool:
        """Say whether nothing stands before it on its line of text."""
        return not text[self.begin : self.start].strip()


@dataclass
class Stumble:
    """The place where the parser could not go on."""

    passage: Passage
    line: Line
    offset: int
    text: str  # of the token
    kind: str  # of the token; empty for a character that begins none
    brackets: list[Token]  # open before the token
    around: list[Line]  # the heads of the clauses whose braces are open
    previous: Token | None
    endless: bool  # the line is longer than any may be
    parser: Any  # Lark's interactive parser, at the token

    @property
    def ends(self) -> bool:
        """Say whether the line or the text ends here."""
        return self.kind in ("_NL", "$END")

    @property
    def before(self) -> str:
        """The line up to the token."""
        return self.passage.text[self.line.start : self.offset]

    @property
    def after(self) -> str:
        """The text from the token on."""
        return self.passage.text[self.offset : self.offset + 200]

    @property
    def span(self) -> Span:
        """The token; where the line ends, the token before."""
        if self.ends and self.previous is not None:
            return token_span(self.passage, self.previous)
        end = min(self.offset + max(len(self.text), 1), len(self.passage.text))
        return self.passage.span(self.offset, end)

    @property
    def begins_line(self) -> bool:
        """Say whether the token is the first on its line of text."""
        begin = self.passage.text.rfind("\n", 0, self.offset) + 1
        return not self.passage.text[begin : self.offset].strip()


def token_span(passage: Passage, token: Token) -> Span:
    """Return the span of a token."""
    assert token.start_pos is not None and token.end_pos is not None
    return passage.span(token.start_pos, token.end_pos)
