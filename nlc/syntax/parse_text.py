"""From the text form to the syntax tree.

In: a source, or a passage of one and what it shall be (an expression, a map, a line). Out: the
tree, with spans and comments; or `SpecError` with all faults of syntax. After a fault reading goes
on at the next line of the same depth. Looks no name up; reads no file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lark import Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from nlc.diagnostics import Faults
from nlc.source import Source
from nlc.syntax import tree as t
from nlc.syntax.build_clauses import Builder
from nlc.syntax.grammar import parser
from nlc.syntax.layout import Layout
from nlc.syntax.limits import MAX_ERRORS, MAX_NAME, MAX_NESTING, MAX_TOKENS
from nlc.syntax.margin import Margin
from nlc.syntax.mistakes import report
from nlc.syntax.passage import Passage
from nlc.syntax.recover import end_of_line, unclosed_before
from nlc.syntax.stumble import Line, Stumble, token_span

# what neither form can hold, not even in a comment
CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse_text(source: Source) -> t.Spec:
    """Return the tree of a text; raise `SpecError` with all its faults."""
    faults = Faults()
    spec = parse_passage(Passage.whole(source), "spec", "spec", faults)
    faults.found.sort(key=lambda fault: fault.labels[0].span.start if fault.labels else 0)
    faults.stop_on_errors()
    assert isinstance(spec, t.Spec)
    return spec


def parse_passage(
    passage: Passage, start: str, place: str, faults: Faults, margin: Margin | None = None
) -> Any:
    """Parse a passage as the grammar's `start`; None where it cannot be parsed at all.

    `place` is the kind of clause that the passage stands in, which messages speak of. Comments
    within the passage go behind its end in `margin`, where one is given.
    """
    control = CONTROL.search(passage.text)
    if control:
        faults.error(
            "NL0102",
            "a control character in the text",
            passage.span(control.start(), control.end()),
            f"the character U+{ord(control.group()):04X}",
            "delete it; a spec is plain text",
        )
        return None
    reader = _Reader(passage, start, place, faults)
    root = reader.read()
    if root is None:
        return None
    if margin is not None:
        for note in reader.margin.notes:
            margin.add(passage.offsets[len(passage.text)], True, note.lines)
        reader.margin = Margin()
    return Builder(passage, faults, reader.margin, reader.braces).build(root)


@dataclass
class _Reader:
    """Feeds tokens to the parser, and goes on after a fault."""

    passage: Passage
    start: str
    place: str
    faults: Faults
    layout: Layout = field(default_factory=Layout)
    margin: Margin = field(default_factory=Margin)
    braces: dict[int, int] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)  # the line in progress at each depth
    previous: Token | None = None
    comments_after: int = 0  # the end of the token that a comment would stand behind
    length: int = 0  # of the line in progress, in tokens
    ended: bool = False  # a fault was found at the end of the text

    def __post_init__(self) -> None:
        # Lark's driver of the parser step by step; it has no types
        self.parser: Any = parser().parse_interactive(self.passage.text, self.start)
        self.mistakes = 0

    def read(self) -> Tree[Token] | None:
        """Parse the passage; the tree lacks what could not be parsed."""
        while True:
            try:
                self._feed_all()
                self._gap(None)
                if any(token.type == "LBRACE" for token in self.layout.open):
                    raise _wrong(Token("$END", ""))
                tree: Tree[Token] = self.parser.feed_eof(self.previous)
                return tree
            except (UnexpectedToken, UnexpectedCharacters) as wrong:
                self.mistakes += 1
                if not self._go_on(self._stumble(wrong)):
                    return None

    def _feed_all(self) -> None:
        for token in self.parser.lexer_thread.lex(self.parser.parser_state):
            self.length += 1
            self._begin_line(token)
            if token.type == "RBRACE" and self.layout.innermost == "LBRACE":
                self.braces[starts_at(token)] = starts_at(self.layout.open[-1])
            if self.layout.keeps(token):
                self._limits(token)
                self.parser.feed_token(token)
                if token.type != "_NL":
                    self._gap(token)

    def _begin_line(self, token: Token) -> None:
        """Note where a line begins, and the parser's state there, to come back to."""
        last = self.layout.last
        if token.type in ("_NL", "RBRACE") or last not in ("_NL", "LBRACE", "COMMA"):
            return
        depth = self.layout.depth
        in_dims = self.layout.innermost == "LBRACE" and self.lines[depth - 1].word == "dims"
        if last == "COMMA" and not in_dims:
            return
        state = self.parser.parser_state
        place = self.lines[depth - 1].holds if depth else self.place
        del self.lines[depth:]
        self.length = 0
        start = starts_at(token)
        line = Line(
            start,
            str(token),
            place,
            list(state.state_stack),
            list(state.value_stack),
            self.passage.text.rfind("\n", 0, start) + 1,
        )
        if depth and self.lines[depth - 1].inner_column is None:
            self.lines[depth - 1].inner_column = line.column
        self.lines.append(line)

    def _limits(self, token: Token) -> None:
        if token.type == "NAME" and len(token) > MAX_NAME:
            self.faults.error(
                "NL0188",
                f"a name of {len(token)} characters",
                token_span(self.passage, token),
                f"longer than {MAX_NAME} characters",
                "choose a shorter name",
            )
        if self.layout.nesting > MAX_NESTING or self.length > MAX_TOKENS:
            raise _wrong(token)

    def _gap(self, token: Token | None) -> None:
        """Record the comments between the previous token and this one."""
        text, previous = self.passage.text, self.previous
        begin = ends_at(previous) if previous is not None else 0
        end = starts_at(token) if token is not None else len(text)
        gap = text[begin:end]
        if "#" in gap or "\n" in gap:
            after, before = str(previous or ""), str(token if token is not None else "")
            self.margin.gap(gap, self.comments_after, end, after, before)
        if token is None:
            return
        self.previous = token
        if token.type != "COMMA" or self.layout.innermost != "LBRACE":
            self.comments_after = ends_at(token)

    # ---- faults --------------------------------------------------------------------------------

    def _stumble(self, wrong: UnexpectedToken | UnexpectedCharacters) -> Stumble:
        if isinstance(wrong, UnexpectedCharacters):
            kind, offset = "", int(wrong.pos_in_stream or 0)
            text = self.passage.text[offset]
        else:
            kind, text = wrong.token.type, str(wrong.token)
            offset = len(self.passage.text) if kind == "$END" else starts_at(wrong.token)
        if kind != "$END":
            self._begin_line(Token(kind, text, start_pos=offset))
        brackets = [b for b in self.layout.open if starts_at(b) != offset]
        depth = sum(b.type == "LBRACE" for b in brackets)
        if depth < len(self.lines):
            line = self.lines[depth]
        else:
            place = self.lines[depth - 1].holds if depth else self.place
            line = Line(offset, text, place, [], [], 0)
        return Stumble(
            self.passage,
            line,
            offset,
            text,
            kind,
            brackets,
            self.lines[:depth],
            self.previous,
            self.length > MAX_TOKENS,
            self.parser,
        )

    def _go_on(self, stumble: Stumble) -> bool:
        """Record the fault and return to the next line of the same depth, if there is one."""
        unclosed = unclosed_before(stumble)
        report(stumble, unclosed, self.faults)
        if self.start != "spec" or self.mistakes >= MAX_ERRORS or self.ended:
            return False
        text = self.passage.text
        depth, line = len(stumble.around), stumble.line
        if unclosed is not None:
            depth, line = unclosed, stumble.around[unclosed]
            resume = stumble.line.start
        else:
            resume = end_of_line(text, line.start, max(stumble.offset, line.start), depth > 0)
        if stumble.offset >= len(text):
            self.ended = True
            depth, line = 0, (self.lines or [line])[0]
            resume = len(text)
        if line.states:
            state = self.parser.parser_state
            state.state_stack[:] = line.states
            state.value_stack[:] = line.values
        self.layout.return_to(depth)
        del self.lines[depth + 1 :]
        self.parser.lexer_thread.state.line_ctr.char_pos = resume
        return True


def starts_at(token: Token) -> int:
    """Return where a token begins."""
    assert token.start_pos is not None
    return token.start_pos


def ends_at(token: Token) -> int:
    """Return where a token ends."""
    assert token.end_pos is not None
    return token.end_pos


def _wrong(token: Token) -> UnexpectedToken:
    """Return the fault that the parser itself would raise at a token."""
    fault: Any = UnexpectedToken
    return fault(token, set())  # type: ignore[no-any-return]
