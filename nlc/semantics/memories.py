"""What can be known of a memory without its body: leading axes, pairs, states, what reads it.

In: a `Body` and the block it stands in. Each thing is found out when it is first asked for, because
streams and memories may stand in any order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.shape import Axis, Shape, show
from nlc.ir.system import (
    Initial,
    Part,
    Variable,
)  # fmt: skip
from nlc.semantics.axes import enter
from nlc.semantics.context import Bad, Context
from nlc.semantics.records import Body
from nlc.semantics.trees import mentions
from nlc.semantics.values import Readable, Value, bare, pack
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def lead_of(block: BlockResolver, body: Body) -> Shape:
    """Find a memory's leading axes: one copy per leading axis of its key."""
    if body.lead is not None:
        return body.lead
    declared: Shape | None = None
    if body.written.axes:
        declared = block.context.shape(body.written.axes)
    if body.busy or any(_being_made(block, key) for key in body.written.keys):
        # the key depends on the memory's own read: begin from what is written
        body.guessed = True
        return declared or ()
    body.busy = True
    found = declared
    for key in body.written.keys:
        shape = pair_value(block, body, key).shape
        lead = _without_inputs(block, body, shape, key)
        if found is not None and [a.name for a in found] != [a.name for a in lead]:
            block.context.fail(
                "NL0412", f"the copies of `{body.name}` do not agree", key.span,
                f"this key gives one copy per {show(lead)}",
                f"write the leading axes: `memory {body.name}[...]`",
                (body.written.span, f"here one per {show(found)}"),
            )  # fmt: skip
        found = lead
    body.busy = False
    lead = found or ()
    parts = {axis.name for part in body.map.parts for axis in part.shape}
    for axis in lead:
        if axis.name in parts:
            block.context.fail(
                "NL0412", f"`{axis.name}` is a leading axis and an axis of the map",
                body.written.span, f"`{body.name}` has one copy per {show(lead)}",
                "give the two sizes different dims",
            )  # fmt: skip
    body.lead = lead
    return lead


def pair_value(block: BlockResolver, body: Body, written: tree.Expr) -> Expr:
    """Resolve a key or value once: a call in it makes one instance."""
    place = (body.name, id(written))
    if place not in block.pair_values:
        block.pair_values[place] = block.pair_scope(body).plain(written)
    return block.pair_values[place]


def _being_made(block: BlockResolver, written: tree.Expr) -> bool:
    """Say whether an expression needs a stream that is being resolved right now."""
    waiting, seen = [written], set()
    while waiting:
        expr = waiting.pop()
        for name, stream in block.streams.items():
            if name in seen or not mentions(expr, {name}):
                continue
            seen.add(name)
            if stream.state == "busy":
                return True
            if stream.state == "waiting" and stream.statement is not None:
                waiting.extend(stream.statement.values)
    return False


def _without_inputs(block: BlockResolver, body: Body, shape: Shape, key: tree.Expr) -> Shape:
    if body.map.kind == "kernel":
        values = body.written.values
        value = pair_value(block, body, values[0]) if values else None
        if not shape or value is None or not value.shape:
            block.context.fail(
                "NL0509", "a softmax memory needs vectors as key and value", key.span,
                f"this is {show(shape)}", "write `key k` and `value v` with a last axis each",
            )  # fmt: skip
        scale = body.map.option("scale", shape[-1].size ** -0.5)
        options = dict(body.map.options) | {"scale": scale}
        body.map = replace(
            body.map, inputs=shape[-1:], outputs=value.shape[-1:],
            chain=(shape[-1], value.shape[-1]), options=tuple(sorted(options.items())),
        )  # fmt: skip
        return shape[:-1]
    inputs = body.map.inputs
    n = len(inputs)
    if not n and body.map.chain and shape and shape[-1].fits(body.map.chain[0]):
        return shape[:-1]
    tail = shape[len(shape) - n :]
    if len(tail) == n and all(a.fits(b) for a, b in zip(tail, inputs, strict=True)):
        return shape[: len(shape) - n]
    if shape and body.map.chain and shape[-1].fits(body.map.chain[0]):
        return shape[:-1]
    block.context.fail(
        "NL0406", f"`{body.name}` does not take this key", key.span, f"this is {show(shape)}",
        f"`{body.name}` takes {show(inputs)} last", (body.written.map.span, "its map"),
    )  # fmt: skip


def variables(block: BlockResolver, body: Body) -> list[Variable]:
    """Find a memory's states: itself, its own extra states, and those of its rule."""
    if body.variables:
        return body.variables
    found = [Variable("", body.map.parts, body.written.span)]
    rule = rule_of(block, body)
    sources = [(s, False) for s in body.written.states]
    sources += [(s, True) for s in (rule.states if rule else ())]
    seen: dict[str, Span] = {}
    for state, in_rule in sources:
        if state.name in seen or state.name == body.name:
            block.context.faults.error(
                "NL0302", f"`{state.name}` is declared twice", state.span, "again",
                "a memory's states and its rule's need different names",
                (seen.get(state.name, body.written.span), "first here"),
            )  # fmt: skip
            continue
        seen[state.name] = state.span
        try:
            parts = tuple(
                Part(name, shape, Initial("constant", 0.0))
                for name, shape in state_parts(body, state, block.context, in_rule)
            )
        except Bad:
            continue
        found.append(Variable(state.name, parts, state.span))
    body.variables = found
    return found


def rule_of(block: BlockResolver, body: Body) -> tree.Rule | None:
    """Find the rule that a memory's update names; None where equations are written."""
    update = body.written.update
    if isinstance(update, tuple) or update is None:
        return None
    name = update.function if isinstance(update, tree.Call) else update
    if isinstance(name, tree.Name):
        return block.resolver.rule(name.id, name.span)
    block.context.fail(
        "NL0305", "an update is a rule or equations", update.span, "no rule",
        "write `update delta(lr = beta)` or `update { self = ... }`",
    )  # fmt: skip


def state_leaf(block: BlockResolver, body: Body, var: str, part: Part, when: str) -> Expr:
    """A state as a leaf, [*lead, *part]."""
    return block.graph.make(
        "state", memory=body.name, var=var, part=part.name, when=when,
        shape=(*lead_of(block, body), *part.shape), span=body.span or body.written.span,
    )  # fmt: skip


def memory_readable(block: BlockResolver, body: Body, when: str) -> Readable:
    """A memory as something to apply, at some time."""
    lead = lead_of(block, body)
    parts = tuple(state_leaf(block, body, "", part, when) for part in body.map.parts)
    return Readable(body.name, body.map, lead, parts, body.name, when)


def bare_state(block: BlockResolver, body: Body, var: str, when: str, span: Span) -> Value:
    """`M`, `prev(M)`, `M.S`: a state itself."""
    if body.map.kind == "kernel":
        block.context.fail(
            "NL0509", f"`{body.name}` has no state to read", span, "a softmax memory",
            f"apply it to a query: `{body.name}(q)`",
        )  # fmt: skip
    variable = next(v for v in variables(block, body) if v.name == var)
    parts = tuple((p.name, state_leaf(block, body, var, p, when)) for p in variable.parts)
    if var or len(parts) > 1:
        return pack(body.map, parts)
    readable = Readable(body.name, body.map, lead_of(block, body), (parts[0][1],))
    return bare(block.context, readable, span)


def resolve_pairs(block: BlockResolver, body: Body) -> None:
    """Resolve the keys and values, as streams that enter the memory."""
    lead = lead_of(block, body)
    keys, values = body.written.keys, body.written.values
    if body.pairs or not keys:
        if values and not keys:
            block.context.fail(
                "NL0516", f"`{body.name}` has a value and no key", values[0].span, "the value",
                "write `key e` too",
            )  # fmt: skip
        return
    if values and len(values) != len(keys):
        block.context.fail(
            "NL0516", f"`{body.name}` has {len(keys)} keys and {len(values)} values",
            values[0].span, "the values", "write as many of each", (keys[0].span, "the keys"),
        )  # fmt: skip
    scope = block.pair_scope(body)
    readable = Readable(body.name, body.map, lead, ())
    pairs: list[tuple[Expr, Expr]] = []
    for i, key in enumerate(keys):
        k = scope.fit(readable, pair_value(block, body, key), key.span)
        if not values:
            pairs.append((k, k))
            continue
        v = pair_value(block, body, values[i])
        v = enter(block.context, v, lead)
        _check_value(block, body, v, values[i], lead)
        pairs.append((k, v))
    body.pairs = tuple(pairs)


def _check_value(
    block: BlockResolver, body: Body, v: Expr, written: tree.Expr, lead: Shape
) -> None:
    names = {axis.name for axis in lead}
    seen = tuple(a for a in v.shape if a.name not in names)
    outputs = body.map.outputs
    same = len(seen) == len(outputs) and all(a.fits(b) for a, b in zip(seen, outputs, strict=True))
    if not same and body.written.objective is None:
        block.context.fail(
            "NL0406", f"`{body.name}` does not make this value", written.span,
            f"this is {show(seen)}", f"`{body.name}` makes {show(outputs)}",
            (body.written.map.span, "its map"),
        )  # fmt: skip


def state_parts(
    body: Body, state: tree.State, context: Context, in_rule: bool
) -> tuple[tuple[str, Shape], ...]:
    """Find the parts of an extra state: as the memory's, or of its written shape."""
    if state.shape is None:
        return tuple((p.name, p.shape) for p in body.parts)
    if in_rule:
        return tuple((p.name, _written(context, state, p.shape)) for p in body.parts)
    shape = body.parts[0].shape if body.parts else ()
    return (("", _written(context, state, shape)),)


def _written(context: Context, state: tree.State, shape: Shape) -> Shape:
    assert state.shape is not None
    into = shape[-1] if shape else Axis("1", 1)
    out = shape[-2] if len(shape) > 1 else Axis("1", 1)
    axes: list[Axis] = []
    for entry in state.shape:
        if isinstance(entry, tree.Name) and entry.id in ("in", "out"):
            axes.append(replace(into if entry.id == "in" else out, role=""))
        else:
            axes.append(context.axis(entry))
    if len(axes) == 2:
        axes = [replace(axes[0], role="out"), replace(axes[1], role="in")]
    return tuple(axes)
