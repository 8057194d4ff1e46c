"""A group of steps that runs token by token, or chunk by chunk, inside a sequence.

In: a `Runner` over a sequence, the group's steps and memories. Out: a `Loop` node in its program,
whose body is one token, or all tokens of one chunk; the streams the group makes, over the sequence,
and the states after it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nlc.codegen.arguments import argument_name
from nlc.codegen.lowering import batch_of
from nlc.codegen.names import identifier
from nlc.codegen.program import Loop, LoopKernel, Program, note
from nlc.codegen.scope import Scope
from torch import fx

from nlc.ir.expr import Expr, postorder
from nlc.ir.schedule import steps_of
from nlc.ir.slots import routed
from nlc.ir.system import Call, Equation, Step, Update
from nlc.ir.windows import periods

if TYPE_CHECKING:
    from nlc.codegen.runner import Runner
    from nlc.codegen.torch_block import Held


def token_loop(
    runner: Runner,
    steps: Sequence[Step],
    memories: Sequence[str],
    chunk: int = 0,
    once: Sequence[str] | None = None,
) -> None:
    """Build the loop, over chunks where a length is given, and take its results.

    With `once`, the streams that are asked for, it is the one token at hand.
    """
    from nlc.codegen.runner import Runner as Inner

    outer, owner = runner.scope, runner.owner
    unit, body = owner.unit, Program()
    batch, suffix = (2, "_c") if chunk else (1, "_t")
    one = once is not None
    items: dict[str, fx.Node] = {}
    around: dict[str, fx.Node] = {}
    carried: dict[str, fx.Node] = {}

    def borrow(name: str) -> fx.Node | None:
        """A stream from around the loop, one token of it."""
        node = outer.stream(name)
        if node is None:
            return None
        if batch_of(node) < 2:
            # the same at every token
            around[word := body.unused(identifier(name))] = node
            return note(body.input(word), node.meta["shape"], batch_of(node), node.meta["wide"])
        word = body.unused(f"{identifier(name)}{suffix}")
        items[word] = outer.low.as_number(node)
        body.input(word).meta["settled"] = True
        return note(body.input(word), node.meta["shape"], batch, node.meta["wide"])

    def hold(name: str, node: fx.Node) -> fx.Node:
        """A value that the loop carries from token to token."""
        carried[name] = node
        return note(body.input(name), (), 1, wide=True)

    like = _like(outer, body, around)
    scope = Scope(unit, body, batch, like, outer=borrow)
    scope.first = scope.stream(unit.inputs[0].name) if chunk else like
    pasts: dict[str, str] = {}

    def fetch(slot: str) -> fx.Node:
        name = identifier(slot)
        pasts[slot] = name
        return hold(name, outer.past(slot))

    scope.fetch = fetch

    def first(expr: Expr) -> fx.Node:
        """A part of an initial state, made once before the loop."""
        name = identifier(
            "_".join(str(expr.attr(n)) for n in ("memory", "var", "part") if expr.attr(n))
        )
        name = f"{name}_0"
        node = outer.state(expr)
        node.meta.setdefault("name", name)
        around[name] = node
        return body.input(name)

    scope.borrow = first

    def sequence(expr: Expr) -> fx.Node:
        """What moves outside of the loop, one token of it."""
        node = outer.low.tensor(expr)
        if batch_of(node) == 1:
            around[word := f"{argument_name(expr)}_{len(around)}"] = node
            return note(body.input(word), node.meta["shape"], 1, node.meta["wide"])
        node = outer.spread(node)
        split = routed(expr)
        read = expr if split is None else split[1]
        name = str(read.args[1].attr("memory") if read.op == "apply" else read.attr("memory"))
        word = f"{identifier(name)}_{len(items)}{suffix}"
        items[word] = node
        return note(body.input(word), node.meta["shape"], batch, node.meta["wide"])

    def inner(expr: Expr) -> bool:
        """Say whether a value depends on what the loop makes."""
        return any(
            (n.op == "stream" and n.attr("name") in set(_made(steps)))
            or (n.op in ("state", "attend") and n.attr("memory") in memories)
            for n in postorder([expr])
        )

    def ahead(expr: Expr) -> fx.Node | None:
        """What an update asks for and nothing in the loop makes, for all tokens before it."""
        if expr.op not in ("apply", "shift", "conv", "route") or inner(expr):
            return None
        node = outer.low.as_number(outer.low.tensor(expr))
        if one:
            around[word := body.unused(identifier(argument_name(expr)))] = node
            return note(body.input(word), node.meta["shape"], batch_of(node), node.meta["wide"])
        if batch_of(node) < 2:
            return None
        items[word := body.unused(f"{identifier(argument_name(expr))}{suffix}")] = node
        return note(body.input(word), node.meta["shape"], batch, node.meta["wide"])

    scope.around, scope.inside, scope.ahead = sequence, inner, ahead
    entries: dict[str, Held] = {}
    for memory_name in memories:
        for held in owner.held(unit.memory(memory_name)):
            if one and held.key[1] != "prev":
                # it changes where the token ends
                around[held.name] = outer.states[held.key]
                scope.states[held.key] = note(body.input(held.name), (), 1, wide=True)
                continue
            scope.states[held.key] = hold(held.name, outer.states[held.key])
            entries[held.name] = held
    counter = None
    if chunk:
        assert outer.position is not None
        scope.position = hold("position", outer.position)
    elif one and outer.position is not None:
        around["position"] = outer.position
        scope.position = body.input("position")
    elif unit.counts and _counts(runner, steps, memories):
        counter = body.unused("t")
        scope.position = body.input(counter)
    nested: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, Call) and step.instance not in nested:
            past = runner.instance_state(step.instance)
            nested[step.instance] = hold(identifier(step.instance), past)
    runs = Inner(owner, scope, body.input("state"), nested)
    if chunk:
        runs.chunk(steps)
    else:
        runs.token(steps)
        if not one:
            runs.end_of_token(memories, late=outer.late)
    made = list(_made(steps))
    wanted = set(once) if once is not None else _wanted(runner, steps)
    needed = [name for name in made if name in wanted]
    rows = [_row(scope, name) for name in needed]
    courses = [m for m in memories if m in _asked(runner, steps)] if chunk else []
    lists = [f"{identifier(name)}_path" for name in courses]
    rows += [scope.paths[name] for name in courses]
    names = list(carried)
    slots = {name: slot for slot, name in pasts.items()}
    after: list[Any] = []
    for name in names:
        if name in slots:
            after.append(scope.after[slots[name]])
        elif chunk and name == "position":
            after.append(body.call(operator.add, scope.position, scope.tokens()))
        elif name in entries:
            after.append(entries[name].value(scope.states))
        else:
            after.append(next(v for k, v in nested.items() if identifier(k) == name))
    body.finish((tuple(rows), tuple(after)))
    wide = {name: bool(row.meta["wide"]) for name, row in zip(needed, rows, strict=False)}
    kernel: LoopKernel | None = None
    given: list[fx.Node] = []
    if not chunk and owner.loop_kernel is not None:
        kernel, given = owner.loop_kernel(outer, steps, memories, wide, tuple(names), one)
    loop = Loop(
        body, tuple(items), (*needed, *lists), tuple(names), counter,
        "position" if counter else None, tuple(around), chunk, tuple(lists),
        kernel=kernel, once=one,
    )  # fmt: skip
    arguments = [*items.values(), *carried.values(), *around.values()]
    if counter:
        assert outer.position is not None
        arguments.append(outer.position)
    if not items and not one:
        arguments.append(outer.tokens())
    arguments += given
    node = outer.program.call(loop, *arguments)
    parts = outer.program.unpack(node, [*needed, *lists, *names])
    for name, part, row in zip(needed, parts, rows, strict=False):
        outer.streams[name] = note(part, row.meta["shape"], outer.batch, row.meta["wide"])
    outer.paths |= dict(zip(courses, parts[len(needed) :], strict=False))
    for name, part in zip(names, parts[len(rows) :], strict=True):
        note(part, (), 1, wide=True)
        if name in slots:
            outer.after[slots[name]] = part
        elif chunk and name == "position":
            continue
        elif name in entries:
            outer.states[entries[name].after] = part
        else:
            runner.nested[next(k for k in nested if identifier(k) == name)] = part


def _like(outer: Scope, body: Program, around: dict[str, fx.Node]) -> fx.Node:
    """The tensor whose type the streams have, seen from inside."""
    node = outer.like
    if node.op == "get_attr":
        return note(body.attribute(str(node.target)), (), 0)
    name = str(node.target)
    around[name] = node
    return note(body.input(name), node.meta["shape"], 0, node.meta["wide"])


def _made(steps: Sequence[Step]) -> list[str]:
    found: list[str] = []
    for step in steps:
        if isinstance(step, Equation):
            found.append(step.name)
        elif isinstance(step, Call):
            found += step.results
    return found


def _wanted(runner: Runner, steps: Sequence[Step]) -> set[str]:
    """The streams that something outside of the loop reads."""
    from nlc.codegen.unit import Passes, streams

    wanted = set(runner.owner.unit.outputs)
    inside = {id(step) for step in steps}
    moved = {step.memory for step in steps if isinstance(step, Update)}
    for stage in runner.owner.unit.stages:
        for step in () if isinstance(stage, Passes) else steps_of(stage):
            if id(step) in inside:
                continue
            if isinstance(step, Equation):
                wanted |= streams([step.value])
            elif isinstance(step, Call):
                wanted |= streams(value for _, value in step.inputs)
    for memory in runner.owner.unit.memories:
        from nlc.codegen.unit import of_memory

        wanted |= streams(of_memory(memory)) if memory.name not in moved else set()
    for entry in runner.owner.unit.inputs:
        if entry.default is not None:
            wanted |= streams([entry.default])
    return wanted


def _asked(runner: Runner, steps: Sequence[Step]) -> set[str]:
    """The memories that something outside of the loop reads."""
    from nlc.codegen.unit import Passes, expressions, of_memory

    unit, inside = runner.owner.unit, {id(step) for step in steps}
    whole = [s for stage in unit.stages if not isinstance(stage, Passes) for s in steps_of(stage)]
    others = [step for step in whole if id(step) not in inside]
    moved = {step.memory for step in steps if isinstance(step, Update)}
    roots = list(expressions(others))
    roots += [i.default for i in unit.inputs if i.default is not None]
    for memory in unit.memories:
        roots += of_memory(memory) if memory.name not in moved else []
    return {str(n.attr("memory")) for n in postorder(roots) if n.op in ("state", "attend")}


def _row(scope: Scope, name: str) -> fx.Node:
    node = scope.stream(name)
    assert node is not None
    return scope.spread(scope.low.as_number(node))


def _counts(runner: Runner, steps: Sequence[Step], memories: Sequence[str]) -> bool:
    """Say whether the loop needs the token's place."""
    unit = runner.owner.unit
    for name in memories:
        memory = unit.memory(name)
        if memory.reset is not None or runner.owner.has_start(memory) or periods(memory):
            return True
    from nlc.codegen.unit import expressions, of_memory

    roots = list(expressions(steps))
    for name in memories:
        roots += of_memory(unit.memory(name))
    return any(node.op in ("position", "due") for node in postorder(roots))
