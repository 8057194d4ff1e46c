"""Objectives: over `variable` leaves, which `grad` differentiates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder, rewrite
from nlc.ir.shape import show
from nlc.semantics.axes import split
from nlc.semantics.body_scopes import BodyScope, ObjectiveScope
from nlc.semantics.memories import resolve_pairs, state_leaf, variables
from nlc.semantics.records import Body
from nlc.semantics.trees import at_place, mentions
from nlc.semantics.values import Value
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


HALF = tree.Binary("/", tree.Number("1"), tree.Number("2"))
ERROR = tree.Binary("-", tree.Call(tree.Name("self"), (tree.Name("key"),)), tree.Name("value"))
DEFAULT_OBJECTIVE = tree.Binary("*", HALF, tree.Binary("^", tree.Norm(ERROR), tree.Number("2")))


def own_objective(block: BlockResolver, body: Body) -> Expr | None:
    """The memory's own objective, over `variable` leaves; None where it has none."""
    if body.objective_done:
        return body.objective
    variables(block, body)
    resolve_pairs(block, body)
    written = body.written.objective
    if written is None:
        if not body.pairs or not body.written.values:
            body.objective_done = True
            return None
        # the default stands where the key does
        written = at_place(DEFAULT_OBJECTIVE, body.written.keys[0].span)
    if isinstance(written, tree.Name) and written.id == "task":
        body.objective_done = True
        return None
    scope = BodyScope(block, body)
    env = {v.name: scope.all_parts(v.name, "prev") for v in body.variables if v.name}
    body.objective = resolve_objective(block, body, written, env, closed=False)
    body.objective_done = True
    return body.objective


def asked_objective(block: BlockResolver, body: Body, span: Span, memory: Span) -> Expr:
    """The memory's own objective, for the `grad` at `span`; refused where it has none."""
    objective = own_objective(block, body)
    body.uses_grad = True
    if objective is None:
        block.context.fail(
            "NL0513", f"`{body.name}` has no objective to differentiate", span,
            "`grad` is used here",
            "write `objective e`, or `key` and `value` for the default one",
            (memory, "the memory"),
        )  # fmt: skip
    return objective


def resolve_objective(
    block: BlockResolver, body: Body, written: tree.Expr, env: dict[str, Value], closed: bool
) -> Expr:
    """Resolve an objective, summed over the pairs where it names `key` or `value`."""
    resolve_pairs(block, body)
    many = len(body.pairs) > 1 and mentions(written, {"key", "value"})
    total: Expr | None = None
    for pair in range(len(body.pairs) if many else 1):
        scope = ObjectiveScope(block, body, pair, env, closed)
        term = scope.plain(written)
        front = len(body.lead or ())
        front = min(front, split(term.shape, body.lead or ()))
        batch = term.shape[front : front + len(body.batch)]
        if body.batch and batch == body.batch:
            places = range(front - len(term.shape), front - len(term.shape) + len(batch))
            term = block.graph.make("sum", term, axes=tuple(places), span=written.span)
        if scope.body_rank(term):
            seen = show(term.shape[len(body.lead or ()) :])
            block.context.fail(
                "NL0501", "an objective is a single number", written.span, f"this is {seen}",
                "reduce it: `||e||^2`, `<a, b>`, `sum(e)`, `lp(e, p)`, `huber(e, delta)`",
            )  # fmt: skip
        if total is None:
            total = term
        else:
            joined = scope.combine("add", written.span,
                                   [(total, written.span), (term, written.span)])  # fmt: skip
            assert isinstance(joined, Expr)
            total = joined
    assert total is not None
    if not depends_on_memory(total, body.label):
        block.context.fail(
            "NL0502", f"the objective does not depend on `{body.name}`", written.span,
            "no plain application of the memory here",
            f"name the memory: `self(key)` or `{body.name}(k)`; streams, other memories and "
            "`prev(self)` are constants in an objective", (body.written.span, "the memory"),
        )  # fmt: skip
    return total


def at_state(block: BlockResolver, objective: Expr, body: Body, when: str) -> Expr:
    """Put a memory's state in the place of the variable of its objective."""
    parts = {part.name: part for part in body.map.parts}

    def replace_leaf(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op == "variable" and node.attr("memory") == body.name:
            return state_leaf(block, body, "", parts[node.attr("part")], when)
        if node.op == "apply" and any(
            a.op == "variable" and a.attr("memory") == body.name for a in node.args[1:]
        ):
            # what was a plain application is now a read of the memory
            attrs = dict(node.attrs) | {"memory": body.name}
            return block.graph.make(node.op, *args, span=node.span, **attrs)
        return None

    return rewrite(block.graph, [objective], replace_leaf)[0]


def depends_on_memory(objective: Expr, memory: str) -> bool:
    """Say whether an objective is a function of the memory it belongs to."""
    return any(
        node.op == "variable" and node.attr("memory") == memory for node in postorder([objective])
    )
