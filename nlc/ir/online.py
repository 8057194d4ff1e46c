"""Memories that learn from the task while a sequence is read: what executors have to know of them.

In: a system. Out: their levels, their gradients' names, whose resets wait for them. Data only:
nothing here runs a window or differentiates.

How such a system runs: a window of N tokens is read with the memory as it is. Its loss is the
model's objective, summed over these tokens, the target of the last one being the token that comes
next; until then the update is pending. Where several windows end at one token, the faster memories
move first, all of them before anything is set back.

The state of the model holds beside its instances, for each such level, `LEVEL.start`: their state
at the start of the level's window; and `tokens.recent`: the tokens since the slowest one's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nlc.ir.expr import Expr, postorder
from nlc.ir.system import Block, Call, Level, Memory, Model, Repeat, Step, System

# the entry of a model's state that holds the tokens of its unfinished windows
RECENT = "tokens.recent"


def task_gradient(memory: str) -> str:
    """Name the leaf that stands for the gradient of the task's loss in a memory's update."""
    return f"grad {memory}"


def asks(memory: Memory) -> list[tuple[int, dict[str, Expr]]]:
    """List where an update asks for the task's gradient again: index, and values by part.

    They are asked for one after another; all memories of a level that ask for the n-th time are
    there together.
    """
    found: dict[int, dict[str, Expr]] = {}
    for node in postorder([assignment.value for assignment in memory.update]):
        if node.op == "ask":
            parts = (part.name for part in memory.map.parts)
            found[node.attr("index")] = dict(zip(parts, node.args, strict=True))
    return sorted(found.items())


def start_entry(level: str) -> str:
    """Name the entry of a model's state that holds what it was when a level's window began."""
    return f"{level}.start"


def online_levels(system: System, module: Block | Model) -> tuple[Level, ...]:
    """List the levels at which a module's instances learn from the task, fastest first."""
    found: set[str] = set()
    waiting: list[tuple[Step, ...]] = [module.steps]
    if isinstance(module, Block):
        found |= {memory.level for memory in module.memories if memory.is_task}
    while waiting:
        for step in waiting.pop():
            if isinstance(step, Repeat):
                waiting.append(step.steps)
            elif hasattr(step, "block"):
                block = system.block(step.block)
                found |= {memory.level for memory in block.memories if memory.is_task}
                waiting.append(block.steps)
    return tuple(level for level in system.levels if level.name in found)


def source_of(memory: Memory) -> str:
    """Return the name that a memory's initial state is copied from, or ""."""
    if memory.map.kind == "kernel":
        return ""
    initials = [part.initial for part in memory.variable("").parts]
    return next((i.source for i in initials if i.kind == "source"), "")


def waiting(memories: Iterable[Memory]) -> tuple[Memory, ...]:
    """List what goes back to its initial state only when the task's updates are done.

    That is what learns from the task, and what begins as a copy of it; a copy after its source.
    """
    left = list(memories)
    names = {memory.name for memory in left}
    found: dict[str, Memory] = {}
    while left:
        ready = [m for m in left if source_of(m) not in names or source_of(m) in found]
        # memories that begin as one another are refused elsewhere
        first = ready[0] if ready else left[0]
        left.remove(first)
        found[first.name] = first
    late: dict[str, Memory] = {}
    for memory in found.values():
        if memory.is_task or source_of(memory) in late:
            late[memory.name] = memory
    return tuple(late.values())


def copies(memories: Iterable[Memory], memory: Memory) -> bool:
    """Say whether a memory begins as a copy of another one."""
    return source_of(memory) in {other.name for other in memories}


def goes_back(block: Block, memory: Memory, done: int) -> bool:
    """Say whether a memory that waits begins anew after so many tokens.

    A copy is made before the first one too, so that the task's gradient passes through it.
    """
    if done == 0:
        return copies(block.memories, memory)
    return memory.restart is not None and done % memory.restart.count == 0


def instances(
    system: System, steps: Iterable[Step], prefix: str = ""
) -> Iterator[tuple[str, Block]]:
    """List all instances of blocks, also those inside others, by their places in the state."""
    for step in steps:
        match step:
            case Repeat(name=name, count=count, steps=inner):
                for turn in range(count):
                    yield from instances(system, inner, f"{prefix}{name}.{turn}.")
            case Call(instance=name, block=block, shared=shared):
                path = name if shared else prefix + name
                yield path, system.block(block)
                yield from instances(system, system.block(block).steps, f"{path}.")
            case _:
                pass
