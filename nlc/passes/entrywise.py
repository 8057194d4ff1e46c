"""Find states that move entry by entry once the gradients of a chunk are known.

In: a memory whose update reads the state before its chunk. Out: an `Entry` for each part of each
state, in an order in which they can run through the chunk, and at the ends of which period a token
runs by itself; or None.

A state's new value is a gate times the old one plus something that reads no running state but
those of entries before it, of which all tokens of the chunk are known by then: ATLAS adds up its
gradients in S, entry by entry, then all S are made orthogonal at once, then M adds these up. What
an `every PERIOD` block does at the ends of chunks may be anything: there the update runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import networkx as nx

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.normal_form import Entry
from nlc.ir.system import Memory
from nlc.ir.windows import periods
from nlc.passes.explicit import explicit_memory
from nlc.passes.simplify import build, simplify

State = tuple[str, str]
# gate * state + added; None is 0
Linear = tuple[Expr | None, Expr | None]


def entrywise(graph: Graph, memory: Memory) -> tuple[tuple[Entry, ...], int] | None:
    """Return the entries and the period, 0 without one; None where there is no such form."""
    memory = explicit_memory(graph, memory)
    counts = periods(memory)
    if memory.window > 1 or memory.sums or any(n % memory.chunk for n in counts):
        return None
    values = _inside(graph, memory)
    makers = _makers(values)
    cut = {state: _cut(graph, memory, state, value, makers) for state, value in values.items()}
    needs = nx.DiGraph()
    needs.add_nodes_from(values)
    for state, value in cut.items():
        for node in postorder([value]):
            other = _running(memory, node)
            if other is not None and other != state:
                needs.add_edge(other, state)
    if any(len(found) > 1 for found in nx.strongly_connected_components(needs)):
        return None
    place = {state: i for i, state in enumerate(values)}
    order = nx.lexicographical_topological_sort(needs, key=place.__getitem__)
    entries: list[Entry] = []
    for state in order:
        found = _linear(graph, memory, state, cut[state])
        if found is None:
            return None
        entries.append(Entry(state[0], state[1], found[0], found[1]))
    return tuple(entries), min(counts, default=0)


def _inside(graph: Graph, memory: Memory) -> dict[State, Expr]:
    """The new value of every part of every state, at tokens at which no period ends."""

    def never(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        return graph.constant(0.0) if node.op == "due" else None

    written = {(a.var, a.part): a.value for a in memory.update}
    simple = simplify(graph, rewrite(graph, written.values(), never))
    given = dict(zip(written, simple, strict=True))
    found = {}
    for variable in memory.variables:
        for part in variable.parts:
            state = (variable.name, part.name)
            shape = (*memory.lead, *part.shape)
            old = _leaf(graph, memory, state, "prev", shape)
            found[state] = given.get(state, old)
    return found


def _leaf(graph: Graph, memory: Memory, state: State, when: str, shape: object) -> Expr:
    var, part = state
    return graph.make("state", memory=memory.name, var=var, part=part, when=when, shape=shape)


def _makers(values: Mapping[State, Expr]) -> dict[int, State]:
    """Say by identity which nodes are the new value of a state, under whatever name."""
    found: dict[int, State] = {}
    for state, value in values.items():
        layers = [value]
        while layers[-1].op == "let":
            layers.append(layers[-1].args[0])
        if layers[-1].args:
            for layer in layers:
                found.setdefault(id(layer), state)
    return found


def _cut(
    graph: Graph, memory: Memory, state: State, value: Expr, makers: Mapping[int, State]
) -> Expr:
    """Put what other states have become in the place of how they become it."""
    others = {key for key, maker in makers.items() if maker != state}
    new: dict[int, Expr] = {}
    stack = [value]
    while stack:
        node = stack[-1]
        if id(node) in new:
            stack.pop()
        elif id(node) in others:
            new[id(node)] = _leaf(graph, memory, makers[id(node)], "post", node.shape)
            stack.pop()
        elif missing := [arg for arg in node.args if id(arg) not in new]:
            stack += missing
        else:
            args = [new[id(arg)] for arg in node.args]
            same = all(a is b for a, b in zip(args, node.args, strict=True))
            new[id(node)] = (
                node if same else graph.make(node.op, *args, span=node.span, **dict(node.attrs))
            )
            stack.pop()
    return new[id(value)]


def _running(memory: Memory, node: Expr) -> State | None:
    """Name the state of the memory, before or after the token, that a leaf reads."""
    if node.op != "state" or node.attr("memory") != memory.name:
        return None
    if node.attr("when") not in ("prev", "post"):
        return None
    return str(node.attr("var")), str(node.attr("part"))


# ---- one state ---------------------------------------------------------------------------------


def _linear(graph: Graph, memory: Memory, state: State, value: Expr) -> Linear | None:
    """Split a new value into gate * state + added, or give None."""
    found: dict[int, Linear] = {}
    for node in postorder([value]):
        if _running(memory, node) == state:
            found[id(node)] = graph.constant(1.0), None
        elif any(id(arg) in found for arg in node.args):
            row = ROWS.get(node.op)
            split = None if row is None else row(graph, node, found)
            if split is None:
                return None
            found[id(node)] = split
    return found.get(id(value), (None, value))


Found = Mapping[int, Linear]


def _let(graph: Graph, node: Expr, found: Found) -> Linear | None:
    return found[id(node.args[0])]


def _neg(graph: Graph, node: Expr, found: Found) -> Linear | None:
    gate, added = found[id(node.args[0])]
    return _flip(graph, gate), _flip(graph, added)


def _flip(graph: Graph, x: Expr | None) -> Expr | None:
    return None if x is None else build(graph, "neg", x)


def _sum(graph: Graph, node: Expr, found: Found) -> Linear | None:
    left, right = (found.get(id(arg), (None, arg)) for arg in node.args)
    return _both(graph, node.op, left[0], right[0]), _both(graph, node.op, left[1], right[1])


def _both(graph: Graph, op: str, a: Expr | None, b: Expr | None) -> Expr | None:
    if a is None:
        return _flip(graph, b) if op == "sub" else b
    return a if b is None else build(graph, op, a, b)


def _mul(graph: Graph, node: Expr, found: Found) -> Linear | None:
    a, b = node.args
    if id(a) in found and id(b) in found:
        return None
    (gate, added), w = (found[id(a)], b) if id(a) in found else (found[id(b)], a)
    scaled = (None if x is None else build(graph, "mul", w, x) for x in (gate, added))
    first, second = scaled
    return first, second


def _div(graph: Graph, node: Expr, found: Found) -> Linear | None:
    a, b = node.args
    if id(b) in found:
        return None
    gate, added = found[id(a)]
    return (
        None if gate is None else build(graph, "div", gate, b),
        None if added is None else build(graph, "div", added, b),
    )


def _where(graph: Graph, node: Expr, found: Found) -> Linear | None:
    condition, *branches = node.args
    if id(condition) in found:
        return None
    zero = graph.constant(0.0)
    yes, no = (found.get(id(branch), (None, branch)) for branch in branches)
    pairs = zip(yes, no, strict=True)
    gate, added = (
        None if a is None and b is None else build(graph, "where", condition, a or zero, b or zero)
        for a, b in pairs
    )
    return gate, added


def _transpose(graph: Graph, node: Expr, found: Found) -> Linear | None:
    gate, added = (_turned(graph, x) for x in found[id(node.args[0])])
    return gate, added


def _turned(graph: Graph, x: Expr | None) -> Expr | None:
    if x is None or not x.shape:
        return x
    if len(x.shape) == 1:
        return build(graph, "unsqueeze", x, axes=(-1,))
    return build(graph, "transpose", x)


ROWS: Mapping[str, Callable[[Graph, Expr, Found], Linear | None]] = {
    "let": _let,
    "neg": _neg,
    "add": _sum,
    "sub": _sum,
    "mul": _mul,
    "div": _div,
    "where": _where,
    "transpose": _transpose,
}
