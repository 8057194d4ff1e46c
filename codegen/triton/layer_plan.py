"""Which memories that move from chunk to chunk run as kernels, why the others do not, and the call.

In: a memory with its schedule and the reads that its block makes. Out: a `LayerPlan`, or a reason
in words, decided from the forms and the map alone; statements at the head of `forward` and of the
reads, below which PyTorch's form stands for what kernels do not take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.names import Names, identifier
from nlc.codegen.program import note
from nlc.codegen.tile_vectors import leaf_value
from nlc.codegen.triton.gates import KINDS, Scalar
from nlc.codegen.triton.layer_launch import read_suffix
from nlc.codegen.triton.layer_printer import SHORTEST
from nlc.codegen.triton.layer_slices import slices
from nlc.codegen.triton.layer_values import MAPS, NoKernel, own_dims
from nlc.codegen.triton.layers import Layers
from nlc.codegen.writer import Writer, split_call

from nlc.ir.normal_form import Affine
from nlc.ir.schedule import BlockPlan, ChunkLoop, Stage, Windows
from nlc.ir.shape import Shape
from nlc.ir.system import Map

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter

# names that the functions of `kernels.py` use themselves
USED = {
    "q", "y", "dy", "run", "dot", "blocks", "front", "given", "leaves", "found", "path", "states",
    "came", "x", "vector", "rows", "torch", "tl", "triton", "ctx", "offset", "position", "kernels",
    "course",
}  # fmt: skip


@dataclass(frozen=True)
class LayerPlan:
    """The kernels of a memory: `name` begins all their names."""

    name: str
    layers: Layers
    variables: dict[str, str]
    start: str
    reads: tuple[tuple[str, str], ...]
    # whether it moves with others, chunk after chunk
    in_turn: bool = False


def plan_layers(writer: MemoryWriter, block: str) -> LayerPlan | str:
    """Plan the kernels of a memory; a text says why it has none."""
    reason = why_not(writer)
    if reason:
        return reason
    memory = writer.memory
    variables = {v.name: name for v, name in zip(memory.variables, writer.states, strict=True)}
    name = identifier(f"{block}_{memory.name}".lower())
    # states have names of their own, which those of streams leave alone
    names = Names(USED | {*variables.values(), writer.start_name})
    words = {
        (v.name, part.name): names.fresh(_word(variables[v.name], part.name))
        for v in memory.variables
        for part in v.parts
    }
    names.used |= {f"{a}{w}{b}" for w in words.values() for a in ("", "d", "g") for b in ("", "_0")}
    names.used |= {f"{w}_start" for w in words.values()}
    reads = tuple((when, var) for _, when, var, _ in sorted(writer.reads) if when in READS)
    cut = slices(memory.map)
    if isinstance(cut, str):
        return cut
    try:
        keepings = dict(writer.schedule.parts)
        forms = dict(writer.forms)
        layers = Layers(memory, forms, words, names, keepings, cut.axes, cut.walked)
        for read in reads:
            layers.read(*read, read_suffix(layers, *read))
    except NoKernel as why:
        return str(why)
    if not layers.values.leaves:
        return "nothing is written into it"
    return LayerPlan(name, layers, variables, writer.start_name, reads)


READS = ("post", "prev", "start")


def _word(variable: str, part: str) -> str:
    short = part.removesuffix(".weight") if part != "weight" else ""
    return identifier(f"{variable}_{short}" if short else variable).rstrip("_")


def why_not(writer: MemoryWriter) -> str:
    """Say what keeps a memory from kernels, or nothing."""
    form = writer.memory.map
    if form.kind not in MAPS or len(form.inputs) != 1 or len(form.outputs) > 1:
        return "its state is no map of vectors"
    kinds = ("tile-scan", "tile-solve")
    if writer.schedule.kind not in kinds or len(writer.forms) != len(writer.schedule.forms):
        return f"`{writer.schedule.kind}` runs as PyTorch"
    if min(axis.size for axis in form.chain[:-1]) < 2:
        return "a layer reads one channel"
    if any(kind != "apply" and when in READS for kind, when, *_ in writer.reads):
        return "its whole state is read"
    for part, affine in writer.forms:
        if affine.stopped is not None:
            return "its gradient does not pass through all that moves it: it runs as PyTorch"
        keeping, rank = writer.schedule.keeping(part), len(own_dims(_shape(form, part)))
        if keeping.gates not in KINDS or (rank == 0 and KINDS[keeping.gates] is not Scalar):
            return f"the gates of `{part}` are kept as {keeping.gates}"
        if keeping.gates == "RelativeGates" and keeping.tile < SHORTEST:
            return f"the gates of `{part}` hold for fewer than {SHORTEST} tokens"
        if affine.transposed and rank != 2:
            return f"the gates of `{part}` stand on its other side"
        if len(_shape(form, part)) != 2 and not affine.known:
            return f"writes of the vector `{part}` read it as it moves from token to token"
        if circle(affine):
            return "its states flow in a circle"
    return ""


def _shape(form: Map, part: str) -> Shape:
    return next(p.shape for p in form.parts if p.name == part)


def circle(form: Affine) -> bool:
    """Say whether states flow into one another in a circle."""
    waiting = set(range(len(form.states)))
    while waiting:
        free = {j for j in waiting if all(form.decay[m][j] is None for m in waiting - {j})}
        if not free:
            return True
        waiting -= free
    return False


def in_turn(planned: LayerPlan, length: int) -> LayerPlan | str:
    """The plan of a memory that moves with others, so many tokens at a time, or why it has none.

    Courses of one chunk after another are joined to be read: their tiles begin where chunks do.
    """
    layers = planned.layers
    if length == layers.memory.chunk:
        return replace(planned, in_turn=True)
    if length % SHORTEST:
        return f"it moves {length} tokens at a time of its chunk of {layers.memory.chunk}"
    # tiles have a power of 2 of tokens
    layers.longest = min(layers.longest, length & -length)
    return replace(planned, in_turn=True)


def turn(plan: BlockPlan, memory: str) -> int:
    """How many tokens at a time a memory moves with others; 0 where it moves by itself."""

    def inside(stages: Sequence[Stage]) -> int:
        for stage in stages:
            if isinstance(stage, ChunkLoop) and memory in stage.memories:
                return stage.chunk
            if isinstance(stage, Windows) and (found := inside(stage.stages)):
                return found
        return 0

    return inside(plan.stages)


# ---- the call ----------------------------------------------------------------------------------


def write_layer_course(writer: MemoryWriter, plan: LayerPlan, out: Writer, asked: str) -> None:
    """Write `if kernels.takes(M): ...` at the head of `forward`; `asked` is read on the way."""
    from nlc.codegen.torch_memory import taken

    program, inputs = writer.begin(writer.run_arguments, 2)
    memory = writer.memory
    parts = memory.map.parts
    shape = (*memory.lead, *parts[0].shape)
    first = note(program.input("M"), shape, 1, wide=True)
    leaf = inputs.__getitem__
    low = Lowering(program, 2, leaf, taken(inputs, leaf), writer.like(program, inputs, [first]))
    lead = len(memory.lead)
    found = [
        leaf_value(low, own.expr, lead, own.vector) for own in plan.layers.values.leaves.values()
    ]
    program.finish(tuple(found))
    entry = writer.states[0] + (f'["{parts[0].name}"]' if len(parts) > 1 else "")
    out.line(f"if kernels.takes({entry}):")
    with out.indent():
        printer = writer.body(out, program)
        words = [printer.operand(node) for node in found]
        course, states = f"kernels.{plan.name}_course", writer.states
        given = [*words, *states, writer.start_name, "position"]
        names = ["course", *states, writer.start_name]
        if memory.reset is not None:
            moving = [f"({w}, {batch_of(n) == 2})" for w, n in zip(words, found, strict=True)]
            out.call("leaves = [", moving, "]")
            again = [f"{state}_0" for state in states]
            given = [course, "leaves", f"[{', '.join(states)}]", f"[{', '.join(again)}]"]
            given += [writer.start_name, "position", str(memory.reset.count)]
            course = "kernels.layer_pieces"
        if not asked and plan.in_turn and memory.reset is None:
            for text in split_call(f"{', '.join(names)} = {course}(", given, ")", out.room):
                out.line(text)
            out.line(f"return {', '.join(['[course]', *names[1:]])}")
            return
        if not asked:
            out.call(f"return {course}(", given)
            return
        for text in split_call(f"{', '.join(names)} = {course}(", given, ")", out.room):
            out.line(text)
        [(when, var)] = plan.reads
        read = _read(writer, plan, when, var, asked, "course")
        out.line(f"return {', '.join([read, *names[1:]])}")


def _read(writer: MemoryWriter, plan: LayerPlan, when: str, var: str, q: str, path: str) -> str:
    name = f"kernels.{plan.name}_read{read_suffix(plan.layers, when, var)}"
    if writer.memory.reset is not None:
        return f"kernels.read_layer_pieces({name}, {q}, {path})"
    if plan.in_turn:
        path = f"kernels.joined({path})"
    return f"{name}({q}, {path})"


def write_layer_read(
    writer: MemoryWriter, plan: LayerPlan, out: Writer, when: str, var: str
) -> None:
    """Write `if isinstance(path, kernels.LayerCourse): ...` at the head of a read."""
    several = plan.in_turn or writer.memory.reset is not None
    path = "path[0]" if several else "path"
    out.line(f"if isinstance({path}, kernels.LayerCourse):")
    out.line(f"    return {_read(writer, plan, when, var, 'q', 'path')}")
