"""What a chunk would change: tried, not guessed.

In: how a spec is read, and the system it means. Out: for each memory that runs token by token and
would not with a chunk on its level, the words that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nlc.compiler import Report, check
from nlc.diagnostics import SpecError
from nlc.ir.system import System

# the chunk that is tried
CHUNK = 16


def chunks_that_help(
    system: System, report: Report, load: Callable[[Mapping[str, str]], System]
) -> dict[str, str]:
    """Try a chunk on each level of memories that run token by token; `load` takes settings."""
    slow = {
        (block.name, memory.name): memory.level
        for block in system.blocks
        for memory in block.memories
        if memory.chunk == 1
        and report.plan.block(block.name).schedule(memory.name).kind == "sequential"
    }
    found: dict[str, str] = {}
    for level in dict.fromkeys(slow.values()):
        if system.level(level).period.unit != "tokens":
            continue
        try:
            tried = check(load({f"levels.{level}.chunk": str(CHUNK)}))
        except SpecError:
            # a chunk that does not fit a reset, or what contains it
            continue
        for (block, name), at in slow.items():
            kind = tried.plan.block(block).schedule(name).kind
            if at == level and kind != "sequential":
                found[f"{block}.{name}"] = (
                    f"`chunk {CHUNK}` on the level `{level}` runs it as {kind}: gradients and "
                    f"reads in its update are then taken before each chunk of {CHUNK} tokens"
                )
    return found
