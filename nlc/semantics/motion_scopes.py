"""The equations of a rule as actions in order: what their names mean, line by line.

In: statements of a rule. Out: `Action`s. After an assignment a name stands for its present value, a
leaf; so what follows is an expression over what the names hold on its line, and nothing is written
out twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder
from nlc.ir.rule import Action, Ask, Every, Loop, Set, When, count_word
from nlc.ir.system import Part, Variable
from nlc.semantics.assignments import values_of
from nlc.semantics.context import Bad
from nlc.semantics.memories import variables
from nlc.semantics.periods import period_in
from nlc.semantics.records import Body
from nlc.semantics.rule_scopes import RuleScope
from nlc.semantics.statements import assign_one, fit_state
from nlc.semantics.values import Struct, Value, pack
from nlc.source import Span
from nlc.syntax import tree
from nlc.syntax.print_text import print_statement

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def cell_name(variable: Variable, part: Part) -> str:
    """Name one tensor of a state: `m`, or `m.layer1.weight` where it has several parts."""
    name = variable.name or "self"
    return name if len(variable.parts) == 1 else f"{name}.{part.name}"


class MotionScope(RuleScope):
    """A rule by itself; `actions` are those of the block that is being walked."""

    def __init__(
        self,
        block: BlockResolver,
        body: Body,
        arguments: dict[str, Value],
        rules: tuple[str, ...],
    ):
        super().__init__(block, body, arguments, rules)
        # one call is one update
        self.period = ("tokens", 1)
        self.actions: list[Action] = []
        # the counts of the blocks `every N steps` around
        self.around: list[Expr] = []
        self.asked = 0

    # ---- names -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Let each state stand for its present value."""
        for variable in self.body.variables:
            self.env[variable.name or "self"] = self._now(variable)
        self.start = dict(self.env)

    def _now(self, variable: Variable) -> Value:
        return pack(
            self.body.map,
            tuple((p.name, self.leaf(variable.name, p, "now")) for p in variable.parts),
        )

    def leaf(self, var: str, part: Part, when: str) -> Expr:
        variable = next(v for v in variables(self.block, self.body) if v.name == var)
        name = cell_name(variable, part) + ("" if when == "now" else f".{when}")
        return self.make("stream", name=name, shape=part.shape, span=self.span)

    def _size(self, name: tree.Name) -> Value:
        # the sizes of a parameter are not known before an optimizer is made
        return self.make("param", name=name.id, shape=(), span=name.span)

    def find(self, name: tree.Name) -> Value | None:
        if name.id == "key":
            self.context.fail(
                "NL0806", "`key` is not supported yet in an optimizer", name.span,
                "the map's input at every token of the step", "leave it out for now",
            )  # fmt: skip
        if name.id == "position":
            self.context.fail(
                "NL0605", "`position` has no meaning here", name.span, "in an optimizer",
                "a rule counts its calls in a state: `state n[] = 0`, `n = n + 1`",
            )  # fmt: skip
        return super().find(name)

    # ---- gradients -------------------------------------------------------------------------

    def gradient(self, objective: Expr | None, at: Value | None, span: Span) -> Value:
        if objective is not None:
            point = at if at is not None else self.all_parts("", "prev")
            return super().gradient(objective, point, span)
        shape = self.body.parts[0].shape
        if at is None:
            name = f"grad.every.{count_word(self.around[-1])}" if self.around else "grad"
            return self.make("stream", name=name, shape=shape, span=span)
        if self.around:
            self.context.fail(
                "NL0806", "`grad(at = e)` cannot be taken for several steps", span,
                "in a block `every N steps`",
                "the data of the steps before are gone: take it at every step",
            )  # fmt: skip
        assert isinstance(at, Expr)
        self.asked += 1
        name = "grad.at" if self.asked == 1 else f"grad.at.{self.asked}"
        self.actions.append(Ask(name, at, span))
        return self.make("stream", name=name, shape=shape, span=span)

    # ---- statements ------------------------------------------------------------------------

    def walk(self, statements: tuple[tree.Stmt, ...]) -> tuple[Action, ...]:
        """Turn statements into actions; faults are recorded and the rest goes on."""
        outer, self.actions = self.actions, []
        for statement in statements:
            try:
                self._statement(statement)
            except Bad:
                self.body.bad = True
                if isinstance(statement, tree.Assign):
                    for target in statement.targets:
                        nothing = self.context.number(0.0, target.span)
                        self.env.setdefault(target.path[0], nothing)
        found, self.actions = tuple(self.actions), outer
        return found

    def _statement(self, statement: tree.Stmt) -> None:
        match statement:
            case tree.Assign():
                self._assign(statement)
            case tree.When(condition=condition, body=body, span=span):
                holds = self.scalar(condition, "a condition")
                text = f"when {condition.span.text}"
                self.actions.append(When(holds, self._inside(body, span), text, span))
            case tree.Every(period=period, body=body, span=span):
                unit, count = period_in(self, period)
                if unit != "steps":
                    self.context.fail(
                        "NL0806", "an optimizer sees no tokens", period.span,
                        "a period of tokens",
                        "in an optimizer a period counts steps, the calls of the rule: "
                        "`every 10 steps { }`",
                    )  # fmt: skip
                self.around.append(count)
                inside = self._inside(body, span)
                self.around.pop()
                self.actions.append(Every(count, inside, f"every {count_word(count)} steps", span))
            case tree.Repeat(count=count, body=body):
                self._repeat(self.context.positive(count, "a number of repeats"), body, statement)
            case tree.Share():
                self.context.fail(
                    "NL0703", "`share` stands in a model", statement.span, "in a rule",
                    "move it to `model { }`",
                )  # fmt: skip

    def _inside(self, body: tuple[tree.Stmt, ...], span: Span) -> tuple[Action, ...]:
        """Walk a block that may not run: names it makes are its own."""
        before = dict(self.env)
        actions = self.walk(body)
        for name, value in before.items():
            self._same_shape(name, value, span)
        self.env = {name: self.env[name] for name in before}
        return actions

    def _same_shape(self, name: str, before: Value, span: Span) -> None:
        after = self.env[name]
        if isinstance(before, Expr) and isinstance(after, Expr) and before.shape != after.shape:
            self.context.fail(
                "NL0404", f"`{name}` has another shape inside than outside", span,
                "changed in this block", "give what is inside a name of its own",
            )  # fmt: skip

    def _repeat(self, times: int, body: tuple[tree.Stmt, ...], statement: tree.Repeat) -> None:
        if times > 4096:
            self.context.fail(
                "NL0402", "too many repeats", statement.count.span, f"{times}", "up to 4096"
            )
        before = dict(self.env)
        actions = self.walk(body)
        for name, value in before.items():
            self._same_shape(name, value, statement.span)
        self.actions.append(Loop(times, actions, statement.span))

    def _assign(self, statement: tree.Assign) -> None:
        text = statement.span.text or print_statement(statement)
        values = values_of(self.block, self, statement)
        names = {".".join(target.path) for target in statement.targets}
        if len(values) > 1:
            values = [
                self._kept(value, names, statement.span, str(i)) for i, value in enumerate(values)
            ]
        for target, value in zip(statement.targets, values, strict=True):
            if target.path[0] == "eval":
                value = fit_state(self, "self", value, target.span)
                assert isinstance(value, Expr)
                self.actions.append(Set("eval", value, text, statement.span))
                continue
            assign_one(self, target, value, text, statement.span)
            self._record(text, statement.span)

    def _kept(self, value: Value, names: set[str], span: Span, place: str) -> Value:
        """Hold a value that reads what another value of the same line is about to change."""
        if isinstance(value, Struct):
            parts = tuple(
                (part, self._kept_one(expr, names, span, f"{place}.{part}"))
                for part, expr in value.parts
            )
            return Struct(value.map, parts)
        return self._kept_one(value, names, span, place)

    def _kept_one(self, value: Expr, names: set[str], span: Span, place: str) -> Expr:
        read = {n.attr("name") for n in postorder([value]) if n.op == "stream"}
        if not read & names:
            return value
        self.actions.append(Set(f"value.{place}", value, "", span))
        return self.make("stream", name=f"value.{place}", shape=value.shape, span=span)

    def _record(self, text: str, span: Span) -> None:
        """Turn the equation that was just resolved into actions, its names into leaves."""
        done = self.body.statements[-1]
        variable = next((v for v in self.body.variables if (v.name or "self") == done.target), None)
        leaves: dict[str, Expr] = {}
        for part, let in done.values:
            value = let.args[0]
            if variable is not None:
                name = cell_name(variable, next(p for p in variable.parts if p.name == part))
            else:
                name = f"{done.target}.{part}" if part else done.target
            shape = value.shape
            if variable is not None:
                shape = next(p for p in variable.parts if p.name == part).shape
            self.actions.append(Set(name, value, text, span))
            leaves[part] = self.make("stream", name=name, shape=shape, span=span)
        now = self.env[done.target]
        if isinstance(now, Struct):
            self.env[done.target] = replace(
                now, parts=tuple((part, leaves.get(part, expr)) for part, expr in now.parts)
            )
        else:
            (self.env[done.target],) = leaves.values()
