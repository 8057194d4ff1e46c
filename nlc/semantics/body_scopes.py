"""Inside the braces of a memory: what names mean in keys, values and objectives.

Streams come in per copy of the memory; `self` is the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.system import (
    Part,
)  # fmt: skip
from nlc.semantics.axes import enter
from nlc.semantics.expressions import Scope
from nlc.semantics.histories import earlier
from nlc.semantics.memories import memory_readable, state_leaf, variables
from nlc.semantics.records import Body
from nlc.semantics.values import Readable, Value, each, pack
from nlc.semantics.windows import seen
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver
    from nlc.semantics.scopes import BlockScope

# how many tokens `recent` may sum over: each is a term of its own
RECENT = 256


def _size_of(part: Part, side: str) -> int:
    """Give the size of a part on one side: a vector of n entries has `in` = n and `out` = 1."""
    if side == "in":
        return part.shape[-1].size if part.shape else 1
    return part.shape[-2].size if len(part.shape) > 1 else 1


def over_tokens(call: tree.Call) -> tree.Expr | None:
    """Return what stands after `over =` if it names `tokens`, alone or among others."""
    over = next((k.value for k in call.keywords if k.name == "over"), None)
    items = over.items if isinstance(over, tree.Tuple) else (over,)
    named = any(isinstance(item, tree.Name) and item.id == "tokens" for item in items)
    return over if named else None


class BodyScope(Scope):
    """Inside the braces of a memory: streams come in per copy; `self` is the memory."""

    def __init__(self, block: BlockResolver, body: Body):
        super().__init__(block.context, body.lead or ())
        self.block = block
        self.body = body

    def known_names(self) -> list[str]:
        states = [v.name for v in self.body.variables if v.name]
        return ["self", "key", "value", *states, *self.block.scope.known_names()]

    def dim_axis(self, name: str) -> str | None:
        return name if name in ("in", "out") else None

    @property
    def outside(self) -> BlockScope:
        """The block around, as what stands here sees it."""
        return self.block.scope

    def enter(self, value: Value) -> Value:
        """Bring a value of the block into the body."""
        return each(
            self.context, [value], lambda v: enter(self.context, v[0], self.lead), self.span
        )

    @property
    def span(self) -> Span:
        """Where the memory stands."""
        return self.body.written.span

    def own(self, name: str) -> bool:
        """Say whether a name is the memory itself."""
        return name in ("self", self.body.name)

    def leaf(self, var: str, part: Part, when: str) -> Expr:
        """A state of this memory as a leaf."""
        return state_leaf(self.block, self.body, var, part, when)

    def all_parts(self, var: str, when: str) -> Value:
        """All parts of a state of this memory."""
        variable = next(v for v in variables(self.block, self.body) if v.name == var)
        return pack(self.body.map, tuple((p.name, self.leaf(var, p, when)) for p in variable.parts))

    def own_time(self, call: tree.Call) -> bool:
        """Say whether a call is `prev(self)`, `initial(M)`, ... of the memory itself."""
        return any(isinstance(a, tree.Name) and self.own(a.id) for a in call.arguments)

    def find(self, name: tree.Name) -> Value | None:
        if name.id in ("key", "value"):
            return self._pair(name)
        if name.id in ("in", "out"):
            return self._size(name)
        value = self.outside.find(name)
        return None if value is None else self.enter(value)

    def _size(self, name: tree.Name) -> Value:
        sizes = [_size_of(part, name.id) for part in self.body.parts] or [1]
        numbers = [self.context.number(float(size), name.span) for size in sizes]
        if len(set(sizes)) == 1:
            return numbers[0]
        names = (part.name for part in self.body.parts)
        return pack(self.body.map, tuple(zip(names, numbers, strict=True)))

    def _pair(self, name: tree.Name) -> Value:
        if not self.body.pairs:
            self.context.fail(
                "NL0503", f"`{self.body.name}` has no {name.id}", name.span, "used here",
                f"write `{name.id} e` in the memory", (self.span, "the memory"),
            )  # fmt: skip
        if len(self.body.pairs) > 1:
            self.context.fail(
                "NL0504", f"`{name.id}` is ambiguous here", name.span,
                f"`{self.body.name}` has {len(self.body.pairs)} pairs for each token",
                "name the stream itself; only an objective is summed over the pairs",
                (self.span, "the memory"),
            )  # fmt: skip
        return self.body.pairs[0][0 if name.id == "key" else 1]

    def readable(self, expr: tree.Expr) -> Readable | None:
        match expr:
            case tree.Call(
                function=tree.Name(id="prev" | "initial" as when), arguments=(tree.Name(id=name),)
            ) if self.own(name):
                return memory_readable(self.block, self.body, when, own=True)
        found = self.outside.readable(expr)
        return found if isinstance(found, Readable) else None

    def attribute(self, expr: tree.Attribute) -> Value:
        base = expr.base
        if isinstance(base, tree.Name) and not self.own(base.id) and self.block.is_memory(base.id):
            return self.enter(self.outside.attribute(expr))
        return super().attribute(expr)

    def special(self, name: str, call: tree.Call) -> Value | None:
        if name in ("shift", "rope", "loss"):
            return self.enter(self.block.scope.value(call))
        if name in ("prev", "initial") and call.arguments:
            (argument, *_) = call.arguments
            if isinstance(argument, tree.Name) and self.own(argument.id):
                return self.all_parts("", name)
            if (
                isinstance(argument, tree.Attribute)
                and isinstance(argument.base, tree.Name)
                and self.own(argument.base.id)
                and self.is_state(argument.name)
            ):
                return self.all_parts(argument.name, name)
            if isinstance(argument, tree.Name) and self.is_state(argument.id):
                return self.all_parts(argument.id, name)
            return self.enter(self.outside.value(call))
        if name == "tokens":
            return self._tokens(call)
        if name in ("last", "recent", "grad"):
            return self._elsewhere(name, call)
        return None

    def is_state(self, name: str) -> bool:
        """Say whether a name is an extra state of this memory."""
        return any(v.name == name for v in self.body.variables if v.name)

    def _elsewhere(self, name: str, call: tree.Call) -> Value:
        self.context.fail(
            "NL0605", f"`{name}` has no meaning here", call.span, "in this place",
            {"recent": "use `recent(e, n)` in an objective",
             "grad": "use `grad` in an update",
             "last": "use `last(e)` in the update of a memory with windows"}[name],
        )  # fmt: skip

    def _tokens(self, call: tree.Call) -> Value | None:
        over = over_tokens(call)
        if over is None:
            return None
        self.context.fail(
            "NL0606", "there are no tokens to reduce over here", over.span, "in this place",
            "use `over = tokens` in the update of a memory or in a rule",
        )  # fmt: skip

    def apply(self, what: Readable, call: tree.Call) -> Value:
        if what.map.kind == "conv":
            if what.name == self.body.name:
                self.context.fail(
                    "NL0518", f"`{what.name}` is applied where it moves", call.span,
                    "a convolution remembers streams, which its own update does not",
                    "apply it in an equation of the block",
                )  # fmt: skip
            return self.enter(self.block.scope.apply(what, call))
        return super().apply(what, call)


class PairScope(BodyScope):
    """`key e` and `value e`: streams of the block, with `self` for the memory."""

    def __init__(self, block: BlockResolver, body: Body):
        super().__init__(block, body)
        self.lead = ()

    def find(self, name: tree.Name) -> Value | None:
        if self.own(name.id):
            return self.all_parts("", seen(self.block, self.body, "post", 1))
        found: Value | None = self.block.scope.find(name)
        return found

    def readable(self, expr: tree.Expr) -> Readable | None:
        if isinstance(expr, tree.Name) and self.own(expr.id):
            return memory_readable(self.block, self.body, "post")
        return super().readable(expr)

    def enter(self, value: Value) -> Value:
        return value


class ObjectiveScope(BodyScope):
    """An objective: plain applications of the memory are what `grad` differentiates."""

    def __init__(
        self, block: BlockResolver, body: Body, pair: int, env: dict[str, Value], closed: bool
    ):
        super().__init__(block, body)
        self.pair = pair
        self.env = env
        # inside a rule, the names of the block are not seen
        self.closed = closed
        # the leading axes of a key are not seen, also where the memory has no copies
        self.lead = (*self.lead, *body.batch)

    def known_names(self) -> list[str]:
        if self.closed:
            return ["self", "key", *self.env]
        return [*self.env, *super().known_names()]

    def dim(self, name: str) -> int | None:
        return None if self.closed else super().dim(name)

    def find(self, name: tree.Name) -> Value | None:
        if self.own(name.id):
            return pack(self.body.map, tuple((p.name, self._variable(p)) for p in self.body.parts))
        if name.id in self.env:
            return self.env[name.id]
        if name.id in ("key", "value") and self.body.pairs:
            return self.body.pairs[self.pair][0 if name.id == "key" else 1]
        if self.closed and name.id not in ("in", "out", "key", "value"):
            return None
        return super().find(name)

    def _variable(self, part: Part) -> Expr:
        return self.make(
            "variable", memory=self.body.label, part=part.name,
            shape=(*(self.body.lead or ()), *part.shape), span=self.span,
        )  # fmt: skip

    def readable(self, expr: tree.Expr) -> Readable | None:
        if isinstance(expr, tree.Name) and self.own(expr.id):
            parts = tuple(self._variable(p) for p in self.body.parts)
            return Readable(self.body.name, self.body.map, self.body.lead or (), parts)
        if self.closed and not (isinstance(expr, tree.Call) and self.own_time(expr)):
            return None
        return super().readable(expr)

    def special(self, name: str, call: tree.Call) -> Value | None:
        if self.closed and name not in ("prev", "initial"):
            return None
        if name == "recent":
            return self._recent(call)
        return super().special(name, call)

    def _recent(self, call: tree.Call) -> Value:
        if len(call.arguments) != 2 or call.keywords:
            self.context.fail(
                "NL0309", "`recent` takes 2 arguments", call.span, f"{len(call.arguments)} given",
                "recent(e, n) sums e over this token and the n - 1 before it",
            )  # fmt: skip
        written, count = call.arguments
        e = self.plain(written)
        n = self.context.positive(count, "the number of tokens")
        if n > RECENT:
            self.context.fail(
                "NL0402", "`recent` looks back too far", count.span, f"{n} tokens",
                f"up to {RECENT} tokens",
            )  # fmt: skip
        if n == 1:
            return e
        terms = [earlier(self.block, e, 0, None, call.span)]
        for back in range(1, n):
            position = self.make("position", span=call.span)
            bound = self.context.number(float(back), call.span)
            begun = self.make("ge", position, bound, span=call.span)
            past = earlier(self.block, e, back, begun, call.span)
            nothing = self.context.number(0.0, call.span)
            kept = self.combine(
                "where", call.span,
                [(begun, call.span), (past, written.span), (nothing, call.span)],
            )  # fmt: skip
            assert isinstance(kept, Expr)
            terms.append(kept)
        return self._total(terms, call.span)

    def _total(self, terms: list[Expr], span: Span) -> Expr:
        """Add in pairs, so that a long sum is no deep one."""
        while len(terms) > 1:
            pairs = zip(terms[::2], terms[1::2], strict=False)
            added = [self.combine("add", span, [(a, span), (b, span)]) for a, b in pairs]
            terms = [*(x for x in added if isinstance(x, Expr)), *terms[len(added) * 2 :]]
        return terms[0]
