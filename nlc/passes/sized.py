"""Sizes of tensors without tensors: what a piece of tensor code costs, read off its shapes.

    matmul(a, b)   [.., m, k] @ [.., k, n]      each(a, b)   entry by entry, broadcast

In: `Sized` operands. Out: the `Sized` result; the `Tally` grows. So a function of the emitted
library can be written once more, line by line, to be counted and not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from nlc.passes.tally import Tally


@dataclass(frozen=True)
class Sized:
    """A shape, and whether a gradient passes through the value."""

    shape: tuple[int, ...]
    needs: bool = True

    @property
    def entries(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def mT(self) -> Sized:
        """The last two axes swapped."""
        return Sized((*self.shape[:-2], *self.shape[:-3:-1]), self.needs)

    def last(self, *shape: int) -> Sized:
        """Return the same with other last axes, as many as are given."""
        return Sized((*self.shape[: len(self.shape) - len(shape)], *shape), self.needs)


@dataclass
class Sizes:
    """Tensor code at work, whose operations are added to a tally."""

    tally: Tally

    def matmul(self, a: Sized, b: Sized) -> Sized:
        """Multiply matrices."""
        m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
        out = Sized((*broadcast(a.shape[:-2], b.shape[:-2]), m, n), a.needs or b.needs)
        needs = (a.needs, b.needs)
        self.tally.product(2 * out.entries * k, a.entries, b.entries, out.entries, needs)
        return out

    def each(self, *operands: Sized, flops: int = 1) -> Sized:
        """Combine entry by entry; `flops` for each entry of the result."""
        shape: tuple[int, ...] = ()
        for operand in operands:
            shape = broadcast(shape, operand.shape)
        out = Sized(shape, any(operand.needs for operand in operands))
        reads = sum(operand.entries for operand in operands)
        self.tally.elementwise(flops * out.entries, reads, out.entries, out.needs)
        return out

    def total(self, operands: list[Sized]) -> Sized:
        """Add up."""
        found = operands[0]
        for operand in operands[1:]:
            found = self.each(found, operand)
        return found

    def summed(self, x: Sized, axis: int) -> Sized:
        """Sum over an axis."""
        shape = list(x.shape)
        del shape[axis]
        out = Sized(tuple(shape), x.needs)
        self.tally.elementwise(x.entries, x.entries, out.entries, x.needs)
        return out


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of two that are combined; a size of 1 gives way.

    >>> broadcast((3, 1), (5, 1, 4))
    (5, 3, 4)
    """
    rank = max(len(a), len(b))
    left, right = ((1,) * (rank - len(s)) + s for s in (a, b))
    return tuple(max(m, n) for m, n in zip(left, right, strict=True))
