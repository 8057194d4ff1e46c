"""From parse trees to the statements and clauses of the syntax tree.

In: Lark trees of a whole spec, or of one line of it. Out: `tree.Spec` and its parts, each with its
comments. Checks that a clause is written once and that closed words are known; looks no name up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
from nlc.syntax.quote import unquote

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


@dataclass(frozen=True)
class Head:
    """What stands before the `{` of a rule or a block."""

    name: str
    parameters: tuple[t.Parameter, ...]
    outputs: tuple[t.Target, ...] = field(default=())


class Builder(ExpressionBuilder):
    """Builds a spec, or a part of one."""

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
                "write a rule, as in `sgd(lr = 0.1)`; equations stand in `update { ... }`",
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

    # ---- declarations --------------------------------------------------------------------------

    def on_use(self, meta: Meta, children: Children) -> t.Use:
        comments = self.line_comments(meta)
        return t.Use(canonical(children[0]), span=self.at(meta), comments=comments)

    def on_dim(self, meta: Meta, children: Children) -> t.Dim:
        name, value = children
        comments = self.line_comments(meta)
        return t.Dim(canonical(name), value, span=self.at(meta), comments=comments)

    def on_dims(self, meta: Meta, children: Children) -> Clause:
        return self._clause("dims", meta, tuple(children))

    def on_system(self, meta: Meta, children: Children) -> Clause:
        about = unquote(str(children[1])) if len(children) > 1 else None
        return self._clause("system", meta, (canonical(children[0]), about))

    def on_level_tail(self, meta: Meta, children: Children) -> t.Level:
        period, *clauses = children
        options = self.once(clauses)
        chunk = options["chunk"].value if "chunk" in options else None
        optimizer = options["optimizer"].value if "optimizer" in options else None
        return t.Level("", period, chunk, optimizer, span=self.at(meta))

    def on_level(self, meta: Meta, children: Children) -> t.Level:
        tail = self.on_level_tail(meta, children[1:])
        name, comments = canonical(children[0]), self.line_comments(meta)
        return t.Level(
            name, tail.period, tail.chunk, tail.optimizer, span=tail.span, comments=comments
        )

    def on_weights(self, meta: Meta, children: Children) -> t.Weights:
        names, kind, *clauses = children
        options = self.once(clauses)
        level: str | None = None
        if "at" in options:
            (level, *more), spans = options["at"].value
            if more:
                self.faults.error(
                    "NL0135",
                    "weights stand at one level",
                    spans[1],
                    "a second level",
                    "write a line of weights for each level",
                )
        init = options["init"].value if "init" in options else None
        return t.Weights(
            names.names,
            kind,
            names.axes,
            level,
            init,
            name_spans=names.spans,
            span=self.at(meta),
            comments=self.line_comments(meta),
        )

    def on_state(self, meta: Meta, children: Children) -> t.State:
        shape = children[1] if isinstance(children[1], tuple) else None
        comments = self.line_comments(meta)
        return t.State(
            canonical(children[0]), children[-1], shape, span=self.at(meta), comments=comments
        )

    def on_state_head(self, meta: Meta, children: Children) -> tuple[str, Any]:
        return canonical(children[0]), children[1] if len(children) > 1 else None

    def on_memory(self, meta: Meta, children: Children) -> t.Memory:
        names, kind, *rest = children
        levels: tuple[str, ...] = ()
        level_spans: tuple[Span, ...] = ()
        if rest and isinstance(rest[0], Clause) and rest[0].word == "at":
            levels, level_spans = rest.pop(0).value
        written = [c for c in rest if isinstance(c, Clause)]
        found = self.once(written)
        notes = self.clause_comments(written)
        value = {word: clause.value for word, clause in found.items()}
        return t.Memory(
            names.names,
            kind,
            names.axes,
            levels,
            keys=value.get("key", ()),
            values=value.get("value", ()),
            objective=value.get("objective"),
            states=tuple(c for c in rest if isinstance(c, t.State)),
            update=value.get("update"),
            init=value.get("init"),
            reset=value.get("reset"),
            through=value.get("through"),
            slots=value.get("slots"),
            route=value.get("route"),
            select=value.get("select"),
            clauses=tuple((word, clause.span) for word, clause in found.items()),
            clause_comments=notes,
            name_spans=names.spans,
            level_spans=level_spans,
            span=self.at(meta),
            comments=self.brace_comments(meta),
        )

    def on_rule_head(self, meta: Meta, children: Children) -> Head:
        for parameter in children[1:]:
            if parameter.shape is not None:
                self.faults.error(
                    "NL0136",
                    f"the argument `{parameter.name}` of a rule has a shape",
                    parameter.span,
                    "arguments of a rule take the shape of what they are given",
                    f"write `{parameter.name}`",
                )
        return Head(canonical(children[0]), tuple(children[1:]))

    def on_rule(self, meta: Meta, children: Children) -> t.Rule:
        head, *lines = children
        return t.Rule(
            head.name,
            head.parameters,
            tuple(c for c in lines if isinstance(c, t.State)),
            tuple(c for c in lines if isinstance(c, t.Memory)),
            tuple(c for c in lines if not isinstance(c, t.State | t.Memory)),
            span=self.at(meta),
            comments=self.brace_comments(meta),
        )

    def on_block_head(self, meta: Meta, children: Children) -> Head:
        return Head(
            canonical(children[0]),
            tuple(c for c in children if isinstance(c, t.Parameter)),
            tuple(c for c in children if isinstance(c, t.Target)),
        )

    def on_block(self, meta: Meta, children: Children) -> t.Block:
        head, *lines = children
        return t.Block(
            head.name,
            head.parameters,
            head.outputs,
            tuple(c for c in lines if isinstance(c, t.Weights)),
            tuple(c for c in lines if isinstance(c, t.Memory)),
            tuple(c for c in lines if not isinstance(c, t.Weights | t.Memory)),
            span=self.at(meta),
            comments=self.brace_comments(meta),
        )

    def on_model(self, meta: Meta, children: Children) -> t.Model:
        written = [c for c in children if isinstance(c, Clause)]
        found = self.once(written)
        notes = self.clause_comments(written)
        return t.Model(
            found["vocab"].value if "vocab" in found else None,
            tuple(c for c in children if not isinstance(c, Clause)),
            found["objective"].value if "objective" in found else None,
            clauses=tuple((word, clause.span) for word, clause in found.items()),
            clause_comments=notes,
            span=self.at(meta),
            comments=self.brace_comments(meta),
        )

    # ---- one line of the YAML form -------------------------------------------------------------

    def on_line_update(self, meta: Meta, children: Children) -> t.Stmt:
        return children[0]  # type: ignore[no-any-return]

    on_line_model = on_line_update

    def on_line_every(self, meta: Meta, children: Children) -> t.Period:
        return children[0]  # type: ignore[no-any-return]

    def on_word(self, meta: Meta, children: Children) -> str:
        return canonical(children[0])

    # ---- a spec --------------------------------------------------------------------------------

    def on_spec(self, meta: Meta, children: Children) -> t.Spec:
        written = [c for c in children if isinstance(c, Clause)]
        models = [c for c in children if isinstance(c, t.Model)]
        for model in models[1:]:
            self.faults.error(
                "NL0134",
                "`model` is written twice",
                model.span,
                "again here",
                "keep one of the two",
                (models[0].span, "first here"),
            )
        systems = self.once(c for c in written if c.word == "system")
        name, about = systems["system"].value if systems else (None, None)
        own = self.line_comments(systems["system"].meta) if systems else t.Comments()
        dims = [c for c in written if c.word == "dims"]
        notes = _joined(self.clause_comments(dims))
        return t.Spec(
            name,
            about,
            uses=tuple(c for c in children if isinstance(c, t.Use)),
            dims=tuple(dim for clause in dims for dim in clause.value),
            levels=tuple(c for c in children if isinstance(c, t.Level)),
            rules=tuple(c for c in children if isinstance(c, t.Rule)),
            blocks=tuple(c for c in children if isinstance(c, t.Block)),
            model=models[0] if models else None,
            clauses=tuple((c.word, c.span) for c in written),
            clause_comments=notes,
            span=self.passage.span(0, len(self.passage.text)),
            comments=t.Comments(own.above, own.behind, self.margin.rest()),
        )


def _joined(notes: tuple[tuple[str, t.Comments], ...]) -> tuple[tuple[str, t.Comments], ...]:
    """Return the comments of several `dims` as those of one."""
    if len(notes) < 2:
        return notes
    above: list[str] = []
    inside: list[str] = []
    for _, comments in notes:
        above.extend(comments.above)
        if comments.behind is not None:
            above.append(comments.behind)
        inside.extend(comments.inside)
    return (("dims", t.Comments(tuple(above), None, tuple(inside))),)


def _count(items: tuple[Any, ...], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"
