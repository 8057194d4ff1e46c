"""Remembering: copying, recall of pairs, a needle in noise.

In: a random generator. Out: sequences that show something and ask for it later. Token 0 is padding,
and blank where a task has blanks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlc.lab.faults import LabError
from nlc.lab.tasks.base import NOTHING, Examples, Task, batch, between, padded, task

BLANK = 0
# what begins the second half of a sequence, or asks
MARK = 1
# the first token of content
FIRST = 2


def _letter(token: int) -> str:
    """Write tokens of content as letters, then as numbers."""
    if token == BLANK:
        return "_"
    if token == MARK:
        return "|"
    return chr(ord("a") + token - FIRST) if token < FIRST + 26 else str(token - FIRST)


@task("copy")
@dataclass(frozen=True)
class Copy(Task):
    """Read random letters, then, after a mark, say them again; each letter said is read as well."""

    source: ClassVar[str] = "arXiv:2402.01032"
    length: ClassVar[int] = 64
    longer: ClassVar[tuple[int, ...]] = (128, 256)
    letters: int = 16

    def __post_init__(self) -> None:
        between("copy:letters", self.letters, 1, 250)

    @property
    def vocab(self) -> int:
        """Blank, mark, letters."""
        return FIRST + self.letters

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw w; the input is `w | w` less the last letter."""
        rows = []
        for _ in range(count):
            n = int(draw.integers(1, length // 2 + 1)) if mixed else length // 2
            w = (FIRST + draw.integers(0, self.letters, n)).tolist()
            rows.append(([*w, MARK, *w[:-1]], [*[NOTHING] * n, *w]))
        return padded(rows, length)

    def show(self, token: int) -> str:
        """Write a letter."""
        return _letter(token)


@task("selective_copy")
@dataclass(frozen=True)
class SelectiveCopy(Task):
    """Letters at random places among blanks: say them in order, one at each mark at the end."""

    source: ClassVar[str] = "arXiv:2312.00752, section 4.1"
    length: ClassVar[int] = 64
    longer: ClassVar[tuple[int, ...]] = (128, 256)
    letters: int = 16
    items: int = 8

    def __post_init__(self) -> None:
        between("selective_copy:letters", self.letters, 1, 250)
        between("selective_copy:items", self.items, 1, 1000)

    @property
    def vocab(self) -> int:
        """Blank, mark, letters."""
        return FIRST + self.letters

    def least(self) -> int:
        """Return the length where there is no blank."""
        return 2 * self.items

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw letters and their places."""
        room = length - self.items
        inputs = np.full((count, length), BLANK, dtype=np.int64)
        targets = np.full((count, length), NOTHING, dtype=np.int64)
        inputs[:, room:] = MARK
        targets[:, room:] = FIRST + draw.integers(0, self.letters, (count, self.items))
        places = np.sort(draw.random((count, room)).argsort(1)[:, : self.items], 1)
        np.put_along_axis(inputs, places, targets[:, room:], 1)
        return batch(inputs, targets)

    def show(self, token: int) -> str:
        """Write a letter."""
        return _letter(token)


@task("mqar")
@dataclass(frozen=True)
class Mqar(Task):
    """Associative recall with many queries: pairs of a key and a value, then each key once more.

    Between queries there are blanks; the gaps follow a power law. `pairs=0` is an eighth of the
    length, so that a longer sequence has more of them.
    """

    source: ClassVar[str] = "arXiv:2312.04927"
    length: ClassVar[int] = 64
    longer: ClassVar[tuple[int, ...]] = (128, 256)
    pairs: int = 0
    keys: int = 64
    values: int = 64

    # p(gap) ~ gap^(POWER - 1)
    POWER: ClassVar[float] = 0.01

    def __post_init__(self) -> None:
        between("mqar:keys", self.keys, 1, 126)
        between("mqar:values", self.values, 1, 126)
        between("mqar:pairs", self.pairs, 0, self.keys)

    @property
    def vocab(self) -> int:
        """Blank, mark, keys, values."""
        return FIRST + self.keys + self.values

    def least(self) -> int:
        """Return the length that the pairs and their queries take."""
        return 4 * self.pairs if self.pairs else 8

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw pairs, then the places of the queries, two tokens each."""
        pairs = self.pairs or length // 8
        if pairs > self.keys:
            raise LabError(
                f"mqar has {self.keys} keys, and {length} tokens hold {pairs} pairs",
                "more keys, such as mqar:keys=126, or fixed pairs, such as mqar:pairs=16",
            )
        shown, slots = 2 * pairs, (length - 2 * pairs) // 2
        inputs = np.full((count, length), BLANK, dtype=np.int64)
        targets = np.full((count, length), NOTHING, dtype=np.int64)
        keys = FIRST + draw.random((count, self.keys)).argsort(1)[:, :pairs]
        values = FIRST + self.keys + draw.integers(0, self.values, (count, pairs))
        inputs[:, 0:shown:2], inputs[:, 1:shown:2] = keys, values
        # drawn without replacement: the smallest of exponential variables over their weights
        weights = np.arange(1, slots + 1) ** (self.POWER - 1)
        at = (draw.exponential(size=(count, slots)) / weights).argsort(1)[:, :pairs]
        np.put_along_axis(inputs, shown + 2 * at, keys, 1)
        np.put_along_axis(targets, shown + 2 * at, values, 1)
        return batch(inputs, targets)

    def show(self, token: int) -> str:
        """Write k3 for a key, v3 for a value."""
        if token < FIRST:
            return _letter(token)
        key = token - FIRST
        return f"k{key}" if key < self.keys else f"v{key - self.keys}"


@task("fuzzy_recall")
@dataclass(frozen=True)
class FuzzyRecall(Task):
    """Recall where keys and values are one to three tokens long, and pairs come again and again.

    Asked is every token of a value whose key was there before. Keys and values have letters of
    their own, and nothing else says where one ends. (The paper evaluates on the longest keys only.)
    """

    source: ClassVar[str] = "arXiv:2403.17844"
    length: ClassVar[int] = 64
    longer: ClassVar[tuple[int, ...]] = (128, 256)
    letters: int = 8
    pairs: int = 4
    longest: int = 3

    def __post_init__(self) -> None:
        between("fuzzy_recall:letters", self.letters, 2, 120)
        between("fuzzy_recall:longest", self.longest, 1, 8)
        between("fuzzy_recall:pairs", self.pairs, 1, self.letters)

    @property
    def vocab(self) -> int:
        """Blank, mark, letters of keys, letters of values."""
        return FIRST + 2 * self.letters

    def least(self) -> int:
        """Return a length in which some pair comes again."""
        return 2 * self.longest * (self.pairs + 1)

    def _pairs(self, draw: np.random.Generator) -> list[tuple[list[int], list[int]]]:
        """Draw distinct keys and their values."""
        found: dict[tuple[int, ...], list[int]] = {}
        while len(found) < self.pairs:
            sizes = draw.integers(1, self.longest + 1, 2)
            key = (FIRST + draw.integers(0, self.letters, sizes[0])).tolist()
            value = (FIRST + self.letters + draw.integers(0, self.letters, sizes[1])).tolist()
            found.setdefault(tuple(key), value)
        return [(list(key), value) for key, value in found.items()]

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """String pairs together, drawn at random, as long as they fit."""
        rows = []
        for _ in range(count):
            pairs, seen = self._pairs(draw), set()
            read: list[int] = []
            asked: list[int] = []
            while True:
                i = int(draw.integers(0, len(pairs)))
                key, value = pairs[i]
                if len(read) + len(key) + len(value) > length:
                    break
                # the answer stands at the token before the one that is to come
                asked += [NOTHING] * (len(key) - 1)
                asked += [*(value if i in seen else [NOTHING] * len(value)), NOTHING]
                read += [*key, *value]
                seen.add(i)
            rows.append((read, asked))
        return padded(rows, length)

    def show(self, token: int) -> str:
        """Write letters of keys small, those of values large."""
        if token < FIRST + self.letters:
            return _letter(token)
        return _letter(token - self.letters).upper()


@task("needle")
@dataclass(frozen=True)
class Needle(Task):
    """A needle in noise: `| key value` somewhere, and at the end `| key`: what was the value?

    `needles` are hidden, each with a key of its own; one of them is asked for. A value has `digits`
    tokens, of which each that is said is read as well.
    """

    source: ClassVar[str] = "arXiv:2404.06654 (single and multi-key needles)"
    length: ClassVar[int] = 64
    longer: ClassVar[tuple[int, ...]] = (128, 256, 512)
    needles: int = 1
    digits: int = 3
    noise: int = 26

    KEYS: ClassVar[int] = 26
    VALUES: ClassVar[int] = 10

    def __post_init__(self) -> None:
        between("needle:needles", self.needles, 1, self.KEYS)
        between("needle:digits", self.digits, 1, 20)
        between("needle:noise", self.noise, 1, 100)

    @property
    def vocab(self) -> int:
        """Blank, mark, noise, keys, digits."""
        return FIRST + self.noise + self.KEYS + self.VALUES

    def least(self) -> int:
        """Return the length where there is no noise."""
        return (self.needles + 1) * (2 + self.digits) - 1

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw noise, needles, and the places between which they go."""
        room = length - self.least()
        rows = []
        for _ in range(count):
            keys = FIRST + self.noise + draw.permutation(self.KEYS)[: self.needles]
            values = draw.integers(0, self.VALUES, (self.needles, self.digits))
            values += FIRST + self.noise + self.KEYS
            noise = (FIRST + draw.integers(0, self.noise, room)).tolist()
            read: list[int] = []
            done = 0
            for i, at in enumerate(np.sort(draw.integers(0, room + 1, self.needles))):
                read += [*noise[done:at], MARK, int(keys[i]), *values[i].tolist()]
                done = int(at)
            chosen = int(draw.integers(0, self.needles))
            value = values[chosen].tolist()
            read += [*noise[done:], MARK, int(keys[chosen]), *value[:-1]]
            rows.append((read, [*[NOTHING] * (length - self.digits), *value]))
        return padded(rows, length)

    def show(self, token: int) -> str:
        """Write noise small, keys large, digits as they are."""
        if token < FIRST + self.noise:
            return _letter(token)
        token -= FIRST + self.noise
        return chr(ord("A") + token) if token < self.KEYS else str(token - self.KEYS)
