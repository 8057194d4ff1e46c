"""What is known of an emitted kernel, for those who compile it or tell about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nlc.ir.expr import Expr, Graph


@dataclass(frozen=True)
class Emitted:
    """A kernel of `kernels.py`.

    `memory` begins the names of all that belongs to one memory, `role` is what this one does;
    `table` names its block sizes, `narrow` are the tensors in the streams' type, and `loop` says
    that a program goes over tiles. Sizes are those of keys and values; `gates` says how gates are
    kept, and `tile` over how many tokens at most. One that `walks` goes over all tokens, and `loop`
    says that it goes back; one that is `cut` goes over blocks of values. `sliced` are the widths of
    hidden layers that it walks, each with how many channels it takes at a time.

    Block sizes are found by `gates`, which is `layers`, `slices` or `loop` for other kernels whose
    sizes can be tuned, and by `size`, which is 0 where d_k and d_v say it; `channels` are the least
    and the most that a program may have, (0, 0) where gates and d_v say it.
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
    walks: bool = False
    cut: bool = False
    sliced: tuple[tuple[int, int], ...] = ()
    size: int = 0
    channels: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Calculus:
    """What passes lend to those who emit kernels.

    `written_out(graph, roots, moves)` gives values as operations of vectors and matrices;
    `pull_back(graph, reached, is_leaf)` the gradient of each leaf, or nothing where there is none;
    `simple_products(graph, roots)` products with diagonals and outer products as none.
    """

    written_out: Callable[[Graph, Sequence[Expr], Callable[[Expr], bool]], list[Expr]]
    pull_back: Callable[
        [Graph, Sequence[tuple[Expr, Expr]], Callable[[Expr], bool]], dict[Expr, Expr] | None
    ]
    simple_products: Callable[[Graph, Sequence[Expr]], list[Expr]]
