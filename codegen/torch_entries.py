"""How a memory whose states move entry by entry goes over a sequence, a chunk at a time.

In: a `MemoryWriter` whose schedule has entries. Out: `forward`, which holds how the states go
through a chunk as a function of its streams and of the states before it, and the reads of its
course: the map at every token's own state.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from nlc.codegen import library_entries
from nlc.codegen.apply import apply_parts
from nlc.codegen.arguments import arguments
from nlc.codegen.kept import flag_name
from nlc.codegen.lowering import Lowering, batch_of, rank_of
from nlc.codegen.program import Operand, Program, note
from nlc.codegen.torch_chunks import write_head
from nlc.codegen.torch_tiles import read_name
from nlc.codegen.unit import of_memory as evaluated
from nlc.codegen.writer import Writer, split_call
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape
from nlc.ir.system import Part
from nlc.ir.windows import periods

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter

ABOUT = {"post": "after its update", "prev": "before its update", "start": "before its chunk"}
WHEN = {"post": "after", "prev": "before", "start": "start"}


def run_arguments(writer: MemoryWriter) -> dict[Expr, str]:
    """Name what a sequence asks for: what its entries do, and what single tokens do."""
    memory = writer.memory
    roots = [e for entry in writer.schedule.entries for e in (entry.gate, entry.added) if e]
    alone = evaluated(memory) if writer.schedule.ends else []
    found = arguments(memory, [*roots, *alone])
    return {expr: name for expr, name in found.items() if expr.op != "due"}


def write_entries(writer: MemoryWriter, out: Writer) -> None:
    """Write `forward`."""
    chunk = writer.memory.chunk
    about = f"Move over a sequence, a chunk of {chunk} tokens at a time, entry by entry."
    writer.used |= {"Entries", "run_entries"}
    write_head(writer, out, about, "list[Entries]")
    streams = [n for e, n in writer.run_arguments.items() if writer.varies(e)]
    with out.indent():
        _moves(writer, out, streams)
        if writer.schedule.ends:
            _alone(writer, out, streams)
        _call(writer, out, streams)
    out.blank()


def _moves(writer: MemoryWriter, out: Writer, streams: list[str]) -> None:
    """Write how the states go through the tokens of one chunk."""
    from nlc.codegen.torch_memory import taken, write_dict

    out.blank()
    out.call("def moves(", [*streams, *writer.states, writer.start_name], "):")
    with out.indent():
        out.docstring(["The states after each token of a chunk, from those before it."])
        course = _Course(writer)
        low = Lowering(
            course.program, 2, course.leaf, taken(course.inputs, course.leaf), course.like
        )
        low.rename = {
            v.name or "self": n for v, n in zip(writer.memory.variables, writer.states, strict=True)
        }
        low.comments = writer.comments()
        for entry in writer.schedule.entries:
            course.run(low, entry.var, entry.part, entry.gate, entry.added, streams[0])
        course.program.finish(tuple(course.found.values()))
        printer = writer.body(out, course.program)
        out.line("return [")
        with out.indent():
            for variable in writer.memory.variables:
                parts = {p.name: course.found[variable.name, p.name] for p in variable.parts}
                write_dict(out, printer, "", parts)
                out.lines[-1] += ","
        out.line("]")
    out.blank()


class _Course:
    """The program of one chunk: what its states were, and what they are after each token."""

    def __init__(self, writer: MemoryWriter):
        self.writer, memory = writer, writer.memory
        self.program, self.inputs = writer.begin(writer.run_arguments, 2)
        self.first = {
            (variable.name, part.name): self._part(name, part)
            for variable, name in zip(memory.variables, writer.states, strict=True)
            for part in variable.parts
        }
        self.start = {part.name: self._part(writer.start_name, part) for part in memory.map.parts}
        self.found: dict[tuple[str, str], fx.Node] = {}
        self.like = writer.like(self.program, self.inputs, list(self.first.values()))

    def _part(self, name: str, part: Part) -> fx.Node:
        whole = next((n for n in self.program.inputs if n.target == name), None)
        whole = self.program.input(name) if whole is None else whole
        node = self.program.call(operator.getitem, whole, part.name)
        return note(node, (*self.writer.memory.lead, *part.shape), 1, wide=True)

    def leaf(self, expr: Expr) -> fx.Node:
        """A stream, the state before the chunk, or another state's course."""
        if expr in self.inputs:
            return self.inputs[expr]
        if expr.attr("when") == "start":
            return self.start[expr.attr("part")]
        state = (expr.attr("var"), expr.attr("part"))
        course = self.found[state]
        if expr.attr("when") == "prev":
            course = self.program.call(library_entries.before_entries, course, self.first[state])
        return note(course, self.first[state].meta["shape"], 2, wide=True)

    def run(
        self,
        low: Lowering,
        var: str,
        part: str,
        gate: Expr | None,
        added: Expr | None,
        stream: str,
    ) -> None:
        """Scan one part of one state."""
        first = self.first[var, part]
        rank = len(first.meta["shape"])
        still = gate is not None and gate.op == "const" and float(gate.attr("value")) == 1.0
        words = [1.0 if still else self._spread(low, gate, rank), self._spread(low, added, rank)]
        shape = self.program.call(
            getattr, next(n for n in self.program.inputs if n.target == stream), "shape"
        )
        tokens = self.program.call(operator.getitem, shape, 1)
        node = self.program.call(library_entries.scan_entries, *words, first, tokens)
        node.meta["name"] = "_".join(w for w in (self.writer.memory.name, var, part) if w)
        self.found[var, part] = note(node, first.meta["shape"], 2, wide=True)

    def _spread(self, low: Lowering, value: Expr | None, rank: int) -> Operand:
        """A value with all axes of a state, and batch and time in front."""
        if value is None:
            return None
        node = low.widen(low.tensor(value))
        assert isinstance(node, fx.Node)
        batch = batch_of(node)
        for _ in range(rank - rank_of(node)):
            node = low.unsqueeze(node, batch)
        for _ in range(2 - batch):
            node = low.unsqueeze(node, batch)
        return node


def _alone(writer: MemoryWriter, out: Writer, streams: list[str]) -> None:
    """Write how a token moves at whose end a period ends."""
    memory = writer.memory
    names = [*writer.states, writer.start_name]
    out.call("def alone(", [*streams, *names, "position"], "):")
    with out.indent():
        out.docstring(["The states after a token at which a period ends."])
        words = [writer.run_arguments[expr] for expr in writer.step_arguments]
        kinds = [*(v.name for v in memory.variables), ""]
        words += [_whole(writer, name, var) for name, var in zip(names, kinds, strict=True)]
        words += [f"{flag_name(n)}=position % {n} == 0" for n in periods(memory)]
        one = len(memory.variables) == 1
        for line in split_call("found = self.step(", words, ")", out.room):
            out.line(line)
        values = ["found"] if one else [f"found[{i}]" for i in range(len(memory.variables))]
        texts = []
        for value, variable in zip(values, memory.variables, strict=True):
            single = len(variable.parts) == 1
            texts.append(f'{{"{variable.parts[0].name}": {value}}}' if single else value)
        out.line(f"return [{', '.join(texts)}]")
    out.blank()


def _whole(writer: MemoryWriter, name: str, var: str) -> str:
    """A state as `step` takes it, from one by part."""
    parts = writer.parts(var)
    return f'{name}["{parts[0].name}"]' if len(parts) == 1 else name


def _call(writer: MemoryWriter, out: Writer, streams: list[str]) -> None:
    """Write the call that runs all chunks."""
    memory = writer.memory

    def by_part(name: str, var: str) -> str:
        parts = writer.parts(var)
        return f'{{"{parts[0].name}": {name}}}' if len(parts) == 1 else name

    variables = [v.name for v in memory.variables]
    states = [by_part(n, var) for n, var in zip(writer.states, variables, strict=True)]
    words = [
        "moves",
        f"[{', '.join(streams)}]",
        f"[{', '.join(states)}]",
        by_part(writer.start_name, ""),
        "position",
        str(memory.chunk),
    ]
    if writer.schedule.ends:
        words.append(f"ends=({writer.schedule.ends}, alone)")
    if memory.reset is not None:
        again = [by_part(f"{n}_0", var) for n, var in zip(writer.states, variables, strict=True)]
        words.append(f"reset=({memory.reset.count}, [{', '.join(again)}])")
    names = [*writer.states, writer.start_name]
    for line in split_call(f"path, {', '.join(names)} = run_entries(", words, ")", out.room):
        out.line(line)
    results = [_whole(writer, n, var) for n, var in zip(names, [*variables, ""], strict=True)]
    out.line(f"return path, {', '.join(results)}")


# ---- reads -------------------------------------------------------------------------------------


def write_entry_reads(writer: MemoryWriter, out: Writer) -> None:
    """Write the reads of a course that the block makes."""
    for kind, when, var, part in sorted(writer.reads):
        if when in ABOUT and kind in ("apply", "bare"):
            _write_read(writer, out, kind, when, var, part)


def _write_read(
    writer: MemoryWriter, out: Writer, kind: str, when: str, var: str, part: str
) -> None:
    memory = writer.memory
    number = [v.name for v in memory.variables].index(var)
    label = ".".join(w for w in (memory.name, var, part) if w)
    text = f"Read {label}(q)" if kind == "apply" else f"Give {label}"
    words = ["q: Tensor"] if kind == "apply" else []
    name = read_name(kind, when, var, part if kind == "bare" else "")
    about = f"{text} at every token, {ABOUT[when]}."
    writer.method(out, name, [*words, "path: list[Entries]"], "Tensor", about)
    writer.used |= {"over_entries", "Entries"}
    program = Program()
    if kind == "apply":
        result = _applied(writer, program, var)
    else:
        own = part or writer.parts(var)[0].name
        result = program.call(operator.getitem, program.input("parts"), own)
    program.finish((result,))
    with out.indent():
        out.blank()
        out.line(f"def read({'q, ' if kind == 'apply' else ''}parts):")
        with out.indent():
            printer = writer.body(out, program)
            printer.settle(result, out.room - 7)
            out.line(f"return {printer.operand(result)}")
        out.blank()
        asked = ", q" if kind == "apply" else ""
        out.line(f'return over_entries(read, path, "{WHEN[when]}", {number}{asked})')
    out.blank()


def _applied(writer: MemoryWriter, program: Program, var: str) -> fx.Node:
    """Build a read of the map at every token's own state."""
    memory = writer.memory
    q = note(program.input("q"), (*memory.lead, *memory.map.inputs), 2)
    whole = program.input("parts")
    low = Lowering(program, 2, lambda e: q, lambda low, e: None, q)
    x = low.widen(q)
    parts = {
        part.name: note(
            program.call(operator.getitem, whole, part.name),
            (*memory.lead, *part.shape),
            2,
            wide=True,
        )
        for part in writer.parts(var)
    }
    stream = Expr("stream", (), (("name", "q"),), q.meta["shape"])
    shape: Shape = (*memory.lead, *memory.map.outputs)
    words = (("lead", len(memory.lead)), ("map", memory.map))
    low.done[stream] = x
    y = apply_parts(low, Expr("apply", (stream,), words, shape), parts)
    return program.method("to", y, program.call(getattr, q, "dtype"))
