"""What is allowed and probably not meant: warnings NL09xx.

In: a resolved system. Out: warnings. They never stop anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlc.diagnostics import Faults
from nlc.ir.expr import Expr, postorder
from nlc.ir.system import Block, Call, Equation, Level, Memory, Model, Step


def warn(
    faults: Faults, levels: tuple[Level, ...], blocks: tuple[Block, ...], model: Model | None
) -> None:
    """Record all warnings of a system."""
    for block in blocks:
        reached = _reached(block)
        for memory in block.memories:
            _memory(faults, block, memory, reached)
        for weight in block.weights:
            if ("weights", weight.name) not in reached:
                faults.warning(
                    "NL0905", f"no objective reaches `{weight.name}`", weight.span,
                    "no output of the block depends on it",
                    "use it, or delete it: it would never learn",
                )  # fmt: skip
    _levels(faults, levels, blocks, model)


def _exprs(block: Block) -> Iterator[Expr]:
    for step in block.steps:
        yield from _of_step(step)
    for memory in block.memories:
        yield from (a.value for a in memory.update)


def _of_step(step: Step) -> Iterator[Expr]:
    match step:
        case Equation(value=value):
            yield value
        case Call(inputs=inputs):
            yield from (e for _, e in inputs)
        case _:
            return


def _memory(faults: Faults, block: Block, memory: Memory, reached: set[tuple[str, str]]) -> None:
    if not _is_read(block, memory):
        faults.warning(
            "NL0901", f"`{memory.name}` is never read", memory.span, "nothing depends on it",
            f"read it: `{memory.name}(q)`, or delete it",
        )  # fmt: skip
    elif memory.learned and ("memory", memory.name) not in reached:
        faults.warning(
            "NL0905", f"no objective reaches `{memory.name}`", memory.span,
            "no output of the block depends on its learned initial value",
            "use it, or write `init zeros`",
        )  # fmt: skip
    if memory.map.kind == "kernel" or memory.is_task or not memory.update:
        return
    own = [a for a in memory.update if not a.var]
    if own and all(a.value.op == "state" for a in own):
        faults.warning(
            "NL0904", f"the update of `{memory.name}` never sets `self`", memory.span,
            "it keeps its initial value forever", "write `self = ...`",
        )  # fmt: skip
    grads = any(n.op == "grad" for n in postorder([a.value for a in memory.update]))
    if memory.written_objective is not None and not grads and not _asks_loss(block, memory):
        faults.warning(
            "NL0903", f"the update of `{memory.name}` ignores its objective",
            memory.written_objective, "no `grad` in the update",
            "use `grad`, or leave the objective out", (memory.span, "the memory"),
        )  # fmt: skip


def _asks_loss(block: Block, memory: Memory) -> bool:
    # `loss(M)` has become an expression over M's states before the token
    return any(f"loss({memory.name})" in step.text for step in block.steps
               if isinstance(step, Equation))  # fmt: skip


def _is_read(block: Block, memory: Memory) -> bool:
    for step in block.steps:
        for node in postorder(_of_step(step)):
            if node.op in ("state", "attend") and node.attr("memory") == memory.name:
                return True
    for other in block.memories:
        if other.name == memory.name:
            continue
        roots = [a.value for a in other.update] + [e for pair in other.pairs for e in pair]
        for node in postorder(roots):
            if node.op in ("state", "attend") and node.attr("memory") == memory.name:
                return True
        for variable in other.variables:
            if any(p.initial.source == memory.name for p in variable.parts):
                return True
    return False


def _reached(block: Block) -> set[tuple[str, str]]:
    """Find what the block's outputs depend on, over time."""
    makers: dict[str, Step] = {}
    for step in block.steps:
        if isinstance(step, Equation):
            makers[step.name] = step
        elif isinstance(step, Call):
            makers.update(dict.fromkeys(step.results, step))
    found: set[tuple[str, str]] = set()
    waiting: list[tuple[str, str]] = [("stream", name) for name, _ in block.outputs]
    while waiting:
        item = waiting.pop()
        if item in found:
            continue
        found.add(item)
        kind, name = item
        roots: list[Expr] = []
        if kind == "stream" and name in makers:
            roots = list(_of_step(makers[name]))
        elif kind == "stream":
            roots = [i.default for i in block.inputs if i.name == name and i.default is not None]
        elif kind == "memory":
            memory = block.memory(name)
            roots = [a.value for a in memory.update] + [e for p in memory.pairs for e in p]
            for variable in memory.variables:
                for part in variable.parts:
                    if part.initial.expr is not None:
                        roots.append(part.initial.expr)
                    if part.initial.source:
                        known = any(m.name == part.initial.source for m in block.memories)
                        waiting.append(("memory" if known else "weights", part.initial.source))
        elif kind == "weights":
            # the gradient of what goes back to others is theirs too
            restarts = [w.restart for w in block.weights if w.name == name]
            waiting += [("weights", r.source) for r in restarts if r is not None]
        for node in postorder(roots):
            if node.op == "stream":
                waiting.append(("stream", node.attr("name")))
            elif node.op in ("state", "attend"):
                waiting.append(("memory", node.attr("memory")))
            elif node.op == "param":
                waiting.append(("weights", str(node.attr("name")).split(".")[0]))
    return found


def _levels(
    faults: Faults, levels: tuple[Level, ...], blocks: tuple[Block, ...], model: Model | None
) -> None:
    used = {m.level for b in blocks for m in b.memories}
    used |= {w.level for b in blocks for w in b.weights}
    used |= {w.level for w in model.weights} if model else set()
    for level in levels:
        if level.name not in used and (blocks or model):
            faults.warning(
                "NL0902", f"level `{level.name}` has nothing in it", level.span,
                "no weights and no memory are at it", "put something there with `at`, or delete it",
            )  # fmt: skip
