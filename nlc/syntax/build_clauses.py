"""From parse trees to the declarations of the syntax tree, up to a whole spec.

In: Lark trees of a spec, or of a head or line of one. Out: `tree.Spec` and its parts, each with its
comments. Checks that what may stand once does; looks no name up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lark.tree import Meta

from nlc.source import Span
from nlc.syntax import tree as t
from nlc.syntax.build_expressions import Children, canonical
from nlc.syntax.build_statements import Clause, StatementBuilder
from nlc.syntax.quote import unquote


@dataclass(frozen=True)
class Head:
    """What stands before the `{` of a rule or a block."""

    name: str
    parameters: tuple[t.Parameter, ...]
    outputs: tuple[t.Target, ...] = field(default=())


class Builder(StatementBuilder):
    """Builds a spec, or a part of one."""

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
                    "weights are at one level",
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
