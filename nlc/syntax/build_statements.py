"""From parse trees to statements, and to the clauses within declarations.

In: Lark trees of equations and of what stands in braces. Out: `tree.Stmt`, and `Clause`s by their
words, of which `build_clauses` makes memories, levels and the model. Claims comments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lark import Token
from lark.tree import Meta

from nlc.diagnostics import Faults
from nlc.errors import nearest
from nlc.source import Span
from nlc.syntax import tree as t
from nlc.syntax.build_expressions import Children, ExpressionBuilder, canonical
from nlc.syntax.margin import Margin
from nlc.syntax.passage import Passage

THROUGH = ("full", "first_order", "stop")


@dataclass(frozen=True)
class Clause:
    """A clause within braces or at the end of a line, by its word."""

    word: str
    meta: Meta
    span: Span
    value: Any


@dataclass(frozen=True)
class Names:
    """`W_q, W_k [heads]`."""

    names: tuple[str, ...]
    spans: tuple[Span, ...]
    axes: tuple[t.Expr, ...]


class StatementBuilder(ExpressionBuilder):
    """Builds statements and clauses."""

    def __init__(
        self,
        passage: Passage,
        faults: Faults,
        margin: Margin | None = None,
        braces: Mapping[int, int] | None = None,
    ):
        super().__init__(passage, faults)
        self.margin = margin or Margin()
        self.braces = braces or {}  # the place of `{` by that of its `}`

    # ---- comments ------------------------------------------------------------------------------

    def line_comments(self, meta: Meta) -> t.Comments:
        """Claim the comments of a statement without braces."""
        return self.margin.statement(meta.start_pos, meta.end_pos)

    def brace_comments(self, meta: Meta) -> t.Comments:
        """Claim the comments of a clause with braces."""
        opening = self.braces.get(meta.end_pos - 1, meta.start_pos)
        return self.margin.braces(meta.start_pos, opening, meta.end_pos)

    def clause_comments(self, clauses: Iterable[Clause]) -> tuple[tuple[str, t.Comments], ...]:
        """Claim the comments of the clauses within braces."""
        found = []
        for clause in clauses:
            in_braces = clause.word in ("update", "dims") and isinstance(clause.value, tuple)
            claim = self.brace_comments if in_braces else self.line_comments
            comments = claim(clause.meta)
            if comments != t.Comments():
                found.append((clause.word, comments))
        return tuple(found)

    # ---- statements ----------------------------------------------------------------------------

    def on_assign(self, meta: Meta, children: Children) -> t.Assign:
        targets = tuple(c for c in children if isinstance(c, t.Target))
        values = tuple(c for c in children if not isinstance(c, t.Target))
        if len(values) not in (1, len(targets)):
            self.faults.error(
                "NL0131",
                f"{len(values)} values for {_count(targets, 'name')}",
                values[0].span.to(values[-1].span),
                _count(values, "value"),
                "write as many values as names, or one call with several results",
                (targets[0].span.to(targets[-1].span), _count(targets, "name")),
            )
        return t.Assign(targets, values, span=self.at(meta), comments=self.line_comments(meta))

    def on_share(self, meta: Meta, children: Children) -> t.Share:
        name, block = map(canonical, children)
        return t.Share(name, block, span=self.at(meta), comments=self.line_comments(meta))

    def on_every_block(self, meta: Meta, children: Children) -> t.Every:
        period, *body = children
        comments = self.brace_comments(meta)
        return t.Every(period, tuple(body), span=self.at(meta), comments=comments)

    def on_when(self, meta: Meta, children: Children) -> t.When:
        condition, *body = children
        comments = self.brace_comments(meta)
        return t.When(condition, tuple(body), span=self.at(meta), comments=comments)

    def on_repeat(self, meta: Meta, children: Children) -> t.Repeat:
        count, *body = children
        comments = self.brace_comments(meta)
        return t.Repeat(count, tuple(body), span=self.at(meta), comments=comments)

    on_repeat_sequence = on_repeat

    # ---- clauses within a line or within braces ------------------------------------------------

    def _clause(self, word: str, meta: Meta, value: Any) -> Clause:
        return Clause(word, meta, self.at(meta), value)

    def on_chunk(self, meta: Meta, children: Children) -> Clause:
        return self._clause("chunk", meta, children[0])

    def on_optimizer(self, meta: Meta, children: Children) -> Clause:
        return self._clause("optimizer", meta, self.rule_call(children[0]))

    def rule_call(self, value: t.Expr) -> t.Expr:
        """Return what is a rule's name or call; record a fault for anything else."""
        if not isinstance(value, t.Name | t.Call) or (
            isinstance(value, t.Call) and not isinstance(value.function, t.Name)
        ):
            self.faults.error(
                "NL0132",
                "a rule is expected here",
                value.span,
                "not the name of a rule with its arguments",
                "write a rule, as in `sgd(lr = 0.1)`; equations belong in `update { ... }`",
            )
        return value

    def on_names(self, meta: Meta, children: Children) -> Names:
        tokens = [c for c in children if isinstance(c, Token)]
        axes = children[-1] if isinstance(children[-1], tuple) else ()
        return Names(tuple(map(canonical, tokens)), tuple(self.at_token(c) for c in tokens), axes)

    def on_at(self, meta: Meta, children: Children) -> Clause:
        spans = tuple(self.at_token(c) for c in children)
        return self._clause("at", meta, (tuple(map(canonical, children)), spans))

    def on_levels(self, meta: Meta, children: Children) -> Clause:
        return self.on_at(meta, children)

    def on_init(self, meta: Meta, children: Children) -> Clause:
        return self._clause("init", meta, children[0])

    def on_init_value(self, meta: Meta, children: Children) -> t.Expr | t.From:
        return children[0]  # type: ignore[no-any-return]

    def on_keys(self, meta: Meta, children: Children) -> tuple[t.Expr, ...]:
        return tuple(children)

    def on_key(self, meta: Meta, children: Children) -> Clause:
        return self._clause("key", meta, tuple(children))

    def on_value(self, meta: Meta, children: Children) -> Clause:
        return self._clause("value", meta, tuple(children))

    def on_objective(self, meta: Meta, children: Children) -> Clause:
        return self._clause("objective", meta, children[0])

    def on_update_body(self, meta: Meta, children: Children) -> tuple[t.Stmt, ...]:
        return tuple(children)

    def on_update(self, meta: Meta, children: Children) -> Clause:
        (value,) = children
        return self._clause(
            "update", meta, value if isinstance(value, tuple) else self.rule_call(value)
        )

    def on_reset(self, meta: Meta, children: Children) -> Clause:
        return self._clause("reset", meta, children[0])

    def on_through(self, meta: Meta, children: Children) -> Clause:
        return self._clause("through", meta, self.through(str(children[0]), self.at(meta)))

    def through(self, word: str, span: Span) -> str:
        """Return a word after `through`; record a fault if it is none of the three."""
        if word not in THROUGH:
            meant = nearest(word, THROUGH)
            self.faults.error(
                "NL0133",
                f"`through {word}` is not known",
                span,
                "one of `full`, `first_order`, `stop` is expected",
                f"did you mean `{meant}`?" if meant else "write `through full`, the default",
            )
        return word

    def on_slots(self, meta: Meta, children: Children) -> Clause:
        return self._clause("slots", meta, children[0])

    def on_route(self, meta: Meta, children: Children) -> Clause:
        return self._clause("route", meta, children[0])

    def on_select(self, meta: Meta, children: Children) -> Clause:
        return self._clause("select", meta, children[0])

    def on_vocab(self, meta: Meta, children: Children) -> Clause:
        return self._clause("vocab", meta, children[0])

    def once(self, clauses: Iterable[Clause]) -> dict[str, Clause]:
        """Return the clauses by their words; record a fault for each that is written twice."""
        found: dict[str, Clause] = {}
        for clause in clauses:
            if clause.word in found:
                self.faults.error(
                    "NL0134",
                    f"`{clause.word}` is written twice",
                    clause.span,
                    "again here",
                    "keep one of the two",
                    (found[clause.word].span, "first here"),
                )
            else:
                found[clause.word] = clause
        return found


def _count(items: tuple[Any, ...], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"
