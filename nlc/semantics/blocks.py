"""A block: streams, weights and memories, resolved on demand so that lines may stand in any order.

In: `tree.Block`. Out: `Unordered`, a block whose steps `order` still has to put in sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nlc.ir.expr import Expr, postorder, rewrite
from nlc.ir.shape import Axis, Shape, show
from nlc.ir.system import (
    Block, Call, Equation, History, Initial, Input, Map, Memory, Part, Period, Variable, Weight,
)  # fmt: skip
from nlc.semantics.axes import enter
from nlc.semantics.bodies import (
    DEFAULT_OBJECTIVE, Body, BodyScope, ObjectiveScope, PairScope, UpdateScope, depends_on_memory,
    mentions, state_parts, substitute,
)  # fmt: skip
from nlc.semantics.context import Bad, Context, real
from nlc.semantics.expressions import Scope
from nlc.semantics.functions import RESERVED
from nlc.semantics.maps import resolve_map
from nlc.semantics.values import Readable, Struct, Value, pack
from nlc.source import NOWHERE, Span
from nlc.syntax import tree

THROUGH = ("full", "first_order", "stop")


@dataclass
class Stream:
    """A stream of a block while it is being resolved."""

    name: str
    span: Span
    statement: tree.Assign | None = None
    index: int = 0
    state: str = "waiting"
    leaf: Expr | None = None


@dataclass
class Unordered:
    """What a block says, before its steps are put in order."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, Shape], ...]
    weights: tuple[Weight, ...]
    bodies: tuple[Body, ...]
    equations: tuple[Equation, ...]
    calls: tuple[Call, ...]
    histories: list[History]
    span: Span
    comments: tuple[str, ...]


class StreamScope(Scope):
    """What blocks and models share: histories over time, calls of blocks."""

    def __init__(self, context: Context, owner: Any):
        super().__init__(context)
        self.owner = owner

    def special(self, name: str, call: tree.Call) -> Value | None:
        if name == "shift":
            return self._shift(call)
        if name in self.context.blocks:
            results = self.owner.call_block(name, call, 1)
            value: Value = results[0]
            return value
        return None

    def _shift(self, call: tree.Call) -> Value:
        if not 1 <= len(call.arguments) <= 2 or any(k.name != "n" for k in call.keywords):
            self.context.fail(
                "NL0309", "`shift` takes a stream and a number of tokens", call.span,
                "written otherwise", "`shift(x)` is the token before, `shift(x, n)` n tokens ago",
            )  # fmt: skip
        counts = [*call.arguments[1:], *(k.value for k in call.keywords)]
        n = self.context.integer(counts[0]) if counts else 1
        if n < 0:
            self.context.fail(
                "NL0604", "a shift into the future", counts[0].span, f"{-n} tokens ahead",
                "a token sees itself and the past: n is 0 or more",
            )  # fmt: skip
        value = self.plain(call.arguments[0])
        if n == 0:
            return value
        return self.owner.shifted(value, n, call.span)


class BlockScope(StreamScope):
    """The equations of a block: streams, weights and memories by name."""

    def known_names(self) -> list[str]:
        owner = self.owner
        return [*owner.streams, *owner.weights, *owner.bodies, *self.context.dims]

    def find(self, name: tree.Name) -> Value | None:
        owner = self.owner
        if name.id in owner.streams:
            value: Value = owner.stream(name.id, name.span)
            return value
        if name.id in owner.weights:
            readable = owner.weight_readable(owner.weights[name.id])
            return owner.bare(readable, name.span)
        if name.id in owner.bodies:
            return owner.bare_state(owner.bodies[name.id], "", "post", name.span)
        return None

    def readable(self, expr: tree.Expr) -> Readable | None:
        owner = self.owner
        match expr:
            case tree.Name(id=name) if name in owner.weights:
                return owner.weight_readable(owner.weights[name])
            case tree.Name(id=name) if name in owner.bodies:
                return owner.memory_readable(owner.bodies[name], "post")
            case tree.Call(
                function=tree.Name(id="prev" | "initial" as when), arguments=(tree.Name(id=name),)
            ):
                if name in owner.bodies:
                    return owner.memory_readable(owner.bodies[name], when)
                self._no_memory(when, name, expr.arguments[0].span)
        return None

    def _no_memory(self, when: str, name: str, span: Span) -> None:
        if name in self.owner.streams or name in self.owner.weights:
            self.context.fail(
                "NL0310", f"`{when}` is asked of a memory", span, f"`{name}` is none",
                f"for a stream write `shift({name})`" if when == "prev"
                else "name a memory of this block",
            )  # fmt: skip
        self.context.unknown("memory", name, span, list(self.owner.bodies), "NL0301")

    def attribute(self, expr: tree.Attribute) -> Value:
        base = expr.base
        if isinstance(base, tree.Name) and base.id in self.owner.bodies:
            body = self.owner.bodies[base.id]
            if any(v.name == expr.name for v in self.owner.variables(body) if v.name):
                return self.owner.bare_state(body, expr.name, "post", expr.span)
        return super().attribute(expr)

    def special(self, name: str, call: tree.Call) -> Value | None:
        owner = self.owner
        if name in ("prev", "initial") and len(call.arguments) == 1:
            return self._earlier(name, call)
        if name == "loss":
            return self._loss(call)
        if name in ("grad", "last", "recent"):
            self.context.fail(
                "NL0605", f"`{name}` has no meaning in a block's equations", call.span,
                "in this place", "it stands inside a memory",
            )  # fmt: skip
        if name in owner.block_names_hint:
            return None
        return super().special(name, call)

    def _earlier(self, when: str, call: tree.Call) -> Value:
        (argument,) = call.arguments
        owner = self.owner
        match argument:
            case tree.Name(id=name) if name in owner.bodies:
                return owner.bare_state(owner.bodies[name], "", when, call.span)
            case tree.Attribute(base=tree.Name(id=name), name=state) if name in owner.bodies:
                body = owner.bodies[name]
                if any(v.name == state for v in owner.variables(body) if v.name):
                    return owner.bare_state(body, state, when, call.span)
        word = argument.id if isinstance(argument, tree.Name) else ""
        self._no_memory(when, word, argument.span)
        raise Bad("NL0310")

    def _loss(self, call: tree.Call) -> Value:
        owner = self.owner
        (argument, *rest) = call.arguments or (None,)
        if rest or not isinstance(argument, tree.Name) or argument.id not in owner.bodies:
            self.context.fail(
                "NL0310", "`loss` is asked of a memory", call.span, "no memory here",
                "loss(M) is M's objective at this token, before its update",
            )  # fmt: skip
        body = owner.bodies[argument.id]
        objective = owner.own_objective(body)
        if objective is None:
            self.context.fail(
                "NL0513", f"`{body.name}` has no objective", call.span, "asked for here",
                "write `objective e`, or `key` and `value`", (body.written.span, "the memory"),
            )  # fmt: skip
        return owner.at_state(objective, body, "prev")

    def apply(self, what: Readable, call: tree.Call) -> Value:
        if what.map.kind == "conv":
            return self.owner.convolve(what, call)
        return super().apply(what, call)


class BlockResolver:
    """Resolves one block."""

    def __init__(self, context: Context, written: tree.Block, resolver: Any):
        self.context = context
        self.graph = context.graph
        self.written = written
        self.resolver = resolver
        self.streams: dict[str, Stream] = {}
        self.weights: dict[str, Weight] = {}
        self.bodies: dict[str, Body] = {}
        self.inputs: list[Input] = []
        self.equations: list[Equation] = []
        self.calls: list[Call] = []
        self.histories: list[History] = []
        self.conv_uses: dict[str, int] = {}
        self.conv_slots: dict[tuple[str, int], str] = {}
        self.pair_values: dict[tuple[str, int], Expr] = {}
        self.slots: dict[tuple[int, int], str] = {}
        self.block_names_hint: tuple[str, ...] = ()
        self.owners: dict[str, tuple[str, Span]] = {}
        self.scope = BlockScope(context, self)

    # ---- the whole block -------------------------------------------------------------------

    def resolve(self) -> Unordered:
        """Resolve everything; faults are collected."""
        self._declare()
        for parameter in self.written.inputs:
            self._default(parameter)
        for stream in list(self.streams.values()):
            if stream.statement is not None:
                try:
                    self.stream(stream.name, stream.span)
                except Bad:
                    continue
        for body in self.bodies.values():
            try:
                self._body(body)
            except Bad:
                body.bad = True
        outputs = self._outputs()
        return Unordered(
            self.written.name, tuple(self.inputs), outputs, tuple(self.weights.values()),
            tuple(self.bodies.values()), tuple(self.equations), tuple(self.calls),
            self.histories, self.written.span, self.written.comments.above,
        )  # fmt: skip

    def claim(self, name: str, what: str, span: Span) -> bool:
        """Take a name; a second one of the same name is a fault."""
        if name in RESERVED or name in ("key", "value"):
            self.context.faults.error(
                "NL0303", f"`{name}` cannot be assigned", span,
                "this name has a meaning of its own", "choose another name",
            )  # fmt: skip
            return False
        if name in self.owners:
            before, where = self.owners[name]
            self.context.faults.error(
                "NL0302", f"`{name}` is declared twice", span, f"again, as {what}",
                "names of streams, weights and memories share one space; streams are assigned once",
                (where, f"first as {before}"),
            )  # fmt: skip
            return False
        self.owners[name] = (what, span)
        return True

    def owner(self, name: str) -> tuple[str, Span] | None:
        """Say what a name of the block is, and where."""
        return self.owners.get(name)

    def is_memory(self, name: str) -> bool:
        """Say whether a name is a memory of this block."""
        return name in self.bodies

    def _declare(self) -> None:
        for parameter in self.written.inputs:
            span = parameter.span
            if not self.claim(parameter.name, "an input", span):
                continue
            try:
                shape = self.context.shape(parameter.shape or ())
            except Bad:
                self.streams[parameter.name] = Stream(parameter.name, span, state="bad")
                continue
            leaf = self.graph.make("stream", name=parameter.name, shape=shape, span=span)
            self.streams[parameter.name] = Stream(parameter.name, span, state="done", leaf=leaf)
            self.inputs.append(Input(parameter.name, shape))
        for weights in self.written.weights:
            self._declare_weights(weights)
        for memory in self.written.memories:
            self._declare_memory(memory)
        for statement in self.written.equations:
            if not isinstance(statement, tree.Assign):
                self.context.faults.error(
                    "NL0703", "this does not stand in a block", statement.span, "in a block",
                    "a block holds equations; `repeat` and `share` stand in a model, `every` and "
                    "`when` in an update",
                )  # fmt: skip
                continue
            for index, target in enumerate(statement.targets):
                name = target.path[0]
                if len(target.path) > 1 or name in self.weights or name in self.bodies:
                    self._not_a_stream(target)
                elif self.claim(name, "a stream", target.span):
                    self.streams[name] = Stream(name, target.span, statement, index)

    def _not_a_stream(self, target: tree.Target) -> None:
        name = target.path[0]
        what, span = self.owners.get(name, ("no stream", target.span))
        self.context.faults.error(
            "NL0507", f"`{'.'.join(target.path)}` cannot be assigned here", target.span,
            f"`{name}` is {what}", "weights learn from the task; a memory changes in its `update`",
            (span, "declared here"),
        )  # fmt: skip

    # ---- weights ---------------------------------------------------------------------------

    def _declare_weights(self, written: tree.Weights) -> None:
        spans = written.name_spans or (written.span,) * len(written.names)
        try:
            map = resolve_map(self.context, written.map)
            if map.kind == "kernel":
                self.context.fail(
                    "NL0211", "a kernel is a memory's map", written.map.span, "weights here",
                    "write `memory A : kernel(softmax) at now { key k; value v }`",
                )  # fmt: skip
            map = self._weights_init(map, written.init)
            lead = self.context.shape(written.axes)
            level = self._weights_level(written)
        except Bad:
            for name, span in zip(written.names, spans, strict=True):
                if self.claim(name, "weights", span):
                    self.streams[name] = Stream(name, span, state="bad")
            return
        for name, span in zip(written.names, spans, strict=True):
            if not self.claim(name, "weights", span):
                continue
            if self.context.levels[level].period.unit == "tokens":
                memory = tree.Memory(
                    (name,), written.map, written.axes, (level,), objective=tree.Name("task"),
                    init=written.init or tree.Name("learned"), span=span,
                )  # fmt: skip
                self.bodies[name] = Body(name, memory, level, map, lead, is_task=True, learned=True)
                self.context.unsupported.append(("NL0804", "weights at a token level", span))
            else:
                self.weights[name] = Weight(name, map, level, lead, span)

    def _weights_init(self, map: Map, written: tree.Expr | tree.From | None) -> Map:
        if written is None or (isinstance(written, tree.Name) and written.id == "learned"):
            return map
        initial = self.initial(written, memory=False)
        return replace(map, parts=tuple(replace(p, initial=initial) for p in map.parts))

    def initial(self, written: tree.Expr | tree.From, memory: bool) -> Initial:
        """Resolve an `init` clause other than `learned`."""
        match written:
            case tree.From(name=name):
                if name not in self.bodies and name not in self.weights:
                    known = [*self.bodies, *self.weights]
                    self.context.unknown("memory", name, written.span, known, "NL0301")
                return Initial("source", source=name)
            case tree.Name(id="zeros"):
                return Initial("constant", 0.0)
            case tree.Call(function=tree.Name(id="normal"), arguments=(std,)):
                return Initial("normal", real(self.context, std))
            case tree.Number():
                return Initial("constant", float(written.value))
        if not memory or not mentions(written, set(self.weights)):
            return Initial("constant", real(self.context, written))
        expr = self.scope.plain(written)
        self.only_parameters(expr, written.span)
        return Initial("expr", expr=expr)

    def only_parameters(self, expr: Expr, span: Span) -> None:
        """Refuse an initial value that depends on tokens."""
        for node in postorder([expr]):
            if node.op in ("stream", "state", "position", "shift", "conv"):
                self.context.fail(
                    "NL0510", "an initial value depends on tokens", node.span, "changes over time",
                    "initial values are made of numbers, dims and weights", (span, "used here"),
                )  # fmt: skip

    def _weights_level(self, written: tree.Weights) -> str:
        if written.level is not None:
            level = self._level(written.level, written.span)
            if self.context.levels[level].period.unit == "always":
                self.context.fail(
                    "NL0211", "weights cannot be at a level that is `always`", written.span,
                    f"`{level}` stores nothing", "place them at a level of steps or tokens",
                    (self.context.levels[level].span, "the level"),
                )  # fmt: skip
            unit = self.context.levels[level].period.unit
            if unit == "tokens" and self.context.levels[level].optimizer is None:
                self.context.fail(
                    "NL0206", f"level `{level}` holds weights and needs an optimizer", written.span,
                    "weights at a token level learn while the sequence is read",
                    f"write `level {level} ..., optimizer sgd(lr = 0.1)`",
                    (self.context.levels[level].span, "the level"),
                )  # fmt: skip
            return level
        return self.resolver.step_level(written.span)

    def _level(self, name: str, span: Span) -> str:
        if name not in self.context.levels:
            self.context.unknown("level", name, span, list(self.context.levels), "NL0304")
        return name

    def weight_readable(self, weight: Weight) -> Readable:
        """Weights as something to apply."""
        parts = tuple(
            self.graph.make(
                "param", name=f"{weight.name}.{part.name}" if part.name else weight.name,
                shape=(*weight.lead, *part.shape), span=weight.span,
            )
            for part in weight.map.parts
        )  # fmt: skip
        return Readable(weight.name, weight.map, weight.lead, parts)

    def bare(self, readable: Readable, span: Span) -> Value:
        """Weights or a memory by their bare name."""
        map = readable.map
        value = pack(
            map, tuple((p.name, e) for p, e in zip(map.parts, readable.parts, strict=True))
        )
        if map.kind == "vector" and isinstance(value, Expr) and map.outputs != map.chain:
            return self.graph.make(
                "reshape", value, last=len(map.chain), axes=map.outputs, span=span
            )
        return value

    # ---- memories --------------------------------------------------------------------------

    def _declare_memory(self, written: tree.Memory) -> None:
        names = written.names
        spans = written.name_spans or (written.span,) * len(names)
        levels = written.levels
        try:
            map = resolve_map(self.context, written.map)
            if not levels:
                self.context.fail(
                    "NL0208", f"`{names[0]}` names no level", written.span, "the memory",
                    f"write `memory {names[0]} : ... at LEVEL {{`",
                )  # fmt: skip
            if len(levels) not in (1, len(names)):
                self.context.fail(
                    "NL0208", "names and levels do not pair up", written.span,
                    f"{len(names)} names, {len(levels)} levels",
                    "write one level for all, or as many levels as names",
                )  # fmt: skip
            level_spans = written.level_spans or (written.span,) * len(levels)
            for level, span in zip(levels, level_spans, strict=True):
                self._level(level, span)
        except Bad:
            for name, span in zip(names, spans, strict=True):
                if self.claim(name, "a memory", span):
                    self.streams[name] = Stream(name, span, state="bad")
            return
        for i, (name, span) in enumerate(zip(names, spans, strict=True)):
            if not self.claim(name, "a memory", span):
                continue
            level = levels[i if len(levels) > 1 else 0]
            task = isinstance(written.objective, tree.Name) and written.objective.id == "task"
            if task and self.context.levels[level].period.unit == "steps":
                lead = self.context.shape(written.axes)
                self.weights[name] = Weight(name, map, level, lead, span)
                continue
            self.bodies[name] = Body(name, written, level, map, is_task=task, span=span)

    def lead_of(self, body: Body) -> Shape:
        """Find a memory's leading axes: one copy per leading axis of its key."""
        if body.lead is not None:
            return body.lead
        declared: Shape | None = None
        if body.written.axes:
            declared = self.context.shape(body.written.axes)
        if body.busy or any(self._being_made(key) for key in body.written.keys):
            # the key depends on the memory's own read: begin from what is written
            body.guessed = True
            return declared or ()
        body.busy = True
        found = declared
        for key in body.written.keys:
            shape = self._pair_value(body, key).shape
            lead = self._without_inputs(body, shape, key)
            if found is not None and [a.name for a in found] != [a.name for a in lead]:
                self.context.fail(
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
                self.context.fail(
                    "NL0412", f"`{axis.name}` is a leading axis and an axis of the map",
                    body.written.span, f"`{body.name}` has one copy per {show(lead)}",
                    "give the two sizes different dims",
                )  # fmt: skip
        body.lead = lead
        return lead

    def _pair_value(self, body: Body, written: tree.Expr) -> Expr:
        """Resolve a key or value once: a call in it makes one instance."""
        place = (body.name, id(written))
        if place not in self.pair_values:
            self.pair_values[place] = PairScope(self, body).plain(written)
        return self.pair_values[place]

    def _being_made(self, written: tree.Expr) -> bool:
        """Say whether an expression needs a stream that is being resolved right now."""
        waiting, seen = [written], set()
        while waiting:
            expr = waiting.pop()
            for name, stream in self.streams.items():
                if name in seen or not mentions(expr, {name}):
                    continue
                seen.add(name)
                if stream.state == "busy":
                    return True
                if stream.state == "waiting" and stream.statement is not None:
                    waiting.extend(stream.statement.values)
        return False

    def _without_inputs(self, body: Body, shape: Shape, key: tree.Expr) -> Shape:
        if body.map.kind == "kernel":
            values = body.written.values
            value = self._pair_value(body, values[0]) if values else None
            if not shape or value is None or not value.shape:
                self.context.fail(
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
        self.context.fail(
            "NL0406", f"`{body.name}` does not take this key", key.span, f"this is {show(shape)}",
            f"`{body.name}` takes {show(inputs)} last", (body.written.map.span, "its map"),
        )  # fmt: skip

    def variables(self, body: Body) -> list[Variable]:
        """Find a memory's states: itself, its own extra states, and those of its rule."""
        if body.variables:
            return body.variables
        found = [Variable("", body.map.parts, body.written.span)]
        rule = self._rule_of(body)
        sources = [(s, False) for s in body.written.states]
        sources += [(s, True) for s in (rule.states if rule else ())]
        seen: dict[str, Span] = {}
        for state, in_rule in sources:
            if state.name in seen or state.name == body.name:
                self.context.faults.error(
                    "NL0302", f"`{state.name}` is declared twice", state.span, "again",
                    "a memory's states and its rule's need different names",
                    (seen.get(state.name, body.written.span), "first here"),
                )  # fmt: skip
                continue
            seen[state.name] = state.span
            try:
                parts = tuple(
                    Part(name, shape, Initial("constant", 0.0))
                    for name, shape in state_parts(body, state, self.context, in_rule)
                )
            except Bad:
                continue
            found.append(Variable(state.name, parts, state.span))
        body.variables = found
        return found

    def _rule_of(self, body: Body) -> tree.Rule | None:
        update = body.written.update
        if isinstance(update, tuple) or update is None:
            return None
        name = update.function if isinstance(update, tree.Call) else update
        if isinstance(name, tree.Name):
            return self.resolver.rule(name.id, name.span)
        self.context.fail(
            "NL0305", "an update is a rule or equations", update.span, "no rule",
            "write `update delta(lr = beta)` or `update { self = ... }`",
        )  # fmt: skip

    def state(self, body: Body, var: str, part: Part, when: str) -> Expr:
        """A state as a leaf, [*lead, *part]."""
        return self.graph.make(
            "state", memory=body.name, var=var, part=part.name, when=when,
            shape=(*self.lead_of(body), *part.shape), span=body.span or body.written.span,
        )  # fmt: skip

    def memory_readable(self, body: Body, when: str) -> Readable:
        """A memory as something to apply, at some time."""
        lead = self.lead_of(body)
        parts = tuple(self.state(body, "", part, when) for part in body.map.parts)
        return Readable(body.name, body.map, lead, parts, body.name, when)

    def bare_state(self, body: Body, var: str, when: str, span: Span) -> Value:
        """`M`, `prev(M)`, `M.S`: a state itself."""
        if body.map.kind == "kernel":
            self.context.fail(
                "NL0509", f"`{body.name}` has no state to read", span, "a softmax memory",
                f"apply it to a query: `{body.name}(q)`",
            )  # fmt: skip
        variable = next(v for v in self.variables(body) if v.name == var)
        parts = tuple((p.name, self.state(body, var, p, when)) for p in variable.parts)
        if var or len(parts) > 1:
            return pack(body.map, parts)
        readable = Readable(body.name, body.map, self.lead_of(body), (parts[0][1],))
        return self.bare(readable, span)

    # ---- bodies ----------------------------------------------------------------------------

    def _pairs(self, body: Body) -> None:
        lead = self.lead_of(body)
        keys, values = body.written.keys, body.written.values
        if body.pairs or not keys:
            if values and not keys:
                self.context.fail(
                    "NL0516", f"`{body.name}` has a value and no key", values[0].span, "the value",
                    "write `key e` too",
                )  # fmt: skip
            return
        if values and len(values) != len(keys):
            self.context.fail(
                "NL0516", f"`{body.name}` has {len(keys)} keys and {len(values)} values",
                values[0].span, "the values", "write as many of each", (keys[0].span, "the keys"),
            )  # fmt: skip
        scope = PairScope(self, body)
        readable = Readable(body.name, body.map, lead, ())
        pairs: list[tuple[Expr, Expr]] = []
        for i, key in enumerate(keys):
            k = scope.fit(readable, self._pair_value(body, key), key.span)
            if not values:
                pairs.append((k, k))
                continue
            v = self._pair_value(body, values[i])
            v = enter(self.context, v, lead)
            self._check_value(body, v, values[i], lead)
            pairs.append((k, v))
        body.pairs = tuple(pairs)

    def _check_value(self, body: Body, v: Expr, written: tree.Expr, lead: Shape) -> None:
        names = {axis.name for axis in lead}
        seen = tuple(a for a in v.shape if a.name not in names)
        outputs = body.map.outputs
        same = len(seen) == len(outputs) and all(
            a.fits(b) for a, b in zip(seen, outputs, strict=True)
        )
        if not same and body.written.objective is None:
            self.context.fail(
                "NL0406", f"`{body.name}` does not make this value", written.span,
                f"this is {show(seen)}", f"`{body.name}` makes {show(outputs)}",
                (body.written.map.span, "its map"),
            )  # fmt: skip

    def own_objective(self, body: Body) -> Expr | None:
        """The memory's own objective, over `variable` leaves; None where it has none."""
        if body.objective_done:
            return body.objective
        self.variables(body)
        self._pairs(body)
        written = body.written.objective
        if written is None:
            if not body.pairs or not body.written.values:
                body.objective_done = True
                return None
            written = DEFAULT_OBJECTIVE
        if isinstance(written, tree.Name) and written.id == "task":
            body.objective_done = True
            return None
        scope = UpdateScope(self, body)
        scope.begin()
        env = {k: v for k, v in scope.env.items() if k != "self"}
        body.objective = self.objective(body, written, env)
        body.objective_done = True
        return body.objective

    def objective(self, body: Body, written: tree.Expr, env: dict[str, Value]) -> Expr:
        """Resolve an objective, summed over the pairs where it names `key` or `value`."""
        self._pairs(body)
        many = len(body.pairs) > 1 and mentions(written, {"key", "value"})
        total: Expr | None = None
        for pair in range(len(body.pairs) if many else 1):
            scope = ObjectiveScope(self, body, pair, env)
            term = scope.plain(written)
            if scope.body_rank(term):
                seen = show(term.shape[len(body.lead or ()) :])
                self.context.fail(
                    "NL0501", "an objective is a single number", written.span, f"this is {seen}",
                    "reduce it: `||e||^2`, `<a, b>`, `sum(e)`, `lp(e, p)`, `huber(e, delta)`",
                )  # fmt: skip
            if total is None:
                total = term
            else:
                joined = scope.combine("add", written.span,
                                       [(total, written.span), (term, written.span)])  # fmt: skip
                assert isinstance(joined, Expr)
                total = joined
        assert total is not None
        if not depends_on_memory(total, body.name):
            self.context.fail(
                "NL0502", f"the objective does not depend on `{body.name}`", written.span,
                "no plain application of the memory here",
                f"name the memory: `self(key)` or `{body.name}(k)`; streams, other memories and "
                "`prev(self)` are constants in an objective", (body.written.span, "the memory"),
            )  # fmt: skip
        return total

    def at_state(self, objective: Expr, body: Body, when: str) -> Expr:
        """Put a memory's state in the place of the variable of its objective."""
        parts = {part.name: part for part in body.map.parts}

        def replace_leaf(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if node.op == "variable" and node.attr("memory") == body.name:
                return self.state(body, "", parts[node.attr("part")], when)
            if node.op == "apply" and any(
                a.op == "variable" and a.attr("memory") == body.name for a in node.args[1:]
            ):
                # what was a plain application is now a read of the memory
                attrs = dict(node.attrs) | {"memory": body.name}
                return self.graph.make(node.op, *args, span=node.span, **attrs)
            return None

        return rewrite(self.graph, [objective], replace_leaf)[0]

    def _body(self, body: Body) -> None:
        level = self.context.levels[body.level]
        written = body.written
        kernel = body.map.kind == "kernel"
        if kernel != (level.period.unit == "always"):
            self.context.fail(
                "NL0211",
                "a kernel is recomputed for each query" if kernel else
                f"`{body.name}` cannot be stored at a level that is `always`",
                written.span, f"`{body.name}` is at `{level.name}`, {level.period}",
                "a level `always` holds kernels: `kernel(softmax) at now`, with `level now always`",
                (level.span, "the level"),
            )  # fmt: skip
        self.lead_of(body)
        if body.guessed:
            body.lead, body.guessed = None, False
            lead = self.lead_of(body)
            if lead and not written.axes:
                self.context.fail(
                    "NL0412", f"`{body.name}` makes its own key and needs its leading axes",
                    written.span, f"one copy per {show(lead)}",
                    f"write them: `memory {body.name}{show(lead)} : ...`",
                )  # fmt: skip
        self._check_clauses(body, kernel)
        self.variables(body)
        if kernel:
            self._kernel(body)
            return
        self._pairs(body)
        self._initials(body)
        if body.is_task:
            if written.update is not None and written.name_spans:
                self.context.unsupported.append(("NL0804", "`objective task`", written.span))
            return
        if level.period.unit == "steps":
            self.context.unsupported.append(
                ("NL0807", f"memory `{body.name}` with its own objective at a step level",
                 written.span)
            )  # fmt: skip
        if level.period.unit == "never":
            self.context.fail(
                "NL0208", f"`{body.name}` is at a level that never changes", written.span,
                f"`{level.name}` is frozen", "use `weights`, or a level of tokens",
                (level.span, "the level"),
            )  # fmt: skip
        self.own_objective(body)
        self._update(body)

    def _check_clauses(self, body: Body, kernel: bool) -> None:
        written = body.written
        places = dict(written.clauses)

        def refuse(clause: str, text: str, hint: str) -> None:
            self.context.fail(
                "NL0509" if kernel else "NL0514", f"`{clause}` does not belong here",
                places.get(clause, written.span), text, hint, (written.span, "the memory"),
            )  # fmt: skip

        if kernel:
            for clause in ("objective", "update", "through", "slots", "route", "select"):
                if clause in places or getattr(written, clause):
                    refuse(clause, "a softmax memory is recomputed for each query",
                           "it has `key`, `value`, `init learned(n)` and `reset`")  # fmt: skip
        if written.through is not None and written.through not in THROUGH:
            self.context.fail(
                "NL0508", f"`through` is not `{written.through}`",
                places.get("through", written.span), "unknown", "full, first_order or stop",
            )  # fmt: skip
        slotted = [c for c in ("slots", "route", "select") if getattr(written, c) is not None]
        if slotted:
            if "slots" not in slotted or "route" not in slotted:
                refuse(slotted[0], f"only {' and '.join(slotted)}",
                       "write `slots N` and `route e` (and `select top_k(n)`)")  # fmt: skip
            self.context.unsupported.append(("NL0803", "`slots`", places.get("slots", written.span)))

    def _kernel(self, body: Body) -> None:
        written = body.written
        if not written.keys or not written.values or len(written.keys) > 1:
            self.context.fail(
                "NL0509", f"`{body.name}` needs one key and one value", written.span,
                f"{len(written.keys)} keys, {len(written.values)} values",
                "write `key k` and `value v`",
            )  # fmt: skip
        self._pairs(body)
        match written.init:
            case None:
                pass
            case tree.Call(function=tree.Name(id="learned"), arguments=(count,)):
                body.persistent = self.context.positive(count, "the number of learned pairs")
                body.learned = True
            case other:
                self.context.fail(
                    "NL0510", "a softmax memory starts empty or with learned pairs", other.span,
                    "no such start", "write `init learned(n)` for n persistent pairs",
                )  # fmt: skip

    def _initials(self, body: Body) -> None:
        written = body.written.init
        deep = body.map.kind in ("glu", "lora") or (
            body.map.kind == "mlp" and len(body.map.chain) > 2
        )
        if written is None:
            body.learned = body.learned or deep
            if not deep and not body.is_task:
                self._set_initial(body, Initial("constant", 0.0))
        elif isinstance(written, tree.Name) and written.id == "learned":
            body.learned = True
        elif isinstance(written, tree.Call) and mentions(written.function, {"learned"}):
            self.context.fail(
                "NL0510", "`learned(n)` is for softmax memories", written.span, "n learned pairs",
                "write `init learned`",
            )  # fmt: skip
        else:
            initial = self.initial(written, memory=True)
            if initial.kind == "source":
                self._check_source(body, initial.source, written.span)
            # a random start is drawn once, as a parameter is
            body.learned = body.learned or initial.kind == "normal"
            self._set_initial(body, initial)
        self._state_initials(body)

    def _check_source(self, body: Body, source: str, span: Span) -> None:
        other = self.bodies.get(source)
        if other is not None:
            parts, lead = other.map.parts, self.lead_of(other)
        else:
            parts, lead = self.weights[source].map.parts, self.weights[source].lead
        mine = [(p.name, [a.size for a in p.shape]) for p in body.map.parts]
        theirs = [(p.name, [a.size for a in p.shape]) for p in parts]
        names = {axis.name for axis in body.lead or ()}
        if mine != theirs or any(axis.name not in names for axis in lead):
            self.context.fail(
                "NL0510", f"`{body.name}` cannot begin as `{source}`", span,
                "the maps have different shapes", "both need the same map and leading axes",
                (body.written.span, "the memory"), (self.owners[source][1], f"`{source}`"),
            )  # fmt: skip

    def _set_initial(self, body: Body, initial: Initial) -> None:
        if initial.kind == "expr" and initial.expr is not None:
            part = body.map.parts[0]
            want = (*self.lead_of(body), *part.shape)
            have = initial.expr.shape
            if len(body.map.parts) > 1 or [a.size for a in have] not in (
                [a.size for a in want], [a.size for a in part.shape], []
            ):  # fmt: skip
                self.context.fail(
                    "NL0510", "the initial value does not fit the memory", initial.expr.span,
                    f"this is {show(have)}", f"the memory is {show(want)}",
                )  # fmt: skip
        parts = tuple(replace(p, initial=initial) for p in body.map.parts)
        body.variables[0] = replace(body.variables[0], parts=parts)

    def _state_initials(self, body: Body) -> None:
        rule = self._rule_of(body)
        written = {s.name: s for s in (*body.written.states, *(rule.states if rule else ()))}
        for i, variable in enumerate(body.variables):
            if not variable.name:
                continue
            state = written[variable.name]
            if isinstance(state.init, tree.Number):
                initial = Initial("constant", float(state.init.value))
                parts = tuple(replace(p, initial=initial) for p in variable.parts)
            elif isinstance(state.init, tree.Name) and state.init.id == "zeros":
                parts = variable.parts
            else:
                parts = self._state_expr(body, variable, state)
            body.variables[i] = replace(variable, parts=parts)

    def _state_expr(self, body: Body, variable: Variable, state: tree.State) -> tuple[Part, ...]:
        scope = UpdateScope(self, body, {} if self._rule_of(body) else None)
        scope.env["self"] = scope.all_parts("", "initial")
        value = scope.value(state.init)
        named = dict(value.parts) if isinstance(value, Struct) else {}
        parts: list[Part] = []
        for part in variable.parts:
            expr = named.get(part.name) if named else value
            assert isinstance(expr, Expr)
            lead = self.lead_of(body)
            want = (*lead, *part.shape)
            if [a.size for a in expr.shape] not in ([a.size for a in want], []):
                self.context.fail(
                    "NL0515", f"the state `{variable.name}` does not fit its initial value",
                    state.init.span, f"this is {show(expr.shape[len(lead):])}",
                    f"the state is {show(part.shape)}",
                )  # fmt: skip
            for node in postorder([expr]):
                if node.op in ("stream", "position") or (
                    node.op == "state" and node.attr("when") != "initial"
                ):
                    self.context.fail(
                        "NL0510", "an initial value depends on tokens", state.init.span,
                        "changes over time", "`self` here is the memory's initial value",
                    )  # fmt: skip
            parts.append(replace(part, initial=Initial("expr", expr=expr)))
        return tuple(parts)

    def _update(self, body: Body) -> None:
        update = body.written.update
        level = self.context.levels[body.level]
        if update is None:
            self.context.fail(
                "NL0505", f"`{body.name}` has no update", body.written.span, "the memory",
                "write `update { self = self - lr * grad }` or `update sgd(lr = 0.1)`",
            )  # fmt: skip
        if isinstance(update, tuple):
            scope = UpdateScope(self, body)
            statements = update
        else:
            scope, statements = self._rule_scope(body, update)
        scope.in_window = level.period.count > 1
        if scope.in_window:
            self.context.unsupported.append(
                ("NL0801", f"windows of {level.period.count} tokens", body.written.span)
            )
        scope.begin()
        scope.run(statements)
        if not body.bad:
            body.update = scope.finish()
            if scope.in_window:
                self._varies(body)

    def _varies(self, body: Body) -> None:
        """Refuse a stream that stands bare in the update of a window."""
        from nlc.semantics.order import varying

        for node in varying([a.value for a in body.update]):
            self.context.fail(
                "NL0603", "a stream varies inside the window", node.span,
                f"`{body.name}` changes every {self.context.levels[body.level].period.count} tokens",
                "weight the objective with it, or reduce it: `mean(e, over = tokens)`, "
                "`sum(e * grad, over = tokens)`, `last(e)`", (body.written.span, "the memory"),
            )  # fmt: skip

    def _rule_scope(
        self, body: Body, update: tree.Expr
    ) -> tuple[UpdateScope, tuple[tree.Stmt, ...]]:
        rule = self._rule_of(body)
        assert rule is not None
        if rule.memories:
            self.context.unsupported.append(
                ("NL0805", f"rule `{rule.name}` with a memory of its own", update.span)
            )
        given = self.resolver.arguments(rule, update)
        outer = UpdateScope(self, body)
        outer.in_window = self.context.levels[body.level].period.count > 1
        outer.begin()
        values: dict[str, Value] = {}
        shown: dict[str, tree.Expr] = {}
        for name, expr in given.items():
            values[name] = outer.value(expr)
            shown[name] = expr
        scope = UpdateScope(self, body, values)
        scope.shown = shown
        return scope, rule.equations

    # ---- streams ---------------------------------------------------------------------------

    def stream(self, name: str, span: Span) -> Expr:
        """Give a stream's leaf, resolving its equation first."""
        stream = self.streams[name]
        if stream.state == "bad":
            raise Bad(name)
        if stream.leaf is not None:
            return stream.leaf
        if stream.state == "busy":
            busy = [s for s in self.streams.values() if s.state == "busy"]
            self.context.fail(
                "NL0602", f"`{name}` depends on itself", span, "read here",
                "a stream is made from other streams; its own past is `shift` of another stream, or "
                "a memory read with `prev`",
                *((s.span, f"`{s.name}` is made here") for s in busy),
            )  # fmt: skip
        assert stream.statement is not None
        stream.state = "busy"
        try:
            self._equation(stream.statement)
        except Bad:
            for target in stream.statement.targets:
                if target.path[0] in self.streams:
                    self.streams[target.path[0]].state = "bad"
            raise
        assert stream.leaf is not None
        return stream.leaf

    def _equation(self, statement: tree.Assign) -> None:
        text = statement.span.text
        values = self.values_of(self.scope, statement)
        for target, value in zip(statement.targets, values, strict=True):
            name = target.path[0]
            if isinstance(value, Struct):
                self.context.fail(
                    "NL0415", f"`{name}` would have several parts", target.span,
                    ", ".join(n for n, _ in value.parts), "a stream is one tensor: name a part",
                )  # fmt: skip
            shape = self.check_shape(value, target, (), "NL0407")
            stream = self.streams.get(name)
            if stream is None or stream.statement is not statement:
                continue
            if value.op == "stream" and any(
                value.attr("name") in call.results for call in self.calls
            ) and len(statement.values) != len(statement.targets):  # fmt: skip
                pass
            stream.leaf = self.graph.make("stream", name=name, shape=shape, span=target.span)
            stream.state = "done"
            self.equations.append(Equation(name, value, text, statement.span))

    def values_of(self, scope: Scope, statement: tree.Assign) -> list[Any]:
        """Resolve the right side of an assignment: one value per target."""
        targets, values = statement.targets, statement.values
        if len(targets) == len(values):
            return [scope.value(v) for v in values]
        if len(values) == 1 and isinstance(values[0], tree.Call):
            call = values[0]
            name = call.function.id if isinstance(call.function, tree.Name) else ""
            if name == "eig" and len(targets) == 2:
                return self._eig(scope, call)
            if name in self.context.blocks:
                return list(self.call_block(name, call, len(targets)))
        self.context.fail(
            "NL0309", f"{len(targets)} names and {len(values)} values", statement.span,
            "left and right do not pair up",
            "write as many values as names, or one call with several results",
        )  # fmt: skip

    def _eig(self, scope: Scope, call: tree.Call) -> list[Expr]:
        if len(call.arguments) != 1:
            self.context.fail(
                "NL0309", "`eig` takes one matrix", call.span, f"{len(call.arguments)} given",
                "Q, w = eig(A)",
            )  # fmt: skip
        matrix = scope.plain(call.arguments[0])
        scope.need_rank(matrix, 2, call.span)
        vectors = scope.make("eig_vectors", matrix, span=call.span)
        return [vectors, scope.make("eig_values", matrix, span=call.span)]

    def check_shape(self, value: Expr, target: tree.Target, lead: Shape, code: str) -> Shape:
        """Compare a value with the shape written on the left; give the shape of the name."""
        have = value.shape[len(lead) :] if lead else value.shape
        if target.shape is None:
            return value.shape
        want = self.context.shape(target.shape)
        if len(want) != len(have) or not all(a.fits(b) for a, b in zip(want, have, strict=True)):
            self.context.fail(
                code, f"`{'.'.join(target.path)}` does not have the shape that is written",
                target.span, f"written {show(want)}", f"the value is {show(have)}",
                (value.span, f"this is {show(have)}"),
            )  # fmt: skip
        return (*value.shape[: len(lead)], *want) if lead else want

    def shifted(self, value: Expr, n: int, span: Span) -> Expr:
        """A stream of n tokens ago; the history it needs is noted."""
        key = (id(value), n)
        if key not in self.slots:
            self.slots[key] = f"shift_{len(self.slots) + 1}"
            self.histories.append(History(self.slots[key], n, value.shape))
        return self.graph.make("shift", value, n=n, slot=self.slots[key], span=span)

    def delayed(self, e: Expr, back: int) -> Expr:
        """The same expression over the streams of an earlier token."""
        def delay(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if node.op == "stream":
                return self.shifted(node, back, node.span)
            if node.op == "position":
                earlier = self.graph.constant(float(back), node.span)
                return self.graph.make("sub", node, earlier, span=node.span)
            return None

        return rewrite(self.graph, [e], delay)[0]

    def convolve(self, what: Readable, call: tree.Call) -> Expr:
        """Apply a convolution over time; the history it needs is noted."""
        if len(call.arguments) != 1 or call.keywords:
            self.context.fail(
                "NL0309", f"`{what.name}` is applied to one stream", call.span, "written otherwise",
                f"write `{what.name}(x)`",
            )  # fmt: skip
        (argument,) = call.arguments
        x = self.scope.plain(argument)
        inputs, (channels,) = what.map.inputs, what.map.chain
        n = len(inputs)
        tail = x.shape[len(x.shape) - n :]
        if len(tail) == n and all(a.fits(b) for a, b in zip(tail, inputs, strict=True)):
            wide = x if n == 1 else self.graph.make("reshape", x, last=n, axes=(channels,),
                                                    span=call.span)  # fmt: skip
        elif x.shape and x.shape[-1].fits(channels):
            wide, n = x, 1
        else:
            self.context.fail(
                "NL0406", f"`{what.name}` does not take this stream", argument.span,
                f"this is {show(x.shape)}", f"`{what.name}` has the channels {show(inputs)}",
            )  # fmt: skip
        if len(wide.shape) != 1:
            self.context.fail(
                "NL0406", f"`{what.name}` does not take further axes", argument.span,
                f"this is {show(x.shape)}", f"write the channels as a product: conv({'*'.join(a.name for a in x.shape)})",
            )  # fmt: skip
        width = what.map.option("width")
        assert isinstance(width, int)
        # the same stream through the same convolution has one history
        place = (what.name, id(wide))
        if place not in self.conv_slots:
            uses = self.conv_uses.get(what.name, 0)
            self.conv_uses[what.name] = uses + 1
            self.conv_slots[place] = what.name if uses == 0 else f"{what.name}_{uses}"
            if width > 1:
                self.histories.append(History(self.conv_slots[place], width - 1, (channels,)))
        slot = self.conv_slots[place]
        done = self.graph.make(
            "conv", wide, *what.parts, slot=slot, width=width, span=call.span
        )
        if n == 1:
            return done
        return self.graph.make("reshape", done, last=1, axes=inputs, span=call.span)

    # ---- calls, inputs, outputs ------------------------------------------------------------

    def call_block(self, name: str, call: tree.Call, count: int) -> list[Expr]:
        """Make an instance of another block."""
        return self.resolver.call(self, self.scope, name, call, count)

    def _default(self, parameter: tree.Parameter) -> None:
        if parameter.default is None:
            return
        try:
            value = self.scope.plain(parameter.default)
        except Bad:
            return
        for i, known in enumerate(self.inputs):
            if known.name == parameter.name:
                if [a.size for a in value.shape] != [a.size for a in known.shape]:
                    self.context.faults.error(
                        "NL0407", f"the default of `{known.name}` has another shape",
                        parameter.default.span, f"this is {show(value.shape)}",
                        f"`{known.name}` is {show(known.shape)}", (parameter.span, "the input"),
                    )  # fmt: skip
                self.inputs[i] = replace(known, default=value)

    def _outputs(self) -> tuple[tuple[str, Shape], ...]:
        found: list[tuple[str, Shape]] = []
        for target in self.written.outputs:
            name = target.path[0]
            stream = self.streams.get(name)
            if stream is None:
                self.context.faults.error(
                    "NL0701", f"the output `{name}` is never made", target.span, "named here",
                    f"write an equation `{name} = ...`",
                )  # fmt: skip
                continue
            if stream.leaf is None:
                continue
            try:
                shape = self.check_shape(stream.leaf, target, (), "NL0407")
            except Bad:
                continue
            found.append((name, shape))
        return tuple(found)


def finish_memory(context: Context, body: Body) -> Memory:
    """Make the memory of the typed system from its resolved body."""
    level = context.levels[body.level]
    reset = None
    if body.written.reset is not None:
        unit, count = context.period(body.written.reset)
        reset = Period(unit, count)
    return Memory(
        name=body.name,
        level=body.level,
        lead=body.lead or (),
        map=body.map,
        variables=tuple(body.variables),
        pairs=body.pairs,
        objective=body.objective,
        is_task=body.is_task,
        statements=tuple(body.statements),
        update=body.update,
        learned=body.learned,
        chunk=level.chunk,
        reset=reset,
        through=body.written.through or "full",  # type: ignore[arg-type]
        persistent=body.persistent,
        span=body.span or NOWHERE,
    )


__all__ = ["Block", "BlockResolver", "Axis", "BodyScope", "Unordered", "finish_memory", "substitute"]
