"""States that move entry by entry within a chunk; the functions a module uses are copied into it.

    Z_t = gate_t * Z_{t-1} + added_t

What is added is known for all tokens of a chunk once the state before it is: first the gradients,
then, state after state, what is made of those before. So a course holds the states themselves,
token by token. A token at whose end a period ends moves by itself, as the update says.

In: how the states go through a chunk, as a function of its streams and of the states before it;
states as dicts by part. Out: a list of `Entries`, from which the memory is read, and the states
after the last token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Entries(NamedTuple):
    """The course over one chunk: each state by part, after its tokens [B, C, ...] and before."""

    after: list[dict[str, Tensor]]
    first: list[dict[str, Tensor]]
    start: dict[str, Tensor]


def scan_entries(gate: Any, added: Any, first: Tensor, tokens: int) -> Tensor:
    """Z_t = gate_t * Z_{t-1} + added_t for all tokens of a chunk: [B, tokens, ...]."""
    if isinstance(gate, float) and gate == 1.0 and added is None:
        return first.unsqueeze(1).expand(-1, tokens, *first.shape[1:])
    shape = (first.shape[0], tokens, *first.shape[1:])
    if gate is None:
        return first.new_zeros(shape) if added is None else added.to(first.dtype).expand(shape)
    found, Z = [], first
    gates = gate.unbind(1) if isinstance(gate, Tensor) else (gate,)
    more = (None,) if added is None else added.unbind(1)
    for t in range(tokens):
        g, x = gates[t if len(gates) > 1 else 0], more[t if len(more) > 1 else 0]
        Z = g * Z if x is None else g * Z + x
        found.append(Z)
    return torch.stack(found, 1)


def before_entries(course: Tensor, first: Tensor) -> Tensor:
    """A state before each token of a chunk, from its course and what it was before the first."""
    return torch.cat([first.unsqueeze(1), course[:, :-1]], 1)


def run_entries(
    moves: Any,
    streams: list[Tensor],
    states: list[dict[str, Tensor]],
    start: dict[str, Tensor],
    position: int,
    chunk: int,
    ends: tuple[int, Any] | None = None,
    reset: tuple[int, list[dict[str, Tensor]]] | None = None,
) -> tuple[Any, ...]:
    """Run a sequence: its course, the states after it and the one before the open chunk.

    `ends` has a period and how a token at whose end it ends moves; `reset` a period and the states
    to go back to.
    """
    course, at, tokens = [], 0, streams[0].shape[1]
    while at < tokens:
        length = min(chunk - position % chunk, tokens - at)
        now = [x[:, at : at + length] for x in streams]
        at, position, first = at + length, position + length, states
        last = ends is not None and position % ends[0] == 0
        after: list[list[dict[str, Tensor]]] = []
        if length > last:
            inner = [x[:, : length - last] for x in now]
            after.append(moves(*inner, *states, start))
            states = [{part: Z[:, -1] for part, Z in state.items()} for state in after[0]]
        if ends is not None and last:
            states = ends[1](*[x[:, -1] for x in now], *states, start, position)
            after.append([{p: Z.unsqueeze(1) for p, Z in state.items()} for state in states])
        course.append(Entries(joined_entries(after), first, start))
        if reset is not None and position % reset[0] == 0:
            states = reset[1]
        if position % chunk == 0:
            start = states[0]
    return course, *states, start


def joined_entries(pieces: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """Join what tokens one after another have left."""
    if len(pieces) == 1:
        return pieces[0]
    by_state = zip(*pieces, strict=True)
    return [{p: torch.cat([x[p] for x in found], 1) for p in found[0]} for found in by_state]


def over_entries(read: Any, course: list[Entries], when: str, state: int, *q: Tensor) -> Tensor:
    """Read a course: `read(*q, parts)` for each chunk, with a state at its tokens, by part."""
    found, at = [], 0
    for piece in course:
        length = next(iter(piece.after[state].values())).shape[1]
        here = [x[:, at : at + length] for x in q]
        found.append(read(*here, parts_of_entries(piece, when, state)))
        at += length
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def parts_of_entries(piece: Entries, when: str, state: int) -> dict[str, Tensor]:
    """A state at every token of a chunk, by part: after it, before it, or before the chunk."""
    after = piece.after[state]
    if when == "after":
        return after
    if when == "before":
        return {p: before_entries(Z, piece.first[state][p]) for p, Z in after.items()}
    return {p: piece.start[p].unsqueeze(1).expand_as(Z) for p, Z in after.items()}
