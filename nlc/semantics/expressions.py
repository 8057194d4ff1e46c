"""Expressions: syntax -> graph, with names looked up and axes matched.

In: `tree.Expr` and a `Scope`. Out: a `Value`. Scopes differ in what names mean (a block's
equations, a memory's objective, its update, a rule, a model); the rest is the same and stands here.
"""

from __future__ import annotations

from typing import NoReturn

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape, show
from nlc.semantics.axes import align, broadcast, broadcast_front, enter, split
from nlc.semantics.context import Context
from nlc.semantics.functions import call_function
from nlc.semantics.products import ELEMENTWISE, product
from nlc.semantics.values import Readable, Struct, Value, each, select
from nlc.source import Span
from nlc.syntax import tree

COMPARISONS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}


class Scope:
    """Where an expression stands: `lead` are the leading axes its names do not see."""

    def __init__(self, context: Context, lead: Shape = ()):
        self.context = context
        self.graph = context.graph
        self.lead = lead

    # ---- what the kinds of scope decide ----------------------------------------------------

    def known_names(self) -> list[str]:
        """Names that a message may suggest."""
        return list(self.context.dims)

    def find(self, name: tree.Name) -> Value | None:
        """Return the value of a bare name, or None where it has none here."""
        return None

    def readable(self, expr: tree.Expr) -> Readable | None:
        """Return what an expression in the place of a function can be applied as."""
        return None

    def attribute(self, expr: tree.Attribute) -> Value:
        """`base.name`: a part of a value."""
        return select(self.context, self.value(expr.base), expr.name, expr.span)

    def special(self, name: str, call: tree.Call) -> Value | None:
        """Functions that only this kind of scope knows."""
        return None

    def dim_axis(self, name: str) -> str | None:
        """Say which axis `over = in` or `over = out` means: "in", "out" or None (a dim)."""
        return None

    # ---- expressions -----------------------------------------------------------------------

    def value(self, expr: tree.Expr) -> Value:
        """Resolve an expression."""
        match expr:
            case tree.Number():
                return self.context.number(float(expr.value), expr.span)
            case tree.Name():
                return self._name(expr)
            case tree.Attribute():
                return self.attribute(expr)
            case tree.Call():
                return self._call(expr)
            case tree.Unary(operator=op, operand=operand):
                inner = self.value(operand)
                if op == "+":
                    return inner
                return each(self.context, [inner], lambda v: self.make("neg", *v, span=expr.span),
                            expr.span)  # fmt: skip
            case tree.Binary():
                return self._binary(expr)
            case tree.Compare(operator=op, left=left, right=right):
                return self.elementwise(COMPARISONS[op], expr.span, [left, right])
            case tree.Norm(operand=operand):
                return self.reduce("norm", self.plain(operand), (-1,), expr.span)
            case tree.Inner(left=left, right=right):
                return self.dot(self.plain(left), self.plain(right), expr)
            case _:
                self.context.fail(
                    "NL0415", "a tuple is not a value", expr.span, "several values at once",
                    "tuples are allowed only after `over =` and `coefficients =`",
                )  # fmt: skip

    def make(self, op: str, *args: Expr, span: Span, **attrs: object) -> Expr:
        """Make a node of the graph."""
        return self.graph.make(op, *args, span=span, **attrs)

    def plain(self, expr: tree.Expr) -> Expr:
        """Resolve an expression that must be one tensor."""
        value = self.value(expr)
        if isinstance(value, Struct):
            names = ", ".join(name for name, _ in value.parts)
            self.context.fail(
                "NL0415", "one value is needed here", expr.span, f"this has the parts {names}",
                "name a part, `M.layer1`, or apply the map: `M(x)`",
            )  # fmt: skip
        return value

    def body_rank(self, expr: Expr) -> int:
        """Count the axes that are seen here."""
        return len(expr.shape) - split(expr.shape, self.lead)

    def scalar(self, expr: tree.Expr, what: str) -> Expr:
        """Resolve an expression that must be a single number here."""
        value = self.plain(expr)
        if self.body_rank(value):
            seen = value.shape[split(value.shape, self.lead) :]
            self.context.fail(
                "NL0415", f"{what} must be a single number", expr.span, f"this is {show(seen)}",
                "reduce it: `sum(...)`, `mean(...)`, `||...||`",
            )  # fmt: skip
        return value

    def _name(self, expr: tree.Name) -> Value:
        value = self.find(expr)
        if value is not None:
            return value
        if expr.id == "position":
            return self.make("position", span=expr.span)
        size = self.dim(expr.id)
        if size is not None:
            return self.context.number(float(size), expr.span)
        self.unknown("name", expr.id, expr.span)

    def dim(self, name: str) -> int | None:
        """Return the number that a dim's name stands for, None where dims are not seen."""
        return self.context.dims.get(name)

    def unknown(self, what: str, name: str, span: Span) -> NoReturn:
        """Refuse a name that means nothing here."""
        self.context.unknown(what, name, span, self.known_names(), "NL0301")

    def _binary(self, expr: tree.Binary) -> Value:
        if expr.operator == "@":
            return product(self, expr)
        if (
            expr.operator == "^"
            and isinstance(expr.left, tree.Norm)
            and isinstance(expr.right, tree.Number)
            and expr.right.value == 2
        ):
            inner = self.plain(expr.left.operand)
            square = self.make("mul", inner, inner, span=expr.span)
            return self.reduce("sum", square, (-1,), expr.span)
        # a long sum leans to the left: walk down it without recursion
        spine: list[tree.Binary] = [expr]
        while (
            isinstance(spine[-1].left, tree.Binary)
            and spine[-1].left.operator in "+-*/"
            and spine[-1].operator != "^"
        ):
            spine.append(spine[-1].left)
        value = self.value(spine[-1].left)
        for node in reversed(spine):
            value = self.combine(
                ELEMENTWISE[node.operator], node.span,
                [(value, node.left.span), (self.value(node.right), node.right.span)],
            )  # fmt: skip
        return value

    def elementwise(self, op: str, span: Span, args: list[tree.Expr]) -> Value:
        """Resolve arguments and apply an elementwise operation."""
        return self.combine(op, span, [(self.value(a), a.span) for a in args])

    def combine(self, op: str, span: Span, args: list[tuple[Value, Span]]) -> Value:
        """Apply an elementwise operation to values whose axes match by name."""
        spans = [s for _, s in args]

        def one(values: list[Expr]) -> Expr:
            words = f"`{span.text}`" if "\n" not in span.text and len(span.text) < 60 else "this"
            aligned = broadcast(self.context, values, spans, self.lead, words)
            return self.make(op, *aligned, span=span)

        return each(self.context, [v for v, _ in args], one, span)

    def dot(self, left: Expr, right: Expr, expr: tree.Inner) -> Expr:
        """`<left, right>` over the last axis."""
        if not self.body_rank(left) and not self.body_rank(right):
            value = self.combine(
                "mul", expr.span, [(left, expr.left.span), (right, expr.right.span)]
            )
            assert isinstance(value, Expr)
            return value
        self.need_rank(left, 1, expr.left.span)
        self.need_rank(right, 1, expr.right.span)
        if not left.shape[-1].fits(right.shape[-1]):
            self.context.fail(
                "NL0404", "an inner product needs the same last axis", expr.right.span,
                f"ends with {right.shape[-1].name}", "sizes with different names do not match",
                (expr.left.span, f"ends with {left.shape[-1].name}"),
            )  # fmt: skip
        a, b = broadcast_front(
            self.context, [left, right], [expr.left.span, expr.right.span], [1, 1], self.lead,
            "an inner product",
        )  # fmt: skip
        return self.make("dot", a, b, span=expr.span)

    def need_rank(self, value: Expr, rank: int, span: Span) -> None:
        """Refuse a value with too few axes."""
        if self.body_rank(value) < rank:
            word = "vector" if rank == 1 else "matrix"
            self.context.fail(
                "NL0409", f"a {word} is needed here", span,
                f"this is {show(value.shape[split(value.shape, self.lead):])}",
                f"a {word} has {rank} ax{'is' if rank == 1 else 'es'} or more",
            )  # fmt: skip

    def reduce(
        self, op: str, value: Expr, axes: tuple[int, ...], span: Span, **attrs: object
    ) -> Expr:
        """Reduce over axes; a single number counts as an axis of one entry."""
        same = op in ("softmax", "unit", "rmsnorm", "layernorm")
        if not axes or self.body_rank(value) == 0:
            if op in ("sum", "mean", "max", "min", "logsumexp"):
                return value
            if op == "norm":
                return self.make("abs", value, span=span)
            wide = self.make("unsqueeze", value, axes=(-1,), span=span)
            done = self.make(op, wide, axes=(-1,), span=span, **attrs)
            return self.make("reshape", done, last=1, axes=(), span=span)
        if same:
            return self.make(op, value, axes=axes, span=span, **attrs)
        return self.make(op, value, axes=axes, span=span, **attrs)

    def over(self, value: Expr, call: tree.Call) -> tuple[int, ...]:
        """Find the axes of `over =`, counted from the right; the last one by default."""
        keyword = next((k for k in call.keywords if k.name == "over"), None)
        if keyword is None:
            return (-1,)
        items = keyword.value.items if isinstance(keyword.value, tree.Tuple) else (keyword.value,)
        seen = value.shape[split(value.shape, self.lead) :]
        found: set[int] = set()
        for item in items:
            if not isinstance(item, tree.Name):
                self.context.fail(
                    "NL0408", "`over =` names axes", item.span, "this is not a name",
                    "a dim, `in`, `out` or `tokens`, or several in brackets",
                )  # fmt: skip
            side = self.dim_axis(item.id)
            if side is not None:
                found |= self._side(seen, side)
                continue
            places = [i - len(seen) for i, axis in enumerate(seen) if axis.name == item.id]
            if len(places) != 1:
                if item.id not in self.context.dims:
                    self.context.unknown(
                        "axis", item.id, item.span, [a.name for a in seen], "NL0408"
                    )
                self.context.fail(
                    "NL0408", f"no single axis `{item.id}` to reduce over", item.span,
                    f"the value is {show(seen)}", f"its axes are {show(seen)}",
                )  # fmt: skip
            found.add(places[0])
        return tuple(sorted(found))

    def _side(self, seen: Shape, side: str) -> set[int]:
        if len(seen) >= 2:
            return {-1 if side == "in" else -2}
        if len(seen) == 1 and seen[0].role:
            return {-1} if seen[0].role == side else set()
        return {-1} if len(seen) == 1 and side == "in" else set()

    # ---- calls -----------------------------------------------------------------------------

    def _call(self, call: tree.Call) -> Value:
        readable = self.readable(call.function)
        if readable is not None:
            return self.apply(readable, call)
        if isinstance(call.function, tree.Name):
            value = self.special(call.function.id, call)
            if value is not None:
                return value
            return call_function(self, call.function.id, call)
        self.context.fail(
            "NL0301", "this cannot be applied", call.function.span, "not a function or a map",
            "apply weights `W(x)`, a memory `M(q)`, `prev(M)(q)` or a function",
        )  # fmt: skip

    def apply(self, what: Readable, call: tree.Call) -> Value:
        """Apply weights or a memory's state to a stream."""
        if len(call.arguments) != 1 or call.keywords:
            self.context.fail(
                "NL0309", f"`{what.name}` is applied to one stream", call.span,
                f"{len(call.arguments) + len(call.keywords)} arguments", f"write `{what.name}(x)`",
            )  # fmt: skip
        (argument,) = call.arguments
        x = self.plain(argument)
        if what.map.kind in ("vector", "scalar", "matrix"):
            self.context.fail(
                "NL0406", f"`{what.name}` is a {what.map.kind}, used by its bare name", call.span,
                "applied to a stream", f"write `{what.name}`, or `{what.name} @ x`",
            )  # fmt: skip
        x = self.fit(what, x, argument.span)
        if what.map.kind == "table":
            return self.make("lookup", what.parts[0], x, span=call.span)
        return self.read(what, x, call.span)

    def read(self, what: Readable, x: Expr, span: Span) -> Expr:
        """Make the read of a map by a stream that fits it."""
        if what.map.kind == "kernel":
            read = self.make(
                "attend", x, memory=what.memory, when=what.when, lead=len(what.lead),
                shape=(*what.lead, *x.shape[len(what.lead) : -1], *what.map.outputs), span=span,
            )  # fmt: skip
        else:
            read = self.make(
                "apply", x, *what.parts, map=what.map, lead=len(what.lead), memory=what.memory,
                span=span,
            )  # fmt: skip
        if what.route is not None:
            read = self._over_slots(what, what.route, read, span)
        return enter(self.context, read, self.lead)

    def _over_slots(self, what: Readable, route: Expr, read: Expr, span: Span) -> Expr:
        """Sum a read over the slots, weighted: sum of w_i M_i(x)."""
        rest = read.shape[len(what.lead) :]
        weight = align(self.context, route, what.lead, rest, what.lead)
        weighted = self.make("mul", weight, read, span=span)
        return self.make("sum", weighted, axes=(-1 - len(rest),), span=span)

    def fit(self, what: Readable, x: Expr, span: Span) -> Expr:
        """Bring a stream into the form [*lead, *more, *inputs] of a map."""
        inputs = what.map.inputs
        n = len(inputs)
        names = [axis.name for axis in x.shape]
        tail = x.shape[len(x.shape) - n :] if n else ()
        direct = len(tail) == n and all(a.fits(b) for a, b in zip(tail, inputs, strict=True))
        if not direct and x.shape and what.map.chain and x.shape[-1].fits(what.map.chain[0]):
            x = self.make("reshape", x, last=1, axes=inputs, span=span)
        elif not direct:
            self.context.fail(
                "NL0406", f"`{what.name}` does not take this stream", span,
                f"this is {show(x.shape)}", f"`{what.name}` takes {show(inputs)} last",
            )  # fmt: skip
        if not what.lead:
            return x
        names = [axis.name for axis in x.shape[: len(x.shape) - n]]
        front = [names.index(axis.name) for axis in what.lead if axis.name in names]
        rest = [i for i in range(len(x.shape)) if i not in front]
        order = (*front, *rest)
        if order != tuple(range(len(x.shape))):
            x = self.make("permute", x, order=order, span=span)
        missing = [i for i, axis in enumerate(what.lead) if axis.name not in names]
        if missing:
            rank = len(x.shape) + len(missing)
            x = self.make("unsqueeze", x, axes=tuple(i - rank for i in missing), span=span)
        return x
