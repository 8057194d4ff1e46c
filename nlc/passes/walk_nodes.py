"""What one node of an expression costs where it stands: operations, maps applied, reads.

In: a `Walk`, which knows how often a node is evaluated and whether a gradient passes through it.
Out: a `Tally` of all its evaluations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.added import Added
from nlc.ir.cost import Work
from nlc.ir.expr import Expr, postorder
from nlc.ir.normal_form import still_parts
from nlc.ir.shape import count, sizes
from nlc.ir.system import Map, Memory, Part
from nlc.passes import work_tiles
from nlc.passes.carried import pairs_held
from nlc.passes.tally import Tally
from nlc.passes.work import Arithmetic, arithmetic, layers
from nlc.passes.work_scan import Rows, read_rows

if TYPE_CHECKING:
    from nlc.passes.walk import Walk


def operation(walk: Walk, node: Expr) -> Tally:
    """Count an operation of the table."""
    tally, work, (times, needs) = Tally(), arithmetic(node), walk.facts(node)
    if work.products and _scales(walk, node):
        work = Arithmetic(elementwise=count(node.shape))
    reads = [walk.entries(arg) for arg in node.args]
    wanted = [walk.facts(arg)[1] for arg in node.args]
    left, right, out = sum(reads[:1]), sum(reads[1:]), walk.entries(node)
    # an only operand stands on both sides
    sides = (any(wanted[:1]), any(wanted[1:] or wanted))
    if node.op == "conv" and (walk.decode or walk.looped):
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


def sum_with(walk: Walk, node: Expr, found: Added | None) -> Tally:
    """Count a sum that takes in its product, which costs nothing by itself."""
    tally, needs = Tally(), walk.facts(node)[1]
    if found is None:
        return tally
    operands = [found.left, *([] if found.right is None else [found.right])]
    if found.scale is not None:
        vector = walk.entries(operands[0 if found.by_rows else 1])
        tally.elementwise(vector, walk.entries(found.scale) + vector, vector, needs)
    out = walk.entries(node)
    tally.elementwise(2 * out, sum(map(walk.entries, [found.start, *operands])), out, needs)
    return tally


def _scales(walk: Walk, node: Expr) -> bool:
    """Say whether a matrix of one column, the same through a chunk, scales what tokens give."""
    if node.op != "matvec" or node.args[0].shape[-1].size > 1 or walk.decode or walk.looped:
        return False
    leaves = [n for n in postorder(node.args[:1]) if not n.args]
    return all(n.op == "state" and n.attr("when") == "start" for n in leaves)


def asked_course(walk: Walk, node: Expr) -> Expr | None:
    """Return the state whose course over the sequence a node reads with a vector, if it does."""
    match node.op:
        case "apply":
            states = node.args[1:]
        case "matvec" if sizes(node.args[1].shape[:-1]) == sizes(node.args[0].shape[:-2]):
            states = node.args[:1]
        case _:
            return None
    for state in states:
        late = state.op == "state" and state.attr("when") in ("post", "prev")
        if late and str(state.attr("memory")) in walk.courses and not walk.at_hand(state):
            form = walk.memory(str(state.attr("memory"))).map
            plain = len(form.parts) == len(form.inputs) == len(form.outputs) == 1
            return state if plain or node.op == "apply" else None
    return None


def read(walk: Walk, node: Expr, state: Expr) -> Tally:
    """Count a read of a memory that ran over the sequence."""
    memory = walk.memory(str(state.attr("memory")))
    x = node.args[0 if node.op == "apply" else 1]
    queries = count(x.shape) // count((*memory.lead, *memory.map.inputs))
    number = [v.name for v in memory.variables].index(str(state.attr("var")))
    tally, schedule = Tally(), walk.schedule(memory.name)
    still = still_parts(schedule.forms) if schedule.by_chunks else ()
    for part in memory.map.parts:
        if part.name in still and len(part.shape) == 2:
            _as_weights(tally, memory, part, max(queries, 1) * walk.tokens)
        for course in walk.courses[memory.name][part.name]:
            if isinstance(course, Rows):
                tally.join(read_rows(course, max(queries, 1)))
            elif len(memory.map.parts) > 1 and len(part.shape) < 2:
                tally.join(work_tiles.states_of_tiles(course, number))
            else:
                tally.join(work_tiles.read_tiles(course, max(queries, 1), number))
    _, extra = layers(memory.map)
    if extra:
        each = count(node.shape) // count(memory.map.outputs) * walk.facts(node)[0]
        tally.elementwise(each * extra, each * extra, each * extra)
    return tally


def _as_weights(tally: Tally, memory: Memory, part: Part, asked: int) -> None:
    """Count a matrix that stays as it is through a sequence, asked so many times by each copy."""
    (rows, columns), lanes = sizes(part.shape), count(memory.lead)
    asked *= lanes
    sides = memory.learned, True
    tally.product(
        2 * asked * rows * columns, lanes * rows * columns, asked * columns, asked * rows, sides
    )


def applied(walk: Walk, node: Expr) -> Tally:
    """Count a map applied: weights, or the present state of a memory."""
    form: Map = node.attr("map")
    x, *parts = node.args
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
    if walk.decode:
        # of one token, what stands before it and, after its update, its own
        pairs = pairs_held(memory, walk.tokens + (node.attr("when") == "post"))
        rows = walk.span * queries
        return work_tiles.attend(lanes, rows, pairs + memory.persistent, d_k, d_v)
    tally = Tally()
    for first, tokens in walk.pieces(memory):
        pairs = pairs_held(memory, first) + tokens * len(memory.pairs)
        # what a window asks with at its end is asked with at all its tokens
        rows = tokens * queries
        tally.join(work_tiles.attend(lanes, rows, pairs + memory.persistent, d_k, d_v))
    return tally
