"""The syntax tree: one for the text form and the YAML form.

Nodes are frozen and hold tuples. Spans and comments are not compared, so two trees are equal
exactly when they say the same. Names are not looked up and numbers not evaluated here.

    expr  = Number | Name | Attribute | Call | Unary | Binary | Compare | Norm | Inner | Tuple
    stmt  = Assign | Every | When | Repeat | Share
    spec  = Spec(use*, dim*, level*, rule*, block*, model?)
    block = Block(input*, output*, weights*, memory*, stmt*)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nlc.source import NOWHERE, Span

BLANK = "\n"  # an empty line, among the lines above a statement or before its `}`


@dataclass(frozen=True)
class Comments:
    """Comments of a statement, without `#`: lines above it, one behind it, lines before its `}`."""

    above: tuple[str, ...] = ()
    behind: str | None = None
    inside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Node:
    """Anything with a place."""

    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Line(Node):
    """Anything that stands on a line of its own and can carry comments."""

    comments: Comments = field(default=Comments(), compare=False, repr=False)


# ---- expressions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number(Node):
    """A literal, as written: `3e-4`, `16`."""

    text: str

    @property
    def value(self) -> int | float:
        """The number, an int where it is written as one."""
        return int(self.text) if self.text.isdigit() else float(self.text)


@dataclass(frozen=True)
class Name(Node):
    """An identifier; also `self`, `grad`, `key`, `in`, `out`, `tokens`, `learned`."""

    id: str


@dataclass(frozen=True)
class Attribute(Node):
    """`base.name`: a state of a memory, a part of a map."""

    base: Expr
    name: str


@dataclass(frozen=True)
class Keyword(Node):
    """`name = value` in a call or a map."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Call(Node):
    """`function(arguments, name = value)`."""

    function: Expr
    arguments: tuple[Expr, ...] = ()
    keywords: tuple[Keyword, ...] = ()


@dataclass(frozen=True)
class Unary(Node):
    """`-operand` (`operator` is `-` or `+`)."""

    operator: str
    operand: Expr


@dataclass(frozen=True)
class Binary(Node):
    """`left operator right` with + - * / @ ^."""

    operator: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Compare(Node):
    """`left operator right` with < <= > >= == !=; never chained."""

    operator: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Norm(Node):
    """`||operand||` over the last axis; its square is Binary("^", Norm, 2)."""

    operand: Expr


@dataclass(frozen=True)
class Inner(Node):
    """`<left, right>` over the last axis."""

    left: Expr
    right: Expr


@dataclass(frozen=True)
class Tuple(Node):
    """`(a, b)`: several axes after `over =`, several coefficients."""

    items: tuple[Expr, ...]


Expr = Number | Name | Attribute | Call | Unary | Binary | Compare | Norm | Inner | Tuple


# ---- statements --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target(Node):
    """What stands on the left: `x`, `v[heads, d_v]`, `self`, `self.gate`, `M.S`; dotted in `path`.

    `shape` is None where none is written and () for `n[]`.
    """

    path: tuple[str, ...]
    shape: tuple[Expr, ...] | None = None


@dataclass(frozen=True)
class Assign(Line):
    """`targets = values`: as many of each, or several targets and one call with several results."""

    targets: tuple[Target, ...]
    values: tuple[Expr, ...]


@dataclass(frozen=True)
class Period(Node):
    """`1 token`, `4 steps` (`unit` is always the plural), `always`, `never`."""

    unit: Literal["tokens", "steps", "always", "never"]
    count: Expr | None = None


@dataclass(frozen=True)
class Every(Line):
    """`every PERIOD { body }` in an update or a rule."""

    period: Period
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class When(Line):
    """`when condition { body }` in an update or a rule."""

    condition: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class Repeat(Line):
    """`repeat count { body }` in a model, an update or a rule."""

    count: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class Share(Line):
    """`share name = block` in a model."""

    name: str
    block: str


Stmt = Assign | Every | When | Repeat | Share


# ---- clauses -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain(Node):
    """One positional argument of a map: `d -> heads*d_k` (two items), `bias` (one item)."""

    items: tuple[Expr, ...]


@dataclass(frozen=True)
class Map(Node):
    """`linear(d -> heads*d_k, bias)`, `conv(d, width = 4)`, `scalar`, and in rules `like self`.

    `like self` is Map("like", (Chain((Name("self"),)),)).
    """

    kind: str
    arguments: tuple[Chain, ...] = ()
    keywords: tuple[Keyword, ...] = ()


@dataclass(frozen=True)
class From(Node):
    """`init from NAME`."""

    name: str


@dataclass(frozen=True)
class Use(Line):
    """`use NAME`."""

    name: str


@dataclass(frozen=True)
class Dim(Line):
    """`name = integer expression`."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Level(Line):
    """`level NAME PERIOD [, chunk C] [, optimizer RULE(...)]`; `optimizer` is a Name or a Call."""

    name: str
    period: Period
    chunk: Expr | None = None
    optimizer: Expr | None = None


@dataclass(frozen=True)
class Weights(Line):
    """`weights NAMES [AXES] : MAP [at LEVEL] [init e]`; `axes` is () where none are written."""

    names: tuple[str, ...]
    map: Map
    axes: tuple[Expr, ...] = ()
    level: str | None = None
    init: Expr | From | None = None
    name_spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class State(Line):
    """`state NAME[shape] = init`; `shape` None: shaped like the memory, (): a scalar."""

    name: str
    init: Expr
    shape: tuple[Expr, ...] | None = None


@dataclass(frozen=True)
class Memory(Line):
    """`memory NAMES [AXES] : MAP [at LEVELS] { ... }`.

    `objective` may be Name("task"). `update` is an Expr (a rule's Name or Call), a tuple of
    statements, or None where it is missing. `clauses` gives the span of each clause that was
    written, by its word: "key", "value", "objective", "update", "init", "reset", "through",
    "slots", "route", "select"; `level_spans` go with `levels`.
    """

    names: tuple[str, ...]
    map: Map
    axes: tuple[Expr, ...] = ()
    levels: tuple[str, ...] = ()
    keys: tuple[Expr, ...] = ()
    values: tuple[Expr, ...] = ()
    objective: Expr | None = None
    states: tuple[State, ...] = ()
    update: Expr | tuple[Stmt, ...] | None = None
    init: Expr | From | None = None
    reset: Period | None = None
    through: str | None = None
    slots: Expr | None = None
    route: Expr | None = None
    select: Expr | None = None
    clauses: tuple[tuple[str, Span], ...] = field(default=(), compare=False, repr=False)
    # comments of the clauses inside the braces, by the clause's word
    clause_comments: tuple[tuple[str, Comments], ...] = field(default=(), compare=False, repr=False)
    name_spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)
    level_spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Parameter(Node):
    """An argument of a rule, or an input of a block, with its default."""

    name: str
    shape: tuple[Expr, ...] | None = None
    default: Expr | None = None


@dataclass(frozen=True)
class Rule(Line):
    """`rule NAME(parameters) { states; memories; equations }`; `eval = e` assigns to `eval`."""

    name: str
    parameters: tuple[Parameter, ...]
    states: tuple[State, ...] = ()
    memories: tuple[Memory, ...] = ()
    equations: tuple[Stmt, ...] = ()


@dataclass(frozen=True)
class Block(Line):
    """`block NAME(inputs) -> outputs { weights, memories, equations }`."""

    name: str
    inputs: tuple[Parameter, ...]
    outputs: tuple[Target, ...]
    weights: tuple[Weights, ...] = ()
    memories: tuple[Memory, ...] = ()
    equations: tuple[Stmt, ...] = ()


@dataclass(frozen=True)
class Model(Line):
    """`model { vocab N; objective e; equations }`; `vocab` is Name("bytes") or an expression."""

    vocab: Expr | None
    equations: tuple[Stmt, ...] = ()
    objective: Expr | None = None
    clauses: tuple[tuple[str, Span], ...] = field(default=(), compare=False, repr=False)
    clause_comments: tuple[tuple[str, Comments], ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Spec(Line):
    """A whole file; `comments.inside` are those after its last clause."""

    name: str | None
    about: str | None = None
    uses: tuple[Use, ...] = ()
    dims: tuple[Dim, ...] = ()
    levels: tuple[Level, ...] = ()
    rules: tuple[Rule, ...] = ()
    blocks: tuple[Block, ...] = ()
    model: Model | None = None
    clauses: tuple[tuple[str, Span], ...] = field(default=(), compare=False, repr=False)
    clause_comments: tuple[tuple[str, Comments], ...] = field(default=(), compare=False, repr=False)
