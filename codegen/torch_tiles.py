"""How a memory with a normal form moves over a sequence: tiles, solved or scanned.

In: a `MemoryWriter` whose schedule is tile-solve or tile-scan. Out: the methods `forward` and the
reads of its course. Where writes are taken at the chunk's start, chunks run one after another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nlc.codegen import library, library_gates, library_scan, library_tiles
from nlc.codegen.lowering import Lowering, batch_of, rank_of
from nlc.codegen.program import Operand, Program, note
from nlc.codegen.writer import Writer, split_call
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Affine, Gate, Write
from nlc.ir.schedule import Schedule
from nlc.ir.shape import sizes
from nlc.ir.system import Memory

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


def write_run(writer: MemoryWriter, out: Writer) -> None:
    """Write `forward`: the course over a sequence and the states after it."""
    form = writer.form
    assert form is not None
    names = [f"{n}: Tensor" for n in writer.run_arguments.values()]
    words = [*names, *(f"{name}: Tensor" for name in writer.states)]
    result = ["Tiles", *["Tensor"] * len(writer.states)]
    segment = segments(writer)
    if segment:
        result[0] = "list[Tiles]"
    if writer.has_start:
        words.append(f"{writer.start_name}: Tensor")
        result.append("Tensor")
    words += writer.restart_words()
    words += ["position: int"] if segment else []
    rows = writer.schedule.kind == "scan"
    writer.used.add("Rows" if rows else "Tiles")
    result[0] = "Rows" if rows else result[0]
    about = f"Move over a sequence, {writer.schedule.tile} tokens at a time."
    about = "Move over a sequence, its tiles side by side." if rows else about
    writer.method(out, "forward", words, f"tuple[{', '.join(result)}]", about)
    if segment:
        _segments(writer, out, form, segment)
        return
    program, inputs = writer.begin(writer.run_arguments, 2)
    path, after = _move(writer, program, inputs, form, None)
    program.finish((path, *after))
    with out.indent():
        _equations(writer, out, form)
        printer = writer.body(out, program)
        out.line(f"return {', '.join(printer.operand(x) for x in (path, *after))}")
    out.blank()


def segments(writer: MemoryWriter) -> int:
    """After how many tokens the course must be cut: at chunks that are read, or at resets."""
    if writer.has_start:
        return writer.memory.chunk
    return writer.memory.reset.count if writer.memory.reset is not None else 0


def _equations(writer: MemoryWriter, out: Writer, form: Affine) -> None:
    """Say what the writes and the gates below compute."""
    names = [f"{name}_{{t-1}}" for name in writer.states]
    for r, write in enumerate(form.writes):
        terms = [f"{n} p" for n, p in zip(names, write.reads, strict=True) if p is not None]
        terms += [f"c {write_name(form, s)}" for s, _ in write.earlier]
        terms += ["u"] if write.offset is not None else []
        out.comment(f"{write_name(form, r)} = {' + '.join(terms) or '0'}")
    for j, name in enumerate(writer.states):
        gates = [(i, row[j]) for i, row in enumerate(form.decay) if row[j] is not None]
        terms = []
        for i, gate in gates:
            assert gate is not None
            unit = gate.value.op == "const" and gate.value.attr("value") == 1.0
            terms.append(names[i] if unit else f"{names[i]} {_gate_word(gate, len(names), i, j)}")
        for r, write in enumerate(form.writes):
            if write.targets[j] is not None:
                terms.append(f"{write_name(form, r)} b^T")
        turned = " (all transposed)" if form.transposed else ""
        out.comment(f"{name}_t = {' + '.join(terms) or '0'}{turned}")


def write_name(form: Affine, number: int) -> str:
    """How a write is called: `e`, or `e1`, `e2`, ... where there are several."""
    return f"e{number + 1}" if len(form.writes) > 1 else "e"


def _gate_word(gate: Gate, count: int, i: int, j: int) -> str:
    word = "g" if count == 1 else f"g{i + 1}{j + 1}"
    return word if gate.kind == "scalar" else f"diag({word})"


def _move(
    writer: MemoryWriter,
    program: Program,
    inputs: dict[Expr, fx.Node],
    form: Affine,
    start: fx.Node | None,
) -> tuple[fx.Node, list[fx.Node]]:
    """Build the coefficients and the solve; returns the course and the new states."""
    from nlc.codegen.torch_memory import taken

    memory, schedule = writer.memory, writer.schedule
    part = memory.map.parts[0]
    shape = (*memory.lead, *part.shape)
    states = [note(program.input(name), shape, 1, wide=True) for name in writer.states]

    def leaf(expr: Expr) -> fx.Node:
        if expr in inputs:
            return inputs[expr]
        assert start is not None
        return start

    like = writer.like(program, inputs, states)
    low = Lowering(program, 2, leaf, taken(inputs, leaf), like)
    rank = len(part.shape)
    vectors = _Vectors(low, len(memory.lead), rank)
    writes = [
        vectors.write(write, write_name(form, number)) for number, write in enumerate(form.writes)
    ]
    if not writes:
        zero = vectors.zero()
        writes = [program.call(library_tiles.Write, [], zero, [(zero, (0,))])]
    gates = [[_gate(low, schedule, gate) for gate in row] for row in form.decay]
    matrices = [_as_matrix(program, state, rank, form.transposed) for state in states]
    if schedule.kind == "scan":
        node = program.call(library_scan.scan_rows, writes, gates, matrices)
    else:
        kind = getattr(library_gates, schedule.gates)
        node = program.call(library_tiles.solve_tiles, writes, kind, gates, matrices, schedule.tile)
    path, *after = program.unpack(node, ["path", *writer.states])
    return path, [_from_matrix(program, x, rank, form.transposed) for x in after]


@dataclass
class _Vectors:
    """Builds the vectors of writes, each once."""

    low: Lowering
    lead: int
    rank: int
    done: dict[tuple[Expr, bool], fx.Node] = field(default_factory=dict)

    def write(self, write: Write, name: str) -> fx.Node:
        """A call of `Write`."""
        reads = [
            (self.vector(p, self.rank >= 1, "p"), j)
            for j, p in enumerate(write.reads)
            if p is not None
        ]
        offset = None
        if write.offset is not None:
            offset = self.vector(write.offset, self.rank == 2, "u")
        into: dict[Expr, list[int]] = {}
        for j, b in enumerate(write.targets):
            if b is not None:
                into.setdefault(b, []).append(j)
        targets = [(self.vector(b, self.rank >= 1, "b"), tuple(js)) for b, js in into.items()]
        if not targets:
            # other writes see it, no state keeps it
            targets = [(self.zero(), (0,))]
        seen = [(_lifted(self.low, self.low.tensor(c), self.lead), s) for s, c in write.earlier]
        words: list[Operand] = [reads, offset, targets, *([tuple(seen)] if seen else [])]
        node = self.low.program.call(library_tiles.Write, *words)
        node.meta["name"] = name
        return node

    def zero(self) -> fx.Node:
        """A vector of zeros, of one entry."""
        nothing = self.low.program.call(library.number, 0.0, self.low.like)
        return self.low.unsqueeze(note(nothing, (), 0, wide=True), 0)

    def vector(self, expr: Expr, has_axis: bool, name: str) -> fx.Node:
        """A coefficient [*lead, d], with an axis of size 1 where it is one number."""
        key = (expr, has_axis)
        if key not in self.done:
            node = _vector(self.low, expr, self.lead, has_axis, name)
            if rank_of(node) == 0 and batch_of(node) == 0:
                node = self.low.unsqueeze(node, 0)
            self.done[key] = node
        return self.done[key]


def _vector(low: Lowering, expr: Expr, lead: int, has_axis: bool, name: str) -> fx.Node:
    node = _scaled(low, expr) if has_axis else low.tensor(expr)
    rank = rank_of(node)
    if not has_axis and rank <= lead and (rank or batch_of(node)):
        node = low.unsqueeze(node, batch_of(node) + rank)
    node = _lifted(low, node, lead + 1)
    if node.op != "placeholder":
        node.meta.setdefault("name", name)
    return node


def _scaled(low: Lowering, expr: Expr) -> fx.Node:
    """A vector times numbers, the numbers multiplied first: one product over the vector."""
    sign, numbers, rest = _factors(expr)
    if sign == 1.0 and len(numbers) < 2:
        return low.tensor(expr)
    if len(rest) != 1 or not numbers:
        return low.tensor(expr)
    program, scale = low.program, low.tensor(numbers[0])
    for other in numbers[1:]:
        a, b = low.align([scale, low.tensor(other)])
        shape = max(a.meta["shape"], b.meta["shape"], key=len)
        scale = low.mark(program.call(operator.mul, a, b), shape, a, b)
    if sign == -1.0:
        scale = low.mark(program.call(operator.neg, scale), scale.meta["shape"], scale)
    elif sign != 1.0:
        product = program.call(operator.mul, sign, scale)
        scale = low.mark(product, scale.meta["shape"], scale)
    thin = low.unsqueeze(scale, batch_of(scale) + rank_of(scale))
    a, b = low.align([thin, low.tensor(rest[0])])
    return low.mark(program.call(operator.mul, a, b), expr.shape, a, b)


def _factors(expr: Expr) -> tuple[float, list[Expr], list[Expr]]:
    """Split a product into its number, its factors of one number a copy, and all others."""
    match expr.op:
        case "neg":
            sign, numbers, rest = _factors(expr.args[0])
            return -sign, numbers, rest
        case "mul":
            left, right = (_factors(arg) for arg in expr.args)
            return left[0] * right[0], left[1] + right[1], left[2] + right[2]
        case "const":
            return float(expr.attr("value")), [], []
        case "let":
            return _factors(expr.args[0])
        case "unsqueeze" if tuple(expr.attr("axes")) == (-1,):
            return 1.0, [expr.args[0]], []
        case _:
            return 1.0, [], [expr]


def _lifted(low: Lowering, node: fx.Node, rank: int) -> fx.Node:
    if batch_of(node):
        if batch_of(node) == 1:
            node = low.unsqueeze(node, 1)
        for _ in range(rank - rank_of(node)):
            node = low.unsqueeze(node, batch_of(node))
    return node


def _gate(low: Lowering, schedule: Schedule, gate: Gate | None) -> Operand:
    """A gate as the schedule's kind of gates takes it: a number, a tensor or None for 0."""
    if gate is None:
        return None
    value = low.value(gate.value)
    if isinstance(value, float | int):
        return float(value)
    node = low.tensor(gate.value)
    node = _lifted(low, node, rank_of(node))
    channels = schedule.kind == "scan" or schedule.gates == "CoupledChannels"
    if gate.kind == "scalar" and channels:
        node = low.unsqueeze(node, batch_of(node) + rank_of(node))
    if node.op != "placeholder":
        node.meta.setdefault("name", "g")
    return node


def _as_matrix(program: Program, state: fx.Node, rank: int, transposed: bool) -> fx.Node:
    for _ in range(2 - rank):
        state = program.method("unsqueeze", state, -2 if rank == 1 else -1)
    return program.call(getattr, state, "mT") if transposed else state


def _from_matrix(program: Program, state: fx.Node, rank: int, transposed: bool) -> fx.Node:
    for _ in range(2 - rank):
        state = program.method("squeeze", state, -2 if rank == 1 else -1)
    return program.call(getattr, state, "mT") if transposed else state


def _segments(writer: MemoryWriter, out: Writer, form: Affine, length: int) -> None:
    """Write the loop over chunks, whose frozen reads are known from their start, and resets."""
    program, inputs = writer.begin(writer.run_arguments, 2)
    memory = writer.memory
    part = memory.map.parts[0]
    shape = (*memory.lead, *part.shape)
    start = note(program.input(writer.start_name), shape, 1, wide=True)
    path, after = _move(writer, program, inputs, form, start)
    program.finish((path, *after))
    varying = [name for expr, name in writer.run_arguments.items() if writer.varies(expr)]
    writer.used.update({"cuts", "Tiles"})
    with out.indent():
        _equations(writer, out, form)
        if writer.has_start:
            out.comment(f"reads in the update see the state before the chunk of {length} tokens")
        out.line("paths = []")
        out.line(f"lengths = cuts(position, {varying[0]}.shape[1], {length})")
        inner = [f"{name}_c" for name in varying]
        if len(varying) == 1:
            out.line(f"for {inner[0]} in {varying[0]}.split(lengths, 1):")
        else:
            pieces = [f"{name}.split(lengths, 1)" for name in varying]
            head = f"for {', '.join(inner)} in zip("
            for text in split_call(head, [*pieces, "strict=True"], "):", out.room):
                out.line(text)
        with out.indent():
            printer = writer.body(out, program, dict(zip(varying, inner, strict=True)))
            kept = f"._replace(origin={writer.start_name})" if writer.has_start else ""
            out.line(f"paths.append({printer.operand(path)}{kept})")
            for state, value in zip(writer.states, after, strict=True):
                text = printer.operand(value)
                if text != state:
                    out.line(f"{state} = {text}")
            out.line(f"position += {inner[0]}.shape[1]")
            if memory.reset is not None:
                out.line(f"if position % {memory.reset.count} == 0:")
                again = [f"{state}_0" for state in writer.states]
                out.line(f"    {', '.join(writer.states)} = {', '.join(again)}")
            if writer.has_start:
                out.line(f"if position % {length} == 0:")
                out.line(f"    {writer.start_name} = {writer.states[0]}")
        ends = [*writer.states, *([writer.start_name] if writer.has_start else [])]
        out.line(f"return paths, {', '.join(ends)}")
    out.blank()


def write_reads(writer: MemoryWriter, out: Writer) -> None:
    """Write the reads of a course that the block makes."""
    for kind, when, var in sorted(writer.reads):
        if kind == "apply" and when in ("post", "prev"):
            _write_read(writer, out, var, late=when == "post")
        if kind == "bare" and when in ("post", "prev"):
            _write_states(writer, out, var, late=when == "post")
        if when == "start" and writer.has_start:
            _write_start(writer, out, kind)


def read_name(kind: str, when: str, var: str = "") -> str:
    """The method that reads a course."""
    word = "read" if kind == "apply" else "states"
    return (
        word + (f"_{var}" if var else "") + {"post": "", "prev": "_before", "start": "_start"}[when]
    )


def read_product(node: Expr, memory_of: Callable[[str], Memory]) -> Expr | None:
    """The state in a product `M @ q` that one can ask a course with q instead, or None."""
    if node.op != "matvec":
        return None
    state, asked = node.args
    if state.op != "state" or state.attr("when") not in ("post", "prev"):
        return None
    form = memory_of(str(state.attr("memory"))).map
    plain = len(form.inputs) == len(form.outputs) == 1
    return state if plain and sizes(asked.shape[:-1]) == sizes(state.shape[:-2]) else None


def _path_type(writer: MemoryWriter) -> str:
    if writer.schedule.kind == "scan":
        return "Rows"
    return "list[Tiles]" if segments(writer) else "Tiles"


def _query(program: Program, writer: MemoryWriter) -> fx.Node:
    q, count = program.input("q"), len(writer.memory.map.inputs)
    return q if count < 2 else program.method("flatten", q, -count)


def _answer(program: Program, writer: MemoryWriter, y: fx.Node) -> fx.Node:
    outputs = writer.memory.map.outputs
    if len(outputs) > 1:
        return program.method("unflatten", y, -1, sizes(outputs))
    return y if outputs else program.method("squeeze", y, -1)


def _write_start(writer: MemoryWriter, out: Writer, kind: str) -> None:
    """Write a read of the state before the chunk."""
    program, name = Program(), writer.memory.name
    path = program.input("path")
    if kind == "bare":
        text = f"Give {name} at the start of every token's chunk."
        writer.method(out, "states_start", [f"path: {_path_type(writer)}"], "Tensor", text)
        writer.finish(out, program, [program.call(library_tiles.states_of_starts, path)])
        return
    text = f"Read {name}(q) at every token, at the start of its chunk."
    words = ["q: Tensor", f"path: {_path_type(writer)}"]
    writer.method(out, "read_start", words, "Tensor", text)
    y = program.call(library_tiles.read_starts, _query(program, writer), path)
    writer.finish(out, program, [_answer(program, writer, y)])


def _write_read(writer: MemoryWriter, out: Writer, var: str, late: bool) -> None:
    form = writer.form
    assert form is not None
    about = "after" if late else "before"
    words = ["q: Tensor", f"path: {_path_type(writer)}"]
    asked = f"{writer.memory.name}.{var} q" if var else f"{writer.memory.name}(q)"
    text = f"Read {asked} at every token, {about} its update."
    writer.method(out, read_name("apply", "post" if late else "prev", var), words, "Tensor", text)
    program = Program()
    q, path = _query(program, writer), program.input("path")
    how: dict[str, Operand] = {} if late else {"late": False}
    number = [v.name for v in writer.memory.variables].index(var)
    how |= {"state": number} if number else {}
    function: Callable[..., object] = library_tiles.read_tiles
    if writer.schedule.kind == "scan":
        function = library_scan.read_rows
    elif segments(writer):
        function = library_tiles.read_chunks
        how |= {"turned": True} if form.transposed else {}
    elif form.transposed:
        function = library_tiles.read_turned
    y = program.call(function, q, path, **how)
    writer.finish(out, program, [_answer(program, writer, y)])


def _write_states(writer: MemoryWriter, out: Writer, var: str, late: bool) -> None:
    form = writer.form
    assert form is not None
    about = "after" if late else "before"
    label = f"{writer.memory.name}.{var}" if var else writer.memory.name
    words = [f"path: {_path_type(writer)}"]
    text = f"Give {label} at every token, {about} its update."
    name = read_name("bare", "post" if late else "prev", var)
    writer.method(out, name, words, "Tensor", text)
    program = Program()
    function: Callable[..., object] = library_tiles.states_of_tiles
    if writer.schedule.kind == "scan":
        function = library_scan.states_of_rows
    elif segments(writer):
        function = library_tiles.states_of_chunks
    how: dict[str, Operand] = {} if late else {"late": False}
    number = [v.name for v in writer.memory.variables].index(var)
    how |= {"state": number} if number else {}
    node = program.call(function, program.input("path"), **how)
    rank = len(writer.memory.map.parts[0].shape)
    writer.finish(out, program, [_from_matrix(program, node, rank, form.transposed)])
