"""Coefficients as polynomials, so that what stands in several places is one and the same.

In: expressions over a block's streams. Out: `Poly`: monomials over atoms, which stand for what is
no sum or product. Streams are followed through their equations. An atom is a number per copy, an
entry of a vector over the last axis, the squared norm of such a vector, an inner product, or the
inverse of a polynomial. What values a polynomial can have stands in `corners`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import isclose, sqrt
from typing import Literal

from nlc.ir.expr import Expr
from nlc.passes.bound import Bounds
from nlc.passes.interval import UNIT, Interval, point, upto
from nlc.passes.interval_rows import Range

# atoms by number, with their powers, rising
Monomial = tuple[tuple[int, int], ...]
Poly = Mapping[Monomial, float]
# where each axis of an expression lies: leading axes count -1, -2, ... from the right, 0 is the
# axis of the vector
Frame = tuple[int, ...]

ONE: Poly = {(): 1.0}
ZERO: Poly = {}
# more terms than this, factors in one, or levels of nesting: an expression is an atom of its own
TERMS, FACTORS, DEEP = 32, 12, 60


@dataclass(frozen=True)
class Atom:
    """`wide`: an entry of a vector. `parts` are the vector of which a square, length or inner
    product is taken, `inverse` the polynomial that it is the inverse of, `expr` a leaf."""

    kind: Literal["leaf", "holds", "square", "length", "inner", "inverse", "ratio"]
    range: Range
    wide: bool = False
    parts: Monomial = ()
    inverse: tuple[tuple[Monomial, float], ...] = ()
    expr: Expr | None = None


class Algebra:
    """Polynomials over one block. `whole` are expressions that are not taken apart."""

    def __init__(self, bounds: Bounds, size: int, whole: tuple[Expr, ...] = ()):
        self.bounds = bounds
        self.size = size
        self.atoms: list[Atom] = []
        self._whole = {id(bare(expr)) for expr in whole}
        self._numbers: dict[tuple[object, ...], int] = {}
        self._known: dict[tuple[int, Frame], tuple[Expr, Poly]] = {}

    # ---- from expressions ------------------------------------------------------------------

    def number(self, expr: Expr) -> Poly:
        """Return a number per copy, shaped by the leading axes."""
        return self._poly(expr, tuple(range(-len(expr.shape), 0)), DEEP)

    def entry(self, expr: Expr) -> Poly:
        """Return any one entry of a vector over the last axis."""
        return self._poly(expr, _upright(expr), DEEP)

    def undivided(self, expr: Expr) -> Poly:
        """Return an entry of a vector as one atom."""
        return self._leaf(expr, _upright(expr))

    def _poly(self, expr: Expr, frame: Frame, deep: int) -> Poly:
        known = self._known.get((id(expr), frame))
        if known is not None:
            return known[1]
        found = self._sum(expr, frame, deep) if deep and id(expr) not in self._whole else None
        if found is None or is_large(found):
            found = self._leaf(expr, frame)
        # the expression is kept, so that no other one gets its identity
        self._known[id(expr), frame] = expr, found
        return found

    def _sum(self, expr: Expr, frame: Frame, deep: int) -> Poly | None:
        """Take an expression apart, or return None for an atom."""

        def arg(i: int) -> Poly:
            x = expr.args[i]
            return self._poly(x, frame[len(frame) - len(x.shape) :], deep - 1)

        match expr.op:
            case "const":
                number = float(expr.attr("value"))
                return {(): number} if number else ZERO
            case "stream" if expr.attr("name") in self.bounds.equations:
                value = self.bounds.equations[expr.attr("name")].value
                fits = len(value.shape) == len(expr.shape)
                return self._poly(value, frame, deep - 1) if fits else None
            case "let" | "stop":
                return arg(0)
            case "unsqueeze" | "reshape":
                return self._laid_out(expr, frame, deep)
            case "neg":
                return scaled(arg(0), -1.0)
            case "add":
                return plus(arg(0), arg(1))
            case "sub":
                return plus(arg(0), scaled(arg(1), -1.0))
            case "mul":
                return self.times(arg(0), arg(1))
            case "div":
                return self.times(arg(0), self._inverse(arg(1)))
            case "where":
                condition = expr.args[0]
                chosen = self._leaf(condition, frame[len(frame) - len(condition.shape) :], True)
                yes, no = arg(1), arg(2)
                return plus(no, self.times(chosen, plus(yes, scaled(no, -1.0))))
            case "pow":
                return self._power(arg(0), arg(1))
            case "dot" | "sum" | "mean" | "norm":
                return self._reduced(expr, frame, deep)
        return None

    def _laid_out(self, expr: Expr, frame: Frame, deep: int) -> Poly | None:
        """Pass through axes of size 1 that come and go."""
        (x,) = expr.args
        outer = [place for place, axis in zip(frame, expr.shape, strict=True) if axis.size != 1]
        inner = [axis.size for axis in x.shape if axis.size != 1]
        if [axis.size for axis in expr.shape if axis.size != 1] != inner:
            return None
        places = iter(outer)
        # an axis of size 1 lies nowhere, so any place will do
        moved = tuple(next(places) if axis.size != 1 else frame_none(x) for axis in x.shape)
        return self._poly(x, moved, deep - 1)

    def _power(self, base: Poly, exponent: Poly) -> Poly | None:
        p = constant_of(exponent)
        if p in (1.0, 2.0, 3.0, 4.0):
            result = base
            for _ in range(int(p) - 1):
                result = self.times(result, base)
            return result
        return self._inverse(base) if p == -1.0 else None

    def _leaf(self, expr: Expr, frame: Frame, is_condition: bool = False) -> Poly:
        """Make an atom of an expression; of a condition, 1 where it holds, else 0."""
        places = tuple(f for f, axis in zip(frame, expr.shape, strict=True) if axis.size != 1)
        known = self.bounds.range(expr)
        held, norm = UNIT if is_condition else known.entry, known.norm
        if 0 in places and (is_condition or frame[-1] != 0 or expr.shape[-1].size == 1):
            # the norm that is known runs along another axis
            norm = held.magnitude() * point(sqrt(expr.shape[frame.index(0)].size))
        return self._atom(
            (is_condition, id(bare(expr)), places),
            Atom("holds" if is_condition else "leaf", Range(held, norm), 0 in places, expr=expr),
        )

    def _atom(self, key: tuple[object, ...], atom: Atom) -> Poly:
        return {((self.atom(key, atom), 1),): 1.0}

    def atom(self, key: tuple[object, ...], atom: Atom) -> int:
        """Return the number of an atom; the same key gives the same one."""
        number = self._numbers.get(key)
        if number is None:
            number = len(self.atoms)
            self._numbers[key] = number
            self.atoms.append(atom)
        return number

    def _inverse(self, value: Poly) -> Poly:
        number = constant_of(value)
        if number is not None and number != 0:
            return {(): 1.0 / number}
        held = self.wide_range(value).reciprocal()
        wide = any(self.atoms[n].wide for monomial in value for n, _ in monomial)
        terms = tuple(sorted(value.items()))
        norm = held.magnitude() * point(sqrt(self.size if wide else 1))
        return self._atom(("inverse", terms), Atom("inverse", Range(held, norm), wide, (), terms))

    # ---- sums over the vector's axis -------------------------------------------------------

    def _reduced(self, expr: Expr, frame: Frame, deep: int) -> Poly | None:
        if expr.op != "dot":
            if tuple(expr.attr("axes")) != (-1,):
                return None
            if expr.has("keep") and expr.attr("keep"):
                frame = frame[:-1]
        size = max(arg.shape[-1].size if arg.shape else 1 for arg in expr.args)
        if any(place == 0 for place in frame):
            # an inner vector among the entries of the outer one
            return None
        entries = [
            self._poly(arg, (*frame, 0)[-len(arg.shape) :] if arg.shape else (), deep - 1)
            for arg in expr.args
        ]
        if expr.op == "norm":
            return self._length(entries[0], size)
        total = self.times(*entries) if expr.op == "dot" else entries[0]
        summed = self.summed(total, size)
        return scaled(summed, 1.0 / size) if expr.op == "mean" else summed

    def summed(self, entries: Poly, size: int) -> Poly:
        """Sum entries over the vector's axis."""
        total: Poly = ZERO
        for monomial, factor in entries.items():
            vector, rest = self.split(monomial)
            if not vector:
                total = plus(total, {rest: factor * size})
                continue
            over = self.inner(vector, size)
            total = plus(total, self.times({rest: factor}, over))
        return total

    def inner(self, vector: Monomial, size: int) -> Poly:
        """Sum a product of entries: a squared norm where all powers are even."""
        if not vector:
            return {(): float(size)}
        if all(power % 2 == 0 for _, power in vector):
            half = tuple((number, power // 2) for number, power in vector)
            held = self._norm(half).power(point(2.0))
            atom = Atom("square", Range(held, held), parts=half)
            return self._atom(("square", half), atom)
        held = self._inner_range([n for n, power in vector for _ in range(power)], size)
        return self._atom(("inner", vector), Atom("inner", Range(held, held), parts=vector))

    def _length(self, entries: Poly, size: int) -> Poly | None:
        if len(entries) != 1:
            return None
        ((monomial, factor),) = entries.items()
        vector, rest = self.split(monomial)
        if rest or not vector:
            return None
        held = self._norm(vector)
        atom = Atom("length", Range(held, held), parts=vector)
        return scaled(self._atom(("length", vector), atom), abs(factor))

    def _norm(self, vector: Monomial) -> Interval:
        """Bound the norm of a product of vectors: one's norm times the greatest of the others."""
        if len(vector) == 1 and vector[0][1] == 1:
            return self.atoms[vector[0][0]].range.norm
        factors = [number for number, power in vector for _ in range(power)]
        return min((self._product(factors, (i,)) for i in range(len(factors))), key=_reach)

    def _inner_range(self, factors: list[int], size: int) -> Interval:
        """Bound an inner product, by the norms of two of the vectors or of one."""
        count = len(factors)
        pairs: list[tuple[int, ...]] = [(i, j) for i in range(count) for j in range(i)]
        reach = min((self._product(factors, pair) for pair in pairs or [(0,)]), key=_reach)
        if count == 1:
            reach = reach * point(sqrt(size))
        odd = {number for number in factors if factors.count(number) % 2}
        if all(self.atoms[number].range.entry.low >= 0 for number in odd):
            return reach
        return Interval(-reach.high, reach.high, reach.high_open, reach.high_open)

    def _product(self, factors: list[int], by_norm: tuple[int, ...]) -> Interval:
        held = point(1.0)
        for i, number in enumerate(factors):
            known = self.atoms[number].range
            size = known.norm if i in by_norm else known.entry.magnitude()
            held = held * upto(size.high, size.high_open)
        return upto(held.high, held.high_open)

    # ---- algebra ---------------------------------------------------------------------------

    def times(self, a: Poly, b: Poly) -> Poly:
        """Multiply."""
        total: dict[Monomial, float] = {}
        for (m, x), (n, y) in product(a.items(), b.items()):
            monomial = self._squared(joined(m, n))
            total[monomial] = total.get(monomial, 0.0) + x * y
        return {m: x for m, x in total.items() if x}

    def _squared(self, monomial: Monomial) -> Monomial:
        """Write the square of a norm as such, and of what holds or not as itself."""
        for number, power in monomial:
            atom = self.atoms[number]
            if power < 2 or atom.kind not in ("length", "holds"):
                continue
            left = tuple((n, p if n != number else p - 2) for n, p in monomial)
            left = tuple((n, p) for n, p in left if p)
            more: Poly = {((number, 1),): 1.0}
            if atom.kind == "length":
                more = self.inner(tuple((n, 2 * p) for n, p in atom.parts), self.size)
            (square,) = more
            return self._squared(joined(left, square))
        return monomial

    def split(self, monomial: Monomial) -> tuple[Monomial, Monomial]:
        """Split a monomial into entries of vectors and the rest."""
        wide = tuple(f for f in monomial if self.atoms[f[0]].wide)
        return wide, tuple(f for f in monomial if not self.atoms[f[0]].wide)

    def direction(self, entries: Poly) -> tuple[Monomial, Poly] | None:
        """Write the entries of a vector as scale * product, or None where they are a sum."""
        wide = {self.split(m)[0] for m in entries}
        if len(wide) != 1:
            return None
        return wide.pop(), {self.split(m)[1]: x for m, x in entries.items()}

    # ---- ranges ----------------------------------------------------------------------------

    def wide_range(self, value: Poly) -> Interval:
        """Return an interval that holds all values, taking each term for itself."""
        held = point(0.0)
        for monomial, factor in value.items():
            held = held + self.term(monomial) * point(factor)
        return held

    def term(self, monomial: Monomial) -> Interval:
        """Return the interval of a product of atoms."""
        held = point(1.0)
        for number, power in monomial:
            held = held * self.atoms[number].range.entry.power(point(float(power)))
        return held


def _upright(expr: Expr) -> Frame:
    """The frame of a vector: the last axis is the vector's, the others lead."""
    return (*range(1 - len(expr.shape), 0), 0) if expr.shape else ()


def frame_none(x: Expr) -> int:
    """The place of an axis of size 1: any, as it is not looked at."""
    return -len(x.shape) - 1


def bare(expr: Expr) -> Expr:
    """Take off what changes no value: names, axes of size 1."""
    while True:
        match expr.op:
            case "let" | "stop" | "unsqueeze":
                expr = expr.args[0]
            case _:
                return expr


def is_large(a: Poly) -> bool:
    """Say whether a polynomial is too large to be worked with."""
    return len(a) > TERMS or any(sum(p for _, p in m) > FACTORS for m in a)


def plus(a: Poly, b: Poly) -> Poly:
    """Add."""
    total = dict(a)
    for monomial, x in b.items():
        total[monomial] = total.get(monomial, 0.0) + x
    return {m: x for m, x in total.items() if x}


def scaled(a: Poly, by: float) -> Poly:
    """Multiply by a number."""
    return {m: x * by for m, x in a.items()}


def joined(m: Monomial, n: Monomial) -> Monomial:
    """Multiply monomials."""
    powers = dict(m)
    for number, power in n:
        powers[number] = powers.get(number, 0) + power
    return tuple(sorted(powers.items()))


def divided(a: Poly, b: Poly) -> Poly | None:
    """Divide by a single term; None where that leaves a remainder."""
    if len(b) != 1:
        return None
    ((monomial, factor),) = b.items()
    result = {}
    for m, x in a.items():
        rest = without(m, monomial)
        if rest is None:
            return None
        result[rest] = x / factor
    return result


def without(m: Monomial, n: Monomial) -> Monomial | None:
    """Divide monomials; None where `n` is no factor of `m`."""
    powers = dict(m)
    for number, power in n:
        if powers.get(number, 0) < power:
            return None
        powers[number] -= power
    return tuple((number, power) for number, power in sorted(powers.items()) if power)


def constant_of(a: Poly) -> float | None:
    """Return the number that a polynomial is, or None."""
    return a.get((), 0.0) if set(a) <= {()} else None


def same(a: Poly, b: Poly) -> bool:
    """Say whether two polynomials are equal, up to rounding of their coefficients."""
    return set(a) == set(b) and all(isclose(x, b[m], rel_tol=1e-12) for m, x in a.items())


def _reach(held: Interval) -> tuple[float, bool]:
    return held.high, not held.high_open
