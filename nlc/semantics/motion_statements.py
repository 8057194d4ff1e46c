"""The equations of a rule as actions in order.

In: statements and the scope they stand in. Out: `Action`s. After an assignment a name stands for
its present value, so what follows is over what the names hold on its line, and nothing is written
out twice. A memory inside the rule moves before the first equation that reads it.
"""

from __future__ import annotations

from dataclasses import replace

from nlc.ir.expr import Expr, postorder
from nlc.ir.rule import Action, Every, Loop, Set, When, count_word
from nlc.semantics.assignments import values_of
from nlc.semantics.motion_scopes import MotionScope
from nlc.semantics.periods import period_in
from nlc.semantics.statements import assign_one, fit_state, in_order
from nlc.semantics.values import Struct, Value
from nlc.source import Span
from nlc.syntax import tree
from nlc.syntax.print_text import print_statement


def walk(scope: MotionScope, statements: tuple[tree.Stmt, ...]) -> tuple[Action, ...]:
    """Turn a block of statements into actions."""
    recorder = scope.recorder
    outer, recorder.actions = recorder.actions, []
    walk_on(scope, statements)
    found, recorder.actions = tuple(recorder.actions), outer
    return found


def walk_on(scope: MotionScope, statements: tuple[tree.Stmt, ...]) -> None:
    """Add the actions of statements to the present block; faults are recorded and it goes on."""
    in_order(scope, statements, _statement)


def _statement(scope: MotionScope, statement: tree.Stmt) -> None:
    recorder = scope.recorder
    match statement:
        case tree.Assign():
            _assign(scope, statement)
        case tree.When(condition=condition, body=body, span=span):
            holds = scope.scalar(condition, "a condition")
            inside = _inside(scope, body, span)
            recorder.actions.append(When(holds, inside, f"when {condition.span.text}", span))
        case tree.Every(period=period, body=body, span=span):
            unit, count = period_in(scope, period)
            if unit != "steps":
                scope.context.fail(
                    "NL0806", "an optimizer sees no tokens", period.span, "a period of tokens",
                    "in an optimizer a period counts steps, the calls of the rule: "
                    "`every 10 steps { }`",
                )  # fmt: skip
            recorder.around.append(count)
            inside = _inside(scope, body, span)
            recorder.around.pop()
            text = f"every {count_word(count)} steps"
            recorder.actions.append(Every(count, inside, text, span))
        case tree.Repeat(count=count, body=body):
            _repeat(scope, scope.context.repeats(count), statement)
        case tree.Share():
            scope.context.fail(
                "NL0703", "`share` belongs in a model", statement.span, "in a rule",
                "move it to `model { }`",
            )  # fmt: skip


def _inside(scope: MotionScope, body: tuple[tree.Stmt, ...], span: Span) -> tuple[Action, ...]:
    """Walk a block that may not run: names it makes are its own."""
    before = dict(scope.env)
    actions = walk(scope, body)
    _same_shapes(scope, before, span)
    scope.env = {name: scope.env[name] for name in before}
    return actions


def _same_shapes(scope: MotionScope, before: dict[str, Value], span: Span) -> None:
    for name, value in before.items():
        after = scope.env[name]
        if isinstance(value, Expr) and isinstance(after, Expr) and value.shape != after.shape:
            scope.context.fail(
                "NL0404", f"`{name}` has another shape inside than outside", span,
                "changed in this block", "give what is inside a name of its own",
            )  # fmt: skip


def _repeat(scope: MotionScope, times: int, statement: tree.Repeat) -> None:
    before = dict(scope.env)
    actions = walk(scope, statement.body)
    _same_shapes(scope, before, statement.span)
    scope.recorder.actions.append(Loop(times, actions, statement.span))


def _assign(scope: MotionScope, statement: tree.Assign) -> None:
    text = statement.span.text or print_statement(statement)
    values = values_of(scope.block, scope, statement)
    names = {".".join(target.path) for target in statement.targets}
    if len(values) > 1:
        values = [_kept(scope, v, names, statement.span, str(i)) for i, v in enumerate(values)]
    for target, value in zip(statement.targets, values, strict=True):
        if target.path[0] == "eval":
            value = fit_state(scope, "self", value, target.span)
            assert isinstance(value, Expr)
            scope.recorder.actions.append(Set("eval", value, text, statement.span))
            continue
        assign_one(scope, target, value, text, statement.span)
        _record(scope, text, statement.span)


def _kept(scope: MotionScope, value: Value, names: set[str], span: Span, place: str) -> Value:
    """Hold a value that reads what another value of the same line is about to change."""
    if isinstance(value, Struct):
        parts = tuple(
            (part, _kept_one(scope, expr, names, span, f"{place}.{part}"))
            for part, expr in value.parts
        )
        return Struct(value.map, parts)
    return _kept_one(scope, value, names, span, place)


def _kept_one(scope: MotionScope, value: Expr, names: set[str], span: Span, place: str) -> Expr:
    read = {n.attr("name") for n in postorder([value]) if n.op == "stream"}
    if not read & names:
        return value
    scope.recorder.actions.append(Set(f"value.{place}", value, "", span))
    return scope.make("stream", name=f"value.{place}", shape=value.shape, span=span)


def _record(scope: MotionScope, text: str, span: Span) -> None:
    """Turn the equation that was just resolved into actions, its names into leaves."""
    done = scope.body.statements[-1]
    variable = next((v for v in scope.body.variables if (v.name or "self") == done.target), None)
    leaves: dict[str, Expr] = {}
    new: list[tuple[str, Expr]] = []
    for part, let in done.values:
        value, shape = let.args[0], let.shape
        if variable is not None:
            own = next(p for p in variable.parts if p.name == part)
            name, shape = scope.cell(variable.name, own), own.shape
        else:
            name = scope.part(done.target, part) if part else done.target
        new.append((name, value))
        leaves[part] = scope.make("stream", name=name, shape=shape, span=span)
    _set_all(scope, new, text, span)
    now = scope.env[done.target]
    if isinstance(now, Struct):
        scope.env[done.target] = replace(
            now, parts=tuple((part, leaves.get(part, expr)) for part, expr in now.parts)
        )
    else:
        (scope.env[done.target],) = leaves.values()


def _set_all(scope: MotionScope, new: list[tuple[str, Expr]], text: str, span: Span) -> None:
    """Set the parts of a state; a part that another one's value reads is set after it."""
    waiting = list(new)
    while waiting:
        for i, (name, value) in enumerate(waiting):
            others = [v for j, (_, v) in enumerate(waiting) if j != i]
            read = {n.attr("name") for n in postorder(others) if n.op == "stream"}
            if name not in read:
                scope.recorder.actions.append(Set(name, value, text, span))
                del waiting[i]
                break
        else:
            # they read each other: hold all but the last
            held = [_kept_one(scope, v, {n for n, _ in waiting}, span, n) for n, v in waiting]
            for (name, _), value in zip(waiting, held, strict=True):
                scope.recorder.actions.append(Set(name, value, text, span))
            return
