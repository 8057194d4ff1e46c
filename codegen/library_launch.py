"""How kernels are started: sizes, block sizes, types; the functions a package uses are copied.

A memory's tensors are [B, T, H, d] or [B, T, H], H all its copies; its states [B, H, d_v, d_k].
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

# ---- what a machine is -------------------------------------------------------------------------

INTERPRETED = os.environ.get("TRITON_INTERPRET", "") not in ("", "0")


class Blocks(NamedTuple):
    """How a memory's kernels are cut: tokens of a tile, channels of d_v in a loop over tiles."""

    tokens: int
    channels: int
    warps: int  # of a tile alone
    loop_warps: int  # of a loop over tiles
    stages: int


class Course(NamedTuple):
    """A memory's course over a sequence, as kernels leave it."""

    leaves: tuple[Tensor, ...]  # what its coefficients are made of, [B, T, H] or [B, T, H, d]
    writes: tuple[Tensor, ...]  # e of the writes that read a state [B, T, H, d_v]
    starts: tuple[Tensor, ...]  # the states before each tile, transposed [B, H, N, d_k, d_v]
    front: tuple[int, ...]  # B, T, *lead


def takes(x: Tensor) -> bool:
    """Say whether kernels run on a tensor: on a GPU, up to float32; else PyTorch does."""
    return (x.is_cuda or INTERPRETED) and x.dtype != torch.float64


def steps(x: Tensor) -> bool:
    """Say whether kernels move by one token: they have no gradient."""
    return takes(x) and not torch.is_grad_enabled()


def architecture(device: torch.device) -> str:
    """Name a GPU as the table of blocks does."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return {8: "sm_80", 9: "sm_90"}.get(major, "sm_100" if major >= 10 else "sm_80")


def dot_type(*leaves: Tensor) -> torch.dtype:
    """The type in which matrices are multiplied: the lowest of what is given."""
    return min((x.dtype for x in leaves), key=lambda t: torch.finfo(t).bits)


def up(size: int) -> int:
    """The power of 2 that holds a size, 16 at least: what a matrix product takes."""
    return max(16, 1 << (size - 1).bit_length())


# ---- shapes ------------------------------------------------------------------------------------


def spread(x: Tensor, front: tuple[int, ...], vector: bool) -> Tensor:
    """Give a coefficient all rows, tokens and copies: [B, T, *lead, (d)] -> [B, T, H, (d)]."""
    more = tuple(x.shape[-1:]) if vector else ()
    x = x.expand(*front, *more)
    if vector and more == (1,):
        x, more = x.squeeze(-1), ()
    return x.reshape(*front[:2], -1, *more).contiguous()


def in_rows(x: Tensor, front: tuple[int, ...], rank: int, rows: bool, copies: bool) -> Tensor:
    """Give all rows and copies a value of their own: [(B), (*lead), *own] -> [B * H, *own]."""
    own = x.shape[x.ndim - rank :]
    if rows and not copies:
        x = x.reshape(x.shape[0], *[1] * (len(front) - 1), *own)
    return x.expand(*front, *own).reshape(-1, *own).contiguous()


def each_token(x: Tensor, front: tuple[int, ...], rank: int, tokens: int, copies: bool) -> Tensor:
    """Give all rows, tokens and copies a value: [B, T, *lead, *own] -> [B, T, H, *own].

    What is one for all copies stays so: [B, T, *own].
    """
    own = x.shape[x.ndim - rank :]
    if not copies:
        return x.reshape(*x.shape[:2], *own).expand(front[0], tokens, *own).contiguous()
    return (
        x.expand(front[0], tokens, *front[1:], *own)
        .reshape(front[0], tokens, -1, *own)
        .contiguous()
    )


def front_of(given: list[tuple[Tensor, bool]], state: Tensor) -> tuple[int, ...]:
    """B, T, *lead of all that is given, some of which may be one for all tokens or copies."""
    fronts = [x.shape[: x.ndim - 1] if vector else x.shape for x, vector in given]
    least = (state.shape[0], 1, *state.shape[1:-2])
    return tuple(torch.broadcast_shapes(*fronts, least))


def as_copies(state: Tensor) -> Tensor:
    """[B, *lead, d_v, d_k] -> [B, H, d_v, d_k]."""
    return state.reshape(state.shape[0], -1, *state.shape[-2:]).contiguous()


# ---- between resets ----------------------------------------------------------------------------


def over_pieces(
    course: Any,
    leaves: list[tuple[Tensor, bool]],
    states: list[Tensor],
    again: list[Tensor],
    position: int,
    length: int,
) -> tuple[Any, ...]:
    """Move over what lies between resets, after which the states begin `again`.

    Each leaf comes with whether it has tokens. Gives the courses and the states after them.
    """
    tokens = next(x.shape[1] for x, moves in leaves if moves)
    courses, at = [], 0
    while at < tokens:
        n = min(length - position % length, tokens - at)
        here = [x[:, at : at + n] if moves else x for x, moves in leaves]
        path, *states = course(*here, *states)
        courses.append(path)
        at, position = at + n, position + n
        if position % length == 0:
            states = again
    return courses, *states


def read_pieces(read: Any, q: Tensor, courses: list[Course]) -> Tensor:
    """Read the courses between resets."""
    pieces = q.split([path.front[1] for path in courses], 1)
    return torch.cat([read(x, path) for x, path in zip(pieces, courses, strict=True)], 1)


# ---- kernels -----------------------------------------------------------------------------------


class Launch(NamedTuple):
    """What all kernels of a call have in common."""

    size: tuple[int, int, int]  # B, T, H
    d_k: int
    d_v: int
    blocks: Blocks
    dot: torch.dtype

    @property
    def N(self) -> int:
        """How many tiles there are."""
        return -(-self.size[1] // self.blocks.tokens)

    def tokens(self, like: Tensor, *d: int) -> Tensor:
        """Make room for a value of each token."""
        return like.new_empty(*self.size, *d, dtype=torch.float32)

    def tiles(self, like: Tensor, *d: int) -> Tensor:
        """Make room for a value of each tile."""
        B, _, H = self.size
        return like.new_empty(B, H, self.N, *d, dtype=torch.float32)

    def run(self, kernel: Any, *tensors: Tensor, loop: bool = False, cut: bool = False) -> None:
        """Start a kernel: a program for each tile, or one that loops over them.

        `cut`: it goes over blocks of d_v.
        """
        B, T, H = self.size
        b = self.blocks
        V = min(up(self.d_v), b.channels) if loop or cut else up(self.d_v)
        grid = (B * H, -(-self.d_v // V)) if loop else (B * H, self.N)
        dot = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(self.dot, tl.float32)
        tf32 = torch.backends.cuda.matmul.allow_tf32
        # whichever GPU is the present one, the kernel runs where its tensors are
        with torch.cuda.device_of(tensors[0]):
            kernel[grid](
                *tensors, T, H, self.N,
                d_k=self.d_k, d_v=self.d_v, C=b.tokens, K=up(self.d_k), V=V,
                DOT=dot, PRECISION="tf32" if tf32 else "ieee",
                num_warps=b.loop_warps if loop else b.warps, num_stages=b.stages,
            )  # fmt: skip
