"""What a memory keeps beside its states until a window or a period ends: `M.sum`, `M.recent`.

In: a memory. Out: the names, types and shapes under which emitted code holds it: one tensor, or a
dict by slot where there are several. Sums are [B, *shape], recent values [B, tokens, *shape].
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

from nlc.codegen import library
from nlc.codegen.names import identifier
from nlc.codegen.program import Operand, Program, note
from torch import fx

from nlc.ir.shape import sizes
from nlc.ir.system import Kept, Memory


@dataclass(frozen=True)
class Keep:
    """All sums of a memory, or all values of single tokens; `word` is `sum` or `recent`."""

    word: str
    memory: str
    entries: tuple[Kept, ...]

    @property
    def name(self) -> str:
        """The variable in emitted code."""
        return identifier(f"{self.memory}_{self.word}")

    @property
    def label(self) -> str:
        """The entry in the block's state."""
        return f"{self.memory}.{self.word}"

    @property
    def type(self) -> str:
        """The type in emitted code."""
        return "Tensor" if len(self.entries) == 1 else "dict[str, Tensor]"

    def take(self, program: Program) -> dict[str, fx.Node]:
        """Give the values by slot, of an argument that holds all of them."""
        whole, batch = program.input(self.name), 1 if self.word == "sum" else 2
        if len(self.entries) == 1:
            (entry,) = self.entries
            return {entry.slot: note(whole, entry.shape, batch, wide=True)}
        return {
            entry.slot: note(
                program.call(operator.getitem, whole, entry.slot), entry.shape, batch, wide=True
            )
            for entry in self.entries
        }

    def pack(self, values: dict[str, fx.Node]) -> Operand:
        """Give values by slot as one argument."""
        return next(iter(values.values())) if len(self.entries) == 1 else values

    def empty(self, program: Program, batch: fx.Node, like: fx.Node) -> Operand:
        """Make what is kept before the first token."""
        front = (batch,) if self.word == "sum" else (batch, 0)
        return self.pack({
            entry.slot: program.call(library.zeros, like, *front, *sizes(entry.shape))
            for entry in self.entries
        })  # fmt: skip


def keeps(memory: Memory) -> list[Keep]:
    """List what a memory keeps."""
    both = (("sum", memory.sums), ("recent", memory.recent))
    return [Keep(word, memory.name, entries) for word, entries in both if entries]


def flag_name(count: int) -> str:
    """The argument that says whether a period of so many tokens ends."""
    return f"ends_{count}"


def flag(program: Program, count: int) -> fx.Node:
    """The argument itself: a bool, the same for all sequences."""
    node = note(program.input(flag_name(count)), (), 0)
    node.meta["flag"] = True
    return node


def flag_words(counts: Iterable[int]) -> list[str]:
    """The arguments as a method declares them."""
    return [f"{flag_name(count)}: bool" for count in counts]
