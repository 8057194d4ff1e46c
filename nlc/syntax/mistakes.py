"""What is wrong with a line that does not parse, in words.

In: a `Stumble`, the place where the parser could not go on. Out: one fault. First looks at
brackets, then at the table of common mistakes (`grammar/syntax_errors.yaml`), then says what was
expected. Does not recover; `parse_text` does.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from nlc.diagnostics import Faults
from nlc.errors import nearest
from nlc.syntax.brackets import report_brace, report_bracket
from nlc.syntax.layout import nesting
from nlc.syntax.limits import MAX_NESTING, MAX_TOKENS
from nlc.syntax.stumble import Stumble


def report(stumble: Stumble, unclosed: int | None, faults: Faults) -> None:
    """Record what is wrong; `unclosed` is the depth of a clause whose `}` seems forgotten."""
    if nesting(stumble.brackets) >= MAX_NESTING:
        faults.error(
            "NL0187",
            f"more than {MAX_NESTING} brackets within one another",
            stumble.span,
            "one bracket too many",
            "give parts of it names of their own, on lines above",
        )
    elif stumble.endless:
        faults.error(
            "NL0189",
            "the expression is too deep",
            stumble.span,
            f"the statement is more than {MAX_TOKENS} words long here",
            "give parts of it names of their own, on lines above",
        )
    elif report_bracket(stumble, faults) or report_brace(stumble, unclosed, faults):
        pass
    elif not _known(stumble, faults):
        _expected(stumble, faults)


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
