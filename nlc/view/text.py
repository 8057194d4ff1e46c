"""The level graph as text, JSON, DOT and Mermaid.

In: a `System`. Out: text (plain data for JSON), the same for the same spec. All of them list levels
fastest first, and within a level the faster component before the slower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from nlc.ir.level_graph import EDGE_KINDS, Component, Edge
from nlc.ir.system import Level, Period, System
from nlc.view.words import amount, at, frequency_words, level_words, map_of, ranks


def filled(system: System) -> list[Level]:
    """List the levels that hold something, fastest first."""
    return [level for level in system.levels if at(system, level)]


# ---- text --------------------------------------------------------------------------------------


def as_text(system: System) -> str:
    """Write a tree: levels, their components, and what each passes on."""
    lines = [f"{system.name}  {system.about}".rstrip()]
    place = {c.name: c for c in system.components}
    names = [c.label for c in system.components]
    column = min(max(map(len, names), default=0), 32)
    for level in filled(system):
        lines += ["", f"{level.name}  {level_words(level)}  ({frequency_words(level.period)})"]
        inside = at(system, level)
        for rank, same in enumerate(ranks(inside)):
            if rank:
                lines.append("   | faster than")
            for block, here in _by_block(same):
                copies = f"  x{here[0].copies}" if here[0].copies > 1 else ""
                if block:
                    lines.append(f"   {block}{copies}")
                indent = "     " if block else "   "
                for component in here:
                    learned = amount(component.parameters) if component.parameters else ""
                    row = f"{indent}{component.label:<{column}}  {map_of(component):<26}  {learned}"
                    lines.append(row.rstrip())
                    lines += [f"{indent}  {line}" for line in _passed(system, component, place)]
    return "\n".join(lines) + "\n"


def _by_block(components: Iterable[Component]) -> Iterator[tuple[str, list[Component]]]:
    found: dict[str, list[Component]] = defaultdict(list)
    for component in components:
        found[component.block].append(component)
    yield from found.items()


WAYS = {"reads": "is read by", "initialises": "is the start of", "optimises": "moves"}


def _passed(system: System, component: Component, place: dict[str, Component]) -> Iterator[str]:
    """Say what a component passes on; the way of the gradient is left to the other formats."""
    ways: dict[str, list[str]] = defaultdict(list)
    for edge in system.edges:
        if edge.source != component.name or edge.kind == "backprop":
            continue
        target = place[edge.target]
        name = target.label if target.block == component.block else target.name
        # what is generated stands in the reason: `makes the keys of M`
        made = edge.kind == "generates"
        ways[edge.reason if made else WAYS[edge.kind]] += [] if made else [name]
    for way, targets in ways.items():
        more = f" and {len(targets) - 4} more" if len(targets) > 5 else ""
        yield f"-> {way} {', '.join(targets[:4] if more else targets)}{more}".rstrip()


# ---- JSON --------------------------------------------------------------------------------------


def as_json(system: System) -> dict[str, Any]:
    """Return the level graph as plain data: levels, components, edges."""
    return {
        "system": system.name,
        "about": system.about,
        "levels": [_level(level) for level in system.levels],
        "components": [_component(component) for component in system.components],
        "edges": [_edge(edge) for edge in system.edges],
    }


def _level(level: Level) -> dict[str, Any]:
    optimizer = level.optimizer
    return {
        "name": level.name,
        "period": str(level.period),
        "frequency": _frequency(level.period),
        "chunk": level.chunk,
        "optimizer": {"rule": optimizer.rule, **dict(optimizer.arguments)} if optimizer else None,
        "components": list(level.components),
    }


def _component(component: Component) -> dict[str, Any]:
    return {
        "name": component.name,
        "block": component.block or None,
        "level": component.level,
        "rank": component.rank,
        "period": str(component.period),
        "frequency": _frequency(component.period),
        "kind": component.kind,
        "map": map_of(component),
        "size": component.size,
        "parameters": component.parameters,
        "copies": component.copies,
    }


def _frequency(period: Period) -> dict[str, Any]:
    """JSON has no infinity, so the unit says `always`."""
    rate = 1 / period.count if period.unit in ("tokens", "steps") else None
    return {"unit": period.unit, "rate": rate}


def _edge(edge: Edge) -> dict[str, Any]:
    return {
        "source": edge.source,
        "target": edge.target,
        "kind": edge.kind,
        "reason": edge.reason,
        "same_time": edge.same_time,
        "across": edge.across,
    }


# ---- DOT and Mermaid ---------------------------------------------------------------------------

DOT_STYLE = {
    "generates": 'color="#1a7f37"',
    "reads": 'color="#0969da"',
    "initialises": 'color="#8250df"',
    "optimises": 'color="#cf222e"',
    "backprop": 'color="#9a6700", style=dashed',
}


def as_dot(system: System) -> str:
    """Write the graph in Graphviz's language, a cluster for each level."""
    lines = [
        f"digraph {_quoted(system.name)} {{",
        f"  label = {_quoted(f'{system.name}: {system.about}' if system.about else system.name)};",
        "  labelloc = t; rankdir = TB; compound = true;",
        '  node [shape = box, style = rounded, fontname = "sans-serif", fontsize = 11];',
        '  edge [fontname = "sans-serif", fontsize = 9];',
    ]
    for i, level in enumerate(filled(system)):
        lines.append(f"  subgraph cluster_{i} {{")
        lines.append(f"    label = {_quoted(f'{level.name}: {level_words(level)}')};")
        for c in at(system, level):
            lines.append(f"    {_quoted(c.name)} [label = {_quoted(_two_lines(c))}];")
        lines.append("  }")
    for edge in system.edges:
        ends = f"{_quoted(edge.source)} -> {_quoted(edge.target)}"
        lines.append(f"  {ends} [label = {edge.kind}, {DOT_STYLE[edge.kind]}];")
    return "\n".join([*lines, "}"]) + "\n"


def _two_lines(component: Component) -> str:
    return f"{component.name}\n{map_of(component)}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


MERMAID_ARROWS = {"initialises": "-.->", "backprop": "-.->", "optimises": "==>"}


def as_mermaid(system: System) -> str:
    """Write the graph as a Mermaid flowchart, a subgraph for each level."""
    ids = {c.name: f"c{i}" for i, c in enumerate(system.components)}
    lines = ["flowchart TB"]
    for i, level in enumerate(filled(system)):
        title = _entities(f"{level.name}: {level_words(level)}")
        lines.append(f'  subgraph level{i} ["{title}"]')
        for c in at(system, level):
            label = "<br>".join(_entities(line) for line in _two_lines(c).splitlines())
            lines.append(f'    {ids[c.name]}["{label}"]')
        lines.append("  end")
    for kind in EDGE_KINDS:
        for edge in system.edges:
            if edge.kind == kind:
                arrow = MERMAID_ARROWS.get(kind, "-->")
                lines.append(f"  {ids[edge.source]} {arrow}|{kind}| {ids[edge.target]}")
    return "\n".join(lines) + "\n"


def _entities(text: str) -> str:
    """Write the characters that mean something to Mermaid as entities."""
    return "".join(f"#{ord(c)};" if c in '"#;<>&`\\' else c for c in text)
