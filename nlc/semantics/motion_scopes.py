"""What names mean in a rule by itself, line by line: each stands for its present value, a leaf.

In: a rule's body. Out: scopes whose expressions are over leaves, with what they record on the way:
the gradients that are asked for, and the moves of the memories inside the rule. `motion_statements`
walks the equations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, rewrite
from nlc.ir.rule import Action, Ask, Slope, count_word
from nlc.ir.shape import Axis
from nlc.ir.system import Part
from nlc.semantics.context import Bad
from nlc.semantics.memories import variables
from nlc.semantics.objectives import asked_objective
from nlc.semantics.records import Body
from nlc.semantics.rule_scopes import RuleScope, arguments_of, full_name, prepare, rule_inside
from nlc.semantics.values import Value, pack
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


@dataclass
class Recorder:
    """What the scopes of one rule record: the actions of the present block, names and counts.

    `parts` has the names that are parts of something: of what, and which.
    """

    actions: list[Action] = field(default_factory=list)
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)
    # the counts of the blocks `every N steps` around
    around: list[Expr] = field(default_factory=list)
    asked: int = 0
    slopes: int = 0


class MotionScope(RuleScope):
    """A rule by itself."""

    def __init__(
        self,
        block: BlockResolver,
        body: Body,
        arguments: dict[str, Value],
        rules: tuple[str, ...],
        recorder: Recorder | None = None,
    ):
        super().__init__(block, body, arguments, rules)
        self.recorder = recorder or Recorder()
        # one call is one update
        self.period = ("tokens", 1)

    # ---- names -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Let each state stand for its present value."""
        for variable in self.body.variables:
            self.env[variable.name or "self"] = self.all_parts(variable.name, "now")
        self.start = dict(self.env)

    def leaf(self, var: str, part: Part, when: str) -> Expr:
        name = self.cell(var, part, when)
        return self.make("stream", name=name, shape=part.shape, span=self.span)

    def cell(self, var: str, part: Part, when: str = "now") -> str:
        """Name one tensor of a state: `m`, `m.prev`; with several parts `m.prev.layer1.weight`."""
        variable = next(v for v in variables(self.block, self.body) if v.name == var)
        name = (variable.name or "self") + ("" if when == "now" else f".{when}")
        return name if len(variable.parts) == 1 else self.part(name, part.name)

    def part(self, name: str, part: str) -> str:
        """Name a part of what has several."""
        self.recorder.parts[f"{name}.{part}"] = (name, part)
        return f"{name}.{part}"

    def _size(self, name: tree.Name) -> Value:
        # the sizes of a parameter are not known before an optimizer is made
        return self.make("param", name=name.id, shape=(), span=name.span)

    def _grad_call(self, call: tree.Call) -> Value:
        # an objective in the call sees the sizes too, by name
        given = self.arguments
        sizes = {side: self._size(tree.Name(side, span=call.span)) for side in ("in", "out")}
        self.arguments = {**sizes, **(given or {})}
        try:
            return super()._grad_call(call)
        finally:
            self.arguments = given

    def find(self, name: tree.Name) -> Value | None:
        if name.id == "key" and self.body.given_grad:
            return self._key(name)
        if name.id == "position":
            self.context.fail(
                "NL0605", "`position` has no meaning here", name.span, "in an optimizer",
                "a rule counts its calls in a state: `state n[] = 0`, `n = n + 1`",
            )  # fmt: skip
        return super().find(name)

    def _key(self, name: tree.Name) -> Value:
        """The input of the map that the parameter belongs to, at one token of the step."""
        if not self.at_token:
            self.context.fail(
                "NL0603", f"`key` is used bare in the optimizer `{self.rules[0]}`", name.span,
                "`key` differs at every token of a step",
                "reduce it over the tokens: `sum(outer(key, key), over = tokens)`",
            )  # fmt: skip
        shape = self.body.parts[0].shape[-1:]
        return self.make("stream", name="key", shape=shape, span=name.span)

    def _over_tokens(self, how: str, call: tree.Call) -> Value:
        if how not in ("sum", "mean"):
            self.context.fail(
                "NL0806", f"`{how}` over the tokens of a step has no meaning", call.span,
                "in an optimizer", "the tokens of a batch are in no order: `sum` or `mean`",
            )  # fmt: skip
        inside, self.at_token = self.at_token, True
        try:
            value = self.value(call.arguments[0])
        finally:
            self.at_token = inside
        return self._window(value, how, ("steps", 1), call.span)

    # ---- gradients -------------------------------------------------------------------------

    def gradient(self, objective: Expr | None, at: Value | None, span: Span) -> Value:
        if objective is not None:
            point = at if at is not None else self.all_parts("", "prev")
            return self.slope(objective, point, span)
        shape = self.body.parts[0].shape
        recorder = self.recorder
        if self.at_token:
            self.context.fail(
                "NL0806", "an optimizer has no gradient of one token", span, "over tokens",
                "`grad` is that of the step: take it out of the reduction",
            )  # fmt: skip
        if at is None:
            around = recorder.around
            name = f"grad.every.{count_word(around[-1])}" if around else "grad"
            return self.make("stream", name=name, shape=shape, span=span)
        if recorder.around:
            self.context.fail(
                "NL0806", "`grad(at = e)` cannot be taken for several steps", span,
                "in a block `every N steps`",
                "the data of earlier steps are gone: take it at every step",
            )  # fmt: skip
        assert isinstance(at, Expr)
        recorder.asked += 1
        name = "grad.at" if recorder.asked == 1 else f"grad.at.{recorder.asked}"
        recorder.actions.append(Ask(name, at, span))
        return self.make("stream", name=name, shape=shape, span=span)

    def slope(self, objective: Expr, point: Value, span: Span, place: int | None = None) -> Value:
        """Take the gradient of an objective here, or at an earlier place of this block."""
        recorder = self.recorder
        recorder.slopes += 1
        name = "slope" if recorder.slopes == 1 else f"slope.{recorder.slopes}"
        many = len(self.body.parts) > 1
        targets = tuple(
            (part.name, self.part(name, part.name) if many else name) for part in self.body.parts
        )
        objective = self._over_leaves(objective)
        own = self.body.name != "self"
        text = f"the gradient of the objective of {self.body.name}" if own else span.text
        action = Slope(
            self.body.label, targets, self.parts_of(point), objective, text, span
        )  # fmt: skip
        recorder.actions.insert(len(recorder.actions) if place is None else place, action)
        leaves = tuple(
            (part.name, self.make("stream", name=target, shape=part.shape, span=span))
            for part, (_, target) in zip(self.body.parts, targets, strict=True)
        )
        return pack(self.body.map, leaves)

    def _over_leaves(self, objective: Expr) -> Expr:
        """Put leaves in the place of states that an objective reads as constants."""

        def leaf(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if node.op != "state":
                return None
            variable = next(v for v in self.body.variables if v.name == node.attr("var"))
            part = next(p for p in variable.parts if p.name == node.attr("part"))
            return self.leaf(node.attr("var"), part, node.attr("when"))

        return rewrite(self.block.graph, [objective], leaf)[0]

    # ---- memories inside -------------------------------------------------------------------

    def move_inner(self, body: Body) -> None:
        from nlc.semantics.motion_statements import walk_on

        statements = prepare(self, body)
        own = InnerMotion(self, body)
        own.begin()
        scope: MotionScope = own
        if not isinstance(statements, tuple):
            scope, statements = own.of_rule(statements)
        walk_on(scope, statements)
        scope.move_all()
        if body.bad:
            raise Bad(body.name)


class InnerMotion(MotionScope):
    """The update of a memory inside a rule: its own states, then what the rule sees."""

    def __init__(
        self,
        outer: MotionScope,
        body: Body,
        arguments: dict[str, Value] | None = None,
        rules: tuple[str, ...] = (),
    ):
        around = {name: value for name, value in outer.env.items() if name != "self"}
        seen = {**(outer.arguments or {}), **around} if arguments is None else arguments
        super().__init__(outer.block, body, seen, rules or outer.rules, outer.recorder)
        self.outer = outer
        # where the update begins, and the gradients that were taken there
        self.place = len(self.recorder.actions)
        self.taken: dict[Expr, Value] = {}
        # whether the equations are those of a rule that moves this memory
        self.of_own_rule = False

    def _size(self, name: tree.Name) -> Value:
        if not self.of_own_rule:
            return self.outer._size(name)
        # a rule that moves a memory has that memory's sizes
        shape = self.body.parts[0].shape
        place = 1 if name.id == "in" else 2
        axis = shape[-place] if len(shape) >= place else Axis("1", 1)
        return self._size_of(axis, name.span)

    def _size_of(self, axis: Axis, span: Span) -> Expr:
        """A size over `in` and `out`, as its axis is named: `2*in`."""
        words = axis.name.split("*")
        if not {"in", "out"} & set(words):
            return self.context.number(float(axis.size), span)
        value = self.context.number(1.0, span)
        for word in words:
            side = word in ("in", "out")
            factor = (
                self.make("param", name=word, shape=(), span=span) if side
                else self.context.number(float(word), span)
            )  # fmt: skip
            value = self.make("mul", value, factor, span=span)
        return value

    def of_rule(self, update: tree.Expr) -> tuple[MotionScope, tuple[tree.Stmt, ...]]:
        """The scope of a rule that moves this memory, and its equations."""
        rule = rule_inside(self.block, self.body, update, self)
        values, _ = arguments_of(self.block, self.body, update, self)
        scope = InnerMotion(self.outer, self.body, values, (*self.rules, rule.name))
        scope.of_own_rule = True
        scope.begin()
        return scope, rule.equations

    def cell(self, var: str, part: Part, when: str = "now") -> str:
        return self.outer.cell(full_name(self.body, var), part, when)

    def gradient(self, objective: Expr | None, at: Value | None, span: Span) -> Value:
        if objective is None:
            objective = asked_objective(self.block, self.body, span, self.span)
        if at is not None:
            return self.slope(objective, at, span)
        # once, before the first equation
        known = self.taken.get(objective)
        if known is None:
            known = self.slope(objective, self.start["self"], span, self.place)
            self.taken[objective] = known
        return known
