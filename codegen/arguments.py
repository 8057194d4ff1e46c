"""What an update or an initial state needs from its block, as arguments of the memory's methods.

In: a memory and expressions of it. Out: the expressions that the block evaluates, with the names
under which the memory's methods take them. A memory's own states are no arguments here.
"""

from __future__ import annotations

from collections.abc import Iterable

from nlc.codegen.kept import flag_name
from nlc.codegen.names import Names, identifier

from nlc.ir.expr import Expr, postorder
from nlc.ir.slots import routed
from nlc.ir.system import Memory
from nlc.ir.windows import known, periods

# what the methods of a memory take besides states and arguments
METHODS = frozenset({"batch", "learned", "like", "pairs", "path", "position", "q"})
OUTSIDE = ("param", "state", "attend", "shift", "conv", "position", "due", "route")


def own(memory: Memory, node: Expr, starting: bool) -> bool:
    """Say whether a leaf is a running state of the memory, or that of its chunk's start."""
    if node.op in ("variable", "ask") or known(memory, node):
        return True
    if node.op != "state" or node.attr("memory") != memory.name:
        return False
    return starting or node.attr("when") != "initial"


def arguments(memory: Memory, roots: Iterable[Expr], starting: bool = False) -> dict[Expr, str]:
    """Name what the block has to evaluate: streams, and whatever needs its weights or its past.

    The order is that of first use, streams first. `starting` says that the expressions are of the
    initial state, in which an extra state may read the memory's own.
    """
    roots = list(roots)
    mine: set[Expr] = set()
    for node in postorder(roots):
        total = node.op == "window" and node.attr("how") != "last"
        if own(memory, node, starting) or total or any(arg in mine for arg in node.args):
            mine.add(node)
    found: list[Expr] = []
    seen: set[Expr] = set()
    stack = list(reversed(roots))
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "stream" or (node not in mine and _outside(node)):
            found.append(node)
        elif not own(memory, node, starting):
            stack.extend(reversed(node.args))
    if memory.map.kind == "kernel":
        # what is made of nothing but numbers has no rows or tokens of its own
        found += [root for root in dict.fromkeys(roots) if not set(postorder([root])) & set(found)]
    found.sort(key=lambda node: node.op != "stream")
    states = {*_state_names(memory), "tokens", *map(flag_name, periods(memory))}
    names = Names(states | METHODS if starting else states)
    return {node: names.fresh(argument_name(node)) for node in found}


def _outside(node: Expr) -> bool:
    if routed(node) is not None:
        return True
    if node.op == "apply":
        return any(part.op in ("param", "state") for part in node.args[1:])
    return node.op in OUTSIDE


def argument_name(node: Expr) -> str:
    """Give the word for what is evaluated outside of a memory."""
    match node.op:
        case "stream" | "param":
            return str(node.attr("name"))
        case "shift" | "conv":
            return str(node.attr("slot"))
        case "state":
            return f"{node.attr('memory')}_{node.attr('when')}"
        case "attend":
            return f"{node.attr('memory')}_read"
        case "route":
            return "weights"
        case "sum":
            split = routed(node)
            return "total" if split is None else argument_name(split[1])
        case "position":
            # `position` is the first token's, a number
            return "place"
        case "apply":
            part = node.args[1]
            if part.op == "param":
                return str(part.attr("name")).split(".")[0]
            return f"{part.attr('memory')}_read"
        case _:
            return node.op


def _state_names(memory: Memory) -> list[str]:
    kept = [identifier(f"{memory.name}_{word}") for word in ("sum", "recent")]
    return [*(state_variable(memory, variable.name) for variable in memory.variables), *kept]


def state_name(memory: Memory, var: str) -> str:
    """How a state is called in emitted code: `M`, `M_S`."""
    return f"{memory.name}_{var}" if var else memory.name


def state_variable(memory: Memory, var: str = "") -> str:
    """The variable that holds a state in the methods of a memory."""
    name = identifier(state_name(memory, var))
    return f"{name}_" if name in METHODS else name
