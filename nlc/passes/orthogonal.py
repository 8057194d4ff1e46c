"""Write `newton_schulz` as the matrix products it stands for.

In: expressions. Out: the same without `newton_schulz`; what it does to a vector is nothing.

    X = G / (||G||_F + eps), transposed if tall;  steps times  X = a X + (b A + c A^2) X,  A = X X^T
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nlc.ir.expr import Expr, Graph, rewrite
from nlc.passes.simplify import build


def write_out(graph: Graph, roots: Iterable[Expr]) -> list[Expr]:
    """Replace every `newton_schulz` by matrix products."""

    def replace(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        return _iterations(graph, node, args[0]) if node.op == "newton_schulz" else None

    return rewrite(graph, roots, replace)


def coefficients(node: Expr) -> list[tuple[float, float, float]]:
    """Return the three numbers of each step, however they were given."""
    given, steps = node.attr("coefficients"), int(node.attr("steps"))
    rows: list[Any] = list(given)
    if rows and not isinstance(rows[0], tuple):
        rows = [tuple(rows[i : i + 3]) for i in range(0, len(rows), 3)]
    return [tuple(map(float, rows[min(i, len(rows) - 1)])) for i in range(steps)]  # type: ignore[misc]


def _iterations(graph: Graph, node: Expr, value: Expr) -> Expr:
    def make(op: str, *args: Expr, **attrs: Any) -> Expr:
        return build(graph, op, *args, **attrs)

    def scale(number: float, matrix: Expr) -> Expr:
        return make("mul", graph.constant(number), matrix)

    tall = value.shape[-2].size > value.shape[-1].size
    norm = make("norm", value, axes=(-2, -1), keep=True)
    x = make("div", value, make("add", norm, graph.constant(node.attr("eps"))))
    if tall:
        x = make("transpose", x)
    for a, b, c in coefficients(node):
        square = make("matmul", x, make("transpose", x))
        inner = make("add", scale(b, square), scale(c, make("matmul", square, square)))
        x = make("add", scale(a, x), make("matmul", inner, x))
    return make("transpose", x) if tall else x
