"""How kernels of memories that move from chunk to chunk are started; a package's are copied.

A token's tensors are [B, T, H, d] or [B, T, H], H all copies; a state is [B * H, N + 2, ...] over
the N tiles that a sequence meets: before its first, open chunk began, then before each tile, and
after the last. A tile lies within a chunk; `offset` tokens of the first lie before the sequence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from nlc.codegen.library_launch import Blocks
from torch import Tensor


class LayerCourse(NamedTuple):
    """A memory's course over a sequence, chunk by chunk, as kernels leave it."""

    leaves: tuple[Tensor, ...]  # what its coefficients are made of, [B, T, H] or [B, T, H, d]
    writes: tuple[Tensor, ...]  # u and b that hang on the state before the chunk
    states: tuple[Tensor, ...]  # [B * H, N + 2, ...]
    front: tuple[int, ...]  # B, T, *lead
    offset: int


class LayerLaunch(NamedTuple):
    """What all kernels of a call have in common."""

    size: tuple[int, int, int]  # B, T, H
    chunk: int
    offset: int
    blocks: Blocks
    dot: torch.dtype

    @property
    def N(self) -> int:
        """How many tiles the sequence meets."""
        C, tokens = self.chunk, self.blocks.tokens
        last = self.offset + self.size[1] - 1
        return last // C * -(-C // tokens) + last % C // tokens - self.offset // tokens + 1

    def tokens(self, like: Tensor, *d: int) -> Tensor:
        """Make room for a value of each token."""
        return like.new_empty(*self.size, *d, dtype=torch.float32)

    def room(self, state: Tensor) -> Tensor:
        """Make room for a state before and after each tile."""
        return state.new_empty(state.shape[0], self.N + 2, *state.shape[1:], dtype=torch.float32)

    def begin(self, state: Tensor, start: Tensor | None = None) -> Tensor:
        """... with the state before the first token, and that before its chunk."""
        found = self.room(state)
        found[:, 0] = state if start is None else start
        found[:, 1] = state
        return found

    def at_starts(self, found: Tensor) -> Tensor:
        """Add what was found at each tile where the state before its chunk stands."""
        tiles = -(-self.chunk // self.blocks.tokens)
        shift = self.offset // self.blocks.tokens
        x = torch.nn.functional.pad(
            found[:, 1:-1].flatten(2), (0, 0, shift, -(shift + self.N) % tiles)
        )
        by_chunk = x.unflatten(1, (-1, tiles)).sum(2).unflatten(2, found.shape[2:])
        starts = torch.zeros_like(found)
        starts[:, 0] = by_chunk[:, 0]
        starts[:, tiles - shift + 1 : -1 : tiles] = by_chunk[:, 1:]
        return starts

    def run(self, kernel: Any, *tensors: Tensor, loop: bool = False) -> None:
        """Start a kernel: a program for each tile, or one that goes over all of a copy."""
        B, T, H = self.size
        b = self.blocks
        dot = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(self.dot, tl.float32)
        tf32 = torch.backends.cuda.matmul.allow_tf32
        # whichever GPU is the present one, the kernel runs where its tensors are
        with torch.cuda.device_of(tensors[0]):
            kernel[(B * H,) if loop else (B * H, self.N)](
                *tensors, T, H, self.N, self.offset,
                C=b.tokens, DOT=dot, PRECISION="tf32" if tf32 else "ieee",
                num_warps=b.loop_warps if loop else b.warps, num_stages=b.stages,
            )  # fmt: skip


def each_copy(state: Tensor, rank: int) -> Tensor:
    """Put rows and copies in one: [B, *lead, *part] -> [B * H, *part]."""
    return state.reshape(-1, *state.shape[state.ndim - rank :]).contiguous()


def at_end(found: Tensor, like: Tensor) -> Tensor:
    """Take the state after the last token."""
    return found[:, -1].reshape(like.shape).clone()


def at_open(found: Tensor, like: Tensor, last: int, chunk: int, blocks: Blocks) -> Tensor:
    """Take the state before the chunk that is open after the last of so many tokens."""
    done, tile = last % chunk == 0, (last - 1) % chunk // blocks.tokens
    # the tiles before that chunk, and the state before it was begun
    before = found.shape[1] - 3 - tile
    place = -1 if done else before + 1 if before > 0 else 0
    return found[:, place].reshape(like.shape).clone()


def last_back(came: Tensor) -> Tensor:
    """Make room for the gradients of a state, of which the last is known."""
    found = torch.zeros_like(came)
    found[:, -1] = came[:, -1]
    return found


def joined(courses: list[LayerCourse]) -> LayerCourse:
    """One course of several that go on where the one before them ends, at a tile's end."""
    first = courses[0]
    if len(courses) == 1:
        return first
    states = zip(*(path.states for path in courses), strict=True)
    return LayerCourse(
        tuple(torch.cat(x, 1) for x in zip(*(path.leaves for path in courses), strict=True)),
        tuple(torch.cat(x, 1) for x in zip(*(path.writes for path in courses), strict=True)),
        tuple(
            torch.cat([found[0][:, :1], *(x[:, 1:-1] for x in found), found[-1][:, -1:]], 1)
            for found in states
        ),
        (first.front[0], sum(path.front[1] for path in courses), *first.front[2:]),
        first.offset,
    )


def layer_pieces(
    course: Any,
    leaves: list[tuple[Tensor, bool]],
    states: list[Any],
    again: list[Any],
    start: Any,
    position: int,
    length: int,
) -> tuple[Any, ...]:
    """Move over what lies between resets, after which the states begin `again`.

    Each leaf comes with whether it has tokens. Gives the courses, the states after them, and the
    one before the open chunk.
    """
    tokens = next(x.shape[1] for x, moves in leaves if moves)
    courses, at = [], 0
    while at < tokens:
        n = min(length - position % length, tokens - at)
        here = [x[:, at : at + n] if moves else x for x, moves in leaves]
        path, *states, start = course(*here, *states, start, position)
        courses.append(path)
        at, position = at + n, position + n
        if position % length == 0:
            states, start = again, again[0]
    return courses, *states, start


def read_layer_pieces(read: Any, q: Tensor, courses: list[LayerCourse]) -> Tensor:
    """Read the courses between resets."""
    pieces = q.split([path.front[1] for path in courses], 1)
    return torch.cat([read(x, path) for x, path in zip(pieces, courses, strict=True)], 1)
