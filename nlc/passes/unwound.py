"""One token in the place of a window: what shows the algebra of an update that moves now and then.

In: a memory at a level of N tokens. Out: the same memory whose sums over a window that read its
state are N times one token's. The state stands still within a window, so what is kept of it is the
same, and N writes along different keys reach no further than N along one. Windows over streams
alone stay: they are numbers of the window.
"""

from __future__ import annotations

from dataclasses import replace

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.system import Assignment, Memory, Period
from nlc.passes.explicit import explicit_memory


def unwound(graph: Graph, memory: Memory, period: Period) -> Memory:
    """Return a memory with one token for a window; one of every token, or of steps, as it is."""
    if period.unit != "tokens" or period.count == 1:
        return memory
    memory = explicit_memory(graph, memory)
    times = graph.constant(float(period.count))

    def one_token(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "window" or not any(_is_own(n, memory) for n in postorder([node])):
            return None
        summed = node.attr("how") == "sum"
        return graph.make("mul", times, args[0], span=node.span) if summed else args[0]

    values = iter(rewrite(graph, [a.value for a in memory.update], one_token))
    return replace(
        memory, update=tuple(Assignment(a.var, a.part, next(values)) for a in memory.update)
    )


def _is_own(node: Expr, memory: Memory) -> bool:
    """Say whether a node is this memory's state before the token."""
    own = node.op == "state" and node.attr("memory") == memory.name
    return own and node.attr("when") == "prev"
