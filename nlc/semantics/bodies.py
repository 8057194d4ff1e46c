"""The body of a memory: its clauses checked, its objective, update and states resolved.

In: a `Body`. Out: the same, filled, and the memory of the typed system.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.ir.online import task_gradient
from nlc.ir.shape import show
from nlc.ir.system import (
    Memory,
    Period,
)  # fmt: skip
from nlc.semantics.by_part import move_by_part
from nlc.semantics.context import Context
from nlc.semantics.initials import set_initials
from nlc.semantics.memories import lead_of, resolve_pairs, variables
from nlc.semantics.objectives import own_objective
from nlc.semantics.online import cannot_adapt
from nlc.semantics.records import Body
from nlc.semantics.rule_scopes import RuleScope, rule_scope
from nlc.semantics.statements import finish, run
from nlc.semantics.sums import kept, lasts, settle
from nlc.semantics.updates import UpdateScope
from nlc.semantics.uses import moved
from nlc.semantics.weights import need_optimizer
from nlc.semantics.windows import place_of, varying, window_of
from nlc.source import NOWHERE
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def resolve_body(block: BlockResolver, body: Body) -> None:
    """Resolve everything inside the braces; a fault raises `Bad`."""
    level = block.context.levels[body.level]
    written = body.written
    kernel = body.map.kind == "kernel"
    if kernel != (level.period.unit == "always"):
        block.context.fail(
            "NL0211",
            "a kernel is recomputed for each query" if kernel else
            f"`{body.name}` cannot be stored at a level that is `always`",
            written.span, f"`{body.name}` is at `{level.name}`, {level.period}",
            "a level `always` holds kernels: `kernel(softmax) at now`, with `level now always`",
            (level.span, "the level"),
        )  # fmt: skip
    lead_of(block, body)
    if body.guessed:
        body.lead, body.guessed = None, False
        lead = lead_of(block, body)
        if lead and not written.axes:
            block.context.fail(
                "NL0412", f"`{body.name}` makes its own key and needs its leading axes",
                written.span, f"one copy per {show(lead)}",
                f"write them: `memory {body.name}{show(lead)} : ...`",
            )  # fmt: skip
    _check_clauses(block, body, kernel)
    variables(block, body)
    if kernel:
        _kernel(block, body)
        return
    resolve_pairs(block, body)
    set_initials(block, body)
    if body.is_task:
        _task(block, body)
        return
    if level.period.unit == "steps":
        block.context.unsupported.append(
            ("NL0807", f"memory `{body.name}` with its own objective at a step level",
             written.span, "leave it out for now")
        )  # fmt: skip
    if level.period.unit == "never":
        block.context.fail(
            "NL0208", f"`{body.name}` is at a level that never changes", written.span,
            f"`{level.name}` is frozen", "use `weights`, or a level of tokens",
            (level.span, "the level"),
        )  # fmt: skip
    own_objective(block, body)
    _update(block, body)


def _task(block: BlockResolver, body: Body) -> None:
    """Resolve the update of `objective task` at a token level: its gradient is the model's."""
    if body.written.update is None:
        need_optimizer(block.context, body.level, body.written.span)
        return
    body.given_grad = True
    _update(block, body)
    for words, span, hint in cannot_adapt(block, body):
        block.context.unsupported.append(("NL0804", words, span, hint))


def _check_clauses(block: BlockResolver, body: Body, kernel: bool) -> None:
    written = body.written
    places = dict(written.clauses)

    def refuse(clause: str, text: str, hint: str) -> None:
        block.context.fail(
            "NL0509" if kernel else "NL0514", f"`{clause}` does not belong here",
            places.get(clause, written.span), text, hint, (written.span, "the memory"),
        )  # fmt: skip

    if kernel:
        for clause in ("objective", "update", "through", "slots", "route", "select"):
            if clause in places or getattr(written, clause):
                refuse(clause, "a softmax memory is recomputed for each query",
                       "it has `key`, `value`, `init learned(n)` and `reset`")  # fmt: skip
    slotted = [c for c in ("slots", "route", "select") if getattr(written, c) is not None]
    if slotted and ("slots" not in slotted or "route" not in slotted):
        missing = "slots" if "slots" not in slotted else "route"
        refuse(slotted[0], f"there is no `{missing}`",
               "write `slots N` and `route e` (and `select top_k(n)`)")  # fmt: skip


def _kernel(block: BlockResolver, body: Body) -> None:
    written = body.written
    if not written.keys or not written.values:
        block.context.fail(
            "NL0509", f"`{body.name}` needs a key and a value", written.span,
            f"{len(written.keys)} keys, {len(written.values)} values",
            "write `key k` and `value v`, or lists of as many each",
        )  # fmt: skip
    resolve_pairs(block, body)
    match written.init:
        case None:
            pass
        case tree.Call(function=tree.Name(id="learned"), arguments=(count,)):
            body.persistent = block.context.positive(count, "the number of learned pairs")
            body.learned = True
        case other:
            block.context.fail(
                "NL0510", "a softmax memory starts empty or with learned pairs", other.span,
                "no such start", "write `init learned(n)` for n persistent pairs",
            )  # fmt: skip


def _update(block: BlockResolver, body: Body) -> None:
    update = body.written.update
    if update is None:
        block.context.fail(
            "NL0505", f"`{body.name}` has no update", body.written.span, "the memory",
            "write `update { self = self - lr * grad }` or `update sgd(lr = 0.1)`",
        )  # fmt: skip
    if isinstance(update, tuple):
        scope = UpdateScope(block, body)
        statements = update
    else:
        outer = UpdateScope(block, body)
        outer.begin()
        scope, statements = rule_scope(block, body, update, outer)
        block.resolver.used_rules.add(scope.rules[-1])
    scope.begin()
    before = len(block.context.faults.found)
    if not body.inner_of:
        run(scope, statements)
    if isinstance(scope, RuleScope):
        scope.move_all()
        assert not isinstance(update, tuple)
        if body.inner_of or (body.bad and _of_one_matrix(block, body, before)):
            move_by_part(block, body, update)
        _at_call(block, scope.rules[-1], update, before)
    if not body.bad:
        body.update = body.update or finish(scope)
        if scope.in_window:
            _varies(block, body)
        _settle(block, body)


def _of_one_matrix(block: BlockResolver, body: Body, before: int) -> bool:
    """Say whether a rule's equations do not fit a map with parts; then all is as before them."""
    faults = block.context.faults
    shapes = all(diagnostic.code.startswith("NL04") for diagnostic in faults.found[before:])
    if len(body.map.parts) < 2 or not shapes:
        return False
    del faults.found[before:]
    body.statements, body.asks, body.points, body.bad = [], [], (), False
    return True


def _settle(block: BlockResolver, body: Body) -> None:
    """Say what is kept until a window ends, in the update and in the equations as written."""
    window = window_of(block.context, body.level)

    def moves(name: str) -> bool:
        other = block.bodies.get(name)
        # until an update that waits, any other may move
        return other is not None and other is not body and (
            body.is_task or window_of(block.context, other.level) < window
        )  # fmt: skip

    # the equations come first: slots are numbered as they are written
    roots = [value for s in body.statements for _, value in s.values]
    roots += [a.value for a in body.update]
    if body.is_task and window == 1:
        roots = lasts(block.graph, roots, body.label)
    waits = task_gradient(body.name) if body.is_task else ""
    values = iter(settle(block.graph, roots, window, moves, waits))
    body.statements = [
        replace(s, values=tuple((part, next(values)) for part, _ in s.values))
        for s in body.statements
    ]
    body.update = tuple(replace(a, value=next(values)) for a in body.update)


def _at_call(
    block: BlockResolver, rule: str, update: tree.Expr | tuple[tree.Stmt, ...], before: int
) -> None:
    """Show the faults of a shipped rule where it is used: its text is not the user's."""
    shipped = block.resolver.library.get(rule)
    if shipped is None or rule in block.context.rules or isinstance(update, tuple):
        return
    found = block.context.faults.found
    places = {id(shipped.span.source): update.span}
    found[before:] = [moved(diagnostic, places) for diagnostic in found[before:]]


def _varies(block: BlockResolver, body: Body) -> None:
    """Refuse a stream that stands bare in the update of a window."""
    roots = [*(a.value for a in body.update), *body.points]
    for node in varying(roots):
        update = next(
            (p for word, p in body.written.clauses if word == "update"), body.written.span
        )
        name = node.attr("name") if node.op == "stream" else node.op
        period = block.context.levels[body.level].period
        block.context.fail(
            "NL0603", f"`{name}` varies inside the window", place_of(node, roots, update),
            f"differs at every token, but `{body.name}` changes {period}",
            "weight the objective with it, or reduce it: `mean(e, over = tokens)`, "
            "`sum(e * grad, over = tokens)`, `last(e)`", (body.written.span, "the memory"),
        )  # fmt: skip


def finish_memory(context: Context, body: Body) -> Memory:
    """Make the memory of the typed system from its resolved body."""
    level = context.levels[body.level]
    reset = None
    if body.written.reset is not None:
        unit, count = context.period(body.written.reset)
        reset = Period(unit, count)
    window = window_of(context, body.level)
    sums, recent = kept([a.value for a in body.update])
    return Memory(
        name=body.name,
        level=body.level,
        lead=body.lead or (),
        map=body.map,
        variables=tuple(body.variables),
        pairs=body.pairs,
        objective=body.objective,
        is_task=body.is_task,
        statements=tuple(body.statements),
        update=body.update,
        learned=body.learned,
        chunk=level.chunk,
        reset=reset,
        through=body.written.through or "full",  # type: ignore[arg-type]
        persistent=body.persistent,
        window=window,
        sums=sums,
        recent=recent,
        written_objective=body.written.objective.span if body.written.objective else None,
        span=body.span or NOWHERE,
    )
