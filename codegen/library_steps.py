"""How a rule's equations run as kernels, over all entries of many tensors in one launch.

What the emitted optimizers of a package with kernels stand on: their text is copied. A kernel is
given a table of addresses, a row for each list of tensors, and a chunk of entries for each program.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from nlc.codegen.library_optimizer import Bucket, Points, Rule, wide
from torch import Tensor, nn

INTERPRETED = os.environ.get("TRITON_INTERPRET", "") not in ("", "0")
# the types that kernels read and write; they compute in float32
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BLOCK = 2048  # entries of a program


class Fused(Rule):
    """A rule whose equations also run as kernels, on a GPU.

    `narrow`: they read and write parameters in their own type, without a copy in float32.
    """

    narrow = False

    @classmethod
    def read(cls, p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Give a parameter's value and gradient as the equations take them."""
        if cls.narrow and fits(p) and grad.dtype in TYPES:
            return p.detach(), grad.contiguous()
        return wide(p.detach()), wide(grad)

    @classmethod
    def advance(cls, at: Bucket) -> Points | None:
        """Run the equations once: as kernels where these take all tensors, else as PyTorch."""
        grads = at.grad = [grad.contiguous() for grad in at.grad]
        states = [x for kept in at.kept for x in kept.values() if isinstance(x, Tensor)]
        alike = {x.dtype for x in states} <= {torch.float32}
        if alike and all(fits(x) for x in (*at.w, *grads, *states)):
            moves = (cls.launch_scalars, cls.launch_vectors, cls.launch_matrices)
            return moves[at.axes](at)
        at.w, at.grad = [wide(x) for x in at.w], [wide(x) for x in grads]
        return cls.move(at)

    @staticmethod
    def launch_matrices(at: Bucket) -> None:
        """Move matrices by kernels."""
        raise NotImplementedError

    launch_vectors = launch_scalars = launch_matrices


def fits(x: Tensor) -> bool:
    """Say whether kernels take a tensor: a plain one, not one that lies on several machines."""
    plain = type(x) in (Tensor, nn.Parameter) and (x.is_cuda or INTERPRETED)
    return plain and x.dtype in TYPES and x.is_contiguous()


def rooms(like: list[Tensor]) -> list[Tensor]:
    """Make room for what a kernel leaves for later."""
    return [torch.empty_like(x, dtype=torch.float32) for x in like]


def launch(kernel: Any, lists: Sequence[Sequence[Tensor]], numbers: Sequence[float]) -> None:
    """Run a kernel over lists of tensors that have the same sizes; those that are even together.

    Even: addresses and sizes are multiples of 16, so that a thread moves 16 bytes at a time.
    """
    every = [[x.contiguous() for x in xs] for xs in zip(*lists, strict=True)]
    even = [all(x.data_ptr() % 16 == 0 for x in xs) and xs[0].numel() % 16 == 0 for xs in every]
    device = lists[0][0].device
    kinds = [TYPES[xs[0].dtype] for xs in lists]
    for EVEN in (True, False):
        rows = [xs for xs, fine in zip(every, even, strict=True) if fine == EVEN]
        sizes = tuple(xs[0].numel() for xs in rows)
        if not sum(sizes):
            continue
        addresses = [[x.data_ptr() for x in xs] for xs in zip(*rows, strict=True)]
        table = torch.tensor([sizes, *addresses])
        if device.type == "cuda":
            table = table.pin_memory().to(device, non_blocking=True)
        chunks = chunks_of(sizes, device)
        with torch.cuda.device_of(lists[0][0]):
            kernel[(len(chunks),)](
                table, chunks, len(sizes), *map(float, numbers), *kinds, EVEN, BLOCK
            )


@lru_cache(maxsize=64)
def chunks_of(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Cut tensors into chunks of BLOCK entries: the tensor of each and its number there."""
    counts = torch.tensor([-(-size // BLOCK) for size in sizes])
    tensors = torch.arange(len(sizes)).repeat_interleave(counts)
    first = (counts.cumsum(0) - counts)[tensors]
    return torch.stack((tensors, torch.arange(len(tensors)) - first), 1).to(device)


@triton.jit
def place(table, chunks, EVEN: tl.constexpr, BLOCK: tl.constexpr):
    """A program's tensor, its entries there, and which of them there are."""
    tensor = tl.load(chunks + 2 * tl.program_id(0))
    at = tl.load(chunks + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(table + tensor)
    if EVEN:
        size = tl.multiple_of(size, 16)
    return tensor, at, at < size


@triton.jit
def entries(table, count, row: tl.constexpr, tensor, at, kind: tl.constexpr, EVEN: tl.constexpr):
    """Where the entries of one tensor of a list are."""
    start = tl.load(table + row * count + tensor).to(tl.pointer_type(kind))
    if EVEN:
        start = tl.multiple_of(start, 16)
    return start + at
