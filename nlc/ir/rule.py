"""A rule on its own, as an optimizer runs it: its equations in order, for one kind of parameter.

    Motion = cells (states), actions -> self
    Action = Set | Ask | Slope | When | Every | Loop

Unlike a memory's update, which is one expression per state, a motion keeps the order of the
equations: an action's expressions are over the values that its names have on its line. Leaves:

    stream NAME   the present value of `self`, a cell or a local name, and of `grad`;
                  `NAME.prev` its value before this call, `NAME.initial` at the first call;
                  `grad.every.N` the sum of the gradients since a block `every N steps` last ran;
                  a part of what has several has that behind: `m.layer1.weight`
    param NAME    an argument of the rule; `in` and `out`, the sizes of this parameter

Shapes are a parameter's own: axes in front of them (one copy per leading axis) are a batch. Data
only; `semantics.motions` makes it, an interpreter and the emitter read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nlc.diagnostics import Diagnostic
from nlc.ir.expr import Expr
from nlc.ir.shape import Axis, Shape
from nlc.source import NOWHERE, Span
from nlc.syntax import tree

Kind = Literal["matrix", "vector", "scalar"]
# the number of own axes of each kind
RANKS: dict[Kind, int] = {"matrix": 2, "vector": 1, "scalar": 0}


@dataclass(frozen=True)
class Cell:
    """One tensor of a rule's state, `m` or `m.layer1.weight`, with its value at the first call.

    `start` is a number, or an expression over `self.initial`; where `draw` is set, the value is
    drawn: uniform in +-1/sqrt(`size`), or normal with std `start`. `like` says that it has the
    parameter's own shape. Axes that name `in` and `out` have the parameter's sizes.
    """

    name: str
    shape: Shape
    start: Expr
    like: bool
    draw: Literal["", "uniform", "normal"] = ""
    size: Axis | None = None


@dataclass(frozen=True)
class Set:
    """`target = value`; `text` is the equation as written. Locals are targets too."""

    target: str
    value: Expr
    text: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Ask:
    """The gradient with the parameter at `point`, known as `target` from here on."""

    target: str
    point: Expr
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Slope:
    """The gradient of an objective, taken here, for the `variable`s of a memory at `points`.

    `targets` are the names of its parts from here on, by the variable's parts. The objective is one
    number for each copy, over `variable` leaves and the present values of names.
    """

    memory: str
    targets: tuple[tuple[str, str], ...]
    points: tuple[Expr, ...]
    objective: Expr
    text: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class When:
    """`when condition { body }`; the condition is a single number for each copy."""

    condition: Expr
    body: tuple[Action, ...]
    text: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Every:
    """`every N steps { body }`, a step being a call of the rule; `count` is a number or a param."""

    count: Expr
    body: tuple[Action, ...]
    text: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def word(self) -> str:
        """The count as written: `100`, `f`."""
        return count_word(self.count)


@dataclass(frozen=True)
class Loop:
    """`repeat N { body }`."""

    count: int
    body: tuple[Action, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)


Action = Set | Ask | Slope | When | Every | Loop


@dataclass(frozen=True)
class Motion:
    """A rule's equations on one kind of parameter.

    `shape` is the parameter's own shape. `evaluated` is the value read outside training, over what
    `self` and the cells hold after the call; None where it is `self`. `parts` says of names that
    are parts of something what of, and which: `m.layer1.weight` is `layer1.weight` of `m`.
    """

    rule: tree.Rule
    shape: Shape
    arguments: tuple[str, ...]
    cells: tuple[Cell, ...]
    actions: tuple[Action, ...]
    evaluated: Expr | None = None
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def cell(self, name: str) -> Cell:
        """Return a cell by name."""
        return next(c for c in self.cells if c.name == name)


@dataclass(frozen=True)
class OptimizerRule:
    """A rule with its arguments' defaults (None: it must be given) and a motion for each kind.

    A kind without a motion has its faults in `faults`. `as_rows` are the kinds whose parameters
    move as a matrix of one row: the equations fit matrices alone.
    """

    rule: tree.Rule
    defaults: tuple[tuple[str, Expr | None], ...]
    motions: Mapping[Kind, Motion]
    faults: Mapping[Kind, tuple[Diagnostic, ...]] = field(default_factory=dict)
    as_rows: tuple[Kind, ...] = ()


def count_word(count: Expr) -> str:
    """Write the count of a period: a whole number, or an argument's name."""
    return count.attr("name") if count.op == "param" else str(int(count.attr("value")))


def flat(actions: tuple[Action, ...]) -> list[Action]:
    """List actions with those inside of blocks, in order of their text."""
    found: list[Action] = []
    for action in actions:
        found.append(action)
        if isinstance(action, When | Every | Loop):
            found += flat(action.body)
    return found


def expressions(actions: tuple[Action, ...]) -> list[Expr]:
    """List all expressions of actions."""
    found: list[Expr] = []
    for action in flat(actions):
        match action:
            case Set(value=value):
                found.append(value)
            case Ask(point=point):
                found.append(point)
            case Slope(points=points, objective=objective):
                found += [*points, objective]
            case When(condition=condition):
                found.append(condition)
            case Every() | Loop():
                pass
    return found
