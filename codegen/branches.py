"""Choices by one condition, gathered under it: what is chosen is computed only where it is.

In: the program of a method, in which `choose` nodes with a flag stand for equations that run at
some times only. Out: the same program with `Branch` nodes: what nothing else needs stands inside.
"""

from __future__ import annotations

import operator

from nlc.codegen.program import Branch, Operand, Program, choose
from torch import fx


def gather_choices(program: Program) -> dict[fx.Node, fx.Node]:
    """Gather the choices of a finished program; returns what has taken the place of what."""
    swapped: dict[fx.Node, fx.Node] = {}
    while group := _group(program):
        swapped |= _Gathering(program, group).run()
    return swapped


def swap(value: Operand, swapped: dict[fx.Node, fx.Node]) -> Operand:
    """Put new nodes into a result."""
    if isinstance(value, dict):
        return {key: swap(inner, swapped) for key, inner in value.items()}
    return swapped.get(value, value) if isinstance(value, fx.Node) else value


def _group(program: Program) -> list[fx.Node]:
    """Find choices by one flag that do not need one another, in order."""
    group: list[fx.Node] = []
    for node in program.graph.nodes:
        if node.target is not choose or not node.args[0].meta.get("flag"):
            continue
        if not group or (node.args[0] is group[0].args[0] and not _needs(node) & set(group)):
            group.append(node)
    return group


def _owner(node: fx.Node) -> fx.Node | None:
    """The call that a node is one of the results of."""
    first = node.args[0] if node.target is operator.getitem else None
    return first if isinstance(first, fx.Node) and "results" in first.meta else None


def _needs(node: fx.Node) -> set[fx.Node]:
    """All that a node is made of."""
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting.extend(other.all_input_nodes)
    return found


class _Gathering:
    """One group of choices and what only they need."""

    def __init__(self, program: Program, group: list[fx.Node]):
        self.program, self.group = program, group
        self.inside = self._exclusive()

    def _exclusive(self) -> list[fx.Node]:
        """The nodes that nothing else needs, in order."""
        found: set[fx.Node] = set()
        for node in reversed(list(self.program.graph.nodes)):
            if node.op in ("placeholder", "get_attr", "output") or node in self.group:
                continue
            if node.users and all(user in found or self._chosen(user, node) for user in node.users):
                found.add(node)
        # a result stays where what it is a part of is
        found -= {n for n in found if _owner(n) is not None and _owner(n) not in found}
        return [node for node in self.program.graph.nodes if node in found]

    def _chosen(self, user: fx.Node, node: fx.Node) -> bool:
        return user in self.group and user.args[1] is node and user.args[2] is not node

    def run(self) -> dict[fx.Node, fx.Node]:
        """Put a branch in the place of the choices."""
        graph = self.program.graph
        names = [str(c.meta.get("name", "value")) for c in self.group]
        branch, around = self._branch(names)
        old = [choice.args[2] for choice in self.group]
        with graph.inserting_after(self.group[-1]):
            node = graph.call_function(branch, (self.group[0].args[0], *old, *around))
        node.meta["results"] = names
        parts = self._parts(node, names)
        for choice, part in zip(self.group, parts, strict=True):
            part.meta |= {k: v for k, v in choice.meta.items() if k != "above"}
            choice.replace_all_uses_with(part)
        self._after(parts)
        for gone in [*self.group, *reversed(self.inside)]:
            graph.erase_node(gone)
        return dict(zip(self.group, parts, strict=True))

    def _branch(self, names: list[str]) -> tuple[Branch, list[fx.Node]]:
        """Make the branch of what only the choices need; returns what it needs from around it."""
        body, around = Program(), list[fx.Node]()
        env: dict[Operand, fx.Node] = {}

        def known(node: fx.Node, place: str) -> fx.Node:
            inner = body.input(place)
            inner.meta |= node.meta
            return env.setdefault(node, inner)

        def outer(node: Operand) -> fx.Node:
            if node not in env:
                around.append(node)
                known(node, f"a{len(around)}")
            return env[node]

        for i, choice in enumerate(self.group):
            old = choice.args[2]
            assert isinstance(old, fx.Node)
            known(old, f"c{i}")
        for node in self.inside:
            env[node] = body.graph.node_copy(node, outer)
        results = []
        for choice, name in zip(self.group, names, strict=True):
            made = outer(choice.args[1])
            if choice.args[1] in self.inside:
                made.meta.setdefault("name", name)
                made.meta.setdefault("above", choice.meta.get("above", []))
            results.append(made)
        body.graph.output(tuple(results))
        gather_choices(body)
        places = [f"c{i}" for i in range(len(names))], [f"a{i + 1}" for i in range(len(around))]
        return Branch(body, tuple(places[0]), tuple(places[1]), tuple(names)), around

    def _parts(self, node: fx.Node, names: list[str]) -> list[fx.Node]:
        parts: list[fx.Node] = []
        for i in range(len(names)):
            with self.program.graph.inserting_after(parts[-1] if parts else node):
                parts.append(self.program.graph.call_function(operator.getitem, (node, i)))
        return parts

    def _after(self, parts: list[fx.Node]) -> None:
        """Move what needs the results behind them."""
        late, place = set(parts), parts[-1]
        for node in list(self.program.graph.nodes):
            if node is parts[0].args[0]:
                break
            if node not in self.group and late & set(node.all_input_nodes):
                late.add(node)
                place.append(node)
                place = node
