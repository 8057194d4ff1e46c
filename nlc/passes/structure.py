"""Matrices that are a sum of simple ones: multiples of the identity, diagonals, outer products.

In: a matrix expression. Out: its `Term`s, or None where some summand is none of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nlc.ir.expr import Expr


@dataclass(frozen=True)
class Term:
    """`number * scales * kind(parts)`; each of `scales` has size 1 along the last two axes."""

    number: float
    scales: tuple[Expr, ...]
    kind: Literal["identity", "diagonal", "outer"]
    parts: tuple[Expr, ...] = ()

    @property
    def turned(self) -> tuple[Expr, ...]:
        """The parts of the transposed matrix."""
        return self.parts[::-1]


def terms_of(matrix: Expr) -> list[Term] | None:
    """Split a matrix into simple summands.

    >>> from nlc.ir.expr import Graph
    >>> from nlc.ir.shape import Axis
    >>> g, n = Graph(), Axis("n", 4)
    >>> k = g.make("stream", name="k", shape=(n,))
    >>> matrix = g.make("sub", g.make("identity", axis=n), g.make("outer", k, k))
    >>> [(t.number, t.kind) for t in terms_of(matrix)]
    [(1.0, 'identity'), (-1.0, 'outer')]
    """
    found: list[Term] = []
    todo: list[tuple[float, tuple[Expr, ...], bool, Expr]] = [(1.0, (), False, matrix)]
    while todo:
        sign, scales, flipped, node = todo.pop()
        match node.op:
            case "let":
                todo.append((sign, scales, flipped, node.args[0]))
            case "neg":
                todo.append((-sign, scales, flipped, node.args[0]))
            case "transpose":
                todo.append((sign, scales, not flipped, node.args[0]))
            case "add" | "sub" if all(_matrix_like(a) for a in node.args):
                other = -sign if node.op == "sub" else sign
                todo.append((other, scales, flipped, node.args[1]))
                todo.append((sign, scales, flipped, node.args[0]))
            case "mul":
                split = split_scale(node)
                if split is None:
                    return None
                scale, inner = split
                if isinstance(scale, float):
                    todo.append((sign * scale, scales, flipped, inner))
                else:
                    todo.append((sign, (*scales, scale), flipped, inner))
            case "identity":
                found.append(Term(sign, scales, "identity"))
            case "unsqueeze" if _is_multiple(node.args[0]) and max(node.attr("axes")) < -2:
                # the identity is the same for all that stands in front
                todo.append((sign, scales, flipped, node.args[0]))
            case "diag":
                found.append(Term(sign, scales, "diagonal", node.args))
            case "outer":
                parts = node.args[::-1] if flipped else node.args
                found.append(Term(sign, scales, "outer", parts))
            case _:
                return None
    return found


def _is_multiple(node: Expr) -> bool:
    """Say whether a matrix is a multiple of the identity, one for all."""
    if len(node.shape) != 2:
        return False
    terms = terms_of(node)
    return terms is not None and all(term.kind == "identity" for term in terms)


def _matrix_like(node: Expr) -> bool:
    """Say whether a summand is a whole matrix, not a number broadcast over one."""
    return (
        len(node.shape) >= 2
        and node.shape[-1].size > 0
        and (node.shape[-1].size > 1 or node.shape[-2].size > 1 or node.op in ("outer", "identity"))
    )


def is_scale(node: Expr) -> bool:
    """Say whether a value is one number per leading axes, shaped for a matrix."""
    return all(axis.size == 1 for axis in node.shape[-2:])


def split_scale(node: Expr) -> tuple[float | Expr, Expr] | None:
    """Split scale * matrix, the scale a number or one per leading axes."""
    for scale, inner in (node.args, node.args[::-1]):
        if not _matrix_like(inner):
            continue
        if scale.op == "const":
            return float(scale.attr("value")), inner
        if is_scale(scale):
            return scale, inner
    return None
