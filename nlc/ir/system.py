"""The typed system: what a spec means, with names resolved, axes matched and rules inlined.

    System  = levels, rules, blocks, model
    Block   = inputs, weights, memories, steps (equations, memory updates, calls) -> outputs
    Memory  = a map at a level, with keys, values, objective, states and an update

Every value is an expression of `expr`; all expressions of a system come from one `Graph`. Data
only: the passes and executors read it.

How a block runs, for one token: its `steps` in order. An `Equation` gives a stream its value. An
`Update` step moves one memory: its `Assignment`s give each state's new value as expressions over
the states *before* the token (`state(..., when="prev")`), so nothing is ordered inside them.
Afterwards `post` is the new value; reads in later steps use it. At the end of the token `prev`
becomes `post`, `start` becomes `post` if the token is the last of a chunk (counted by `position`
from the start of the sequence), and a reset whose period ends here sets every state of the memory
back to its initial value (so do `prev` and `start`).

A memory at a level of N > 1 tokens keeps its state for `window` = N tokens. Its `Update` step adds
to the sums of its `window` nodes at every token, and evaluates the assignments at the window's last
one. All that varies inside the window stands in a `window` node there. Reads of it in streams, in
`window` nodes and in the updates of faster memories are `prev`; a `post` of it stands only in the
updates of memories of the same level or slower ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from nlc.diagnostics import Diagnostic
from nlc.ir.expr import Expr, Graph
from nlc.ir.shape import Shape
from nlc.source import NOWHERE, Source, Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.ir.level_graph import Component, Edge

Unit = Literal["tokens", "steps", "always", "never"]


@dataclass(frozen=True)
class Period:
    """How often something happens: every `count` tokens or steps, always, or never."""

    unit: Unit
    count: int = 1

    def __str__(self) -> str:
        if self.unit in ("always", "never"):
            return self.unit
        word = self.unit if self.count > 1 else self.unit[:-1]
        return f"every {self.count} {word}"

    @property
    def frequency(self) -> float:
        """Updates per token: inf for `always`; a step counts as slower than any token period."""
        match self.unit:
            case "always":
                return float("inf")
            case "tokens":
                return 1.0 / self.count
            case "steps":
                # below every token period a spec can write (dims are bounded by 2^31)
                return 2.0**-40 / self.count
            case "never":
                return 0.0


@dataclass(frozen=True)
class Optimizer:
    """A rule with the numbers it is given; `definition` is the rule's own text, for comparison."""

    rule: str
    arguments: tuple[tuple[str, float], ...]
    definition: tree.Rule
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Level:
    """A time scale; `chunk` is 1 where none is written.

    `components` names what lives there, the faster before the slower.
    """

    name: str
    period: Period
    chunk: int = 1
    optimizer: Optimizer | None = None
    span: Span = field(default=NOWHERE, compare=False, repr=False)
    components: tuple[str, ...] = field(default=(), compare=False)

    @property
    def frequency(self) -> float:
        """Updates per token, as of its period."""
        return self.period.frequency


@dataclass(frozen=True)
class Initial:
    """How a tensor begins.

    uniform: in +-1/sqrt(value), value being the fan-in; normal: std `value`; constant: `value`;
    expr: `expr`, over parameters (and, for an extra state, over the memory's `initial` state);
    source: a copy of the memory or weights named `source` (`init from NAME`).
    """

    kind: Literal["uniform", "normal", "constant", "expr", "source"]
    value: float = 0.0
    expr: Expr | None = None
    source: str = ""


@dataclass(frozen=True)
class Part:
    """One tensor of a map: `weight`, `bias`, `layer1.weight`, `gate`; "" for a bare one."""

    name: str
    shape: Shape
    initial: Initial


@dataclass(frozen=True)
class Map:
    """A map's form. `chain` holds the flat axes a -> h -> b; `inputs`, `outputs` the named ones.

    For `conv`, inputs and outputs are the channels; for `vector`, `matrix`, `scalar` there are no
    inputs and the one part is the value. `options` are the bare words and settings, by name:
    bias, residual, norm (bool), act (an operation's name or "none"), width, window, scale.
    """

    kind: Literal[
        "linear", "mlp", "glu", "lora", "conv", "vector", "scalar", "matrix", "table", "kernel"
    ]
    inputs: Shape
    outputs: Shape
    chain: Shape
    parts: tuple[Part, ...]
    options: tuple[tuple[str, object], ...] = ()
    text: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return self.text or self.kind

    def option(self, name: str, default: object = None) -> object:
        """Return an option's value, or the default where it is not written."""
        return dict(self.options).get(name, default)


@dataclass(frozen=True)
class Restart:
    """Every `count` training steps weights take the value of `source`, from which they begin.

    Their gradient is the source's too: each step in between is a step from there.
    """

    source: str
    count: int


@dataclass(frozen=True)
class Weight:
    """A map without an objective of its own, at a step level (or `never`).

    Its parameters are `NAME.PART` (`NAME` alone for a bare part), shaped [*lead, *part.shape].
    """

    name: str
    map: Map
    level: str
    lead: Shape = ()
    restart: Restart | None = None
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Variable:
    """A state of a memory: `name` is "" for the memory itself; shapes without the leading axes."""

    name: str
    parts: tuple[Part, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Assignment:
    """The new value of one part of one state after a token, over the states before it."""

    var: str
    part: str
    value: Expr


@dataclass(frozen=True)
class Statement:
    """One equation of an update as it was written (a rule's body with its arguments put in).

    `target` is `self`, a state or a local name; `values` give, per part, the `let` it made.
    """

    target: str
    values: tuple[tuple[str, Expr], ...]
    text: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class FrozenRead:
    """A read that, with a chunk, is taken at the state of the chunk's start; `what` as written."""

    memory: str
    what: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Kept:
    """What a memory keeps under `slot` until a window ends: a sum, or values token by token.

    Where only its `end` is asked for, that is the value of the last token so far.
    """

    slot: str
    shape: Shape
    period: int
    end: bool = False


@dataclass(frozen=True)
class Memory:
    """An associative memory. All shapes in its expressions begin with the leading axes `lead`.

    `objective` is over `variable` leaves, shaped `lead`; None where there is none; `is_task` says
    `objective task`. `learned` memories have parameters `NAME.PART` [*lead, *part.shape] as their
    initial state. A `kernel` memory (softmax) has `pairs` and no update; `persistent` is the number
    of learned pairs, parameters `NAME.key`, `NAME.value` [*lead, persistent, d].

    `window` is how many tokens it keeps its state for. Of an unfinished window it holds `sums`
    (which go on for `period` tokens) and, of each token so far, the values in `recent`.

    What learns from the task while a sequence is read (`is_task`) has no `Update` step: the model
    moves it (see `online`), by an update over the leaves `variable` of its `task_gradient`. What
    goes back to its start together with such updates has a `restart` in the place of `reset`.
    """

    name: str
    level: str
    lead: Shape
    map: Map
    variables: tuple[Variable, ...]
    pairs: tuple[tuple[Expr, Expr], ...]
    objective: Expr | None
    is_task: bool
    statements: tuple[Statement, ...]
    update: tuple[Assignment, ...]
    learned: bool
    chunk: int
    reset: Period | None
    through: Literal["full", "first_order", "stop"]
    frozen: tuple[FrozenRead, ...] = ()
    persistent: int = 0
    window: int = 1
    sums: tuple[Kept, ...] = ()
    recent: tuple[Kept, ...] = ()
    restart: Period | None = None
    written_objective: Span | None = field(default=None, compare=False, repr=False)
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def stays(self) -> bool:
        """Say whether its state is the same for several tokens, for a window or a whole read."""
        return self.window > 1 or self.is_task

    def learned_states(self) -> list[tuple[str, Variable]]:
        """List the states that begin as parameters, with the name of these: "" for its own.

        A memory inside a rule that is drawn begins so: `initial_m.layer1.weight`.
        """
        found = []
        for variable in self.variables:
            kinds = {part.initial.kind for part in variable.parts}
            if not variable.name:
                own = self.learned and self.map.kind != "kernel"
            else:
                own = bool(kinds & {"uniform", "normal"})
            if own:
                name = f"initial_{variable.name}".replace(".", "_") if variable.name else ""
                found.append((name, variable))
        return found

    def variable(self, name: str) -> Variable:
        """Return a state by name."""
        return next(v for v in self.variables if v.name == name)


@dataclass(frozen=True)
class Equation:
    """`name = value`, as written in `text`."""

    name: str
    value: Expr
    text: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Update:
    """The memory moves here."""

    memory: str


@dataclass(frozen=True)
class Call:
    """`results = block(inputs)`: an instance of a block, with parameters and states of its own.

    A `shared` instance belongs to the model itself, also when the call stands in a repeat. An input
    may be a stream that has no value yet: then the block takes its default.
    """

    instance: str
    block: str
    inputs: tuple[tuple[str, Expr], ...]
    results: tuple[str, ...]
    shared: bool = False
    text: str = ""
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Repeat:
    """The steps `count` times over; pass p, call f has the instance `name.p.f`."""

    name: str
    count: int
    steps: tuple[Step, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)


Step = Equation | Update | Call | Repeat


@dataclass(frozen=True)
class Input:
    """An input stream; `default` is over the block's other streams."""

    name: str
    shape: Shape
    default: Expr | None = None
    integer: bool = False


@dataclass(frozen=True)
class History:
    """What `shift` and `conv` remember: the last `length` tokens' values of a stream."""

    slot: str
    length: int
    shape: Shape


@dataclass(frozen=True)
class Block:
    """Equations over token streams; `steps` are in an order in which a token can run them."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, Shape], ...]
    weights: tuple[Weight, ...]
    memories: tuple[Memory, ...]
    steps: tuple[Step, ...]
    histories: tuple[History, ...]
    uses_position: bool
    span: Span = field(default=NOWHERE, compare=False, repr=False)
    comments: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def memory(self, name: str) -> Memory:
        """Return a memory by name."""
        return next(m for m in self.memories if m.name == name)

    def weight(self, name: str) -> Weight:
        """Return weights by name."""
        return next(w for w in self.weights if w.name == name)


@dataclass(frozen=True)
class Model:
    """How blocks stack: `steps` run in order and may reassign; `tokens` is the integer input.

    `embed` and `unembed` are weights `embed`, `unembed` (a `table` and a `linear` map); where
    `tied`, unembedding uses the embedding. `objective` is a scalar per token over the streams and
    `targets`; the loss is its mean over batch and tokens.
    """

    vocab: int
    is_bytes: bool
    weights: tuple[Weight, ...]
    steps: tuple[Step, ...]
    objective: Expr
    tied: bool
    histories: tuple[History, ...] = ()
    uses_position: bool = False
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class System:
    """A whole spec. `levels` stand fastest first.

    `warnings` were found on the way; `unsupported` are features that are checked and cannot run
    yet: (code, what, place, hint). `components`, fastest first, and `edges` are the level graph;
    `picture` draws it, for notebooks. `uses` gives, by the identity of a used source, the line that
    brought it in; `changes` are the settings made from outside, as (path, value).
    """

    name: str
    about: str
    source: Source
    spec: tree.Spec
    graph_of: Graph
    dims: tuple[tuple[str, int], ...]
    levels: tuple[Level, ...]
    blocks: tuple[Block, ...]
    model: Model | None
    rules: tuple[tree.Rule, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    unsupported: tuple[tuple[str, str, Span, str], ...] = ()
    components: tuple[Component, ...] = ()
    edges: tuple[Edge, ...] = ()
    picture: Callable[[System], str] | None = field(default=None, repr=False)
    uses: Mapping[int, Span] = field(default_factory=dict, repr=False)
    changes: tuple[tuple[str, str], ...] = ()

    def block(self, name: str) -> Block:
        """Return a block by name."""
        return next(b for b in self.blocks if b.name == name)

    def level(self, name: str) -> Level:
        """Return a level by name."""
        return next(level for level in self.levels if level.name == name)

    def component(self, name: str) -> Component:
        """Return a component by name."""
        return next(c for c in self.components if c.name == name)

    @cached_property
    def graph(self) -> Any:
        """The level graph, a networkx.DiGraph; see `level_graph`."""
        from nlc.ir.level_graph import networkx_graph

        return networkx_graph(self.components, self.edges)

    def _repr_svg_(self) -> str | None:
        """Draw the system where a notebook asks for it."""
        return self.picture(self) if self.picture is not None else None
