"""What stands at each token of a window in an update, and what at its end. Data only.

In: a memory. Out: its `window` nodes that are known token by token, and the periods in its update.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlc.ir.expr import Expr, postorder
from nlc.ir.system import Memory


def known(memory: Memory, node: Expr) -> bool:
    """Say whether a value is kept token by token until the window ends."""
    return (
        node.op == "window"
        and not node.attr("again")
        and node.attr("how") != "last"
        and node.attr("period") == ("tokens", memory.window)
    )


def tokens_of(memory: Memory) -> list[Expr]:
    """List what each token of a window adds by itself: the `window` nodes that are known."""
    return [node for node in postorder(_update(memory)) if known(memory, node)]


def read_of(node: Expr) -> tuple[Expr, ...]:
    """List the parts of a map that a node reads, or the node itself."""
    match node.op:
        case "apply" | "conv":
            return node.args[1:]
        case "lookup":
            return node.args[:1]
        case _:
            return (node,)


def summed(node: Expr) -> Iterator[Expr]:
    """Yield the terms of a sum over tokens that are summed one by one."""
    match node.op:
        case "let":
            yield from summed(node.args[0])
        case "add" | "sub" | "neg":
            for arg in node.args:
                yield from summed(arg)
        case "mul" if node.args[0].op == "const":
            yield from summed(node.args[1])
        case _:
            yield node


def periods(memory: Memory) -> list[int]:
    """After how many tokens something in an update ends: blocks inside it, sums over updates."""
    found = {int(n.attr("period")[1]) for n in postorder(_update(memory)) if n.op == "due"}
    found |= {kept.period for kept in memory.sums if kept.period != memory.window}
    return sorted(found)


def _update(memory: Memory) -> list[Expr]:
    return [assignment.value for assignment in memory.update]
