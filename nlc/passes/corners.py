"""What values a polynomial can have.

In: a polynomial of `polynomial`. Out: an interval. On the box of its atoms' intervals a polynomial
is written in the basis of Bernstein: it lies between its least and greatest coefficient, and those
at the corners are its values there. With one power for each atom that is exact. Before that,
what stands over its own multiple is gathered: N / (c + N) lies between 0 and 1, whatever N.

Intervals alone lose what belongs together: beta / (1 + beta |k|^2) * |k|^2 stays below 1.
"""

from __future__ import annotations

from itertools import product
from math import comb, prod

from nlc.passes.interval import Interval, upto
from nlc.passes.interval_rows import Range
from nlc.passes.polynomial import TERMS, Algebra, Atom, Monomial, Poly, joined, without

# more coefficients than this are not looked at, nor are atoms that reach further
COEFFICIENTS, FAR = 512, 1e12
# values this close count as equal, which can only close an end
CLOSE = 1e-12


def range_of(algebra: Algebra, value: Poly) -> Interval:
    """Return an interval that holds all values of a polynomial."""
    value = _gathered(algebra, value)
    wide = algebra.wide_range(value)
    exact = _box(algebra, value)
    both = wide if exact is None else exact.meet(wide)
    # rounding must not leave an interval without values
    return both if both.low <= both.high else wide


# ---- the box -----------------------------------------------------------------------------------


def _box(algebra: Algebra, value: Poly) -> Interval | None:
    """Bound a polynomial by its coefficients in Bernstein's basis; None where that says nothing."""
    degrees: dict[int, int] = {}
    for monomial in value:
        for number, power in monomial:
            degrees[number] = max(degrees.get(number, 0), power)
    numbers = list(degrees)
    sides = [algebra.atoms[n].range.entry for n in numbers]
    count = prod(degree + 1 for degree in degrees.values())
    if not numbers or count * len(value) > COEFFICIENTS * TERMS:
        return None
    if count > COEFFICIENTS or not all(side.size <= FAR for side in sides):
        return None
    bases = {n: _basis(side, degrees[n]) for n, side in zip(numbers, sides, strict=True)}
    found: dict[tuple[int, ...], float] = {}
    for place in product(*(range(degrees[n] + 1) for n in numbers)):
        total = 0.0
        for monomial, factor in value.items():
            powers = dict(monomial)
            for n, i in zip(numbers, place, strict=True):
                factor *= bases[n][powers.get(n, 0)][i]
            total += factor
        found[place] = total
    low, high = min(found.values()), max(found.values())
    lowest = {c for c, x in found.items() if x <= low + CLOSE * (1 + abs(low))}
    highest = {c for c, x in found.items() if x >= high - CLOSE * (1 + abs(high))}
    tops = [degrees[n] for n in numbers]
    return Interval(
        low, high, not _is_reached(lowest, sides, tops), not _is_reached(highest, sides, tops)
    )


def _basis(side: Interval, degree: int) -> list[list[float]]:
    """The coefficients of x^0 ... x^n in Bernstein's basis of degree n over an interval."""
    low, high = side.low, side.high
    return [
        [
            sum(
                comb(i, j) * comb(degree - i, power - j) * high**j * low ** (power - j)
                for j in range(power + 1)
            )
            / comb(degree, power)
            for i in range(degree + 1)
        ]
        for power in range(degree + 1)
    ]


def _is_reached(coefficients: set[tuple[int, ...]], sides: list[Interval], tops: list[int]) -> bool:
    """Say whether a point of the box has the value that these coefficients have.

    A point is a mean of coefficients, and inside a face all of the face's count. So it has the
    greatest value only if all coefficients of its face do. An end that is closed can be fixed; an
    atom without one must be free.
    """
    choices = []
    for side, top in zip(sides, tops, strict=True):
        ends = ((0,), (top,))
        closed = tuple(e for e, (_, is_open) in zip(ends, side.ends, strict=True) if not is_open)
        choices.append(closed or (tuple(range(top + 1)),))
    return any(all(place in coefficients for place in product(*face)) for face in product(*choices))


# ---- ratios ------------------------------------------------------------------------------------


def _gathered(algebra: Algebra, value: Poly) -> Poly:
    """Write every N / (c N + rest) as an atom of its own."""
    result: dict[Monomial, float] = {}
    for monomial, factor in value.items():
        gathered = monomial
        for number, _ in monomial:
            if algebra.atoms[number].kind == "inverse":
                gathered = _ratio(algebra, gathered, number) or gathered
        result[gathered] = result.get(gathered, 0.0) + factor
    return result


def _ratio(algebra: Algebra, monomial: Monomial, inverse: int) -> Monomial | None:
    """Take N / (c N + rest) out of a monomial that has the inverse of the sum as a factor."""
    over = without(monomial, ((inverse, 1),))
    terms = algebra.atoms[inverse].inverse
    for term, factor in terms:
        if over is None or not term or factor <= 0 or algebra.term(term).low < 0:
            continue
        used, is_signed = _covered(algebra, over, term)
        rest = algebra.wide_range({m: x for m, x in terms if m != term})
        if used is None or rest.low < 0:
            continue
        is_below = rest.low > 0 or rest.low_open
        held = upto(1.0 / factor, is_below)
        if is_signed:
            held = Interval(-held.high, held.high, is_below, is_below)
        elif used == term and algebra.term(term).low_open:
            held = Interval(held.low, held.high, True, is_below)
        left = without(over, used)
        assert left is not None
        wide = any(algebra.atoms[n].wide for n, _ in ((inverse, 1), *used))
        atom = Atom("ratio", Range(held, held), wide)
        return joined(left, ((algebra.atom(("ratio", inverse, used), atom), 1),))
    return None


def _covered(algebra: Algebra, over: Monomial, term: Monomial) -> tuple[Monomial | None, bool]:
    """Find the factors of `over` whose product is at most `term`, and say if it may be negative.

    An entry's square is at most the vector's squared norm, and so on.
    """
    used: Monomial = ()
    is_signed = False
    for number, power in term:
        atom = algebra.atoms[number]
        options: list[tuple[Monomial, bool]] = [(((number, power),), False)]
        if atom.kind == "square":
            options.append((tuple((n, 2 * p * power) for n, p in atom.parts), False))
        if atom.kind == "length":
            options.append((tuple((n, p * power) for n, p in atom.parts), power % 2 == 1))
        for option, signed in options:
            if without(over, joined(used, option)) is not None:
                used, is_signed = joined(used, option), is_signed or signed
                break
        else:
            return None, False
    return used, is_signed
