"""How a memory with a normal form moves over a sequence: tiles, solved or scanned.

In: a `MemoryWriter` of one part whose schedule is tile-solve, tile-scan or scan. Out: the methods
`forward` and the reads of its course. Where an update reads its chunk's start see `torch_chunks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nlc.codegen import library_gates, library_scan, library_tiles
from nlc.codegen.lowering import Lowering
from nlc.codegen.names import identifier
from nlc.codegen.program import Operand, Program, note
from nlc.codegen.tile_vectors import Vectors, equations, gate_value
from nlc.codegen.triton.call import read_word, write_course
from nlc.codegen.triton.rows_call import write_rows
from nlc.codegen.writer import Writer, split_call
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Affine
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
    words += writer.restart_words()
    words += ["position: int"] if segment else []
    rows = writer.schedule.kind == "scan"
    writer.used.add("Rows" if rows else "Tiles")
    result[0] = "Rows" if rows else result[0]
    if writer.kernels is not None:
        result[0] += " | list[kernels.Course]" if segment else " | kernels.Course"
    about = f"Move over a sequence, {writer.schedule.tile} tokens at a time."
    about = "Move over a sequence, its tiles side by side." if rows else about
    writer.method(out, "forward", words, f"tuple[{', '.join(result)}]", about)
    if writer.kernels is not None:
        with out.indent():
            write_course(writer, writer.kernels, out, segment)
    if writer.rows_kernel is not None:
        with out.indent():
            write_rows(writer, writer.rows_kernel, out)
    if segment:
        _segments(writer, out, form, segment)
        return
    program, inputs = writer.begin(writer.run_arguments, 2)
    inputs |= _held_inputs(program, form)
    path, after = _move(writer, program, inputs, seen(form))
    program.finish((path, *after))
    with out.indent():
        _hold(writer, out, form, {})
        equations(out, seen(form), writer.states)
        printer = writer.body(out, program)
        out.line(f"return {', '.join(printer.operand(x) for x in (path, *after))}")
    out.blank()


def segments(writer: MemoryWriter) -> int:
    """After how many tokens the course must be cut: at resets; else 0."""
    return writer.memory.reset.count if writer.memory.reset is not None else 0


def _move(
    writer: MemoryWriter, program: Program, inputs: dict[Expr, fx.Node], form: Affine
) -> tuple[fx.Node, list[fx.Node]]:
    """Build the coefficients and the solve; returns the course and the new states."""
    from nlc.codegen.torch_memory import taken

    memory, schedule = writer.memory, writer.schedule
    part = memory.map.parts[0]
    shape = (*memory.lead, *part.shape)
    states = [note(program.input(name), shape, 1, wide=True) for name in writer.states]
    leaf = inputs.__getitem__
    like = writer.like(program, inputs, states)
    low = Lowering(program, 2, leaf, taken(inputs, leaf), like)
    # activations that were taken in are as exact here as where they stood
    low.lift = writer.kernels is not None
    rank = len(part.shape)
    writes = Vectors(low, len(memory.lead), rank).writes(form)
    scans = schedule.kind == "scan"
    kept = None if scans else schedule.keeping(part.name)
    gates = [[gate_value(low, kept, gate) for gate in row] for row in form.decay]
    matrices = [_as_matrix(program, state, rank, form.transposed) for state in states]
    if kept is None:
        node = program.call(library_scan.scan_rows, writes, gates, matrices)
    else:
        kind = getattr(library_gates, kept.gates)
        node = program.call(library_tiles.solve_tiles, writes, kind, gates, matrices, kept.tile)
    path, *after = program.unpack(node, ["path", *writer.states])
    return path, [_from_matrix(program, x, rank, form.transposed) for x in after]


def seen(form: Affine) -> Affine:
    """The form that gradients see."""
    return form if form.stopped is None else form.stopped.form


def _held_inputs(program: Program, form: Affine) -> dict[Expr, fx.Node]:
    """What is held, as inputs."""
    held = form.stopped.held if form.stopped is not None else ()
    return {e: note(program.input(held_name(e)), e.shape, 2, wide=True) for e, _ in held}


def held_name(leaf: Expr) -> str:
    """The variable of what is held."""
    return identifier(str(leaf.attr("name")).replace(".", "_"))


def _hold(writer: MemoryWriter, out: Writer, form: Affine, known: dict[str, str]) -> None:
    """Write what finds the values that gradients take for constant: the course, without any."""
    from nlc.codegen.torch_memory import taken

    if form.stopped is None:
        return
    program, inputs = writer.begin(writer.run_arguments, 2)
    path, _ = _move(writer, program, inputs, form)
    leaf = inputs.__getitem__
    low = Lowering(program, 2, leaf, taken(inputs, leaf), writer.like(program, inputs, []))
    rank = len(writer.memory.map.parts[0].shape)
    vectors = Vectors(low, len(writer.memory.lead), rank)
    found = {}
    for e, write in form.stopped.held:
        node = program.call(library_tiles.held, *vectors.asked(write), path)
        # a number of a state of lower rank has no axis
        found[held_name(e)] = node if rank == 2 else program.method("squeeze", node, -1)
    program.finish(tuple(found.values()))
    out.comment("the course by itself, for what is a constant to gradients")
    equations(out, form, writer.states)
    out.line("with torch.no_grad():")
    with out.indent():
        printer = writer.body(out, program, known)
        for name, node in found.items():
            printer.settle(node, out.room - len(name) - 3)
            out.line(f"{name} = {printer.operand(node)}")


def _as_matrix(program: Program, state: fx.Node, rank: int, transposed: bool) -> fx.Node:
    for _ in range(2 - rank):
        state = program.method("unsqueeze", state, -2 if rank == 1 else -1)
    return program.call(getattr, state, "mT") if transposed else state


def _from_matrix(program: Program, state: fx.Node, rank: int, transposed: bool) -> fx.Node:
    for _ in range(2 - rank):
        state = program.method("squeeze", state, -2 if rank == 1 else -1)
    return program.call(getattr, state, "mT") if transposed else state


def _segments(writer: MemoryWriter, out: Writer, form: Affine, length: int) -> None:
    """Write the loop over what lies between resets."""
    program, inputs = writer.begin(writer.run_arguments, 2)
    inputs |= _held_inputs(program, form)
    path, after = _move(writer, program, inputs, seen(form))
    program.finish((path, *after))
    varying = [name for expr, name in writer.run_arguments.items() if writer.varies(expr)]
    writer.used.update({"cuts", "Tiles"})
    with out.indent():
        equations(out, seen(form), writer.states)
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
            pieces_of = dict(zip(varying, inner, strict=True))
            _hold(writer, out, form, pieces_of)
            printer = writer.body(out, program, pieces_of)
            out.line(f"paths.append({printer.operand(path)})")
            for state, value in zip(writer.states, after, strict=True):
                text = printer.operand(value)
                if text != state:
                    out.line(f"{state} = {text}")
            out.line(f"position += {inner[0]}.shape[1]")
            out.line(f"if position % {length} == 0:")
            again = [f"{state}_0" for state in writer.states]
            out.line(f"    {', '.join(writer.states)} = {', '.join(again)}")
        out.line(f"return paths, {', '.join(writer.states)}")
    out.blank()


def write_reads(writer: MemoryWriter, out: Writer) -> None:
    """Write the reads of a course that the block makes."""
    for kind, when, var, _ in sorted(writer.reads):
        if kind == "apply" and when in ("post", "prev"):
            _write_read(writer, out, var, late=when == "post")
        if kind == "bare" and when in ("post", "prev"):
            _write_states(writer, out, var, late=when == "post")


def read_name(kind: str, when: str, var: str = "", part: str = "") -> str:
    """The method that reads a course."""
    word = "read" if kind == "apply" else "states"
    var = identifier("_".join(name for name in (var, part) if name)) if var or part else ""
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
    plain = len(form.parts) == len(form.inputs) == len(form.outputs) == 1
    return state if plain and sizes(asked.shape[:-1]) == sizes(state.shape[:-2]) else None


def _path_type(writer: MemoryWriter) -> str:
    if writer.schedule.kind == "scan":
        return "Rows"
    if writer.kernels is not None:
        return "list[Tiles | kernels.Course]" if segments(writer) else "Tiles | kernels.Course"
    return "list[Tiles]" if segments(writer) else "Tiles"


def _query(program: Program, writer: MemoryWriter) -> fx.Node:
    q, count = program.input("q"), len(writer.memory.map.inputs)
    if not count:
        return program.method("unsqueeze", q, -1)
    return q if count == 1 else program.method("flatten", q, -count)


def _answer(program: Program, writer: MemoryWriter, y: fx.Node) -> fx.Node:
    outputs = writer.memory.map.outputs
    if len(outputs) > 1:
        return program.method("unflatten", y, -1, sizes(outputs))
    return y if outputs else program.method("squeeze", y, -1)


def _write_read(writer: MemoryWriter, out: Writer, var: str, late: bool) -> None:
    form = writer.form
    assert form is not None
    about = "after" if late else "before"
    words = ["q: Tensor", f"path: {_path_type(writer)}"]
    asked = f"{writer.memory.name}.{var} q" if var else f"{writer.memory.name}(q)"
    text = f"Read {asked} at every token, {about} its update."
    writer.method(out, read_name("apply", "post" if late else "prev", var), words, "Tensor", text)
    if writer.kernels is not None:
        with out.indent():
            name = f"{writer.kernels.name}_{read_word(writer, var, late)}"
            if segments(writer):
                out.line("if isinstance(path[0], kernels.Course):")
                out.line(f"    return kernels.read_pieces(kernels.{name}, q, path)")
            else:
                out.line("if isinstance(path, kernels.Course):")
                out.line(f"    return kernels.{name}(q, path)")
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
