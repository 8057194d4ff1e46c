"""States of one row as a kernel that walks over all tokens, and how their module calls it.

In: the writer of a memory whose states move channel by channel (a scan). Out: a `RowsPlan`, whose
kernel gives these states at every token, or why there is none; a statement at the head of
`forward`. What the kernel takes is made of what `forward` takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.program import Program, note
from nlc.codegen.triton.loop_call import plan_loop
from nlc.codegen.triton.loop_graph import LoopGraph, loop_graph
from nlc.codegen.triton.loop_plan import LoopPlan
from nlc.codegen.triton.operations import Unprintable
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.kernel import Calculus
from nlc.ir.system import Equation, Step, Update

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


@dataclass(frozen=True)
class RowsPlan:
    """The kernel of a scan, and what it takes."""

    loop: LoopPlan
    leaves: tuple[Expr, ...]


def plan_rows(writer: MemoryWriter, calculus: Calculus, graph: Graph, name: str) -> RowsPlan | str:
    """Plan the kernel of a scan; a text says why it has none."""
    memory = writer.memory
    if memory.reset is not None:
        return "its states go back where its period ends"
    if len(memory.map.parts) > 1 or len(memory.map.parts[0].shape) > 1:
        return "its state is no vector"
    try:
        found = _graph(writer, calculus, graph)
        leaves = tuple(leaf.expr for leaf in found.leaves)
        if not _known(writer, leaves):
            return "it takes more than its module is given"
        _, nodes = _lowered(writer, leaves)
        how = {
            leaf.word: (batch_of(node) == 2, batch_of(node) == 1, bool(node.meta["wide"]))
            for leaf, node in zip(found.leaves, nodes, strict=True)
        }
        wide = dict.fromkeys((row for row, _ in found.rows), True)
        return RowsPlan(plan_loop(found, calculus, name, how, wide), leaves)
    except Unprintable as why:
        return str(why)


def _graph(writer: MemoryWriter, calculus: Calculus, graph: Graph) -> LoopGraph:
    """One token, of which the states after it are streams."""
    memory = writer.memory
    after = []
    for variable, word in zip(memory.variables, writer.states, strict=True):
        (part,) = variable.parts
        state = graph.make(
            "state", memory=memory.name, when="post", var=variable.name, part=part.name,
            shape=(*memory.lead, *part.shape),
        )  # fmt: skip
        after.append(Equation(f"{word}_all", state, "", memory.span))
    names = [step.name for step in after]
    writers = {memory.name: writer}
    steps: list[Step] = [Update(memory.name), *after]
    return loop_graph(graph, calculus, steps, [memory], writers, names, ())


def _known(writer: MemoryWriter, leaves: tuple[Expr, ...]) -> bool:
    """Say whether what `forward` takes is all that leaves are made of."""
    given = {id(expr) for expr in writer.run_arguments}
    made = list(postorder(leaves, given))
    return not any(node.op in ("stream", "param", "state", "attend", "conv", "shift", "due")
                   for node in made)  # fmt: skip


def _lowered(writer: MemoryWriter, leaves: tuple[Expr, ...]) -> tuple[Program, list[fx.Node]]:
    """A program that makes leaves of what `forward` takes."""
    from nlc.codegen.torch_memory import taken

    program, inputs = writer.begin(writer.run_arguments, 2)
    part = writer.memory.map.parts[0]
    shape = (*writer.memory.lead, *part.shape)
    states = [note(program.input(name), shape, 1, wide=True) for name in writer.states]
    leaf = inputs.__getitem__
    like = writer.like(program, inputs, states)
    low = Lowering(program, 2, leaf, taken(inputs, leaf), like)
    return program, [low.tensor(expr) for expr in leaves]


def write_rows(writer: MemoryWriter, plan: RowsPlan, out: Writer) -> None:
    """Write `if kernels.takes(z): ... return`, the course from the states at every token."""
    program, nodes = _lowered(writer, plan.leaves)
    program.finish(tuple(nodes))
    writer.used.add("given_rows")
    guard = "takes" if plan.loop.back else "steps"
    out.line(f"if kernels.{guard}({writer.states[0]}):")
    with out.indent():
        printer = writer.body(out, program)
        words = [printer.operand(node) for node in nodes]
        courses = [printer.names.fresh(f"{name}_all") for name in writer.states]
        after = [printer.names.fresh(f"{name}_after") for name in writer.states]
        head = f"{', '.join([*courses, *after])} = kernels.{plan.loop.name}_loop("
        out.call(head, [*words, *writer.states])
        # a number is a vector of one
        tail = "" if writer.memory.map.parts[0].shape else "[..., None]"
        given = [
            f"[{', '.join(f'{name}{tail}' for name in names)}]"
            for names in (writer.states, courses)
        ]
        results = [f"given_rows({', '.join(given)})", *after]
        line = f"return {', '.join(results)}"
        if len(line) <= out.room:
            out.line(line)
        else:
            for text in ("return (", *(f"    {text}," for text in results), ")"):
                out.line(text)
