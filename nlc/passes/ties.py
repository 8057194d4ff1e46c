"""What has to run window by window together, and why a memory runs that way.

In: a block. Out: pairs of steps that belong into one loop over windows, although nothing in time
makes them: what takes the state of a memory with windows as a whole, or reads it in an update, is
where that state is.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlc.ir.expr import Expr, postorder
from nlc.ir.slots import routed
from nlc.ir.system import Block, Memory, Update
from nlc.passes.hoist import Node, asked_of, exprs_of, moves, node_of, read_by


def ties(block: Block) -> Iterator[tuple[Node, Node]]:
    """Find the pairs of steps of a block."""
    windows = {m.name: m.window for m in block.memories}
    for step in block.steps:
        if not isinstance(step, Update):
            for name in _taken_whole(block, exprs_of(block, step)):
                if windows[name] > 1:
                    yield node_of(step), ("memory", name)
            continue
        for name in read_by(block, block.memory(step.memory)):
            if name in windows and name != step.memory and max(
                windows[name], windows[step.memory]
            ) > 1:  # fmt: skip
                yield node_of(step), ("memory", name)


def _taken_whole(block: Block, roots: tuple[Expr, ...]) -> set[str]:
    """The memories whose state stands in equations by itself, not asked with something."""
    moving = moves(block)
    asked = {
        id(arg)
        for node in postorder(roots)
        if asked_of(node, moving) is not None
        for arg in _states(node)
    }
    return {
        str(node.attr("memory"))
        for node in postorder(roots)
        if node.op == "state" and moving(node) and id(node) not in asked
    }


def _states(read: Expr) -> tuple[Expr, ...]:
    split = routed(read)
    read = read if split is None else split[1]
    return read.args[1:] if read.op == "apply" else read.args[:1]


def window_reason(memory: Memory) -> str:
    """Say how a memory runs that moves with windows."""
    roots = [assignment.value for assignment in memory.update]
    again = any(node.op == "window" and node.attr("again") for node in postorder(roots))
    twice = ", and a second pass over it" if again else ""
    return f"its state stays for {memory.window} tokens: one pass over them{twice}, then its update"
