"""Reads that go through the same products as what tokens add to the sums of a window. Data only.

In: a block whose updates are written out, the stages of its plan, a memory. Out: the one read of it
in its loop over windows, if it is asked with what the update applies the memory to as well. Emitter
and cost both ask here, so that what is counted is what runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nlc.ir.expr import Expr, postorder
from nlc.ir.schedule import Parallel, Stage, Windows, made_by, memories_of, steps_of
from nlc.ir.shape import sizes
from nlc.ir.slots import choice
from nlc.ir.system import Equation, Memory
from nlc.ir.windows import tokens_of


@dataclass(frozen=True)
class SharedRead:
    """The stream `name` holds `read`; its update has `query` for what the read is asked with.

    `others` are the streams, and weights applied to such, that tokens need besides.
    """

    name: str
    read: Expr
    query: Expr
    others: tuple[Expr, ...]


def shared_read(stages: Iterable[Stage], memory: Memory) -> SharedRead | None:
    """Find the read that can be made where tokens are taken into the window."""
    stages = list(stages)
    if memory.window == 1 or memory.is_task or choice(memory) is not None:
        return None
    loop = next((s for s in stages if isinstance(s, Windows) and memory.name in s.memories), None)
    if loop is None or set(memories_of(loop)) != {memory.name} or loop.reads:
        return None
    steps = [step for step in steps_of(loop) if isinstance(step, Equation)]
    reads = [step for step in steps if _of(step.value, memory)]
    if len(reads) != 1 or not _is_read(reads[0].value, memory):
        return None
    roots = [node.args[0] for node in tokens_of(memory)]
    query = _query(stages, reads[0].value.args[0], roots)
    made = {name for step in steps_of(loop) for name in made_by(step)}
    others = None if query is None else _others(roots, query, memory, made)
    if query is None or others is None or not _applied(roots, query, memory):
        return None
    return SharedRead(reads[0].name, reads[0].value, query, others)


def shared_products(shared: SharedRead, memory: Memory) -> set[Expr]:
    """List what tokens need that the read has made: products with the memory's own parts."""
    found: set[Expr] = set()
    for node in postorder([node.args[0] for node in tokens_of(memory)]):
        if node.op == "matvec" and node.args[0].op == "state":
            below = list(postorder([node], {id(shared.query)}))
            if all(n.args or n.op == "const" or _own(n, memory) for n in below):
                found |= set(below)
    return found


def _of(value: Expr, memory: Memory) -> bool:
    """Say whether a value reads the memory."""
    return any(
        node.op == "state" and node.attr("memory") == memory.name for node in postorder([value])
    )


def _is_read(value: Expr, memory: Memory) -> bool:
    """Say whether a value is M(q), one vector for each copy and token."""
    if value.op != "apply" or not all(_own(part, memory) for part in value.args[1:]):
        return False
    whole = sizes((*memory.lead, *memory.map.inputs))
    return sizes(value.args[0].shape) == whole and not _of(value.args[0], memory)


def _own(node: Expr, memory: Memory) -> bool:
    """Say whether a leaf is a part of the memory as it is inside the window."""
    own = node.op == "state" and node.attr("memory") == memory.name
    return own and node.attr("when") == "prev" and not node.attr("var")


def _query(stages: list[Stage], asked: Expr, roots: list[Expr]) -> Expr | None:
    """Return what a read is asked with as the update has it, made before the loop or given."""
    nodes = set(postorder(roots))
    if asked in nodes or asked.op != "stream":
        return asked if asked in nodes else None
    for stage in stages:
        for step in steps_of(stage) if isinstance(stage, Parallel) else ():
            if isinstance(step, Equation) and step.name == asked.attr("name"):
                return step.value if step.value in nodes else None
    return None


def _others(
    roots: list[Expr], query: Expr, memory: Memory, made: set[str]
) -> tuple[Expr, ...] | None:
    """List what tokens need besides; None where they need what is not there yet."""
    found: dict[Expr, None] = {}
    waiting, seen = list(roots), set[Expr]()
    while waiting:
        node = waiting.pop()
        if node in seen or node is query:
            continue
        seen.add(node)
        if _outside(node, made):
            found[node] = None
            continue
        if node.op not in ("const", "state") and (not node.args or node.op in OUTSIDE):
            return None
        if node.op == "state" and not _own(node, memory):
            return None
        waiting += node.args
    return tuple(found)


def _outside(node: Expr, made: set[str]) -> bool:
    """Say whether a value is a stream that is there before the loop, or weights applied to such."""
    if node.op == "apply":
        weights = all(part.op == "param" for part in node.args[1:])
        leaves = [leaf for leaf in postorder(node.args[:1]) if not leaf.args]
        return weights and all(_outside(leaf, made) or leaf.op == "const" for leaf in leaves)
    return node.op == "stream" and node.attr("name") not in made


# what the block evaluates for the memory
OUTSIDE = ("apply", "attend", "shift", "conv", "route", "where", "window")


def _applied(roots: list[Expr], query: Expr, memory: Memory) -> bool:
    """Say whether tokens multiply the memory with the query."""
    return any(
        node.op == "matvec" and node.args[1] is query and _own(node.args[0], memory)
        for node in postorder(roots)
    )
