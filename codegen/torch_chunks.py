"""How a memory whose update reads the state before its chunk moves over a sequence, part by part.

In: a `MemoryWriter` whose schedule has a keeping for each part of the map. Out: `forward`, which
holds what a chunk's tokens write as a function of their streams and the state before the chunk, and
the reads of its course: the map read layer by layer, each at every token's own state.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from nlc.codegen import library_chunks, library_gates, library_tiles
from nlc.codegen.apply import MAPS, Site, apply_parts, flat_input, split_output
from nlc.codegen.chunk_writes import lead_of, moving, write_writes
from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.program import Operand, Program, note
from nlc.codegen.read_ends import cut_end
from nlc.codegen.tile_vectors import equations, gate_value
from nlc.codegen.torch_tiles import read_name
from nlc.codegen.triton.layer_plan import write_layer_course, write_layer_read
from nlc.codegen.writer import Writer, split_call
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.normal_form import still_parts
from nlc.ir.shape import sizes
from nlc.ir.system import Part

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


def write_head(writer: MemoryWriter, out: Writer, about: str, course: str, asked: str = "") -> None:
    """Write the head of `forward`, which gives a course and the states after it."""
    words = [f"{n}: Tensor" for n in writer.run_arguments.values()]
    words += [f"{asked}: Tensor"] if asked else []
    kinds = [writer.state_type(v.name) for v in writer.memory.variables]
    words += [f"{name}: {kind}" for name, kind in zip(writer.states, kinds, strict=True)]
    words.append(f"{writer.start_name}: {kinds[0]}")
    words += [
        f"{w.split(':')[0]}: {k}" for w, k in zip(writer.restart_words(), kinds, strict=False)
    ]
    words.append("position: int")
    result = ", ".join([course, *kinds, kinds[0]])
    writer.method(out, "forward", words, f"tuple[{result}]", about)


def write_chunks(writer: MemoryWriter, out: Writer) -> None:
    """Write `forward`."""
    memory, asked = writer.memory, _asked(writer)
    about = f"Move over a sequence, a chunk of {memory.chunk} tokens at a time"
    about += f"; read {memory.name}({asked}) on the way." if asked else "."
    writer.used |= {"Chunks", "Moves"}
    write_head(writer, out, about, "Tensor" if asked else path_type(writer), asked)
    with out.indent():
        if writer.layer_kernels is not None:
            write_layer_course(writer, writer.layer_kernels, out, asked)
        (streams, names), ends = write_writes(writer, out), False
        if asked:
            [(_, when, var, _)] = writer.reads
            # between resets what stays does so throughout
            ends = _write_reader(writer, out, when, var, cut=memory.reset is None)
            out.blank()
        _moves(writer, out, names)
        _call(writer, out, streams, f"(read, {asked}{', finish' if ends else ''})")
    out.blank()


def path_type(writer: MemoryWriter) -> str:
    """What a course is: with kernels, one of two things."""
    if writer.layer_kernels is None:
        return "list[Chunks]"
    several = writer.layer_kernels.in_turn or writer.memory.reset is not None
    course = "kernels.LayerCourse"
    return f"list[Chunks] | {f'list[{course}]' if several else course}"


def _asked(writer: MemoryWriter) -> str:
    """The name of the queries that are read with on the way, if any are."""
    names = {*writer.run_arguments.values(), *writer.states, writer.start_name, "position"}
    names |= {word.split(":")[0] for word in writer.restart_words()}
    free = (name for name in ("q", "asked", *(f"q_{i}" for i in range(1, 99))) if name not in names)
    return next(free) if writer.on_the_way is not None else ""


def _part(writer: MemoryWriter, name: str) -> Part:
    return next(p for p in writer.memory.map.parts if p.name == name)


def _moves(writer: MemoryWriter, out: Writer, names: Collection[str]) -> None:
    """Write how each part moves: its gates and how their products are kept.

    `names` stand before it and are used after it.
    """
    from nlc.codegen.torch_memory import taken, write_dict

    program, inputs = writer.begin(writer.run_arguments, 2)
    leaf = inputs.__getitem__
    low = Lowering(program, 2, leaf, taken(inputs, leaf), writer.like(program, inputs, []))
    moves = {}
    for part, form in moving(writer):
        kept = writer.schedule.keeping(part)
        gates = [[_spread(low, gate_value(low, kept, g)) for g in row] for row in form.decay]
        words: list[Operand] = [gates, getattr(library_gates, kept.gates), kept.tile]
        rank = len(_part(writer, part).shape)
        if rank < 2 or form.transposed:
            words += [rank, *([True] if form.transposed else [])]
        moves[part] = program.call(library_chunks.Moves, *words)
    program.finish(tuple(moves.values()))
    shown: set[tuple[str, ...]] = set()
    for part, form in writer.forms:
        inner = Writer()
        states = [f"{n}.{part}" if len(writer.forms) > 1 else n for n in writer.states]
        equations(inner, form, states)
        lines = tuple(line.replace(f".{part}", "") for line in inner.lines)
        if lines not in shown:
            shown.add(lines)
            equations(out, form, states)
    printer = writer.body(out, program, {name: name for name in names})
    write_dict(out, printer, "moves = ", moves)


def _spread(low: Lowering, gate: Operand) -> Operand:
    """A gate that is the same for all tokens, with axes for batch and time."""
    if isinstance(gate, fx.Node):
        while batch_of(gate) < 2:
            gate = low.unsqueeze(gate, batch_of(gate) if batch_of(gate) else 0)
    return gate


def _call(writer: MemoryWriter, out: Writer, streams: list[str], how: str) -> None:
    """Write the call that runs all chunks."""
    single = len(writer.forms) == 1
    part = writer.forms[0][0]

    def whole(name: str) -> str:
        return f'{{"{part}": {name}}}' if single else name

    memory = writer.memory
    words = [
        "writes",
        f"[{', '.join(streams)}]",
        "moves",
        f"[{', '.join(map(whole, writer.states))}]",
        whole(writer.start_name),
        "position",
        str(memory.chunk),
    ]
    if memory.reset is not None:
        again = ", ".join(whole(f"{name}_0") for name in writer.states)
        words.append(f"({memory.reset.count}, [{again}])")
    if asked := _asked(writer):
        words.append(f"asked={how}")
    run = "run_chunks"
    if writer.written.alone:
        run, words = "run_copies", [str(sizes(memory.lead)), *words]
    writer.used.add(run)
    names = [*writer.states, writer.start_name]
    path = "answers" if asked else "path"
    for line in split_call(f"{path}, {', '.join(names)} = {run}(", words, ")", out.room):
        out.line(line)
    results = [f'{name}["{part}"]' if single else name for name in names]
    out.line(f"return {path}, {', '.join(results)}")


# ---- reads -------------------------------------------------------------------------------------


def write_chunk_reads(writer: MemoryWriter, out: Writer) -> None:
    """Write the reads of a course that the block makes."""
    if writer.on_the_way is not None:
        return
    for kind, when, var, part in sorted(writer.reads):
        if when not in ("post", "prev", "start"):
            continue
        if kind == "apply":
            _write_read(writer, out, when, var)
        else:
            _write_states(writer, out, when, var, part)


ABOUT = {"post": "after its update", "prev": "before its update", "start": "before its chunk"}


def _write_read(writer: MemoryWriter, out: Writer, when: str, var: str) -> None:
    name = writer.memory.name
    asked = f"{name}.{var} q" if var else f"{name}(q)"
    text = f"Read {asked} at every token, {ABOUT[when]}."
    words = ["q: Tensor", f"path: {path_type(writer)}"]
    writer.method(out, read_name("apply", when, var), words, "Tensor", text)
    with out.indent():
        plan = writer.layer_kernels
        if plan is not None and (when, var) in plan.reads:
            write_layer_read(writer, plan, out, when, var)
        out.blank()
        _write_reader(writer, out, when, var)
        out.blank()
        _through(writer, out, "path, q")
    out.blank()


def _write_reader(
    writer: MemoryWriter, out: Writer, when: str, var: str, cut: bool = False
) -> bool:
    """Write the function that reads the map over one run of chunks.

    Cut, its end is written as a function of its own, if there is something left; say whether so.
    """
    program, memory = Program(), writer.memory
    lead = lead_of(writer)
    q = note(program.input("q"), (*lead, *memory.map.inputs), 2)
    chunks = program.input("chunks")
    low = Lowering(program, 2, lambda e: q, lambda low, e: None, q)
    x = low.widen(q)
    assert isinstance(x, fx.Node)
    parts = _parts_at(writer, program, chunks, when, var)
    if when == "start":
        stream = Expr("stream", (), (("name", "q"),), q.meta["shape"])
        shape = (*lead, *memory.map.outputs)
        words_: Any = (("lead", len(lead)), ("map", memory.map))
        low.done[stream] = x
        y = apply_parts(low, Expr("apply", (stream,), words_, shape), parts)
    else:
        site = _PathSite(low, writer, parts, when, var)
        y = split_output(
            low, memory.map, MAPS[memory.map.kind](site, flat_input(low, memory.map, x))
        )
    y = program.method("to", y, program.call(getattr, q, "dtype"))
    found = cut_end(program, y, q) if cut else None
    if found is None:
        _reader(writer, out, program, y, "read(q, chunks)")
        return False
    last, end, y = found
    _reader(writer, out, program, last, "read(q, chunks)")
    out.blank()
    _reader(writer, out, end, y, "finish(q, y, still)")
    return True


def _parts_at(
    writer: MemoryWriter, program: Program, chunks: fx.Node, when: str, var: str
) -> dict[str, fx.Node]:
    """What stands for each part: the state before the chunk, the course of a matrix, a vector."""
    lead, found = lead_of(writer), {}
    for part, form in writer.forms:
        rank = len(_part(writer, part).shape)
        shape = (*lead, *_part(writer, part).shape)
        if when == "start":
            whole = program.call(getattr, chunks, "origin")
            found[part] = note(program.call(operator.getitem, whole, part), shape, 1, wide=True)
            continue
        if part in still_parts(writer.forms):
            found[part] = note(_still(program, chunks, part, writer, var), shape, 1, wide=True)
            continue
        tiles = program.call(operator.getitem, program.call(getattr, chunks, "tiles"), part)
        if rank == 2:
            found[part] = tiles
        else:
            node = _states(writer, program, tiles, when, var)
            found[part] = note(_of_rank(program, node, rank, form.transposed), shape, 2, wide=True)
    return found


def _still(program: Program, chunks: fx.Node, part: str, writer: MemoryWriter, var: str) -> fx.Node:
    """A part that stays as it is, one for a chunk."""
    states = program.call(getattr, chunks, "still")
    state = program.call(operator.getitem, states, _number(writer, var))
    return program.call(operator.getitem, state, part)


def _states(writer: MemoryWriter, program: Program, tiles: fx.Node, when: str, var: str) -> fx.Node:
    tiles = program.call(library_chunks.as_tiles, tiles)
    return program.call(library_tiles.states_of_tiles, tiles, **_how(writer, when, var))


def _how(writer: MemoryWriter, when: str, var: str) -> dict[str, Operand]:
    how: dict[str, Operand] = {} if when == "post" else {"late": False}
    number = _number(writer, var)
    return how | ({"state": number} if number else {})


def _number(writer: MemoryWriter, var: str) -> int:
    return [v.name for v in writer.memory.variables].index(var)


def _of_rank(program: Program, node: fx.Node, rank: int, transposed: bool) -> fx.Node:
    for _ in range(2 - rank):
        node = program.method("squeeze", node, -2 if rank == 1 else -1)
    return program.call(getattr, node, "mT") if transposed else node


class _PathSite(Site):
    """A map whose matrices are courses: each token meets its own state."""

    def __init__(
        self, low: Lowering, writer: MemoryWriter, parts: dict[str, fx.Node], when: str, var: str
    ):
        super().__init__(low, writer.memory.map, parts, len(lead_of(writer)))
        self.how = _how(writer, when, var)
        self.forms, self.still = dict(writer.forms), still_parts(writer.forms)
        self.parts_of = {p.name: p for p in writer.memory.map.parts}

    def times(self, name: str, x: fx.Node, bias: str = "") -> fx.Node:
        """W_t x_t by the course of W, or W x_t where W stays as it is."""
        if name in self.still:
            return super().times(name, x, bias)
        turned = self.forms[name].transposed
        path = self.parts[name]
        if turned:
            path = self.low.program.call(library_chunks.as_tiles, path)
        read: Callable[..., object] = (
            library_tiles.read_turned if turned else library_chunks.read_part
        )
        node = self.low.program.call(read, x, path, **self.how)
        y = note(node, (*x.meta["shape"][:-1], self.parts_of[name].shape[-2]), 2, wide=True)
        return self.plus(y, bias) if bias in self.parts else y


def _write_states(writer: MemoryWriter, out: Writer, when: str, var: str, part: str) -> None:
    label = ".".join(name for name in (writer.memory.name, var, part) if name)
    name = read_name("bare", when, var, part)
    text = f"Give {label} at every token, {ABOUT[when]}."
    writer.method(out, name, ["path: list[Chunks]"], "Tensor", text)
    program = Program()
    chunks = program.input("chunks")
    own = part or writer.forms[0][0]
    if when == "start":
        node = program.call(library_chunks.origin_of, chunks, own)
    elif own in still_parts(writer.forms):
        node = program.call(
            library_chunks.for_tokens, _still(program, chunks, own, writer, var), chunks
        )
    else:
        tiles = program.call(operator.getitem, program.call(getattr, chunks, "tiles"), own)
        rank, form = len(_part(writer, own).shape), dict(writer.forms)[own]
        node = _of_rank(program, _states(writer, program, tiles, when, var), rank, form.transposed)
    with out.indent():
        out.blank()
        _reader(writer, out, program, node, "read(chunks)")
        out.blank()
        _through(writer, out, "path")
    out.blank()


def _reader(
    writer: MemoryWriter, out: Writer, program: Program, result: fx.Node, takes: str
) -> None:
    """Write `read`, of one run of chunks, or its end."""
    program.finish((result,))
    writer.used.add("Chunks")
    out.line(f"def {takes}:")
    with out.indent():
        printer = writer.body(out, program)
        printer.settle(result, out.room - 7)
        out.line(f"return {printer.operand(result)}")


def _through(writer: MemoryWriter, out: Writer, given: str) -> None:
    """Write the call of `read` for all runs of chunks."""
    over = "over_copies" if writer.written.alone else "over_chunks"
    before = f"{sizes(writer.memory.lead)}, " if writer.written.alone else ""
    writer.used.add(over)
    out.line(f"return {over}({before}read, {given})")
