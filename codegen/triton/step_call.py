"""One memory's step as a kernel: in a loop over tokens that runs as PyTorch, and while decoding.

In: the writer of a memory's class. Out: a `StepPlan`, or why there is none, and what calls it. The
kernel is that of one token of a loop in which this memory alone moves, and reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlc.codegen.lowering import batch_of, is_wide
from nlc.codegen.names import identifier
from nlc.codegen.triton.loop_call import plan_loop
from nlc.codegen.triton.loop_graph import loop_graph
from nlc.codegen.triton.loop_plan import LoopPlan
from nlc.codegen.triton.operations import Unprintable
from nlc.codegen.writer import Writer

from nlc.ir.expr import Expr, Graph
from nlc.ir.kernel import Calculus
from nlc.ir.system import Update

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


@dataclass(frozen=True)
class StepPlan:
    """The kernel of one token, and what it takes besides the states."""

    loop: LoopPlan
    leaves: tuple[Expr, ...]


def plan_step(writer: MemoryWriter, name: str, calculus: Calculus, graph: Graph) -> StepPlan | str:
    """Plan the kernel of a memory's step; a text says why it has none."""
    from nlc.codegen.torch_update import Moved

    memory = writer.memory
    try:
        found = loop_graph(
            graph, calculus, [Update(memory.name)], [memory], {memory.name: writer}, [], (), True
        )
        low = Moved(writer, writer.step_arguments).totals.low
        nodes = {leaf.word: low.tensor(leaf.expr) for leaf in found.leaves}
        how = {word: (False, batch_of(node) == 1, is_wide(node)) for word, node in nodes.items()}
        loop = plan_loop(found, calculus, name, how, {}, once=True)
    except Unprintable as why:
        return str(why)
    return StepPlan(loop, tuple(leaf.expr for leaf in found.leaves))


def call_step(plan: StepPlan, writer: MemoryWriter, out: Writer) -> None:
    """Write `if kernels.steps(M): return kernels.NAME_step(...)`."""
    from nlc.codegen.torch_update import Moved

    moved = Moved(writer, writer.step_arguments)
    nodes = [moved.totals.low.tensor(leaf) for leaf in plan.leaves]
    moved.program.finish(tuple(nodes))
    part = next(iter(plan.loop.keys.values()))
    first = f'{writer.states[0]}["{part}"]' if part else writer.states[0]
    out.line(f"if kernels.steps({first}):")
    with out.indent():
        printer = writer.body(out, moved.program)
        words = [*(printer.operand(node) for node in nodes), *writer.states]
        out.call(f"return kernels.{plan.loop.name}_step(", words)


def step_name(block_name: str, memory: str) -> str:
    """What begins the names of a memory's kernels."""
    return identifier(f"{block_name}_{memory}".lower())
