"""Find a system's components, how knowledge passes between them, and who is faster.

In: a resolved `System`. Out: the same with `components` and `edges`, and with each level's
components, fastest first. Reports no faults: a cycle within one time has been refused before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

from nlc.ir.level_graph import Component, Edge
from nlc.ir.shape import count
from nlc.ir.system import Block, Call, Level, Map, Memory, Model, Period, Repeat, Step, System
from nlc.semantics.knowledge import find_edges
from nlc.semantics.optimizer_states import optimizer_edges, optimizer_states


def with_level_graph(system: System) -> System:
    """Return the system with its level graph."""
    found = {c.name: c for c in _components(system)}
    edges = find_edges(system, found)
    for level in system.levels:
        for component in optimizer_states(level, _learning(level, found)):
            found[component.name] = component
        edges += optimizer_edges(level, _learning(level, found))
    ranks = _ranks(found, edges)
    ordered = sorted((replace(c, rank=ranks[c.name]) for c in found.values()), key=lambda c: c.rank)
    levels = tuple(
        replace(level, components=tuple(c.name for c in ordered if c.level == level.name))
        for level in system.levels
    )
    return replace(system, levels=levels, components=tuple(ordered), edges=tuple(edges))


def _learning(level: Level, components: dict[str, Component]) -> list[Component]:
    """List what a level's optimizer moves."""
    return [
        c
        for c in components.values()
        if c.level == level.name and c.kind in ("weights", "start", "pairs")
    ]


# ---- components --------------------------------------------------------------------------------


def _components(system: System) -> Iterator[Component]:
    copies = _copies(system)
    slow = next((lv for lv in system.levels if lv.period.unit == "steps"), None)
    for block in system.blocks:
        yield from _of_weights(system, block, block.name, copies[block.name])
        for memory in block.memories:
            yield from _of_memory(system, block, memory, slow, copies[block.name])
    if system.model is not None:
        yield from _of_weights(system, system.model, "", 1)


def _of_weights(
    system: System, module: Block | Model, block: str, copies: int
) -> Iterator[Component]:
    for w in module.weights:
        if isinstance(module, Model) and module.tied and w.name == "unembed":
            continue
        size = count(w.lead) * sum(count(part.shape) for part in w.map.parts)
        name = f"{block}.{w.name}" if block else w.name
        period = system.level(w.level).period
        yield Component(
            name, block, w.level, period, "weights", map_words(w.map), lead_words(w.lead), size,
            size if period.unit != "never" else 0, copies,
        )  # fmt: skip


def _of_memory(
    system: System, block: Block, memory: Memory, slow: Level | None, copies: int
) -> Iterator[Component]:
    name = f"{block.name}.{memory.name}"
    period = system.level(memory.level).period
    words, lead = map_words(memory.map), lead_words(memory.lead)
    lanes = count(memory.lead)
    size = lanes * sum(count(part.shape) for part in memory.map.parts)
    for variable in memory.variables:
        if not variable.name:
            continue
        entries = lanes * sum(count(part.shape) for part in variable.parts)
        like = [p.shape for p in variable.parts] == [p.shape for p in memory.map.parts]
        shape = f"like {memory.name}" if like else _sizes(variable.parts[0].shape)
        yield Component(
            f"{name}.{variable.name}", block.name, memory.level,
            _period_of(memory, variable.name) or period, "state", shape, lead, entries,
            copies=copies,
        )  # fmt: skip
    yield Component(
        name, block.name, memory.level, period, "memory", words, lead, size, copies=copies
    )
    if slow is None:
        return
    if memory.learned and memory.map.kind != "kernel":
        yield Component(
            f"{name}.start", block.name, slow.name, slow.period, "start", words, lead, size, size,
            copies,
        )  # fmt: skip
    for own, variable in memory.learned_states():
        if own:
            entries = lanes * sum(count(part.shape) for part in variable.parts)
            yield Component(
                f"{name}.{own}", block.name, slow.name, slow.period, "start",
                _sizes(variable.parts[0].shape), lead, entries, entries, copies,
            )  # fmt: skip
    if memory.persistent:
        pairs = lanes * memory.persistent * sum(axis.size for axis in memory.map.chain)
        yield Component(
            f"{name}.pairs", block.name, slow.name, slow.period, "pairs",
            f"{memory.persistent} pairs", lead, pairs, pairs, copies,
        )  # fmt: skip


def _period_of(memory: Memory, state: str) -> Period | None:
    """The period of a state that is set only inside one `every PERIOD { }`."""
    for assignment in memory.update:
        if assignment.var != state:
            continue
        value = assignment.value
        while value.op == "let":
            value = value.args[0]
        if value.op == "where" and value.args[0].op == "due":
            return Period(*value.args[0].attr("period"))
    return None


def _copies(system: System) -> Counter[str]:
    """Count the instances of each block; a shared one counts once."""
    if system.model is None:
        return Counter({block.name: 1 for block in system.blocks})
    names: dict[tuple[str, ...], str] = {}
    waiting: list[tuple[tuple[str, ...], tuple[Step, ...]]] = [((), system.model.steps)]
    while waiting:
        prefix, steps = waiting.pop()
        for step in steps:
            match step:
                case Call():
                    path = (step.instance,) if step.shared else (*prefix, step.instance)
                    if path not in names:
                        names[path] = step.block
                        waiting.append((path, system.block(step.block).steps))
                case Repeat():
                    waiting += [
                        ((*prefix, step.name, str(turn)), step.steps) for turn in range(step.count)
                    ]
    return Counter(names.values())


# ---- words -------------------------------------------------------------------------------------


def map_words(map: Map) -> str:
    """Write a map's kind and sizes: `mlp 64-128-64`.

    For a convolution and a kernel, its width and its window.
    """
    match map.kind:
        case "conv":
            return f"conv {map.chain[0].size}, width {map.option('width')}"
        case "kernel":
            window = map.option("window")
            return f"softmax, window {window}" if window else "softmax"
        case "linear" | "table" | "mlp" | "glu" | "lora" | "vector" | "scalar" | "matrix":
            return f"{map.kind} {_sizes(map.chain)}".rstrip()


def lead_words(lead: tuple[object, ...]) -> str:
    """Write leading axes: `4 heads`."""
    return ", ".join(f"{axis.size} {axis.name}" for axis in lead)  # type: ignore[attr-defined]


def _sizes(shape: tuple[object, ...]) -> str:
    return "-".join(str(axis.size) for axis in shape) or "1"  # type: ignore[attr-defined]


# ---- order -------------------------------------------------------------------------------------


def _ranks(components: dict[str, Component], edges: list[Edge]) -> dict[str, int]:
    """Number the antichains of "faster than", the fastest 0."""
    frequency = {name: c.period.frequency for name, c in components.items()}
    slower: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        if edge.same_time and frequency[edge.source] == frequency[edge.target]:
            slower[edge.source].append(edge.target)
    ranks: dict[str, int] = {}
    first = 0
    for speed in sorted(set(frequency.values()), reverse=True):
        names = [name for name in components if frequency[name] == speed]
        depth = dict.fromkeys(names, 0)
        # the longest chain has no more links than there are names
        for _ in names:
            deeper = {b: depth[a] + 1 for a in names for b in slower[a] if depth[b] <= depth[a]}
            if not deeper:
                break
            depth |= deeper
        ranks |= {name: first + depth[name] for name in names}
        first += max(depth.values()) + 1
    return ranks
