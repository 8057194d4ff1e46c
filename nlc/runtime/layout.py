"""What a module keeps: the names and shapes of its parameters and of its state.

In: a system and a block of it, or its model. Out: parameters in the order in which they are
drawn, what the states of a module are, and the conversion between a state as callers see it
(nested dicts: by module, then by memory) and the tensors of each memory by part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nlc.ir.expr import Expr, postorder
from nlc.ir.online import source_of
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import (
    Block,
    Call,
    Equation,
    Initial,
    Kept,
    Memory,
    Model,
    Part,
    Repeat,
    Step,
    System,
    Update,
)
from nlc.runtime.evaluate import Parts, States
from nlc.runtime.windows import Window

State = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A parameter by its full name; `block` is where its `initial` expression is looked up."""

    name: str
    shape: Shape
    initial: Initial
    prefix: str


def parameters(system: System, module: Block | Model, prefix: str = "") -> Iterator[Parameter]:
    """List the parameters of a module: weights, learned states, then those of its calls."""
    for weight in module.weights:
        if not (isinstance(module, Model) and module.tied and weight.name == "unembed"):
            yield from _of_parts(weight.name, weight.map.parts, weight.lead, prefix)
    if isinstance(module, Block):
        for memory in module.memories:
            yield from _of_memory(memory, prefix)
    for path, block in instances(system, module.steps):
        yield from parameters(system, block, f"{prefix}{path}.")


def _of_parts(owner: str, parts: tuple[Part, ...], lead: Shape, prefix: str) -> Iterator[Parameter]:
    for part in parts:
        name = f"{prefix}{owner}.{part.name}" if part.name else prefix + owner
        yield Parameter(name, (*lead, *part.shape), part.initial, prefix)


def _of_memory(memory: Memory, prefix: str) -> Iterator[Parameter]:
    if memory.map.kind != "kernel":
        for own, variable in memory.learned_states():
            owner = f"{memory.name}.{own}" if own else memory.name
            yield from _of_parts(owner, variable.parts, memory.lead, prefix)
        return
    if memory.persistent:
        count = Axis(str(memory.persistent), memory.persistent)
        for name, axes in (("key", memory.map.inputs), ("value", memory.map.outputs)):
            size = float(axes[-1].size)
            yield Parameter(
                f"{prefix}{memory.name}.{name}",
                (*memory.lead, count, *axes),
                Initial("uniform", size),
                prefix,
            )


def instances(
    system: System, steps: tuple[Step, ...], prefix: str = ""
) -> Iterator[tuple[str, Block]]:
    """List the instances of blocks that some steps call, each once, in order of execution."""
    seen: set[str] = set()
    for path, call in calls(steps, prefix):
        if path not in seen:
            seen.add(path)
            yield path, system.block(call.block)


def calls(steps: tuple[Step, ...], prefix: str = "") -> Iterator[tuple[str, Call]]:
    """List the calls among some steps with the full names of their instances."""
    for step in steps:
        match step:
            case Call():
                yield instance_path(step, prefix), step
            case Repeat():
                for turn in range(step.count):
                    yield from calls(step.steps, f"{prefix}{step.name}.{turn}.")
            case Equation() | Update():
                pass


def instance_path(call: Call, prefix: str) -> str:
    """Return the full name of a call's instance; a shared one is the same in every pass."""
    return call.instance if call.shared else prefix + call.instance


@dataclass(frozen=True)
class Facts:
    """What a module's expressions ask for besides the present states.

    `starts` are the memories read at the start of their chunk, `initials` those whose initial
    state is read, `copied` those among them that began as a copy of another memory; `counts` says
    whether the module counts its tokens.
    """

    starts: frozenset[str]
    initials: frozenset[str]
    copied: frozenset[str]
    counts: bool


@lru_cache(maxsize=256)
def facts(module: Block | Model) -> Facts:
    """Find what the state of a module has to hold besides memories and histories."""
    if isinstance(module, Model):
        return Facts(frozenset(), frozenset(), frozenset(), module.uses_position)
    read = {
        (node.attr("memory"), node.attr("when"))
        for node in postorder(_expressions(module))
        if node.op == "state"
    }
    starts = {m.name for m in module.memories if m.chunk > 1 and (m.name, "start") in read}
    names = {memory.name for memory in module.memories}
    initials = {m.name for m in module.memories if (m.name, "initial") in read}
    copied = {name for name in initials if source_of(module.memory(name)) in names}
    resets = any(memory.reset is not None for memory in module.memories)
    counts = module.uses_position or bool(starts) or resets
    return Facts(frozenset(starts), frozenset(initials), frozenset(copied), counts)


def _expressions(block: Block) -> Iterator[Expr]:
    for step in block.steps:
        match step:
            case Equation():
                yield step.value
            case Call():
                yield from (value for _, value in step.inputs)
            case Update() | Repeat():
                pass
    for memory in block.memories:
        yield from (assignment.value for assignment in memory.update)
        if memory.map.kind == "kernel":
            yield from (value for pair in memory.pairs for value in pair)
    yield from (entry.default for entry in block.inputs if entry.default is not None)


def pack(parts: Parts) -> Tensor | Parts:
    """Show a state: a tensor where the map has one part, else a dict by part."""
    return next(iter(parts.values())) if len(parts) == 1 else dict(parts)


def unpack(memory: Memory, var: str, value: Any) -> Parts:
    """Read a state as `pack` shows it."""
    names = [part.name for part in memory.variable(var).parts]
    if isinstance(value, Mapping):
        return {name: double(value[name]) for name in names}
    return {names[0]: double(value)}


def double(value: Tensor) -> Tensor:
    """Bring a tensor to where and how everything here is computed; gradients pass."""
    return value.to(device="cpu", dtype=torch.float64)


def read_states(memory: Memory, state: Mapping[str, Any]) -> States:
    """Read all states of a memory out of its block's state."""
    if memory.map.kind == "kernel":
        pairs = state[memory.name]
        return {"": {name: double(pairs[name]) for name in ("key", "value")}}
    return {
        variable.name: unpack(memory, variable.name, state[label(memory, variable.name)])
        for variable in memory.variables
    }


def write_states(memory: Memory, states: States) -> State:
    """Show all states of a memory under their names in its block's state."""
    if memory.map.kind == "kernel":
        return {memory.name: dict(states[""])}
    return {label(memory, name): pack(parts) for name, parts in states.items()}


def read_window(memory: Memory, state: Mapping[str, Any]) -> Window:
    """Read what a memory keeps of its unfinished window."""
    return Window(
        _read_kept(memory.sums, state.get(f"{memory.name}.sum")),
        _read_kept(memory.recent, state.get(f"{memory.name}.recent")),
    )


def _read_kept(kept: tuple[Kept, ...], value: Any) -> Parts:
    if isinstance(value, Mapping):
        return {entry.slot: double(value[entry.slot]) for entry in kept}
    return {entry.slot: double(value) for entry in kept}


def write_window(memory: Memory, window: Window) -> State:
    """Show what a memory keeps of its unfinished window: `M.sum`, `M.recent`."""
    shown = {"sum": window.sums, "recent": window.recent}
    return {f"{memory.name}.{word}": pack(values) for word, values in shown.items() if values}


def label(memory: Memory, var: str) -> str:
    """Name a state as callers see it: `M`, `M.S`."""
    return f"{memory.name}.{var}" if var else memory.name
