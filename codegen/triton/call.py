"""How a memory's module calls its kernels.

In: the writer of the module and the plan of its kernels. Out: statements at the head of `forward`
and of the reads; PyTorch's form stands below, for what kernels do not take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.program import note
from nlc.codegen.tile_vectors import leaf_value
from nlc.codegen.triton.plan import KernelPlan
from nlc.codegen.writer import Writer

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


def write_course(writer: MemoryWriter, plan: KernelPlan, out: Writer, length: int) -> None:
    """Write `if kernels.takes(M): return kernels.NAME_course(...)`.

    With a length the memory is reset after so many tokens, and what lies between is cut.
    """
    from nlc.codegen.torch_memory import taken

    program, inputs = writer.begin(writer.run_arguments, 2)
    shape = (*writer.memory.lead, *writer.memory.map.parts[0].shape)
    states = [note(program.input(name), shape, 1, wide=True) for name in writer.states]
    leaf = inputs.__getitem__
    like = writer.like(program, inputs, states)
    low = Lowering(program, 2, leaf, taken(inputs, leaf), like)
    lead = len(writer.memory.lead)
    found = [
        leaf_value(low, own.expr, lead, own.vector)
        for own in plan.solve.coefficients.leaves.values()
    ]
    program.finish((*found, *states))
    out.line(f"if kernels.takes({writer.states[0]}):")
    with out.indent():
        printer = writer.body(out, program)
        words = [printer.operand(node) for node in found]
        if not length:
            out.call(f"return kernels.{plan.name}_course(", [*words, *writer.states])
            return
        moving = [f"({w}, {batch_of(n) == 2})" for w, n in zip(words, found, strict=True)]
        lists = [moving, writer.states, [f"{state}_0" for state in writer.states]]
        for name, entries in zip(("leaves", "states", "again"), lists, strict=True):
            out.call(f"{name} = [", entries, "]")
        out.line(f"course = kernels.{plan.name}_course")
        out.line(f"return kernels.over_pieces(course, leaves, states, again, position, {length})")


def read_word(writer: MemoryWriter, var: str, late: bool) -> str:
    """The function that reads a state after or before each token's update."""
    number = [v.name for v in writer.memory.variables].index(var)
    return "read" + (f"_{number + 1}" if number else "") + ("" if late else "_before")
