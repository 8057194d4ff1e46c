"""The order of a token's steps, cycles in time, and the reads that a chunk freezes.

In: `Unordered` blocks. Out: `Block`s. A step comes after everything it needs at the same token; a
memory read with `prev` needs nothing of this token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.system import (
    Block,
    Call,
    Equation,
    FrozenRead,
    Memory,
    Statement,
    Step,
    Update,
)  # fmt: skip
from nlc.semantics.bodies import finish_memory
from nlc.semantics.context import Context
from nlc.semantics.records import Unordered

Node = tuple[str, str]


def varying(roots: Iterable[Expr]) -> Iterator[Expr]:
    """Yield streams that stand bare: not in an objective, not reduced over a window's tokens."""
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op in ("stream", "position"):
            yield node
        elif node.op == "grad":
            stack.extend(node.args[1:])
        elif node.op != "window":
            stack.extend(node.args)


@dataclass
class Item:
    """A step with the expressions it evaluates."""

    node: Node
    step: Step
    place: tuple[int, int]
    exprs: tuple[Expr, ...]
    needs: set[Node]


def order(context: Context, block: Unordered) -> Block:
    """Put a block's steps in order; a cycle in time is the fault NL0601."""
    memories = {body.name: finish_memory(context, body) for body in block.bodies}
    items = _items(block, memories)
    _needs(block, items)
    ordered = _sort(context, items, memories)
    frozen = _freeze(context, block, items, memories)
    steps = tuple(_with_new_exprs(item.step, frozen.exprs) for item in ordered)
    done = tuple(frozen.memories[name] for name in memories)
    inputs = tuple(
        replace(i, default=frozen.exprs.get(id(i.default), i.default)) if i.default else i
        for i in block.inputs
    )
    everything = [e for item in items.values() for e in item.exprs]
    timed = any(n.op in ("position", "due") for n in postorder(everything))
    position = timed or any(
        m.reset is not None or (m.chunk > 1 and m.frozen)
        or context.levels[m.level].period.count > 1
        for m in done
    )  # fmt: skip
    return Block(
        block.name, inputs, block.outputs, block.weights, done, steps, tuple(block.histories),
        position, block.span, block.comments,
    )  # fmt: skip


def _items(block: Unordered, memories: dict[str, Memory]) -> dict[Node, Item]:
    items: dict[Node, Item] = {}
    for index, equation in enumerate(block.equations):
        node = ("stream", equation.name)
        place = (equation.span.start, index)
        items[node] = Item(node, equation, place, (equation.value,), set())
    for call in block.calls:
        node = ("call", call.instance)
        exprs = tuple(expr for _, expr in call.inputs)
        items[node] = Item(node, call, (call.span.start, 0), exprs, set())
    for memory in memories.values():
        node = ("memory", memory.name)
        exprs = tuple(a.value for a in memory.update)
        if memory.map.kind == "kernel":
            exprs = tuple(e for pair in memory.pairs for e in pair)
        items[node] = Item(node, Update(memory.name), (memory.span.start, 0), exprs, set())
    return items


def _same_time(expr: Expr) -> set[Node]:
    found: set[Node] = set()
    for node in postorder([expr]):
        if node.op == "stream":
            found.add(("stream", node.attr("name")))
        elif node.op in ("state", "attend") and node.attr("when") == "post":
            found.add(("memory", node.attr("memory")))
    return found


def _needs(block: Unordered, items: dict[Node, Item]) -> None:
    results = {name: ("call", call.instance) for call in block.calls for name in call.results}
    defaults = {i.name: _same_time(i.default) for i in block.inputs if i.default is not None}
    for item in items.values():
        waiting = [need for expr in item.exprs for need in _same_time(expr)]
        while waiting:
            need = waiting.pop()
            if need[0] == "stream" and need[1] in results:
                need = results[need[1]]
            if need in items:
                item.needs.add(need)
            elif need[0] == "stream" and need[1] in defaults:
                waiting.extend(defaults[need[1]])


def _sort(context: Context, items: dict[Node, Item], memories: dict[str, Memory]) -> list[Item]:
    left = sorted(items.values(), key=lambda item: (item.place, item.node))
    done: set[Node] = set()
    ordered: list[Item] = []
    while left:
        ready = next((item for item in left if item.needs <= done), None)
        if ready is None:
            _cycle(context, {item.node: item for item in left}, done, memories)
            return ordered + left
        left.remove(ready)
        done.add(ready.node)
        ordered.append(ready)
    return ordered


def _cycle(
    context: Context, left: dict[Node, Item], done: set[Node], memories: dict[str, Memory]
) -> None:
    node = next(iter(left))
    path: list[Node] = []
    while node not in path:
        path.append(node)
        node = next(n for n in sorted(left[node].needs) if n not in done)
    path = path[path.index(node) :]
    names = [name for kind, name in path if kind == "memory"]
    memory = memories[names[0]]
    # the place that reads it at this token
    reader = path[path.index(("memory", memory.name)) - 1]
    read = next(
        n for n in postorder(left[reader].exprs)
        if n.op in ("state", "attend", "apply") and n.has("memory")
        and n.attr("memory") == memory.name
        and (n.op != "state" or n.attr("when") == "post")
    )  # fmt: skip
    better = next(
        (n for n in postorder(left[reader].exprs) if n.op == "apply" and read in n.args), read
    )
    way = " -> ".join(f"`{name}`" for _, name in [*reversed(path), path[-1]])
    context.faults.error(
        "NL0601", f"a cycle in time through `{memory.name}`", better.span,
        f"reads `{memory.name}` after this token's update, which needs this value",
        f"read it before the update: `prev({memory.name})(...)`; the cycle is {way}",
        (memory.span, f"`{memory.name}` is updated with it"),
    )  # fmt: skip


# ---- frozen reads ------------------------------------------------------------------------------


@dataclass
class Frozen:
    """Expressions after freezing, by the identity of those before."""

    exprs: dict[int, Expr]
    memories: dict[str, Memory]


def _freeze(
    context: Context, block: Unordered, items: dict[Node, Item], memories: dict[str, Memory]
) -> Frozen:
    if all(memory.chunk == 1 for memory in memories.values()):
        return Frozen({}, memories)
    frozen = _frozen_reads(block, items, memories)
    done: dict[str, Memory] = {}
    exprs: dict[int, Expr] = {}
    graph = context.graph
    waiting = [item for item in items.values() if item.node[0] == "memory"]
    seen: set[Node] = set()
    while waiting:
        # post reads of another memory need that memory's frozen update first
        item = next(
            (i for i in waiting if {n for n in i.needs if n[0] == "memory"} <= seen), waiting[0]
        )
        waiting.remove(item)
        seen.add(item.node)
        memory = memories[item.node[1]]
        # where memories need one another, their reads are `prev`, which look at no update
        others = memories | done
        done[memory.name] = _freeze_memory(graph, memory, frozen[item.node], others)
    for item in items.values():
        new = _rewrite(graph, list(item.exprs), frozen[item.node], done)
        exprs |= {id(old): e for old, e in zip(item.exprs, new, strict=True)}
    for known in block.inputs:
        if known.default is not None:
            reads_of = frozen["stream", known.name]
            exprs[id(known.default)] = _rewrite(graph, [known.default], reads_of, done)[0]
    reads: dict[str, list[FrozenRead]] = {name: [] for name in memories}
    for node in (node for found in frozen.values() for node in found.values()):
        reads[node.attr("memory")].append(
            FrozenRead(node.attr("memory"), node.span.text, node.span)
        )
    return Frozen(exprs, {
        name: replace(memory, frozen=tuple(dict.fromkeys(
            sorted(reads[name], key=lambda r: r.span.start)
        )))
        for name, memory in done.items()
    })  # fmt: skip


def _frozen_reads(
    block: Unordered, items: dict[Node, Item], memories: dict[str, Memory]
) -> dict[Node, dict[int, Expr]]:
    """Find, for each step, its reads of a memory on which that memory's own update depends.

    The same read may be frozen in one step and exact in another, which no update depends on.
    """
    edges: dict[Node, set[Node]] = {}
    reads: dict[tuple[Node, int], Expr] = {}
    results = {name: ("call", call.instance) for call in block.calls for name in call.results}
    defaults = {i.name: i.default for i in block.inputs if i.default is not None}

    def link(a: Node, b: Node) -> None:
        edges.setdefault(a, set()).add(b)

    holders = [(item.node, item.exprs) for item in items.values()]
    holders += [(("stream", name), (expr,)) for name, expr in defaults.items()]
    for holder, exprs in holders:
        for node in postorder(exprs):
            if node.op == "stream":
                name = node.attr("name")
                link(results.get(name, ("stream", name)), holder)
            elif node.op in ("state", "attend"):
                link(("memory", node.attr("memory")), holder)
            elif (
                node.op in ("apply", "grad")
                and node.attr("memory")
                and not any(a.op == "variable" for a in node.args[1:])
            ):
                reads[holder, id(node)] = node
                link(("read", f"{holder} {id(node)}"), holder)
                link(("memory", node.attr("memory")), holder)
    found: dict[Node, dict[int, Expr]] = {holder: {} for holder, _ in holders}
    for (holder, key), node in reads.items():
        name = node.attr("memory")
        if memories[name].chunk == 1 or _is_initial(node):
            continue
        if ("memory", name) in _reachable(edges, ("read", f"{holder} {key}")):
            found[holder][key] = node
    return found


def _is_initial(node: Expr) -> bool:
    return any(a.op == "state" and a.attr("when") == "initial" for a in node.args[1:])


def _reachable(edges: dict[Node, set[Node]], start: Node) -> set[Node]:
    seen: set[Node] = set()
    stack = [start]
    while stack:
        for node in edges.get(stack.pop(), ()):
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


def _freeze_memory(
    graph: Graph, memory: Memory, frozen: dict[int, Expr], done: dict[str, Memory]
) -> Memory:
    roots = [a.value for a in memory.update]
    roots += [e for s in memory.statements for _, e in s.values]
    roots += [e for pair in memory.pairs for e in pair]
    new = _rewrite(graph, roots, frozen, done, memory)
    values = iter(new)
    update = tuple(replace(a, value=next(values)) for a in memory.update)
    statements = tuple(
        Statement(s.target, tuple((p, next(values)) for p, _ in s.values), s.text, s.span)
        for s in memory.statements
    )
    pairs = tuple((next(values), next(values)) for _ in memory.pairs)
    return replace(memory, update=update, statements=statements, pairs=pairs)


def _rewrite(
    graph: Graph,
    roots: list[Expr],
    frozen: dict[int, Expr],
    done: dict[str, Memory],
    own: Memory | None = None,
) -> list[Expr]:
    def replace_read(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if id(node) not in frozen:
            return None
        name = node.attr("memory")
        memory = own if own is not None and own.name == name else done[name]
        first, *parts = args
        points = [_shadow(graph, part, memory, done) for part in parts]
        return graph.make(node.op, first, *points, span=node.span, **dict(node.attrs))

    return rewrite(graph, roots, replace_read)


def _shadow(graph: Graph, value: Expr, memory: Memory, done: dict[str, Memory]) -> Expr:
    """The same value with the memory at its chunk's start; extra states keep running."""
    states = {v.name for v in memory.variables if v.name}
    # what stands under an extra state's equation, or inside a read, is not the memory itself
    kept: set[int] = set()
    new: dict[int, Expr] = {}
    stack: list[tuple[Expr, bool]] = [(value, False)]
    while stack:
        node, ready = stack.pop()
        if id(node) in new:
            continue
        stop = (node.op == "let" and node.attr("name") in states) or node.op in ("apply", "grad")
        if stop:
            new[id(node)] = node
            kept.add(id(node))
        elif node.op == "state" and node.attr("memory") == memory.name and not node.attr("var"):
            new[id(node)] = _state_at_start(graph, node, memory, done)
        elif ready or not node.args:
            args = tuple(new[id(a)] for a in node.args)
            same = all(a is b for a, b in zip(args, node.args, strict=True))
            new[id(node)] = (
                node if same else graph.make(node.op, *args, span=node.span, **dict(node.attrs))
            )
        else:
            stack.append((node, True))
            stack.extend((a, False) for a in node.args)
    return new[id(value)]


def _state_at_start(graph: Graph, leaf: Expr, memory: Memory, done: dict[str, Memory]) -> Expr:
    match leaf.attr("when"):
        case "prev":
            attrs = dict(leaf.attrs) | {"when": "start"}
            return graph.make("state", span=leaf.span, **attrs)
        case "post":
            # this token's equations applied to the state at the chunk's start
            whole = done.get(memory.name, memory)
            value = next(a.value for a in whole.update if not a.var and a.part == leaf.attr("part"))
            return _shadow(graph, value, whole, done)
        case _:
            return leaf


def _with_new_exprs(step: Step, exprs: dict[int, Expr]) -> Step:
    match step:
        case Equation(value=value):
            return replace(step, value=exprs.get(id(value), value))
        case Call(inputs=inputs):
            new = tuple((name, exprs.get(id(e), e)) for name, e in inputs)
            return replace(step, inputs=new)
        case _:
            return step
