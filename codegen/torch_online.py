"""What learns from the task while a sequence is read: methods of its block, tables of the model.

In: the writer of a class. Out, in the class of a block, for a memory M that waits for the task:

    learn_M(grad, state, done)   the block's state after M moved by the gradient of a window's loss
    ask1_M(grad, state, done)    where M asks for this gradient once more; then `learn_M` has it too
    restart_M(state)             the block's state with M where it begins

and in that of the model the tables that `OnlineModel` in `library_online` goes by.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING

from nlc.codegen.kept import keeps
from nlc.codegen.names import Names
from nlc.codegen.printer import Printer
from nlc.codegen.program import Program, note
from nlc.codegen.scope import Scope, memory_path
from nlc.codegen.writer import Writer, split_call
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.online import asks, copies, instances, online_levels, source_of, waiting
from nlc.ir.system import Memory, System
from nlc.ir.windows import periods

if TYPE_CHECKING:
    from nlc.codegen.torch_block import UnitWriter


def write_learning(owner: UnitWriter, out: Writer) -> None:
    """Write the methods of a block's class."""
    for memory in waiting(owner.unit.memories):
        if memory.is_task:
            for turn in range(len(owner.memories[memory.name].asks)):
                _ask(owner, memory, turn, out)
            _learn(owner, memory, out)
        if memory.restart is not None or copies(owner.unit.memories, memory):
            _restart(owner, memory, out)


def _learn(owner: UnitWriter, memory: Memory, out: Writer) -> None:
    from nlc.codegen.window_loop import take

    writer = owner.memories[memory.name]
    name = f"learn_{memory.name}"
    method = _Method(owner, memory, out, name, len(writer.asks), "dict[str, Any]")
    kept = keeps(memory)
    results = [
        (name, "post", v.name) for name, v in zip(writer.states, memory.variables, strict=True)
    ]
    results += [(keep.name, keep.word, "") for keep in kept]
    take(method.scope, memory, method.call("update", writer.step_arguments), results)
    states = method.scope.states
    entries = {
        held.label: states[held.after]
        for held in owner.held(memory)
        if held.after in states and held.key[1] != "initial"
    }
    about = f"Move {memory.name} by the gradient of a window's loss, after so many tokens."
    _finish(owner, method.program, out, about, entries)


def _ask(owner: UnitWriter, memory: Memory, turn: int, out: Writer) -> None:
    writer = owner.memories[memory.name]
    name = f"ask{turn + 1}"
    method = _Method(owner, memory, out, f"{name}_{memory.name}", turn, "Any")
    node = method.call(name, writer.ask_arguments[turn])
    about = f"Say where {memory.name} asks for the gradient of the window's loss once more."
    _finish(owner, method.program, out, about, node)


class _Method:
    """A method over gradients, the block's state and how many tokens there are."""

    def __init__(
        self, owner: UnitWriter, memory: Memory, out: Writer, name: str, asked: int, result: str
    ):
        grads = ["grad", *(f"grad_{turn + 1}" for turn in range(asked))]
        words = ["self", *(f"{word}: Any" for word in grads), "state: dict[str, Any]", "done: int"]
        for line in split_call(f"def {name}(", words, f") -> {result}:", out.room):
            out.line(line)
        self.owner, self.memory, self.program = owner, memory, Program()
        *self.grads, self.state, self.done = (
            self.program.input(word) for word in (*grads, "state", "done")
        )
        self.scope = _scope(owner, self.program, self.state, [memory])

    def call(self, method: str, wanted: dict[Expr, str]) -> fx.Node:
        """Call a method of the memory that moves it, or says where it asks."""
        from nlc.codegen.runner import Runner

        memory, scope = self.memory, self.scope
        runner = Runner(self.owner, scope, self.state, {})
        given = [*runner.arguments(self.owner.memories[memory.name], wanted), *self.grads]
        given += [scope.states[memory.name, "prev", v.name] for v in memory.variables]
        given += [scope.states[memory.name, keep.word, ""] for keep in keeps(memory)]
        given += [runner.at_end(self.done, count) for count in periods(memory)]
        return self.program.module(f"{memory_path(memory)}.{method}", *given)


def _restart(owner: UnitWriter, memory: Memory, out: Writer) -> None:
    from nlc.codegen.torch_block import take_kept

    out.line(f"def restart_{memory.name}(self, state: dict[str, Any]) -> dict[str, Any]:")
    program = Program()
    state = program.input("state")
    source = [m for m in owner.unit.memories if m.name == source_of(memory)]
    scope = _scope(owner, program, state, [*source, memory])
    node = scope.start(memory)
    owner.take_states(scope, memory, node)
    if keeps(memory):
        path = f"{memory_path(memory)}.empty"
        take_kept(scope, memory, program.module(path, scope.rows(), scope.like))
    first = scope.states[memory.name, "prev", ""]
    entries = {
        # what the chunk's start and the initial state are told is the same
        held.label: first if held.key[1] in ("start", "initial") else scope.states[held.key]
        for held in owner.held(memory)
    }
    what = f"as {source_of(memory)} is now" if source else "as it begins"
    _finish(owner, program, out, f"Set {memory.name} back: {what}.", entries)


def _scope(owner: UnitWriter, program: Program, state: fx.Node, taken: list[Memory]) -> Scope:
    """A scope over the state of the block, in which some memories' states are known."""
    states: dict[tuple[str, str, str], fx.Node] = {}
    for memory in taken:
        for held in owner.held(memory):
            node = program.call(operator.getitem, state, held.label)
            states[held.key] = note(node, (), 1, wide=True)
    memory = taken[-1]
    like, parts = states[memory.name, "prev", ""], memory.variable("").parts
    shape = (*memory.lead, *parts[0].shape)
    if len(parts) > 1:
        like = program.call(operator.getitem, like, parts[0].name)
    like = note(like, shape, 1, wide=True)
    scope = Scope(owner.unit, program, 1, like, states=states)
    scope.first = like
    return scope


def _finish(
    owner: UnitWriter,
    program: Program,
    out: Writer,
    about: str,
    result: Mapping[str, fx.Node] | fx.Node,
) -> None:
    from nlc.codegen.torch_memory import reserved, write_dict

    value = result if isinstance(result, fx.Node) else None
    entries = {} if isinstance(result, fx.Node) else result
    program.finish(tuple(entries.values()) if value is None else (value,))
    with out.indent():
        out.docstring([about])
        known = {str(node.target) for node in program.inputs}
        printer = Printer(program, out, Names(reserved() | known), owner.used)
        for node in program.inputs:
            printer.bind(node, str(node.target))
        printer.run()
        if value is None:
            write_dict(out, printer, "return state | ", entries)
        else:
            printer.settle(value, out.room - 7)
            out.line(f"return {printer.operand(value)}")
    out.blank()


def _between(memory: Memory, shortest: int) -> int:
    """How many tokens are read at once, so that a copy's resets fall between them."""
    return gcd(shortest, memory.restart.count) if memory.restart is not None else shortest


def write_tables(system: System, out: Writer) -> None:
    """Write what the model's class knows of what learns, and when."""
    assert system.model is not None
    levels = online_levels(system, system.model)
    periods_of = {level.name: level.period.count for level in levels}
    shortest = min(periods_of.values())
    texts = ", ".join(f'("{name}", {count})' for name, count in periods_of.items())
    texts += "," if len(periods_of) == 1 else ""
    out.line("# levels that learn from the task, and how many tokens their windows have")
    out.line(f"online_levels = ({texts})")
    rows = []
    for path, block in instances(system, system.model.steps):
        for memory in waiting(block.memories):
            window = memory.window if memory.is_task else _between(memory, shortest)
            words = [f'"{path}"', f'"{memory.name}"', str(window)]
            words += [] if memory.is_task else ["moves=False"]
            words += [f"anew={memory.restart.count}"] if memory.restart is not None else []
            words += ["copies=True"] if copies(block.memories, memory) else []
            asked = len(asks(memory)) if memory.is_task else 0
            words += [f"asks={asked}"] if asked else []
            if memory.is_task and memory.through != "full":
                words.append("through=False")
            rows.append(f"Learner({', '.join(words)})")
    out.line("learners = (")
    with out.indent():
        out.lines += [f"{'    ' * out.depth}{row}," for row in rows]
    out.line(")")
