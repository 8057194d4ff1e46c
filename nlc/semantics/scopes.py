"""Where a block's equations stand: what their names mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nlc.ir.expr import Expr
from nlc.semantics.context import Bad, Context, several
from nlc.semantics.expressions import Scope
from nlc.semantics.histories import convolve
from nlc.semantics.memories import bare_state, memory_readable, variables
from nlc.semantics.objectives import at_state, own_objective
from nlc.semantics.values import Readable, Value, bare
from nlc.semantics.weights import weight_readable
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


class Owner(Protocol):
    """What a scope over streams stands in: a block or a model."""

    def call_block(self, name: str, call: tree.Call, count: int) -> list[Expr]:
        """Make an instance of a block."""

    def shifted(self, value: Expr, n: int, span: Span) -> Expr:
        """A stream of n tokens ago."""


class StreamScope(Scope):
    """What blocks and models share: histories over time, calls of blocks."""

    def __init__(self, context: Context, owner: Owner):
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
                "NL0604", "a shift into the future", counts[0].span,
                f"{several(-n, 'token')} ahead",
                "a token sees itself and the past: n is 0 or more",
            )  # fmt: skip
        value = self.plain(call.arguments[0])
        if n == 0:
            return value
        return self.owner.shifted(value, n, call.span)


class BlockScope(StreamScope):
    """The equations of a block: streams, weights and memories by name.

    `clock` is how many tokens apart what is read here moves: 1 for streams.
    """

    owner: BlockResolver

    def __init__(self, context: Context, owner: BlockResolver, clock: int = 1):
        super().__init__(context, owner)
        self.clock = clock

    def known_names(self) -> list[str]:
        owner = self.owner
        return [*owner.streams, *owner.weights, *owner.bodies, *self.context.dims]

    def find(self, name: tree.Name) -> Value | None:
        owner = self.owner
        if name.id in owner.streams:
            value: Value = owner.stream(name.id, name.span)
            return value
        if name.id in owner.weights:
            readable = weight_readable(owner, owner.weights[name.id])
            return bare(owner.context, readable, name.span)
        if name.id in owner.bodies:
            return bare_state(owner, owner.bodies[name.id], "", "post", name.span, self.clock)
        return None

    def readable(self, expr: tree.Expr) -> Readable | None:
        owner = self.owner
        match expr:
            case tree.Name(id=name) if name in owner.weights:
                return weight_readable(owner, owner.weights[name])
            case tree.Name(id=name) if name in owner.bodies:
                return memory_readable(owner, owner.bodies[name], "post", clock=self.clock)
            case tree.Call(
                function=tree.Name(id="prev" | "initial" as when), arguments=(tree.Name(id=name),)
            ):
                if name in owner.bodies:
                    return memory_readable(owner, owner.bodies[name], when)
                self._no_memory(when, name, expr.arguments[0].span)
            case tree.Name(id=name) if name in owner.streams:
                if owner.streams[name].state == "bad":
                    raise Bad(name)
                self.context.fail(
                    "NL0301", f"`{name}` cannot be applied", expr.span, "this is a stream",
                    "apply weights `W(x)`, a memory `M(q)`, `prev(M)(q)` or a function",
                    (owner.streams[name].span, "made here"),
                )  # fmt: skip
        return None

    def _no_memory(self, when: str, name: str, span: Span) -> None:
        self._told(name)
        if name in self.owner.streams or name in self.owner.weights:
            self.context.fail(
                "NL0310", f"`{when}` applies only to memories", span, f"`{name}` is not a memory",
                f"for a stream write `shift({name})`"
                if when == "prev" and name in self.owner.streams
                else "weights do not change within a sequence; name a memory of this block",
            )  # fmt: skip
        self.context.unknown("memory", name, span, list(self.owner.bodies), "NL0301")

    def _told(self, name: str) -> None:
        """Say no more of a name whose own declaration has a fault."""
        if name in self.owner.streams and self.owner.streams[name].state == "bad":
            raise Bad(name)

    def attribute(self, expr: tree.Attribute) -> Value:
        base = expr.base
        if isinstance(base, tree.Name) and base.id in self.owner.bodies:
            body = self.owner.bodies[base.id]
            if any(v.name == expr.name for v in variables(self.owner, body) if v.name):
                return bare_state(self.owner, body, expr.name, "post", expr.span, self.clock)
        return super().attribute(expr)

    def special(self, name: str, call: tree.Call) -> Value | None:
        if name in ("prev", "initial") and len(call.arguments) == 1:
            return self._earlier(name, call)
        if name == "loss":
            return self._loss(call)
        if name in ("grad", "last", "recent"):
            self.context.fail(
                "NL0605", f"`{name}` has no meaning in a block's equations", call.span,
                "in this place", "it belongs inside a memory",
            )  # fmt: skip
        return super().special(name, call)

    def _earlier(self, when: str, call: tree.Call) -> Value:
        (argument,) = call.arguments
        owner = self.owner
        match argument:
            case tree.Name(id=name) if name in owner.bodies:
                return bare_state(owner, owner.bodies[name], "", when, call.span)
            case tree.Attribute(base=tree.Name(id=name), name=state) if name in owner.bodies:
                body = owner.bodies[name]
                if any(v.name == state for v in variables(owner, body) if v.name):
                    return bare_state(owner, body, state, when, call.span)
        word = argument.id if isinstance(argument, tree.Name) else ""
        self._no_memory(when, word, argument.span)
        raise Bad("NL0310")

    def _loss(self, call: tree.Call) -> Value:
        owner = self.owner
        (argument, *rest) = call.arguments or (None,)
        if isinstance(argument, tree.Name):
            self._told(argument.id)
        if rest or not isinstance(argument, tree.Name) or argument.id not in owner.bodies:
            self.context.fail(
                "NL0310", "`loss` applies only to memories", call.span, "no memory here",
                "loss(M) is M's objective at this token, before its update",
            )  # fmt: skip
        body = owner.bodies[argument.id]
        objective = own_objective(owner, body)
        if objective is None:
            self.context.fail(
                "NL0513", f"`{body.name}` has no objective", call.span, "asked for here",
                "write `objective e`, or `key` and `value`", (body.written.span, "the memory"),
            )  # fmt: skip
        return at_state(owner, objective, body, "prev")

    def apply(self, what: Readable, call: tree.Call) -> Value:
        if what.map.kind == "conv":
            return convolve(self.owner, what, call)
        return super().apply(what, call)
