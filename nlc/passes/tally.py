"""Adds up work, forward and backward, one operation after another.

In: what an operation reads, writes and computes. Out: `Work`. Every operation reads its operands
and writes its result once, in float32, as it does when nothing is fused. Backward, a product costs
one more for each operand that needs a gradient, and that is exact; a solve likewise; an elementwise
operation is taken to cost twice its forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlc.ir.cost import NOTHING, WIDTH, Work

Needs = tuple[bool, bool]
BOTH: Needs = (True, True)


@dataclass
class Tally:
    """What has been counted so far."""

    forward: Work = NOTHING
    backward: Work = NOTHING

    def join(self, other: Tally) -> None:
        """Add what another tally has counted."""
        self.forward += other.forward
        self.backward += other.backward

    def product(self, flops: int, left: int, right: int, out: int, needs: Needs = BOTH) -> None:
        """Count a matrix product by the entries of its operands and its result."""
        self._operands(Work(products=flops), left, right, out, needs)

    def solve(self, flops: int, left: int, right: int, out: int, needs: Needs = BOTH) -> None:
        """Count a solve."""
        self._operands(Work(solves=flops), left, right, out, needs)

    def _operands(self, work: Work, left: int, right: int, out: int, needs: Needs) -> None:
        moved = Work(bytes=WIDTH * (left + right + out))
        self.forward += work + moved
        # the gradient of an operand reads that of the result and the other operand
        for needed in needs:
            if needed:
                self.backward += work + moved

    def elementwise(self, flops: int, reads: int, writes: int, needs: bool = True) -> None:
        """Count operations on single entries."""
        self.forward += Work(elementwise=flops, bytes=WIDTH * (reads + writes))
        if needs:
            # reads the result's gradient and the operands, writes the operands' gradients
            self.backward += Work(elementwise=2 * flops, bytes=WIDTH * (writes + 2 * reads))
