"""Small moves of axes that several passes need; all axes are counted from the right.

In: expressions. Out: expressions of the same numbers with axes added, dropped, filled or summed.
A value is *thin* where it has size 1, or no axis at all, and would broadcast.
"""

from __future__ import annotations

from nlc.ir.expr import Expr, Graph
from nlc.ir.shape import Shape
from nlc.passes.simplify import build


def size_at(shape: Shape, place: int) -> int:
    """Return the size at a place from the right; 1 where there is no such axis."""
    return shape[place].size if len(shape) >= -place else 1


def drop(graph: Graph, x: Expr, axes: tuple[int, ...]) -> Expr:
    """Remove axes of size 1; those that `x` does not have are not missed."""
    places = sorted({a for a in axes if len(x.shape) >= -a})
    if not places:
        return x
    if x.op == "unsqueeze" and set(places) <= set(x.attr("axes")):
        left = [a for a in x.attr("axes") if a not in places]
        moved = tuple(a + sum(p > a for p in places) for a in left)
        return build(graph, "unsqueeze", x.args[0], axes=moved)
    last = -places[0]
    kept = tuple(x.shape[p] for p in range(-last, 0) if p not in places)
    return build(graph, "reshape", x, last=last, axes=kept)


def grow(graph: Graph, x: Expr, rank: int) -> Expr:
    """Put axes of size 1 in front until `x` has `rank` axes."""
    missing = rank - len(x.shape)
    if missing <= 0:
        return x
    return build(graph, "unsqueeze", x, axes=tuple(range(-rank, -rank + missing)))


def expand(graph: Graph, x: Expr, axes: Shape) -> Expr:
    """Fill the last axes of `x` where it is thin, so that they are `axes`."""
    # a value of every token has all axes, or those that executors put in front would not align
    x = grow(graph, x, len(axes))
    for place in range(-len(axes), 0):
        axis = axes[place]
        if size_at(x.shape, place) == axis.size and len(x.shape) >= -place:
            continue
        zeros = build(graph, "mul", graph.constant(0.0), graph.make("index", axis=axis))
        if place < -1:
            zeros = build(graph, "unsqueeze", zeros, axes=tuple(range(place + 1, 0)))
        x = graph.make("add", zeros, x)
    return x


def unbroadcast(graph: Graph, x: Expr, full: Shape, target: Shape) -> Expr:
    """Sum over the axes along which `target` was broadcast to `full`; thin axes of `x` count."""
    inner: list[int] = []
    front: list[int] = []
    times = 1
    for place in range(-len(full), 0):
        size = size_at(full, place)
        if size == 1 or size_at(target, place) == size:
            continue
        if size_at(x.shape, place) == 1:
            times *= size
        elif len(target) >= -place:
            inner.append(place)
        else:
            front.append(place)
    if inner:
        x = build(graph, "sum", x, axes=tuple(inner), keep=True)
    if front:
        x = build(graph, "sum", x, axes=tuple(front), keep=False)
    if len(x.shape) > len(target):
        x = drop(graph, x, tuple(range(-len(x.shape), -len(target))))
    if times > 1:
        x = build(graph, "mul", graph.constant(times), x)
    return x
