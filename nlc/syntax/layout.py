"""Which newlines end a statement, and which brackets are open.

In: tokens, one by one, as they are lexed. Out: whether the parser shall see them. Never looks
ahead, because a token can only be lexed in the state that the one before it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lark import Token

OPERANDS = frozenset({"NAME", "NUMBER", "STRING", "RPAR", "RSQB", "CLOSED"})
# after these a newline does not end the statement
CONTINUING = frozenset(
    {
        *("PLUS", "MINUS", "TIMES", "OVER", "MATMUL", "_POWER"),
        *("LESS", "MORE", "AT_MOST", "AT_LEAST", "EQUAL", "UNEQUAL"),
        *("COMMA", "COLON", "EQUALS", "ARROW"),
        *("_NL", "LBRACE"),
    }
)
CLOSING = {"RPAR": "LPAR", "RSQB": "LSQB", "RBRACE": "LBRACE"}


def nesting(brackets: list[Token]) -> int:
    """Return how deep braces or other brackets are nested, whichever is more."""
    braces = sum(bracket.type == "LBRACE" for bracket in brackets)
    return max(braces, len(brackets) - braces)


@dataclass
class Layout:
    """The brackets open now, outermost first, and the kind of the last token."""

    open: list[Token] = field(default_factory=list)
    last: str = "_NL"

    @property
    def depth(self) -> int:
        """How many `{` are open."""
        return sum(token.type == "LBRACE" for token in self.open)

    @property
    def nesting(self) -> int:
        """How deep the braces are nested, or the other brackets, whichever is more."""
        return nesting(self.open)

    @property
    def innermost(self) -> str:
        """The kind of the innermost open bracket, or nothing."""
        return self.open[-1].type if self.open else ""

    def keeps(self, token: Token) -> bool:
        """Take note of a token; say whether it counts. Only newlines ever do not."""
        kind = token.type
        if kind == "_NL":
            if self.last in ("_NL", "LBRACE"):
                return False
            within = self.last in CONTINUING or self.innermost not in ("", "LBRACE")
            if within and token != ";":
                return False
        elif kind in ("LPAR", "LSQB", "LBRACE"):
            self.open.append(token)
        elif kind in CLOSING:
            if self.innermost == CLOSING[kind]:
                self.open.pop()
        elif kind in ("LESS", "MORE", "BARS"):
            kind = self._angle_or_bars(token)
        self.last = kind
        return True

    def _angle_or_bars(self, token: Token) -> str:
        """Return what `<`, `>` or `||` is here: it opens, closes or compares."""
        after_operand = self.last in OPERANDS
        partner = "LESS" if token.type == "MORE" else "BARS"
        if token.type != "LESS" and after_operand and self.innermost == partner:
            self.open.pop()
            return "CLOSED"
        if token.type == "BARS" or (token.type == "LESS" and not after_operand):
            self.open.append(token)
        return token.type

    def return_to(self, depth: int) -> None:
        """Forget what is open beyond `depth` braces, as at the start of a line there."""
        kept: list[Token] = []
        for token in self.open:
            if token.type == "LBRACE" and len(kept) < depth:
                kept.append(token)
        self.open = kept
        self.last = "_NL"
