"""A rule where it is used: its arguments, and the memories inside it.

In: a memory, and the rule its update names. Out: the scope in which the rule's equations run. A
memory inside a rule is checked and cannot run yet; it moves at each call, before the first equation
that reads it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, rewrite
from nlc.ir.shape import Axis, show
from nlc.ir.system import Part
from nlc.semantics.axes import split
from nlc.semantics.context import Bad
from nlc.semantics.inputs import key_of
from nlc.semantics.memories import rule_of
from nlc.semantics.objectives import DEFAULT_OBJECTIVE, resolve_objective
from nlc.semantics.records import Body
from nlc.semantics.statements import run
from nlc.semantics.trees import at_place, mentions
from nlc.semantics.updates import UpdateScope
from nlc.semantics.values import Readable, Struct, Value
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def rule_inside(
    block: BlockResolver, body: Body, update: tree.Expr, outer: UpdateScope
) -> tree.Rule:
    """Find the rule that a memory's update names; refused where it stands inside itself."""
    rule = rule_of(block, body)
    assert rule is not None
    if rule.name in outer.rules:
        block.context.fail(
            "NL0519", f"rule `{rule.name}` uses itself", update.span, "inside its own body",
            "a memory of a rule is moved by equations or by another rule",
            (rule.span, "the rule"),
        )  # fmt: skip
    return rule


def rule_scope(
    block: BlockResolver, body: Body, update: tree.Expr, outer: UpdateScope
) -> tuple[UpdateScope, tuple[tree.Stmt, ...]]:
    """Give the scope of a rule's equations, with its arguments as `outer` sees them."""
    rule = rule_inside(block, body, update, outer)
    values, shown = arguments_of(block, body, update, outer)
    inner = RuleScope(block, body, values, (*outer.rules, rule.name))
    inner.shown = shown
    inner.around = outer
    return inner, rule.equations


def arguments_of(
    block: BlockResolver, body: Body, update: tree.Expr, outer: UpdateScope
) -> tuple[dict[str, Value], dict[str, tree.Expr]]:
    """Resolve a rule's arguments as `outer` sees them; give them as they are written too."""
    rule = rule_of(block, body)
    assert rule is not None
    given = block.resolver.arguments(rule, update)
    values: dict[str, Value] = {}
    shown: dict[str, tree.Expr] = {}
    defaults = {id(p.default) for p in rule.parameters}
    for name, expr in given.items():
        # a default sees the arguments before it, what is given sees the names around it
        scope = UpdateScope(block, body, dict(values)) if id(expr) in defaults else outer
        values[name] = scope.value(expr)
        shown[name] = expr
    return values, shown


class RuleScope(UpdateScope):
    """The equations of a rule, which may read the memories inside it."""

    def __init__(
        self,
        block: BlockResolver,
        body: Body,
        arguments: dict[str, Value],
        rules: tuple[str, ...],
    ):
        super().__init__(block, body, arguments)
        self.rules = rules
        self.moved: set[str] = set()
        # the scope in which the rule's arguments were given
        self.around: UpdateScope | None = None

    def known_names(self) -> list[str]:
        return [*super().known_names(), *self.body.inner]

    def find(self, name: tree.Name) -> Value | None:
        if name.id in self.body.inner:
            self.move(name.id)
        if name.id == "key" and self.body.is_task and not self.body.pairs:
            return self.input(name)
        return super().find(name)

    def input(self, name: tree.Name) -> Value:
        """What is moved is applied to this, where that learns from the task."""
        if len(self.body.parts) > 1:
            self.context.fail(
                "NL0415", "one value is needed here", name.span,
                f"`{self.body.name}` has several matrices, each with an input of its own",
                "a rule moves each of them by itself",
            )  # fmt: skip
        return key_of(self, self.body, self.body.parts[0], name.span)

    def readable(self, expr: tree.Expr) -> Readable | None:
        match expr:
            case tree.Name(id=name) if name in self.body.inner:
                self.move(name)
                value = self.env[name]
            case tree.Call(
                function=tree.Name(id="prev" | "initial" as when), arguments=(tree.Name(id=name),)
            ) if name in self.body.inner:
                value = self.all_parts(name, when)
            case _:
                return super().readable(expr)
        return Readable(name, self.body.inner[name].map, self.lead, self.parts_of(value))

    def ready(self, statement: tree.Stmt) -> None:
        # a memory moves at each call, where it stands, also if only a block reads it
        for name in self.body.inner:
            if mentions(statement, {name}):
                self.move(name)

    def move(self, name: str) -> None:
        """Move a memory of the rule, once, before the first equation that reads it."""
        inner = self.body.inner[name]
        if name not in self.moved:
            self.moved.add(name)
            try:
                self.move_inner(inner)
            except Bad:
                inner.bad = True
        if inner.bad:
            self.body.bad = True
            raise Bad(name)

    def called(self, key: str) -> str:
        return key if self.around is None else self.around.called(key)

    def move_inner(self, body: Body) -> None:
        """Resolve how a memory of the rule moves."""
        _move(self, body)

    def move_all(self) -> None:
        """Move the memories that no equation reads, so that they are checked too."""
        for name in self.body.inner:
            try:
                self.move(name)
            except Bad:
                continue


class InnerScope(UpdateScope):
    """The update of a memory inside a rule: its own states, then what the rule sees."""

    def __init__(self, outer: RuleScope, body: Body):
        around = {name: value for name, value in outer.env.items() if name != "self"}
        super().__init__(outer.block, body, {**(outer.arguments or {}), **around})
        self.outer = outer
        self.rules = outer.rules

    def leaf(self, var: str, part: Part, when: str) -> Expr:
        return self.outer.leaf(full_name(self.body, var), part, when)

    def _size(self, name: tree.Name) -> Value:
        # of what the rule moves
        return self.outer._size(name)

    def called(self, key: str) -> str:
        own = key == "self" or self.is_state(key)
        return self.outer.called(full_name(self.body, "" if key == "self" else key)) if own else key


def full_name(body: Body, var: str) -> str:
    """The name that a state of an inner memory has outside."""
    return f"{body.name}.{var}" if var else body.name


def prepare(outer: RuleScope, body: Body) -> tree.Expr | tuple[tree.Stmt, ...]:
    """Resolve a memory inside a rule up to its update: its pairs and objective."""
    block, written, context = outer.block, body.written, outer.context
    for other in outer.body.inner:
        # what it reads of other memories is theirs after they moved
        if other != body.name and mentions(written, {other}):
            outer.move(other)
    # each copy of what the rule moves has a memory of its own
    body.lead = outer.lead
    for clause, place in written.clauses:
        if clause in ("reset", "through", "slots", "route", "select"):
            context.fail(
                "NL0514", f"`{clause}` does not belong here", place, "inside a rule",
                "a memory of a rule has `key`, `value`, `objective`, `state`, `update` and `init`",
                (written.span, "the memory"),
            )  # fmt: skip
    if written.levels:
        context.fail(
            "NL0208", f"`{body.name}` is in a rule and names a level", written.span,
            "it moves at each call of the rule", "leave `at LEVEL` out",
        )  # fmt: skip
    if body.map.kind in ("conv", "table", "kernel"):
        context.fail(
            "NL0514", f"a `{body.map.kind}` cannot be a memory of a rule", written.map.span,
            "it remembers tokens, or reads numbers", "use a linear map, an mlp, a vector, ...",
            (written.span, "the memory"),
        )  # fmt: skip
    body.pairs = _pairs(outer, body)
    objective = written.objective
    if objective is None and body.pairs and written.values:
        objective = at_place(DEFAULT_OBJECTIVE, written.keys[0].span)
    if objective is not None:
        env = {**(outer.arguments or {}), **outer.env}
        if mentions(objective, {"grad"}):
            env["grad"] = outer.gradient(None, None, written.span)
        env = {name: value for name, value in env.items() if name != "self"}
        for side in ("in", "out"):
            env[side] = outer._size(tree.Name(side, span=written.span))
        found = resolve_objective(block, body, objective, env, closed=True)
        body.objective = _states_of(outer, body, found)
    body.objective_done = True
    if written.update is None:
        context.fail(
            "NL0505", f"`{body.name}` has no update", written.span, "the memory",
            "write `update { self = self - lr * grad }` or `update sgd(lr = 0.1)`",
        )  # fmt: skip
    return written.update


def _states_of(outer: RuleScope, body: Body, objective: Expr) -> Expr:
    """Put the states of what the rule moves in the place of the memory's own, by name."""

    def leaf(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "state" or node.attr("memory") != body.label:
            return None
        name = full_name(body, node.attr("var"))
        variable = next(v for v in body.variables if v.name == node.attr("var"))
        part = next(p for p in variable.parts if p.name == node.attr("part"))
        return outer.leaf(name, part, node.attr("when"))

    return rewrite(outer.graph, [objective], leaf)[0]


def _move(outer: RuleScope, body: Body) -> None:
    block = outer.block
    statements = prepare(outer, body)
    own = InnerScope(outer, body)
    own.begin()
    scope: UpdateScope = own
    if not isinstance(statements, tuple):
        scope, statements = rule_scope(block, body, statements, own)
        scope.env, scope.start = dict(own.env), dict(own.start)
    run(scope, statements)
    if isinstance(scope, RuleScope):
        scope.move_all()
    if body.bad:
        raise Bad(body.name)
    outer.body.statements += [replace(s, target=scope.called(s.target)) for s in body.statements]
    for variable in body.variables:
        outer.env[full_name(body, variable.name)] = scope.env[variable.name or "self"]


def _pairs(outer: RuleScope, body: Body) -> tuple[tuple[Expr, Expr], ...]:
    """Resolve keys and values; the leading axes of the first key are a batch."""
    written, context = body.written, outer.context
    if written.values and len(written.values) != len(written.keys):
        context.fail(
            "NL0516",
            f"`{body.name}` has {len(written.keys)} keys and {len(written.values)} values",
            written.values[0].span, "the values", "write as many of each",
            (written.span, "the memory"),
        )  # fmt: skip
    found: list[tuple[Expr, Expr]] = []
    inputs = body.map.inputs
    for i, key in enumerate(written.keys):
        k = outer.plain(key)
        tail = k.shape[len(k.shape) - len(inputs) :]
        if len(tail) != len(inputs) or not all(
            a.fits(b) for a, b in zip(tail, inputs, strict=True)
        ):
            context.fail(
                "NL0406", f"`{body.name}` does not take this key", key.span,
                f"this is {show(k.shape)}", f"`{body.name}` takes {show(inputs)} last",
                (written.map.span, "its map"),
            )  # fmt: skip
        copies = split(k.shape, outer.lead)
        body.batch = k.shape[copies : len(k.shape) - len(inputs)]
        v = outer.value(written.values[i]) if written.values else k
        if isinstance(v, Struct):
            context.fail(
                "NL0415", "one value is needed here", written.values[i].span,
                ", ".join(name for name, _ in v.parts), "name a part, `grad.layer1`",
            )  # fmt: skip
        names = {axis.name for axis in (*outer.lead, *body.batch)}
        seen = tuple(axis for axis in v.shape if axis.name not in names)
        outputs = body.map.outputs
        if (
            written.values
            and written.objective is None
            and not (len(seen) == len(outputs) and all(map(Axis.fits, seen, outputs)))
        ):
            context.fail(
                "NL0406", f"`{body.name}` does not make this value", written.values[i].span,
                f"this is {show(seen)}", f"`{body.name}` makes {show(outputs)}",
                (written.map.span, "its map"),
            )  # fmt: skip
        found.append((k, v))
    return tuple(found)
