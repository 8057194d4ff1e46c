"""Count what a system costs: parameters, state, arithmetic and bytes, of every component.

In: a system and its plan. Out: a `Cost`, for one sequence of a given length, in float32, or None
for a system that cannot run yet. What is counted is what the emitted code does, read from the
equations and the schedules; nothing is run. Optimizers and the loss are not counted.

Where something learns from the task while the sequence is read, `learning.py` adds what that takes.
The state is that of the model now and where each level's window began.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from nlc.ir.cost import WIDTH, Cost, Entry
from nlc.ir.online import online_levels
from nlc.ir.schedule import Plan
from nlc.ir.shape import count
from nlc.ir.system import Block, Model, System
from nlc.passes.carried import state_entries
from nlc.passes.explicit import explicit
from nlc.passes.learning import pieces, with_learning
from nlc.passes.tally import Tally
from nlc.passes.walk import EQUATIONS, Walk

# the length of the sequence where none is asked for
TOKENS = 2048


def cost(system: System, plan: Plan, tokens: int = TOKENS) -> Cost | None:
    """Count what each component costs over `tokens` tokens, and for one token after them."""
    if system.unsupported:
        return None
    system = explicit(system)
    modules: dict[str, Block | Model] = {block.name: block for block in system.blocks}
    if system.model is not None:
        modules[""] = system.model
    walks = {
        name: (_walk(module, plan, tokens, pieces(system, name)), _walk(module, plan, tokens))
        for name, module in modules.items()
    }
    calls = _calls(system, walks)
    starts = _starts(system, tokens)
    entries = [
        entry
        for name, module in modules.items()
        if calls[name] != (0, 0)
        for entry in _entries(system, name, module, walks[name], calls[name], (tokens, *starts))
    ]
    if starts:
        entries = with_learning(system, plan, entries, tokens)
    return Cost(tokens, tuple(level.name for level in system.levels), tuple(entries))


def _periods(system: System) -> list[int]:
    """List how many tokens the windows have of the levels that learn from the task."""
    if system.model is None:
        return []
    return [level.period.count for level in online_levels(system, system.model)]


def _starts(system: System, tokens: int) -> list[int]:
    """Say after how many tokens the windows began that the last one lies in, for each level."""
    return [max(tokens - 1, 0) // period * period for period in _periods(system)]


def _walk(module: Block | Model, plan: Plan, tokens: int, pieces: int | None = None) -> Walk:
    """Walk over a sequence that is read in pieces, at once for 0; or for a token after it."""
    own = plan.block(module.name) if isinstance(module, Block) else None
    walk = Walk(module, own, tokens, pieces is None)
    if pieces and isinstance(module, Block):
        walk.gathers |= {m.name: pieces for m in module.memories if m.map.kind == "kernel"}
    walk.run()
    return walk


Walks = Mapping[str, tuple[Walk, Walk]]


def _calls(system: System, walks: Walks) -> dict[str, tuple[int, int]]:
    """Count the calls of each block: over whole sequences, and token by token within one."""
    found = dict.fromkeys(walks, (0, 0))
    called = {block for walk, _ in walks.values() for block, _ in walk.calls}
    roots = [""] if system.model is not None else [n for n in walks if n not in called]
    waiting = [(name, 1, False) for name in roots]
    while waiting:
        name, times, looped = waiting.pop()
        whole, single = found[name]
        found[name] = (whole, single + times) if looped else (whole + times, single)
        for (block, inside), number in walks[name][0].calls.items():
            waiting.append((block, times * number, looped or inside))
    return found


def _entries(
    system: System,
    name: str,
    module: Block | Model,
    walks: tuple[Walk, Walk],
    calls: tuple[int, int],
    lengths: tuple[int, ...],
) -> Iterator[Entry]:
    tokens, *_ = lengths
    copies = next((c.copies for c in system.components if c.block == name), 1) if name else 1
    for own, kind, level, held in _owned(module, lengths):
        whole = ".".join(word for word in (name, own) if word)
        sequence, token = (walk.tallies.get(own, Tally()) for walk in walks)
        # a block that is called from within a loop runs token by token there
        looped = tokens * calls[1]
        yield Entry(
            whole,
            name,
            kind,
            level,
            copies,
            _parameters(system, whole) if own else (),
            copies * held,
            sequence.forward.times(calls[0]) + token.forward.times(looped),
            sequence.backward.times(calls[0]) + token.backward.times(looped),
            token.forward.times(sum(calls)),
        )


Owned = tuple[str, Literal["weights", "memory", "equations"], str, int]


def _owned(module: Block | Model, lengths: tuple[int, ...]) -> Iterator[Owned]:
    """List the components of a module: name, kind, level, bytes of state after each length."""
    tied = isinstance(module, Model) and module.tied
    for weight in module.weights:
        if not (tied and weight.name == "unembed"):
            yield weight.name, "weights", weight.level, 0
    if isinstance(module, Block):
        for memory in module.memories:
            now, *starts = lengths
            held = state_entries(module, memory, now, waits=True)
            held = WIDTH * (held + sum(state_entries(module, memory, n) for n in starts))
            yield memory.name, "memory", memory.level, held
    past = sum(history.length * count(history.shape) for history in module.histories)
    past *= len(lengths)
    if isinstance(module, Model) and len(lengths) > 1:
        # the tokens since the slowest window began
        past += lengths[0] - min(lengths)
    yield EQUATIONS, "equations", "", WIDTH * past


def _parameters(system: System, name: str) -> tuple[tuple[str, int], ...]:
    """Count the parameters of a component, by the level that learns them."""
    names = (name, f"{name}.start", f"{name}.pairs")
    return tuple(
        (c.level, c.copies * c.parameters)
        for c in system.components
        if c.parameters
        and (c.name in names or (c.kind == "start" and c.name.startswith(f"{name}.")))
    )
