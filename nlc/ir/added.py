"""Which sums of an update are one pass over memory: `x + a * b`, of matrices.

In: the new values of a memory's states. Out: for each such sum its operands, and the products that
are never made by themselves. An outer product keeps its vectors; what scales it by rows or columns
scales the vector. Emitter and cost both ask here, so that what is counted is what runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from nlc.ir.expr import Expr, postorder
from nlc.ir.operations import broadcast
from nlc.ir.shape import sizes


@dataclass(frozen=True)
class Added:
    """`start + factor * left * right`; with `outer`, of two vectors; `divided`, left / right.

    With no `right` it is `start + factor * left`. `scale` multiplies the outer product: along its
    rows the vector on the left, or else the one on the right.
    """

    start: Expr
    left: Expr
    right: Expr | None
    factor: float
    outer: bool = False
    divided: bool = False
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
        sides = [(left, right, -1.0 if node.op == "sub" else 1.0)]
        sides += [(right, left, 1.0)] if node.op == "add" else []
        made = [_added(start, product, sign, uses) for start, product, sign in sides]
        chosen = [one for one in made if one is not None]
        if chosen:
            found[node] = max(chosen, key=lambda one: (one.outer, one.right is not None))
    return found


def _added(start: Expr, product: Expr, factor: float, uses: Counter[Expr]) -> Added | None:
    """Take a product apart, if it is one, of the sum's full size, and used once."""
    if start.op == "const" or uses[product] > 1 or len(product.shape) < len(start.shape):
        return None
    if broadcast((start.shape, product.shape)) != product.shape:
        return None
    number, inner = _number(product)
    if inner is product:
        return _product(start, product, factor, uses)
    if inner.shape != product.shape:
        return None
    whole = None if uses[inner] > 1 else _product(start, inner, factor * number, uses)
    whole = whole or Added(start, inner, None, factor * number)
    return replace(whole, within=(product, *whole.within))


def _number(product: Expr) -> tuple[float, Expr]:
    """Split a number off a product."""
    if product.op == "mul":
        for number, other in (product.args, product.args[::-1]):
            if number.op == "const" and other.op != "const":
                return float(number.attr("value")), other
    return 1.0, product


def _product(start: Expr, product: Expr, factor: float, uses: Counter[Expr]) -> Added | None:
    """Take a product, a square or a quotient apart."""
    match product.op:
        case "outer":
            a, b = product.args
            return Added(start, a, b, factor, outer=True, within=(product,))
        case "pow" if product.args[1].op == "const" and product.args[1].attr("value") == 2.0:
            a = product.args[0]
            return Added(start, a, a, factor, within=(product,))
        case "div" if product.args[1].op != "const":
            a, b = product.args
            number, inner = _number(a)
            split = inner is not a and uses[a] == 1 and inner.shape == a.shape
            a, factor, within = (inner, factor * number, (a,)) if split else (a, factor, ())
            if a.op == "const":
                return None
            return Added(start, a, b, factor, divided=True, within=(product, *within))
        case "mul" if not any(arg.op == "const" for arg in product.args):
            return _scaled(start, product, factor, uses)
    return None


def _scaled(start: Expr, product: Expr, factor: float, uses: Counter[Expr]) -> Added:
    """Take a product of two values apart, of which one may be an outer product."""
    for scale, other in (product.args, product.args[::-1]):
        if other.op != "outer" or uses[other] > 1:
            continue
        last = [1, 1, *sizes(scale.shape)][-2:]
        if 1 in last and len(scale.shape) <= len(other.shape):
            a, b = other.args
            return Added(
                start, a, b, factor, outer=True, scale=scale, by_rows=last[1] == 1,
                within=(product, other),
            )  # fmt: skip
    a, b = product.args
    return Added(start, a, b, factor, within=(product,))
