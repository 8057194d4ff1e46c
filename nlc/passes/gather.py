"""Sums over tokens, written so that they can run as products of matrices.

In: the equations of an update without `grad`. Out: the same, in which an outer product under a
`window` sum carries its factors in its first vector: where each token has a number s,
sum of s * outer(a, b) becomes sum of outer(s * a, b). Nothing else is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nlc.ir.expr import Expr, Graph, rewrite
from nlc.passes.shaping import drop, size_at
from nlc.passes.simplify import build

# what a factor does to a value: multiplies it, or leaves it out
Factor = Callable[[Expr, bool], Expr]


def gather(graph: Graph, roots: Iterable[Expr]) -> list[Expr]:
    """Gather the factors of outer products under sums over tokens.

    >>> from nlc.ir.shape import Axis
    >>> g, n = Graph(), Axis("n", 2)
    >>> s = g.make("unsqueeze", g.make("stream", name="s", shape=()), axes=(-2, -1))
    >>> k = g.make("stream", name="k", shape=(n,))
    >>> x = g.make("mul", s, g.make("outer", k, k))
    >>> attrs = dict(how="sum", period=("tokens", 4), slot="1", again=False)
    >>> [total] = gather(g, [g.make("window", x, **attrs)])
    >>> total.args[0].op, total.args[0].args[0].op
    ('outer', 'mul')
    """

    def replace(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "window" or node.attr("how") not in ("sum", "mean"):
            return None
        found = _Gathering(graph).into(args[0], ())
        if found is None:
            return None
        return graph.make("window", found, span=node.span, **dict(node.attrs))

    return rewrite(graph, roots, replace)


class _Gathering:
    """Walks down sums and factors to outer products."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def into(self, x: Expr, factors: tuple[Factor, ...]) -> Expr | None:
        """Give x times the factors with outer products in front; None where x holds none."""
        graph = self.graph
        match x.op:
            case "let":
                return self.into(x.args[0], factors)
            case "neg":
                inner = self.into(x.args[0], factors)
                return None if inner is None else build(graph, "neg", inner)
            case "add" | "sub" if all(_is_whole(arg) for arg in x.args):
                return self._both(x, factors)
            case "mul" | "div" | "where":
                split = self._factor(x)
                return None if split is None else self.into(split[1], (split[0], *factors))
            case "stop":
                inner = self.into(x.args[0], ())
                return None if inner is None else self.into(_constant(graph, inner), factors)
            case "outer":
                return self._outer(x.args[0], x.args[1], factors)
            case _:
                return None

    def _both(self, x: Expr, factors: tuple[Factor, ...]) -> Expr | None:
        found = [self.into(arg, factors) for arg in x.args]
        if all(inner is None for inner in found):
            return None
        left, right = (
            _times(arg, factors) if inner is None else inner
            for arg, inner in zip(x.args, found, strict=True)
        )
        return build(self.graph, x.op, left, right)

    def _outer(self, a: Expr, b: Expr, factors: tuple[Factor, ...]) -> Expr:
        for factor in factors:
            a = factor(a, True)
        return self.graph.make("outer", a, b)

    def _factor(self, x: Expr) -> tuple[Factor, Expr] | None:
        """Split a product into a number for each token and the rest."""
        graph = self.graph

        def thin(scale: Expr, inside: bool) -> Expr:
            return drop(graph, scale, (-1,)) if inside else scale

        def multiplied(scale: Expr) -> Factor:
            return lambda y, inside: build(graph, "mul", thin(scale, inside), y)

        def divided(y: Expr, inside: bool) -> Expr:
            return build(graph, "div", y, thin(x.args[1], inside))

        def masked(yes: bool) -> Factor:
            def factor(y: Expr, inside: bool) -> Expr:
                pair = (y, graph.constant(0.0)) if yes else (graph.constant(0.0), y)
                return build(graph, "where", thin(x.args[0], inside), *pair)

            return factor

        match x.op:
            case "mul":
                for scale, inner in (x.args, x.args[::-1]):
                    if _is_number(scale) and _is_whole(inner):
                        return multiplied(scale), inner
            case "div" if _is_number(x.args[1]) and _is_whole(x.args[0]):
                return divided, x.args[0]
            case "where" if _is_number(x.args[0]):
                for place in (1, 2):
                    if _is_zero(x.args[3 - place]) and _is_whole(x.args[place]):
                        return masked(place == 1), x.args[place]
        return None


def _constant(graph: Graph, x: Expr) -> Expr:
    """Put `stop` of sums of outer products into their vectors."""
    if x.op in ("add", "sub", "neg", "outer"):
        return graph.make(x.op, *(_constant(graph, arg) for arg in x.args), span=x.span)
    return build(graph, "stop", x)


def _times(x: Expr, factors: tuple[Factor, ...]) -> Expr:
    for factor in factors:
        x = factor(x, False)
    return x


def _is_number(x: Expr) -> bool:
    """Say whether a value is one number per copy, for a matrix."""
    return size_at(x.shape, -1) == 1 and size_at(x.shape, -2) == 1


def _is_whole(x: Expr) -> bool:
    """Say whether a value is a matrix per copy, not spread over one."""
    return len(x.shape) >= 2 and not _is_number(x)


def _is_zero(x: Expr) -> bool:
    return x.op == "const" and x.attr("value") == 0.0
