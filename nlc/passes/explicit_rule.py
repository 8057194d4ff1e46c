"""Write the equations of rules out: applications of maps, and gradients inside, as expressions.

In: a motion. Out: the same without `apply` and `grad`. The sizes of its shapes stand for any, so
nothing may depend on them: a mean that is differentiated becomes a sum over a named size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.rule import Action, Ask, Every, Loop, Motion, Set, When
from nlc.ir.shape import Axis
from nlc.passes.differentiate import differentiate
from nlc.passes.lower import lower
from nlc.passes.simplify import simplify


def explicit_motion(motion: Motion) -> Motion:
    """Write out all equations of a motion; raises `SpecError` where there is no gradient."""
    graph = Graph()

    def written_out(expr: Expr) -> Expr:
        if not any(node.op in ("grad", "apply") for node in postorder([expr])):
            return expr
        [value] = lower(graph, _without_means(graph, expr))
        [value] = simplify(graph, differentiate(graph, [value]))
        return value

    evaluated = None if motion.evaluated is None else written_out(motion.evaluated)
    return replace(motion, actions=_mapped(motion.actions, written_out), evaluated=evaluated)


def _mapped(actions: tuple[Action, ...], change: Callable[[Expr], Expr]) -> tuple[Action, ...]:
    found: list[Action] = []
    for action in actions:
        match action:
            case Set(value=value):
                found.append(replace(action, value=change(value)))
            case Ask(point=point):
                found.append(replace(action, point=change(point)))
            case When(condition=condition, body=body):
                changed = change(condition)
                found.append(replace(action, condition=changed, body=_mapped(body, change)))
            case Every(body=body) | Loop(body=body):
                found.append(replace(action, body=_mapped(body, change)))
    return tuple(found)


def _without_means(graph: Graph, expr: Expr) -> list[Expr]:
    """Write means as sums over sizes, by name where these are the parameter's."""

    def change(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "mean" or not node.attr("axes"):
            return None
        (x,) = args
        attrs = dict(node.attrs)
        total = graph.make("sum", x, span=node.span, **attrs)
        for place in node.attr("axes"):
            total = graph.make("div", total, _size(graph, x.shape[place]), span=node.span)
        return total

    return rewrite(graph, [expr], change)


def _size(graph: Graph, axis: Axis) -> Expr:
    if axis.role in ("in", "out") and axis.name == axis.role:
        return graph.make("param", name=axis.name, shape=())
    return graph.constant(float(axis.size))
