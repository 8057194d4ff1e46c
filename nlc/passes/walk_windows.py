"""What it costs to move a memory with windows: at every token, and where a window ends.

In: a `Walk` and a memory's name. Out: nothing; the walk's tallies grow. Decoding is the mean over a
window. Blocks of equations that run at some times only count as often as they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import count
from nlc.ir.shared_reads import shared_products, shared_read
from nlc.ir.slots import choice
from nlc.ir.system import Memory
from nlc.ir.windows import known, summed, tokens_of
from nlc.passes.tally import Tally
from nlc.passes.walk_slots import note_updates

if TYPE_CHECKING:
    from nlc.passes.walk import Walk


def move_by_windows(walk: Walk, name: str) -> None:
    """Count the sums over tokens, and the updates at the ends of windows."""
    memory = walk.memory(name)
    note_updates(walk, memory)
    tokens = [node.args[0] for node in tokens_of(memory)]
    _mark(walk, tokens, choice(memory) is None)
    outside = set(walk.done)
    shared = None if walk.decode or walk.plan is None else shared_read(walk.plan.stages, memory)
    if shared is not None:
        walk.done |= set(map(id, shared_products(shared, memory)))
    updates = [assignment.value for assignment in memory.update]
    walk.visit(tokens, name, users=updates)
    # what the memory's own methods compute is of no use to the block
    walk.done = outside | (walk.done & set(map(id, _asked(tokens))))
    roots = _ended(memory, updates)
    again = [node.args[0] for node in postorder(roots) if node.op == "window" and node.args]
    _mark(walk, [x for x in again if any(n.op == "window" for n in postorder([x]))])
    # nodes are known by their identity
    walk.kept += roots
    with _at_ends(walk, memory.window), at_times(walk, roots):
        walk.join(roots if choice(memory) is None else [])
        walk.visit(roots, name)
        walk.join([])


def move_by_task(walk: Walk, name: str) -> None:
    """Count an update by the task's gradient, at the end of each window."""
    memory = walk.memory(name)
    note_updates(walk, memory)
    roots = _ended(memory, [assignment.value for assignment in memory.update])
    walk.kept += roots
    with _at_ends(walk, memory.window), at_times(walk, roots):
        walk.join(roots if choice(memory) is None else [])
        walk.visit(roots, name)
        walk.join([])


def _asked(roots: list[Expr]) -> Iterator[Expr]:
    """The maps and histories that the block evaluates."""
    return (node for node in postorder(roots) if node.op in ("apply", "shift", "conv", "attend"))


def _mark(walk: Walk, sums: Iterable[Expr], to_totals: bool = False) -> None:
    """Note which outer products are summed as one product, and what is done with the sums.

    What is summed `to_totals` goes into what is kept of a window by that product, if it is alone.
    """
    for x in sums:
        terms = {id(term): term for term in summed(x)}
        outers = {key for key, term in terms.items() if term.op == "outer"}
        walk.summed |= outers
        if to_totals and len(terms) == 1:
            walk.into_totals |= outers
        waiting = [x]
        while waiting:
            node = waiting.pop()
            if id(node) not in terms:
                walk.totals.add(id(node))
                waiting += node.args


def _ended(memory: Memory, roots: list[Expr]) -> list[Expr]:
    """Put what has been kept in the place of sums over tokens."""
    new: dict[int, Expr] = {}
    for node in postorder(roots):
        if known(memory, node):
            new[id(node)] = Expr("window", (), node.attrs, node.shape)
            continue
        args = tuple(new[id(arg)] for arg in node.args)
        same = all(a is b for a, b in zip(args, node.args, strict=True))
        new[id(node)] = node if same else Expr(node.op, args, node.attrs, node.shape, node.span)
    return [new[id(root)] for root in roots]


@contextmanager
def _at_ends(walk: Walk, window: int) -> Iterator[None]:
    """Evaluate once for each window that ends."""
    kept = walk.done, walk.used, walk.known, walk.moves
    walk.done, walk.used, walk.known, walk.moves = set(), set(), {}, window
    yield
    walk.done, walk.used, walk.known, walk.moves = kept


@contextmanager
def at_times(walk: Walk, roots: list[Expr]) -> Iterator[None]:
    """Count what stands in `every PERIOD { }` as often as such a period ends."""
    walk.periods = _periods(roots)
    yield
    walk.periods = {}


def _periods(roots: list[Expr]) -> dict[int, int]:
    """Find what only a value inside such a block needs, with the period in tokens."""
    order = list(postorder(roots))
    users: dict[int, set[int | None]] = {id(node): set() for node in order}
    for root in roots:
        users[id(root)].add(None)
    inside: dict[int, int] = {}
    for node in reversed(order):
        found = {inside.get(user, 0) if user is not None else 0 for user in users[id(node)]}
        if found and 0 not in found:
            inside[id(node)] = min(found)
        due = _due(node)
        for place, arg in enumerate(node.args):
            if due and place == 1 and arg is not node.args[2]:
                key = -len(inside) - 1
                inside[key] = max(due, inside.get(id(node), 0))
                users[id(arg)].add(key)
            else:
                users[id(arg)].add(id(node))
    return {key: period for key, period in inside.items() if key > 0}


def _due(node: Expr) -> int:
    """The period at whose ends a choice takes its first value, 0 for all else."""
    if node.op != "where":
        return 0
    condition = node.args[0]
    while condition.op == "unsqueeze":
        (condition,) = condition.args
    return int(condition.attr("period")[1]) if condition.op == "due" else 0


def outer_sum(walk: Walk, node: Expr) -> Tally:
    """Count outer products that are summed over tokens: one product of matrices."""
    tally, size = Tally(), count(node.shape)
    left, right = (walk.entries(arg) for arg in node.args)
    wanted = [walk.facts(arg)[1] for arg in node.args]
    times = walk.facts(node)[0]
    # of one token alone there is no sum
    last = walk.decode or (walk.piece > 1 and walk.tokens % walk.piece == 1)
    alone = walk.moves == 1 and last and id(node) not in walk.into_totals
    tally.product(
        2 * (times - alone) * size, left, right, size * walk.ended, (wanted[0], wanted[1])
    )
    if alone:
        tally.elementwise(size, 2 * size, size, any(wanted))
    return tally


def total(walk: Walk, node: Expr) -> Tally:
    """Count what is done with sums over tokens, not with each token."""
    tally, size = Tally(), count(node.shape) * walk.ended
    tally.elementwise(size, size * len(node.args), size, walk.facts(node)[1])
    return tally
