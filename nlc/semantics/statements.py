"""The equations of an update: run in order, each changing what the names mean for the next.

In: a scope and its statements. Out: `Assignment`s, one expression per part of each state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from nlc.ir.expr import Expr
from nlc.ir.shape import show
from nlc.ir.system import Assignment, Statement
from nlc.semantics.assignments import check_shape, values_of
from nlc.semantics.axes import align, embeddings, split
from nlc.semantics.context import Bad
from nlc.semantics.functions import RESERVED
from nlc.semantics.memories import route_of
from nlc.semantics.periods import period_in
from nlc.semantics.trees import substitute, tidied
from nlc.semantics.values import Struct, Value, each, select
from nlc.source import Span
from nlc.syntax import tree
from nlc.syntax.print_text import print_statement

if TYPE_CHECKING:
    from nlc.semantics.updates import UpdateScope

ScopeT = TypeVar("ScopeT", bound="UpdateScope")


def run(scope: UpdateScope, statements: tuple[tree.Stmt, ...]) -> None:
    """Run equations in order; faults are recorded and the rest goes on."""
    in_order(scope, statements, _statement)


def in_order(
    scope: ScopeT, statements: tuple[tree.Stmt, ...], act: Callable[[ScopeT, tree.Stmt], None]
) -> None:
    """Act on statements in order; a fault is recorded, and what it would have set is a number."""
    for statement in statements:
        try:
            scope.ready(statement)
            act(scope, statement)
        except Bad:
            scope.body.bad = True
            if isinstance(statement, tree.Assign):
                for target in statement.targets:
                    scope.env.setdefault(target.path[0], scope.context.number(0.0, target.span))


def _statement(scope: UpdateScope, statement: tree.Stmt) -> None:
    match statement:
        case tree.Assign():
            _assign(scope, statement)
        case tree.When(condition=condition, body=body):
            _under(scope, scope.scalar(condition, "a condition"), body, condition.span)
        case tree.Every(period=period, body=body):
            _every(scope, period, body)
        case tree.Repeat(count=count, body=body):
            times = scope.context.repeats(count, scope.repeats)
            outer, scope.repeats = scope.repeats, scope.repeats * times
            for _ in range(times):
                run(scope, body)
            scope.repeats = outer
        case tree.Share():
            scope.context.fail(
                "NL0703", "`share` belongs in a model", statement.span, "in an update",
                "move it to `model { }`",
            )  # fmt: skip


def _every(scope: UpdateScope, period: tree.Period, body: tuple[tree.Stmt, ...]) -> None:
    """Run equations when a period ends; a step is one update, and `grad` is then their sum."""
    unit, number = period_in(scope, period)
    # an argument without a value stands for any count: the rule is only being checked
    count = int(number.attr("value")) if number.op == "const" else 1
    own, size = scope.period
    if unit == "tokens" and own == "tokens" and count % size:
        level = scope.context.levels[scope.body.level]
        multiples = ", ".join(str(size * i) for i in range(count // size + 1, count // size + 4))
        scope.context.fail(
            "NL0203", f"`every {count} tokens` does not nest over `{level.name}`", period.span,
            f"{count} is not a multiple of {size}",
            f"a period inside an update is a multiple of the memory's own: {multiples}, ...",
            (level.span, f"`{level.name}` updates every {size} tokens"),
        )  # fmt: skip
    outer = scope.calls
    if unit == "steps":
        scope.calls = (own, count * size) if count > 1 else None
    ends = (own, count * size) if unit == "steps" else (unit, count)
    due = scope.make("due", period=ends, span=period.span)
    try:
        _under(scope, due, body, period.span)
    finally:
        scope.calls = outer


def _under(scope: UpdateScope, condition: Expr, body: tuple[tree.Stmt, ...], span: Span) -> None:
    before = dict(scope.env)
    run(scope, body)
    for name, old in before.items():
        new = scope.env[name]
        if new is not old:
            scope.env[name] = scope.combine(
                "where", span, [(condition, span), (new, span), (old, span)]
            )
    for name in set(scope.env) - set(before):
        del scope.env[name]


def _assign(scope: UpdateScope, statement: tree.Assign) -> None:
    text = print_statement(tidied(substitute(statement, scope.shown))) if scope.shown else (
        statement.span.text or print_statement(statement)
    )  # fmt: skip
    values = values_of(scope.block, scope, statement)
    for target, value in zip(statement.targets, values, strict=True):
        assign_one(scope, target, value, text, statement.span)


def assign_one(
    scope: UpdateScope, target: tree.Target, value: Value, text: str, span: Span
) -> None:
    """Let a name stand for a value from here on, and note the equation."""
    name, *rest = target.path
    if scope.own(name) and rest and scope.is_state(rest[0]):
        name, *rest = rest
    key = "self" if scope.own(name) else name
    if key == "eval" and scope.in_rule:
        fit_state(scope, "self", value, target.span)
        return
    state = key == "self" or scope.is_state(key)
    if not state:
        _check_local(scope, target, key)
    if rest and not state:
        scope.context.fail(
            "NL0310", f"`{'.'.join(target.path)}` cannot be assigned", target.span,
            "no part of a state", "assign a state, a part of `self`, or a local name",
        )  # fmt: skip
    if key == "self":
        scope.body.assigns_self = True
    if state:
        value = _fit_target(scope, key, rest, value, target.span)
    elif target.shape is not None:
        assert isinstance(value, Expr)
        check_shape(scope.block, value, target, scope.lead, "NL0407")
    scope.env[key] = _let(scope, key, rest, value, text, span)


def _check_local(scope: UpdateScope, target: tree.Target, name: str) -> None:
    owner = scope.block.owner(name)
    if owner is not None and not scope.in_rule:
        what, span = owner
        scope.context.fail(
            "NL0507", f"`{name}` is not this memory's to change", target.span,
            f"`{name}` is {what}",
            f"assign `self`, a state of `{scope.body.name}` or a new name",
            (span, f"`{name}` is declared here"),
        )  # fmt: skip
    if name in RESERVED or (scope.arguments and name in scope.arguments):
        scope.context.fail(
            "NL0303", f"`{name}` cannot be assigned", target.span,
            "this name is reserved", "choose another name",
        )  # fmt: skip


def _fit_target(scope: UpdateScope, key: str, rest: list[str], value: Value, span: Span) -> Value:
    if not rest:
        return fit_state(scope, key, value, span)
    whole = scope.env[key]
    chosen = whole
    for name in rest:
        chosen = select(scope.context, chosen, name, span)
    return _like(scope, chosen, value, span)


def fit_state(scope: UpdateScope, key: str, value: Value, span: Span) -> Value:
    """Give a value the shape of a state: smaller shapes are spread over it."""
    return _like(scope, scope.start.get(key, scope.env[key]), value, span)


def _like(scope: UpdateScope, model: Value, value: Value, span: Span) -> Value:
    if isinstance(value, Struct) and not isinstance(model, Struct):
        if len(value.parts) == 1:
            value = value.parts[0][1]
        else:
            scope.context.fail(
                "NL0404", "a value with parts does not fit here", span,
                ", ".join(name for name, _ in value.parts), "assign one part",
            )  # fmt: skip

    def one(pair: list[Expr]) -> Expr:
        state, new = pair
        want, have = state.shape, new.shape
        n = split(want, scope.lead)
        body = have[split(have, scope.lead) :]
        ways = embeddings(body, want[n:])
        if len(ways) != 1:
            scope.context.fail(
                "NL0404" if not ways else "NL0405", "the value does not fit the state", span,
                f"this is {show(body)}", f"the state is {show(want[n:])}",
            )  # fmt: skip
        if [a.size for a in have] == [a.size for a in want]:
            return new
        wide = align(scope.context, new, want[:n], want[n:], scope.lead)
        # spread a smaller value over the state's shape
        yes = scope.context.number(1.0, span)
        return scope.make("where", yes, wide, state, span=span)

    return each(scope.context, [model, value], one, span)


def _let(
    scope: UpdateScope, key: str, rest: list[str], value: Value, text: str, span: Span
) -> Value:
    named: list[tuple[str, Expr]] = []
    pairs = value.parts if isinstance(value, Struct) else ()
    if not pairs:
        assert isinstance(value, Expr)
        part = _only_part(scope, key, rest)
        pairs = ((part, value),)
    for part, expr in pairs:
        named.append((part, scope.make("let", expr, name=scope.called(key), part=part, span=span)))
    scope.body.statements.append(Statement(key, tuple(named), text, span))
    if rest:
        whole = scope.env[key]
        assert isinstance(whole, Struct)
        changed = dict(named)
        return Struct(whole.map, tuple((p, changed.get(p, e)) for p, e in whole.parts))
    if isinstance(value, Struct):
        return Struct(value.map, tuple(named))
    return named[0][1]


def _only_part(scope: UpdateScope, key: str, rest: list[str]) -> str:
    whole = scope.env.get(key)
    if rest and isinstance(whole, Struct):
        names, word = [part for part, _ in whole.parts], ".".join(rest)
        for part in names:
            if part == word or (word not in names and part.startswith(f"{word}.")):
                return part
    variable = next((v for v in scope.body.variables if (v.name or "self") == key), None)
    return variable.parts[0].name if variable else ""


def finish(scope: UpdateScope) -> tuple[Assignment, ...]:
    """Give each state's new value, with `through stop` and the routes of slots put in."""
    found: list[Assignment] = []
    route = route_of(scope.block, scope.body)
    for variable in scope.body.variables:
        key = variable.name or "self"
        old, new = scope.start[key], scope.env[key]
        if scope.body.written.through == "stop" and new is not old:
            step = scope.combine("sub", scope.span, [(new, scope.span), (old, scope.span)])
            step = each(
                scope.context, [step], lambda v: scope.make("stop", *v, span=scope.span), scope.span
            )
            new = scope.combine("add", scope.span, [(old, scope.span), (step, scope.span)])
        if route is not None and new is not old:
            nothing = scope.context.number(0.0, scope.span)
            chosen: Value = scope.make("gt", route, nothing, span=route.span)
            if scope.at_end:
                # a part moves with the window if one of its tokens is the part's
                chosen = scope.over_window(chosen, "sum", scope.span)
            new = scope.combine(
                "where", scope.span, [(chosen, scope.span), (new, scope.span), (old, scope.span)]
            )
        parts = new.parts if isinstance(new, Struct) else ((variable.parts[0].name, new),)
        found.extend(Assignment(variable.name, part, expr) for part, expr in parts)
    return tuple(found)
