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


OBSTACLES: Mapping[str, tuple[str, str]] = {
    # ---- what has no place in a normal form
    "operation": (
        "`{op}` of the running state is not linear in it",
        "apply `{op}` to what is read, not to the state",
    ),
    "orthogonal": (
        "`{op}` of the running state is not linear in it",
        "leave `{op}` out: without it the update is linear",
    ),
    "window": (
        "it moves once for each window, by what its tokens come to",
        "nothing: the tokens of a window see one state, and are computed together",
    ),
    "updates": (
        "what {count} updates come to is summed in `every {count} steps`",
        "nothing: each of them adds to a sum that is kept beside the state",
    ),
    "objective": (
        "in the gradient of its objective, {reason}",
        "a gradient is linear where the objective is quadratic: `1/2 * ||M(k) - v||^2`, "
        "`-<M(k), v>`, and sums of such",
    ),
    "product": (
        "two values that read the running state are multiplied",
        "let one of the two come from streams alone",
    ),
    "divisor": (
        "the running state is in a divisor",
        "keep the sum by which you divide as a memory of its own, and divide what is read",
    ),
    "condition": (
        "a condition reads the running state",
        "let the condition depend on streams alone",
    ),
    "hadamard": (
        "the state is multiplied entry by entry with a whole matrix",
        "use a number, or a gate over the key's channels: `self @ diag(w)`",
    ),
    "full matrix": (
        "the state is multiplied with a full matrix",
        "use a number, `diag(w)`, `outer(b, c)` or a sum of these",
    ),
    "side": (
        "the state is acted on from the value's side",
        "act on the key's side: `self @ X`, and read `self` with keys alone",
    ),
    "reduced": (
        "what is read of the running state is summed to a number",
        "let the number come from streams alone",
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
        "the update also reads `{name}`, which moves with it and has another shape",
        "make `{name}` a memory of its own, name what is read of it in an equation of the block, "
        "and use that name",
    ),
    "other part": (
        "the update also reads `{name}`, another part of the map, which moves with it",
        "a `linear` map has one part, and the gradient of its usual objective is linear in it",
    ),
    "slots": (
        "only the parts that its route selects move, {count} of {size} or fewer",
        "more slots for each token, of which half and more may be selected, move in tiles together",
    ),
    "sum": (
        "a sum runs over the value's channels of the running state",
        "sum what is read instead",
    ),
    "writes": (
        "it makes more than {most} writes for each token",
        "less repeats, or a shorter `recent`",
    ),
    "stop": (
        "`stop` of the running state: its value moves on, its gradient does not",
        "leave the gradient whole: no `stop` of the state, and `through full`",
    ),
    "shape": (
        "the running state is reshaped",
        "keep the state's own axes in the update",
    ),
    # ---- what has one, and still cannot run over many tokens at once
    "own past": (
        "its update reads its own past through {others}",
        "let {others} not read `{name}`, so that all tokens are known at once",
    ),
    "several parts": (
        "its map has several parts, and nothing is read at a chunk's start",
        "`chunk C` on its level takes gradients at the chunk's start, and all parts run in chunks",
    ),
    "moving gates": (
        "affine, but its gates read the state before the chunk",
        "make the gates of streams, or of other memories",
    ),
    "other shapes": (
        "affine, but extra states of another shape move with it",
        "make {names} a memory of its own",
    ),
    "copied at resets": (
        "affine, but a reset copies another memory's state",
        "begin with `zeros` or `learned`, or leave the reset out",
    ),
    "elsewhere": (
        "affine, but its update uses another memory's state",
        "name what is read of `{name}` in an equation of the block, `r = {name}(x)`, and use `r`",
    ),
    "still": (
        "nothing in its update depends on the token",
        "nothing: each token is the same small step",
    ),
}
