"""What is known of an emitted kernel, for those who compile it or tell about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Emitted:
    """A kernel of `kernels.py`.

    `memory` begins the names of all that belongs to one memory, `role` is what this one does;
    `table` names its block sizes, `narrow` are the tensors in the streams' type, and `loop` says
    that a program goes over tiles. Sizes are those of keys and values; `gates` says how gates are
    kept, and `tile` over how many tokens at most.
    """

    name: str
    memory: str
    role: str
    table: str
    narrow: frozenset[str]
    loop: bool
    d_k: int
    d_v: int
    gates: str = ""
    tile: int = 0
