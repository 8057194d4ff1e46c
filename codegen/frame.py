"""Where a block's expressions are evaluated: over a sequence at once, or at one token.

In: the steps of a block and the nodes of its inputs and states. Out: nodes for its streams, and the
states after it. Memories are called as modules, in the order in which they move.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx

from nlc.codegen import library
from nlc.codegen.apply import apply_module, apply_parts
from nlc.codegen.lowering import Lowering, batch_of, is_wide
from nlc.codegen.names import identifier
from nlc.codegen.parameters import as_module
from nlc.codegen.program import Operand, Program, choose, note
from nlc.codegen.torch_memory import MemoryWriter, bare
from nlc.ir.expr import Expr
from nlc.ir.system import Block, Call, Equation, Weight

SEQUENCE, TOKEN = 2, 1


def module_path(memory: MemoryWriter) -> str:
    """The attribute that holds a memory's module."""
    name = memory.memory.name
    return f"{name}_update" if bare(memory.memory) else name


def state_labels(memory: MemoryWriter) -> list[str]:
    """The names of a memory's states in its block's state."""
    if memory.is_kernel:
        return [memory.memory.name]
    name = memory.memory.name
    return [f"{name}.{v.name}" if v.name else name for v in memory.memory.variables]


@dataclass
class Frame:
    """One function under construction.

    `states` are the nodes before, `after` those after what has moved so far; `paths` the courses
    of memories that ran over the sequence. `outer` gives a stream that the program does not have.
    """

    program: Program
    batch: int
    block: Block
    memories: dict[str, MemoryWriter]
    weights: dict[str, Weight]
    like: fx.Node
    state: Callable[[str], fx.Node]
    position: Callable[[], fx.Node]
    outer: Callable[[str], Operand]
    starts: frozenset[str]
    streams: dict[str, Operand] = field(default_factory=dict)
    after: dict[str, Operand] = field(default_factory=dict)
    paths: dict[str, fx.Node] = field(default_factory=dict)
    low: Lowering = field(init=False)

    def __post_init__(self) -> None:
        self.low = Lowering(self.program, self.batch, self.leaf, self.structured, self.like)

    # ---- leaves --------------------------------------------------------------------------------

    def leaf(self, expr: Expr) -> Operand:
        """Give streams, parameters, states and the position."""
        match expr.op:
            case "stream":
                name = expr.attr("name")
                if name not in self.streams:
                    self.streams[name] = self.outer(name)
                return self.streams[name]
            case "param":
                return note(self.program.attribute(expr.attr("name")), expr.shape, 0)
            case "position":
                return self.position_tensor()
            case _:
                return self.bare_state(expr)

    def position_tensor(self) -> fx.Node:
        """Positions as numbers: [1, T] over a sequence."""
        if self.batch == SEQUENCE:
            call = self.program.call(library.positions, self.position(), self.tokens(), self.like)
            return note(call, (), 2, wide=True)
        number = self.program.call(library.number, self.position(), self.like)
        return note(number, (), 0, wide=True)

    def tokens(self) -> fx.Node:
        """How many tokens the sequence has."""
        shape = self.program.call(builtins.getattr, self.like, "shape")
        return self.program.call(operator.getitem, shape, 1)

    def state_at(self, name: str, var: str, when: str) -> Operand:
        """A memory's whole state: before, after, or at the start of the chunk."""
        label = f"{name}.{var}" if var else name
        if when == "start":
            return self.state(f"{name}.start")
        if when == "initial":
            whole = self.initial(name)
            return whole[[v.name for v in self.memories[name].memory.variables].index(var)]
        if when == "post" and label in self.after:
            return self.after[label]
        return self.state(label)

    def bare_state(self, expr: Expr) -> fx.Node:
        """`M`, `prev(M)`, `M.S` as a value."""
        name, var, when = expr.attr("memory"), expr.attr("var"), expr.attr("when")
        if name in self.paths and when in ("post", "prev"):
            method = "states" if when == "post" else "states_before"
            node = self.program.module(f"{module_path(self.memories[name])}.{method}",
                                       self.paths[name])  # fmt: skip
            return note(node, expr.shape, 2, wide=True)
        whole = self.state_at(name, var, when)
        if len(self.memories[name].parts(var)) > 1:
            whole = self.program.call(operator.getitem, whole, expr.attr("part"))
        return note(whole, expr.shape, 1, wide=True)

    def initial(self, name: str) -> list[fx.Node]:
        """The states of a memory at its start."""
        writer = self.memories[name]
        shape = self.program.call(builtins.getattr, self.like, "shape")
        rows = self.program.call(operator.getitem, shape, 0)
        node = self.program.module(
            f"{module_path(writer)}.initial", rows, self.like, *self.start_arguments(writer)
        )
        if len(writer.memory.variables) == 1 or writer.is_kernel:
            return [node]
        names = [f"{n}_initial" for n in writer.states]
        return self.program.unpack(node, names)

    def start_arguments(self, writer: MemoryWriter) -> list[Operand]:
        """What a memory's `initial` takes besides the batch and a tensor."""
        found: list[Operand] = [self.low.tensor(e) for e in writer.start_arguments]
        for source in [] if writer.is_kernel else writer.sources():
            found.append(self.source(source))
        if not writer.is_kernel and bare(writer.memory):
            found.append(self.program.attribute(writer.memory.name))
        return found

    def source(self, name: str) -> Operand:
        """The values that `init from` copies: weights, or a memory's own start."""
        if name in self.weights:
            weight = self.weights[name]
            parts = {
                p.name: self.program.attribute(f"{name}.{p.name}" if p.name else name)
                for p in weight.map.parts
            }
            return next(iter(parts.values())) if len(parts) == 1 else parts
        return self.initial(name)[0]

    # ---- structured operations -----------------------------------------------------------------

    def structured(self, low: Lowering, expr: Expr) -> Operand | None:
        """Apply weights, read memories, look back in time."""
        match expr.op:
            case "apply":
                part = expr.args[1]
                if part.op == "param":
                    return self._weights(expr, str(part.attr("name")).split(".")[0])
                if part.op == "state":
                    return self._read(expr, part.attr("memory"), part.attr("when"))
            case "attend":
                return self._read(expr, expr.attr("memory"), expr.attr("when"))
            case "shift":
                return self._shift(expr)
            case "conv":
                return self._conv(expr)
            case "lookup" if expr.args[0].op == "param":
                name = str(expr.args[0].attr("name")).split(".")[0]
                weight = self.weights.get(name)
                if weight is not None and as_module(weight) and weight.map.kind == "table":
                    index = low.tensor(expr.args[1])
                    return note(self.program.module(name, index), expr.shape, batch_of(index))
            case "due":
                unit, count = expr.attr("period")
                now = self.low.as_number(self.position_tensor())
                later = self.program.call(operator.add, now, 1.0)
                rest = self.program.call(operator.mod, later, float(count))
                node = self.program.call(operator.eq, rest, 0.0)
                note(node, (), batch_of(now), wide=True).meta["bool"] = True
                return node
        return None

    def _weights(self, expr: Expr, name: str) -> fx.Node:
        weight = self.weights[name]
        if as_module(weight):
            return apply_module(self.low, expr, name)
        parts = {
            p.name: note(
                self.program.attribute(f"{name}.{p.name}" if p.name else name),
                (*weight.lead, *p.shape), 0,
            )
            for p in weight.map.parts
        }  # fmt: skip
        return apply_parts(self.low, expr, parts)

    def _read(self, expr: Expr, name: str, when: str) -> fx.Node:
        writer = self.memories[name]
        q = self.low.tensor(expr.args[0])
        path = module_path(writer)
        if name in self.paths and when in ("post", "prev"):
            method = "read" if when == "post" else "read_before"
            node = self.program.module(f"{path}.{method}", q, self.paths[name])
            return note(node, expr.shape, 2, is_wide(q))
        if self.batch == TOKEN:
            whole = self.state_at(name, "", when)
            node = self.program.module(f"{path}.read_step", q, whole)
            return note(node, expr.shape, 1, is_wide(q))
        whole = self.state_at(name, "", when)
        parts = {}
        for part in writer.parts(""):
            value = whole
            if len(writer.parts("")) > 1:
                value = self.program.call(operator.getitem, whole, part.name)
            parts[part.name] = note(value, (*writer.memory.lead, *part.shape), 1, wide=True)
        return self.low.narrow(apply_parts(self.low, expr, parts))

    def _shift(self, expr: Expr) -> fx.Node:
        slot = expr.attr("slot")
        x = self.low.tensor(expr.args[0])
        function = library.shift if self.batch == SEQUENCE else library.shift_step
        node = self.program.call(function, x, self.state(slot))
        value, past = self.program.unpack(node, [slot, f"{slot}_past"])
        self.after[slot] = past
        return note(value, expr.shape, self.batch, is_wide(x))

    def _conv(self, expr: Expr) -> fx.Node:
        slot, width = expr.attr("slot"), expr.attr("width")
        x = self.low.narrow(self.low.tensor(expr.args[0]))
        path = str(expr.args[1].attr("name")).rpartition(".")[0]
        method = path if self.batch == SEQUENCE else f"{path}.step"
        if width == 1:
            none = (slice(None), slice(None, 0))
            rows = x if self.batch == SEQUENCE else self.program.method("unsqueeze", x, 1)
            past = self.program.call(operator.getitem, rows, none)
        else:
            past = self.state(slot)
        node = self.program.module(method, x, past)
        value, new = self.program.unpack(node, [f"{slot}_out", f"{slot}_past"])
        if width > 1:
            self.after[slot] = new
        return note(value, expr.shape, self.batch)

    # ---- steps ---------------------------------------------------------------------------------

    def equation(self, step: Equation) -> None:
        """Give a stream its value, under its name and below its equation."""
        value = self.low.value(step.value)
        if not isinstance(value, fx.Node):
            value = self.low.tensor(step.value)
        value = self.low.narrow(self.low.as_number(value))
        taken = any(value is v for v in self.streams.values()) or value.op in (
            "placeholder", "get_attr",
        )  # fmt: skip
        if not taken and "name" not in value.meta:
            value.meta["name"] = step.name
        if not taken and step.text:
            value.meta.setdefault("above", []).extend(
                line for line in [step.text] if line not in value.meta.get("above", [])
            )
        self.streams[step.name] = value

    def call(self, step: Call, path: str) -> None:
        """Call another block's module."""
        words, words_by_name, in_order = [], {}, True
        declared = [name for name, _ in step.inputs]
        for name, expr in step.inputs:
            value = self.low.tensor(expr) if expr.op != "stream" else self.leaf(expr)
            words.append(value)
            words_by_name[name] = value
        del in_order, declared
        state = self.state(step.instance)
        node = self.program.module(path, *words, state)
        out = step.results[0] if len(step.results) == 1 else f"{step.instance}_outs"
        value, after = self.program.unpack(node, [out, f"{step.instance}_after"])
        self.after[step.instance] = after
        if len(step.results) == 1:
            self.streams[step.results[0]] = value
        else:
            for i, name in enumerate(step.results):
                part = self.program.call(operator.getitem, value, i)
                part.meta["name"] = name
                self.streams[name] = part

    def move_step(self, name: str) -> None:
        """Move a memory by one token."""
        writer = self.memories[name]
        values = [self.argument(e, writer) for e in writer.step_arguments]
        labels = state_labels(writer)
        states = [self.state(label) for label in labels]
        if not writer.is_kernel and writer.has_start:
            states.append(self.state(f"{name}.start"))
        node = self.program.module(f"{module_path(writer)}.step", *values, *states)
        if len(labels) == 1:
            node.meta["name"] = writer.states[0]
            self.after[labels[0]] = node
            return
        parts = self.program.unpack(node, writer.states)
        self.after.update(zip(labels, parts, strict=True))

    def argument(self, expr: Expr, writer: MemoryWriter) -> Operand:
        """What a memory's method takes, with axes in front as everywhere."""
        value = self.low.tensor(expr)
        if batch_of(value) == 0 and writer.varies(expr):
            value = self.low.unsqueeze(value, 0)
        return value

    def move_sequence(self, name: str) -> None:
        """Move a memory over the whole sequence."""
        writer = self.memories[name]
        arguments = writer.step_arguments if writer.is_kernel else writer.run_arguments
        values = [self.argument(e, writer) for e in arguments]
        label = state_labels(writer)[0]
        words: list[Operand] = [*values, self.state(label)]
        names = [f"{identifier(name)}_path", writer.states[0]]
        if not writer.is_kernel and writer.has_start:
            words += [self.state(f"{name}.start"), self.position()]
            names.append(writer.start_name)
        node = self.program.module(module_path(writer), *words)
        path, after, *start = self.program.unpack(node, names)
        self.paths[name] = path
        self.after[label] = after
        if start:
            self.after[f"{name}.start"] = start[0]

    def end_of_token(self) -> None:
        """Resets and chunk starts, once all of the token's steps are done."""
        for name, writer in self.memories.items():
            labels = state_labels(writer)
            moved = [label for label in labels if label in self.after]
            reset = writer.memory.reset
            if reset is not None and moved:
                fresh = self.initial(name)
                for label, start in zip(labels, fresh, strict=True):
                    self.after[label] = self.at_end(reset.count, start, self.after[label])
            if name in self.starts and moved:
                start_now = self.state(f"{name}.start")
                after = self.after[name]
                chosen = self.at_end(writer.memory.chunk, after, start_now)
                self.after[f"{name}.start"] = chosen

    def at_end(self, period: int, yes: Operand, no: Operand) -> fx.Node:
        """`yes` if the period ends with this token, else `no`."""
        later = self.program.call(operator.add, self.position(), 1)
        rest = self.program.call(operator.mod, later, period)
        return self.program.call(choose, self.program.call(operator.eq, rest, 0), yes, no)
