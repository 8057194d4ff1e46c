"""Sums over the tokens of a window: outer products become one product of matrices.

In: a `Lowering` over a sequence, an expression and how many tokens there are. Out: the value's sum
over the tokens. `nlc.passes.gather` has brought factors of one number per token into the vectors.
"""

from __future__ import annotations

import operator

from nlc.codegen import library
from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.program import Operand, note
from nlc.codegen.selected import Selected
from nlc.codegen.spelling import SPELLING
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.slots import vanishes


def sum_of_tokens(
    low: Lowering, x: Expr, tokens: Operand, selected: Selected | None = None
) -> fx.Node:
    """Build the sum of x over tokens: [B, *shape].

    sum_t (a_t + b_t) = sum_t a_t + sum_t b_t, and sum_t outer(a_t, b_t) = a^T b over tokens. What
    vanishes for the parts that a token does not select is summed over the selected ones.
    """
    if selected is not None and x in selected.own and vanishes(x, selected.choice.route):
        return selected.total(sum_of_tokens(selected.low, x, tokens), x.shape)
    match x.op:
        case "let":
            return sum_of_tokens(low, x.args[0], tokens, selected)
        case "add" | "sub" | "neg":
            parts: list[Operand] = [sum_of_tokens(low, arg, tokens, selected) for arg in x.args]
            value = SPELLING[x.op](low, x, parts)
            assert isinstance(value, fx.Node)
            return value
        case "mul" if x.args[0].op == "const":
            parts = [low.value(x.args[0]), sum_of_tokens(low, x.args[1], tokens, selected)]
            value = SPELLING["mul"](low, x, parts)
            assert isinstance(value, fx.Node)
            return value
        case "outer":
            return _outer(low, x, tokens)
        case _:
            return _plain(low, low.tensor(x), tokens)


def _outer(low: Lowering, x: Expr, tokens: Operand) -> fx.Node:
    a, b = (low.tensor(arg) for arg in x.args)
    if batch_of(a) == batch_of(b) == 2:
        a, b = (low.widen(v) for v in low.align([a, b], (1, 1)))
        node = low.program.call(library.outer_sum, a, b)
    elif batch_of(a) < 2 and batch_of(b) < 2:
        return _plain(low, low.tensor(x), tokens)
    else:
        # one vector is the same at every token
        a, b = (_plain(low, v, tokens) if batch_of(v) == 2 else v for v in (a, b))
        a, b = (low.widen(v) for v in low.align([a, b], (1, 1)))
        node = low.program.call(library.outer, a, b)
    return note(node, x.shape, 1, wide=True)


def _plain(low: Lowering, value: fx.Node, tokens: Operand) -> fx.Node:
    shape, value = value.meta["shape"], low.widen(low.as_number(value))
    if batch_of(value) < 2:
        node = low.program.call(operator.mul, value, tokens)
        return note(node, shape, batch_of(value), wide=True)
    return note(low.program.method("sum", value, 1), shape, 1, wide=True)
