"""Which memories are read while they move over a sequence, chunk by chunk.

In: a block with its plan, a memory, and which reads are made of it. Out: the one read whose queries
are known before the memory moves. Reads made on the way let gradients run back through chunks one
by one, with one set of states' gradients at a time, and let go of states that nothing else wants.
"""

from __future__ import annotations

from collections.abc import Iterable

from nlc.codegen.torch_tiles import read_product
from nlc.codegen.unit import expressions, of_memory, streams

from nlc.ir.expr import Expr, postorder
from nlc.ir.schedule import BlockPlan, Parallel, Run
from nlc.ir.system import Block, Memory

MOVING = ("state", "attend", "shift", "conv", "position", "due", "route")


def read_on_the_way(
    block: Block, plan: BlockPlan, memory: Memory, reads: Iterable[tuple[str, str, str, str]]
) -> Expr | None:
    """Give the read M(q) that `forward` makes as the memory moves, if it is the only one."""
    schedule = plan.schedule(memory.name)
    kinds = list(reads)
    known = all(isinstance(stage, Parallel | Run) for stage in plan.stages)
    if not known or not schedule.by_chunks or schedule.entries or len(kinds) != 1:
        return None
    kind, when, var, _ = kinds[0]
    if kind != "apply" or when not in ("post", "prev", "start") or var:
        return None
    roots = [*expressions(block.steps)]
    for other in block.memories:
        roots += of_memory(other) if other.name != memory.name else []
    found = {node for node in postorder(roots) if _reads(node, block, memory.name)}
    if len(found) != 1 or Run(memory.name) not in plan.stages:
        return None
    (read,) = found
    at = plan.stages.index(Run(memory.name))
    later = [s for stage in plan.stages[at:] if isinstance(stage, Parallel) for s in stage.steps]
    made = {name for s in later for name in getattr(s, "results", (getattr(s, "name", ""),))}
    asked = query_of(read)
    moves = any(node.op in MOVING for node in postorder([asked]))
    return None if moves or streams([asked]) & made else read


def _reads(node: Expr, block: Block, name: str) -> bool:
    """Say whether a value is a read of the memory with a query."""
    product = read_product(node, block.memory)
    if product is not None:
        return bool(product.attr("memory") == name)
    return node.op == "apply" and any(
        part.op == "state" and part.attr("memory") == name for part in node.args[1:]
    )


def query_of(read: Expr) -> Expr:
    """What a memory is asked with: `M(q)`, or `M @ q`."""
    return read.args[0] if read.op == "apply" else read.args[1]
