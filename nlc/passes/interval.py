"""Intervals of real numbers whose ends may be open, and their arithmetic.

In: intervals. Out: the interval of all results. An open end is never reached; an infinite end is
open where values are finite, and closed where a value such as log(0) may be infinite. Where an
operation has no value (0/0, the log of a negative number) the result is everything. Ends are
rounded as any float is, not outwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Interval:
    """All x with low <= x <= high, without the ends that are open.

    >>> Interval(0, 1, True, True)
    (0, 1)
    """

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __repr__(self) -> str:
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{self.low:.4g}, {self.high:.4g}{right}"

    def __contains__(self, x: float) -> bool:
        above = x > self.low or (x == self.low and not self.low_open)
        return above and (x < self.high or (x == self.high and not self.high_open))

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low, self.high_open, self.low_open)

    def __add__(self, other: Interval) -> Interval:
        low, high = self.low + other.low, self.high + other.high
        if math.isnan(low) or math.isnan(high):
            return ANYTHING
        return Interval(
            low, high, self.low_open or other.low_open, self.high_open or other.high_open
        )

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __mul__(self, other: Interval) -> Interval:
        if (0.0 in self and other.reaches_infinity) or (0.0 in other and self.reaches_infinity):
            return ANYTHING
        corners = [
            (_product(x, y), not (x_open or y_open))
            for x, x_open in self.ends
            for y, y_open in other.ends
        ]
        # 0 is reached wherever one of the two is 0, which need not be a corner
        if 0.0 in self or 0.0 in other:
            corners.append((0.0, True))
        return _hull_of(corners)

    def __truediv__(self, other: Interval) -> Interval:
        return self * other.reciprocal()

    @property
    def ends(self) -> tuple[tuple[float, bool], tuple[float, bool]]:
        """Both ends, each with whether it is open."""
        return (self.low, self.low_open), (self.high, self.high_open)

    @property
    def size(self) -> float:
        """The greatest absolute value, or what it approaches."""
        return max(abs(self.low), abs(self.high))

    @property
    def is_bounded(self) -> bool:
        """Say whether both ends are finite."""
        return self.size < inf

    @property
    def reaches_infinity(self) -> bool:
        """Say whether a value may be infinite."""
        return any(math.isinf(x) and not is_open for x, is_open in self.ends)

    @property
    def is_point(self) -> bool:
        """Say whether it holds a single number."""
        return self.low == self.high

    def magnitude(self) -> Interval:
        """|x|.

        >>> Interval(-2, 1, True).magnitude()
        [0, 2)
        """
        if self.low >= 0:
            return self
        if self.high <= 0:
            return -self
        lower, upper = -self.low, self.high
        reached = (lower >= upper and not self.low_open) or (upper >= lower and not self.high_open)
        return Interval(0.0, max(lower, upper), False, not reached)

    def reciprocal(self) -> Interval:
        """1/x."""
        if self.low >= 0 or self.high <= 0:
            low = -inf if self.high == 0 else 1.0 / self.high
            high = inf if self.low == 0 else 1.0 / self.low
            return Interval(low, high, self.high_open, self.low_open)
        return ANYTHING

    def power(self, exponent: Interval) -> Interval:
        """x^y; with a negative base, for whole numbers y alone."""
        if exponent.is_point:
            return self._to(exponent.low)
        if self.low < 0:
            return ANYTHING
        if self.is_point and self.low > 0:
            if self.low == 1:
                return self
            return exponent.map(lambda y: _power(self.low, y), rises=self.low > 1)
        return (exponent * self.log()).exp()

    def _to(self, p: float) -> Interval:
        if p == 0:
            return point(1.0)
        if p < 0:
            return self._to(-p).reciprocal()
        if p % 2 == 0:
            return self.magnitude().map(lambda x: _power(x, p))
        if p % 1 == 0 or self.low >= 0:
            return self.map(lambda x: _power(x, p))
        return ANYTHING

    def exp(self) -> Interval:
        """The exponential."""
        return self.map(_exp)

    def log(self) -> Interval:
        """The natural logarithm; log(0) is minus infinity."""
        return self.map(lambda x: math.log(x) if x > 0 else -inf) if self.low >= 0 else ANYTHING

    def map(self, function: Callable[[float], float], rises: bool = True) -> Interval:
        """Apply a strictly monotone function."""
        low, high = function(self.low), function(self.high)
        if rises:
            return Interval(low, high, self.low_open, self.high_open)
        return Interval(high, low, self.high_open, self.low_open)

    def hull(self, *others: Interval) -> Interval:
        """The least interval around several."""
        every = (self, *others)
        return _hull_of([(x, not is_open) for one in every for x, is_open in one.ends])

    def meet(self, other: Interval) -> Interval:
        """What two intervals share, both holding the same value."""
        low, low_open = max(self.ends[0], other.ends[0])
        high = min(self.high, other.high)
        high_open = (self.high_open and self.high == high) or (
            other.high_open and other.high == high
        )
        return Interval(low, high, low_open, high_open)


def point(x: float) -> Interval:
    """The interval of one number."""
    return Interval(x, x)


def between(low: float, high: float, is_open: bool = True) -> Interval:
    """An interval with both ends open, or both closed."""
    return Interval(low, high, is_open, is_open)


ANYTHING = Interval(-inf, inf)
FINITE = between(-inf, inf)
POSITIVE = between(0.0, inf)
NOT_NEGATIVE = Interval(0.0, inf, False, True)
UNIT = between(0.0, 1.0, is_open=False)
SYMMETRIC = between(-1.0, 1.0, is_open=False)


def upto(high: float, high_open: bool = False) -> Interval:
    """From 0, reached, to `high`."""
    return Interval(0.0, high, False, high_open)


def _hull_of(corners: Iterable[tuple[float, bool]]) -> Interval:
    """The interval from the least to the greatest value; each comes with whether it is reached."""
    known = list(corners)
    if any(math.isnan(x) for x, _ in known):
        return ANYTHING
    low, high = min(x for x, _ in known), max(x for x, _ in known)
    reached = {x for x, is_reached in known if is_reached}
    return Interval(low, high, low not in reached, high not in reached)


def _product(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return inf


def _power(x: float, p: float) -> float:
    try:
        return float(x**p)
    except OverflowError:
        return inf
    except ZeroDivisionError:
        return inf
