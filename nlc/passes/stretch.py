"""How much one token's transition can stretch a state.

In: a `Lane`, which is a state with its gate D and the writes that read it (p) and go back to it
(b). Out: a `Stretch`: a bound on the norm of T = D + sum of p b^T for all inputs, or the cause that
no bound of 1 was found. What may be proved:

    p and b along one vector u        T is symmetric; its eigenvalues are D and D + s |u|^2
    T = D (I + x b^T) (I + ...) ...   where p = D x, or b = D x: the product of the factors' norms
    |p| |b| small                     |D| + sum of |p| |b|

Whether one token, again and again, may make the state grow is told from the eigenvalues of a single
T, which are known for more forms than its norm.
"""

from __future__ import annotations

from math import inf

from nlc.passes.corners import range_of
from nlc.passes.interval import Interval, point, upto
from nlc.passes.lane import (
    Cause,
    Hit,
    Lane,
    Stretch,
    below_zero,
    is_short,
    size_of,
    strength_of,
    strength_poly,
    strength_range,
)
from nlc.passes.polynomial import ONE, ZERO, Algebra, Poly, divided, plus, same
from nlc.passes.terms import gate_text, pair_text, strength_text, strengths_text


def stretch_of_one(lane: Lane) -> Stretch:
    """Bound the norm of D + sum of p b^T."""
    algebra = Algebra(lane.bounds, lane.size)
    decay = range_of(algebra, lane.decay(algebra))
    if lane.gate is not None and not is_short(decay.magnitude()):
        cause = Cause("gate", gate_text(lane.gate, decay), (lane.gate.value,), grows=True)
        if not lane.hits or lane.size > 1:
            return Stretch(decay.magnitude(), cause)
    if not lane.hits:
        return Stretch(decay.magnitude())
    found = [_along_one(lane, algebra), *_chains(lane), _symmetric(lane, algebra), _sum(lane)]
    norms = [norm for norm in found if norm is not None]
    best = min(norms, key=lambda n: (n.high, not n.high_open))
    if is_short(best):
        return Stretch(best)
    return Stretch(best, _cause(lane, algebra))


def _along_one(lane: Lane, algebra: Algebra) -> Interval | None:
    """All reads and targets along one vector u: T is D but along u, where it is one number."""
    if lane.gate is not None and lane.gate.kind != "scalar" and lane.size > 1:
        return None
    along = None
    grown: dict[int, Poly] = {}
    total = lane.decay(algebra)
    for hit in lane.hits:
        parts = [
            algebra.direction(lane.vector(algebra, e))
            for e in (hit.read, hit.target)
            if e is not None
        ]
        for part in parts:
            if part is None or (along is not None and part[0] != along):
                return None
            along = part[0]
        read = algebra.direction(lane.vector(algebra, hit.read))
        scale = read[1] if read is not None else ZERO
        for s, c in hit.earlier:
            scale = plus(scale, algebra.times(algebra.number(c), grown[s]))
        grown[hit.number] = scale
        target = algebra.direction(lane.vector(algebra, hit.target))
        if target is not None and along is not None:
            length = algebra.inner(tuple((n, 2 * p) for n, p in along), lane.size)
            written = algebra.times(algebra.times(scale, target[1]), length)
            total = plus(total, written)
    values = [range_of(algebra, total)]
    if lane.size > 1:
        values.append(range_of(algebra, lane.decay(algebra)))
    return size_of(*values)


def _symmetric(lane: Lane, algebra: Algebra) -> Interval | None:
    """T = D + sum of s u u^T, none of the writes seeing another."""
    if any(hit.earlier for hit in lane.hits):
        return None
    decay = range_of(algebra, lane.decay(algebra))
    low, high = decay, decay
    for hit in lane.hits:
        strength = strength_range(lane, algebra, hit)
        if strength is None:
            return None
        low, high = low + below_zero(strength), high + -below_zero(-strength)
    return size_of(low, high)


def _sum(lane: Lane) -> Interval | None:
    """The triangle inequality: |D| + sum of |p| |b|."""
    algebra = Algebra(lane.bounds, lane.size)
    total = range_of(algebra, lane.decay(algebra)).magnitude()
    reads: dict[int, Interval] = {}
    for hit in lane.hits:
        read = upto(0.0) if hit.read is None else lane.bounds.range(hit.read).norm
        for s, c in hit.earlier:
            read = read + reads[s] * lane.bounds.of(c).magnitude()
        reads[hit.number] = read
        if hit.target is not None:
            total = total + read * lane.bounds.range(hit.target).norm
    return upto(total.high, total.high_open)


# ---- products ----------------------------------------------------------------------------------


def _chains(lane: Lane) -> list[Interval | None]:
    """T = D (I + x b^T) ..., the decay first, or last."""
    whole = () if lane.gate is None else (lane.gate.value,)
    found = []
    for expressions in ((), whole):
        algebra = Algebra(lane.bounds, lane.size, expressions)
        found += [_chain(lane, algebra, first) for first in (True, False)]
    return found


def _chain(lane: Lane, algebra: Algebra, decay_first: bool) -> Interval | None:
    """Bound the product of norms, where every group of writes sees all those before it."""
    decay = lane.decay(algebra)
    factors: list[tuple[Poly, Poly, Hit]] = []
    for hit in lane.hits:
        read, target = lane.vector(algebra, hit.read), lane.vector(algebra, hit.target)
        split = divided(read if decay_first else target, decay)
        if split is None or hit.read is None or hit.target is None:
            return None
        factors.append((split, target, hit) if decay_first else (read, split, hit))
    groups = _groups(algebra, lane.size, factors)
    if groups is None:
        return None
    norm = range_of(algebra, decay).magnitude()
    for group in groups:
        bounded = _group_norm(algebra, lane.size, group)
        if bounded is None:
            return None
        norm = norm * bounded
    return norm


def _groups(
    algebra: Algebra, size: int, factors: list[tuple[Poly, Poly, Hit]]
) -> list[list[tuple[Poly, Poly]]] | None:
    """Split writes into groups: those of one do not see each other, and see all groups before."""
    groups: list[list[tuple[Poly, Poly]]] = []
    numbers: list[set[int]] = []
    for read, target, hit in factors:
        seen = {s for s, _ in hit.earlier}
        before = set().union(*numbers[:-1]) if numbers else set()
        joins = bool(numbers) and seen == before
        if not joins and seen != before | (numbers[-1] if numbers else set()):
            return None
        for s, c in hit.earlier:
            other = next(b for _, b, h in factors if h.number == s)
            if not same(algebra.number(c), algebra.summed(algebra.times(other, read), size)):
                return None
        if joins:
            groups[-1].append((read, target))
            numbers[-1].add(hit.number)
        else:
            groups.append([(read, target)])
            numbers.append({hit.number})
    return groups


def _group_norm(algebra: Algebra, size: int, group: list[tuple[Poly, Poly]]) -> Interval | None:
    """Bound the norm of I + sum of s u u^T."""
    strengths = []
    for read, target in group:
        strength = strength_of(algebra, read, target, size)
        if strength is None:
            return None
        strengths.append(strength)
    rest = [point(1.0)] if size > 1 else []
    if len(strengths) == 1:
        return size_of(range_of(algebra, plus(ONE, strengths[0])), *rest)
    ranges = [range_of(algebra, strength) for strength in strengths]
    low, high = point(1.0), point(1.0)
    for held in ranges:
        low, high = low + below_zero(held), high + -below_zero(-held)
    return size_of(low, high, *rest)


# ---- causes ------------------------------------------------------------------------------------


def _cause(lane: Lane, algebra: Algebra) -> Cause:
    """Say which term keeps the norm from being bounded by 1."""
    decay = range_of(algebra, lane.decay(algebra))
    chained = any(hit.earlier for hit in lane.hits)
    worst: tuple[tuple[float, int], Hit, str] | None = None
    total = point(0.0)
    for hit in lane.hits:
        held = strength_range(lane, algebra, hit)
        alone = None if held is None else size_of(decay + held)
        if held is None and lane.gate is not None:
            held = _undecayed(lane, hit)
            alone = None if held is None else size_of(decay * (point(1.0) + held))
        if held is None or alone is None:
            return _apart(lane, algebra, hit)
        if chained and is_short(alone):
            continue
        total = total + held
        text = strength_text(lane.gate, hit.read, hit.target, -held)
        if worst is None or (-held.size, len(text)) < worst[0]:
            worst = (-held.size, len(text)), hit, text
    if worst is None:
        return Cause("order", "the writes of one token read different states")
    _, hit, text = worst
    if len(lane.hits) > 1 and not chained:
        text = strengths_text(text, len(lane.hits), -total)
    return Cause("strength", text, hit.terms, grows=True)


def _undecayed(lane: Lane, hit: Hit) -> Interval | None:
    """The range of s |u|^2 where the read is that of the decayed state."""
    assert lane.gate is not None
    algebra = Algebra(lane.bounds, lane.size, (lane.gate.value,))
    read = divided(lane.vector(algebra, hit.read), lane.decay(algebra))
    value = None if read is None else strength_poly(algebra, read, hit.target, lane.size)
    return None if value is None else range_of(algebra, value)


def _apart(lane: Lane, algebra: Algebra, hit: Hit) -> Cause:
    """The write reads along one vector and goes along another."""
    text = pair_text(hit.read, hit.target)
    radius = None
    if len(lane.hits) == 1 and not hit.earlier and len(hit.terms) == 2:
        radius = _radius(lane, algebra, hit)
    if radius is not None:
        return Cause("directions", text, hit.terms, grows=not is_short(radius))
    sizes = [lane.bounds.range(e).norm.high for e in hit.terms]
    return Cause("directions", text, hit.terms, grows=max(sizes, default=0.0) == inf)


def _radius(lane: Lane, algebra: Algebra, hit: Hit) -> Interval | None:
    """Bound the eigenvalues of D + p b^T, where the p_i b_i have one sign.

    Then T is similar to the symmetric D +- r r^T with r_i = sqrt |p_i b_i|.
    """
    p, b = (algebra.direction(lane.vector(algebra, e)) for e in (hit.read, hit.target))
    if p is None or b is None:
        return None
    entries = algebra.times({p[0]: 1.0}, {b[0]: 1.0})
    ((monomial, _),) = entries.items()
    wide, _ = algebra.split(monomial)
    if any(power % 2 and algebra.atoms[n].range.entry.low < 0 for n, power in wide):
        return None
    total = algebra.times(algebra.times(p[1], b[1]), algebra.inner(wide, lane.size))
    strength = range_of(algebra, total)
    decay = range_of(algebra, lane.decay(algebra))
    return size_of(decay + below_zero(strength), decay + -below_zero(-strength))
