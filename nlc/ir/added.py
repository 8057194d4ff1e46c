"""Which sums of an update are one pass over memory: `x + a * b`, of matrices.

In: the new values of a memory's states. Out: for each such sum its operands, and the products that
are never made by themselves. An outer product keeps its vectors; what scales it by rows or columns
scales the vector. Emitter and cost both ask here, so that what is counted is what runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nlc.ir.expr import Expr, postorder
from nlc.ir.operations import broadcast
from nlc.ir.shape import sizes


@dataclass(frozen=True)
class Added:
    """`start + sign * left * right`; with `outer`, of two vectors.

    `scale` multiplies the outer product: along its rows the vector on the left, or else the one on
    the right.
    """

    start: Expr
    left: Expr
    right: Expr
    sign: int
    outer: bool = False
    scale: Expr | None = None
    by_rows: bool = True
    within: tuple[Expr, ...] = ()


def added(roots: list[Expr]) -> dict[Expr, Added]:
    """Find the sums whose product nothing else needs."""
    nodes = list(postorder(roots))
    uses = Counter(arg for node in nodes for arg in node.args) + Counter(roots)
    found: dict[Expr, Added] = {}
    for node in nodes:
        if node.op not in ("add", "sub") or min([1, 1, *sizes(node.shape)][-2:]) < 2:
            continue
        left, right = node.args
        sides = [(left, right, -1 if node.op == "sub" else 1)]
        sides += [(right, left, 1)] if node.op == "add" else []
        made = [_added(start, product, sign, uses) for start, product, sign in sides]
        chosen = [one for one in made if one is not None]
        if chosen:
            found[node] = max(chosen, key=lambda one: one.outer)
    return found


def _added(start: Expr, product: Expr, sign: int, uses: Counter[Expr]) -> Added | None:
    """Take a product apart, if it is one, of the sum's full size, and used once."""
    if start.op == "const" or uses[product] > 1 or len(product.shape) < len(start.shape):
        return None
    if broadcast((start.shape, product.shape)) != product.shape:
        return None
    if product.op == "outer":
        a, b = product.args
        return Added(start, a, b, sign, outer=True, within=(product,))
    if product.op != "mul" or any(arg.op == "const" for arg in product.args):
        return None
    for scale, other in (product.args, product.args[::-1]):
        if other.op != "outer" or uses[other] > 1:
            continue
        last = [1, 1, *sizes(scale.shape)][-2:]
        if 1 in last and len(scale.shape) <= len(other.shape):
            within = (product, other)
            a, b = other.args
            return Added(start, a, b, sign, True, scale, last[1] == 1, within)
    a, b = product.args
    return Added(start, a, b, sign, within=(product,))
