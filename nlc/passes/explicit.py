"""Write the updates of memories out: gradients as expressions, in their simple form.

In: a system as it was resolved. Out: the same system whose updates hold no `grad`, and no `apply`
of the memory that moves; the statements' `let`s are those of the new expressions. Applications of
weights and of other memories, and reads at the chunk's start, stay as they are: they are needed
once per token and known before the update. Initial values of weights are in their simple form too.
What softmax memories store of other memories is in streams.
"""

from __future__ import annotations

from dataclasses import replace

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.system import (
    Assignment,
    Block,
    Call,
    Equation,
    Memory,
    Part,
    Statement,
    System,
    Weight,
)
from nlc.passes.differentiate import differentiate
from nlc.passes.gather import gather
from nlc.passes.lower import lower
from nlc.passes.simplify import simplify
from nlc.passes.stored import stored


def explicit(system: System) -> System:
    """Write out the updates of all memories; raises `SpecError` where there is no gradient."""
    graph = system.graph_of
    blocks = tuple(_explicit_block(graph, stored(graph, block)) for block in system.blocks)
    return replace(system, blocks=blocks)


def _explicit_block(graph: Graph, block: Block) -> Block:
    weights = tuple(_simple_start(graph, weight) for weight in block.weights)
    memories = tuple(explicit_memory(graph, memory) for memory in block.memories)
    roots = [step.value for step in block.steps if isinstance(step, Equation)]
    roots += [e for step in block.steps if isinstance(step, Call) for _, e in step.inputs]
    roots += [entry.default for entry in block.inputs if entry.default is not None]
    for memory in memories:
        roots += [assignment.value for assignment in memory.update]
        roots += [e for pair in memory.pairs for e in pair] if memory.map.kind == "kernel" else []
    # a term of an objective without a gradient asks for no past
    slots = {node.attr("slot") for node in postorder(roots) if node.op in ("shift", "conv")}
    histories = tuple(h for h in block.histories if h.slot in slots)
    return replace(block, weights=weights, memories=memories, histories=histories)


def _simple_start(graph: Graph, weight: Weight) -> Weight:
    """Simplify the initial values of some weights."""

    def simple(part: Part) -> Part:
        if part.initial.expr is None:
            return part
        (value,) = simplify(graph, [part.initial.expr])
        return replace(part, initial=replace(part.initial, expr=value))

    parts = tuple(simple(part) for part in weight.map.parts)
    return replace(weight, map=replace(weight.map, parts=parts))


def explicit_memory(graph: Graph, memory: Memory) -> Memory:
    """Write out one memory's update; doing it again changes nothing."""

    def moves(node: Expr) -> bool:
        if node.op == "variable":
            return True
        own = node.op == "state" and node.attr("memory") == memory.name
        return own and node.attr("when") == "prev"

    roots = [assignment.value for assignment in memory.update]
    roots += [value for statement in memory.statements for _, value in statement.values]
    roots = lower(graph, simplify(graph, roots), moves)
    # a gradient puts states in the place of variables: what it is taken at may be known before
    written = _once(graph, memory, simplify(graph, differentiate(graph, roots)))
    values = iter(gather(graph, written) if memory.window > 1 else written)
    update = tuple(Assignment(a.var, a.part, next(values)) for a in memory.update)
    statements = tuple(_statement(s, [next(values) for _ in s.values]) for s in memory.statements)
    return replace(memory, update=update, statements=statements)


def _once(graph: Graph, memory: Memory, written: list[Expr]) -> list[Expr]:
    """Write out a read at the chunk's start whose products a gradient takes as well.

    So do those of a difference, `M(k) - M(v)`, which may be one product.
    """

    def own_start(node: Expr) -> bool:
        own = node.op == "state" and node.attr("memory") == memory.name
        return own and node.attr("when") == "start"

    nodes = list(postorder(written))
    matrices = {node.args[0] for node in nodes if node.op == "matvec"}
    whole: dict[int, Expr] = {}
    for read in nodes:
        if read.op == "apply" and all(map(own_start, read.args[1:])):
            (value,) = simplify(graph, lower(graph, [read], own_start))
            if any(node.op == "matvec" and node.args[0] in matrices for node in postorder([value])):
                whole[id(read)] = value
    if not whole:
        return written
    return simplify(graph, rewrite(graph, written, lambda node, args: whole.get(id(node))))


def _statement(statement: Statement, values: list[Expr]) -> Statement:
    named = zip((part for part, _ in statement.values), values, strict=True)
    return replace(statement, values=tuple(named))
