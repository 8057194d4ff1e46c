"""Formal languages: after each symbol of a word, which symbols may come next?

The answer at a position is a set of symbols, among them the end of the word, coded as one token;
a word is right when all its sets are. The construction is that of Bhattamishra et al.
(arXiv:2009.11264), which Irie et al. (arXiv:2310.16076) and Nested Learning (arXiv:2512.24695,
table 5) measure. In: a random generator. Out: words and sets. Token 0 is padding, symbols follow,
then sets: bit i for symbol i, the last bit for the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlc.lab.tasks.base import Examples, Task, padded, task

END = "."


@dataclass(frozen=True)
class Language(Task):
    """The base of formal languages."""

    source: ClassVar[str] = "arXiv:2009.11264, arXiv:2310.16076; arXiv:2512.24695, table 5"
    length: ClassVar[int] = 40
    longer: ClassVar[tuple[int, ...]] = (64, 128, 256)
    metric: ClassVar[str] = "exact"
    symbols: ClassVar[str] = "ab"

    @property
    def vocab(self) -> int:
        """Padding, symbols, and all sets of symbols and the end."""
        return 1 + len(self.symbols) + (2 << len(self.symbols))

    def word(self, draw: np.random.Generator, length: int, mixed: bool) -> str:
        """Draw a word, or the beginning of one, of at most `length` symbols."""
        raise NotImplementedError

    def following(self, word: str) -> list[str]:
        """Return for each position the symbols that may come after it, `.` for the end."""
        raise NotImplementedError

    def make(
        self, draw: np.random.Generator, count: int, length: int, mixed: bool, part: int | None
    ) -> Examples:
        """Draw words; every symbol is asked about."""
        rows = []
        for _ in range(count):
            word = self.word(draw, length, mixed)
            read = [1 + self.symbols.index(symbol) for symbol in word]
            rows.append((read, [self.set_token(following) for following in self.following(word)]))
        return padded(rows, length)

    def set_token(self, symbols: str) -> int:
        """Return the token of a set of symbols."""
        bits = sum(1 << (self.symbols + END).index(symbol) for symbol in symbols)
        return 1 + len(self.symbols) + bits

    def show(self, token: int) -> str:
        """Write a symbol as it is, a set in braces."""
        if token == 0:
            return " "
        if token <= len(self.symbols):
            return self.symbols[token - 1]
        bits = token - 1 - len(self.symbols)
        inside = "".join(s for i, s in enumerate(self.symbols + END) if bits >> i & 1)
        return "{" + inside + "}"


@task("parity")
@dataclass(frozen=True)
class Parity(Language):
    """Words of 0 and 1 with an even number of ones: after which symbols may the word end?"""

    symbols: ClassVar[str] = "01"

    def word(self, draw: np.random.Generator, length: int, mixed: bool) -> str:
        """Any bits are the beginning of a word."""
        return "".join("01"[bit] for bit in draw.integers(0, 2, length))

    def following(self, word: str) -> list[str]:
        """Both bits, and the end after an even number of ones."""
        found, odd = [], False
        for symbol in word:
            odd ^= symbol == "1"
            found.append("01" if odd else "01" + END)
        return found


@task("aa")
@dataclass(frozen=True)
class AA(Language):
    """(aa)*: words of an even number of a."""

    symbols: ClassVar[str] = "a"

    def word(self, draw: np.random.Generator, length: int, mixed: bool) -> str:
        """There is one word of each length; a long one holds all shorter ones."""
        return "a" * length

    def following(self, word: str) -> list[str]:
        """Another a, and the end after an even number of them."""
        return ["a" + END if i % 2 else "a" for i in range(len(word))]


@task("abab")
@dataclass(frozen=True)
class Abab(Language):
    """(abab)*: may the word end here, and is a or b next?"""

    def word(self, draw: np.random.Generator, length: int, mixed: bool) -> str:
        """There is one word of each length; a long one holds all shorter ones."""
        return ("ab" * length)[:length]

    def following(self, word: str) -> list[str]:
        """The other letter, and the end after every fourth."""
        return [("ba"[i % 2]) + (END if i % 4 == 3 else "") for i in range(len(word))]


@dataclass(frozen=True)
class Counts(Language):
    """The base of languages whose letters come in runs of one length."""

    def least(self) -> int:
        """Return the length of the shortest word."""
        return len(self.symbols)

    def word(self, draw: np.random.Generator, length: int, mixed: bool) -> str:
        """Draw the length of the runs, or take the longest."""
        most = length // len(self.symbols)
        n = int(draw.integers(1, most + 1)) if mixed else most
        return "".join(symbol * n for symbol in self.symbols)

    def following(self, word: str) -> list[str]:
        """An a or the next letter; then what the number of a leaves no choice about."""
        n = word.count(self.symbols[0])
        first = self.symbols[0] + self.symbols[1]
        return [first] * n + [*word[n + 1 :], END]


@task("anbn")
@dataclass(frozen=True)
class AnBn(Counts):
    """a^n b^n: as many b as there were a, then the end."""


@task("anbncn")
@dataclass(frozen=True)
class AnBnCn(Counts):
    """a^n b^n c^n: as many b, then as many c, as there were a."""

    symbols: ClassVar[str] = "abc"


@task("shuffle2")
@dataclass(frozen=True)
class Shuffle2(Language):
    """Shuffle-2: two kinds of brackets, each balanced, one threaded through the other."""

    symbols: ClassVar[str] = "()[]"

    def word(self, draw: np.random.Generator, length: int, mixed: bool) -> str:
        """Open and close either kind as often; a bracket that is not open cannot close."""
        open_now, word = [0, 0], []
        for kind, closing in zip(
            draw.integers(0, 2, length), draw.integers(0, 2, length), strict=True
        ):
            closes = bool(closing) and open_now[kind] > 0
            open_now[kind] += -1 if closes else 1
            word.append(self.symbols[2 * kind + closes])
        return "".join(word)

    def following(self, word: str) -> list[str]:
        """Any that opens, those that close what is open, the end when nothing is."""
        found, open_now = [], [0, 0]
        for symbol in word:
            kind, closes = divmod(self.symbols.index(symbol), 2)
            open_now[kind] += -1 if closes else 1
            closing = "".join(")]"[k] for k in (0, 1) if open_now[k])
            found.append("([" + closing + ("" if closing else END))
        return found
