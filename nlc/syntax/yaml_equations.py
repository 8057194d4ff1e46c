"""Lists of equations, from the YAML form.

In: the items of a list. Out: statements of the syntax tree with their comments. An item is a text,
or one of the mappings `every PERIOD: [...]`, `when: e` with `do: [...]`, `repeat: N` with
`equations: [...]`.
"""

from __future__ import annotations

from typing import Any

from nlc.errors import nearest
from nlc.source import Span
from nlc.syntax import tree as t
from nlc.syntax.build_statements import THROUGH
from nlc.syntax.yaml_fields import Field, Fields, is_missing
from nlc.syntax.yaml_nodes import Mapping, Node, Scalar, Sequence, span_of

# which structures may stand in the equations of a clause, besides texts
STRUCTURES = {
    "block": (),
    "model": ("repeat",),
    "rule": ("every", "when", "repeat"),
    "update": ("every", "when", "repeat"),
}
_EXAMPLES = {
    "every": "- every 4 steps: [S = 0]",
    "when": "- when: e` with `do: [S = 0]",
    "repeat": "- repeat: 4` with `equations: [S = 0]",
}


def with_rest(head: t.Comments, rest: t.Comments, inside: tuple[str, ...]) -> t.Comments:
    """Return the comments of a clause: of its head, of what no line within took, and below."""
    above = [*head.above, *(line for line in rest.above if line != t.BLANK)]
    behind = rest.behind if head.behind is None else head.behind
    if head.behind is not None and rest.behind is not None:
        above.append(rest.behind)
    return t.Comments(tuple(above), behind, inside)


class Equations(Fields):
    """Reads lists of equations."""

    def equations(
        self, field: Field | None, place: str, keep_comments: bool = False
    ) -> tuple[t.Stmt, ...]:
        """Read a list of equations; its own comments go to the first, unless they are kept."""
        if field is None:
            return ()
        example = f"{field.key.text}: [y = f(x)]"
        items = self.items(field, "a list of equations", example)
        if items and not keep_comments:
            self.margin.move(field.key.start, field.key.end, items[0].start)
        read = (self.statement(item, place) for item in items)
        return tuple(statement for statement in read if statement is not None)

    def statement(self, item: Node, place: str) -> t.Stmt | None:
        """Read one item."""
        node = self.followed(item)
        if isinstance(node, Scalar) and not is_missing(node):
            start = "line_model" if place == "model" else "line_update"
            statement: Any = self.parse(item, start, place)
            if statement is None:
                return None
            comments = self.margin.statement(item.start, item.end)
            made: t.Stmt = type(statement)(**{**vars(statement), "comments": comments})
            return made
        if isinstance(node, Mapping) and node.pairs:
            return self._structure(node, place)
        self.wrong_kind(item, "an equation", "write `- y = f(x)`")
        return None

    def _structure(self, node: Mapping, place: str) -> t.Stmt | None:
        """Read a mapping among equations."""
        first = self.followed(node.pairs[0][0])
        word = first.text.split(None, 1)[0] if isinstance(first, Scalar) and first.text else ""
        if word not in STRUCTURES[place]:
            self._no_structure(node, first, word, place)
            return None
        assert isinstance(first, Scalar)
        if word == "every" and first.text.strip() != "every":
            return self._every(node, first, place)
        keys = {"when": ("when", "do"), "repeat": ("repeat", "equations"), "every": ()}[word]
        if not keys:
            self._no_structure(node, first, word, place)
            return None
        fields = self.fields(node, f"`{word}`", keys)
        if not fields or word not in fields:
            return None
        head = fields[word]
        if keys[1] not in fields:
            self.lacks(head, keys[1], f"write `{_EXAMPLES[word]}`")
            return None
        above = self.margin.statement(head.start, head.end)
        value = self.parse(head.value, "expression" if word == "when" else "sum", place)
        body = fields[keys[1]]
        inner = self.equations(body, place)
        comments = self._around(node, body, above)
        if value is None:
            return None
        span = Span(self.source, head.start, head.end)
        if word == "when":
            return t.When(value, inner, span=span, comments=comments)
        return t.Repeat(value, inner, span=span, comments=comments)

    def _every(self, node: Mapping, first: Scalar, place: str) -> t.Stmt | None:
        fields = self.fields(node, "`every`", (first.text,))
        if not fields:
            return None
        field = fields[first.text]
        period = self.parse(first, "line_every", place)
        above = self.margin.statement(field.start, field.key.end)
        body = self.equations(field, place, keep_comments=True)
        comments = self._around(node, field, above)
        if period is None:
            return None
        return t.Every(period, body, span=span_of(first), comments=comments)

    def _around(self, node: Mapping, body: Field, head: t.Comments) -> t.Comments:
        """Claim what is left within a structure."""
        inside = self.margin.closing(node.start, node.end, self.list_column(body))
        rest = self.margin.statement(node.start, node.end)
        return with_rest(head, rest, inside)

    def list_column(self, field: Field) -> int:
        """Return how far the items of a list are indented."""
        node = self.followed(field.value)
        if isinstance(node, Sequence) and node.items and not node.flow:
            return self.column(node.items[0].start)
        return self.column(field.start) + 1

    def _no_structure(self, node: Mapping, first: Node, word: str, place: str) -> None:
        """Record a mapping that is no structure here."""
        if word in _EXAMPLES and word not in STRUCTURES[place]:
            self.faults.error(
                "NL0127",
                f"`{word}` does not belong in a {place}",
                span_of(first),
                "not at this place",
                "write it in the update of a memory or in a rule",
            )
            return
        known = STRUCTURES[place]
        meant = nearest(word, known) or (word if word in known else None)
        if meant is not None:
            hint = f"write `{_EXAMPLES[meant]}`"
        else:
            hint = "write an equation, `- y = f(x)`; in quotes where it holds `: `"
        self.faults.error(
            "NL0166",
            "a mapping where an equation is expected",
            span_of(first),
            "YAML reads this as a key",
            hint,
        )

    # ---- what rules and memories share ---------------------------------------------------------

    def rule_call(self, field: Field) -> t.Expr | None:
        """Read the name or call of a rule."""
        value: t.Expr | None = self.parse(field.value, "expression", "memory")
        if value is None:
            return None
        named = isinstance(value, t.Name)
        called = isinstance(value, t.Call) and isinstance(value.function, t.Name)
        if not named and not called:
            self.faults.error(
                "NL0132",
                "a rule is expected here",
                value.span,
                "not the name of a rule with its arguments",
                f"write a rule, as in `sgd(lr = 0.1)`, or a list of equations: `{field.key.text}:` "
                "and below it `- S = ...`",
            )
        return value

    def unknown_through(self, word: str, span: Span) -> None:
        """Record a word after `through` that is none of the three."""
        meant = nearest(word, THROUGH)
        self.faults.error(
            "NL0133",
            f"`through {word}` is not known",
            span,
            "one of `full`, `first_order`, `stop` is expected",
            f"did you mean `{meant}`?" if meant else "write `through: full`, the default",
        )
