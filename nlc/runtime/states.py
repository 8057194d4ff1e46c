"""The state before the first token, and what a memory goes back to at a reset.

In: a run and a module. Out: states, as callers see them or by memory. Where one memory begins as
a copy of another, that other comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nlc.ir.online import source_of
from nlc.ir.shape import Shape, sizes
from nlc.ir.system import Block, Initial, Memory, Model
from nlc.runtime.evaluate import Parts, States, TokenFrame, evaluate
from nlc.runtime.frame import Run, make_frame
from nlc.runtime.layout import State, facts, instances, pack, write_states, write_window
from nlc.runtime.maps import front
from nlc.runtime.windows import empty


def first_state(run: Run, module: Block | Model) -> State:
    """Return the state before the first token."""
    state: State = {}
    if isinstance(module, Block):
        states = initial_states(run, module, module.memories, {})
        for memory in module.memories:
            state |= write_states(memory, states[memory.name])
            state |= write_window(memory, empty(memory, run.rows))
            if memory.name in facts(module).starts:
                state[f"{memory.name}.start"] = pack(states[memory.name][""])
            if memory.name in facts(module).copied:
                state[f"{memory.name}.initial"] = pack(states[memory.name][""])
    for history in module.histories:
        shape = (run.rows, history.length, *sizes(history.shape))
        state[history.slot] = torch.zeros(shape, dtype=torch.float64)
    if facts(module).counts:
        state["position"] = 0
    for path, block in instances(run.system, module.steps):
        put(state, path, first_state(run.within(f"{path}."), block))
    return state


def put(state: State, path: str, value: State) -> None:
    """Store the state of an instance under its name, one dict for each part of it."""
    *outer, last = path.split(".")
    for name in outer:
        # a copy: what was given to the caller before must not change
        state[name] = dict(state.get(name, {}))
        state = state[name]
    state[last] = value


def get(state: Mapping[str, State], path: str) -> State:
    """Return the state of an instance."""
    found: State = dict(state)
    for name in path.split("."):
        found = found[name]
    return found


def initial_states(
    run: Run, block: Block, memories: tuple[Memory, ...], present: Mapping[str, States]
) -> dict[str, States]:
    """Return the initial states of some memories; `present` are those of the other memories.

    A memory that begins as a copy of another takes that one's state after its own reset.
    """
    result: dict[str, States] = {}
    waiting = list(memories)
    while waiting:
        memory = waiting.pop(0)
        if source_of(memory) in {other.name for other in waiting}:
            waiting.append(memory)
        else:
            result[memory.name] = initial_state(run, block, memory, {**present, **result})
    return result


def initial_state(run: Run, block: Block, memory: Memory, others: Mapping[str, States]) -> States:
    """Return the initial state of one memory."""
    if memory.map.kind == "kernel":
        lead = sizes(memory.lead)
        pairs = {"key": memory.map.inputs, "value": memory.map.outputs}
        return {
            "": {
                name: torch.zeros(run.rows, *lead, 0, *sizes(axes), dtype=torch.float64)
                for name, axes in pairs.items()
            }
        }
    states: States = {}
    learned = {variable.name: own for own, variable in memory.learned_states()}
    for variable in memory.variables:
        parts: Parts = {}
        for part in variable.parts:
            shape = (run.rows, *sizes(memory.lead), *sizes(part.shape))
            if variable.name in learned:
                words = (memory.name, learned[variable.name], part.name)
                value = run.parameters[".".join(word for word in words if word)][None]
            else:
                frame = make_frame(run, 0, {(memory.name, "initial"): states})
                value = _begin(part.initial, part.name, block, memory.lead, frame, others)
            parts[part.name] = front(value, len(shape) - 1).expand(shape)
        states[variable.name] = parts
    return states


def _begin(
    initial: Initial,
    part: str,
    block: Block,
    lead: Shape,
    frame: TokenFrame,
    others: Mapping[str, States],
) -> Tensor:
    match initial.kind:
        case "expr":
            assert initial.expr is not None
            return evaluate(initial.expr, frame)
        case "source" if initial.source in others:
            source = block.memory(initial.source)
            return _spread(others[source.name][""][part], source.lead, lead)
        case "source":
            weight = block.weight(initial.source)
            value = frame.parameter(f"{weight.name}.{part}" if part else weight.name)
            return _spread(value[None], weight.lead, lead)
        case "constant":
            return torch.tensor([initial.value], dtype=torch.float64)
        case "uniform" | "normal":
            raise ValueError("a state that is drawn at random is a parameter")


def _spread(value: Tensor, have: Shape, want: Shape) -> Tensor:
    """Give a source's value the leading axes it lacks."""
    names = [axis.name for axis in have]
    for place, axis in enumerate(want):
        if axis.name not in names:
            value = value.unsqueeze(1 + place)
    return value
