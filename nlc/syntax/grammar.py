"""The parser made from `grammar/nlc.lark`, once per process.

Out: a Lark parser (LALR(1), contextual lexer) with a start symbol for a whole spec and one for
each thing that the YAML form writes as text. Does not filter newlines; `layout` does.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from functools import cache

import lark.lexer
from lark import Lark, Token

STARTS = (
    "spec",
    "block_head",
    "expression",
    "init_value",
    "keys",
    "level_tail",
    "levels",
    "line_every",
    "line_model",
    "line_update",
    "map",
    "names",
    "period",
    "rule_head",
    "state_head",
    "sum",
    "word",
)


class _WholeWords:
    """Lets the lexer find these words in every state.

    A newline, so that the layout filter sees each. A name and the operators of two characters, so
    that `levels` is never read as `level s`, nor `==` as two `=`.
    """

    always_accept = ("_NL", "NAME", "EQUAL", "AT_MOST", "AT_LEAST", "UNEQUAL", "ARROW")

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        return stream


def grammar_text() -> str:
    """Return the text of `nlc.lark`."""
    data = pkgutil.get_data("nlc.grammar", "nlc.lark")
    assert data is not None
    return data.decode("utf-8")


def build(strict: bool = False) -> Lark:
    """Build the parser; `strict` makes every conflict of rules or words an error."""
    return Lark(
        grammar_text(),
        parser="lalr",
        lexer="contextual",
        start=list(STARTS),
        postlex=_WholeWords(),
        propagate_positions=True,
        maybe_placeholders=False,
        strict=strict,
    )


@cache
def parser() -> Lark:
    """Return the parser, built at the first call.

    Where interegular is installed Lark compares all words with each other at each start, which
    doubles the time; the tests do that once with strict=True.
    """
    present = lark.lexer.has_interegular
    lark.lexer.has_interegular = False
    try:
        return build()
    finally:
        lark.lexer.has_interegular = present
