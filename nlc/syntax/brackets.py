"""Brackets and braces that have no partner.

In: a `Stumble`. Out: a fault with the place of both, and whether there is one.
"""

from __future__ import annotations

from lark import Token

from nlc.diagnostics import Faults
from nlc.syntax.layout import CLOSING
from nlc.syntax.stumble import Stumble, token_span

CLOSERS = {"(": ")", "[": "]", "{": "}", "<": ">", "||": "||"}


def report_bracket(stumble: Stumble, faults: Faults) -> bool:
    """Record a bracket that is closed by another, never opened or never closed."""
    inner = [b for b in stumble.brackets if b.type != "LBRACE"]
    own = [b for b in inner if (b.start_pos or 0) >= stumble.line.start]
    if stumble.kind in CLOSING:
        partner = CLOSING[stumble.kind]
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


def report_brace(stumble: Stumble, unclosed: int | None, faults: Faults) -> bool:
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
