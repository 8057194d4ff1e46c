"""How much one token's transition can stretch several states that go into each other.

In: an `Affine` and the bounds of its block. Out: a `Stretch` for all its states. The proofs:

    no two drive each other    T is triangular: each state for itself, then what goes from one to
                               the next, as momentum into a memory
    some do                    sums over the rows or the columns of D, where no write reads them
    gradients of a chunk       the states at its start are multiplied by one number along each
                               direction: what that comes to after all its tokens
"""

from __future__ import annotations

from math import inf

from nlc.ir.normal_form import Affine
from nlc.passes.bound import Bounds
from nlc.passes.corners import range_of
from nlc.passes.interval import Interval, point, upto
from nlc.passes.interval_rows import Range
from nlc.passes.lane import (
    SLACK,
    Cause,
    Stretch,
    below_zero,
    gate_poly,
    is_short,
    lane_of,
    reading_writes,
    size_of,
    strength_poly,
)
from nlc.passes.polynomial import ONE, ZERO, Algebra, Atom, Poly, plus, same, scaled
from nlc.passes.stretch import stretch_of_one
from nlc.passes.terms import gate_text, pair_text, strength_text


def stretch(form: Affine, bounds: Bounds, size: int, names: tuple[str, ...]) -> Stretch:
    """Bound what one token does to all states of a form; `names` are the states'."""
    edges = _edges(form)
    groups = _components(len(form.states), edges)
    found = [
        stretch_of_one(lane_of(form, bounds, size, group[0]))
        if len(group) == 1
        else _coupled(form, bounds, size, group, names)
        for group in groups
    ]
    for one in found:
        if one.cause is not None:
            return one
    if len(found) == 1:
        return found[0]
    return _triangular(form, bounds, groups, found, names)


def _edges(form: Affine) -> set[tuple[int, int]]:
    """Say which state goes into which other one."""
    count = range(len(form.states))
    found = {(i, j) for i in count for j in count if form.decay[i][j] is not None}
    for i in count:
        for r in reading_writes(form, i):
            found |= {(i, j) for j in count if form.writes[r].targets[j] is not None}
    return found


def _components(count: int, edges: set[tuple[int, int]]) -> list[list[int]]:
    """Group the states that drive each other."""
    reach = _closure(count, edges)
    groups: list[list[int]] = []
    for i in range(count):
        for group in groups:
            if (i, group[0]) in reach and (group[0], i) in reach:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _closure(count: int, edges: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Say which state goes into which, at once or later; each into itself."""
    reach = {(i, i) for i in range(count)} | edges
    for k in range(count):
        reach |= {
            (i, j) for i in range(count) for j in range(count)
            if (i, k) in reach and (k, j) in reach
        }  # fmt: skip
    return reach


def _triangular(
    form: Affine,
    bounds: Bounds,
    groups: list[list[int]],
    found: list[Stretch],
    names: tuple[str, ...],
) -> Stretch:
    """Put together what goes one way: each shrinks or stays by itself."""
    place = {state: g for g, group in enumerate(groups) for state in group}
    reach = _closure(len(form.states), _edges(form))
    note = ""
    for i, j in sorted(reach):
        a, b = place[i], place[j]
        if a == b:
            continue
        far = _coupling(form, bounds, i, j)
        if far is not None:
            return Stretch(upto(inf), far)
        if not found[a].is_contractive and not found[b].is_contractive:
            text = f"{names[i]} need not fade, and goes into {names[j]} at every token"
            return Stretch(upto(inf), Cause("sum", text, (), _holds(found[a]) and _holds(found[b])))
        if j == 0 and found[a].is_contractive:
            note = "momentum below 1"
    high = max((one.norm for one in found), key=lambda n: (n.high, not n.high_open))
    if all(one.rate is not None for one in found):
        return Stretch(high, is_weighted=True)
    # a product of such transitions need not fade, though each of its blocks does
    return Stretch(upto(max(high.high, 1.0)), None, note)


def _holds(one: Stretch) -> bool:
    return not one.norm.high_open


def _coupling(form: Affine, bounds: Bounds, i: int, j: int) -> Cause | None:
    """Say what of the way from one state to another has no bound."""
    gate = form.decay[i][j]
    if gate is not None and not bounds.of(gate.value).is_bounded:
        return Cause("gate", gate_text(gate, bounds.of(gate.value)), (gate.value,))
    for r in reading_writes(form, i):
        write = form.writes[r]
        terms = [e for e in (write.reads[i], write.targets[j]) if e is not None]
        if write.targets[j] is None:
            continue
        sizes = [bounds.range(e).norm.high for e in terms]
        sizes += [bounds.of(c).size for _, c in write.earlier]
        if max(sizes) == inf:
            return Cause("directions", pair_text(write.reads[i], write.targets[j]), tuple(terms))
    return None


def _coupled(
    form: Affine, bounds: Bounds, size: int, group: list[int], names: tuple[str, ...]
) -> Stretch:
    """Bound states that drive each other: by sums over the rows or the columns of D."""
    reading = sorted(
        {
            r for i in group for r in reading_writes(form, i)
            if any(form.writes[r].targets[j] is not None for j in group)
        }
    )  # fmt: skip
    algebra = Algebra(bounds, size)
    entries = {(i, j): gate_poly(algebra, form.decay[i][j]) for i in group for j in group}
    gates = tuple(g.value for i in group for j in group if (g := form.decay[i][j]) is not None)
    if not reading:
        by_row = _sums(algebra, entries, group, turned=False)
        by_column = _sums(algebra, entries, group, turned=True)
        best = min(by_row, by_column, key=lambda n: (n.high, not n.high_open))
        if is_short(best):
            return Stretch(best)
    directions = tuple(
        e for r in reading for e in (*form.writes[r].reads, *form.writes[r].targets)
        if e is not None
    )  # fmt: skip
    grows = _pair_grows(form, algebra, size, group, entries, reading)
    if grows is None:
        grows = not all(bounds.of(e).is_bounded for e in (*gates, *directions))
    text = f"{' and '.join(names[i] for i in group)} drive each other"
    if grows and len(reading) == 1:
        text += _strongest(form, algebra, size, group, reading[0])
    return Stretch(upto(inf), Cause("circle", text, (*gates, *directions), grows))


def _strongest(form: Affine, algebra: Algebra, size: int, group: list[int], write: int) -> str:
    """Say how strong the write is by which states drive each other, where that is known."""
    for i in group:
        for j in group:
            p, b = form.writes[write].reads[i], form.writes[write].targets[j]
            if p is None or b is None:
                continue
            value = strength_poly(algebra, algebra.entry(p), b, size)
            if value is not None:
                held = range_of(algebra, value)
                return f", and {strength_text(form.decay[i][i], p, b, -held)}"
    return ""


def _sums(
    algebra: Algebra, entries: dict[tuple[int, int], Poly], group: list[int], turned: bool
) -> Interval:
    """The greatest sum of absolute values of a row, or of a column."""
    found = []
    for j in group:
        total: Poly = ZERO
        extra = point(0.0)
        for i in group:
            entry = entries[(j, i) if turned else (i, j)]
            held = range_of(algebra, entry)
            if held.low >= 0 or held.high <= 0:
                total = plus(total, entry if held.low >= 0 else scaled(entry, -1.0))
            else:
                extra = extra + held.magnitude()
        found.append(range_of(algebra, total) + extra)
    return size_of(*found)


def _pair_grows(
    form: Affine,
    algebra: Algebra,
    size: int,
    group: list[int],
    entries: dict[tuple[int, int], Poly],
    reading: list[int],
) -> bool | None:
    """Say whether one token's transition of two states may have an eigenvalue beyond 1, or None.

    Across the write's direction it is D, along it D + |u|^2 y t^T; Jury's conditions for both.
    """
    if len(group) != 2 or any(form.writes[r].earlier for r in reading):
        return None
    along = dict(entries)
    direction = None
    for r in reading:
        write = form.writes[r]
        for i in group:
            for j in group:
                p, b = write.reads[i], write.targets[j]
                if p is None or b is None:
                    continue
                value = strength_poly(algebra, algebra.entry(p), b, size)
                found = algebra.direction(algebra.entry(b))
                if value is None or found is None or (direction not in (None, found[0])):
                    return None
                direction = found[0]
                along[i, j] = plus(along[i, j], value)
    return not all(_is_stable(algebra, matrix, group) for matrix in (entries, along))


def _is_stable(algebra: Algebra, matrix: dict[tuple[int, int], Poly], group: list[int]) -> bool:
    """Say whether both eigenvalues are at most 1 in size."""
    i, j = group
    trace = plus(matrix[i, i], matrix[j, j])
    crossed = algebra.times(matrix[i, j], matrix[j, i])
    determinant = plus(algebra.times(matrix[i, i], matrix[j, j]), scaled(crossed, -1.0))
    beyond = plus(ONE, determinant)
    return (
        range_of(algebra, determinant).high <= 1 + SLACK
        and range_of(algebra, plus(beyond, trace)).low >= -SLACK
        and range_of(algebra, plus(beyond, scaled(trace, -1.0))).low >= -SLACK
    )


# ---- chunks ------------------------------------------------------------------------------------


def chunk_stretch(
    form: Affine, thawed: Affine, bounds: Bounds, size: int, chunk: int, names: tuple[str, ...]
) -> Stretch:
    """Bound what a chunk does, whose writes read the state at its start: Z' = Z D + Z_0 E.

    `thawed` is the form in which these reads are taken at the running state, so that its reads are
    E. Along each direction a chunk multiplies by z: z = 1, then z = D z + s |u|^2 at every token.
    """
    first = stretch(form, bounds, size, names)
    if first.cause is not None:
        return first
    lane = lane_of(thawed, bounds, size, 0)
    algebra = Algebra(bounds, size)
    decay = gate_poly(algebra, form.decay[0][0])
    strengths = [
        strength_poly(algebra, lane.vector(algebra, hit.read), hit.target, size)
        for hit in lane.hits
        if not hit.earlier
    ]
    known = [strength for strength in strengths if strength is not None]
    is_simple = (
        len(form.states) == len(thawed.states) == 1
        and form.known
        and (size == 1 or all(g is None or g.kind == "scalar" for g in form.decay[0]))
        and same(decay, lane.decay(algebra))
        and range_of(algebra, decay).low >= 0
        and len(known) == len(lane.hits)
    )
    if not is_simple:
        return Stretch(
            upto(inf), Cause("chunk", f"{chunk} writes read the state of their chunk's start")
        )
    held = _after(algebra, chunk, decay, known)
    if is_short(held.magnitude()):
        return Stretch(held.magnitude())
    hit = lane.hits[0]
    text = strength_text(lane.gate, hit.read, hit.target, -range_of(algebra, known[0]))
    text += f", and {chunk} tokens read one state"
    return Stretch(held.magnitude(), Cause("chunk", text, hit.terms, grows=True))


def _after(algebra: Algebra, chunk: int, decay: Poly, strengths: list[Poly]) -> Interval:
    """Bound z after so many tokens, or after as many as it takes to pass 1."""
    held = point(1.0)
    for _ in range(chunk):
        number = algebra.atom(("z", held), Atom("ratio", Range(held, held)))
        moved = algebra.times(decay, {((number, 1),): 1.0})
        low = high = range_of(algebra, moved)
        if len(strengths) == 1:
            low = high = low.hull(range_of(algebra, plus(moved, strengths[0])))
        else:
            for strength in strengths:
                extra = range_of(algebra, strength)
                low, high = low + below_zero(extra), high + -below_zero(-extra)
        after = low.hull(high)
        if after == held or not is_short(after.magnitude()):
            return after
        held = after
    return held
