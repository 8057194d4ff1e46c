"""Updates: equations that run in order.

Each sees the values assigned above it; here that becomes one expression per state, over the states
before the token, with a `let` at every equation so that what was written can be shown again. In a
window of several tokens an equation stands at its end, and what varies in it stands in `window`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from nlc.ir.expr import Expr
from nlc.ir.online import task_gradient
from nlc.semantics.body_scopes import BodyScope, over_tokens
from nlc.semantics.memories import route_of
from nlc.semantics.objectives import asked_objective, resolve_objective
from nlc.semantics.records import Body
from nlc.semantics.statements import fit_state
from nlc.semantics.trees import mentions
from nlc.semantics.values import Readable, Struct, Value, each, pack
from nlc.semantics.windows import own_period, varying, window_of
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver
    from nlc.semantics.scopes import BlockScope


class UpdateScope(BodyScope):
    """Equations that run in order: `env` holds `self`, the states and the local names."""

    def __init__(self, block: BlockResolver, body: Body, arguments: dict[str, Value] | None = None):
        super().__init__(block, body)
        self.arguments = arguments
        self.in_rule = arguments is not None
        self.env: dict[str, Value] = {}
        self.start: dict[str, Value] = {}
        # what `over = tokens` goes over, and whether this is one of its tokens
        self.period = own_period(self.context, body.level)
        self.at_token = False
        # inside `every N steps`: the updates over which `grad` is summed
        self.calls: tuple[str, int] | None = None
        # the rules around, outermost first
        self.rules: tuple[str, ...] = ()
        self.shown: dict[str, tree.Expr] = {}
        # how often what is being read runs at each token
        self.repeats = 1

    def begin(self) -> None:
        """Start from the states before the token."""
        for variable in self.body.variables:
            self.env[variable.name or "self"] = self.all_parts(variable.name, "prev")
        self.start = dict(self.env)

    def called(self, key: str) -> str:
        """How what an equation sets is called outside: a memory inside a rule by its own name."""
        return key

    def ready(self, statement: tree.Stmt) -> None:
        """Do what must be done before a statement, also where a block does not run."""

    @property
    def in_window(self) -> bool:
        """Say whether several tokens make one update."""
        return self.period != ("tokens", 1)

    @property
    def at_end(self) -> bool:
        """Say whether what stands here is evaluated once, at the end of several tokens."""
        return self.in_window and not self.at_token

    def over_window(self, value: Value, how: str, span: Span) -> Value:
        """Reduce a value over the tokens of the window."""
        return self._window(value, how, self.period, span)

    def _window(self, value: Value, how: str, period: tuple[str, int], span: Span) -> Value:
        return each(
            self.context, [value],
            lambda v: self.make(
                "window", v[0], how=how, period=period, slot="", again=False, span=span
            ),
            span,
        )  # fmt: skip

    # ---- names -----------------------------------------------------------------------------

    @property
    def outside(self) -> BlockScope:
        return self.block.scope_at(self.period[1]) if self.at_end else self.block.scope

    def instant(self, value: Value, memory: str, span: Span) -> Value:
        """What another memory holds when the window ends, where it moves while that lasts."""
        body = self.block.bodies.get(memory)
        if body is None or not self.at_end:
            return value
        clock = window_of(self.context, body.level)
        if self.body.is_task:
            if body.is_task and clock < self.period[1]:
                self.body.faster = body
            return self.over_window(value, "last", span)
        if clock > self.period[1] or body.is_task:
            return value
        return self.over_window(value, "last", span)

    def known_names(self) -> list[str]:
        names = [*self.env, "grad", "key"]
        if self.in_rule:
            return [*names, *(self.arguments or {})]
        return [*names, *super().known_names()]

    def own(self, name: str) -> bool:
        return name == "self" or (not self.in_rule and name == self.body.name)

    def dim(self, name: str) -> int | None:
        return None if self.in_rule else super().dim(name)

    def unknown(self, what: str, name: str, span: Span) -> NoReturn:
        outside = self.block.owner(name) is not None or name in self.context.dims
        if self.in_rule and outside:
            self.context.fail(
                "NL0301", f"unknown {what} `{name}`", span, "a rule does not see it",
                "a rule sees its arguments and states, `self`, `grad`, `key`, `in` and `out`: "
                "give it as an argument",
            )  # fmt: skip
        super().unknown(what, name, span)

    def find(self, name: tree.Name) -> Value | None:
        key = "self" if self.own(name.id) else name.id
        if key in self.env:
            return self.env[key]
        if name.id == "grad":
            return self.over_calls(self.gradient(None, None, name.span), name.span)
        if self.in_rule:
            assert self.arguments is not None
            if name.id in self.arguments:
                return self.arguments[name.id]
            if name.id in ("key", "in", "out"):
                return super().find(name)
            return None
        value = super().find(name)
        return None if value is None else self.instant(value, name.id, name.span)

    def readable(self, expr: tree.Expr) -> Readable | None:
        if isinstance(expr, tree.Name) and self.own(expr.id):
            parts = self.parts_of(self.env["self"])
            # what a rule holds is no memory of the block
            name = "" if self.body.rules else self.body.name
            return Readable(self.body.name, self.body.map, self.lead, parts, name)
        if self.in_rule and not (isinstance(expr, tree.Call) and self.own_time(expr)):
            return None
        found = super().readable(expr)
        if found is None or found.memory not in self.block.bodies or self.own(found.name):
            return found
        parts = tuple(self._instant(part, found.memory) for part in found.parts)
        route = None if found.route is None else self._instant(found.route, found.memory)
        return replace(found, parts=parts, route=route)

    def _instant(self, expr: Expr, memory: str) -> Expr:
        value = self.instant(expr, memory, expr.span)
        assert isinstance(value, Expr)
        return value

    def parts_of(self, value: Value) -> tuple[Expr, ...]:
        """The expressions of a value, in the order of its parts."""
        if isinstance(value, Struct):
            return tuple(expr for _, expr in value.parts)
        return (value,)

    def read(self, what: Readable, x: Expr, span: Span) -> Expr:
        read = super().read(what, x, span)
        if what.map.kind == "kernel":
            read = self._instant(read, what.memory)
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
        value = super().special(name, call)
        if value is not None and name in ("prev", "initial"):
            (argument, *_) = call.arguments
            base = argument.base if isinstance(argument, tree.Attribute) else argument
            if isinstance(base, tree.Name) and not self.own(base.id):
                return self.instant(value, base.id, call.span)
        return value

    def attribute(self, expr: tree.Attribute) -> Value:
        base = expr.base
        if isinstance(base, tree.Name) and self.own(base.id) and self.is_state(expr.name):
            return self.env[expr.name]
        value = super().attribute(expr)
        if isinstance(base, tree.Name) and not self.own(base.id):
            return self.instant(value, base.id, expr.span)
        return value

    # ---- gradients -------------------------------------------------------------------------

    def _grad_call(self, call: tree.Call) -> Value:
        at: Value | None = None
        for keyword in call.keywords:
            if keyword.name != "at":
                self.context.unknown("option", keyword.name, keyword.span, ["at"], "NL0307")
            at = fit_state(self, "self", self.value(keyword.value), keyword.value.span)
        if len(call.arguments) > 1:
            self.context.fail(
                "NL0309", "`grad` takes one objective", call.span, f"{len(call.arguments)} given",
                "`grad`, `grad(at = e)`, `grad(objective)` or `grad(objective, at = e)`",
            )  # fmt: skip
        objective = None
        if call.arguments:
            self._check_owner(call.arguments[0])
            env = {k: v for k, v in self.env.items() if k != "self"}
            env = {**(self.arguments or {}), **env}
            objective = resolve_objective(
                self.block, self.body, call.arguments[0], env, closed=self.in_rule
            )
        value = self.gradient(objective, at, call.span)
        return value if at is not None else self.over_calls(value, call.span)

    def _check_owner(self, written: tree.Expr) -> None:
        """Refuse a gradient that is for something else than this memory."""
        if self.in_rule or mentions(written, {"self", self.body.name}):
            return
        others = sorted({*self.block.bodies, *self.block.weights} - {self.body.name})
        for name in others:
            if mentions(written, {name}):
                what, place = self.block.owners[name]
                self.context.fail(
                    "NL0520", f"a gradient of `{name}`, which this memory does not own",
                    written.span, f"`{name}` is {what} and a constant here",
                    f"`grad(e)` is the gradient of e for `{self.body.name}`: apply it in e",
                    (place, f"`{name}` is declared here"), (self.span, "the memory"),
                )  # fmt: skip

    def gradient(self, objective: Expr | None, at: Value | None, span: Span) -> Value:
        """`grad` of an objective (the memory's own by default), with the memory at a value."""
        if objective is None and self.body.given_grad:
            if at is not None and self.body.is_task:
                return self._asked_gradient(self.parts_of(at), span)
            if self.at_token and self.body.is_task:
                self.body.token_grad = span
            return self._given_gradient(span)
        if objective is None:
            objective = asked_objective(self.block, self.body, span, self.span)
        value = at if at is not None else self.start["self"]
        points = self.parts_of(value)
        names = tuple(part.name for part in self.body.parts)
        found: list[tuple[str, Expr]] = []
        for name in names:
            node = self.make(
                "grad", objective, *points, memory=self.body.label, part=name, parts=names,
                span=span,
            )  # fmt: skip
            if self.body.written.through == "first_order":
                node = self.make("stop", node, span=span)
            found.append((name, node))
        value = pack(self.body.map, tuple(found))
        if not self.in_window or (self.body.rules and not any(varying([objective]))):
            # a memory of a rule learns from what the rule is given once for the window
            return value
        value = self._of_chosen(value, span)
        if self.at_token:
            return value
        self.body.points += points
        return self.over_window(value, "sum", span)

    def _of_chosen(self, value: Value, span: Span) -> Value:
        """The gradient at one token of a window: of a part that is not selected there it is 0."""
        route = route_of(self.block, self.body)
        if route is None:
            return value
        nothing = self.context.number(0.0, span)
        chosen = self.make("gt", route, nothing, span=route.span)
        return self.combine("where", span, [(chosen, span), (value, span), (nothing, span)])

    def over_calls(self, value: Value, span: Span) -> Value:
        """Inside `every N steps`: the sum over N updates."""
        if self.calls is None or self.at_token:
            return value
        return self._window(value, "sum", self.calls, span)

    def _given_gradient(self, span: Span) -> Value:
        """`grad` where it comes from outside: the gradient of the task, or what a rule is given."""
        first_order = self.body.is_task and self.body.written.through == "first_order"
        found: list[tuple[str, Expr]] = []
        for part in self.body.parts:
            node = self.make(
                "variable", memory=task_gradient(self.body.name), part=part.name,
                shape=(*self.lead, *part.shape), span=span,
            )  # fmt: skip
            found.append((part.name, self.make("stop", node, span=span) if first_order else node))
        return pack(self.body.map, tuple(found))

    def _asked_gradient(self, points: tuple[Expr, ...], span: Span) -> Value:
        """`grad(at = e)` of the task: the window is read again with the memory at e."""
        known = next((i for i, p in enumerate(self.body.asks) if _same(p, points)), None)
        index = len(self.body.asks) if known is None else known
        if known is None:
            self.body.asks.append(points)
        found: list[tuple[str, Expr]] = []
        for part in self.body.parts:
            node = self.make(
                "ask", *points, memory=self.body.name, part=part.name, index=index,
                shape=(*self.lead, *part.shape), span=span,
            )  # fmt: skip
            first_order = self.body.written.through == "first_order"
            found.append((part.name, self.make("stop", node, span=span) if first_order else node))
        return pack(self.body.map, tuple(found))

    # ---- windows ---------------------------------------------------------------------------

    def _tokens(self, call: tree.Call) -> Value | None:
        over = over_tokens(call)
        if over is None:
            return None
        assert isinstance(call.function, tree.Name)
        value = self._over_tokens(call.function.id, call)
        if not isinstance(over, tree.Tuple):
            return value
        rest = tuple(i for i in over.items if not (isinstance(i, tree.Name) and i.id == "tokens"))
        axes = (tree.Keyword("over", tree.Tuple(rest, span=over.span), span=over.span),)
        inner = tree.Call(call.function, call.arguments, axes, span=call.span)
        op = call.function.id

        def one(values: list[Expr]) -> Expr:
            return self.reduce(op, values[0], self.over(values[0], inner), call.span)

        return each(self.context, [value], one, call.span)

    def _over_tokens(self, how: str, call: tree.Call) -> Value:
        if how not in ("sum", "mean", "last"):
            self.context.fail(
                "NL0606", f"`{how}` over tokens has no meaning", call.span, "in this place",
                "over the tokens of an update go `sum`, `mean` and `last`",
            )  # fmt: skip
        if not self.in_window:
            # a window of one token
            return self.value(call.arguments[0])
        inside, self.at_token = self.at_token, True
        try:
            value = self.value(call.arguments[0])
        finally:
            self.at_token = inside
        return self.over_window(value, how, call.span)


def _same(some: tuple[Expr, ...], others: tuple[Expr, ...]) -> bool:
    """Say whether these are the same expressions."""
    return all(a is b for a, b in zip(some, others, strict=True))
