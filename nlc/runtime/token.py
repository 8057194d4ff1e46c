"""One token through a block or a model: its steps in order, then what happens at the token's end.

In: the streams of one token of every row and the module's state. Out: all streams of the token
and the next state. The order within a token is the one the system lists: equations, updates and
calls as they stand, and at the end chunk starts, then resets.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nlc.ir.expr import Expr
from nlc.ir.shape import sizes
from nlc.ir.system import Block, Call, Equation, Memory, Model, Repeat, Step, Update
from nlc.runtime.evaluate import Parts, States, TokenFrame, evaluate
from nlc.runtime.frame import Run, frame_of, kernel_of
from nlc.runtime.layout import (
    State,
    double,
    facts,
    instance_path,
    pack,
    read_states,
    read_window,
    unpack,
    write_states,
    write_window,
)
from nlc.runtime.states import get, initial_state, initial_states, put
from nlc.runtime.windows import advance, collect, empty

NOTHING: Mapping[str, Expr] = {}


def token(
    run: Run,
    module: Block | Model,
    inputs: Mapping[str, Tensor],
    state: State,
    also: Mapping[str, Expr] = NOTHING,
) -> tuple[dict[str, Tensor], State]:
    """Run one token: streams [rows, *shape] in, all streams and the next state out.

    `also` are further values over the streams, given back among them.
    """
    memories = module.memories if isinstance(module, Block) else ()
    states: dict[tuple[str, str], States] = {}
    for memory in memories:
        states[memory.name, "prev"] = read_states(memory, state)
        if memory.name in facts(module).starts:
            # emitted code leaves out a start that no gradient turned out to depend on
            label = f"{memory.name}.start"
            start = unpack(memory, "", state.get(label, state[memory.name]))
            states[memory.name, "start"] = {"": start}
    if isinstance(module, Block):
        states |= since_reset(run, module, state, states)
    frame = frame_of(run, module, inputs, state)
    frame.states.update(states)
    after: State = dict(state)
    _steps(run, module, module.steps, "", frame, after)
    for name, value in also.items():
        frame.streams[name] = evaluate(value, frame)
    if run.watch is not None:
        run.watch(run.path.removesuffix("."), module, frame)
    _finish(run, module, frame, after)
    return frame.streams, after


def since_reset(
    run: Run, block: Block, state: State, states: Mapping[tuple[str, str], States]
) -> dict[tuple[str, str], States]:
    """Return what `initial(M)` reads: kept where it was copied from a memory, else made again."""
    present = {memory.name: states[memory.name, "prev"] for memory in block.memories}
    found = {}
    for memory in block.memories:
        if memory.name in facts(block).copied:
            kept = unpack(memory, "", state[f"{memory.name}.initial"])
            found[memory.name, "initial"] = {"": kept}
        elif memory.name in facts(block).initials:
            made = initial_state(run, block, memory, present)
            found[memory.name, "initial"] = made
    return found


def _steps(
    run: Run,
    module: Block | Model,
    steps: tuple[Step, ...],
    prefix: str,
    frame: TokenFrame,
    state: State,
) -> None:
    for step in steps:
        match step:
            case Equation(name=name, value=value):
                frame.streams[name] = evaluate(value, frame)
            case Update(memory=name):
                assert isinstance(module, Block)
                _update(module.memory(name), frame, state)
            case Call():
                _call(run, step, instance_path(step, prefix), frame, state)
            case Repeat():
                for turn in range(step.count):
                    inner = f"{prefix}{step.name}.{turn}."
                    _steps(run, module, step.steps, inner, frame, state)


def _call(run: Run, call: Call, path: str, frame: TokenFrame, state: State) -> None:
    block = run.system.block(call.block)
    given = {
        name: evaluate(value, frame) for name, value in call.inputs if _is_assigned(value, frame)
    }
    streams, after = token(run.within(f"{path}."), block, given, get(state, path))
    put(state, path, after)
    for result, (name, _) in zip(call.results, block.outputs, strict=True):
        frame.streams[result] = streams[name]


def _is_assigned(value: Expr, frame: TokenFrame) -> bool:
    """Say whether an argument has a value: a stream that has none yet is as if not given."""
    name = value.attr("name") if value.op == "stream" else ""
    return not name or name in frame.streams or name in frame.defaults


def _update(memory: Memory, frame: TokenFrame, state: State) -> None:
    """Move a memory by one token; what it keeps of its window goes into the state."""
    if memory.map.kind == "kernel":
        before = frame.states[memory.name, "prev"]
        frame.states[memory.name, "post"] = {"": _append(memory, before[""], frame)}
        return
    after, window = advance(memory, frame, read_window(memory, state))
    frame.states[memory.name, "post"] = after
    state |= write_window(memory, window)


def _append(memory: Memory, before: Parts, frame: TokenFrame) -> Parts:
    """Store a token's pairs; what has left the window is forgotten."""
    window = kernel_of(memory).window
    after: Parts = {}
    for place, name in enumerate(("key", "value")):
        old = before[name]
        new = [evaluate(pair[place], frame) for pair in memory.pairs]
        shape = (*old.shape[:-2], 1, old.shape[-1])
        kept = torch.cat([old, *(value[..., None, :].expand(shape) for value in new)], dim=-2)
        start = 0 if window is None else max(kept.shape[-2] - window, 0)
        after[name] = kept[..., start:, :]
    return after


def _finish(run: Run, module: Block | Model, frame: TokenFrame, state: State) -> None:
    """End the token: histories, what waits for the task, chunk starts, resets, position."""
    for memory in module.memories if isinstance(module, Block) else ():
        if memory.is_task:
            state |= write_window(memory, collect(memory, frame, read_window(memory, state)))
    for history in module.histories:
        if history.slot not in frame.remembered or history.slot not in state:
            continue
        shape = (run.rows, history.length, *sizes(history.shape))
        old = state[history.slot].expand(shape)
        new = frame.remembered[history.slot].reshape(run.rows, 1, *sizes(history.shape))
        state[history.slot] = torch.cat([old, double(new)], dim=1)[:, 1:]
    done = frame.position + 1
    if facts(module).counts:
        state["position"] = done
    if not isinstance(module, Block):
        return
    ended = {
        memory.name: frame.states.get((memory.name, "post"), frame.states[memory.name, "prev"])
        for memory in module.memories
    }
    due = tuple(m for m in module.memories if m.reset is not None and done % m.reset.count == 0)
    ended |= initial_states(run, module, due, ended)
    for memory in module.memories:
        parts = ended[memory.name]
        state |= write_states(memory, parts)
        starts = memory.name in facts(module).starts
        if starts and (memory in due or done % memory.chunk == 0):
            state[f"{memory.name}.start"] = pack(parts[""])
        if memory in due:
            state |= write_window(memory, empty(memory, run.rows))
        if memory.name in facts(module).copied and memory in due:
            state[f"{memory.name}.initial"] = pack(parts[""])
