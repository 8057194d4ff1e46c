"""What a block carries from token to token, in numbers.

In: a block and how many tokens it has seen. Out: the size of each memory's state: extra states, the
state of the chunk's start, what a copy began with and what is kept of a window among it; for a
softmax memory its pairs.
"""

from __future__ import annotations

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import count
from nlc.ir.system import Block, Call, Equation, Memory


def state_entries(block: Block, memory: Memory, tokens: int, waits: bool = False) -> int:
    """Count the numbers a memory carries after some tokens, whose last update may wait for more."""
    lanes = count(memory.lead)
    if memory.map.kind == "kernel":
        pair = count(memory.map.inputs) + count(memory.map.outputs)
        return lanes * pairs_held(memory, tokens) * pair
    sizes = {v.name: sum(count(p.shape) for p in v.parts) for v in memory.variables}
    read = {
        node.attr("when")
        for node in postorder(_expressions(block))
        if node.op == "state" and node.attr("memory") == memory.name
    }
    start = memory.chunk > 1 and "start" in read
    copied = "initial" in read and source_of(memory) in {m.name for m in block.memories}
    kept = sum(count(entry.shape) for entry in memory.sums)
    # of an unfinished window, the values of its tokens
    unfinished = tokens % memory.window
    if waits and memory.is_task and tokens:
        unfinished = (tokens - 1) % memory.window + 1
    for entry in memory.recent:
        kept += min(unfinished, 1 if entry.end else unfinished) * count(entry.shape)
    return lanes * (sum(sizes.values()) + sizes[""] * (start + copied)) + kept


def pairs_held(memory: Memory, tokens: int) -> int:
    """Count the pairs that a softmax memory holds after some tokens, besides the learned ones."""
    window = memory.map.option("window")
    if memory.reset is not None and memory.reset.unit == "tokens":
        tokens %= memory.reset.count
    seen = tokens if window is None else min(tokens, int(str(window)))
    return seen * len(memory.pairs)


def source_of(memory: Memory) -> str:
    """Return the name that a memory's initial state is copied from, or ""."""
    initials = [part.initial for variable in memory.variables for part in variable.parts]
    return next((i.source for i in initials if i.kind == "source"), "")


def _expressions(block: Block) -> list[Expr]:
    found = [e.default for e in block.inputs if e.default is not None]
    for step in block.steps:
        if isinstance(step, Equation):
            found.append(step.value)
        elif isinstance(step, Call):
            found += [value for _, value in step.inputs]
    for memory in block.memories:
        found += [a.value for a in memory.update] + [e for pair in memory.pairs for e in pair]
    return found
