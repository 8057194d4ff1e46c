"""The reads that a chunk freezes: those of a memory on which its own update depends.

In: a block's steps and memories. Out: the same with those reads at the state of the chunk's start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.system import FrozenRead, Memory, Statement
from nlc.semantics.context import Context
from nlc.semantics.records import Unordered

if TYPE_CHECKING:
    from nlc.semantics.order import Item, Node


@dataclass
class Frozen:
    """Expressions after freezing, by the identity of those before."""

    exprs: dict[int, Expr]
    memories: dict[str, Memory]


def freeze(
    context: Context, block: Unordered, items: dict[Node, Item], memories: dict[str, Memory]
) -> Frozen:
    """Take the frozen reads at the chunk's start, everywhere they stand."""
    if all(memory.chunk == 1 for memory in memories.values()):
        return Frozen({}, memories)
    frozen = _frozen_reads(block, items, memories)
    # what learns from the task moves in no step
    done = {name: m for name, m in memories.items() if ("memory", name) not in items}
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
                # a memory inside a rule is a state of what the rule moves
                and node.attr("memory") in memories
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
