"""What a block is made of while it is being resolved: streams, memories, and the whole unordered.

Data only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.ir.expr import Expr
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import (
    Assignment,
    Call,
    Equation,
    History,
    Input,
    Map,
    Part,
    Statement,
    Variable,
    Weight,
)  # fmt: skip
from nlc.source import Span
from nlc.syntax import tree


@dataclass
class Body:
    """One memory being resolved: what its clauses say, and what has been found out so far."""

    name: str
    written: tree.Memory
    level: str
    map: Map
    lead: Shape | None = None
    guessed: bool = False
    busy: bool = False
    pairs: tuple[tuple[Expr, Expr], ...] = ()
    variables: list[Variable] = field(default_factory=list)
    objective: Expr | None = None
    objective_done: bool = False
    is_task: bool = False
    statements: list[Statement] = field(default_factory=list)
    update: tuple[Assignment, ...] = ()
    learned: bool = False
    persistent: int = 0
    uses_grad: bool = False
    # where gradients that are summed over a window are taken
    points: tuple[Expr, ...] = ()
    assigns_self: bool = False
    bad: bool = False
    # its leading axes have been tried and are at fault
    lead_bad: bool = False
    # the axis of its slots, and their weights at this token
    slots: Axis | None = None
    route: Expr | None = None
    # `grad` is given from outside: in a rule by itself, and with `objective task`
    given_grad: bool = False
    # the values at which the gradient of the task's loss is asked for, by parts
    asks: list[tuple[Expr, ...]] = field(default_factory=list)
    # where the gradient of the task's loss at a single token is asked for
    token_grad: Span | None = None
    # what learns faster and stands bare in the update of what learns from the task too
    faster: Body | None = None
    # the rule itself, where a rule is checked without a memory
    rule: tree.Rule | None = None
    # inside a rule: the leading axes of the key, over which the objective sums
    batch: Shape = ()
    # the memories of its rule, and the rules around it
    inner: dict[str, Body] = field(default_factory=dict)
    # and where there is one for each part of the map, by part
    inner_of: dict[str, dict[str, Body]] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    span: Span | None = None

    @property
    def label(self) -> str:
        """Its name in gradients: a memory inside a rule may be called as one of the block."""
        return ".".join((*self.rules, self.name))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the map."""
        return self.map.parts


@dataclass
class Stream:
    """A stream of a block while it is being resolved."""

    name: str
    span: Span
    statement: tree.Assign | None = None
    index: int = 0
    state: str = "waiting"
    leaf: Expr | None = None


@dataclass
class Unordered:
    """What a block says, before its steps are put in order."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, Shape], ...]
    weights: tuple[Weight, ...]
    bodies: tuple[Body, ...]
    equations: tuple[Equation, ...]
    calls: tuple[Call, ...]
    histories: list[History]
    span: Span
    comments: tuple[str, ...]
