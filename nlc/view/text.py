"""The level graph as text for a terminal.

In: a `System`. Out: lines, fastest level first, and within a level the faster component before the
slower. What makes a memory's keys, values and gates stands at the memory; the way of the gradient
is left to the other formats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from nlc.ir.level_graph import Component
from nlc.ir.system import Level, System
from nlc.view.measure import columns, padded
from nlc.view.words import (
    amount,
    at,
    block_words,
    filled,
    frequency_words,
    learning,
    level_words,
    map_of,
    ranks,
)  # fmt: skip

# the widest column of names, and how many names stand in one line
WIDEST, MANY = 32, 8
# the order of uses
USES = ["query", "keys", "values", "keys and values"]
# what an edge says at its source
WAYS = {"reads": "read by", "initialises": "start of", "optimises": "moves"}


def as_text(system: System) -> str:
    """Write levels, their components, and how these are joined."""
    lines = [f"{system.name}  {system.about}".rstrip()]
    joined = _joined(system)
    names = [c.label for c in system.components if c.kind != "optimizer"]
    ways = [f"  {way}" for found in joined.values() for way in found]
    wide = min(max(map(columns, [*names, *ways]), default=0), WIDEST)
    for level in filled(system):
        rate = frequency_words(level.period)
        lines += ["", f"{level.name}  {level_words(level)}  (f = {rate})"]
        for number, same in enumerate(ranks(at(system, level))):
            lines += ["  | faster than"] if number else []
            lines += _rank(system, level, same, joined, wide)
    return "\n".join(lines) + "\n"


Joined = dict[str, dict[str, list[str]]]


def _joined(system: System) -> Joined:
    """For each component, by way, the names of what it is joined with."""
    place = {c.name: c for c in system.components}
    found: Joined = defaultdict(lambda: defaultdict(list))
    for edge in system.edges:
        a, b = place[edge.source], place[edge.target]
        if a.kind == "optimizer":
            continue
        if edge.kind == "generates" or edge.role in ("start", "pairs"):
            found[b.name][edge.role].append(_called(a, b))
        elif edge.role == "query":
            found[a.name]["query"].append(_called(b, a))
        elif edge.kind != "backprop":
            found[a.name][WAYS[edge.kind]].append(_called(b, a))
    return found


def _use(way: tuple[str, list[str]]) -> tuple[int, str]:
    return (USES.index(way[0]) if way[0] in USES else len(USES), way[0])


def _called(component: Component, seen_from: Component) -> str:
    """Name a component as it is seen from another: within a block by its own name."""
    return component.label if component.block == seen_from.block else component.name


def _rank(
    system: System, level: Level, same: list[Component], joined: Joined, wide: int
) -> Iterator[str]:
    blocks: dict[str, list[Component]] = defaultdict(list)
    for component in same:
        blocks["" if component.kind == "optimizer" else component.block].append(component)
    for block, here in blocks.items():
        states = [c for c in here if c.kind == "optimizer"]
        if states:
            yield from _states(system, level, states)
        if block:
            yield f"  {block_words(here[0])}"
        indent = "    " if block else "  "
        for component in here:
            if component.kind == "optimizer":
                continue
            learned = amount(component.parameters) if component.parameters else ""
            name = padded(component.label, wide + 4 - len(indent))
            yield f"{indent}{name}  {padded(map_of(component), 26)}  {learned:>8}".rstrip()
            for way, others in sorted(joined[component.name].items(), key=_use):
                yield f"      {padded(way, wide - 2)}  {_list(others)}"


def _states(system: System, level: Level, states: list[Component]) -> Iterator[str]:
    """Write the states of an optimizer that are equally fast in one line."""
    rule = states[0].name.rsplit(".", 2)[1]
    names = ", ".join(c.name.rsplit(".", 1)[1] for c in states)
    shapes = ", ".join(dict.fromkeys(c.map for c in states))
    period = states[0].period
    rate = "" if period == level.period else f", {period}"
    word = "state" if len(states) == 1 else "states"
    count = len(learning(system, level))
    moved = f"all {count} that learn here" if count > 1 else "what learns here"
    yield f"  {names}  {word} of {rule} ({shapes}){rate}: for {moved}"


def _list(names: list[str]) -> str:
    more = len(names) - MANY + 1
    return ", ".join(names if more < 2 else [*names[: MANY - 1], f"and {more} more"])
