"""Rules, blocks, memories, the model and their equations, from the YAML form.

In: fields of YAML mappings. Out: the nodes of the syntax tree, each with its comments. Knows which
keys stand where; what stands behind them as text is parsed by the grammar.
"""

from __future__ import annotations

from typing import Any

from nlc.syntax import tree as t
from nlc.syntax.build_clauses import Head
from nlc.syntax.build_statements import THROUGH, Names
from nlc.syntax.yaml_equations import Equations, with_rest
from nlc.syntax.yaml_fields import Field
from nlc.syntax.yaml_nodes import Scalar, Sequence, span_of

RULE = ("state", "memories", "update")
BLOCK = ("weights", "memories", "equations")
WEIGHTS = ("map", "level", "init")
MODEL = ("vocab", "objective", "equations")
# the grammar's start symbol for the value of each key of a memory
MEMORY = {
    "map": "map",
    "level": "levels",
    "key": "keys",
    "value": "keys",
    "objective": "expression",
    "state": "",
    "update": "",
    "init": "init_value",
    "reset": "period",
    "through": "word",
    "slots": "sum",
    "route": "expression",
    "select": "expression",
}
CLAUSES = tuple(word for word in MEMORY if word not in ("map", "level", "state"))
_NO_NAMES = Names((), (), ())
_NO_MAP = t.Map("scalar")


class Blocks(Equations):
    """Reads what has equations."""

    def rule(self, field: Field) -> t.Rule:
        """Read a rule."""
        head: Head | None = self.parse(field.key, "rule_head", "rule_head")
        fields = self.fields(field.value, "a rule", RULE) or {}
        above = self.margin.statement(field.start, field.key.end)
        rule = t.Rule(
            head.name if head else "",
            head.parameters if head else (),
            self.states(fields.get("state")),
            tuple(self.memory(f, "rule") for f in self.section(fields.get("memories"), "memories")),
            self.equations(fields.get("update"), "rule"),
            span=field.span,
        )
        return t.Rule(**{**vars(rule), "comments": self.around(field, fields, above)})

    def block(self, field: Field) -> t.Block:
        """Read a block."""
        head: Head | None = self.parse(field.key, "block_head", "block_head")
        fields = self.fields(field.value, "a block", BLOCK) or {}
        above = self.margin.statement(field.start, field.key.end)
        block = t.Block(
            head.name if head else "",
            head.parameters if head else (),
            head.outputs if head else (),
            tuple(self.weights(f) for f in self.section(fields.get("weights"), "weights")),
            tuple(
                self.memory(f, "block") for f in self.section(fields.get("memories"), "memories")
            ),
            self.equations(fields.get("equations"), "block"),
            span=field.span,
        )
        return t.Block(**{**vars(block), "comments": self.around(field, fields, above)})

    def weights(self, field: Field) -> t.Weights:
        """Read `W: linear(d -> d)` or `W: {map: ..., level: ..., init: ...}`."""
        names: Names = self.parse(field.key, "names", "block") or _NO_NAMES
        kind: t.Map | None = None
        level: str | None = None
        init: Any = None
        if isinstance(self.followed(field.value), Scalar):
            kind = self.parse(field.value, "map", "block")
        else:
            fields = self.fields(field.value, "weights", WEIGHTS)
            if fields is not None and "map" not in fields:
                self.lacks(field, "map", "write `map: linear(d -> d)`")
            fields = fields or {}
            if "map" in fields:
                kind = self.parse(fields["map"].value, "map", "block")
            if "level" in fields:
                level = self.parse(fields["level"].value, "word", "block")
            if "init" in fields:
                init = self.parse(fields["init"].value, "init_value", "block")
        return t.Weights(
            names.names,
            kind or _NO_MAP,
            names.axes,
            level,
            init,
            name_spans=names.spans,
            span=field.span,
            comments=self.whole_comments(field),
        )

    def states(self, field: Field | None) -> tuple[t.State, ...]:
        """Read `state: {S: 0, "n[]": 0}`."""
        states = []
        for state in self.section(field, "state"):
            head = self.parse(state.key, "state_head", "memory")
            value = self.parse(state.value, "expression", "memory")
            if head is not None and value is not None:
                name, shape = head
                comments = self.margin.statement(state.start, state.end)
                states.append(t.State(name, value, shape, span=state.span, comments=comments))
        return tuple(states)

    def memory(self, field: Field, place: str) -> t.Memory:
        """Read a memory of a block or a rule."""
        names: Names = self.parse(field.key, "names", place) or _NO_NAMES
        fields = self.fields(field.value, "a memory", tuple(MEMORY))
        if fields is not None and "map" not in fields:
            self.lacks(field, "map", "write `map: linear(d_k -> d_v)`")
        fields = fields or {}
        head = self.margin.statement(field.start, field.key.end)
        value: dict[str, Any] = {}
        notes: dict[str, t.Comments] = {}
        for word, start in MEMORY.items():
            if start and word in fields:
                place = "period" if start == "period" else "memory"
                value[word] = self.parse(fields[word].value, start, place)
        if "through" in value:
            value["through"] = self._through(fields["through"], value["through"])
        for word in CLAUSES:
            if word in fields and word != "update":
                notes[word] = self.margin.statement(fields[word].start, fields[word].end)
        if "update" in fields:
            value["update"], notes["update"] = self._update(fields["update"])
        states = self.states(fields.get("state"))
        levels = value.get("level")
        return t.Memory(
            names.names,
            value.get("map") or _NO_MAP,
            names.axes,
            levels.value[0] if levels else (),
            value.get("key") or (),
            value.get("value") or (),
            value.get("objective"),
            states,
            value.get("update"),
            value.get("init"),
            value.get("reset"),
            value.get("through"),
            value.get("slots"),
            value.get("route"),
            value.get("select"),
            clauses=tuple((word, fields[word].span) for word in fields if word in CLAUSES),
            clause_comments=tuple((w, n) for w, n in notes.items() if n != t.Comments()),
            name_spans=names.spans,
            level_spans=levels.value[1] if levels else (),
            span=field.span,
            comments=self.around(field, fields, head),
        )

    def _through(self, field: Field, word: str | None) -> str | None:
        if word is not None and word not in THROUGH:
            self.unknown_through(word, span_of(field.value))
        return word

    def _update(self, field: Field) -> tuple[Any, t.Comments]:
        """Read `update: RULE(...)` or `update: [equations]`."""
        if not isinstance(self.followed(field.value), Sequence):
            call = self.rule_call(field)
            return call, self.margin.statement(field.start, field.end)
        head = self.margin.statement(field.key.start, field.key.end)
        body = self.equations(field, "update", keep_comments=True)
        inside = self.margin.closing(field.start, field.end, self.list_column(field))
        rest = self.margin.statement(field.key.end, field.end)
        return body, with_rest(head, rest, inside)

    def model(self, field: Field) -> t.Model:
        """Read the model."""
        fields = self.fields(field.value, "the model", MODEL) or {}
        head = self.margin.statement(field.start, field.key.end)
        notes: list[tuple[str, t.Comments]] = []
        for word in ("vocab", "objective"):
            if word in fields:
                comments = self.margin.statement(fields[word].start, fields[word].end)
                if comments != t.Comments():
                    notes.append((word, comments))
        vocab = self.parse(fields["vocab"].value, "sum", "model") if "vocab" in fields else None
        objective = None
        if "objective" in fields:
            objective = self.parse(fields["objective"].value, "expression", "model")
        return t.Model(
            vocab,
            self.equations(fields.get("equations"), "model"),
            objective,
            clauses=tuple((w, fields[w].span) for w in fields if w in ("vocab", "objective")),
            clause_comments=tuple(notes),
            span=field.span,
            comments=self.around(field, fields, head),
        )

    def around(self, field: Field, fields: dict[str, Field], head: t.Comments) -> t.Comments:
        """Claim what is left within a clause, after all that stands in it took its own."""
        inside = self.closing(field, fields)
        rest = self.margin.statement(field.key.end, field.end)
        return with_rest(head, rest, inside)
