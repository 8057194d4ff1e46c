"""What is known of how a memory's state develops: its verdict, and the term that decides it.

For one token, the new states are a linear map T of the states before it, plus what is written. The
verdict is about T, for all inputs and parameters:

    contractive   T shortens every difference of two states: ||T|| < 1 at every token
    marginal      no state ever grows by itself: ||T|| <= 1; with momentum, see `docs/language.md`
    can grow      neither is proved
    unknown       the update is not affine in its state, or its values are made from it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nlc.source import Span

Word = Literal["contractive", "marginal", "can grow", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """`term` says what decides it, "" where nothing needs to be said; `place` is where it stands.

    `rate` bounds ||T|| where it stays away from 1. `given` names what the verdict takes as known
    although it depends on the state: gradients, where a chunk takes them at its start.
    """

    word: Word
    term: str = ""
    rate: float | None = None
    given: str = ""
    place: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        words = [self.term] if self.term else []
        words += [f"given its {self.given}"] if self.given else []
        return f"{self.word}: {', '.join(words)}" if words else self.word
