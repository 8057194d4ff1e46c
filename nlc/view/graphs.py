"""The level graph in the languages of Graphviz and Mermaid.

In: a `System`. Out: text. Levels are clusters, fastest first, with their blocks inside. An
optimizer's state that moves all that learns at its level has one edge, to the cluster of these.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from nlc.ir.level_graph import EDGE_KINDS, Component, Edge
from nlc.ir.system import Level, System
from nlc.view.words import at, block_words, filled, learning, level_words, map_of


@dataclass(frozen=True)
class Cluster:
    """A level: its optimizer's states and what they do not move; then blocks of what they do."""

    number: int
    title: str
    alone: list[Component]
    moved: dict[str, list[Component]]
    whole: set[str]

    @property
    def first(self) -> str:
        """The name of the first that is moved."""
        return next(iter(self.moved.values()))[0].name


def _clusters(system: System) -> list[Cluster]:
    found = []
    for number, level in enumerate(filled(system)):
        moved, whole = _moved(system, level)
        blocks: dict[str, list[Component]] = defaultdict(list)
        for component in moved:
            blocks[block_words(component)].append(component)
        names = {c.name for c in moved}
        alone = [c for c in at(system, level) if c.name not in names]
        title = f"{level.name}: {level_words(level)}"
        found.append(Cluster(number, title, alone, blocks, whole))
    return found


def _moved(system: System, level: Level) -> tuple[list[Component], set[str]]:
    """What learns at a level, and the states that move all of it; nothing where there are none."""
    learns = learning(system, level)
    names = {c.name for c in learns}
    targets: dict[str, set[str]] = defaultdict(set)
    for edge in system.edges:
        if edge.kind == "optimises" and edge.target in names:
            targets[edge.source].add(edge.target)
    whole = {source for source, found in targets.items() if found == names}
    return (learns, whole) if whole and len(names) > 1 else ([], set())


def _drawn(system: System, clusters: list[Cluster]) -> list[tuple[Edge, Cluster | None]]:
    """All edges by kind; those to all of a cluster once, with the cluster."""
    found: list[tuple[Edge, Cluster | None]] = []
    for kind in EDGE_KINDS:
        for edge in system.edges:
            if edge.kind != kind:
                continue
            cluster = next((c for c in clusters if edge.source in c.whole), None)
            if cluster is None:
                found.append((edge, None))
            elif edge.target == cluster.first:
                found.append((edge, cluster))
    return found


def _two_lines(component: Component) -> str:
    label = component.name if component.kind == "optimizer" else component.label
    return f"{label}\n{map_of(component)}"


# ---- Graphviz ----------------------------------------------------------------------------------

DOT_NODES = {
    "weights": "",
    "memory": ', penwidth = 2.4, style = "rounded,filled", fillcolor = "#ffecd1"',
    "state": ', style = "rounded,filled", fillcolor = "#fff6e8"',
    "start": ', shape = oval, style = filled, fillcolor = "#efe7fb"',
    "pairs": ', shape = oval, style = "filled,dashed", fillcolor = "#efe7fb"',
    "optimizer": ', peripheries = 2, style = filled, fillcolor = "#fde7e9"',
}
DOT_EDGES = {
    "generates": 'color = "#116329"',
    "reads": 'color = "#0553b1", arrowhead = empty',
    "initialises": 'color = "#6c3fc0", style = dotted',
    "optimises": 'color = "#b3202c", penwidth = 2.4',
    "backprop": 'color = "#85600a", style = dashed, arrowhead = empty',
}


def as_dot(system: System) -> str:
    """Write the graph in Graphviz's language."""
    title = f"{system.name}: {system.about}" if system.about else system.name
    lines = [
        f"digraph {_quoted(system.name)} {{",
        f"  label = {_quoted(title)};",
        "  labelloc = t; rankdir = TB; compound = true;",
        '  node [shape = box, style = rounded, fontname = "sans-serif", fontsize = 11];',
        '  edge [fontname = "sans-serif", fontsize = 9];',
    ]
    clusters = _clusters(system)
    for cluster in clusters:
        name = f"cluster_{cluster.number}"
        lines += [f"  subgraph {name} {{", f"    label = {_quoted(cluster.title)};"]
        lines += [f"    {_dot_node(c)}" for c in cluster.alone]
        if cluster.moved:
            lines += [f"    subgraph {name}_moved {{", '      label = ""; style = dotted;']
        for number, (block, inside) in enumerate(cluster.moved.items()):
            lines += [f"      subgraph {name}_{number} {{"] if block else []
            lines += [f"        label = {_quoted(block)}; style = dashed;"] if block else []
            lines += [f"        {_dot_node(c)}" for c in inside]
            lines += ["      }"] if block else []
        lines += ["    }"] if cluster.moved else []
        lines.append("  }")
    # levels stand below each other, whatever leads up
    place = {c.name: c for c in system.components}
    tops = [at(system, level)[0].name for level in filled(system)]
    lines += [f"  {_quoted(a)} -> {_quoted(b)} [style = invis];" for a, b in pairwise(tops)]
    for edge, whole in _drawn(system, clusters):
        more = f", lhead = cluster_{whole.number}_moved" if whole else ""
        up = place[edge.source].period.frequency < place[edge.target].period.frequency
        more += ", constraint = false" if up else ""
        words = _quoted(edge.role or edge.kind)
        ends = f"{_quoted(edge.source)} -> {_quoted(edge.target)}"
        lines.append(f"  {ends} [label = {words}, {DOT_EDGES[edge.kind]}{more}];")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_node(component: Component) -> str:
    label = _quoted(_two_lines(component))
    return f"{_quoted(component.name)} [label = {label}{DOT_NODES[component.kind]}];"


def _quoted(text: str) -> str:
    plain = "".join(c if c >= " " or c == "\n" else " " for c in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


# ---- Mermaid -----------------------------------------------------------------------------------

MERMAID_ARROWS = {"initialises": "-.->", "backprop": "-.->", "optimises": "==>"}
# what stands around a label
MERMAID_NODES = {"start": ("([", "])"), "pairs": ("([", "])"), "optimizer": ("[[", "]]")}


def as_mermaid(system: System) -> str:
    """Write the graph as a Mermaid flowchart."""
    ids = {c.name: f"c{i}" for i, c in enumerate(system.components)}
    lines = ["flowchart TB"]
    clusters = _clusters(system)
    for cluster in clusters:
        name = f"level{cluster.number}"
        lines.append(f'  subgraph {name} ["{_entities(cluster.title)}"]')
        lines += [f"    {_mermaid_node(c, ids)}" for c in cluster.alone]
        lines += [f'    subgraph {name}moved [" "]'] if cluster.moved else []
        for number, (block, inside) in enumerate(cluster.moved.items()):
            lines += [f'      subgraph {name}block{number} ["{_entities(block)}"]'] if block else []
            lines += [f"        {_mermaid_node(c, ids)}" for c in inside]
            lines += ["      end"] if block else []
        lines += ["    end"] if cluster.moved else []
        lines.append("  end")
    for edge, whole in _drawn(system, clusters):
        target = f"level{whole.number}moved" if whole else ids[edge.target]
        arrow = MERMAID_ARROWS.get(edge.kind, "-->")
        lines.append(f"  {ids[edge.source]} {arrow}|{edge.role or edge.kind}| {target}")
    return "\n".join(lines) + "\n"


def _mermaid_node(component: Component, ids: dict[str, str]) -> str:
    start, end = MERMAID_NODES.get(component.kind, ("[", "]"))
    label = "<br>".join(_entities(line) for line in _two_lines(component).splitlines())
    return f'{ids[component.name]}{start}"{label}"{end}'


def _entities(text: str) -> str:
    """Write the characters that mean something to Mermaid as entities."""
    plain = "".join(c if c >= " " else " " for c in text)
    return "".join(f"#{ord(c)};" if c in '"#;<>&`\\' else c for c in plain)
