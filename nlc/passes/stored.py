"""What softmax memories store of other memories' states, as streams of their own.

In: a block. Out: the same block, whose keys and values with reads of other memories are equations.
Those move in loops, over tokens, chunks or windows, and a stream is made inside of them, at every
token; attention over a whole sequence comes after.
"""

from __future__ import annotations

from dataclasses import replace

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.schedule import made_by
from nlc.ir.system import Block, Equation, Memory, Step, Update
from nlc.passes.hoist import fresh


def stored(graph: Graph, block: Block) -> Block:
    """Name what softmax memories store of others; doing it again changes nothing."""
    taken = {entry.name for entry in block.inputs} | {weight.name for weight in block.weights}
    taken |= {memory.name for memory in block.memories}
    taken |= {name for step in block.steps for name in made_by(step)}
    steps: list[Step] = []
    memories = {memory.name: memory for memory in block.memories}
    for step in block.steps:
        if isinstance(step, Update) and memories[step.memory].map.kind == "kernel":
            memory, made = _named(graph, memories[step.memory], taken)
            memories[step.memory] = memory
            steps += made
        steps.append(step)
    return replace(block, steps=tuple(steps), memories=tuple(memories.values()))


def _named(graph: Graph, memory: Memory, taken: set[str]) -> tuple[Memory, list[Step]]:
    """Put streams in the place of keys and values; returns the equations that make them too."""
    made: list[Step] = []

    def stream(value: Expr, word: str) -> Expr:
        if not any(_other(memory, node) for node in postorder([value])):
            return value
        name = fresh(f"{memory.name}_{word}", taken)
        made.append(Equation(name, value, "", value.span))
        return graph.make("stream", name=name, shape=value.shape, span=value.span)

    pairs = tuple((stream(key, "key"), stream(value, "value")) for key, value in memory.pairs)
    return replace(memory, pairs=pairs), made


def _other(memory: Memory, node: Expr) -> bool:
    """Say whether a node is the state of another memory, or a read of one."""
    return node.op in ("state", "attend") and node.attr("memory") != memory.name
