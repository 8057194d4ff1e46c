"""One token's values as operations of vectors and matrices, ready to be differentiated.

In: expressions of one token, and which leaves move. Out: the same values without `apply` of what
moves, without `newton_schulz`, and with products of a matrix and a sum of diagonals and outer
products written as products with vectors. Nothing else changes.

    X @ (diag(w) - outer(a, b))  =  X * w^T - outer(X @ a, b)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nlc.ir.expr import Expr, Graph, rewrite
from nlc.ir.shape import Shape
from nlc.passes.lower import lower
from nlc.passes.orthogonal import write_out
from nlc.passes.reverse import NoPath, pull_back
from nlc.passes.simplify import build, simplify


def written_out(graph: Graph, roots: Iterable[Expr], moves: Callable[[Expr], bool]) -> list[Expr]:
    """Write values out; `moves` holds for the leaves whose applications become operations."""
    found = slopes_out(graph, write_out(graph, lower(graph, roots, moves)))
    return simplify(graph, simple_products(graph, found))


def slopes_out(graph: Graph, roots: Iterable[Expr]) -> list[Expr]:
    """Write the slope of a norm as what it is made of: (g - mean g - y mean(g y)) / s."""

    def replace(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "layernorm_slope":
            return None
        x, g = args
        axes = tuple(node.attr("axes"))

        def make(op: str, *parts: Expr, **attrs: object) -> Expr:
            return build(graph, op, *parts, span=node.span, **attrs)

        def mean(value: Expr) -> Expr:
            return make("mean", value, axes=axes, keep=True)

        eps = graph.constant(float(node.attr("eps")))
        centred = make("sub", x, mean(x))
        scale = make("sqrt", make("add", mean(make("mul", centred, centred)), eps))
        y = make("div", centred, scale)
        along = make("mul", y, mean(make("mul", g, y)))
        return make("div", make("sub", make("sub", g, mean(g)), along), scale)

    return rewrite(graph, roots, replace)


def simple_products(graph: Graph, roots: Iterable[Expr]) -> list[Expr]:
    """Write products with sums of diagonals and outer products as products with vectors."""

    def replace(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "matmul":
            return None
        left, right = args
        if _simple(right):
            return _times(graph, left, right, from_left=False)
        return _times(graph, right, left, from_left=True) if _simple(left) else None

    return rewrite(graph, roots, replace)


def _simple(node: Expr) -> bool:
    match node.op:
        case "identity" | "diag" | "outer":
            return True
        case "add" | "sub" | "neg" | "let" | "stop":
            return all(_simple(arg) for arg in node.args)
        case "mul":
            a, b = node.args
            return (_number(a.shape) and _simple(b)) or (_number(b.shape) and _simple(a))
        case "div":
            a, b = node.args
            return _simple(a) and _number(b.shape)
    return False


def _number(shape: Shape) -> bool:
    """Say whether a factor is one number for each copy."""
    return all(axis.size == 1 for axis in shape[-2:])


def _times(graph: Graph, X: Expr, node: Expr, from_left: bool, held: bool = False) -> Expr:
    """X times a simple matrix, or the other way round; `held` says that the matrix is stopped."""

    def make(op: str, *args: Expr, **attrs: object) -> Expr:
        return build(graph, op, *args, span=node.span, **attrs)

    def again(part: Expr) -> Expr:
        return _times(graph, X, part, from_left, held)

    def own(part: Expr) -> Expr:
        return make("stop", part) if held else part

    match node.op:
        case "identity":
            return X
        case "diag":
            return make(
                "mul", X, make("unsqueeze", own(node.args[0]), axes=(-1 if from_left else -2,))
            )
        case "outer":
            u, v = map(own, node.args)
            if from_left:
                return make("outer", u, make("matvec", make("transpose", X), v))
            return make("outer", make("matvec", X, u), v)
        case "let":
            return again(node.args[0])
        case "stop":
            return _times(graph, X, node.args[0], from_left, held=True)
        case "neg":
            return make("neg", again(node.args[0]))
        case "mul":
            a, b = node.args
            a, b = (a, b) if _simple(b) else (b, a)
            return make("mul", own(a), again(b))
        case "div":
            return make("div", again(node.args[0]), own(node.args[1]))
        case _:
            return make(node.op, *(again(arg) for arg in node.args))


def gradients_of(
    graph: Graph, reached: Sequence[tuple[Expr, Expr]], is_leaf: Callable[[Expr], bool]
) -> dict[Expr, Expr] | None:
    """Return the gradient of each leaf, simplified; nothing where an operation has none."""
    try:
        found = pull_back(graph, reached, is_leaf)
    except NoPath:
        return None
    slopes = simplify(graph, slopes_out(graph, found.values()))
    return dict(zip(found, slopes, strict=True))
