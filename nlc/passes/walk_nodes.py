"""What one node of an expression costs where it stands: operations, maps applied, reads.

In: a `Walk`, which knows how often a node is evaluated and whether a gradient passes through it.
Out: a `Tally` of all its evaluations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.cost import Work
from nlc.ir.expr import Expr
from nlc.ir.shape import count
from nlc.ir.system import Map
from nlc.passes import work_tiles
from nlc.passes.carried import pairs_held
from nlc.passes.tally import Tally
from nlc.passes.work import arithmetic, layers

if TYPE_CHECKING:
    from nlc.passes.walk import Walk


def operation(walk: Walk, node: Expr) -> Tally:
    """Count an operation of the table."""
    tally, work, (times, needs) = Tally(), arithmetic(node), walk.facts(node)
    reads = [walk.entries(arg) for arg in node.args]
    wanted = [walk.facts(arg)[1] for arg in node.args]
    left, right, out = sum(reads[:1]), sum(reads[1:]), walk.entries(node)
    # an only operand stands on both sides
    sides = (any(wanted[:1]), any(wanted[1:] or wanted))
    if node.op == "conv" and walk.decode:
        # one token of a convolution is a product of entries and a sum
        tally.elementwise(times * work.products, left + right, out, needs)
    elif work.products:
        tally.product(times * work.products, left, right, out, sides)
    if work.solves:
        tally.solve(times * work.solves, left, right, out, sides)
        if node.op == "solve" and sides[0]:
            # the gradient of the matrix is an outer product with what was solved for
            tally.backward += Work(products=2 * node.args[0].shape[-1].size * out)
    if work.elementwise or work.inner:
        inner = times * work.inner
        if work.products or work.solves:
            # operands and result have been counted
            left = right = out = 0
        tally.elementwise(times * work.elementwise, left + right + inner, out, needs)
    return tally


def applied(walk: Walk, node: Expr) -> Tally:
    """Count a map applied: weights, the present state of a memory, or the course of one."""
    form: Map = node.attr("map")
    x, *parts = node.args
    moving = [p for p in parts if p.op == "state" and p.attr("when") in ("post", "prev")]
    if moving and str(moving[0].attr("memory")) in walk.courses:
        name = str(moving[0].attr("memory"))
        asked = count(x.shape) // count((*walk.memory(name).lead, *form.inputs))
        return work_tiles.read_tiles(walk.courses[name], max(asked, 1))
    tally, (products, extra) = Tally(), layers(form)
    each = count(node.shape) // count(form.outputs) * walk.facts(node)[0]
    copies = count(node.shape[: int(node.attr("lead"))])
    copies *= max((walk.facts(part)[0] for part in parts), default=1)
    weighs, needs = any(walk.facts(part)[1] for part in parts), walk.facts(x)[1]
    for a, b in products:
        tally.product(2 * each * a * b, copies * a * b, each * a, each * b, (weighs, needs))
        needs = needs or weighs
    if extra:
        tally.elementwise(each * extra, each * extra, each * extra, needs)
    return tally


def attended(walk: Walk, node: Expr) -> Tally:
    """Count a read of a softmax memory: all pairs it holds, for each query."""
    memory = walk.memory(str(node.attr("memory")))
    d_k, d_v = count(memory.map.inputs), count(memory.map.outputs)
    lanes = count(memory.lead)
    queries = max(count(node.shape) // (lanes * d_v), 1)
    # of one token, what stands before it and, after its update, its own
    seen = walk.tokens + (node.attr("when") == "post")
    pairs = pairs_held(memory, seen) if walk.decode else walk.tokens * len(memory.pairs)
    return work_tiles.attend(lanes, walk.span * queries, pairs + memory.persistent, d_k, d_v)
