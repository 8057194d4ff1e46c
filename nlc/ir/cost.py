"""What a system costs: parameters, state, arithmetic and traffic, by component.

    Work  = arithmetic and bytes of one run over a sequence, or of one token
    Entry = what one component of a block costs: weights, a memory, or the block's other equations
    Cost  = all entries, and their sums by level and for the whole system

All numbers are of one sequence of `tokens` tokens in float32. Data only; `passes/cost.py` counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# bytes of a number in float32
WIDTH = 4


@dataclass(frozen=True)
class Work:
    """Operations on floating numbers, and bytes read and written.

    `products` are those of matrix products and convolutions, 2mnk each; `solves` those of
    triangular and other solves; `elementwise` all else, one for each entry.
    """

    products: int = 0
    solves: int = 0
    elementwise: int = 0
    bytes: int = 0

    @property
    def flops(self) -> int:
        """All operations together."""
        return self.products + self.solves + self.elementwise

    def __add__(self, other: Work) -> Work:
        return self._with(other, 1)

    def __sub__(self, other: Work) -> Work:
        return self._with(other, -1)

    def _with(self, other: Work, sign: int) -> Work:
        return Work(
            self.products + sign * other.products,
            self.solves + sign * other.solves,
            self.elementwise + sign * other.elementwise,
            self.bytes + sign * other.bytes,
        )

    def times(self, count: int) -> Work:
        """Return the work done `count` times."""
        return NOTHING._with(self, count)

    def share(self, part: int, whole: int) -> Work:
        """Return `part` of `whole` equal pieces of the work."""
        return Work(
            self.products * part // whole,
            self.solves * part // whole,
            self.elementwise * part // whole,
            self.bytes * part // whole,
        )


NOTHING = Work()


@dataclass(frozen=True)
class Entry:
    """One component of a block or of the model, all its instances and their calls together.

    `name` is `BLOCK.NAME`, the block's own for what stands in its equations besides; what belongs
    to the model itself has its name alone, or "". `level` is where the work is counted, "" for
    equations. `parameters` are by the level that learns them. `state_bytes` is what one sequence
    carries from token to token. `forward` and `backward` are over the sequence, `decode` is one
    token after it.
    """

    name: str
    block: str
    kind: Literal["weights", "memory", "equations"]
    level: str
    copies: int
    parameters: tuple[tuple[str, int], ...] = ()
    state_bytes: int = 0
    forward: Work = NOTHING
    backward: Work = NOTHING
    decode: Work = NOTHING

    @property
    def learned(self) -> int:
        """All its parameters."""
        return sum(number for _, number in self.parameters)


@dataclass(frozen=True)
class Sum:
    """What several entries come to."""

    parameters: int = 0
    state_bytes: int = 0
    forward: Work = NOTHING
    backward: Work = NOTHING
    decode: Work = NOTHING


@dataclass(frozen=True)
class Cost:
    """What a system costs over a sequence of `tokens`; `levels` are its levels, fastest first."""

    tokens: int
    levels: tuple[str, ...]
    entries: tuple[Entry, ...] = ()

    def entry(self, name: str) -> Entry:
        """Return an entry by name."""
        return next(e for e in self.entries if e.name == name)

    @property
    def total(self) -> Sum:
        """The whole system."""
        return _sum(self.entries, sum(e.learned for e in self.entries))

    def block(self, name: str) -> Sum:
        """Return all of a block."""
        here = [e for e in self.entries if e.block == name]
        return _sum(here, sum(e.learned for e in here))

    def level(self, name: str) -> Sum:
        """Return what lives at a level: its memories, its weights, and what is learned there."""
        learned = sum(n for e in self.entries for level, n in e.parameters if level == name)
        return _sum([e for e in self.entries if e.level == name], learned)

    @property
    def equations(self) -> Sum:
        """What stands between the components: gates, norms, activations, short histories."""
        return _sum([e for e in self.entries if not e.level], 0)


def _sum(entries: Iterable[Entry], parameters: int) -> Sum:
    state = 0
    forward = backward = decode = NOTHING
    for e in entries:
        state += e.state_bytes
        forward += e.forward
        backward += e.backward
        decode += e.decode
    return Sum(parameters, state, forward, backward, decode)
