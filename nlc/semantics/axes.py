"""Matching axes by name: from here on they are positions.

In: expressions with named shapes. Out: the same, with `unsqueeze` and `permute` put in so that
numpy's broadcasting gives what the names say. In the body of a memory the leading axes (one copy
of the memory each) stand in front and are not seen by the rules here.
"""

from __future__ import annotations

from itertools import combinations

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape, show
from nlc.semantics.context import Context
from nlc.source import Span


def split(shape: Shape, lead: Shape) -> int:
    """Count the leading axes in front of a shape (they keep `lead`'s order)."""
    place = count = 0
    for axis in shape:
        while place < len(lead) and lead[place].name != axis.name:
            place += 1
        if place == len(lead):
            break
        place += 1
        count += 1
    return count


def embeddings(small: Shape, big: Shape) -> list[tuple[int, ...]]:
    """Find all ways in which `small` is an ordered part of `big`."""
    found = [
        places
        for places in combinations(range(len(big)), len(small))
        if all(a.fits(big[i]) for a, i in zip(small, places, strict=True))
    ]
    if len(found) > 1:
        # the rows and columns of a square matrix are told apart where both sides say which
        exact = [
            places
            for places in found
            if all(a.role and a.role == big[i].role for a, i in zip(small, places, strict=True))
        ]
        if len(exact) == 1:
            return exact
    return found


def enter(context: Context, expr: Expr, lead: Shape) -> Expr:
    """Bring a stream into the body of a memory: its leading axes to the front."""
    if not lead:
        return expr
    names = [axis.name for axis in expr.shape]
    front = [names.index(axis.name) for axis in lead if axis.name in names]
    order = (*front, *(i for i in range(len(names)) if i not in front))
    if order == tuple(range(len(names))):
        return expr
    return context.graph.make("permute", expr, order=order, span=expr.span)


def common(
    context: Context, shapes: list[Shape], spans: list[Span], lead: Shape, words: str
) -> tuple[Shape, Shape]:
    """Find the leading axes and the body shape that hold all shapes; a fault where none does."""
    fronts = [split(shape, lead) for shape in shapes]
    names = {axis.name for shape, n in zip(shapes, fronts, strict=True) for axis in shape[:n]}
    front = tuple(axis for axis in lead if axis.name in names)
    bodies = [shape[n:] for shape, n in zip(shapes, fronts, strict=True)]
    biggest = max(range(len(bodies)), key=lambda i: len(bodies[i]))
    body = bodies[biggest]
    for i, other in enumerate(bodies):
        ways = embeddings(other, body)
        if len(ways) == 1:
            # a free axis takes the name of the one it fits
            (places,) = ways
            body = tuple(
                other[places.index(p)] if p in places and axis.free else axis
                for p, axis in enumerate(body)
            )
            continue
        if not ways:
            context.fail(
                "NL0404", f"shapes do not match in {words}", spans[i], f"this is {show(other)}",
                "axes match by name: one shape's dims must be an ordered part of the other's",
                (spans[biggest], f"this is {show(body)}"),
            )  # fmt: skip
        context.fail(
            "NL0405", f"axes match in more than one way in {words}", spans[i],
            f"{show(other)} fits {show(body)} in {len(ways)} ways",
            "say which: `S @ diag(w)` scales columns, `diag(w) @ S` scales rows",
            (spans[biggest], f"this is {show(body)}"),
        )  # fmt: skip
    return front, body


def align(context: Context, expr: Expr, front: Shape, body: Shape, lead: Shape) -> Expr:
    """Insert axes of size 1 so that `expr` broadcasts against [*front, *body]."""
    if expr.op == "const":
        return expr
    n = split(expr.shape, lead)
    have = {axis.name for axis in expr.shape[:n]}
    missing = [i for i, axis in enumerate(front) if axis.name not in have]
    (places, *_) = embeddings(expr.shape[n:], body)
    missing += [len(front) + i for i in range(len(body)) if i not in places]
    if not missing:
        return expr
    rank = len(front) + len(body)
    return context.graph.make(
        "unsqueeze", expr, axes=tuple(i - rank for i in missing), span=expr.span
    )


def broadcast(
    context: Context, exprs: list[Expr], spans: list[Span], lead: Shape, words: str
) -> list[Expr]:
    """Align all expressions to their common shape."""
    front, body = common(context, [e.shape for e in exprs], spans, lead, words)
    return [align(context, e, front, body, lead) for e in exprs]


def broadcast_front(
    context: Context,
    exprs: list[Expr],
    spans: list[Span],
    lasts: list[int],
    lead: Shape,
    words: str,
) -> list[Expr]:
    """Align what stands before the last `lasts[i]` axes of each; those axes are left alone."""
    graph = context.graph
    fronts = [e.shape[: len(e.shape) - n] for e, n in zip(exprs, lasts, strict=True)]
    front, body = common(context, fronts, spans, lead, words)
    result: list[Expr] = []
    for expr, shape, last in zip(exprs, fronts, lasts, strict=True):
        n = split(shape, lead)
        have = {axis.name for axis in shape[:n]}
        missing = [i for i, axis in enumerate(front) if axis.name not in have]
        (places, *_) = embeddings(shape[n:], body)
        missing += [len(front) + i for i in range(len(body)) if i not in places]
        rank = len(front) + len(body) + last
        if missing:
            expr = graph.make(
                "unsqueeze", expr, axes=tuple(i - rank for i in missing), span=expr.span
            )
        result.append(expr)
    return result
