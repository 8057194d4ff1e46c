"""What learns from the task while a sequence is read: what its update cannot hold yet, its names.

In: a memory with `objective task` at a token level, resolved. Out: what cannot run, with its place;
faults where a name is that of a method which moves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nlc.semantics.records import Body
from nlc.semantics.windows import window_of
from nlc.source import Span

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def cannot_adapt(block: BlockResolver, body: Body) -> Iterator[tuple[str, Span, str]]:
    """Find what of a memory needs more than the gradient of a window's loss, with a hint."""
    place = body.span or body.written.span
    chunk = block.context.levels[body.level].chunk
    if chunk > 1:
        yield (
            "a chunk at a level where something learns from the task", place,
            f"`every {chunk} tokens` updates it once per window, `every 1 token` "
            "without a chunk after each token",
        )  # fmt: skip
    source = block.bodies.get(_source(body))
    clocks = block.context
    if source is not None and source.is_task and (
        window_of(clocks, source.level) < window_of(clocks, body.level)
    ):  # fmt: skip
        yield (
            f"`{body.name}`, which copies what learns faster, `{source.name}`", place,
            "what learns slower, weights and memories with an objective of their own can be copied",
        )  # fmt: skip
    if body.token_grad is not None:
        yield (
            "the gradient of the task's loss at one token of a window", body.token_grad,
            "`grad` is that of the whole window: take it out of the reduction, or let windows have "
            "one token",
        )  # fmt: skip
    if body.faster is not None:
        name = body.faster.name
        yield (
            f"the update of `{body.name}` reads what learns faster, `{name}`", place,
            f"`last({name})` is what it was at the last token, before its own update",
        )  # fmt: skip


def _source(body: Body) -> str:
    parts = body.variables[0].parts if body.variables else ()
    return next((p.initial.source for p in parts if p.initial.source), "")


def check_names(block: BlockResolver) -> None:
    """Refuse names that the methods of an emitted block have."""
    for body in block.bodies.values():
        asks = (f"ask{turn + 1}" for turn in range(len(body.asks)))
        for word in ("learn", "restart", *asks) if body.is_task else ():
            name = f"{word}_{body.name}"
            if name in block.weights or name in block.bodies:
                block.context.faults.error(
                    "NL0303", f"`{name}` cannot be the name of {block.owners[name][0]}",
                    block.owners[name][1], f"emitted modules move `{body.name}` by this name",
                    "choose another name", (block.owners[body.name][1], f"`{body.name}`"),
                )  # fmt: skip
