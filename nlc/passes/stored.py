"""What memories keep of other memories' states at each token, as streams of their own.

In: a block. Out: the same block, where reads of other memories are equations that stand in the keys
and values of a softmax memory, or in what a memory that waits for the task keeps of its tokens.
Those move in loops, over tokens, chunks or windows, and a stream is made inside of them, at every
token; attention over a whole sequence, and what waits, come after.
"""

from __future__ import annotations

from dataclasses import replace

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.schedule import made_by
from nlc.ir.system import Block, Equation, Memory, Step, Update
from nlc.ir.windows import read_of, tokens_of
from nlc.passes.hoist import fresh


def stored(graph: Graph, block: Block) -> Block:
    """Name what memories keep of others; doing it again changes nothing."""
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
    for memory in block.memories:
        if memory.is_task:
            memories[memory.name], made = _kept(graph, memory, taken)
            steps += made
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


def _kept(graph: Graph, memory: Memory, taken: set[str]) -> tuple[Memory, list[Step]]:
    """Put streams in the place of reads in what is kept of a window's tokens."""
    made: list[Step] = []
    streams: dict[int, Expr] = {}
    waiting = [node.args[0] for node in tokens_of(memory)]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if any(_other(memory, part) for part in read_of(node)):
            name = fresh(f"{memory.name}_key", taken)
            made.append(Equation(name, node, "", node.span))
            streams[id(node)] = graph.make("stream", name=name, shape=node.shape, span=node.span)
        else:
            waiting += node.args
    if not made:
        return memory, made
    roots = [a.value for a in memory.update]
    roots += [value for statement in memory.statements for _, value in statement.values]
    values = iter(rewrite(graph, roots, lambda node, args: streams.get(id(node))))
    update = tuple(replace(a, value=next(values)) for a in memory.update)
    statements = tuple(
        replace(s, values=tuple((part, next(values)) for part, _ in s.values))
        for s in memory.statements
    )
    return replace(memory, update=update, statements=statements), made


def _other(memory: Memory, node: Expr) -> bool:
    """Say whether a node is the state of another memory, or a read of one."""
    return node.op in ("state", "attend") and node.attr("memory") != memory.name
