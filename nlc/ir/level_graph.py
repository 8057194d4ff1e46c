"""The level graph: components, how often they change, and how knowledge passes between them.

In: a `System`. Out: a `networkx.DiGraph`. A node is a component (`mixer.W_q`, `mixer.M`,
`slow.adamw.m`) with kind, level, period, frequency, block, map, parameters and rank; an edge has
`kinds`, a sorted tuple of

    reads         the target is a function of the source's state
    generates     the source makes keys, values, gates or weights of the target
    backprop      one gradient flows from the target's objective to the source
    initialises   the source is the target's start
    optimises     the source is a state of the optimizer that moves the target

A component is faster than another if it changes more often, or equally often and the other's state
at time t needs its state at time t (arXiv:2512.24695, definition 2). `rank` counts the antichains
of that order from the fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import count
from nlc.ir.system import Block, Call, Equation, Level, Memory, System, Weight

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Need:
    """What a value depends on: weights, and memories at this token or before it."""

    weights: frozenset[str]
    now: frozenset[str]
    before: frozenset[str]


def level_graph(system: System) -> nx.DiGraph:
    """Build the level graph of a system."""
    import networkx as nx

    graph = nx.DiGraph(name=system.name)
    for block in system.blocks:
        _add_block(graph, system, block)
    if system.model is not None:
        for weight in system.model.weights:
            _add_weight(graph, system, "", weight)
    _add_optimizers(graph, system)
    _rank(graph)
    return graph


def _node(graph: nx.DiGraph, name: str, level: Level, kind: str, **facts: object) -> None:
    graph.add_node(
        name, kind=kind, level=level.name, period=str(level.period), frequency=level.frequency,
        **{"block": "", "map": "", "parameters": 0, **facts},
    )  # fmt: skip


def _edge(graph: nx.DiGraph, source: str, target: str, kind: str, now: bool = False) -> None:
    if source == target or source not in graph or target not in graph:
        return
    known = graph.edges[source, target]["kinds"] if graph.has_edge(source, target) else ()
    same = now or (graph.has_edge(source, target) and graph.edges[source, target]["now"])
    graph.add_edge(source, target, kinds=tuple(sorted({*known, kind})), now=same)


def _add_weight(graph: nx.DiGraph, system: System, block: str, weight: Weight) -> None:
    size = sum(count((*weight.lead, *part.shape)) for part in weight.map.parts)
    name = f"{block}.{weight.name}" if block else weight.name
    _node(graph, name, system.level(weight.level), "weights",
          block=block, map=weight.map.text, parameters=size)  # fmt: skip


def _add_block(graph: nx.DiGraph, system: System, block: Block) -> None:
    def name(part: str) -> str:
        return f"{block.name}.{part}"

    for weight in block.weights:
        _add_weight(graph, system, block.name, weight)
    needs = _Needs(block)
    for memory in block.memories:
        level = system.level(memory.level)
        learned = sum(count((*memory.lead, *p.shape)) for p in memory.map.parts)
        _node(graph, name(memory.name), level, "memory", block=block.name,
              map=memory.map.text, parameters=learned if memory.learned else 0)  # fmt: skip
        for variable in memory.variables:
            if variable.name:
                _node(graph, name(f"{memory.name}.{variable.name}"), level, "state",
                      block=block.name, map=memory.map.text)  # fmt: skip
    for memory in block.memories:
        _memory_edges(graph, block, memory, needs, name)
    for step in block.steps:
        roots = [step.value] if isinstance(step, Equation) else []
        roots += [e for _, e in step.inputs] if isinstance(step, Call) else []
        for node in postorder(roots):
            if node.op == "apply" and node.args[1].op == "param":
                reader = str(node.args[1].attr("name")).split(".")[0]
                for source in sorted(needs.of((node.args[0],)).now):
                    _edge(graph, name(source), name(reader), "reads", now=False)


def _memory_edges(
    graph: nx.DiGraph, block: Block, memory: Memory, needs: _Needs, name: object
) -> None:
    assert callable(name)
    target = name(memory.name)
    roots = [a.value for a in memory.update] + [e for pair in memory.pairs for e in pair]
    need = needs.of(tuple(roots))
    for weight in sorted(need.weights):
        _edge(graph, name(weight), target, "generates")
        if memory.through != "stop":
            _edge(graph, target, name(weight), "backprop")
    for other in sorted(need.now | need.before):
        _edge(graph, name(other), target, "generates", now=other in need.now)
    for variable in memory.variables:
        if variable.name:
            own = [a.value for a in memory.update if not a.var]
            now = any(
                n.op == "let" and n.attr("name") == variable.name for n in postorder(own)
            )
            _edge(graph, name(f"{memory.name}.{variable.name}"), target, "optimises", now=now)
        for part in variable.parts:
            if part.initial.source:
                _edge(graph, name(part.initial.source), target, "initialises")


class _Needs:
    """What expressions of a block depend on, through its streams."""

    def __init__(self, block: Block):
        self.makers: dict[str, tuple[Expr, ...]] = {}
        for step in block.steps:
            if isinstance(step, Equation):
                self.makers[step.name] = (step.value,)
            elif isinstance(step, Call):
                for result in step.results:
                    self.makers[result] = tuple(e for _, e in step.inputs)
        for entry in block.inputs:
            if entry.default is not None:
                self.makers.setdefault(entry.name, (entry.default,))

    def of(self, roots: tuple[Expr, ...]) -> Need:
        """Follow expressions down to weights and states."""
        weights: set[str] = set()
        now: set[str] = set()
        before: set[str] = set()
        seen: set[str] = set()
        waiting = [roots]
        while waiting:
            for node in postorder(waiting.pop()):
                if node.op == "param":
                    weights.add(str(node.attr("name")).split(".")[0])
                elif node.op in ("state", "attend"):
                    (now if node.attr("when") == "post" else before).add(node.attr("memory"))
                elif node.op == "stream" and node.attr("name") not in seen:
                    seen.add(node.attr("name"))
                    waiting.append(self.makers.get(node.attr("name"), ()))
        return Need(frozenset(weights), frozenset(now), frozenset(before))


def _add_optimizers(graph: nx.DiGraph, system: System) -> None:
    for level in system.levels:
        if level.optimizer is None:
            continue
        moved = [n for n, facts in graph.nodes(data=True)
                 if facts["level"] == level.name and facts["kind"] == "weights"]  # fmt: skip
        if not moved:
            continue
        for state in level.optimizer.definition.states:
            name = f"{level.name}.{level.optimizer.rule}.{state.name}"
            _node(graph, name, level, "optimizer", map=level.optimizer.rule)
            for target in moved:
                _edge(graph, name, target, "optimises", now=True)


def _rank(graph: nx.DiGraph) -> None:
    """Number the antichains, fastest first."""
    import networkx as nx

    rank = 0
    frequencies = sorted({facts["frequency"] for _, facts in graph.nodes(data=True)}, reverse=True)
    for frequency in frequencies:
        same = [n for n, facts in graph.nodes(data=True) if facts["frequency"] == frequency]
        inside = nx.DiGraph()
        inside.add_nodes_from(same)
        inside.add_edges_from(
            (a, b) for a, b, facts in graph.edges(data=True)
            if facts["now"] and a in inside and b in inside
        )  # fmt: skip
        layers = list(nx.topological_generations(inside))
        for layer in layers:
            for node in layer:
                graph.nodes[node]["rank"] = rank
            rank += 1
