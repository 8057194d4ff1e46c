"""A rule whose equations are of one matrix, on a map with several parts: it moves each by itself.

In: a memory of several parts and the rule that its update names. Out: the assignments of all
parts. As in an optimizer, `self`, `grad`, states, `in`, `out` and the memories inside the rule are
those of one part; a vector is moved as it stands, or, where the equations fit matrices alone, as a
matrix of one row. Rules that act part by part anyway do not come here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.diagnostics import Diagnostic
from nlc.ir.expr import Expr
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import Assignment, Part, Statement, Variable
from nlc.semantics.inputs import key_of
from nlc.semantics.memories import map_of, state_leaf
from nlc.semantics.records import Body
from nlc.semantics.rule_scopes import RuleScope, arguments_of, rule_inside
from nlc.semantics.statements import finish, run
from nlc.semantics.updates import UpdateScope
from nlc.semantics.values import Struct, Value
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def move_by_part(block: BlockResolver, body: Body, update: tree.Expr) -> None:
    """Resolve a rule for each part of a memory; its faults are those of the first part at fault."""
    outer = UpdateScope(block, body)
    outer.begin()
    rule = rule_inside(block, body, update, outer)
    block.resolver.used_rules.add(rule.name)
    values, shown = arguments_of(block, body, update, outer)
    found: dict[tuple[str, str], Assignment] = {}
    statements: list[list[Statement]] = []
    for part in body.map.parts:
        scope = _resolved(block, body, part, rule, values, shown)
        if scope is None:
            body.bad = True
            return
        for assignment in finish(scope):
            value = scope.leaving(assignment.var, assignment.value)
            name = scope.names.get(assignment.var, assignment.var)
            found[name, assignment.part] = Assignment(name, assignment.part, value)
        statements.append(scope.body.statements)
        body.points += scope.body.points
        body.assigns_self = body.assigns_self or scope.body.assigns_self
        body.uses_grad = body.uses_grad or scope.body.uses_grad
        body.token_grad = body.token_grad or scope.body.token_grad
        body.faster = body.faster or scope.body.faster
    body.statements = _together(statements)
    still = UpdateScope(block, body)
    for variable in body.variables:
        for part in variable.parts:
            old = still.leaf(variable.name, part, "prev")
            kept = Assignment(variable.name, part.name, old)
            found.setdefault((variable.name, part.name), kept)
    body.update = tuple(
        found[variable.name, part.name] for variable in body.variables for part in variable.parts
    )


def _resolved(
    block: BlockResolver,
    body: Body,
    part: Part,
    rule: tree.Rule,
    values: dict[str, Value],
    shown: dict[str, tree.Expr],
) -> PartScope | None:
    """Run a rule's equations for one part; a vector as it stands, or else as a row."""
    faults = block.context.faults
    before, first = len(faults.found), list[Diagnostic]()
    for as_row in (False, True) if len(part.shape) == 1 else (False,):
        scope = PartScope(block, body, part, as_row, values, rule)
        scope.shown = shown
        scope.begin()
        run(scope, rule.equations)
        scope.move_all()
        if not scope.body.bad:
            return scope
        first = first or faults.found[before:]
        del faults.found[before:]
    faults.found += first
    return None


def _together(statements: list[list[Statement]]) -> list[Statement]:
    """Put the equations together that were run for each part: they are the same ones."""
    first, *rest = statements
    if any([s.text for s in other] != [s.text for s in first] for other in rest):
        return [statement for some in statements for statement in some]
    return [
        replace(same[0], values=tuple(value for s in same for value in s.values))
        for same in zip(*statements, strict=True)
    ]


class PartScope(RuleScope):
    """The equations of a rule that moves one part of a memory; `names` are those of its states."""

    def __init__(
        self,
        block: BlockResolver,
        body: Body,
        part: Part,
        as_row: bool,
        values: dict[str, Value],
        rule: tree.Rule,
    ):
        self.whole, self.as_row = body, as_row
        self.names: dict[str, str] = {}
        # the states that have the part's own shape, and so are rows with it
        self.rows: set[str] = set()
        own = self._of_part(body, part)
        given: dict[str, Value] = {}
        for name, value in values.items():
            parts = dict(value.parts) if isinstance(value, Struct) else {}
            given[name] = parts.get(part.name, value)
        super().__init__(block, own, given, (rule.name,))

    def _of_part(self, body: Body, part: Part) -> Body:
        mine: list[Variable] = []
        # each try resolves the memories of the rule anew
        inner = {
            name: replace(
                own, statements=[], pairs=(), objective=None, objective_done=False, bad=False
            )
            for name, own in body.inner_of.get(part.name, {}).items()
        }
        for variable in body.variables:
            name = variable.name.removesuffix(f".{part.name}")
            if name.split(".")[0] in inner and name != variable.name:
                self.names[name] = variable.name
                mine.append(replace(variable, name=name))
                continue
            for own in variable.parts:
                if own.name == part.name:
                    if own.shape == part.shape:
                        self.rows.add(variable.name)
                        own = replace(own, shape=self._row(own.shape))
                    mine.append(replace(variable, parts=(own,)))
        shape = self._row(part.shape)
        return replace(
            body, map=map_of(replace(part, shape=shape)), variables=mine, inner=inner,
            statements=[], update=(), points=(), asks=[], bad=False,
        )  # fmt: skip

    def _row(self, shape: Shape) -> Shape:
        """Give a vector an axis in front, where it is moved as a row."""
        if not self.as_row or len(shape) != 1:
            return shape
        return (Axis("1", 1, role="out"), replace(shape[0], role="in"))

    def leaf(self, var: str, part: Part, when: str) -> Expr:
        if not (self.as_row and var in self.rows):
            return state_leaf(self.block, self.whole, self.names.get(var, var), part, when)
        plain = replace(part, shape=part.shape[1:])
        return self._as_row(state_leaf(self.block, self.whole, var, plain, when), part.shape)

    def _as_row(self, value: Expr, shape: Shape) -> Expr:
        return self.make("reshape", value, last=1, axes=shape, span=self.span)

    def input(self, name: tree.Name) -> Value:
        part = next(p for p in self.whole.map.parts if p.name == self.body.parts[0].name)
        return key_of(self, self.whole, part, name.span)

    def leaving(self, var: str, value: Expr) -> Expr:
        """Give a state's value the shape that it has outside."""
        if not (self.as_row and var in self.rows):
            return value
        return self.make("reshape", value, last=2, axes=value.shape[-1:], span=self.span)

    def gradient(self, objective: Expr | None, at: Value | None, span: Span) -> Value:
        name = self.body.parts[0].name
        if at is not None:
            self.context.fail(
                "NL0415", "the gradient of one part of several at another value", span,
                f"this rule moves `{name}` of `{self.whole.name}` by itself",
                "leave `at` out, or write equations that act on all parts alike: entry by entry, "
                "with norms, `newton_schulz` and the like",
            )  # fmt: skip
        scope = UpdateScope(self.block, self.whole, self.arguments)
        scope.begin()
        scope.at_token, scope.calls = self.at_token, self.calls
        value = scope.gradient(objective, None, span)
        found = value.part(name) if isinstance(value, Struct) else value
        if self.as_row:
            found = self._as_row(found, self.body.parts[0].shape)
        return found
