"""What can keep an update from having a normal form, in words, and what would help.

In: the kind of obstacle. Out: an `Obstacle`. `nlc explain` prints it at the term's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Obstacle:
    """The reason, and the change of the spec that would allow a faster form."""

    reason: str
    hint: str


def obstacle(kind: str, **words: object) -> Obstacle:
    """Return the words for an obstacle.

    >>> obstacle("operation", op="tanh").reason
    '`tanh` of the running state is not linear in it'
    """
    reason, hint = OBSTACLES[kind]
    return Obstacle(reason.format(**words), hint.format(**words))


_CHUNK = "`chunk C` on its level takes gradients and reads at the chunk's start"

OBSTACLES: Mapping[str, tuple[str, str]] = {
    "operation": (
        "`{op}` of the running state is not linear in it",
        f"apply `{{op}}` to what is read, not to the state; or {_CHUNK}",
    ),
    "product": (
        "two values that read the running state are multiplied",
        f"take one of them from `prev`, or from a stream; or {_CHUNK}",
    ),
    "divisor": (
        "the running state stands in a divisor",
        "keep the sum by which you divide as a memory of its own, and divide what is read",
    ),
    "condition": (
        "a condition reads the running state",
        "let the condition depend on streams alone",
    ),
    "hadamard": (
        "the state is multiplied entry by entry with a whole matrix",
        "use a number, or a gate over the key's channels: `w[d_k] * self` or `self @ diag(w)`",
    ),
    "full matrix": (
        "the state is multiplied with a full matrix",
        "use a number, `diag(w)`, `outer(b, c)` or a sum of these",
    ),
    "side": (
        "the state is acted on from the value's side",
        "act on the key's side: `self @ X`, and read `self` with keys alone",
    ),
    "both sides": (
        "the state is acted on from both sides",
        "act on the key's side alone, `self @ X`, or on the value's side alone, `X @ self`",
    ),
    "matrix added": (
        "a whole matrix is added each token, not an outer product",
        "write what is added as `outer(e, b)`, or a sum of such",
    ),
    "other state": (
        "the update also reads {name}, which moves with it and has another shape",
        "make {name} a memory of its own at the same level, and read it from there",
    ),
    "sum": (
        "a sum runs over the value's channels of the running state",
        "sum what is read instead",
    ),
    "stop": (
        "`stop` of the running state: its value moves on, its gradient does not",
        "`through full` needs no `stop`",
    ),
    "shape": (
        "the running state is laid out anew",
        "keep the state's own axes in the update",
    ),
}
