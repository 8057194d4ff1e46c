"""The order of a token's steps, and cycles in time.

In: `Unordered` blocks. Out: `Block`s. A step comes after everything it needs at the same token; a
memory read with `prev` needs nothing of this token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nlc.ir.expr import Expr, postorder
from nlc.ir.online import waiting
from nlc.ir.system import (
    Block,
    Call,
    Equation,
    Memory,
    Step,
    Update,
)  # fmt: skip
from nlc.ir.windows import tokens_of
from nlc.semantics.bodies import finish_memory
from nlc.semantics.context import Context
from nlc.semantics.freeze import freeze
from nlc.semantics.records import Unordered

Node = tuple[str, str]


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
    frozen = freeze(context, block, items, memories)
    steps = tuple(_with_new_exprs(item.step, frozen.exprs) for item in ordered)
    done = _wait(tuple(frozen.memories[name] for name in memories))
    inputs = tuple(
        replace(i, default=frozen.exprs.get(id(i.default), i.default)) if i.default else i
        for i in block.inputs
    )
    everything = [e for item in items.values() for e in item.exprs]
    everything += [node.args[0] for m in done if m.is_task for node in tokens_of(m)]
    timed = any(n.op in ("position", "due") for n in postorder(everything))
    position = timed or any(
        m.reset is not None or (m.chunk > 1 and m.frozen)
        or context.levels[m.level].period.count > 1
        for m in done
        if not m.is_task
    )  # fmt: skip
    everything += [i.default for i in inputs if i.default is not None]
    # a key that no update asks for has no past to remember either
    slots = {n.attr("slot") for n in postorder(everything) if n.op in ("shift", "conv")}
    histories = tuple(h for h in block.histories if h.slot in slots)
    return Block(
        block.name, inputs, block.outputs, block.weights, done, steps, histories,
        position, block.span, block.comments,
    )  # fmt: skip


def _wait(memories: tuple[Memory, ...]) -> tuple[Memory, ...]:
    """Let resets wait for the task's updates, where they are of what it moves or copy that."""
    late = {memory.name for memory in waiting(memories)}
    return tuple(replace(m, reset=None, restart=m.reset) if m.name in late else m for m in memories)


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
        if memory.is_task:
            # the model moves it, when a window's loss is known
            continue
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
    if not names:
        (_, first), *_ = path
        span = left[path[0]].exprs[0].span
        context.faults.error(
            "NL0602", f"`{first}` depends on itself", span, "made here, and needed to make it",
            "an input's default is made of streams that do not need this input",
        )  # fmt: skip
        return
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


def _with_new_exprs(step: Step, exprs: dict[int, Expr]) -> Step:
    match step:
        case Equation(value=value):
            return replace(step, value=exprs.get(id(value), value))
        case Call(inputs=inputs):
            new = tuple((name, exprs.get(id(e), e)) for name, e in inputs)
            return replace(step, inputs=new)
        case _:
            return step
