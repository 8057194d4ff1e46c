"""The end of a read, behind its last step that asks a state that moves: made for all tokens.

In: the program that reads a map over a run of chunks. Out: that program cut there, and what is left
of it: over the queries, what was read, and the parts that stay as they are.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable

from nlc.codegen import library_chunks, library_tiles
from nlc.codegen.program import Program
from torch import fx

ASKING = (library_chunks.read_part, library_tiles.read_turned, library_tiles.states_of_tiles)


def cut_end(program: Program, y: fx.Node, q: fx.Node) -> tuple[fx.Node, Program, fx.Node] | None:
    """Give where the program ends, the other one, and what that gives; None if nothing is left."""
    needed = _below([y])
    asking = [node for node in needed if node.target in ASKING]
    inside = _below(asking)
    made = {node for node in needed if node in asking or _below([node]) & set(asking)}
    crossing = [
        node for node in inside if node in made and any(u not in inside for u in node.users)
    ]
    if len(crossing) != 1 or y in inside or y.args[0] is crossing[0]:
        return None
    (last,) = crossing
    end = Program()
    new = {q: end.input("q"), last: end.input("y")}
    for node in program.graph.nodes:
        if node.target is builtins.getattr and node.args[1:] == ("still",):
            new[node] = end.input("still")
    for node in _between(program, y, set(new)):
        new[node] = end.graph.node_copy(node, new.__getitem__)
    return last, end, new[y]


def _between(program: Program, y: fx.Node, known: set[fx.Node]) -> list[fx.Node]:
    """List what y is made of from what is known, in order."""
    found, waiting = set[fx.Node](), [y]
    while waiting:
        node = waiting.pop()
        if node not in known and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return [node for node in program.graph.nodes if node in found]


def _below(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that some nodes are made of, with them."""
    found, waiting = set[fx.Node](), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found
