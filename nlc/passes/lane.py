"""One state of a normal form with its gate and what it writes back, and what is found of it.

In: an `Affine`. Out: `Lane`s, whose parts can be had as polynomials; `Stretch` and `Cause` are what
`stretch` and `coupling` find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Affine, Gate
from nlc.passes.bound import Bounds
from nlc.passes.corners import range_of
from nlc.passes.interval import Interval
from nlc.passes.polynomial import ZERO, Algebra, Poly

# rounding: a bound this far above 1 is 1
SLACK = 1e-12


@dataclass(frozen=True)
class Cause:
    """What keeps a proof from succeeding; `terms` are the expressions it is about.

    `grows` says that one token, again and again, may make the state grow.
    """

    kind: Literal["gate", "strength", "directions", "order", "circle", "sum", "chunk"]
    text: str
    terms: tuple[Expr, ...] = ()
    grows: bool = False


@dataclass(frozen=True)
class Stretch:
    """`norm` bounds ||T||; `cause` is None where it is at most 1. `note` qualifies a proof.

    `is_weighted`: the norm is one in which some states count more than others.
    """

    norm: Interval
    cause: Cause | None = None
    note: str = ""
    is_weighted: bool = False

    @property
    def is_contractive(self) -> bool:
        """Say whether every token shrinks the states."""
        return self.cause is None and (self.rate is not None or _stays_below_one(self.norm))

    @property
    def rate(self) -> float | None:
        """Return the bound where it stays away from 1."""
        return self.norm.high if self.cause is None and self.norm.high < 1 - SLACK else None


def _stays_below_one(norm: Interval) -> bool:
    return norm.high <= 1 and (norm.high_open or norm.high < 1 - SLACK)


def is_short(norm: Interval) -> bool:
    """Say whether a norm is at most 1."""
    return norm.high <= 1 + SLACK


# ---- lanes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hit:
    """A write that reads the state (p, and earlier writes) and goes back into it (b)."""

    number: int
    read: Expr | None
    target: Expr | None
    earlier: tuple[tuple[int, Expr], ...]

    @property
    def terms(self) -> tuple[Expr, ...]:
        """What is read and written along."""
        return tuple(e for e in (self.read, self.target) if e is not None)


@dataclass(frozen=True)
class Lane:
    """One state with its own gate and the writes that lead back to it; `size` is that of a key."""

    bounds: Bounds
    size: int
    gate: Gate | None
    hits: tuple[Hit, ...]

    def decay(self, algebra: Algebra) -> Poly:
        """Return the gate: a number, or any one entry."""
        return gate_poly(algebra, self.gate)

    def vector(self, algebra: Algebra, expr: Expr | None) -> Poly:
        """Return an entry of a vector."""
        return ZERO if expr is None else algebra.entry(expr)


def gate_poly(algebra: Algebra, gate: Gate | None) -> Poly:
    """Return a gate's value: a number, or any one entry."""
    if gate is None:
        return ZERO
    return algebra.number(gate.value) if gate.kind == "scalar" else algebra.entry(gate.value)


def lane_of(form: Affine, bounds: Bounds, size: int, state: int) -> Lane:
    """Take one state of a form, with the writes that read it and those these read."""
    reading = reading_writes(form, state)
    hits = tuple(
        Hit(
            r,
            form.writes[r].reads[state],
            form.writes[r].targets[state],
            tuple((s, c) for s, c in form.writes[r].earlier if s in reading),
        )
        for r in reading
    )
    back = any(hit.target is not None for hit in hits)
    return Lane(bounds, size, form.decay[state][state], hits if back else ())


def reading_writes(form: Affine, state: int) -> list[int]:
    """List the writes that read a state, by themselves or through earlier ones."""
    found: list[int] = []
    for r, write in enumerate(form.writes):
        if write.reads[state] is not None or any(s in found for s, _ in write.earlier):
            found.append(r)
    return found


# ---- strengths ----------------------------------------------------------------------------------


def strength_range(lane: Lane, algebra: Algebra, hit: Hit) -> Interval | None:
    """The range of s |u|^2, where p b^T = s u u^T."""
    value = strength_poly(algebra, lane.vector(algebra, hit.read), hit.target, lane.size)
    return None if value is None else range_of(algebra, value)


def strength_poly(algebra: Algebra, read: Poly, target: Expr | None, size: int) -> Poly | None:
    """Return s |u|^2 for a read y u and a target t u, s = y t; None where they differ."""
    return ZERO if target is None else strength_of(algebra, read, algebra.entry(target), size)


def strength_of(algebra: Algebra, read: Poly, target: Poly, size: int) -> Poly | None:
    """Return the same for the entries of a read and a target."""
    if not read or not target:
        return ZERO
    p, b = algebra.direction(read), algebra.direction(target)
    if p is None or b is None or p[0] != b[0]:
        return None
    length = algebra.inner(tuple((n, 2 * power) for n, power in p[0]), size)
    return algebra.times(algebra.times(p[1], b[1]), length)


# ---- intervals ----------------------------------------------------------------------------------


def size_of(*values: Interval) -> Interval:
    """The greatest absolute value in several intervals."""
    return values[0].hull(*values[1:]).magnitude()


def below_zero(held: Interval) -> Interval:
    """The part of an interval below 0, with 0."""
    return Interval(min(held.low, 0.0), 0.0, held.low_open and held.low < 0, False)
