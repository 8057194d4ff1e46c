"""Find what of a block's equations is needed, and what of it a gradient reaches.

In: a block. Out: the streams that neither its outputs nor its memories and calls need, and those
through which no gradient passes back. All outputs, and all states at the end, are taken to be used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nlc.ir.expr import Expr, postorder
from nlc.ir.system import Block, Call, Equation, Update
from nlc.ir.windows import tokens_of

# what has no gradient, whatever it is made of
FLAT = frozenset({
    "stop", "position", "index", "identity", "const", "due", "sign",
    "lt", "le", "gt", "ge", "eq", "ne",
})  # fmt: skip


@dataclass(frozen=True)
class Reached:
    """What is not needed, and what is, but through which no gradient passes: names of streams."""

    idle: frozenset[str]
    flat: frozenset[str]


# of a model, whose streams are reassigned, all is taken to be used
ALL = Reached(frozenset(), frozenset())


def live_nodes(roots: Iterable[Expr]) -> set[int]:
    """Find the nodes that a gradient reaches from the roots, by id."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found.add(id(node))
            waiting += () if node.op in FLAT else node.args
    return found


def reach(block: Block) -> Reached:
    """Follow the equations of a block back from what is used."""
    made = {s.name: s.value for s in block.steps if isinstance(s, Equation)}
    defaults = {i.name: i.default for i in block.inputs if i.default is not None}
    roots: list[Expr] = [*defaults.values()]
    for step in block.steps:
        match step:
            case Call(inputs=inputs):
                roots += [value for _, value in inputs]
            case Update(memory=name):
                memory = block.memory(name)
                roots += [a.value for a in memory.update]
                # what is kept of a window is a state too
                roots += [node.args[0] for node in tokens_of(memory)]
                if memory.map.kind == "kernel":
                    roots += [e for pair in memory.pairs for e in pair]
            case Equation(value=value):
                # what a block remembers of earlier tokens is kept up to date in any case
                if any(node.op in ("shift", "conv") for node in postorder([value])):
                    roots.append(value)
    for memory in block.memories:
        # the model moves it, by what it keeps of its tokens
        roots += [node.args[0] for node in tokens_of(memory)] if memory.is_task else []
    outputs = [name for name, _ in block.outputs]
    live = _follow(made, outputs, roots, through=False)
    needed = _follow(made, outputs, roots, through=True)
    return Reached(frozenset(made) - needed, frozenset(made) & needed - live)


def _follow(
    made: dict[str, Expr], outputs: list[str], roots: list[Expr], through: bool
) -> set[str]:
    """Collect streams; `through` goes on where no gradient does."""
    found: set[str] = set()
    waiting = [made[name] for name in outputs if name in made]
    found |= set(outputs)
    waiting += roots
    while waiting:
        root = waiting.pop()
        inside = None if through else live_nodes([root])
        for node in postorder([root]):
            if node.op != "stream" or (inside is not None and id(node) not in inside):
                continue
            name = str(node.attr("name"))
            if name not in found:
                found.add(name)
                waiting += [made[name]] if name in made else []
    return found
