"""Take a transition with several writes apart into factors: T = D (I + x b^T ...) (I + ...) ...

In: a `Lane`. Out: a `Chain`: groups of writes, of which each reads the state that all groups before
it have left, and none sees another one of its own group; or None where the writes are no such
chain. The decay stands before the writes, or after them.

Writes along one direction are kept as one sum: a second step along k has the write e_2 = e_1 + e,
so that what it adds is e. Only the last of such sums goes into the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nlc.ir.expr import Expr
from nlc.passes.corners import range_of
from nlc.passes.interval import Interval, point
from nlc.passes.lane import Hit, Lane, below_zero, size_of
from nlc.passes.polynomial import ONE, ZERO, Algebra, Monomial, Poly, divided, plus, same, scaled


@dataclass(frozen=True)
class Factor:
    """One step I + s u u^T, and s |u|^2; `read` is None where it was written into a sum."""

    read: Expr | None
    target: Expr | None
    strength: Poly


@dataclass
class Chain:
    """Groups of factors, over the polynomials of one algebra."""

    algebra: Algebra
    decay: Poly
    size: int
    groups: list[list[Factor]] = field(default_factory=list)

    def norm(self) -> Interval:
        """Bound ||T|| by the product of the factors' norms."""
        held = range_of(self.algebra, self.decay).magnitude()
        for group in self.groups:
            held = held * self.group_norm(group)
        return held

    def group_norm(self, group: list[Factor]) -> Interval:
        """Bound the norm of I + sum of s u u^T."""
        rest = [point(1.0)] if self.size > 1 else []
        if len(group) == 1:
            return size_of(range_of(self.algebra, plus(ONE, group[0].strength)), *rest)
        low = high = point(1.0)
        for factor in group:
            held = range_of(self.algebra, factor.strength)
            low, high = low + below_zero(held), high + -below_zero(-held)
        return size_of(low, high, *rest)


def chains(lane: Lane) -> Iterator[Chain]:
    """Give the ways in which a lane's transition is a chain."""
    whole = () if lane.gate is None else (lane.gate.value,)
    for expressions in ((), whole):
        for decay_first in (True, False):
            found = _Links(lane, Algebra(lane.bounds, lane.size, expressions), decay_first).chain()
            if found is not None:
                yield found


class _Links:
    """The search for one chain; `latest` and `current` are the sums that the state holds."""

    def __init__(self, lane: Lane, algebra: Algebra, decay_first: bool):
        self.lane = lane
        self.algebra = algebra
        self.decay = lane.decay(algebra)
        self.decay_first = decay_first
        self.chained = Chain(algebra, self.decay, lane.size)
        self.along: dict[int, Monomial] = {}
        self.latest: list[int] = []
        self.current: list[int] = []
        self.reads: dict[int, Poly] = {}
        self.earlier: dict[int, dict[int, Poly]] = {}
        self.targets: dict[int, tuple[Monomial, Poly]] = {}

    def chain(self) -> Chain | None:
        """Follow the writes in their order."""
        for hit in self.lane.hits:
            if not self._enter(hit):
                return None
        for hit in self.lane.hits:
            if not self._link(hit):
                return None
        held = set(self.latest) | set(self.current)
        return self.chained if held == set(self.targets) else None

    def _enter(self, hit: Hit) -> bool:
        """Write down a hit's read, target and what it sees, as polynomials."""
        read = self.lane.vector(self.algebra, hit.read)
        target = self.lane.vector(self.algebra, hit.target)
        split = divided(read if self.decay_first else target, self.decay)
        if split is None:
            return False
        self.reads[hit.number], target = (split, target) if self.decay_first else (read, split)
        self.earlier[hit.number] = {s: self.algebra.number(c) for s, c in hit.earlier}
        if target:
            found = self.algebra.direction(target)
            if found is None:
                return False
            self.targets[hit.number] = found
        return True

    def _link(self, hit: Hit) -> bool:
        """Find where a write stands in the chain, and add its factor."""
        for before in (None, *self.latest, *self.current):
            read = self.reads[hit.number]
            seen = dict(self.earlier[hit.number])
            if before is not None:
                read = plus(read, scaled(self.reads[before], -1.0))
                for s, c in self.earlier[before].items():
                    seen[s] = plus(seen.get(s, ZERO), scaled(c, -1.0))
            found = self.algebra.direction(read)
            if found is None or (before is not None and found[0] != self.along[before]):
                continue
            scale = self._scale(hit.number, found[0])
            if scale is None:
                continue
            for joins in (True, False) if self.current else (False,):
                state = self.latest if joins else self.latest + self.current
                if self._sees(seen, state, read):
                    self._add(hit, before, found, scale, joins)
                    return True
        return False

    def _scale(self, number: int, direction: Monomial) -> Poly | None:
        """Return t of the target t u, for a sum that goes into the state later that of the last."""
        if number in self.targets:
            along, scale = self.targets[number]
            return scale if along == direction else None
        known = [scale for along, scale in self.targets.values() if along == direction]
        return known[0] if len(known) == 1 else None

    def _sees(self, seen: dict[int, Poly], state: list[int], read: Poly) -> bool:
        """Say whether a read sees just the sums that the state holds."""
        expected: dict[int, Poly] = {}
        for s in state:
            scale = self._scale(s, self.along[s])
            if scale is None:
                return False
            product = self.algebra.times({self.along[s]: 1.0}, read)
            inner = self.algebra.summed(product, self.lane.size)
            expected[s] = self.algebra.times(scale, inner)
        return all(
            same(seen.get(s, ZERO), expected.get(s, ZERO)) for s in set(seen) | set(expected)
        )

    def _add(
        self, hit: Hit, before: int | None, found: tuple[Monomial, Poly], scale: Poly, joins: bool
    ) -> None:
        direction, read_scale = found
        length = self.algebra.inner(tuple((n, 2 * p) for n, p in direction), self.lane.size)
        strength = self.algebra.times(self.algebra.times(read_scale, scale), length)
        if not joins:
            self.latest, self.current = self.latest + self.current, []
            self.chained.groups.append([])
        ends = (h for h in self.lane.hits if self.targets.get(h.number, ((), {}))[0] == direction)
        read = hit.read if before is None else None
        self.chained.groups[-1].append(Factor(read, next(ends).target, strength))
        self.along[hit.number] = direction
        self.latest = [s for s in self.latest if s != before]
        self.current = [s for s in self.current if s != before] + [hit.number]
