"""The least time that work can take on a machine: its bytes and operations at the rates reached.

In: a normal form, or sizes, and what a machine copies and multiplies in a second, as measured in
the same run. Bytes are those of what is given and what is wanted, each once; operations are those
between states and vectors, which no order of the work saves. What a form needs beyond that, tables
between tokens and activations, is no part of a floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nlc.ir.normal_form import Affine


@dataclass(frozen=True)
class Machine:
    """Bytes read or written, and operations in products of bfloat16, in a second."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class Work:
    """Bytes and operations, forward, and forward and backward."""

    bytes: tuple[float, float]
    operations: tuple[float, float]

    def floor(self, on: Machine, back: bool) -> float:
        """The seconds that it takes at least."""
        return max(self.bytes[back] / on.bytes, self.operations[back] / on.operations)


def memory(form: Affine, streams: Sequence[Tensor], out: int, d_k: int, d_v: int) -> Work:
    """Count a memory over its streams; `out` are the bytes of what is read.

    A token is read once, written into each of its targets, and read by each write that asks, with
    2 d_k d_v operations each; backward takes two products for each of these.
    """
    given = sum(x.numel() * x.element_size() for x in streams)
    products = 1
    for write in form.writes:
        products += sum(b is not None for b in write.targets)
        products += sum(p is not None for p in write.reads)
    B, T, H = streams[0].shape[:3]
    operations = 2.0 * products * d_k * d_v * B * T * H
    return Work((given + out, 3 * given + 2 * out), (operations, 3 * operations))


def attention(B: int, T: int, H: int, d: int, width: int = 2) -> Work:
    """Count causal attention: two products forward, five backward, over half of all pairs."""
    one = float(B * T * H * d * width)
    product = 2.0 * B * H * d * T * (T + 1) / 2
    return Work((4 * one, 12 * one), (2 * product, 7 * product))


def deep(B: int, T: int, H: int, d: int, hidden: int, width: int = 2) -> Work:
    """Count a memory of two layers, d -> hidden -> d, in a block with four projections.

    Each token goes through both layers twice, as key and as query, its error back through one, and
    into both as a write.
    """
    model = H * d
    layer = 2.0 * d * hidden * B * T * H
    projections = 4 * 2.0 * B * T * model * model
    operations = 7 * layer + projections
    x = float(B * T * model * width)
    return Work((2 * x, 5 * x), (operations, 3 * operations))


def step(B: int, H: int, d_k: int, d_v: int, states: int) -> Work:
    """Count a token: all states are read and written, in float32."""
    moved = 2.0 * 4 * B * H * d_k * d_v * states
    return Work((moved, moved), (0.0, 0.0))
