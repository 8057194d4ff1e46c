"""Weights that begin as others: their shapes, and at which training steps they go back to them.

In: weights, or a memory with `objective task` at a step level, with `init from NAME`. Out: its
`Restart`. A slower level learns so where a faster one begins (arXiv:2512.24695, eq. 72).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.shape import Shape
from nlc.ir.system import Map, Period, Restart
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def check_copied(
    block: BlockResolver, map: Map, lead: Shape, written: tree.Expr | tree.From | None, span: Span
) -> None:
    """Refuse `init from` what has another shape, or is no weights."""
    if not isinstance(written, tree.From):
        return
    name = written.name
    if name not in block.weights:
        block.context.fail(
            "NL0510", f"weights cannot begin as `{name}`", written.span, "this is a memory",
            "weights are initialised from other weights, which come before them",
            (block.owners[name][1], f"`{name}`"),
        )  # fmt: skip
    source = block.weights[name]
    mine, theirs = (
        [(p.name, [a.size for a in p.shape]) for p in m.parts] for m in (map, source.map)
    )
    axes = {axis.name for axis in lead}
    if mine != theirs or any(axis.name not in axes for axis in source.lead):
        block.context.fail(
            "NL0510", f"weights cannot begin as `{name}`", written.span,
            "the maps have different shapes", "both need the same map and leading axes",
            (span, "the weights"), (source.span, f"`{name}`"),
        )  # fmt: skip


def restart_of(block: BlockResolver, written: tree.Memory, level: str) -> Restart:
    """Resolve `init from NAME` with `reset every N steps`."""
    assert isinstance(written.init, tree.From) and written.reset is not None
    context, source = block.context, block.weights[written.init.name]
    places, own = dict(written.clauses), context.levels[level]
    slower = context.levels[source.level]
    unit, count = context.period(written.reset)
    reset = written.reset.span
    if written.through != "stop":
        context.fail(
            "NL0514", "the gradient of training steps does not pass through them",
            places.get("through", reset),
            f"`through {written.through or 'full'}` would go back over all steps since the reset",
            "write `through stop`: the start gets the sum of the gradients since the reset",
            (written.span, "the memory"),
        )  # fmt: skip
    if unit != "steps":
        context.fail(
            "NL0205", "at a level of steps a reset counts steps", reset, f"{unit}",
            "write `reset every 16 steps`", (own.span, "the level"),
        )  # fmt: skip
    if count % own.period.count:
        context.fail(
            "NL0205", "the reset does not fall on an end", reset,
            f"{count} is not a multiple of {own.period.count}",
            "a reset must be a multiple of the level's period", (own.span, "the level"),
        )  # fmt: skip
    if not _stays(slower.period, own.period, count):
        context.fail(
            "NL0205", f"`{source.name}` moves between two resets", reset,
            f"here every {count} steps, and `{source.level}` {slower.period}",
            "what weights begin as is at a slower level, whose period is a multiple of the reset",
            (slower.span, f"the level of `{source.name}`"), (own.span, "the level"),
        )  # fmt: skip
    return Restart(source.name, count)


def _stays(slower: Period, own: Period, count: int) -> bool:
    """Say whether a start keeps its value from one reset to the next."""
    if slower.unit == "never":
        return True
    return slower.unit == "steps" and slower.count > own.count and slower.count % count == 0
