"""From the YAML form to the syntax tree: the same tree as the text form gives.

In: a source. Out: `tree.Spec` with spans and comments; or `SpecError` with all faults of syntax.
What YAML writes as text (expressions, maps, heads) is parsed by the grammar of the text form.
"""

from __future__ import annotations

from nlc.diagnostics import Diagnostic, Faults
from nlc.source import Source, Span
from nlc.syntax import tree as t
from nlc.syntax.limits import MAX_ERRORS
from nlc.syntax.parse_text import CONTROL
from nlc.syntax.yaml_blocks import Blocks
from nlc.syntax.yaml_fields import Field, is_missing
from nlc.syntax.yaml_margin import margin_of
from nlc.syntax.yaml_nodes import (
    Node,
    Scalar,
    places_of,
    read_nodes,
    span_of,
)

KEYS = ("system", "about", "use", "dims", "levels", "rules", "blocks", "model")


def parse_yaml(source: Source) -> t.Spec:
    """Return the tree of a YAML text; raise `SpecError` with all its faults."""
    faults = Faults()
    root, unread = read_nodes(source, faults)
    spec: t.Spec | None = None
    if root is not None:
        within = Faults()
        margin = margin_of(source.text, places_of(root))
        spec = _Specs(source, within, margin).spec(root)
        faults.found.extend(f for f in within.found if not _stands_in(f, unread))
    faults.found.sort(key=lambda fault: fault.labels[0].span.start if fault.labels else 0)
    del faults.found[MAX_ERRORS:]
    faults.stop_on_errors()
    return t.Spec(None) if spec is None else spec


def _stands_in(fault: Diagnostic, values: list[tuple[int, int]]) -> bool:
    """Say whether a fault stands in one of these places."""
    start = fault.labels[0].span.start if fault.labels else -1
    return any(first <= start < end for first, end in values)


class _Specs(Blocks):
    """Reads the outermost mapping."""

    def spec(self, root: Node) -> t.Spec | None:
        """Read a whole spec."""
        fields = self.fields(root, "a spec", KEYS)
        if fields is None:
            return None
        comments = t.Comments()
        system, about = fields.get("system"), fields.get("about")
        name = self.parse(system.value, "word", "spec") if system else None
        if system:
            comments = self.margin.statement(system.start, system.end)
        if about and not system:
            self.lacks(about, "system", "name the system: `system: NAME`")
        dims, dims_comments = self._dims(fields.get("dims"))
        model = fields.get("model")
        spec = t.Spec(
            name,
            self._about(about),
            uses=self._uses(fields.get("use")),
            dims=dims,
            levels=tuple(self.level(f) for f in self.section(fields.get("levels"), "levels")),
            rules=tuple(self.rule(f) for f in self.section(fields.get("rules"), "rules")),
            blocks=tuple(self.block(f) for f in self.section(fields.get("blocks"), "blocks")),
            model=self.model(model) if model else None,
            clauses=tuple((w, fields[w].span) for w in ("system", "dims") if w in fields),
            clause_comments=dims_comments,
            span=Span(self.source, 0, len(self.source.text)),
        )
        above = list(comments.above)
        if about:
            said = self.margin.statement(about.start, about.end)
            behind = [] if said.behind is None else [said.behind]
            above.extend(line for line in [*said.above, *behind] if line != t.BLANK)
        whole = t.Comments(tuple(above), comments.behind, self.margin.rest())
        return t.Spec(**{**vars(spec), "comments": whole})

    def _about(self, field: Field | None) -> str | None:
        if field is None:
            return None
        scalar = self.scalar(field, "a sentence")
        if scalar is None:
            return None
        control = CONTROL.search(scalar.text)
        if control:
            self.faults.error(
                "NL0102",
                "a control character in the text",
                span_of(scalar),
                f"the character U+{ord(control.group()):04X}",
                "delete it; a spec is plain text",
            )
        return scalar.text

    def _uses(self, field: Field | None) -> tuple[t.Use, ...]:
        if field is None:
            return ()
        node = self.followed(field.value)
        single = isinstance(node, Scalar) and not is_missing(node)
        items = [node] if single else self.items(field, "a list of names", "use: [NAME, NAME]")
        if items:
            self.margin.move(field.key.start, field.key.end, items[0].start)
        uses = []
        for item in items:
            name = self.parse(item, "word", "spec")
            if name is not None:
                comments = self.margin.statement(item.start, item.end)
                uses.append(t.Use(name, span=span_of(item), comments=comments))
        return tuple(uses)

    def _dims(
        self, field: Field | None
    ) -> tuple[tuple[t.Dim, ...], tuple[tuple[str, t.Comments], ...]]:
        if field is None:
            return (), ()
        comments = self.margin.statement(field.key.start, field.key.end)
        dims = []
        found = self.fields(field.value, "dims", None) or {}
        for dim in found.values():
            name = self.parse(dim.key, "word", "dims")
            value = self.parse(dim.value, "sum", "dims")
            if name is not None and value is not None:
                notes = self.margin.statement(dim.start, dim.end)
                dims.append(t.Dim(name, value, span=dim.span, comments=notes))
        inside = self.closing(field, found)
        whole = t.Comments(comments.above, comments.behind, inside)
        return tuple(dims), (("dims", whole),) if whole != t.Comments() else ()

    def level(self, field: Field) -> t.Level:
        """Read `fast: {every: 1 token, chunk: 16}` or `ice: never`."""
        name = self.parse(field.key, "word", "spec") or ""
        node = self.followed(field.value)
        period: t.Period | None = None
        chunk: t.Expr | None = None
        optimizer: t.Expr | None = None
        if isinstance(node, Scalar):
            tail = self.parse(field.value, "level_tail", "level")
            if tail is not None:
                period, chunk, optimizer = tail.period, tail.chunk, tail.optimizer
        else:
            keys = ("every", "chunk", "optimizer")
            found = self.fields(field.value, "a level", keys)
            fields = found or {}
            if "every" in fields:
                period = self.parse(fields["every"].value, "period", "period")
            elif found is not None:
                self.lacks(field, "every", "write `every: 1 token`, `never` or `always`")
            if "chunk" in fields:
                chunk = self.parse(fields["chunk"].value, "sum", "spec")
            if "optimizer" in fields:
                optimizer = self.rule_call(fields["optimizer"])
        comments = self.whole_comments(field)
        return t.Level(
            name,
            period or t.Period("never"),
            chunk,
            optimizer,
            span=field.span,
            comments=comments,
        )
