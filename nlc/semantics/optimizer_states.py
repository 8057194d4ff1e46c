"""The states of a level's optimizer, as components: `slow.adamw.m`.

In: a level of steps, and what lives there. Out: components and edges. The optimizer of a token
level is part of the memories it moves, and its states are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from nlc.ir.level_graph import Component, Edge
from nlc.ir.system import Level, Period
from nlc.syntax import tree

SELF = "self"


def optimizer_states(level: Level, learning: list[Component]) -> Iterator[Component]:
    """List the states that an optimizer keeps for what it moves."""
    if level.optimizer is None or level.period.unit != "steps" or not learning:
        return
    rule = level.optimizer.definition
    entries = sum(c.size * c.copies for c in learning)
    tensors = sum(c.copies for c in learning)
    periods = _periods(rule.equations, level)
    for state in rule.states:
        scalar = state.shape == ()
        yield Component(
            f"{level.name}.{rule.name}.{state.name}", "", level.name,
            Period("steps", periods.get(state.name, level.period.count)), "optimizer",
            "1 for each" if scalar else "like each", size=tensors if scalar else entries,
        )  # fmt: skip
    for memory in rule.memories:
        for name in memory.names:
            yield Component(
                f"{level.name}.{rule.name}.{name}", "", level.name, level.period, "optimizer",
                memory.map.kind,
            )  # fmt: skip


def optimizer_edges(level: Level, learning: list[Component]) -> list[Edge]:
    """Join an optimizer's states with what they move, and with each other."""
    if level.optimizer is None or level.period.unit != "steps" or not learning:
        return []
    rule = level.optimizer.definition
    states = [s.name for s in rule.states] + [n for m in rule.memories for n in m.names]
    needs = _needs(rule, states)
    edges = []
    for target, sources in needs.items():
        for source, same_time in sorted(sources.items()):
            start = f"{level.name}.{rule.name}.{source}"
            when = "after" if same_time else "before"
            if target != SELF:
                reason = f"`{target}` takes `{source}` {when} its own update"
                end = f"{level.name}.{rule.name}.{target}"
                edges.append(Edge(start, end, "reads", reason, same_time))
                continue
            reason = f"{rule.name} moves it with `{source}` {when} its own update"
            edges += [Edge(start, c.name, "optimises", reason, same_time) for c in learning]
    return edges


def _needs(rule: tree.Rule, states: list[str]) -> dict[str, dict[str, bool]]:
    """Find what each state and `self` take: other states, True where after their own update."""
    known: dict[str, dict[str, bool]] = {}
    for memory in rule.memories:
        for name in memory.names:
            known[name] = {}
    for assign in _assigns(rule.equations):
        used: dict[str, bool] = {}
        for name in [n for value in assign.values for n in names_in(value)]:
            if name in states:
                used[name] = used.get(name, False) or name in known
            else:
                used |= {k: v or used.get(k, False) for k, v in known.get(name, {}).items()}
        for target in assign.targets:
            own = target.path[0]
            # a later line adds to what an earlier one of the same name took
            before = known.get(own, {})
            known[own] = before | {k: v or before.get(k, False) for k, v in used.items()}
            if own != SELF:
                known[own].pop(own, None)
    return {name: known[name] for name in (*states, SELF) if known.get(name)}


def _assigns(statements: tuple[tree.Stmt, ...]) -> Iterator[tree.Assign]:
    for statement in statements:
        match statement:
            case tree.Assign():
                yield statement
            case tree.Every() | tree.When() | tree.Repeat():
                yield from _assigns(statement.body)
            case tree.Share():
                pass


def _periods(statements: tuple[tree.Stmt, ...], level: Level) -> Mapping[str, int]:
    """Find the states that are set only inside `every N steps { }`, with their periods."""
    assert level.optimizer is not None
    given = {**dict(level.optimizer.arguments)}
    found: dict[str, list[int]] = {}

    def walk(body: tuple[tree.Stmt, ...], calls: int) -> None:
        for statement in body:
            match statement:
                case tree.Every(period=period, body=inside):
                    count = period.count
                    times = 1.0
                    if isinstance(count, tree.Number):
                        times = float(count.value)
                    elif isinstance(count, tree.Name):
                        times = given.get(count.id, 1.0)
                    # a block in a block runs at the calls at which both do
                    walk(inside, math.lcm(calls, int(times)))
                case tree.When(body=inside) | tree.Repeat(body=inside):
                    walk(inside, calls)
                case tree.Assign(targets=targets):
                    for target in targets:
                        found.setdefault(target.path[0], []).append(calls)
                case tree.Share():
                    pass

    walk(statements, 1)
    return {name: level.period.count * min(calls) for name, calls in found.items()}


def names_in(node: object) -> Iterator[str]:
    """Yield the names in an expression of the tree.

    >>> list(names_in(tree.Binary("+", tree.Name("m"), tree.Number("1"))))
    ['m']
    """
    match node:
        case tree.Name(id=name):
            yield name
        case tree.Keyword(value=value):
            yield from names_in(value)
        case tree.Attribute(base=base):
            yield from names_in(base)
        case tree.Node():
            for field in node.__dataclass_fields__:
                if field != "span":
                    yield from names_in(getattr(node, field))
        case tuple():
            for item in node:
                yield from names_in(item)
