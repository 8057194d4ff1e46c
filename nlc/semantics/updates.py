"""Updates: equations that run in order.

Each sees the values assigned above it; here that becomes one expression per state, over the states
before the token, with a `let` at every equation so that what was written can be shown again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.shape import show
from nlc.ir.system import (
    Assignment,
    Statement,
)  # fmt: skip
from nlc.semantics.assignments import check_shape, values_of
from nlc.semantics.axes import align, embeddings, split
from nlc.semantics.body_scopes import BodyScope
from nlc.semantics.context import Bad
from nlc.semantics.functions import RESERVED
from nlc.semantics.objectives import own_objective, resolve_objective
from nlc.semantics.records import Body
from nlc.semantics.trees import substitute
from nlc.semantics.values import Readable, Struct, Value, each, pack, select
from nlc.source import Span
from nlc.syntax import tree
from nlc.syntax.print_text import print_statement

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


class UpdateScope(BodyScope):
    """Equations that run in order: `env` holds `self`, the states and the local names."""

    def __init__(self, block: BlockResolver, body: Body, arguments: dict[str, Value] | None = None):
        super().__init__(block, body)
        self.arguments = arguments
        self.in_rule = arguments is not None
        self.env: dict[str, Value] = {}
        self.start: dict[str, Value] = {}
        self.in_window = False
        self.tokens_depth = 0
        self.shown: dict[str, tree.Expr] = {}

    def begin(self) -> None:
        """Start from the states before the token."""
        for variable in self.body.variables:
            self.env[variable.name or "self"] = self.all_parts(variable.name, "prev")
        self.start = dict(self.env)

    # ---- names -----------------------------------------------------------------------------

    def known_names(self) -> list[str]:
        names = [*self.env, "grad", "key"]
        if self.in_rule:
            return [*names, *(self.arguments or {})]
        return [*names, *super().known_names()]

    def find(self, name: tree.Name) -> Value | None:
        key = "self" if self.own(name.id) else name.id
        if key in self.env:
            return self.env[key]
        if name.id == "grad":
            return self.gradient(None, None, name.span)
        if self.in_rule:
            assert self.arguments is not None
            if name.id in self.arguments:
                return self.arguments[name.id]
            if name.id in ("key", "in", "out"):
                return super().find(name)
            return None
        return super().find(name)

    def readable(self, expr: tree.Expr) -> Readable | None:
        if isinstance(expr, tree.Name) and self.own(expr.id):
            parts = self._parts_of(self.env["self"])
            return Readable(self.body.name, self.body.map, self.lead, parts, self.body.name)
        if self.in_rule and not (isinstance(expr, tree.Call) and self._own_prev(expr)):
            return None
        return super().readable(expr)

    def _own_prev(self, expr: tree.Call) -> bool:
        return any(isinstance(a, tree.Name) and self.own(a.id) for a in expr.arguments)

    def _parts_of(self, value: Value) -> tuple[Expr, ...]:
        if isinstance(value, Struct):
            return tuple(expr for _, expr in value.parts)
        return (value,)

    def read(self, what: Readable, x: Expr, span: Span) -> Expr:
        read = super().read(what, x, span)
        if what.memory and self.body.written.through == "first_order":
            return self.make("stop", read, span=span)
        return read

    def special(self, name: str, call: tree.Call) -> Value | None:
        match name:
            case "grad":
                return self._grad_call(call)
            case "last":
                return self._over_tokens("last", call)
            case "shift" | "rope" | "loss" if self.in_rule:
                return None
        return super().special(name, call)

    def attribute(self, expr: tree.Attribute) -> Value:
        base = expr.base
        if isinstance(base, tree.Name) and self.own(base.id) and self._is_state(expr.name):
            return self.env[expr.name]
        return super().attribute(expr)

    # ---- gradients -------------------------------------------------------------------------

    def _grad_call(self, call: tree.Call) -> Value:
        at: Value | None = None
        for keyword in call.keywords:
            if keyword.name != "at":
                self.context.unknown("setting", keyword.name, keyword.span, ["at"], "NL0307")
            at = self.fit_state("self", self.value(keyword.value), keyword.value.span)
        if len(call.arguments) > 1:
            self.context.fail(
                "NL0309", "`grad` takes one objective", call.span, f"{len(call.arguments)} given",
                "`grad`, `grad(at = e)`, `grad(objective)` or `grad(objective, at = e)`",
            )  # fmt: skip
        objective = None
        if call.arguments:
            env = {k: v for k, v in self.env.items() if k != "self"}
            objective = resolve_objective(self.block, self.body, call.arguments[0], env)
        return self.gradient(objective, at, call.span)

    def gradient(self, objective: Expr | None, at: Value | None, span: Span) -> Value:
        """`grad` of an objective (the memory's own by default), with the memory at a value."""
        if objective is None:
            objective = own_objective(self.block, self.body)
            self.body.uses_grad = True
            if objective is None:
                self.context.fail(
                    "NL0513", f"`{self.body.name}` has no objective to differentiate", span,
                    "`grad` stands here",
                    "write `objective e`, or `key` and `value` for the default one",
                    (self.span, "the memory"),
                )  # fmt: skip
        value = at if at is not None else self.start["self"]
        points = self._parts_of(value)
        names = tuple(part.name for part in self.body.parts)
        found: list[tuple[str, Expr]] = []
        for name in names:
            node = self.make(
                "grad", objective, *points, memory=self.body.name, part=name, parts=names,
                span=span,
            )  # fmt: skip
            if self.body.written.through == "first_order":
                node = self.make("stop", node, span=span)
            found.append((name, node))
        return pack(self.body.map, tuple(found))

    # ---- windows ---------------------------------------------------------------------------

    def _tokens(self, call: tree.Call) -> Value | None:
        over = next((k.value for k in call.keywords if k.name == "over"), None)
        if not (isinstance(over, tree.Name) and over.id == "tokens"):
            return None
        assert isinstance(call.function, tree.Name)
        return self._over_tokens(call.function.id, call)

    def _over_tokens(self, how: str, call: tree.Call) -> Value:
        if not self.in_window or how not in ("sum", "mean", "last"):
            self.context.fail(
                "NL0606", f"`{how}` over tokens has no meaning here", call.span, "in this place",
                "`sum`, `mean` and `last` over tokens stand in the update of a memory that changes "
                "every N tokens",
            )  # fmt: skip
        self.tokens_depth += 1
        value = self.value(call.arguments[0])
        self.tokens_depth -= 1
        return each(
            self.context, [value], lambda v: self.make("window", v[0], how=how, span=call.span),
            call.span,
        )  # fmt: skip

    # ---- statements ------------------------------------------------------------------------

    def run(self, statements: tuple[tree.Stmt, ...]) -> None:
        """Run equations in order; faults are recorded and the rest goes on."""
        for statement in statements:
            try:
                self._statement(statement)
            except Bad:
                self.body.bad = True
                if isinstance(statement, tree.Assign):
                    for target in statement.targets:
                        self.env.setdefault(target.path[0], self.context.number(0.0, target.span))

    def _statement(self, statement: tree.Stmt) -> None:
        match statement:
            case tree.Assign():
                self._assign(statement)
            case tree.When(condition=condition, body=body):
                self._under(self.scalar(condition, "a condition"), body, condition.span)
            case tree.Every(period=period, body=body):
                unit, count = self.context.period(period)
                if unit != "tokens":
                    self.context.unsupported.append(
                        ("NL0802", "`every N steps` in an update", statement.span)
                    )
                due = self.make("due", period=(unit, count), span=period.span)
                self._under(due, body, period.span)
            case tree.Repeat(count=count, body=body):
                times = self.context.positive(count, "a number of repeats")
                if times > 4096:
                    self.context.fail(
                        "NL0402", "too many repeats", count.span, f"{times}", "up to 4096"
                    )
                for _ in range(times):
                    self.run(body)
            case tree.Share():
                self.context.fail(
                    "NL0703", "`share` stands in a model", statement.span, "in an update",
                    "move it to `model { }`",
                )  # fmt: skip

    def _under(self, condition: Expr, body: tuple[tree.Stmt, ...], span: Span) -> None:
        before = dict(self.env)
        self.run(body)
        for name, old in before.items():
            new = self.env[name]
            if new is not old:
                self.env[name] = self.combine(
                    "where", span, [(condition, span), (new, span), (old, span)]
                )
        for name in set(self.env) - set(before):
            del self.env[name]

    def _assign(self, statement: tree.Assign) -> None:
        text = print_statement(substitute(statement, self.shown)) if self.shown else (
            statement.span.text or print_statement(statement)
        )  # fmt: skip
        values = values_of(self.block, self, statement)
        for target, value in zip(statement.targets, values, strict=True):
            self._set(target, value, text, statement.span)

    def _set(self, target: tree.Target, value: Value, text: str, span: Span) -> None:
        name, *rest = target.path
        if self.own(name) and rest and self._is_state(rest[0]):
            name, *rest = rest
        key = "self" if self.own(name) else name
        if key == "eval" and self.in_rule:
            return
        state = key == "self" or self._is_state(key)
        if not state:
            self._check_local(target, key)
        if rest and not state:
            self.context.fail(
                "NL0310", f"`{'.'.join(target.path)}` cannot be assigned", target.span,
                "no part of a state", "assign a state, a part of `self`, or a local name",
            )  # fmt: skip
        if key == "self":
            self.body.assigns_self = True
        if state:
            value = self._fit_target(key, rest, value, target.span)
        elif target.shape is not None:
            assert isinstance(value, Expr)
            check_shape(self.block, value, target, self.lead, "NL0407")
        self.env[key] = self._let(key, rest, value, text, span)

    def _check_local(self, target: tree.Target, name: str) -> None:
        owner = self.block.owner(name)
        if owner is not None and not self.in_rule:
            what, span = owner
            self.context.fail(
                "NL0507", f"`{name}` is not this memory's to change", target.span,
                f"`{name}` is {what}",
                f"assign `self`, a state of `{self.body.name}` or a new name",
                (span, f"`{name}` belongs here"),
            )  # fmt: skip
        if name in RESERVED or (self.arguments and name in self.arguments):
            self.context.fail(
                "NL0303", f"`{name}` cannot be assigned", target.span,
                "this name has a meaning of its own", "choose another name",
            )  # fmt: skip

    def _fit_target(self, key: str, rest: list[str], value: Value, span: Span) -> Value:
        if not rest:
            return self.fit_state(key, value, span)
        whole = self.env[key]
        chosen = whole
        for name in rest:
            chosen = select(self.context, chosen, name, span)
        return self._like(chosen, value, span)

    def fit_state(self, key: str, value: Value, span: Span) -> Value:
        """Give a value the shape of a state: smaller shapes are spread over it."""
        return self._like(self.start.get(key, self.env[key]), value, span)

    def _like(self, model: Value, value: Value, span: Span) -> Value:
        if isinstance(value, Struct) and not isinstance(model, Struct):
            if len(value.parts) == 1:
                value = value.parts[0][1]
            else:
                self.context.fail(
                    "NL0404", "a value with parts does not fit here", span,
                    ", ".join(name for name, _ in value.parts), "assign one part",
                )  # fmt: skip

        def one(pair: list[Expr]) -> Expr:
            state, new = pair
            want, have = state.shape, new.shape
            n = split(want, self.lead)
            body = have[split(have, self.lead) :]
            ways = embeddings(body, want[n:])
            if len(ways) != 1:
                self.context.fail(
                    "NL0404" if not ways else "NL0405", "the value does not fit the state", span,
                    f"this is {show(body)}", f"the state is {show(want[n:])}",
                )  # fmt: skip
            if [a.size for a in have] == [a.size for a in want]:
                return new
            wide = align(self.context, new, want[:n], want[n:], self.lead)
            # spread a smaller value over the state's shape
            yes = self.context.number(1.0, span)
            return self.make("where", yes, wide, state, span=span)

        return each(self.context, [model, value], one, span)

    def _let(self, key: str, rest: list[str], value: Value, text: str, span: Span) -> Value:
        kind = "" if key == "self" else key
        named: list[tuple[str, Expr]] = []
        pairs = value.parts if isinstance(value, Struct) else ()
        if not pairs:
            assert isinstance(value, Expr)
            part = self._only_part(key, rest)
            pairs = ((part, value),)
        for part, expr in pairs:
            named.append((part, self.make("let", expr, name=kind or "self", part=part, span=span)))
        self.body.statements.append(Statement(key, tuple(named), text, span))
        if rest:
            whole = self.env[key]
            assert isinstance(whole, Struct)
            changed = dict(named)
            return Struct(whole.map, tuple((p, changed.get(p, e)) for p, e in whole.parts))
        if isinstance(value, Struct):
            return Struct(value.map, tuple(named))
        return named[0][1]

    def _only_part(self, key: str, rest: list[str]) -> str:
        whole = self.env.get(key)
        if rest and isinstance(whole, Struct):
            for part, _ in whole.parts:
                if part == ".".join(rest) or part.startswith(f"{rest[0]}."):
                    return part
        variable = next((v for v in self.body.variables if (v.name or "self") == key), None)
        return variable.parts[0].name if variable else ""

    def finish(self) -> tuple[Assignment, ...]:
        """Give each state's new value, `through = stop` put in."""
        found: list[Assignment] = []
        for variable in self.body.variables:
            key = variable.name or "self"
            old, new = self.start[key], self.env[key]
            if self.body.written.through == "stop" and new is not old:
                step = self.combine("sub", self.span, [(new, self.span), (old, self.span)])
                step = each(
                    self.context, [step], lambda v: self.make("stop", *v, span=self.span), self.span
                )
                new = self.combine("add", self.span, [(old, self.span), (step, self.span)])
            parts = new.parts if isinstance(new, Struct) else ((variable.parts[0].name, new),)
            found.extend(Assignment(variable.name, part, expr) for part, expr in parts)
        return tuple(found)
