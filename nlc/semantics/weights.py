"""Weights of a block: their level, their initial values, what stands for them in expressions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.shape import show
from nlc.ir.system import Initial, Map, Part, Weight
from nlc.semantics.axes import align, embeddings
from nlc.semantics.context import Bad, Context
from nlc.semantics.initials import resolve_initial
from nlc.semantics.maps import resolve_map
from nlc.semantics.nested import check_copied, restart_of
from nlc.semantics.records import Body, Stream
from nlc.semantics.values import Readable
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def declare_weights(block: BlockResolver, written: tree.Weights) -> None:
    """Declare weights; at a token level they are memories with `objective task`."""
    spans = written.name_spans or (written.span,) * len(written.names)
    try:
        map = resolve_map(block.context, written.map)
        if map.kind == "kernel":
            block.context.fail(
                "NL0211", "a kernel is a memory's map", written.map.span, "weights here",
                "write `memory A : kernel(softmax) at now { key k; value v }`",
            )  # fmt: skip
        lead = block.context.shape(written.axes)
        level = _weights_level(block, written)
        online = block.context.levels[level].period.unit == "tokens"
        if online:
            check_single(block, map, bool(lead), written.map.span)
        else:
            map = _weights_init(block, map, written.init)
            check_copied(block, map, lead, written.init, written.span)
    except Bad:
        for name, span in zip(written.names, spans, strict=True):
            if block.claim(name, "weights", span):
                block.streams[name] = Stream(name, span, state="bad")
        return
    for name, span in zip(written.names, spans, strict=True):
        if not block.claim(name, "weights", span):
            continue
        if online:
            memory = tree.Memory(
                (name,), written.map, written.axes, (level,), objective=tree.Name("task"),
                init=written.init or tree.Name("learned"), span=span,
            )  # fmt: skip
            # what a memory begins as is learned too, unless it is a copy
            learned = not isinstance(written.init, tree.From)
            block.bodies[name] = Body(
                name, with_optimizer(block, memory, level), level, map, lead, is_task=True,
                learned=learned, span=span,
            )  # fmt: skip
        else:
            block.weights[name] = Weight(name, map, level, lead, span=span)


def check_single(block: BlockResolver, map: Map, copies: bool, span: Span) -> None:
    """Refuse copies or slots of what reads streams as they are: a convolution, a table."""
    if map.kind in ("conv", "table") and copies:
        block.context.fail(
            "NL0518", f"a `{map.kind}` that learns while the sequence is read is one", span,
            "several copies of it", "leave the axes and slots out, or use another map for each",
        )  # fmt: skip


def with_optimizer(block: BlockResolver, memory: tree.Memory, level: str) -> tree.Memory:
    """Give what learns from the task at a token level the level's optimizer as its update."""
    optimizer = block.context.levels[level].optimizer
    if memory.update is not None or optimizer is None:
        return memory
    words = tuple(
        tree.Keyword(name, _number(value, optimizer.span), span=optimizer.span)
        for name, value in optimizer.arguments
    )
    rule = tree.Name(optimizer.rule, span=optimizer.span)
    return replace(memory, update=tree.Call(rule, (), words, span=optimizer.span))


def _number(value: float, span: Span) -> tree.Expr:
    text = str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(abs(value))
    if value >= 0:
        return tree.Number(text.lstrip("-"), span=span)
    return tree.Unary("-", tree.Number(text.lstrip("-"), span=span), span=span)


def declare_task_memory(
    block: BlockResolver, written: tree.Memory, name: str, level: str, map: Map, span: Span
) -> None:
    """Declare a memory with `objective task` at a step level: weights, one copy for all."""
    places = dict(written.clauses)
    try:
        nested = "reset" in places and isinstance(written.init, tree.From)
        for clause in ("slots", "route", "select", *(() if nested else ("reset", "through"))):
            if clause in places:
                block.context.fail(
                    "NL0514", f"`{clause}` does not belong here", places[clause],
                    f"at a step level `{name}` is weights, one copy for all sequences",
                    "place the memory at a level of tokens, or leave the clause out",
                    (written.span, "the memory"),
                )  # fmt: skip
        for clause in ("update", "state"):
            if clause in places or (clause == "state" and written.states):
                block.context.unsupported.append(
                    (
                        "NL0807",
                        f"`{clause}` of a memory at a step level",
                        written.span,
                        "leave it out for now",
                    )
                )
        map = _weights_init(block, map, written.init)
        lead = block.context.shape(written.axes)
        check_copied(block, map, lead, written.init, written.span)
        restart = restart_of(block, written, level) if nested else None
    except Bad:
        block.streams[name] = Stream(name, span, state="bad")
        return
    block.weights[name] = Weight(name, map, level, lead, restart, span)


def _weights_init(block: BlockResolver, map: Map, written: tree.Expr | tree.From | None) -> Map:
    if written is None or (isinstance(written, tree.Name) and written.id == "learned"):
        return map
    initial = resolve_initial(block, written)
    if initial.expr is None:
        return replace(map, parts=tuple(replace(p, initial=initial) for p in map.parts))
    return replace(
        map, parts=tuple(replace(p, initial=_fit(block, map, p, initial.expr)) for p in map.parts)
    )


def _fit(block: BlockResolver, map: Map, part: Part, expr: Expr) -> Initial:
    """Bring an initial value to a part's axes; those that it has not are alike."""
    same = [axis.size for axis in expr.shape] in ([axis.size for axis in part.shape], [])
    if len(map.parts) > 1 or not (same or len(embeddings(expr.shape, part.shape)) == 1):
        block.context.fail(
            "NL0510", "the initial value does not fit the weights", expr.span,
            f"this is {show(expr.shape)}", f"they are {show(part.shape)}",
        )  # fmt: skip
    aligned = expr if same else align(block.context, expr, (), part.shape, ())
    return Initial("expr", expr=aligned)


def _weights_level(block: BlockResolver, written: tree.Weights) -> str:
    if written.level is not None:
        level = block.known_level(written.level, written.span)
        if block.context.levels[level].period.unit == "always":
            block.context.fail(
                "NL0211", "weights cannot be at a level that is `always`", written.span,
                f"`{level}` stores nothing", "place them at a level of steps or tokens",
                (block.context.levels[level].span, "the level"),
            )  # fmt: skip
        if block.context.levels[level].period.unit == "tokens":
            need_optimizer(block.context, level, written.span)
        return level
    return block.resolver.step_level(written.span)


def need_optimizer(context: Context, name: str, span: Span) -> None:
    """Refuse what learns from the task at a token level that names no optimizer."""
    level = context.levels[name]
    if level.optimizer is None and name not in context.broken:
        context.fail(
            "NL0206", f"level `{name}` holds weights and needs an optimizer", span,
            "at a token level they learn while the sequence is read",
            f"write `level {name} {level.period}, optimizer sgd(lr = 0.1)`",
            (level.span, "the level"),
        )  # fmt: skip


def weight_readable(block: BlockResolver, weight: Weight) -> Readable:
    """Weights as something to apply."""
    parts = tuple(
        block.graph.make(
            "param", name=f"{weight.name}.{part.name}" if part.name else weight.name,
            shape=(*weight.lead, *part.shape), span=weight.span,
        )
        for part in weight.map.parts
    )  # fmt: skip
    return Readable(weight.name, weight.map, weight.lead, parts)
