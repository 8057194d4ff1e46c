"""Stages that run window by window inside a sequence.

In: a `Runner` over a sequence and a `Windows` stage. Out: a `Loop` node in its program, whose body
is a piece of the sequence in which no window ends but at its last token: the stages for all its
tokens at once, with the states of the windows as they are; what the tokens add to the sums; then
the updates of the windows that end here, and resets.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nlc.codegen import library
from nlc.codegen.kept import keeps
from nlc.codegen.names import identifier
from nlc.codegen.program import Branch, Loop, Operand, Program, note
from nlc.codegen.scope import Scope, memory_path
from nlc.codegen.torch_windows import counted, own_states, shared_arguments
from nlc.codegen.unit import Passes
from nlc.codegen.window_scope import EndScope, WindowScope
from torch import fx

from nlc.ir.expr import Expr, postorder
from nlc.ir.schedule import Windows, made_by, memories_of, steps_of
from nlc.ir.shared_reads import SharedRead
from nlc.ir.system import Call, Memory
from nlc.ir.windows import periods, tokens_of

if TYPE_CHECKING:
    from nlc.codegen.runner import Runner
    from nlc.codegen.torch_block import Held
    from nlc.codegen.torch_memory import MemoryWriter


def window_loop(runner: Runner, stage: Windows) -> None:
    """Build the loop and take its results."""
    _WindowLoop(runner, stage).build()


@dataclass
class Carried:
    """What the loop carries: the value before it, after a piece, and where the last one goes."""

    before: Operand
    after: Callable[[], Any]
    give: Callable[[fx.Node], None]


class _WindowLoop:
    """One loop over windows, under construction."""

    def __init__(self, runner: Runner, stage: Windows):
        self.runner, self.stage = runner, stage
        self.outer, self.owner = runner.scope, runner.owner
        self.unit, self.body = self.owner.unit, Program()
        self.carried: dict[str, Carried] = {}
        self.nested: dict[str, Any] = {}
        steps = steps_of(stage)
        self.made = list(dict.fromkeys(name for step in steps for name in made_by(step)))
        self.scope = WindowScope(
            self.unit, self.body, 2, self.outer.like, around_it=self.outer,
            made=frozenset(self.made), moving=frozenset(memories_of(stage)),
            aliases=dict(stage.reads), late=frozenset(stage.late), fetch=self.fetch,
        )  # fmt: skip
        scope = self.scope
        scope.first = scope.like = scope.low.like = _like(self.outer, scope)

    def build(self) -> None:
        """Run the stages for a piece, collect, and end the windows that end with it."""
        from nlc.codegen.runner import Runner as Inner

        for name in memories_of(self.stage):
            for held in self.owner.held(self.unit.memory(name)):
                self.hold_state(held)
        for name in self.stage.memories:
            writer = self.owner.memories[name]
            if writer.move.own and writer.memory.reset is None and not self.read_late(name):
                self.hold_own(name)
        counter, place = self.body.unused("n"), self.body.unused("t")
        self.scope.count = self.body.input(counter)
        assert self.outer.position is not None
        self.scope.position = self.hold(place, self.outer.position)
        for step in steps_of(self.stage):
            if isinstance(step, Call) and step.instance not in self.nested:
                self.hold_instance(step.instance)
        runs = Inner(self.owner, self.scope, self.body.input("state"), self.nested)
        alone = [name for name in self.stage.memories if self.owner.memories[name].shared is None]
        for name in self.stage.memories:
            if name not in alone:
                read_and_collect(runs, self.unit.memory(name))
        for inner in self.stage.stages:
            runs.stage(inner)
        for name in alone:
            collect(runs, self.unit.memory(name))
        done = self.body.call(operator.add, self.scope.position, self.scope.tokens())
        done.meta["name"] = place
        self.carried[place].after = lambda: done
        self.end(runs.state, done)
        self.finish(counter)

    def hold(self, name: str, before: Operand) -> fx.Node:
        """Carry a value from piece to piece."""
        self.carried[name] = Carried(before, lambda: None, lambda node: None)
        return note(self.body.input(name), (), 1, wide=True)

    def hold_state(self, held: Held) -> None:
        """Carry an entry of a memory's state."""
        self.scope.states[held.key] = self.hold(held.name, self.outer.states[held.key])
        self.carried[held.name].after = partial(held.value, self.scope.states)
        self.carried[held.name].give = partial(self.outer.states.__setitem__, held.after)

    def hold_own(self, name: str) -> None:
        """Carry whether a memory's states are made by the loop, and may be written into."""
        key, word = (name, "own", ""), identifier(f"{name}_own")
        self.scope.states[key] = self.hold(word, False)
        self.carried[word].after = lambda: self.scope.states[key]

    def read_late(self, name: str) -> bool:
        """Say whether another memory's update may ask for what this one's state was before."""
        asked = [
            node
            for other in self.stage.memories
            if other != name
            for node in postorder(self.owner.memories[other].step_arguments)
        ]
        return any(
            node.attr("name") in self.made if node.op == "stream" else node.attr("memory") == name
            for node in asked
            if node.op in ("stream", "state", "attend")
        )

    def hold_instance(self, instance: str) -> None:
        """Carry the state of a block that is called inside."""
        name = identifier(instance)
        self.nested[instance] = self.hold(name, self.runner.instance_state(instance))
        self.carried[name].after = lambda: self.nested[instance]
        self.carried[name].give = partial(self.runner.keep, instance)

    def fetch(self, slot: str) -> fx.Node:
        """Carry what a shift or a convolution remembers."""
        name = identifier(slot)
        inner = self.hold(name, self.outer.past(slot))
        self.carried[name].after = lambda: self.scope.after[slot]
        self.carried[name].give = partial(self.outer.after.__setitem__, slot)
        return inner

    def end(self, state: fx.Node, done: fx.Node) -> None:
        """Move what ends with this piece, the faster first; then resets."""
        from nlc.codegen.runner import Runner as Inner

        scope = EndScope(
            self.unit, self.body, 1, self.scope.like, states=self.scope.states,
            window=self.scope, position=done, first=self.scope.first,
        )  # fmt: skip
        ends = Inner(self.owner, scope, state, self.nested)
        for name in self.stage.memories:
            conclude(ends, self.unit.memory(name), done)
        ends.end_of_token((*self.stage.memories, *self.stage.late), done)

    def finish(self, counter: str) -> None:
        """Put the loop into the program around it."""
        outer, scope = self.outer, self.scope
        wanted = _wanted(self.runner, self.stage)
        rows = [name for name in self.made if name in wanted]
        values = [_row(scope, name) for name in rows]
        self.body.finish((tuple(values), tuple(c.after() for c in self.carried.values())))
        around = scope.whole_values
        loop = Loop(
            self.body, tuple(scope.items), tuple(rows), tuple(self.carried), counter, "position",
            around=tuple(around), length=self.stage.length,
        )  # fmt: skip
        before = [carried.before for carried in self.carried.values()]
        arguments = [*scope.items.values(), *before, *around.values()]
        node = outer.program.call(loop, *arguments, outer.position, outer.tokens())
        parts = outer.program.unpack(node, [*rows, *self.carried])
        for name, part, row in zip(rows, parts, values, strict=False):
            outer.streams[name] = note(part, row.meta["shape"], 2, row.meta["wide"])
        for carried, part in zip(self.carried.values(), parts[len(rows) :], strict=True):
            carried.give(note(part, (), 1, wide=True))


def _like(outer: Scope, scope: WindowScope) -> fx.Node:
    """The tensor whose type the streams have, seen from inside."""
    node = outer.like
    if node.op == "get_attr":
        return note(scope.program.attribute(str(node.target)), (), 0)
    name = str(node.target)
    scope.whole_values[name] = node
    return note(scope.program.input(name), node.meta["shape"], 0, node.meta["wide"])


def _wanted(runner: Runner, stage: Windows) -> set[str]:
    """The streams that something outside of the loop reads."""
    from nlc.codegen.unit import expressions, of_memory, streams

    unit = runner.owner.unit
    inside = {id(step) for step in steps_of(stage)}
    moving = memories_of(stage)
    wanted = set(unit.outputs)
    for other in unit.stages:
        if not isinstance(other, Passes):
            steps = [step for step in steps_of(other) if id(step) not in inside]
            wanted |= streams(expressions(steps))
    for memory in unit.memories:
        if memory.name not in moving:
            wanted |= streams(of_memory(memory))
    return wanted | streams(i.default for i in unit.inputs if i.default is not None)


def _row(scope: WindowScope, name: str) -> fx.Node:
    node = scope.stream(name)
    assert node is not None
    return scope.spread(scope.low.as_number(node))


# ---- one memory --------------------------------------------------------------------------------


def collect(runner: Runner, memory: Memory) -> None:
    """Take tokens into a window's sums: those of a piece, or one."""
    scope, writer = runner.scope, runner.owner.memories[memory.name]
    if not tokens_of(memory):
        return
    words: list[Any] = [_token_argument(scope, writer, expr) for expr in writer.token_arguments]
    if not counted(writer):
        words.append(scope.tokens() if scope.batch == 2 else 1)
    _take_tokens(scope, memory, writer, words)


def read_and_collect(runner: Runner, memory: Memory) -> None:
    """Take the tokens of a piece into a window's sums, and read the memory at them."""
    scope, writer = runner.scope, runner.owner.memories[memory.name]
    shared = writer.shared
    assert shared is not None
    query = scope.query(shared.read.args[0])
    words: list[Any] = [query]
    for expr in shared_arguments(writer, shared):
        if expr is not shared.query:
            words.append(_token_argument(scope, writer, expr))
    answer = _take_tokens(scope, memory, writer, words, shared)
    assert answer is not None
    scope.answers[shared.read] = note(answer, shared.read.shape, 2, bool(query.meta["wide"]))


def _take_tokens(
    scope: Scope,
    memory: Memory,
    writer: MemoryWriter,
    words: list[Any],
    shared: SharedRead | None = None,
) -> fx.Node | None:
    """Call the memory's method, and take what it keeps; give what it reads, if it does."""
    words += [scope.states[memory.name, "prev", var] for var in own_states(writer)]
    kept = keeps(memory)
    words += [scope.states[memory.name, keep.word, ""] for keep in kept]
    if writer.begins and isinstance(scope, WindowScope):
        place = scope.program.call(operator.mod, scope.position, memory.window)
        words.append(scope.program.call(operator.eq, place, 0))
    method = "collect" if shared is None else "read_and_collect"
    node = scope.program.module(f"{memory_path(memory)}.{method}", *words)
    results = [(keep.name, keep.word, "") for keep in kept]
    if shared is None:
        take(scope, memory, node, results)
        return None
    names = [identifier(shared.name), *(name for name, _, _ in results)]
    answer, *parts = scope.program.unpack(node, names)
    for part, (_, when, var) in zip(parts, results, strict=True):
        scope.states[memory.name, when, var] = note(part, (), 1, wide=True)
    return answer


def _token_argument(scope: Scope, writer: MemoryWriter, expr: Expr) -> fx.Node:
    node = scope.low.as_number(scope.low.tensor(expr))
    if writer.batch_of(expr) < 2:
        return node
    node = scope.full(node, expr)
    if scope.batch == 2:
        return node
    shape, wide = node.meta["shape"], bool(node.meta["wide"])
    return note(scope.program.method("unsqueeze", node, 1), shape, 2, wide)


def take(scope: Scope, memory: Memory, node: fx.Node, results: list[tuple[str, str, str]]) -> None:
    """Set states and what is kept from a call's results: (name, when, var) each."""
    names = [name for name, _, _ in results]
    whole = len(names) == 1 and not isinstance(node.target, Branch)
    parts = [node] if whole else scope.program.unpack(node, names)
    for part, (name, when, var) in zip(parts, results, strict=True):
        part.meta["name"] = name
        scope.states[memory.name, when, var] = note(part, (), 1, wide=True)


def conclude(runner: Runner, memory: Memory, done: fx.Node) -> None:
    """Move a memory where its window ends with the last of `done` tokens."""
    scope, writer = runner.scope, runner.owner.memories[memory.name]
    program, body = scope.program, Program()
    around: dict[str, Operand] = {}

    def outside(value: Operand) -> fx.Node:
        name = f"a{len(around)}"
        around[name] = value
        return body.input(name)

    kept = keeps(memory)
    results = [
        (name, "post", v.name) for name, v in zip(writer.states, memory.variables, strict=True)
    ]
    old = [scope.states[memory.name, "prev", v.name] for v in memory.variables]
    results += [(keep.name, keep.word, "") for keep in kept]
    old += [scope.states[memory.name, keep.word, ""] for keep in kept]
    names = [name for name, _, _ in results]
    words = [outside(word) for word in runner.arguments(writer, writer.step_arguments)]
    words += [body.input(name) for name in names]
    words += [outside(runner.at_end(done, count)) for count in periods(memory)]
    held = scope.states.get((memory.name, "own", ""))
    if held is not None:
        old.append(held)
        word = identifier(f"{memory.name}_own")
        words.append(body.input(word))
    node = body.module(f"{memory_path(memory)}.update", *words)
    if len(names) == 1:
        node.meta["name"] = names[0]
        found = [node]
    else:
        found = body.unpack(node, names)
    if held is not None:
        found.append(body.call(library.unrecorded))
        names.append(word)
        results.append((word, "own", ""))
    body.finish(tuple(found))
    branch = Branch(body, tuple(names), tuple(around), tuple(names))
    ends = runner.at_end(done, memory.window)
    take(scope, memory, program.call(branch, ends, *old, *around.values()), results)
