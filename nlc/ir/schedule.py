"""How a system runs: the schedule of each memory and the stages of each block.

Plan      = per block a BlockPlan
BlockPlan = stages, in order; each covers steps of the block for all tokens at hand
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Entry, NormalForm
from nlc.ir.system import Call, Equation, Step, Update
from nlc.source import Span

# how products of gates are kept: what the emitted code calls them
Gates = Literal["ScalarGate", "ChannelGates", "RelativeGates", "CoupledGates", "CoupledChannels"]
Kind = Literal[
    "tile-solve", "tile-scan", "scan", "window", "sequential", "attention", "online", "step"
]


@dataclass(frozen=True)
class Keeping:
    """How the products of one part's gates are kept, for how many tokens at once, and why.

    The tile never changes numbers.
    """

    gates: Gates = "ScalarGate"
    tile: int = 1
    reason: str = ""


@dataclass(frozen=True)
class Schedule:
    """How one memory runs over a sequence, and why.

    `forms` are the normal forms by part of the map, `parts` how the gates of each are kept where
    it runs in tiles; `chunk` is the language's. `entries` are its states in the order in which they
    go through a chunk where it runs entry by entry, but for the last of each `ends` tokens.
    Where it runs token by token, `hint` is a change of the spec that would help, and `span` the
    place of what keeps it from that. `by_chunks` says that its state before the chunk is kept and
    it runs from chunk to chunk.
    """

    memory: str
    kind: Kind
    reason: str
    forms: tuple[tuple[str, NormalForm], ...] = ()
    chunk: int = 1
    parts: tuple[tuple[str, Keeping], ...] = ()
    hint: str = ""
    by_chunks: bool = False
    entries: tuple[Entry, ...] = ()
    ends: int = 0
    span: Span | None = field(default=None, compare=False, repr=False)

    def keeping(self, part: str) -> Keeping:
        """Return how the gates of a part are kept."""
        return dict(self.parts)[part]

    @property
    def tile(self) -> int:
        """The tokens that are processed at once."""
        return max((kept.tile for _, kept in self.parts), default=1)

    @property
    def gates_reason(self) -> str:
        """Why products of gates are kept as they are, part by part."""
        found = dict.fromkeys(kept.reason for _, kept in self.parts if kept.reason)
        return "; ".join(found)


@dataclass(frozen=True)
class Parallel:
    """Equations and calls evaluated for all tokens at once, in order."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Run:
    """One memory moved over all tokens at once; later stages may read it at any token."""

    memory: str


@dataclass(frozen=True)
class TokenLoop:
    """Steps run token by token, in order; `memories` are those that move in it."""

    steps: tuple[Step, ...]
    memories: tuple[str, ...]


@dataclass(frozen=True)
class ChunkLoop:
    """Steps run chunk by chunk, each for all its tokens at once.

    What hangs together through time does so through the states before the chunk alone. Where the
    memories have several, `chunk` divides them all.
    """

    steps: tuple[Step, ...]
    memories: tuple[str, ...]
    chunk: int


@dataclass(frozen=True)
class Windows:
    """Stages run window by window; at the ends of their own windows `memories` move, in order.

    A window has `length` tokens, or what a sequence begins or ends with of one; no other window
    ends inside it. `reads` are values that an update takes from what a loop inside has made: the
    expression and the stream that holds it. The resets of `late` memories come last: they fall on
    ends of pieces, and may go back to a state that moves with windows.
    """

    stages: tuple[Stage, ...]
    memories: tuple[str, ...]
    length: int
    reads: tuple[tuple[Expr, Expr], ...] = ()
    late: tuple[str, ...] = ()


Stage = Parallel | Run | TokenLoop | ChunkLoop | Windows


def steps_of(stage: Stage) -> tuple[Step, ...]:
    """List the steps of a stage, those inside its own stages first."""
    match stage:
        case Parallel() | TokenLoop() | ChunkLoop():
            return stage.steps
        case Run():
            return (Update(stage.memory),)
        case Windows():
            inner = tuple(step for part in stage.stages for step in steps_of(part))
            return (*inner, *(Update(name) for name in stage.memories))


def made_by(step: Step) -> tuple[str, ...]:
    """List the streams that a step makes."""
    match step:
        case Equation(name=name):
            return (name,)
        case Call(results=results):
            return results
        case _:
            return ()


def memories_of(stage: Stage) -> tuple[str, ...]:
    """List the memories that move in a stage."""
    return tuple(step.memory for step in steps_of(stage) if isinstance(step, Update))


@dataclass(frozen=True)
class BlockPlan:
    """The stages of a block and the schedules of its memories."""

    block: str
    stages: tuple[Stage, ...]
    schedules: tuple[Schedule, ...]

    def schedule(self, memory: str) -> Schedule:
        """Return a memory's schedule."""
        return next(s for s in self.schedules if s.memory == memory)

    @property
    def late(self) -> frozenset[str]:
        """Name the memories whose resets come at the ends of pieces, after windows."""
        windows = (stage for stage in self.stages if isinstance(stage, Windows))
        return frozenset(name for stage in windows for name in stage.late)


@dataclass(frozen=True)
class Plan:
    """The plans of all blocks."""

    blocks: tuple[BlockPlan, ...]

    def block(self, name: str) -> BlockPlan:
        """Return a block's plan."""
        return next(b for b in self.blocks if b.block == name)
