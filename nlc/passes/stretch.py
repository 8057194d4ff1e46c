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

from collections.abc import Iterable
from math import inf

from nlc.ir.expr import Expr
from nlc.passes.chain import Chain, chains
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
    strength_poly,
    strength_range,
)
from nlc.passes.polynomial import ZERO, Algebra, Poly, divided, is_large, plus
from nlc.passes.terms import gate_text, pair_text, strength_text, strengths_text

# a polynomial of so many writes is not worth its terms: they are a chain
MANY = 8


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
    found = list(chains(lane))
    norms = [_along_one(lane, algebra), _symmetric(lane, algebra), _sum(lane)]
    norms += [chain.norm() for chain in found]
    best = min((n for n in norms if n is not None), key=lambda n: (n.high, not n.high_open))
    if is_short(best):
        return Stretch(best)
    if any(hit.earlier for hit in lane.hits):
        return Stretch(best, _cause_in_chain(lane, found))
    return Stretch(best, _cause(lane, algebra))


def _along_one(lane: Lane, algebra: Algebra) -> Interval | None:
    """All reads and targets along one vector u: T is D but along u, where it is one number."""
    if lane.gate is not None and lane.gate.kind != "scalar" and lane.size > 1:
        return None
    if len(lane.hits) > MANY:
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
        if is_large(scale):
            return None
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


# ---- causes ------------------------------------------------------------------------------------


def _cause_in_chain(lane: Lane, found: list[Chain]) -> Cause:
    """Say which of several writes, each at the state that others left, goes too far."""
    if not found:
        terms = tuple(e for hit in lane.hits for e in hit.terms)
        grows = any(lane.bounds.range(e).norm.high == inf for e in terms)
        return Cause("order", "no bound is known for the writes of one token", terms, grows)
    chain = min(found, key=lambda c: c.norm().high)
    group = max(chain.groups, key=lambda g: chain.group_norm(g).high)
    ranges = {id(f): range_of(chain.algebra, f.strength) for f in group}
    worst = max(group, key=lambda f: ranges[id(f)].size)
    text = strength_text(lane.gate, worst.read, worst.target, -ranges[id(worst)])
    if len(group) > 1:
        text = strengths_text(text, len(group), _total(ranges.values()))
    decay = range_of(chain.algebra, chain.decay).magnitude()
    grows = not is_short(decay * chain.group_norm(group))
    return Cause("strength", text, _present(worst.read, worst.target), grows)


def _present(*terms: Expr | None) -> tuple[Expr, ...]:
    return tuple(e for e in terms if e is not None)


def _total(held: Iterable[Interval]) -> Interval:
    total = point(0.0)
    for one in held:
        total = total + one
    return total


def _cause(lane: Lane, algebra: Algebra) -> Cause:
    """Say which write at the state before the token goes too far."""
    found: list[tuple[Interval, str, Hit]] = []
    for hit in lane.hits:
        held = strength_range(lane, algebra, hit)
        if held is None and lane.gate is not None:
            held = _undecayed(lane, hit)
        if held is None:
            return _apart(lane, algebra, hit)
        found.append((held, strength_text(lane.gate, hit.read, hit.target, -held), hit))
    _, text, hit = min(found, key=lambda one: (-one[0].size, len(one[1])))
    if len(found) > 1:
        text = strengths_text(text, len(found), _total(held for held, _, _ in found))
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
