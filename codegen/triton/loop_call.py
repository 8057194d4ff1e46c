"""How a block calls the kernel of a loop over tokens, and when it has one.

In: a loop's steps and memories, and the scope around it. Out: a `LoopPlan` with the nodes of what
its function takes, or why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nlc.codegen.lowering import batch_of
from nlc.codegen.names import identifier
from nlc.codegen.program import LoopKernel
from nlc.codegen.triton.loop_back import BackText
from nlc.codegen.triton.loop_graph import LoopGraph, loop_graph
from nlc.codegen.triton.loop_plan import LoopPlan, Slope, Token, own_axes
from nlc.codegen.triton.loop_split import NONE, Grown, Whole, split
from nlc.codegen.triton.loop_text import LoopText
from nlc.codegen.triton.operations import Unprintable
from torch import fx

from nlc.ir.expr import Graph
from nlc.ir.kernel import Calculus

# entries of all states in one program: forward, and with their gradients
LARGEST = 1 << 15
LARGEST_BACK = 1 << 14

if TYPE_CHECKING:
    from nlc.codegen.scope import Scope
    from nlc.codegen.torch_memory import MemoryWriter
    from nlc.codegen.unit import Unit


def find_loop(
    calculus: Calculus,
    graph: Graph,
    unit: Unit,
    writers: Mapping[str, MemoryWriter],
    outer: Scope,
    steps: Sequence[Any],
    memories: Sequence[str],
    wide: Mapping[str, bool],
    carried: tuple[str, ...],
    once: bool = False,
) -> tuple[LoopPlan, list[fx.Node]] | str:
    """Plan the kernels of a loop; `wide` are the streams it makes, `carried` what it carries.

    With `once` it is one token, whose values all come as a row of each sequence.
    """
    if not memories:
        return "nothing in it has a state"
    try:
        mine = [unit.memory(name) for name in memories]
        found = loop_graph(graph, calculus, steps, mine, writers, list(wide), outer.late, once)
        if {c.variable for c in found.carried} != set(carried):
            return "it carries more than states"
        nodes = {leaf.word: outer.low.tensor(leaf.expr) for leaf in found.leaves}
        how = {
            word: (batch_of(node) == 2, batch_of(node) == 1, bool(node.meta["wide"]))
            for word, node in nodes.items()
        }
        name = identifier("_".join([unit.title, *memories]).lower())
        return plan_loop(found, calculus, name, how, wide, once), list(nodes.values())
    except Unprintable as why:
        return str(why)


def one_token(
    calculus: Calculus,
    graph: Graph,
    unit: Unit,
    writers: Mapping[str, MemoryWriter],
    steps: Sequence[Any],
    memories: Sequence[str],
    rows: Sequence[str],
) -> bool:
    """Say whether some steps of one token are a kernel, before their streams are there."""
    try:
        mine = [unit.memory(name) for name in memories]
        found = loop_graph(graph, calculus, steps, mine, writers, rows, (), True)
        how = {leaf.word: (False, True, False) for leaf in found.leaves}
        plan_loop(found, calculus, unit.title, how, dict.fromkeys(rows, True), True)
    except Unprintable:
        return False
    return True


def plan_loop(
    found: LoopGraph,
    calculus: Calculus,
    name: str,
    how: Mapping[str, tuple[bool, bool, bool]],
    wide_rows: Mapping[str, bool],
    once: bool = False,
) -> LoopPlan:
    """Write the kernels of a loop; `how` says whether a leaf has tokens, rows, and is wide."""
    for carried in found.carried:
        if own_axes(carried.shape, found.lead) != carried.shape[len(found.lead) :]:
            raise Unprintable("its copies are mixed")
    try:
        return _planned(Token(*split(found), how, wide_rows, once), calculus, name)
    except (Whole, Grown):
        # the way back needs it whole
        whole = {c.word: NONE for c in found.carried}
        return _planned(Token(found, None, whole, how, wide_rows, once), calculus, name)


def _planned(token: Token, calculus: Calculus, name: str) -> LoopPlan:
    entries = token.entries()
    if entries > LARGEST:
        raise Unprintable(f"its states have more than {LARGEST} entries")
    takes: dict[str, list[str]] = {}
    forward = LoopText(token).write(takes)
    back: tuple[str, tuple[Slope, ...], dict[str, str]] = ("", (), {})
    if entries <= LARGEST_BACK and not token.once:
        # without gradients it is a kernel all the same
        with suppress(Unprintable):
            back = BackText(token).write_back(calculus, takes)
    carried = token.graph.carried
    return LoopPlan(
        name,
        tuple(token.given.values()),
        tuple(token.held),
        tuple(token.rows),
        len(token.graph.lead),
        token.axis,
        forward,
        *back,
        token.channels(),
        token.least,
        (_warps(entries), _warps(2 * entries)),
        takes,
        tuple(c.variable for c in carried),
        {c.word: c.key[3] if c.several else "" for c in carried},
        token.once,
    )


def _warps(entries: int) -> int:
    """How many warps hold so many entries in registers."""
    for warps, most in ((1, 1 << 9), (2, 1 << 11), (4, 1 << 13), (8, 1 << 14)):
        if entries <= most:
            return warps
    return 16


def call_loop(plan: LoopPlan) -> LoopKernel:
    """What a block writes in the place of the loop where kernels run."""
    guard = "takes" if plan.back else "steps"
    variables = tuple(dict.fromkeys(plan.variables))
    name = f"{plan.name}_{'token' if plan.once else 'loop'}"
    return LoopKernel(name, len(plan.given), variables, guard, next(iter(plan.keys.values())))
