"""The level graph as text, JSON, DOT and Mermaid.

In: a `System`. Out: text (or plain data for JSON), the same for the same spec.
"""

from __future__ import annotations

import re
from typing import Any

from nlc.ir.system import System


def by_level(system: System) -> list[tuple[Any, list[str]]]:
    """List the levels that hold something, fastest first, with their components in order."""
    graph = system.graph
    found = []
    for level in system.levels:
        inside = [n for n, facts in graph.nodes(data=True) if facts["level"] == level.name]
        if inside:
            found.append((level, sorted(inside, key=lambda n: (graph.nodes[n]["rank"], n))))
    return found


def as_text(system: System) -> str:
    """Write levels, components and edges as an indented list."""
    graph = system.graph
    lines = [system.name + (f"  {system.about}" if system.about else "")]
    for level, names in by_level(system):
        chunk = f", chunk {level.chunk}" if level.chunk > 1 else ""
        lines.append(f"{level.name}  {level.period}{chunk}")
        for name in names:
            facts = graph.nodes[name]
            lines.append(f"  {name}  {facts['map']}".rstrip())
            for target in sorted(graph.successors(name)):
                kinds = [k for k in graph.edges[name, target]["kinds"] if k != "backprop"]
                if kinds:
                    lines.append(f"    {', '.join(kinds)} -> {target}")
    return "\n".join(lines) + "\n"


def as_json(system: System) -> dict[str, Any]:
    """Give the graph as plain data: levels, nodes, edges."""
    graph = system.graph
    return {
        "system": system.name,
        "about": system.about,
        "levels": [
            {
                "name": level.name,
                "period": str(level.period),
                "unit": level.period.unit,
                "count": level.period.count,
                "chunk": level.chunk,
                "optimizer": level.optimizer.rule if level.optimizer else None,
                "components": names,
            }
            for level, names in by_level(system)
        ],
        "nodes": [
            {
                "name": name,
                "kind": facts["kind"],
                "level": facts["level"],
                "rank": facts["rank"],
                "block": facts["block"],
                "map": facts["map"],
                "parameters": facts["parameters"],
            }
            for name, facts in sorted(graph.nodes(data=True))
        ],
        "edges": [
            {"source": a, "target": b, "kinds": list(facts["kinds"])}
            for a, b, facts in sorted(graph.edges(data=True), key=lambda e: e[:2])
        ],
    }


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def as_dot(system: System) -> str:
    """Write the graph in Graphviz's DOT, one cluster for each level."""
    graph = system.graph
    lines = [f"digraph {_quoted(system.name)} {{", "  rankdir = TB;", "  node [shape = box];"]
    for i, (level, names) in enumerate(by_level(system)):
        lines.append(f"  subgraph cluster_{i} {{")
        lines.append(f"    label = {_quoted(f'{level.name}: {level.period}')};")
        lines += [f"    {_quoted(name)};" for name in names]
        lines.append("  }")
    for a, b, facts in sorted(graph.edges(data=True), key=lambda e: e[:2]):
        label = ", ".join(facts["kinds"])
        lines.append(f"  {_quoted(a)} -> {_quoted(b)} [label = {_quoted(label)}];")
    return "\n".join([*lines, "}"]) + "\n"


def as_mermaid(system: System) -> str:
    """Write the graph as a Mermaid flowchart, one subgraph for each level."""
    graph = system.graph
    ids = {name: f"n{i}" for i, name in enumerate(sorted(graph.nodes))}

    def label(text: str) -> str:
        return '"' + re.sub(r'["\n]', "'", text) + '"'

    lines = ["flowchart TB"]
    for i, (level, names) in enumerate(by_level(system)):
        lines.append(f"  subgraph level{i}[{label(f'{level.name}: {level.period}')}]")
        lines += [f"    {ids[name]}[{label(name)}]" for name in names]
        lines.append("  end")
    for a, b, facts in sorted(graph.edges(data=True), key=lambda e: e[:2]):
        lines.append(f"  {ids[a]} -->|{', '.join(facts['kinds'])}| {ids[b]}")
    return "\n".join(lines) + "\n"
