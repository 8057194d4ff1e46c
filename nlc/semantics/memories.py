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
    Map,
    Part,
    Variable,
)  # fmt: skip
from nlc.semantics.axes import enter
from nlc.semantics.context import Bad, Context, real
from nlc.semantics.functions import RESERVED
from nlc.semantics.maps import resolve_map
from nlc.semantics.records import Body
from nlc.semantics.trees import mentions
from nlc.semantics.values import Readable, Value, bare, pack
from nlc.semantics.windows import seen
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def lead_of(block: BlockResolver, body: Body) -> Shape:
    """Find a memory's leading axes: one copy per leading axis of its key, and per slot."""
    if body.lead is not None:
        return body.lead
    if body.lead_bad:
        raise Bad(body.name)
    try:
        return _find_lead(block, body)
    except Bad:
        body.lead_bad = True
        raise


def _find_lead(block: BlockResolver, body: Body) -> Shape:
    if body.written.slots is not None and body.slots is None:
        size = block.context.positive(body.written.slots, "the number of slots")
        body.slots = replace(block.context.axis(body.written.slots), size=size)
    slots = () if body.slots is None else (body.slots,)
    declared: Shape | None = None
    if body.written.axes:
        declared = block.context.shape(body.written.axes)
    if body.busy or any(_being_made(block, key) for key in body.written.keys):
        # the key depends on the memory's own read: begin from what is written
        body.guessed = True
        return (*(declared or ()), *slots)
    body.busy = True
    found = declared
    for key in body.written.keys:
        shape = pair_value(block, body, key).shape
        lead = _without_inputs(block, body, shape, key)
        if found is not None and [a.name for a in found] != [a.name for a in lead]:
            block.context.fail(
                "NL0412", f"the copies of `{body.name}` do not agree", key.span,
                f"this key gives one copy per {show(lead)}",
                f"keys have the axes of the copies in front; `memory {body.name}[...]` says them",
                (body.written.span, f"here one per {show(found)}"),
            )  # fmt: skip
        found = lead
    body.busy = False
    lead = (*(found or ()), *slots)
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
    """Say whether an expression needs a stream that is being resolved right now.

    To read a memory is to ask for its leading axes, which its keys give (and, for a softmax memory,
    its value the shape that it makes).
    """
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
        for name, body in block.bodies.items():
            if name in seen or body.lead is not None or not mentions(expr, {name}):
                continue
            seen.add(name)
            waiting.extend(body.written.keys)
            waiting.extend(body.written.values[:1] if body.map.kind == "kernel" else ())
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
        if state.name in RESERVED or state.name in ("key", "value"):
            block.context.faults.error(
                "NL0303", f"`{state.name}` cannot be assigned", state.span,
                "this name is reserved", "choose another name",
            )  # fmt: skip
            continue
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
    if rule is not None:
        found += _inner_variables(block, body, rule)
    body.variables = found
    return found


def _inner_variables(block: BlockResolver, body: Body, rule: tree.Rule) -> list[Variable]:
    """Find the memories inside a memory's rule: for it, they are extra states.

    A map with several parts has one for each of them, unless all are like the map.
    """
    if rule.name in body.rules:
        return []
    if len(body.parts) == 1 or all(written.map.kind == "like" for written in rule.memories):
        return _inner_of(block, body, rule, body.inner, body.parts[:1], "")
    found: list[Variable] = []
    for part in body.parts:
        inner = body.inner_of.setdefault(part.name, {})
        found += _inner_of(block, body, rule, inner, (part,), f".{part.name}")
    return found


def _inner_of(
    block: BlockResolver,
    body: Body,
    rule: tree.Rule,
    inner: dict[str, Body],
    parts: tuple[Part, ...],
    suffix: str,
) -> list[Variable]:
    found: list[Variable] = []
    for written in rule.memories:
        try:
            map = _inner_map(block.context, body, written, parts)
        except Bad:
            body.bad = True
            continue
        for name in written.names:
            own = Body(name, written, body.level, map, lead=(), span=written.span)
            own.rules = (*body.rules, rule.name)
            inner[name] = own
            for variable in variables(block, own):
                full = f"{name}.{variable.name}" if variable.name else name
                found.append(Variable(f"{full}{suffix}", variable.parts, variable.span))
    return found


def _inner_map(context: Context, body: Body, written: tree.Memory, parts: tuple[Part, ...]) -> Map:
    """Resolve the map of a memory inside a rule: `like self`, or a map over `in` and `out`."""
    if written.map.kind == "like":
        return body.map if parts == body.parts[:1] else map_of(parts[0])
    shape = parts[0].shape if parts else ()
    sides = {"in": shape[-1:] or (Axis("1", 1),), "out": shape[-2:-1] or (Axis("1", 1),)}
    sizes = {side: axis.size for side, (axis,) in sides.items()}
    map = resolve_map(context, written.map, sizes)

    def named(axes: Shape) -> Shape:
        return tuple(
            replace(sides[axis.name][0], role=axis.role) if axis.name in sides else axis
            for axis in axes
        )

    return replace(
        map,
        inputs=named(map.inputs),
        outputs=named(map.outputs),
        chain=named(map.chain),
        parts=tuple(replace(part, shape=named(part.shape)) for part in map.parts),
    )


def map_of(part: Part) -> Map:
    """Make a map that is one tensor."""
    match part.shape:
        case (*_, out, into):
            return Map("linear", (into,), (out,), (into, out), (part,), text="linear")
        case (axis,):
            return Map("vector", (), (axis,), (axis,), (part,), text="vector")
        case _:
            return Map("scalar", (), (), (), (part,), text="scalar")


def rule_of(block: BlockResolver, body: Body) -> tree.Rule | None:
    """Find the rule that a memory's update names; None where equations are written."""
    if body.rule is not None:
        return body.rule
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
        "state", memory=body.label, var=var, part=part.name, when=when,
        shape=(*lead_of(block, body), *part.shape), span=body.span or body.written.span,
    )  # fmt: skip


def memory_readable(
    block: BlockResolver, body: Body, when: str, own: bool = False, clock: int = 1
) -> Readable:
    """A memory as something to apply, at some time; from outside, its slots are summed."""
    lead = lead_of(block, body)
    when = seen(block, body, when, clock)
    parts = tuple(state_leaf(block, body, "", part, when) for part in body.map.parts)
    route = None if own else route_of(block, body)
    return Readable(body.name, body.map, lead, parts, body.name, when, route)


def route_of(block: BlockResolver, body: Body) -> Expr | None:
    """The weights of a memory's slots at this token, [*lead, slots]; None where it has none."""
    if body.slots is None:
        return None
    if body.written.route is None:
        raise Bad(body.name)
    if body.route is None:
        written = body.written.route
        lead = lead_of(block, body)
        scores = pair_value(block, body, written)
        names = [axis.name for axis in scores.shape]
        if names.count(body.slots.name) != 1 or set(names) - {axis.name for axis in lead}:
            block.context.fail(
                "NL0517", f"the route of `{body.name}` has no axis of slots", written.span,
                f"this is {show(scores.shape)}",
                f"one score per slot: its axes are among {show(lead)}, with `{body.slots.name}`",
                (body.written.span, "the memory"),
            )  # fmt: skip
        scores = enter(block.context, scores, lead)
        select, amount = _selection(block, body.written.select, body.slots)
        body.route = block.graph.make(
            "route", scores, select=select, amount=amount, span=written.span
        )
    return body.route


def _selection(block: BlockResolver, written: tree.Expr | None, slots: Axis) -> tuple[str, float]:
    """Read `top_k(n)`, `top_p(p)` or `threshold(t)`; all slots where nothing is written."""
    match written:
        case None:
            return "all", 0.0
        case tree.Call(function=tree.Name(id="top_k"), arguments=(count,), keywords=()):
            n = block.context.positive(count, "the number of slots")
            if n > slots.size:
                block.context.fail(
                    "NL0517", "more slots are selected than there are", count.span, f"{n} slots",
                    f"at most {slots.size}, all of them",
                )  # fmt: skip
            return "top_k", float(n)
        case tree.Call(
            function=tree.Name(id="top_p" | "threshold" as how), arguments=(share,), keywords=()
        ):
            amount = real(block.context, share)
            if not 0 <= amount <= 1:
                block.context.fail(
                    "NL0517", f"`{how}` takes a share of the whole weight", share.span,
                    f"{amount:g}", "the weights of the slots sum to 1: write a number from 0 to 1",
                )  # fmt: skip
            return how, amount
    block.context.fail(
        "NL0517", "slots are selected in another way", written.span, "no such selection",
        "write `select top_k(n)`, `select top_p(p)` or `select threshold(t)`",
    )  # fmt: skip


def bare_state(
    block: BlockResolver, body: Body, var: str, when: str, span: Span, clock: int = 1
) -> Value:
    """`M`, `prev(M)`, `M.S`: a state itself."""
    when = seen(block, body, when, clock)
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
    # a key has no slots: it enters each of them alike
    copies = lead[:-1] if body.slots is not None else lead
    readable = Readable(body.name, body.map, copies, ())
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
        for entry in state.shape:
            if mentions(entry, set(context.dims) - {"in", "out"}):
                context.fail(
                    "NL0413", f"unknown dim `{entry.span.text}`", entry.span,
                    "a rule does not see the dims of a spec",
                    "its sizes are `in` and `out`: `state L[out, out] = 0`",
                )  # fmt: skip
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
