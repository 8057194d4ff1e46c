"""Write every gradient of an objective as an expression, by reverse mode over the graph.

In: expressions with `grad` nodes and without `apply` (see `lower`). Out: the same without `grad`.
The gradient of a matrix that is applied to a vector stays `outer(delta, input)`. Streams, states
and `stop` are constants. What each operation gives stands in `gradients`.
"""

from __future__ import annotations

from collections.abc import Iterable

from nlc.diagnostics import Faults
from nlc.errors import InternalError
from nlc.ir.expr import Expr, Graph, rewrite
from nlc.ir.operations import OPERATIONS
from nlc.passes.gradients import NoGradient
from nlc.passes.orthogonal import write_out
from nlc.passes.reverse import NoPath, pull_back
from nlc.passes.shaping import expand
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
    [objective] = write_out(graph, simplify(graph, [objective]))

    def own(node: Expr) -> bool:
        return node.op == "variable" and bool(node.attr("memory") == memory)

    try:
        found = pull_back(graph, [(objective, graph.constant(1.0))], own)
    except NoPath as fault:
        _refuse(fault.node, fault.row)
        raise
    return {leaf.attr("part"): gradient for leaf, gradient in found.items()}


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
