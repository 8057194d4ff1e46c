"""What a memory with slots costs where only selected parts are at work.

In: a `Walk` and a memory. Out: nothing; the walk knows how many of the parts each node stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder
from nlc.ir.slots import Choice, choice, own, routed, sparse_read, vanishes
from nlc.ir.system import Memory
from nlc.ir.windows import tokens_of

if TYPE_CHECKING:
    from nlc.passes.walk import Walk


def note_updates(walk: Walk, memory: Memory) -> None:
    """Note how many parts move with an update, and how many take in each token of a window."""
    found = choice(memory)
    if found is None:
        return
    roots = [assignment.value for assignment in memory.update]
    again = any(node.op == "window" and node.attr("again") for node in postorder(roots))
    if found.sparse_update and not again:
        for node in own(memory, roots):
            walk.parts[id(node)] = (found.count, found.size)
    tokens = [node.args[0] for node in tokens_of(memory)]
    inside = own(memory, tokens)
    if found.sparse and inside:
        for root in tokens:
            if root in inside and vanishes(root, found.route):
                for node in postorder([root]):
                    if node in inside:
                        walk.parts[id(node)] = _blocks(walk, found)


def note_reads(walk: Walk, roots: list[Expr]) -> None:
    """Note how many parts the reads among some expressions ask."""
    for node in postorder(roots):
        memory = sparse_read(node, walk.memory)
        split, found = routed(node), None if memory is None else choice(memory)
        if memory is None or split is None or found is None:
            continue
        rate = (found.selected, found.size) if memory.window == 1 else _blocks(walk, found)
        for inner in (split[1], *node.args):
            walk.parts[id(inner)] = rate


def _blocks(walk: Walk, found: Choice) -> tuple[int, int]:
    """Count the places in blocks of tokens of one part: of all tokens with all parts, how many."""
    if walk.decode or not walk.piece:
        return found.selected, found.size
    whole, rest = divmod(walk.tokens, walk.piece)
    places = whole * _places(walk.piece, found) + _places(rest, found)
    return places, walk.tokens * found.size


def _places(tokens: int, found: Choice) -> int:
    choices, n = tokens * found.selected, found.size
    size = -(-choices // n)
    return choices if size <= 1 else (choices + n * (size - 1)) // size * size
