"""What is wrong with a line that does not parse, in words.

In: a `Stumble`, the place where the parser could not go on. Out: one fault. First looks at
brackets, then at the table of common mistakes (`grammar/syntax_errors.yaml`), then says what was
expected. Does not recover; `parse_text` does.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lark import Token

from nlc.diagnostics import Faults
from nlc.errors import nearest
from nlc.source import Span
from nlc.syntax.limits import MAX_NESTING
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
PARTNERS = {"RPAR": "LPAR", "RSQB": "LSQB", "RBRACE": "LBRACE"}
CLOSERS = {"(": ")", "[": "]", "{": "}", "<": ">", "||": "||"}


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


def report(stumble: Stumble, unclosed: int | None, faults: Faults) -> None:
    """Record what is wrong; `unclosed` is the depth of a clause whose `}` seems forgotten."""
    if len(stumble.brackets) >= MAX_NESTING:
        faults.error(
            "NL0187",
            f"more than {MAX_NESTING} brackets within one another",
            stumble.span,
            "one bracket too many",
            "give parts of it names of their own, on lines above",
        )
    elif not (
        _brackets(stumble, faults) or _braces(stumble, unclosed, faults) or _known(stumble, faults)
    ):
        _expected(stumble, faults)


# ---- brackets ----------------------------------------------------------------------------------


def _brackets(stumble: Stumble, faults: Faults) -> bool:
    """Record a bracket that is closed by another, never opened or never closed."""
    inner = [b for b in stumble.brackets if b.type != "LBRACE"]
    own = [b for b in inner if (b.start_pos or 0) >= stumble.line.start]
    if stumble.kind in PARTNERS:
        partner = PARTNERS[stumble.kind]
        if stumble.brackets and stumble.brackets[-1].type == partner:
            return False
        if not own:
            faults.error(
                "NL0106",
                f"`{stumble.text}` closes nothing",
                stumble.span,
                "no bracket is open here",
                f"delete it, or write the `{_opener(stumble.text)}` that it shall close",
            )
            return True
        _never_closed(stumble, own[-1], faults)
        return True
    in_head = stumble.line.word in ("block", "rule") and stumble.kind in ("ARROW", "LBRACE")
    if own and (stumble.kind == "$END" or in_head or _next_statement(stumble)):
        _never_closed(stumble, own[-1], faults)
        return True
    return False


def _opener(closer: str) -> str:
    return {")": "(", "]": "[", "}": "{"}[closer]


def _next_statement(stumble: Stumble) -> bool:
    """Say whether the token seems to begin a line of its own, in spite of an open bracket."""
    text = stumble.passage.text
    begin = text.rfind("\n", 0, stumble.offset) + 1
    column = stumble.offset - begin
    return stumble.begins_line and begin > stumble.line.start and column <= stumble.line.column


def _never_closed(stumble: Stumble, bracket: Token, faults: Faults) -> None:
    closer = CLOSERS[str(bracket)]
    where = "the text ends" if stumble.kind == "$END" else f"`{stumble.text}` comes"
    faults.error(
        "NL0104",
        f"`{bracket}` is not closed",
        token_span(stumble.passage, bracket),
        "opened here",
        f"write `{closer}` where it ends",
        (stumble.span, f"{where} before a `{closer}`"),
    )


def _braces(stumble: Stumble, unclosed: int | None, faults: Faults) -> bool:
    """Record a brace that is never closed."""
    braces = [b for b in stumble.brackets if b.type == "LBRACE"]
    if unclosed is None and not (stumble.kind == "$END" and braces):
        return False
    depth = len(braces) - 1 if unclosed is None else unclosed
    word = stumble.around[depth].word
    other = "the text ends here" if unclosed is None else "this line seems to follow it"
    place = stumble.span
    if unclosed is not None:
        start = stumble.line.start
        place = stumble.passage.span(start, start + len(stumble.line.word))
    faults.error(
        "NL0105",
        f"the `{{` of `{word}` is not closed",
        token_span(stumble.passage, braces[depth]),
        "opened here",
        f"write `}}` where `{word}` ends",
        (place, other),
    )
    return True


# ---- the table of common mistakes --------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """One row of the table; what is not given matches anything."""

    code: str
    title: str
    label: str
    hint: str
    token: re.Pattern[str] | None
    before: re.Pattern[str] | None
    after: re.Pattern[str] | None
    place: frozenset[str]
    inside: str | None
    first: bool | None
    words: tuple[str, ...]
    near: bool


@cache
def table() -> dict[str, Any]:
    """Read `syntax_errors.yaml`."""
    import yaml

    data = pkgutil.get_data("nlc.grammar", "syntax_errors.yaml")
    assert data is not None
    loaded: dict[str, Any] = yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return loaded


@cache
def mistakes() -> tuple[Mistake, ...]:
    """Return the rows of the table, in order."""

    def pattern(row: dict[str, Any], key: str) -> re.Pattern[str] | None:
        return re.compile(row[key], re.DOTALL) if key in row else None

    return tuple(
        Mistake(
            row["code"],
            row["title"],
            row["label"],
            row["hint"],
            pattern(row, "token"),
            pattern(row, "before"),
            pattern(row, "after"),
            frozenset(row.get("place", ())),
            row.get("inside"),
            row.get("first"),
            tuple(row.get("words", ())),
            row.get("near", False),
        )
        for row in table()["mistakes"]
    )


def _known(stumble: Stumble, faults: Faults) -> bool:
    """Record the first mistake of the table that fits."""
    if stumble.kind == "" and stumble.text in table()["characters"]:
        faults.error(
            "NL0102",
            f"`{stumble.text}` is not part of the language",
            stumble.span,
            "this character",
            table()["characters"][stumble.text],
        )
        return True
    return any(_fits(mistake, stumble, faults) for mistake in mistakes())


def _fits(mistake: Mistake, stumble: Stumble, faults: Faults) -> bool:
    text = "" if stumble.ends else stumble.text
    innermost = str(stumble.brackets[-1]) if stumble.brackets else ""
    if mistake.place and stumble.line.place not in mistake.place:
        return False
    if mistake.inside is not None and mistake.inside != innermost:
        return False
    if mistake.first is not None and mistake.first != stumble.begins_line:
        return False
    fields = {"token": text, "clause": stumble.line.place, "did": "", "meant": ""}
    span = stumble.span
    places = (
        (mistake.token, text, stumble.offset),
        (mistake.before, stumble.before, stumble.line.start),
        (mistake.after, stumble.after, stumble.offset),
    )
    for index, (pattern, searched, base) in enumerate(places):
        if pattern is None:
            continue
        found = (
            pattern.fullmatch(searched)
            if index == 0
            else (pattern.search(searched) if index == 1 else pattern.match(searched))
        )
        if found is None:
            return False
        fields.update({k: v or "" for k, v in found.groupdict().items()})
        if "mark" in pattern.groupindex and found.group("mark"):
            span = stumble.passage.span(base + found.start("mark"), base + found.end("mark"))
    if mistake.words:
        meant = nearest(fields.get("word", text), mistake.words)
        if meant is None and mistake.near:
            return False
        fields["meant"] = meant or ""
        fields["did"] = f"did you mean `{meant}`? " if meant else ""
    faults.error(
        mistake.code,
        mistake.title.format(**fields),
        span,
        mistake.label.format(**fields),
        mistake.hint.format(**fields),
    )
    return True


# ---- what was expected -------------------------------------------------------------------------

_OPERATORS = {"PLUS", "TIMES", "OVER", "MATMUL", "_POWER", "LESS", "AT_MOST", "EQUAL"}
_SPELLING = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a text in quotes",
    "_NL": "the end of the line",
    "$END": "the end of the text",
    "COMMA": "`,`",
    "COLON": "`:`",
    "EQUALS": "`=`",
    "ARROW": "`->`",
    "DOT": "`.`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "BARS": "`||`",
    "MORE": "`>`",
    "LESS": "`<`",
    "PLUS": "`+`",
    "MINUS": "`-`",
}
_EXPRESSION = {"NUMBER", "NAME", "LPAR", "BARS", "LESS"}


def expected_words(accepted: set[str]) -> str:
    """Return what would be accepted, in words: `a name`, `,` or `)`."""
    names: list[str] = []
    if accepted >= _EXPRESSION:
        names.append("an expression")
        accepted = accepted - _EXPRESSION - {"PLUS", "MINUS"}
    if len(accepted & _OPERATORS) > 3:
        names.append("an operator")
        accepted = accepted - _OPERATORS - {"MINUS", "MORE", "AT_LEAST", "UNEQUAL", "DOT"}
    if "TOKENS" in accepted:
        accepted = accepted - {"TOKEN", "STEP"}
    names.extend(
        sorted(_SPELLING.get(kind, f"`{kind.lower()}`") for kind in accepted if kind != "$END")
    )
    if not names:
        return "the end of the text"
    if len(names) > 8:
        names = [*names[:8], "..."]
        return ", ".join(names)
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _expected(stumble: Stumble, faults: Faults) -> None:
    """Say what stands there and what was expected."""
    accepted: set[str] = stumble.parser.accepts()
    if stumble.text == ";" or (stumble.ends and accepted == {"$END"}):
        faults.error(
            "NL0101",
            "an expression ends with its line",
            stumble.span,
            "the line ends after this",
            "end the line with an operator or a comma, and it goes on on the next",
        )
        return
    if stumble.ends:
        what, label = "the line ends too early", "something is missing after this"
        if stumble.kind == "$END":
            what = "the text ends too early"
    elif stumble.kind == "":
        what, label = f"`{stumble.text}` is not part of the language", "this character"
    else:
        what, label = f"`{stumble.text}` is not expected here", "not expected"
    code = "NL0102" if stumble.kind == "" else "NL0101"
    faults.error(code, what, stumble.span, label, f"expected: {expected_words(accepted)}")
