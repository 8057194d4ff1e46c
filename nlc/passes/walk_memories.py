"""What it costs to move a memory: token by token, or over a sequence at once.

In: a `Walk` and a memory's name. Out: nothing; the walk's tallies grow, and a memory that ran over
the sequence has a course there, from which it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder
from nlc.ir.normal_form import Affine
from nlc.ir.shape import count
from nlc.ir.system import Memory
from nlc.passes import work_tiles
from nlc.passes.carried import pairs_held, runs_by_chunks, source_of
from nlc.passes.work_tiles import Coefficients, Tiling

if TYPE_CHECKING:
    from nlc.passes.walk import Walk


def move_by_tokens(walk: Walk, name: str) -> None:
    """Count an update as it stands, for every token."""
    memory = walk.memory(name)
    roots = [assignment.value for assignment in memory.update]
    walk.visit(roots, name)
    # the memory's own method shares nothing with the block that hangs on its states
    walk.done -= _depending(memory, roots)
    source = source_of(memory)
    if memory.reset is not None and source in walk.courses:
        # it may begin anew with the other's state at every token
        walk.add(source, work_tiles.states(tiling(walk, source), walk.courses[source]))


def collect(walk: Walk, name: str) -> None:
    """Count a softmax memory: new pairs are joined to those that it holds."""
    memory = walk.memory(name)
    walk.visit([e for pair in memory.pairs for e in pair], name)
    held = walk.tokens * len(memory.pairs)
    held = pairs_held(memory, walk.tokens) if walk.decode else held
    entries = count(memory.map.inputs) + count(memory.map.outputs)
    joined = count(memory.lead) * held * entries
    walk.tallies[name].elementwise(0, joined, joined)


def move_by_tiles(walk: Walk, name: str) -> None:
    """Count a memory that runs on its normal form: its coefficients, then the tiles."""
    form = walk.schedule(name).forms[0][1]
    assert isinstance(form, Affine)
    write = form.writes[0] if form.writes else None
    gate = form.decay[0][0]
    found = [
        None if gate is None or _is_one(gate.value) else gate.value,
        write.reads[0] if write else None,
        write.offset if write else None,
        write.targets[0] if write else None,
    ]
    walk.visit([e for e in found if e is not None], name)
    has = Coefficients(*(None if e is None else walk.facts(e)[1] for e in found))
    walk.courses[name] = has
    tiles = tiling(walk, name)
    walk.add(name, work_tiles.move(tiles.turned if form.transposed else tiles, has))


def tiling(walk: Walk, name: str) -> Tiling:
    """Return the tiles of a memory over the sequence; chunks are tiled each by itself."""
    memory, tile = walk.memory(name), walk.schedule(name).tile
    shape = [axis.size for axis in memory.map.parts[0].shape]
    rows, columns = [1] * (2 - len(shape)) + shape
    length = memory.chunk if runs_by_chunks(memory) else walk.tokens
    chunks, rest = divmod(walk.tokens, length)
    tiles = chunks * -(-length // tile) + -(-rest // tile)
    return Tiling(count(memory.lead), rows, columns, tiles, tile)


def _is_one(value: Expr) -> bool:
    return value.op == "const" and value.attr("value") == 1.0


def _depending(memory: Memory, roots: list[Expr]) -> set[int]:
    """Find the nodes that read a state of the memory, by id."""
    found: set[int] = set()
    for node in postorder(roots):
        own = node.op == "state" and node.attr("memory") == memory.name
        if own or any(id(arg) in found for arg in node.args):
            found.add(id(node))
    return found
