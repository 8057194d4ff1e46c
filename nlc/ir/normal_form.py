"""The algebraic form of an update, and the reason where it has none.

With states Z = [M_1 .. M_n] (the memory, then extra states of its shape; each [d_v, d_k], reads
`M q`), everything over the states *before* the token:

    e_r  = sum_j M_j p_{r,j} + sum_{s<r} c_{r,s} e_s + u_r        (a vector per write, [d_v])
    M_j' = sum_i M_i D_{i,j} + sum_r e_r b_{r,j}^T                (D scalar or per key channel)

p, c, u, b and D read no running state of this memory: they are over streams, states of the chunk's
start, initial states, and reads of other memories. They broadcast to the shapes given here: a
number may stand for a vector of them. A vector state is one row (u [*lead, 1]); a number is a
matrix of one entry (u, p, b [*lead, 1]).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from nlc.ir.expr import Expr
from nlc.source import Span


@dataclass(frozen=True)
class Gate:
    """One entry of D: `scalar` [*lead] or `diagonal` [*lead, d_k] (over the key's channels)."""

    kind: Literal["scalar", "diagonal"]
    value: Expr


@dataclass(frozen=True)
class Write:
    """One outer product e b^T, in the order of the equations.

    `reads[j]` is p_j [*lead, d_k] or None (0); `earlier` are pairs (s, c [*lead]); `offset` is u
    [*lead, d_v] or None (0); `targets[j]` is b_j [*lead, d_k] or None (0).
    """

    reads: tuple[Expr | None, ...]
    earlier: tuple[tuple[int, Expr], ...]
    offset: Expr | None
    targets: tuple[Expr | None, ...]

    @property
    def known(self) -> bool:
        """Say whether the write is known before the tile is solved."""
        return not self.earlier and all(p is None for p in self.reads)


@dataclass(frozen=True)
class Affine:
    """The normal form of one part (a matrix or vector) of a memory and its extra states.

    `states` names them (variable, part), the memory's own first. `transposed`: the form holds for
    the transposed states. A vector state is a matrix of one row. `decay[i][j]` is D_{i,j}, None 0.
    `stopped` says how gradients pass where something that reads a running state is a constant.
    """

    states: tuple[tuple[str, str], ...]
    decay: tuple[tuple[Gate | None, ...], ...]
    writes: tuple[Write, ...]
    transposed: bool = False
    stopped: Stopped | None = None

    @property
    def known(self) -> bool:
        """Say whether no write reads a running state (the frozen case)."""
        return all(write.known for write in self.writes)


def still_parts(forms: Collection[tuple[str, NormalForm]]) -> frozenset[str]:
    """Name the parts that stay as they are, in all states, where another part moves."""
    found = [part for part, form in forms if isinstance(form, Affine) and _is_still(form)]
    return frozenset(found) if len(found) < len(forms) else frozenset()


def _is_still(form: Affine) -> bool:
    if form.writes or form.stopped is not None:
        return False
    return all(
        gate is None if i != j else gate is not None and _is_one(gate.value)
        for i, row in enumerate(form.decay)
        for j, gate in enumerate(row)
    )


def _is_one(value: Expr) -> bool:
    return value.op == "const" and value.attr("value") == 1.0


@dataclass(frozen=True)
class Entry:
    """One part of one state that moves entry by entry: Z' = gate * Z + added; None is 0.

    Both read no running state but those of entries before it, `prev` or `post`.
    """

    var: str
    part: str
    gate: Expr | None
    added: Expr | None


@dataclass(frozen=True)
class Stopped:
    """How an update looks to a gradient: `form` has the same values, with constants for some.

    `held` has, for each of these, the stream that stands for it in `form`, and what it is: a vector
    sum_j M_j p_j + u over the states before the token.
    """

    form: Affine
    held: tuple[tuple[Expr, Write], ...]


@dataclass(frozen=True)
class Neither:
    """Why there is no such form: the term that broke it, and where it stands."""

    reason: str
    term: Expr | None = None
    hint: str = ""
    span: Span | None = field(default=None, compare=False, repr=False)


NormalForm = Affine | Neither
