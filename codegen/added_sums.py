"""Sums of an update as one pass over memory: `torch.addcmul(x, a, b)` for x + a * b.

A number in front goes in as `value`, or where nothing else is multiplied, as `alpha`.

In: what `ir/added.py` has found. Out: the sum's node; no product is made by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from nlc.codegen.lowering import Lowering, batch_of, rank_of
from nlc.codegen.program import Operand
from torch import fx

from nlc.ir.added import Added
from nlc.ir.expr import Expr
from nlc.ir.operations import broadcast


def add_product(low: Lowering, expr: Expr, found: Added) -> fx.Node:
    """Write `start + factor * left * right`, or `/ right`, or with no `right`."""
    start: Operand = low.widen(low.tensor(found.start))
    left: Operand = low.widen(low.tensor(found.left))
    if found.right is None:
        # a factor that is negative is one pass in the gradient, where `sub` with one is two
        words = {"alpha": found.factor} if abs(found.factor) != 1 else {}
        passed: Callable[..., object] = torch.sub if found.factor == -1 else torch.add
        return low.make(expr, passed, *low.align([start, left]), **words)
    right: Operand = low.widen(low.tensor(found.right))
    if found.outer:
        left, right = low.align([left, right], (1, 1))
        left = low.unsqueeze(left, batch_of(left) + rank_of(left))
        right = low.unsqueeze(right, batch_of(right) + rank_of(right) - 1)
        if found.scale is not None and found.by_rows:
            left = _scaled(low, found.scale, left)
        elif found.scale is not None:
            right = _scaled(low, found.scale, right)
    value = -1 if found.factor == -1 else found.factor
    words = {"value": value} if value != 1 else {}
    passed = torch.addcdiv if found.divided else torch.addcmul
    return low.make(expr, passed, *low.align([start, left, right]), **words)


def _scaled(low: Lowering, scale: Expr, vector: fx.Node) -> fx.Node:
    """Multiply a vector that stands as a column or a row."""
    factor, vector = low.align([low.value(scale), vector])
    shapes = [v.meta["shape"] for v in (factor, vector) if isinstance(v, fx.Node)]
    node = low.program.call(operator.mul, factor, vector)
    return low.mark(node, broadcast(tuple(shapes)), factor, vector)
