"""How often a block of a rule runs: a whole number, or an argument of the rule that is one.

In: a period as written, in the scope of an update. Out: its unit and its count, an expression. An
argument of a rule by itself has no value yet: its count is the argument's leaf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.system import Unit
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.updates import UpdateScope


def period_in(scope: UpdateScope, period: tree.Period) -> tuple[Unit, Expr]:
    """Evaluate the period of a block: over dims, or over the arguments of the rule around it."""
    context, count = scope.context, period.count
    if isinstance(count, tree.Name) and scope.in_rule and count.id in (scope.arguments or {}):
        value = scope.plain(count)
        if value.op == "param":
            return period.unit, value
        number = value.attr("value") if value.op == "const" else 0.0
        if number < 1 or number != int(number):
            context.fail(
                "NL0401", "a period is not a whole number", count.span,
                f"`{count.id}` is given {number:g}" if value.op == "const"
                else f"`{count.id}` is not given a number",
                "give it a whole number of at least 1",
            )  # fmt: skip
        return period.unit, value
    unit, whole = context.period(period)
    return unit, context.number(float(whole), period.span)


def count_arguments(rule: tree.Rule) -> set[str]:
    """Name the arguments of a rule that are the count of a period in it."""
    names = {p.name for p in rule.parameters}
    found: set[str] = set()
    waiting: list[tree.Stmt] = list(rule.equations)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, tree.Every | tree.When | tree.Repeat):
            waiting.extend(statement.body)
        if isinstance(statement, tree.Every) and isinstance(statement.period.count, tree.Name):
            found |= {statement.period.count.id} & names
    return found
