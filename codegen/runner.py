"""Runs the steps of a class into a program: equations, updates, calls, loops, the end of a token.

In: the writer of a class and a `Scope`. Out: nodes in the scope's program; streams, states and the
states of instances are kept there and in `nested`.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlc.codegen.ahead import ahead_of
from nlc.codegen.arguments import arguments
from nlc.codegen.kept import keeps
from nlc.codegen.names import identifier
from nlc.codegen.on_the_way import query_of
from nlc.codegen.program import choose, note
from nlc.codegen.scope import Scope, memory_path
from nlc.codegen.torch_memory import MemoryWriter, bare
from nlc.codegen.unit import Passes
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.schedule import ChunkLoop, Parallel, Run, TokenLoop, Windows
from nlc.ir.system import Call, Equation, Memory, Step, Update
from nlc.ir.windows import periods

if TYPE_CHECKING:
    from nlc.codegen.torch_block import UnitWriter


def initial_arguments(scope: Scope, memory: Memory) -> list[Any]:
    """What `initial` of a memory takes after the batch and the type."""
    exprs = [
        p.initial.expr for v in memory.variables for p in v.parts if p.initial.expr is not None
    ]
    words: list[Any] = [scope.low.tensor(e) for e in arguments(memory, exprs, starting=True)]
    if memory.map.kind != "kernel" and not memory.learned:
        parts = memory.variable("").parts
        sources = sorted({p.initial.source for p in parts if p.initial.kind == "source"})
        for source in sources:
            other = next((m for m in scope.unit.memories if m.name == source), None)
            if other is not None:
                words.append(_source(scope, other))
                continue
            names = [p.name for p in parts]
            tensors = {n: scope.program.attribute(f"{source}.{n}" if n else source) for n in names}
            words.append(tensors if len(names) > 1 else tensors[names[0]])
    if bare(memory):
        words.append(scope.program.attribute(memory.name))
    return words


def _source(scope: Scope, other: Memory) -> Any:
    """The present state of a memory that another begins with."""
    if scope.around is None or not scope.elsewhere(other.name):
        return scope.whole(other, "", "post")
    found = {}
    for part in other.variable("").parts:
        shape = (*other.lead, *part.shape)
        attrs = (("memory", other.name), ("part", part.name), ("shape", shape))
        leaf = Expr("state", (), (*attrs, ("var", ""), ("when", "post")), shape)
        found[part.name] = scope.around(leaf)
    return found if len(found) > 1 else next(iter(found.values()))


@dataclass
class Runner:
    """Runs the steps of a unit into a scope's program."""

    owner: UnitWriter
    scope: Scope
    state: fx.Node
    nested: dict[str, Any]

    def stage(self, stage: Any) -> None:
        """Run one stage over a sequence."""
        match stage:
            case Parallel(steps=steps):
                for step in steps:
                    self.step(step)
            case Run(memory=name):
                self.run(self.owner.unit.memory(name))
            case TokenLoop(steps=steps, memories=memories):
                from nlc.codegen.token_loop import token_loop

                token_loop(self, steps, memories)
            case ChunkLoop(steps=steps, memories=memories, chunk=chunk):
                from nlc.codegen.token_loop import token_loop

                token_loop(self, steps, memories, chunk)
            case Windows():
                from nlc.codegen.window_loop import window_loop

                window_loop(self, stage)
            case Passes():
                self.passes(stage)

    def token(self, steps: Iterable[Any]) -> None:
        """Run steps for one token."""
        for step in steps:
            if isinstance(step, Passes):
                self.passes(step)
            else:
                self.step(step)

    def chunk(self, steps: Iterable[Step]) -> None:
        """Run steps for all tokens of one chunk."""
        for step in steps:
            if isinstance(step, Update):
                self.run(self.owner.unit.memory(step.memory))
            else:
                self.step(step)

    def step(self, step: Step) -> None:
        """Run an equation, a call or an update."""
        match step:
            case Equation():
                self.equation(step)
            case Call():
                self.call(step)
            case Update():
                self.update(self.owner.unit.memory(step.memory))
            case _:
                raise AssertionError("a repeat is a unit of its own")

    def equation(self, step: Equation) -> None:
        """`name = value`, with the line it came from above it."""
        scope = self.scope
        scope.low.lift = step.name in self.owner.into_states
        node = scope.low.tensor(step.value)
        scope.low.lift = False
        reassigned = step.name in scope.streams
        if node.op not in ("placeholder", "get_attr") and "name" not in node.meta:
            node.meta["name"] = step.name
            if step.text:
                node.meta["above"] = self.owner.comment(step)
        scope.streams[step.name] = node
        if reassigned:
            scope.fresh()

    def call(self, step: Call) -> None:
        """Run another block's instance."""
        scope, owner = self.scope, self.owner
        block = owner.blocks[step.block]
        given = dict(step.inputs)
        words: list[Any] = []
        for entry in block.inputs:
            words.append(self.argument(given.get(entry.name), entry.integer))
        passed = owner.unit.kind == "pass" and step.shared
        past = self.instance_state(step.instance)
        method = "" if scope.batch == 2 else ".step"
        if passed:
            module = scope.program.input(identifier(step.instance))
            if scope.batch == 2:
                node = scope.program.call(call_module, module, *words, past)
            else:
                node = scope.program.method("step", module, *words, past)
        else:
            node = scope.program.module(f"{step.instance}{method}", *words, past)
        names = [identifier(r) for r in step.results]
        if len(names) == 1:
            results, after = scope.program.unpack(node, [names[0], step.instance])
            outs = [results]
        else:
            whole, after = scope.program.unpack(node, [f"{step.instance}_out", step.instance])
            outs = scope.program.unpack(whole, names)
        if step.text:
            node.meta["above"] = owner.comment(step)
        reassigned = any(r in scope.streams for r in step.results)
        target = owner.blocks[step.block].block
        assert target is not None
        for name, out, (_, shape) in zip(step.results, outs, target.outputs, strict=True):
            note(out, shape, scope.batch)
            scope.streams[name] = out
        self.keep(step.instance, after)
        if reassigned:
            scope.fresh()

    def instance_state(self, instance: str) -> fx.Node:
        """The state of an instance: as given, or after its last call."""
        if instance in self.nested:
            found: fx.Node = self.nested[instance]
            return found
        return self.scope.program.call(operator.getitem, self.state, instance)

    def keep(self, instance: str, after: fx.Node) -> None:
        """Keep an instance's state."""
        self.nested[instance] = after

    def argument(self, value: Expr | None, integer: bool) -> Any:
        """An input of a call; None where it is not given or has no value yet."""
        if value is None:
            return None
        if value.op == "stream" and self.scope.stream(str(value.attr("name"))) is None:
            return None
        node = self.scope.full(self.scope.low.tensor(value), value)
        return node if integer else self.scope.low.narrow(node)

    def update(self, memory: Memory) -> None:
        """Move a memory by one token."""
        from nlc.codegen.window_loop import collect, conclude, take

        scope, writer = self.scope, self.owner.memories[memory.name]
        assert scope.batch == 1
        if memory.window > 1:
            collect(self, memory)
            conclude(self, memory, self.done())
            return
        words = self.arguments(writer, writer.step_arguments)
        variables = [""] if memory.map.kind == "kernel" else [v.name for v in memory.variables]
        results = [(n, "post", var) for n, var in zip(writer.states, variables, strict=True)]
        words += [scope.states[memory.name, "prev", var] for var in variables]
        if writer.has_start:
            words.append(scope.states[memory.name, "start", ""])
        kept = keeps(memory)
        words += [scope.states[memory.name, keep.word, ""] for keep in kept]
        words += [self.at_end(self.done(), count) for count in periods(memory)]
        results += [(keep.name, keep.word, "") for keep in kept]
        node = scope.program.module(f"{memory_path(memory)}.step", *words)
        take(scope, memory, node, results)

    def done(self) -> fx.Node:
        """How many tokens there are up to this one."""
        return self.scope.program.call(operator.add, self.scope.position, 1)

    def arguments(self, writer: MemoryWriter, wanted: dict[Expr, str]) -> list[Any]:
        """What a memory's method takes before the states."""
        found = []
        for expr in wanted:
            node = self.scope.ahead(expr)
            if node is None:
                node = self.scope.low.tensor(expr)
            if expr.op in ("position", "due"):
                # a method makes its keys and values of it, and gives these all rows
                found.append(node)
            else:
                found.append(self.scope.full(node, expr) if writer.varies(expr) else node)
        return found

    def run(self, memory: Memory) -> None:
        """Move a memory over the sequence."""
        scope, writer = self.scope, self.owner.memories[memory.name]
        wanted = writer.step_arguments if writer.is_kernel else writer.run_arguments
        words = self.arguments(writer, wanted)
        asked = writer.on_the_way
        if asked is not None:
            words.append(query := scope.query(query_of(asked)))
        variables = [""] if writer.is_kernel else [v.name for v in memory.variables]
        words += [scope.states[memory.name, "prev", var] for var in variables]
        names = [f"{writer.states[0]}_{'path' if asked is None else 'read'}", *writer.states]
        if writer.schedule.by_chunks:
            words.append(scope.states[memory.name, "start", ""])
            names.append(writer.start_name)
        resets = writer.memory.reset is not None
        if resets and not writer.is_kernel:
            words += [scope.initial(memory, var) for var in variables]
        if resets or writer.schedule.by_chunks:
            words.append(scope.position)
        node = scope.program.module(memory_path(memory), *words)
        path, *after = scope.program.unpack(node, names)
        if asked is None:
            scope.paths[memory.name] = path
        else:
            scope.answers[asked] = note(path, asked.shape, 2, bool(query.meta["wide"]))
        times = [*(("post", var) for var in variables), ("start", "")]
        for (when, var), part in zip(times, after, strict=False):
            scope.states[memory.name, when, var] = note(part, (), 1, wide=True)

    def end_of_token(
        self, memories: Iterable[str], done: fx.Node | None = None, late: Collection[str] = ()
    ) -> None:
        """Chunk starts and resets, where the last of `done` tokens is the last of their period.

        The resets of `late` memories come later than this: they go back to a state that is to move.
        """
        for memory in self.owner.ordered_memories():
            if memory.name not in memories:
                continue
            resets = memory.reset is not None and memory.name not in late
            if not resets and not self.owner.has_start(memory):
                continue
            done = self.done() if done is None else done
            if resets and memory.reset is not None:
                self.back(memory, self.at_end(done, memory.reset.count))
            if self.owner.has_start(memory):
                self.begin_chunk(memory, done, resets)

    def begin_chunk(self, memory: Memory, done: fx.Node, resets: bool) -> None:
        """Take the state for the start of the next chunk, where one ends."""
        scope, program = self.scope, self.scope.program
        name = self.owner.memories[memory.name].start_name
        new = scope.whole(memory, "", "post")
        old = scope.states[memory.name, "start", ""]
        chosen = program.call(choose, self.at_end(done, memory.chunk), new, old)
        if resets and memory.reset is not None:
            chosen.meta["name"] = name
            again = self.at_end(done, memory.reset.count)
            chosen = program.call(choose, again, new, chosen)
        chosen.meta["name"] = name
        scope.states[memory.name, "start", ""] = chosen

    def at_end(self, done: fx.Node, count: int) -> fx.Node:
        """`(position + 1) % count == 0`."""
        program = self.scope.program
        return program.call(operator.eq, program.call(operator.mod, done, count), 0)

    def back(self, memory: Memory, ends: fx.Node) -> None:
        """Set all states back where a reset's period ends."""
        scope, program = self.scope, self.scope.program
        writer = self.owner.memories[memory.name]
        if memory.map.kind == "kernel":
            variables = [""]
        else:
            variables = [v.name for v in memory.variables]
        first = scope.start(memory)
        old = [scope.whole(memory, var, "post") for var in variables]
        kept = scope.states.get((memory.name, "initial", ""))
        if kept is not None:
            again = first if len(variables) == 1 else program.call(operator.getitem, first, 0)
            node = program.call(choose, ends, again, kept)
            node.meta["name"] = f"{memory.name}_initial"
            scope.states[memory.name, "initial", ""] = note(node, (), 1, wide=True)
        self.forget(memory, ends)
        if len(variables) == 1:
            chosen = [program.call(choose, ends, first, old[0])]
        else:
            whole = program.call(choose, ends, first, tuple(old))
            chosen = program.unpack(whole, writer.states)
        for node, name, var in zip(chosen, writer.states, variables, strict=True):
            node.meta["name"] = name
            scope.states[memory.name, "post", var] = note(node, (), 1, wide=True)

    def forget(self, memory: Memory, ends: fx.Node) -> None:
        """Begin what is kept of a window anew where a reset's period ends."""
        scope, program, kept = self.scope, self.scope.program, keeps(memory)
        if not kept:
            return
        empty = program.module(f"{memory_path(memory)}.empty", scope.rows(), scope.like)
        old = [scope.states[memory.name, keep.word, ""] for keep in kept]
        node = program.call(choose, ends, empty, old[0] if len(old) == 1 else tuple(old))
        parts = [node] if len(old) == 1 else program.unpack(node, [k.name for k in kept])
        for keep, part in zip(kept, parts, strict=True):
            part.meta["name"] = keep.name
            scope.states[memory.name, keep.word, ""] = note(part, (), 1, wide=True)

    def carried(self, stage: Passes) -> list[fx.Node | None]:
        """List what the first pass of a repeat is given."""
        scope = self.scope
        given = [
            scope.spread(node, True) if node is not None and n in scope.unit.alike else node
            for n in stage.inputs
            for node in [scope.stream(n)]
        ]
        return [g if g is None or g.meta.get("integer") else scope.low.narrow(g) for g in given]

    def first_pass(self, stage: Passes | None) -> list[fx.Node]:
        """Run what the first pass of a repeat does ahead of all that learns; give its streams."""
        if stage is None:
            return []
        program = self.scope.program
        past = program.call(operator.getitem, self.state, stage.name)
        first = program.call(operator.getitem, past, "0")
        node = program.module(f"{stage.name}[0].ahead", *self.carried(stage), first)
        streams, after = program.unpack(node, [ahead_of(stage), f"{stage.name}_0"])
        self.nested[stage.name] = program.call(operator.or_, past, {"0": after})
        return [streams]

    def passes(self, stage: Passes) -> None:
        """Run the passes of a repeat, one after another."""
        scope, program = self.scope, self.scope.program
        carried = self.carried(stage)
        extra = [n for n in stage.outputs if n not in stage.inputs]
        modules = [
            program.input(identifier(n)) if self.owner.unit.kind == "pass" else program.attribute(n)
            for n in stage.shared
        ]
        past = program.call(operator.getitem, self.state, stage.name)
        target = RepeatLoop(
            stage.name,
            tuple(identifier(n) for n in stage.inputs),
            tuple(identifier(n) for n in stage.outputs),
            scope.batch,
            ahead_of(stage) if stage.ahead and scope.batch == 2 else "",
        )
        node = program.call(target, past, *carried, *modules)
        names = [*map(identifier, stage.outputs), stage.name]
        parts = program.unpack(node, names)
        for name, part in zip(stage.outputs, parts, strict=False):
            shape = self.owner.shapes.get(name, ())
            scope.streams[name] = note(part, shape, scope.batch)
        assert extra is not None
        self.nested[stage.name] = parts[-1]
        scope.fresh()


def call_module(module: Any, *words: Any) -> Any:
    """`module(...)` for a module that is an argument; printed as such."""
    return module(*words)


@dataclass(eq=False)
class RepeatLoop:
    """A loop over the passes of a repeat, as one call: (state, streams, shared modules).

    `ahead` is the variable that holds what the first pass has done already, where it has.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int
    ahead: str = ""

    __name__ = "passes"
    __module__ = "nlc.codegen.torch_block"

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError("a loop runs as printed")
