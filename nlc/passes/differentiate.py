"""Write every gradient of an objective as an expression, by reverse mode over the graph.

In: expressions with `grad` nodes and without `apply` (see `lower`). Out: the same without `grad`.
The gradient of a matrix that is applied to a vector stays `outer(delta, input)`. Streams, states
and `stop` are constants. What each operation gives stands in `gradients`.
"""

from __future__ import annotations

from collections.abc import Iterable

from nlc.diagnostics import Faults
from nlc.errors import InternalError
from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.operations import OPERATIONS, broadcast
from nlc.ir.shape import Shape
from nlc.passes.gradients import GRADIENTS, Maker, NoGradient
from nlc.passes.orthogonal import write_out
from nlc.passes.shaping import expand, unbroadcast
from nlc.passes.simplify import simplify

Variables = dict[str, Expr]


def differentiate(graph: Graph, roots: Iterable[Expr]) -> list[Expr]:
    """Replace every `grad` by its expression; raises `SpecError` where there is no gradient.

    >>> from nlc.ir.shape import Axis
    >>> g, n, m = Graph(), Axis("n", 2), Axis("m", 3)
    >>> k, v = g.make("stream", name="k", shape=(n,)), g.make("stream", name="v", shape=(m,))
    >>> W = g.make("variable", memory="M", part="weight", shape=(m, n))
    >>> e = g.make("sub", g.make("matvec", W, k), v)
    >>> half = g.make("mul", g.constant(0.5), g.make("dot", e, e))
    >>> S = g.make("state", memory="M", var="", part="weight", when="prev", shape=(m, n))
    >>> grad = g.make("grad", half, S, memory="M", part="weight", parts=("weight",))
    >>> [delta] = differentiate(g, [grad])
    >>> delta.op, delta.args[0].op, delta.args[1] is k
    ('outer', 'sub', True)
    """
    known: dict[tuple[int, str], Variables] = {}

    def replace(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "grad":
            return None
        objective, *at = args
        memory = node.attr("memory")
        key = (id(objective), memory)
        if key not in known:
            known[key] = _gradients(graph, objective, memory)
        values = dict(zip(node.attr("parts"), at, strict=True))
        value = values[node.attr("part")]
        gradient = known[key].get(node.attr("part"))
        if gradient is None:
            # the objective does not depend on this part
            return graph.make("mul", graph.constant(0.0), value, span=node.span)
        return expand(graph, _put_in(graph, gradient, memory, values), value.shape)

    return rewrite(graph, roots, replace)


def _put_in(graph: Graph, gradient: Expr, memory: str, values: Variables) -> Expr:
    """Set the variables of a memory to the values at which the gradient is taken."""

    def replace(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op == "variable" and node.attr("memory") == memory:
            return values[node.attr("part")]
        return None

    return simplify(graph, rewrite(graph, [gradient], replace))[0]


def _gradients(graph: Graph, objective: Expr, memory: str) -> Variables:
    """Return d objective / d variable(memory, part) for every part it depends on."""
    make = Maker(graph)
    [objective] = write_out(graph, simplify(graph, [objective]))
    order = list(postorder([objective]))
    depends: set[int] = set()
    for node in order:
        own = node.op == "variable" and node.attr("memory") == memory
        if own or (_passes(node) and any(id(arg) in depends for arg in node.args)):
            depends.add(id(node))

    adjoints: dict[int, Expr] = {id(objective): graph.constant(1.0)}
    found: Variables = {}
    for node in reversed(order):
        g = adjoints.pop(id(node), None)
        if g is None or id(node) not in depends:
            continue
        if node.op == "variable":
            found[node.attr("part")] = g
            continue
        row = GRADIENTS[node.op]
        if isinstance(row, NoGradient):
            _refuse(node, row)
            continue
        for i, arg in enumerate(node.args):
            if id(arg) not in depends:
                continue
            share = unbroadcast(graph, row(make, node, g, i), _full(node, arg), arg.shape)
            before = adjoints.get(id(arg))
            adjoints[id(arg)] = share if before is None else make("add", before, share)
    return found


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


def _refuse(node: Expr, row: NoGradient) -> None:
    if OPERATIONS[node.op].kind == "structured" and node.op in ("apply", "grad"):
        raise InternalError(f"`{node.op}` was not written out before differentiation")
    what = "the read of a softmax memory" if node.op == "attend" else f"`{node.op}`"
    faults = Faults()
    faults.error(
        "NL0840",
        f"the gradient of this objective passes through {what}",
        node.span,
        f"no gradient here: {row.why}",
        f"take {what} out of what depends on the memory, or wrap it in `stop(...)`",
    )
    faults.stop_on_errors()
