"""One class per block, per pass of a repeat and for the model: streams in, streams and state out.

In: a `Unit` and the classes of its memories. Out: the text of an `nn.Module`:

    forward(inputs, state=None)    [B, T, *shape] each -> outputs, state
    step(inputs, state=None)       [B, *shape] each, one token
    initial_state(batch, like)     the state before the first token
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nlc.codegen.ahead import ahead_of, crossing, goes_on, in_stages
from nlc.codegen.kept import keeps
from nlc.codegen.names import Names, identifier
from nlc.codegen.parameters import (
    as_module,
    declare_tensors,
    declare_weight,
    draw_tensors,
    of_memory,
    of_weight,
    usual,
)
from nlc.codegen.printer import Printer
from nlc.codegen.program import LoopKernel, Program, note
from nlc.codegen.runner import Runner, initial_arguments
from nlc.codegen.scope import Scope, memory_path
from nlc.codegen.torch_memory import (
    MemoryWriter,
    Raw,
    bare,
    own_parameters,
    reserved,
    write_dict,
)
from nlc.codegen.torch_online import write_learning, write_tables
from nlc.codegen.triton.token_group import Group
from nlc.codegen.unit import Passes, Unit, expressions
from nlc.codegen.unit import of_memory as updates_of
from nlc.codegen.window_loop import collect
from nlc.codegen.writer import Writer, split_call
from torch import fx

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import Shape, show, sizes
from nlc.ir.system import Call, Equation, Memory, System, Weight

Comment = Callable[[Any], list[str]]
LoopFinder = Callable[
    [Scope, Sequence[Any], Sequence[str], Mapping[str, bool], tuple[str, ...], bool],
    tuple[LoopKernel | None, list[fx.Node]],
]


@dataclass(frozen=True)
class Held:
    """An entry of the state: its key in a scope, its variable, its label for the caller."""

    key: tuple[str, str, str]
    name: str
    label: str

    @property
    def after(self) -> tuple[str, str, str]:
        """The key under which its value after a token stands."""
        memory, when, var = self.key
        return (memory, "post" if when == "prev" else when, var)

    def value(
        self, states: Mapping[tuple[str, str, str], fx.Node], first: fx.Node | None = None
    ) -> fx.Node:
        """The value at hand: after the update if there was one; `first` where it has none yet."""
        found = states.get(self.after, states.get(self.key, first))
        assert found is not None
        return found


@dataclass
class UnitWriter:
    """Writes one class; `written` are the names of the classes of blocks by block."""

    unit: Unit
    memories: dict[str, MemoryWriter]
    used: set[str]
    comment: Comment
    blocks: dict[str, Unit]
    about: list[str]
    shapes: dict[str, Shape] = field(default_factory=dict)
    integers: set[str] = field(default_factory=set)
    shared_blocks: dict[str, str] = field(default_factory=dict)
    system: System | None = None
    # finds the kernel of a loop over tokens, and what that takes
    loop_kernel: LoopFinder | None = None
    # the updates and reads of one token that are one kernel
    token_group: Group | None = None

    def __post_init__(self) -> None:
        unit = self.unit
        self.shapes |= {i.name: i.shape for i in unit.inputs if unit.kind != "pass"}
        for expr in self.all_expressions():
            for node in postorder([expr]):
                if node.op == "stream":
                    self.shapes[str(node.attr("name"))] = node.shape
        self.integers |= {i.name for i in unit.inputs if i.integer}

    @cached_property
    def into_states(self) -> set[str]:
        """The streams that go into states or ask them, wherever nothing but sums stand between."""
        unit = self.unit
        roots = [e for m in unit.memories if m.map.kind != "kernel" for e in updates_of(m)]
        for node in postorder(expressions(self.steps())):
            if node.op == "apply" and any(p.op == "state" for p in node.args[1:]):
                roots.append(node.args[0])
        found: set[str] = set()
        values = {s.name: s.value for s in self.steps() if isinstance(s, Equation)}
        waiting = list(_open_streams(roots))
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += _open_streams([values[name]] if name in values else [])
        return found

    def all_expressions(self) -> list[Expr]:
        """All expressions of the unit."""
        found = list(expressions(self.steps()))
        for memory in self.unit.memories:
            found += updates_of(memory)
        found += [i.default for i in self.unit.inputs if i.default is not None]
        return found

    def steps(self) -> list[Any]:
        """All steps, in the order of a token."""
        return list(self.unit.steps)

    # ---- the class -----------------------------------------------------------------------------

    def write(self, out: Writer) -> None:
        """Write the whole class."""
        base = "OnlineModel" if self.unit.online else "nn.Module"
        self.used |= {"OnlineModel", "Learner"} if self.unit.online else set()
        out.line(f"class {self.unit.name}({base}):")
        with out.indent():
            out.docstring(self.about)
            out.blank()
            self.tables(out)
            self.constructor(out)
            self.reset(out)
            self.initial_state(out)
            if self.unit.ahead is not None:
                self.method(out, 2, ahead=True)
            self.method(out, 2)
            self.method(out, 1)
            if self.unit.kind == "block":
                write_learning(self, out)
            while out.lines and not out.lines[-1]:
                out.lines.pop()

    def tables(self, out: Writer) -> None:
        """Write what a model knows of what learns from the task."""
        if self.unit.online:
            assert self.system is not None
            write_tables(self.system, out)
            out.blank()

    def modules(self) -> list[tuple[str, str]]:
        """The instances of other units, by attribute."""
        found: dict[str, str] = {}
        for step in self.steps():
            if isinstance(step, Call) and not (self.unit.kind == "pass" and step.shared):
                found[step.instance] = f"{self.blocks[step.block].name}(**new)"
            if isinstance(step, Passes):
                text = f"nn.ModuleList({step.unit}(**new) for _ in range({step.count}))"
                for name in step.shared if self.unit.kind == "model" else ():
                    found[name] = self.shared_class(name)
                found[step.name] = text
        return list(found.items())

    def shared_class(self, instance: str) -> str:
        """What makes a shared instance."""
        return f"{self.blocks[self.shared_blocks[instance]].name}(**new)"

    def constructor(self, out: Writer) -> None:
        """Write `__init__`."""
        unit = self.unit
        out.line("def __init__(self, device=None, dtype=None):")
        with out.indent():
            out.line("super().__init__()")
            place = len(out.lines)
            for weight in unit.weights:
                if not (unit.tied and weight.name == "unembed"):
                    declare_weight(out, weight, self.used)
            for memory in unit.memories:
                if bare(memory):
                    own = of_memory(memory)[0]
                    declare_tensors(
                        out, [type(own)(memory.name, own.shape, own.initial)], self.used
                    )
                words = "**new" if own_parameters(memory) else ""
                out.line(f"self.{memory_path(memory)} = {self.memories[memory.name].name}({words})")
            for path, text in self.modules():
                out.line(f"self.{path} = {text}")
            if any("**new" in line for line in out.lines[place:]):
                out.lines.insert(place, '        new = {"device": device, "dtype": dtype}')
            out.line("self.reset_parameters()")
        out.blank()

    def reset(self, out: Writer) -> None:
        """Write `reset_parameters`: in the order of the parameters, each drawn once."""
        unit = self.unit
        out.line("def reset_parameters(self) -> None:")
        with out.indent():
            out.docstring(["Draw all parameters anew."])
            for weight in unit.weights:
                if unit.tied and weight.name == "unembed":
                    continue
                if as_module(weight) and usual(weight):
                    out.line(f"self.{weight.name}.reset_parameters()")
                else:
                    self.draw(out, of_weight(weight))
            for memory in unit.memories:
                if bare(memory):
                    own = of_memory(memory)[0]
                    self.draw(out, [replace(own, name=memory.name)])
                if own_parameters(memory):
                    out.line(f"self.{memory_path(memory)}.reset_parameters()")
            for path, text in self.modules():
                if text.startswith("nn.ModuleList"):
                    out.line(f"for layer in self.{path}:")
                    out.line("    layer.reset_parameters()")
                else:
                    out.line(f"self.{path}.reset_parameters()")
        out.blank()

    def draw(self, out: Writer, tensors: list[Any]) -> None:
        """Draw tensors, some of which are computed from others."""
        for own in tensors:
            if own.initial.kind == "source":
                part = own.name.partition(".")[2]
                source = own.initial.source + (f".{part}" if part else "")
                self.copied(out, own.name, f"self.{source}")
            elif own.initial.kind == "expr":
                program = Program()
                target = note(program.attribute(own.name), own.shape, 0)
                # in double precision: what is drawn is as exact as the parameter's type allows
                exact = note(program.method("double", target), own.shape, 0, wide=True)
                scope = Scope(self.unit, program, 0, exact)
                value = scope.low.tensor(own.initial.expr)
                program.finish((value,))
                printer = Printer(program, out, Names(reserved()), self.used)
                printer.run()
                # inside `no_grad`, and on a line of its own where the call is split
                printer.settle(value, out.room - 9)
                self.copied(out, own.name, printer.operand(value))
            else:
                draw_tensors(out, [own], self.used)

    def copied(self, out: Writer, name: str, text: str) -> None:
        """Write a copy into a parameter."""
        out.line("with torch.no_grad():")
        with out.indent():
            for line in split_call(f"self.{name}.copy_(", [text], ")", out.room):
                out.line(line)

    # ---- the state -----------------------------------------------------------------------------

    @property
    def stateful(self) -> bool:
        """Say whether the unit's state holds anything."""
        unit = self.unit
        return bool(unit.memories or unit.histories or unit.counts)

    def initial_state(self, out: Writer) -> None:
        """Write `initial_state`."""
        unit = self.unit
        name = "first_state" if unit.online else "initial_state"
        about = "Give the state before the first token, placed and typed as `like`."
        if unit.online:
            about = "Give the state of all modules before the first token."
        out.line(f"def {name}(self, batch: int, like: Tensor) -> dict[str, Any]:")
        with out.indent():
            out.docstring([about])
            program = Program()
            batch = program.input("batch")
            like = note(program.input("like"), (), 0)
            scope = Scope(unit, program, 1, like)
            entries: dict[str, Any] = {}
            for memory in self.ordered_memories():
                path = memory_path(memory)
                node = program.module(
                    f"{path}.initial", batch, like, *initial_arguments(scope, memory)
                )
                self.take_states(scope, memory, node)
                if keeps(memory):
                    kept = program.module(f"{path}.empty", batch, like)
                    take_kept(scope, memory, kept)
            for memory in unit.memories:
                for label, node in self.memory_entries(scope, memory):
                    entries[label] = node
            for history in unit.histories:
                entries[history.slot] = program.method(
                    "new_zeros", like, batch, history.length, *sizes(history.shape)
                )
            if unit.counts:
                entries["position"] = 0
            for path, text in self.modules():
                if text.startswith("nn.ModuleList"):
                    entries[path] = Raw(
                        f"{{str(i): layer.initial_state(batch, like) for i, layer in "
                        f"enumerate(self.{path})}}"
                    )
                else:
                    entries[path] = program.module(f"{path}.initial_state", batch, like)
            program.finish(tuple(v for v in entries.values() if isinstance(v, fx.Node)))
            printer = Printer(program, out, Names(reserved() | {"batch", "like"}), self.used)
            printer.bind(batch, "batch")
            printer.bind(like, "like")
            printer.run()
            write_dict(out, printer, "return ", entries)
        out.blank()

    def ordered_memories(self) -> list[Memory]:
        """Memories, each after the one whose state it begins with."""
        waiting = list(self.unit.memories)
        done: list[Memory] = []
        names = {m.name for m in waiting}
        while waiting:
            memory = waiting.pop(0)
            sources = set(self.memories[memory.name].sources()) & names
            if sources <= {m.name for m in done}:
                done.append(memory)
            else:
                waiting.append(memory)
        return done

    def take_states(self, scope: Scope, memory: Memory, node: fx.Node) -> None:
        """Take the states of a memory out of what `initial` gives."""
        names = self.memories[memory.name].states
        variables = [""] if memory.map.kind == "kernel" else [v.name for v in memory.variables]
        parts = [node] if len(names) == 1 else scope.program.unpack(node, names)
        for part, name, var in zip(parts, names, variables, strict=True):
            part.meta.setdefault("name", name)
            scope.states[memory.name, "prev", var] = note(part, (), 1, wide=True)

    def held(self, memory: Memory) -> list[Held]:
        """What the state holds of a memory."""
        writer = self.memories[memory.name]
        variables = [""] if memory.map.kind == "kernel" else [v.name for v in memory.variables]
        found = [
            Held((memory.name, "prev", var), name, f"{memory.name}.{var}" if var else memory.name)
            for var, name in zip(variables, writer.states, strict=True)
        ]
        for keep in keeps(memory):
            found.append(Held((memory.name, keep.word, ""), keep.name, keep.label))
        if self.has_start(memory):
            key = (memory.name, "start", "")
            found.append(Held(key, writer.start_name, f"{memory.name}.start"))
        if self.has_copied(memory):
            key, name = (memory.name, "initial", ""), identifier(f"{memory.name}_initial")
            found.append(Held(key, name, f"{memory.name}.initial"))
        return found

    def memory_entries(self, scope: Scope, memory: Memory) -> list[tuple[str, fx.Node]]:
        """The entries of a memory in the state, with their labels."""
        before = scope.states[self.held(memory)[0].key]
        return [(held.label, held.value(scope.states, before)) for held in self.held(memory)]

    def has_copied(self, memory: Memory) -> bool:
        """Say whether the state must hold what the memory began with: a copy of another's state."""
        sources = set(self.memories[memory.name].sources())
        return bool(sources & {m.name for m in self.unit.memories}) and any(
            n.op == "state" and n.attr("memory") == memory.name and n.attr("when") == "initial"
            for n in postorder(self.all_expressions())
        )

    def has_start(self, memory: Memory) -> bool:
        """Say whether anything reads the state of the memory's chunk start."""
        return memory.chunk > 1 and any(
            n.op == "state" and n.attr("memory") == memory.name and n.attr("when") == "start"
            for n in postorder(self.all_expressions())
        )

    # ---- forward and step ----------------------------------------------------------------------

    def method(self, out: Writer, batch: int, ahead: bool = False) -> None:
        """Write `forward` (batch 2) or `step` (batch 1), or what comes `ahead` of what learns."""
        unit = self.unit
        name = "forward" if batch == 2 else "step"
        if unit.online:
            name = "read_piece" if batch == 2 else "read_step"
        if ahead:
            name = "read_ahead" if unit.online else "ahead"
        words, optional = [], False
        for entry in unit.inputs:
            optional = optional or entry.default is not None
            kind = "Tensor"
            if entry.default is not None or entry.name in unit.optional:
                kind = "Tensor | None"
            if optional:
                kind = "Tensor | None = None"
            words.append(f"{identifier(entry.name)}: {kind}")
        words += [f"{identifier(n)}: nn.Module" for n in self.passed()]
        given = unit.online or ahead
        words.append(f"state: {'dict[str, Any]' if given else 'dict[str, Any] | None = None'}")
        goes_on = batch == 2 and unit.ahead is not None and not ahead
        words += ["ahead: Any = None"] if goes_on else []
        results = len(unit.outputs)
        kind = "Tensor" if results == 1 else f"tuple[{', '.join(['Tensor'] * results)}]"
        kind = "Any" if ahead else kind
        head = f"def {name}("
        for text in split_call(
            head, ["self", *words], f") -> tuple[{kind}, dict[str, Any]]:", out.room
        ):
            out.line(text)
        with out.indent():
            about = self.about_method(batch)
            if ahead:
                about = "Run what comes before all that learns, for any number of tokens."
            elif goes_on:
                about = f"{about[:-1]}; `ahead` is what has run."
            out.docstring([about])
            self.body(out, batch, ahead)
        out.blank()

    def passed(self) -> list[str]:
        """Modules that the model hands to a pass."""
        return list(self.unit.shared) if self.unit.kind == "pass" else []

    def about_method(self, batch: int) -> str:
        """One line about shapes."""
        front = "B, T" if batch == 2 else "B"
        several = "tokens" if self.unit.online else "a whole sequence"
        many = several if batch == 2 else "one token"
        shapes = []
        for entry in self.unit.inputs:
            inside = show(self.shapes.get(entry.name, ()))[1:-1]
            shapes.append(f"{entry.name} [{front}{', ' + inside if inside else ''}]")
        if self.unit.online:
            return f"Read {many}, with what learns as it is: {', '.join(shapes)}."
        return f"Run {many}: {', '.join(shapes)}."

    def body(self, out: Writer, batch: int, ahead: bool) -> None:
        """Write the statements of `forward` or `step`, or of what comes `ahead`."""
        unit, program = self.unit, Program()
        wanted = crossing(unit) if batch == 2 and unit.ahead is not None else []
        taken = {identifier(i.name) for i in unit.inputs} | {"state"}
        stage = goes_on(unit)
        if wanted and not ahead:
            taken |= {"ahead", *([ahead_of(stage)] if stage is not None else [])}
        names = Names(reserved() | taken)
        state = program.input("state")
        inputs = {}
        for entry in unit.inputs:
            node = program.input(identifier(entry.name))
            shape = self.shapes.get(entry.name, entry.shape)
            inputs[entry.name] = note(node, shape, batch)
            node.meta["integer"] = entry.integer
        first = next((n for e, n in inputs.items() if e not in unit.optional), None)
        assert first is not None
        like = next(
            (n for e, n in inputs.items() if e not in self.integers and e not in unit.optional),
            None,
        )
        if like is None:
            learned: list[Weight | Memory] = [
                *unit.weights,
                *(m for m in unit.memories if "" in dict(m.learned_states())),
            ]
            like = first
            if learned:
                path = ".".join(
                    word for word in (learned[0].name, learned[0].map.parts[0].name) if word
                )
                like = note(program.attribute(path), (), 0)
        scope = Scope(unit, program, batch, like, dict(inputs))
        scope.first = first
        scope.fetch = lambda slot: program.call(operator.getitem, state, slot)
        nested: dict[str, fx.Node] = {}
        self.begin_states(scope, state)
        runner = Runner(self, scope, state, nested)
        crossed = {}
        if batch == 2 and unit.ahead is not None and not ahead:
            for name in wanted:
                word = identifier(name) if name in inputs else names.fresh(identifier(name))
                crossed[name] = note(program.input(word), self.shapes.get(name, ()), batch)
            scope.streams |= crossed
        if batch == 2:
            for part in self.stages(ahead):
                runner.stage(part)
        else:
            self.token(runner)
            runner.end_of_token([m.name for m in unit.memories])
        for memory in unit.memories:
            if memory.is_task:
                collect(runner, memory)
        outputs = [self.output(scope, name) for name in (wanted if ahead else unit.outputs)]
        if ahead:
            outputs += runner.first_pass(stage)
            entries = {path: nested[path] for path, _ in self.modules() if path in nested}
        else:
            entries = self.state_entries(scope, nested, batch)
        program.finish(
            (tuple(outputs), tuple(v for v in entries.values() if isinstance(v, fx.Node)))
        )
        if not (unit.online or ahead):
            self.prologue(out, first, like, batch, program, scope)
        if batch == 2 and unit.ahead is not None and not ahead:
            self.take_ahead(out, [str(node.target) for node in crossed.values()])
        printer = Printer(program, out, names, self.used)
        printer.bind(state, "state")
        for name, node in inputs.items():
            printer.bind(node, identifier(name))
        for node in program.inputs:
            if node not in printer.bound:
                printer.bind(node, str(node.target))
        printer.run()
        texts = [printer.operand(o) for o in outputs]
        result = texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
        write_dict(out, printer, "state = state | " if ahead else "state = ", entries)
        out.line(f"return {result}, state")

    def stages(self, ahead: bool) -> Sequence[Any]:
        """List the stages of a sequence: all, or what comes `ahead` of all that learns, or not."""
        unit = self.unit
        if unit.ahead is None:
            return unit.stages
        return in_stages(unit.steps[: unit.ahead] if ahead else unit.steps[unit.ahead :])

    def take_ahead(self, out: Writer, names: list[str]) -> None:
        """Write that what comes ahead runs now, where it has not; and take its streams."""
        unit = self.unit
        method = "read_ahead" if unit.online else "ahead"
        words = [identifier(entry.name) for entry in unit.inputs]
        out.line("if ahead is None:")
        with out.indent():
            out.line(f"ahead, state = self.{method}({', '.join(words)}, state)")
        stage = goes_on(unit)
        names += [ahead_of(stage)] if stage is not None else []
        out.line(f"{', '.join(names)} = ahead")

    def token(self, runner: Runner) -> None:
        """Run the steps of one token, some of which may be one kernel."""
        group = self.token_group
        if group is None:
            runner.token(self.steps())
            return
        from nlc.codegen.token_loop import token_loop

        runner.token(group.before)
        token_loop(runner, group.inside, group.memories, once=group.rows)
        runner.token(group.after)

    def prologue(
        self, out: Writer, first: fx.Node, like: fx.Node, batch: int, program: Program, scope: Scope
    ) -> None:
        """Write what comes first: a state where none is given, and an empty sequence."""
        rows = f"{first.target}.shape[0]"
        like_text = str(like.target) if like.op == "placeholder" else f"self.{like.target}"
        out.line("if state is None:")
        with out.indent():
            out.line(f"state = self.initial_state({rows}, {like_text})")
        # a convolution, as a memory, takes one token at least
        takes = self.unit.memories or any(n.op == "conv" for n in postorder(self.all_expressions()))
        if batch == 2 and self.unit.kind == "block" and takes:
            outputs = []
            for name in self.unit.outputs:
                shape = sizes(self.output_shape(name))
                inside = ", ".join(map(str, (rows, 0, *shape)))
                outputs.append(f"{like_text}.new_zeros({inside})")
            result = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
            out.line(f"if {first.target}.shape[1] == 0:")
            with out.indent():
                line = f"return {result}, state"
                if len(line) <= out.room:
                    out.line(line)
                else:
                    for i, text in enumerate(outputs):
                        out.line(f"empty_{i} = {text}")
                    inner = ", ".join(f"empty_{i}" for i in range(len(outputs)))
                    out.line(
                        f"return ({inner}), state" if len(outputs) > 1 else "return empty_0, state"
                    )

    def output_shape(self, name: str) -> Shape:
        """The shape of an output."""
        block = self.unit.block
        return dict(block.outputs)[name] if block is not None else self.shapes.get(name, ())

    def begin_states(self, scope: Scope, state: fx.Node) -> None:
        """Take the states out of the given one, where they are read."""
        program = scope.program
        for memory in self.unit.memories:
            for held in self.held(memory):
                node = program.call(operator.getitem, state, held.label)
                scope.states[held.key] = note(node, (), 1, wide=True)
        if self.unit.counts:
            node = program.call(operator.getitem, state, "position")
            node.meta["name"] = "position"
            scope.position = node

    def output(self, scope: Scope, name: str) -> fx.Node:
        """An output, with all its batch axes and in the streams' type."""
        node = scope.stream(name)
        assert node is not None, name
        node = scope.low.narrow(scope.low.as_number(node))
        return scope.spread(node, name in self.unit.alike)

    def state_entries(self, scope: Scope, nested: dict[str, Any], batch: int) -> dict[str, Any]:
        """The state after what was run."""
        entries: dict[str, Any] = {}
        unit = self.unit
        for memory in unit.memories:
            for label, node in self.memory_entries(scope, memory):
                entries[label] = node
        for history in unit.histories:
            entries[history.slot] = scope.after.get(history.slot, None) or scope.past(history.slot)
        if self.unit.counts:
            count = scope.tokens() if batch == 2 else 1
            entries["position"] = scope.program.call(operator.add, scope.position, count)
        for path, _ in self.modules():
            if path in nested:
                entries[path] = nested[path]
            elif batch == 2 and unit.ahead is not None:
                # it has run ahead
                state = scope.program.input("state")
                entries[path] = scope.program.call(operator.getitem, state, path)
        return entries


def take_kept(scope: Scope, memory: Memory, node: fx.Node) -> None:
    """Take what is kept of a window out of what `empty` gives."""
    kept = keeps(memory)
    parts = [node] if len(kept) == 1 else scope.program.unpack(node, [k.name for k in kept])
    for keep, part in zip(kept, parts, strict=True):
        part.meta.setdefault("name", keep.name)
        scope.states[memory.name, keep.word, ""] = note(part, (), 1, wide=True)


def _open_streams(roots: Iterable[Expr]) -> set[str]:
    """The streams that expressions read, not through a map or a convolution."""
    found: set[str] = set()
    seen: set[Expr] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "stream":
            found.add(str(node.attr("name")))
        if node.op not in ("apply", "conv"):
            stack.extend(node.args)
    return found
