"""The level graph as plain data, for JSON: `docs/how-to/graph.md` has its shape.

In: a `System`. Out: dicts, lists, texts and numbers; no infinity, which JSON does not have.
"""

from __future__ import annotations

from typing import Any

from nlc.ir.level_graph import Component, Edge
from nlc.ir.system import Level, Period, System
from nlc.view.words import map_of


def as_json(system: System) -> dict[str, Any]:
    """Return levels, components and edges, fastest first."""
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
        "role": edge.role or None,
        "reason": edge.reason,
        "same_time": edge.same_time,
        "across": edge.across,
    }
