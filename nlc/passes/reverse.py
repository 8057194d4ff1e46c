"""Reverse mode over an expression graph: from gradients of values to gradients of leaves.

In: values with the gradients that reach them, and which nodes are leaves. Out: an expression for
each leaf that the values depend on. What each operation gives stands in `gradients`. Chooses no
leaves and writes nothing out before: `apply` and the like have to be operations already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.operations import OPERATIONS, broadcast
from nlc.ir.shape import Shape
from nlc.passes.gradients import GRADIENTS, Maker, NoGradient
from nlc.passes.shaping import unbroadcast


class NoPath(Exception):
    """A gradient would have to pass through an operation that has none."""

    def __init__(self, node: Expr, row: NoGradient):
        super().__init__(node.op)
        self.node, self.row = node, row


def pull_back(
    graph: Graph, reached: Sequence[tuple[Expr, Expr]], is_leaf: Callable[[Expr], bool]
) -> dict[Expr, Expr]:
    """Return the gradient of each leaf, given those that reach some values.

    A leaf is not looked into. Raises `NoPath`.

    >>> g = Graph()
    >>> x = g.make("stream", name="x", shape=())
    >>> one = g.constant(1.0)
    >>> pull_back(g, [(g.make("mul", x, x), one)], lambda node: node is x)[x].op
    'add'
    """
    make = Maker(graph)
    leaves: list[Expr] = []
    known: set[int] = set()
    stack = [value for value, _ in reached]
    while stack:
        node = stack.pop()
        if id(node) in known:
            continue
        known.add(id(node))
        if is_leaf(node):
            leaves.append(node)
        else:
            stack.extend(node.args)
    hidden = {id(leaf) for leaf in leaves}
    order = [*leaves, *postorder([value for value, _ in reached], hidden)]
    depends = set(hidden)
    for node in order:
        if _passes(node) and any(id(arg) in depends for arg in node.args):
            depends.add(id(node))
    adjoints: dict[int, Expr] = {}

    def reach(node: Expr, share: Expr) -> None:
        before = adjoints.get(id(node))
        adjoints[id(node)] = share if before is None else make("add", before, share)

    for value, gradient in reached:
        reach(value, gradient)
    for node in reversed(order[len(leaves) :]):
        g = adjoints.pop(id(node), None)
        if g is None or id(node) not in depends:
            continue
        row = GRADIENTS[node.op]
        if isinstance(row, NoGradient):
            raise NoPath(node, row)
        for i, arg in enumerate(node.args):
            if id(arg) in depends:
                full = _full(node, arg)
                reach(arg, unbroadcast(graph, row(make, node, g, i), full, arg.shape))
    return {leaf: adjoints[id(leaf)] for leaf in leaves if id(leaf) in adjoints}


def _passes(node: Expr) -> bool:
    row = GRADIENTS[node.op]
    return not (isinstance(row, NoGradient) and row.constant)


def _full(node: Expr, arg: Expr) -> Shape:
    """Return the shape to which an argument was broadcast."""
    kind = OPERATIONS[node.op].kind
    if kind == "elementwise":
        return node.shape
    if kind == "contraction" or node.op in ("solve", "concat", "rotate"):
        tail = 1 if node.op in ("dot", "concat", "rotate") else _tail(node, arg)
        front = broadcast(tuple(other.shape[: -_tail(node, other)] for other in node.args))
        return (*front, *arg.shape[len(arg.shape) - tail :])
    if node.op == "lookup":
        return (*node.args[1].shape, *arg.shape)
    return arg.shape


def _tail(node: Expr, arg: Expr) -> int:
    """Return how many of an argument's last axes a contraction takes as a whole."""
    match node.op:
        case "matmul":
            return 2
        case "matvec":
            return 2 if arg is node.args[0] else 1
        case "solve":
            return 1 if node.attr("vector") and arg is node.args[1] else 2
    return 1
