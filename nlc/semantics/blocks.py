"""A block: streams, weights and memories, resolved on demand so that lines may stand in any order.

In: `tree.Block`. Out: `Unordered`, a block whose steps `order` still has to put in sequence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape, show
from nlc.ir.system import (
    Call,
    Equation,
    Input,
    Weight,
)  # fmt: skip
from nlc.semantics.assignments import check_shape, values_of
from nlc.semantics.bodies import resolve_body
from nlc.semantics.body_scopes import PairScope
from nlc.semantics.context import Bad, Context
from nlc.semantics.functions import RESERVED
from nlc.semantics.histories import Histories, shifted
from nlc.semantics.maps import resolve_map
from nlc.semantics.names import taken
from nlc.semantics.online import check_names
from nlc.semantics.records import Body, Stream, Unordered
from nlc.semantics.scopes import BlockScope
from nlc.semantics.values import Struct
from nlc.semantics.weights import check_single, declare_task_memory, declare_weights, with_optimizer
from nlc.source import Span
from nlc.syntax import tree
from nlc.syntax.print_expression import print_map

if TYPE_CHECKING:
    from nlc.semantics.resolve import Resolver


class BlockResolver:
    """Resolves one block."""

    def __init__(self, context: Context, written: tree.Block, resolver: Resolver):
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
        # how often each block has been called
        self.instances: dict[str, int] = {}
        self.pair_values: dict[tuple[str, int], Expr] = {}
        self.owners: dict[str, tuple[str, Span]] = {}
        self.histories = Histories(self.owners)
        self.scope = BlockScope(context, self)

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
                resolve_body(self, body)
            except Bad:
                body.bad = True
        check_names(self)
        outputs = self._outputs()
        return Unordered(
            self.written.name, tuple(self.inputs), outputs, tuple(self.weights.values()),
            tuple(self.bodies.values()), tuple(self.equations), tuple(self.calls),
            self.histories.found, self.written.span, self.written.comments.above,
        )  # fmt: skip

    def claim(self, name: str, what: str, span: Span) -> bool:
        """Take a name; a second one of the same name is a fault."""
        if name in RESERVED or name in ("key", "value"):
            self.context.faults.error(
                "NL0303", f"`{name}` cannot be assigned", span,
                "this name is reserved", "choose another name",
            )  # fmt: skip
            return False
        attribute = taken(name) if what in ("weights", "a memory") else None
        if attribute is not None:
            self.context.faults.error(
                "NL0303", f"`{name}` cannot be the name of {what}", span,
                attribute, f"choose another name, such as `{name.strip('_')}_1`",
            )  # fmt: skip
        if name in self.context.blocks:
            self.context.faults.error(
                "NL0302", f"`{name}` is declared twice", span, f"again, as {what}",
                "a block can be called here: choose another name",
                (self.context.blocks[name].span, "first as a block"),
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
            declare_weights(self, weights)
        for memory in self.written.memories:
            self._declare_memory(memory)
        for statement in self.written.equations:
            if not isinstance(statement, tree.Assign):
                self.context.faults.error(
                    "NL0703", "this does not belong in a block", statement.span, "in a block",
                    "a block holds equations; `repeat` and `share` belong in a model, `every` and "
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

    def known_level(self, name: str, span: Span) -> str:
        """Give a level's name back, if there is one."""
        if name not in self.context.levels:
            self.context.unknown("level", name, span, list(self.context.levels), "NL0304")
        return name

    def _declare_memory(self, written: tree.Memory) -> None:
        names = written.names
        spans = written.name_spans or (written.span,) * len(names)
        levels = written.levels
        try:
            map = resolve_map(self.context, written.map)
            task = isinstance(written.objective, tree.Name) and written.objective.id == "task"
            if task:
                copies = bool(written.axes) or written.slots is not None
                check_single(self, map, copies, written.map.span)
            elif map.kind in ("conv", "table"):
                self.context.fail(
                    "NL0518", f"`{map.kind}` cannot be a memory's map", written.map.span,
                    "a memory maps keys to values",
                    "a memory is a `linear`, `mlp`, `glu`, `lora`, `vector`, `matrix` or `scalar`; "
                    f"write `weights {names[0]} : {print_map(written.map)}`",
                )  # fmt: skip
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
                self.known_level(level, span)
        except Bad:
            for name, span in zip(names, spans, strict=True):
                if self.claim(name, "a memory", span):
                    self.streams[name] = Stream(name, span, state="bad")
            return
        for i, (name, span) in enumerate(zip(names, spans, strict=True)):
            if not self.claim(name, "a memory", span):
                continue
            level = levels[i if len(levels) > 1 else 0]
            if task and self.context.levels[level].period.unit == "steps":
                declare_task_memory(self, written, name, level, map, span)
                continue
            whole = with_optimizer(self, written, level) if task else written
            self.bodies[name] = Body(name, whole, level, map, is_task=task, span=span)

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
                "a stream is made from other streams and their past; what carries its own past is "
                "a memory, read with `prev`",
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
        return self.stream(name, span)

    def _equation(self, statement: tree.Assign) -> None:
        text = statement.span.text
        values = values_of(self, self.scope, statement)
        for target, value in zip(statement.targets, values, strict=True):
            name = target.path[0]
            if isinstance(value, Struct):
                self.context.fail(
                    "NL0415", f"`{name}` would have several parts", target.span,
                    ", ".join(n for n, _ in value.parts), "a stream is one tensor: name a part",
                )  # fmt: skip
            shape = check_shape(self, value, target, (), "NL0407")
            stream = self.streams.get(name)
            if stream is None or stream.statement is not statement:
                continue
            stream.leaf = self.graph.make("stream", name=name, shape=shape, span=target.span)
            stream.state = "done"
            self.equations.append(Equation(name, value, text, statement.span))

    def shifted(self, value: Expr, n: int, span: Span) -> Expr:
        """A stream of n tokens ago."""
        return shifted(self, value, n, span)

    def scope_at(self, clock: int) -> BlockScope:
        """The block's names as what moves every `clock` tokens sees them."""
        return BlockScope(self.context, self, clock)

    def pair_scope(self, body: Body) -> PairScope:
        """Where a memory's keys and values stand."""
        return PairScope(self, body)

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
                    "NL0701", f"the output `{name}` is never assigned", target.span, "named here",
                    f"write an equation `{name} = ...`",
                )  # fmt: skip
                continue
            if stream.leaf is None:
                continue
            try:
                shape = check_shape(self, stream.leaf, target, (), "NL0407")
            except Bad:
                continue
            found.append((name, shape))
        return tuple(found)
