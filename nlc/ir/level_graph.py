"""The level graph: a system's components, how knowledge passes between them, and their order.

    Component = weights, a memory, an extra state, a learned start or a state of an optimizer
    Edge      = source -> target: how what the source knows reaches the target, and why

A is faster than B if it has the higher frequency, or if both have the same and B's state at a time
needs A's state at that time (Nested Learning, arXiv:2512.24695, definition 2). `rank` numbers the
antichains of that order from 0, the fastest.

In: nothing. Out: data, and on request a networkx graph. What the edges of a system are is found in
`semantics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from nlc.ir.system import Period

ComponentKind = Literal["weights", "memory", "state", "start", "pairs", "optimizer"]
EdgeKind = Literal["generates", "reads", "initialises", "optimises", "backprop"]

# where two components are joined in several ways, the first of these is named first
EDGE_KINDS: dict[EdgeKind, str] = {
    "generates": "makes its keys, values or gates",
    "reads": "gives its state to be read",
    "initialises": "gives its first state",
    "optimises": "is a state of its optimizer",
    "backprop": "passes the gradient back",
}


@dataclass(frozen=True)
class Component:
    """Something that changes at a level, once per instance of its block.

    `name` is `BLOCK.NAME`, for an extra state `BLOCK.MEMORY.STATE`, for a learned start
    `BLOCK.MEMORY.start`, for learned pairs `BLOCK.MEMORY.pairs`, for the model's own weights their
    name, for an optimizer's state `LEVEL.RULE.STATE`. `map` and `lead` are words for people; `size`
    counts the entries of one instance (a memory's: of one sequence), `parameters` the learned ones.
    """

    name: str
    block: str
    level: str
    period: Period
    kind: ComponentKind
    map: str
    lead: str = ""
    size: int = 0
    parameters: int = 0
    copies: int = 1
    rank: int = 0

    @property
    def label(self) -> str:
        """Its name within its block."""
        return self.name.removeprefix(f"{self.block}.") if self.block else self.name


@dataclass(frozen=True)
class Edge:
    """Knowledge passes from `source` to `target`.

    `same_time`: the target's state needs the source's of the same time. `across`: it passes from
    one instance of a block to another, or between a block and the model. `role` says in a word what
    it is for a memory at one end: `keys`, `values`, `gates`, `query`, `out`,
    `start`, `pairs`.
    """

    source: str
    target: str
    kind: EdgeKind
    reason: str
    same_time: bool = False
    across: bool = False
    role: str = ""


def networkx_graph(components: Iterable[Component], edges: Iterable[Edge]) -> Any:
    """Return a networkx.DiGraph; an edge has `kind`, `reason` and, if it is several, `kinds`."""
    from networkx import DiGraph

    graph: Any = DiGraph()
    for c in components:
        graph.add_node(
            c.name,
            level=c.level,
            rank=c.rank,
            period=str(c.period),
            frequency=c.period.frequency,
            kind=c.kind,
            block=c.block,
            map=f"{c.map}, {c.lead}" if c.lead else c.map,
            size=c.size,
            parameters=c.parameters,
            copies=c.copies,
        )
    order = list(EDGE_KINDS)
    for e in sorted(edges, key=lambda e: order.index(e.kind)):
        if graph.has_edge(e.source, e.target):
            known = graph.edges[e.source, e.target]
            known["kinds"] += (e.kind,) if e.kind not in known["kinds"] else ()
            known["reason"] += f"; {e.reason}"
            known["same_time"] |= e.same_time
            known["across"] &= e.across
        else:
            graph.add_edge(
                e.source,
                e.target,
                kind=e.kind,
                kinds=(e.kind,),
                reason=e.reason,
                same_time=e.same_time,
                across=e.across,
            )
    return graph
