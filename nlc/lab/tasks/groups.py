"""Keeping a state: products of permutations, and the value of an expression.

In: a random generator. Out: sequences whose every prefix has an answer. Which layers can learn them
at lengths they never saw is known in theory (arXiv:2404.08819, arXiv:2411.12537).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import ClassVar

import numpy as np

from nlc.lab.tasks.base import NOTHING, Examples, Task, batch, between, task


@cache
def elements(n: int) -> tuple[tuple[int, ...], ...]:
    """All permutations of n things, in order; the first one is the identity."""
    return tuple(permutations(range(n)))


@cache
def product_table(n: int) -> np.ndarray:
    """Return [a, b], the number of the permutation that does a, then b."""
    number = {p: i for i, p in enumerate(elements(n))}
    return np.array(
        [[number[tuple(b[i] for i in a)] for b in elements(n)] for a in elements(n)],
        dtype=np.int64,
    )


def is_swap(p: tuple[int, ...]) -> bool:
    """Say whether a permutation exchanges two things, or none."""
    return sum(i != at for i, at in enumerate(p)) <= 2


@task("s5")
@dataclass(frozen=True)
class S5(Task):
    """The word problem of the permutations of five things: the product of all so far.

    `n` is the number of things; with `swaps=1` only exchanges of two things are read.
    """

    source: ClassVar[str] = "arXiv:2404.08819"
    length: ClassVar[int] = 32
    longer: ClassVar[tuple[int, ...]] = (64, 128, 256)
    n: int = 5
    swaps: int = 0

    def __post_init__(self) -> None:
        between("s5:n", self.n, 2, 5)
        between("s5:swaps", self.swaps, 0, 1)

    @property
    def vocab(self) -> int:
        """A token for each permutation, an input and an answer alike."""
        return len(elements(self.n))

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw permutations; each asks for the product up to it."""
        usable = [i for i, p in enumerate(elements(self.n)) if not self.swaps or is_swap(p)]
        inputs = np.array(usable, dtype=np.int64)[draw.integers(0, len(usable), (count, length))]
        table, targets = product_table(self.n), inputs.copy()
        for t in range(1, length):
            targets[:, t] = table[targets[:, t - 1], inputs[:, t]]
        return batch(inputs, targets)

    def show(self, token: int) -> str:
        """Write where each thing goes: `10234`."""
        return "".join(map(str, elements(self.n)[token]))


@task("modular_arithmetic")
@dataclass(frozen=True)
class ModularArithmetic(Task):
    """The value of `3 + 2 * 4 - 1` modulo `modulus`, with * before + and -, after each number.

    The benchmark asks after the last number only; here every number ends an expression, which
    makes a short training enough.
    """

    source: ClassVar[str] = "arXiv:2207.02098 (simple version)"
    length: ClassVar[int] = 40
    longer: ClassVar[tuple[int, ...]] = (64, 128, 256)
    modulus: int = 5

    def __post_init__(self) -> None:
        between("modular_arithmetic:modulus", self.modulus, 2, 100)

    @property
    def vocab(self) -> int:
        """Numbers, then the signs + - *."""
        return self.modulus + 3

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw expressions; `total` is what stands before the running product, `term`."""
        m = self.modulus
        inputs = draw.integers(0, m, (count, length))
        signs = draw.integers(0, 3, (count, length))
        inputs[:, 1::2] = m + signs[:, 1::2]
        targets = np.full((count, length), NOTHING, dtype=np.int64)
        total, term = np.zeros(count, dtype=np.int64), inputs[:, 0]
        targets[:, 0] = term
        for t in range(2, length, 2):
            sign, number = signs[:, t - 1], inputs[:, t]
            total = np.where(sign == 2, total, (total + term) % m)
            term = np.choose(sign, [number, -number % m, term * number % m])
            targets[:, t] = (total + term) % m
        return batch(inputs, targets)

    def show(self, token: int) -> str:
        """Write a number or a sign."""
        return str(token) if token < self.modulus else "+-*"[token - self.modulus]
