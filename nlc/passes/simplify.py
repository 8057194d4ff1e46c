"""Write expressions as one would by hand: constants folded, signs and axes gathered.

In: expressions. Out: expressions of the same shapes and the same values, up to the rounding of a
few merged constants. A value of 0 or 1 stays exact. `let` and `stop` are walls: nothing moves
through them. Does not look for common subexpressions (the graph shares them) and does not decide
what is fused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nlc.ir.expr import Expr, Graph
from nlc.ir.shape import sizes
from nlc.passes.simplify_rules import RULES
from nlc.source import NOWHERE, Span

# far more steps than any node takes; a rule that undoes another would not end
PATIENCE = 64


def simplify(graph: Graph, roots: Iterable[Expr]) -> list[Expr]:
    """Simplify expressions, from the leaves up.

    >>> g = Graph()
    >>> x = g.make("stream", name="x", shape=())
    >>> half = g.make("mul", g.constant(0.5), x)
    >>> simplify(g, [g.make("mul", g.constant(2), half)]) == [x]
    True
    """

    roots, known = list(roots), graph.simple
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if node in known:
            continue
        if not done:
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
            continue
        args = tuple(known[arg] for arg in node.args)
        if all(a is b for a, b in zip(args, node.args, strict=True)):
            simple = _tidy(graph, node)
        else:
            simple = build(graph, node.op, *args, span=node.span, **dict(node.attrs))
        # an update of many equations is simplified again with each of its gradients
        known[node] = known[simple] = simple
    return [known[root] for root in roots]


def build(graph: Graph, op: str, *args: Expr, span: Span = NOWHERE, **attrs: Any) -> Expr:
    """Make `op(args)` in its simple form; the arguments are taken to be simple."""
    return _tidy(graph, graph.make(op, *args, span=span, **attrs))


def _tidy(graph: Graph, node: Expr) -> Expr:
    shape = sizes(node.shape)

    def make(op: str, *args: Expr, **attrs: Any) -> Expr:
        return build(graph, op, *args, span=node.span, **attrs)

    for _ in range(PATIENCE):
        for rule in RULES.get(node.op, ()):
            new = rule(make, node)
            if new is not None and new is not node and sizes(new.shape) == shape:
                node = new
                break
        else:
            break
    return node
