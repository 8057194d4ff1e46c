"""How a memory with a normal form moves over a sequence: tiles, solved or scanned.

In: a `MemoryWriter` whose schedule is tile-solve or tile-scan. Out: the methods `forward` and the
reads of its course. Where writes are taken at the chunk's start, chunks run one after another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

from nlc.codegen import library, library_tiles
from nlc.codegen.lowering import Lowering, batch_of, rank_of
from nlc.codegen.program import Operand, Program, note
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Affine, Gate

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


def write_run(writer: MemoryWriter, out: Writer) -> None:
    """Write `forward`: the course over a sequence and the states after it."""
    form = writer.form
    assert form is not None
    name = writer.states[0]
    words = [f"{n}: Tensor" for n in writer.run_arguments.values()]
    words.append(f"{name}: Tensor")
    chunked = writer.has_start
    if chunked:
        words += [f"{writer.start_name}: Tensor", "position: int"]
        result = "tuple[list[Tiles], Tensor, Tensor]"
    else:
        result = "tuple[Tiles, Tensor]"
    writer.used.add("Tiles")
    about = f"Move over a sequence, {writer.schedule.tile} tokens at a time."
    writer.method(out, "forward", words, result, about)
    if chunked:
        _chunks(writer, out, form)
        return
    program, inputs = writer.begin(writer.run_arguments, 2)
    path, after = _move(writer, program, inputs, form, None)
    program.finish((path, after))
    with out.indent():
        _equation(out, form)
        printer = writer.body(out, program)
        out.line(f"return {printer.operand(path)}, {printer.operand(after)}")
    out.blank()


def _equation(out: Writer, form: Affine) -> None:
    turned = " (M transposed)" if form.transposed else ""
    out.comment(f"M_t = g M_{{t-1}} + (M_{{t-1}} p + u) b^T{turned}")


def _move(
    writer: MemoryWriter,
    program: Program,
    inputs: dict[Expr, fx.Node],
    form: Affine,
    start: fx.Node | None,
) -> tuple[fx.Node, fx.Node]:
    """Build the coefficients and the solve; returns the course and the new state."""
    from nlc.codegen.torch_memory import taken

    memory = writer.memory
    part = memory.map.parts[0]
    shape = (*memory.lead, *part.shape)
    state = note(program.input(writer.states[0]), shape, 1, wide=True)

    def leaf(expr: Expr) -> fx.Node:
        if expr in inputs:
            return inputs[expr]
        assert start is not None
        return start

    like = writer.like(program, inputs, [state])
    low = Lowering(program, 2, leaf, taken(inputs, leaf), like)
    write = form.writes[0] if form.writes else None
    lead, rank = len(memory.lead), len(part.shape)
    nothing = (None, None, None)
    reads, offset, target = (write.reads[0], write.offset, write.targets[0]) if write else nothing
    p = _vector(low, reads, lead, rank >= 1, "p")
    u = _vector(low, offset, lead, rank == 2, "u")
    b = _vector(low, target, lead, rank >= 1, "b")
    g = _gate(low, form.decay[0][0])
    matrix = _as_matrix(program, state, rank, form.transposed)
    if p is None and u is None:
        u = program.call(library.number, 0.0, like)
    if b is None:
        b = program.call(library.number, 0.0, like)
    tile = writer.schedule.tile
    node = program.call(library_tiles.solve_tiles, p, u, b, g, matrix, tile)
    path, after = program.unpack(node, ["path", writer.states[0]])
    return path, _from_matrix(program, after, rank, form.transposed)


def _vector(
    low: Lowering, expr: Expr | None, lead: int, has_axis: bool, name: str
) -> fx.Node | None:
    """A coefficient [*lead, d], with an axis of size 1 where it is one number."""
    if expr is None:
        return None
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


def _gate(low: Lowering, gate: Gate | None) -> Operand:
    if gate is None:
        return low.program.call(library.number, 0.0, low.like)
    assert gate.kind == "scalar"
    value = low.value(gate.value)
    if value == 1.0:
        return None
    node = low.tensor(gate.value)
    memory_rank = rank_of(node)
    node = _lifted(low, node, memory_rank)
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


def _chunks(writer: MemoryWriter, out: Writer, form: Affine) -> None:
    """Write the loop over chunks, whose writes are known from their start."""
    program, inputs = writer.begin(writer.run_arguments, 2)
    part = writer.memory.map.parts[0]
    shape = (*writer.memory.lead, *part.shape)
    start = note(program.input(writer.start_name), shape, 1, wide=True)
    path, after = _move(writer, program, inputs, form, start)
    program.finish((path, after))
    varying = [name for expr, name in writer.run_arguments.items() if writer.varies(expr)]
    chunk, state = writer.memory.chunk, writer.states[0]
    writer.used.update({"cuts", "Tiles"})
    with out.indent():
        _equation(out, form)
        out.comment(f"reads in the update see the state before the chunk of {chunk} tokens")
        out.line("paths = []")
        sequence = varying[0] if varying else state
        out.line(f"lengths = cuts(position, {sequence}.shape[1], {chunk})")
        inner = [f"{name}_c" for name in varying]
        if len(varying) == 1:
            out.line(f"for {inner[0]} in {varying[0]}.split(lengths, 1):")
        else:
            pieces = [f"{name}.split(lengths, 1)" for name in varying]
            from nlc.codegen.writer import split_call

            head = f"for {', '.join(inner)} in zip("
            for text in split_call(head, [*pieces, "strict=True"], "):", out.room):
                out.line(text)
        with out.indent():
            printer = writer.body(out, program, dict(zip(varying, inner, strict=True)))
            out.line(f"paths.append({printer.operand(path)}._replace(origin={writer.start_name}))")
            text = printer.operand(after)
            if text != state:
                out.line(f"{state} = {text}")
            out.line(f"position += {inner[0] if inner else sequence}.shape[1]")
            out.line(f"if position % {chunk} == 0:")
            with out.indent():
                out.line(f"{writer.start_name} = {state}")
        out.line(f"return paths, {state}, {writer.start_name}")
    out.blank()


def write_reads(writer: MemoryWriter, out: Writer) -> None:
    """Write the reads of a course that the block makes."""
    for kind, when in sorted(writer.reads):
        if kind == "apply" and when in ("post", "prev"):
            _write_read(writer, out, late=when == "post")
        if kind == "bare" and when in ("post", "prev"):
            _write_states(writer, out, late=when == "post")
        if when == "start" and writer.has_start:
            _write_start(writer, out, kind)


def read_name(kind: str, when: str) -> str:
    """The method that reads a course."""
    word = "read" if kind == "apply" else "states"
    return word + {"post": "", "prev": "_before", "start": "_start"}[when]


def _write_start(writer: MemoryWriter, out: Writer, kind: str) -> None:
    """Write a read of the state before the chunk."""
    from nlc.ir.shape import sizes

    program = Program()
    path, form_map = program.input("path"), writer.memory.map
    name = writer.memory.name
    if kind == "bare":
        text = f"Give {name} at the start of every token's chunk."
        writer.method(out, "states_start", [f"path: {_path_type(writer)}"], "Tensor", text)
        node = program.call(library_tiles.states_of_starts, path)
        writer._finish(out, program, [node])
        return
    text = f"Read {name}(q) at every token, at the start of its chunk."
    words = ["q: Tensor", f"path: {_path_type(writer)}"]
    writer.method(out, "read_start", words, "Tensor", text)
    q = program.input("q")
    flat = q if len(form_map.inputs) < 2 else program.method("flatten", q, -len(form_map.inputs))
    y = program.call(library_tiles.read_starts, flat, path)
    if len(form_map.outputs) > 1:
        y = program.method("unflatten", y, -1, sizes(form_map.outputs))
    if not form_map.outputs:
        y = program.method("squeeze", y, -1)
    writer._finish(out, program, [y])


def _path_type(writer: MemoryWriter) -> str:
    return "list[Tiles]" if writer.has_start else "Tiles"


def _write_read(writer: MemoryWriter, out: Writer, late: bool) -> None:
    form = writer.form
    assert form is not None
    name = read_name("apply", "post" if late else "prev")
    about = "after" if late else "before"
    words = ["q: Tensor", f"path: {_path_type(writer)}"]
    text = f"Read {writer.memory.name}(q) at every token, {about} its update."
    writer.method(out, name, words, "Tensor", text)
    program = Program()
    q, path = program.input("q"), program.input("path")
    form_map = writer.memory.map
    flat = q if len(form_map.inputs) < 2 else program.method("flatten", q, -len(form_map.inputs))
    turned = program.call(library_tiles.turned, path) if form.transposed else path
    function: Callable[..., object] = library_tiles.read_tiles
    if writer.has_start:
        function = library_tiles.read_chunks
        args: list[Operand] = [flat, path, late] if not late else [flat, path]
        if form.transposed:
            args = [flat, path, late, True]
    else:
        args = [flat, turned, late] if not late else [flat, turned]
    y = program.call(function, *args)
    if len(form_map.outputs) > 1:
        from nlc.ir.shape import sizes

        y = program.method("unflatten", y, -1, sizes(form_map.outputs))
    if not form_map.outputs:
        y = program.method("squeeze", y, -1)
    writer._finish(out, program, [y])


def _write_states(writer: MemoryWriter, out: Writer, late: bool) -> None:
    form = writer.form
    assert form is not None
    name = read_name("bare", "post" if late else "prev")
    about = "after" if late else "before"
    words = [f"path: {_path_type(writer)}"]
    text = f"Give {writer.memory.name} at every token, {about} its update."
    writer.method(out, name, words, "Tensor", text)
    program = Program()
    path = program.input("path")
    function = library_tiles.states_of_chunks if writer.has_start else library_tiles.states_of_tiles
    rank = len(writer.memory.map.parts[0].shape)
    node = program.call(function, path, *([] if late else [False]))
    writer._finish(out, program, [_from_matrix(program, node, rank, form.transposed)])
