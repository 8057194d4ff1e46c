"""What it costs to move a memory: token by token, or over a sequence at once.

In: a `Walk` and a memory's name. Out: nothing; the walk's tallies grow, and a memory that ran over
the sequence has a course there, from which it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.ir import normal_form
from nlc.ir.expr import Expr, postorder
from nlc.ir.met import met_at_start
from nlc.ir.normal_form import Affine, still_parts
from nlc.ir.schedule import Keeping
from nlc.ir.shape import count
from nlc.ir.slots import choice, routed
from nlc.ir.system import Memory
from nlc.passes import work_tiles
from nlc.passes.carried import pairs_held, source_of
from nlc.passes.sized import Sized, Sizes
from nlc.passes.tally import Tally
from nlc.passes.walk_slots import note_updates
from nlc.passes.walk_windows import at_times
from nlc.passes.work_gates import COUNTED, Numbers, Products
from nlc.passes.work_scan import Rows, scan_rows
from nlc.passes.work_tiles import Course, Tiling, Write

if TYPE_CHECKING:
    from nlc.passes.walk import Walk

# products of gates that parts share, by what they are made of
Made = dict[tuple[object, ...], Products]


def move_by_tokens(walk: Walk, name: str) -> None:
    """Count an update as it stands, for every token."""
    memory = walk.memory(name)
    roots = [assignment.value for assignment in memory.update]
    note_updates(walk, memory)
    if choice(memory) is None and (walk.decode or not walk.schedule(name).entries):
        walk.join(roots)
    with at_times(walk, roots):
        walk.visit(roots, name)
    walk.join([])
    # the memory's own method shares nothing with the block that hangs on its states
    walk.done -= _depending(memory, roots)
    source = source_of(memory)
    if memory.reset is not None and source in walk.courses:
        # it may begin anew with the other's state at every token
        for runs in walk.courses[source].values():
            walk.add(source, whole_states(runs))


def asked_ahead(memory: Memory, made: set[str], moving: set[str]) -> list[Expr]:
    """List what an update asks of maps and of the past that is there for all tokens at once.

    `made` are the streams that the loop makes, `moving` the memories that move in it.
    """
    inside: set[int] = set()
    roots = [a.value for a in memory.update]
    for node in postorder(roots):
        own = node.op == "stream" and node.attr("name") in made
        own |= node.op in ("state", "attend") and node.attr("memory") in moving
        if own or any(id(arg) in inside for arg in node.args):
            inside.add(id(node))
    found: list[Expr] = []
    waiting, seen = roots, set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        asked = node.op in ("apply", "shift", "conv") or routed(node) is not None
        if asked and id(node) not in inside:
            found.append(node)
        else:
            waiting += node.args
    return found


def collect(walk: Walk, name: str) -> None:
    """Count a softmax memory: new pairs are joined to those that it holds."""
    memory = walk.memory(name)
    walk.visit([e for pair in memory.pairs for e in pair], name)
    if walk.decode:
        held = pairs_held(memory, walk.tokens)
    else:
        held = sum(
            pairs_held(memory, first) + tokens * len(memory.pairs)
            for first, tokens in walk.pieces(memory)
        )
    entries = count(memory.map.inputs) + count(memory.map.outputs)
    joined = count(memory.lead) * held * entries
    walk.tallies[name].elementwise(0, joined, joined)


def move_by_tiles(walk: Walk, name: str) -> None:
    """Count a memory that runs on its normal forms: part by part, coefficients, then the tiles."""
    walk.courses[name] = {}
    made: Made = {}
    schedule = walk.schedule(name)
    still = still_parts(schedule.forms) if schedule.by_chunks else ()
    for part, form in schedule.forms:
        assert isinstance(form, Affine)
        if part in still:
            # there is nothing to run, and it is read as it is
            walk.courses[name][part] = ()
            continue
        _move_part(walk, name, part, form, made)


def _move_part(
    walk: Walk, name: str, part: str, form: Affine, made: Made, gradients: bool = True
) -> None:
    memory, schedule = walk.memory(name), walk.schedule(name)
    kept = dict(schedule.parts).get(part, Keeping())
    decays = [[None if gate is None else gate.value for gate in row] for row in form.decay]
    coefficients = [e for row in decays for e in row] + [
        e
        for write in form.writes
        for e in (*write.reads, *(c for _, c in write.earlier), write.offset, *write.targets)
    ]
    found = [e for e in coefficients if e is not None]
    if form.stopped is not None:
        _hold(walk, name, part, form, made)
        return
    walk.visit(found, name, live=gradients)
    if schedule.kind == "scan":
        _scan(walk, memory, form, found)
        return
    by_chunks = schedule.by_chunks
    met = met_at_start(form) if by_chunks else {}
    writes = [replace(_write(walk, w), met=r in met) for r, w in enumerate(form.writes)]
    writes = writes or [Write((), False, ((False, (0,)),))]
    apart = by_chunks and _apart(kept, writes, min(memory.chunk, walk.piece or memory.chunk))
    solve = work_tiles.move_tiles if apart else work_tiles.solve_tiles
    runs = []
    for tiles in tilings(memory, part, kept.tile, form, walk.tokens, walk.piece, by_chunks):
        gates = _gates(walk, form, decays, tiles)
        # numbers of many rows are made token after token, those of few as tables
        at_once = min(walk.piece // tiles.size, tiles.tiles) if walk.piece else tiles.tiles
        many = apart and at_once * tiles.lanes >= 16
        counted = Numbers if many else COUNTED[kept.gates]
        key = (counted, tiles.size, tiles.tiles, *(id(e) for row in decays for e in row))
        D = made.get(key) if by_chunks else None
        if D is None:
            tally = Tally()
            D = counted(Sizes(tally), gates, tiles.size, tiles.of_token(1, False))
            made[key] = D
            walk.add(name, tally if gradients else Tally(tally.forward))
        course, moved = solve(tiles, writes, D, form.transposed, memory.learned)
        runs.append(course)
        walk.add(name, moved if gradients else Tally(moved.forward))
    walk.courses[name][part] = tuple(runs)


def _hold(walk: Walk, name: str, part: str, form: Affine, made: Made) -> None:
    """Count a course that is found twice: first for what gradients take for constant."""
    assert form.stopped is not None
    _move_part(walk, name, part, replace(form, stopped=None), made, gradients=False)
    for leaf, write in form.stopped.held:
        walk.flat.add(str(leaf.attr("name")))
        for j, p in enumerate(write.reads):
            for course in walk.courses[name][part] if p is not None else ():
                assert isinstance(course, Course)
                walk.add(name, Tally(work_tiles.read_tiles(course, 1, j).forward))
    _move_part(walk, name, part, form.stopped.form, made)


def _apart(kept: Keeping, writes: list[Write], chunk: int) -> bool:
    """Say whether a chunk is one tile, one write at most is solved and its gates are numbers."""
    numbers = kept.gates in ("ScalarGate", "CoupledGates")
    solved = sum(bool(w.p) for w in writes) < 2 and not any(w.c for w in writes)
    return numbers and chunk <= kept.tile and solved


def _gates(
    walk: Walk, form: Affine, decays: list[list[Expr | None]], tiles: Tiling
) -> list[list[Sized | None]]:
    """Return the gates of one run; 1 of one state alone is None, and so is 0 between states."""

    def gate(row: int, column: int, value: Expr | None) -> Sized | None:
        if len(decays) == 1 and value is not None and _is_one(value):
            return None
        if value is None and (len(decays) > 1):
            return None
        own = form.decay[row][column]
        wide = own is not None and own.kind == "diagonal" and value is not None
        width = value.shape[-1].size if wide and value is not None else 1
        return tiles.of_token(width, value is not None and walk.facts(value)[1])

    return [[gate(i, j, e) for j, e in enumerate(row)] for i, row in enumerate(decays)]


def _scan(walk: Walk, memory: Memory, form: Affine, coefficients: list[Expr]) -> None:
    """States of one row: token by token within all tiles at once."""
    gates = [gate for row in form.decay for gate in row if gate is not None]
    entries = count(memory.map.parts[0].shape)
    rows = Rows(
        walk.tokens, count(memory.lead), entries, len(form.states),
        memory.learned or any(walk.facts(e)[1] for e in coefficients),
    )  # fmt: skip
    width = entries if any(gate.kind == "diagonal" for gate in gates) else 1
    gated = any(walk.facts(gate.value)[1] for gate in gates)
    written = [e for write in form.writes for e in (write.offset, *write.targets) if e is not None]
    writes = any(walk.facts(e)[1] for e in written)
    course, moved = scan_rows(rows, len(form.writes), width, writes, gated)
    walk.courses[memory.name][memory.map.parts[0].name] = (course,)
    walk.add(memory.name, moved)


def _write(walk: Walk, write: normal_form.Write) -> Write:
    """Say which coefficients a write has, and which need a gradient."""
    into: dict[Expr, list[int]] = {}
    for j, b in enumerate(write.targets):
        if b is not None:
            into.setdefault(b, []).append(j)
    return Write(
        tuple((walk.facts(p)[1], j) for j, p in enumerate(write.reads) if p is not None),
        None if write.offset is None else walk.facts(write.offset)[1],
        tuple((walk.facts(b)[1], tuple(js)) for b, js in into.items()) or ((False, (0,)),),
        tuple((walk.facts(c)[1], s) for s, c in write.earlier),
    )


def whole_states(runs: Iterable[Course | Rows], state: int = 0) -> Tally:
    """Count what it takes to have a state as a whole for every token."""
    tally = Tally()
    for course in runs:
        if isinstance(course, Course):
            tally.join(work_tiles.states_of_tiles(course, state))
    return tally


def tilings(
    memory: Memory,
    part: str,
    size: int,
    form: Affine,
    tokens: int,
    piece: int = 0,
    by_chunks: bool = False,
) -> list[Tiling]:
    """Return the tiles of a part over a sequence, run by run.

    Whole chunks are one run and the rest is another, with tiles no longer than they are; what ends
    at a reset is padded to whole tiles, and so is a piece of a window. Where memories go through
    chunks together, a piece is what their chunks have in common.
    """
    shape = [axis.size for p in memory.map.parts if p.name == part for axis in p.shape]
    sizes = [1] * (2 - len(shape)) + shape
    rows, columns = sizes[::-1] if form.transposed else sizes
    lanes, n = count(memory.lead), len(form.states)
    ends = tokens // memory.reset.count if memory.reset is not None else 0

    def run(length: int, pieces: int, size: int, ends: int) -> Tiling:
        return Tiling(lanes, rows, columns, pieces * -(-length // size), size, n, ends)

    if by_chunks:
        length = min(memory.chunk, piece or memory.chunk)
        whole, rest = divmod(tokens, length)
        runs = [(0, length, whole, ends), (whole * length, rest, 1, 0)]
        return [
            replace(
                run(c, many, min(size, c), ends),
                begins=sum((at + i * c) % memory.chunk == 0 for i in range(many)),
            )
            for at, c, many, ends in runs
            if c and many
        ]
    if memory.reset is None:
        whole, rest = divmod(tokens, piece or tokens)
        first = run(piece or tokens, whole, size, 0)
        return [replace(first, tiles=first.tiles + -(-rest // size))]
    whole, rest = divmod(tokens, memory.reset.count)
    first = run(memory.reset.count, whole, size, ends)
    return [replace(first, tiles=first.tiles + -(-rest // size))]


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
