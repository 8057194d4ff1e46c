"""Expressions into programs: axes in front, and narrow and wide types kept apart.

In: an `Expr` and where its leaves come from. Out: nodes of a `Program`, for values with `batch`
axes in front (0: parameters, 1: one token [B], 2: a sequence [B, T]).

A value is *wide* when it is float32 or better in a module of any type: states, positions, indices
and what is computed from them. `narrow` casts it back where weights are applied. What each
operation becomes stands in `spelling`.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass, field

from nlc.codegen import library
from nlc.codegen.program import Operand, Program, note
from torch import fx

from nlc.ir.expr import Expr, postorder
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import Shape

# expressions within one another that are built from the outside in
DEEP = 100


def batch_of(value: Operand) -> int:
    """How many of batch and time stand in front."""
    return int(value.meta["batch"]) if isinstance(value, fx.Node) else 0


def rank_of(value: Operand) -> int:
    """How many axes the value has for one token."""
    return len(value.meta["shape"]) if isinstance(value, fx.Node) else 0


def is_wide(value: Operand) -> bool:
    """Say whether the value is float32 or better in a module of any type."""
    return isinstance(value, fx.Node) and bool(value.meta["wide"])


@dataclass
class Lowering:
    """Builds the nodes of one program.

    `leaf` gives streams, parameters, states and the position; `structured` may take over an
    `apply`, `attend`, `shift`, `conv` or a hoisted expression, or return None. `like` is a tensor
    with the streams' device and type. `lift` computes what is elementwise in float32 or better, for
    what goes into states. `comments` are the lines that stand above a `let`.
    """

    program: Program
    batch: int
    leaf: Callable[[Expr], Operand]
    structured: Callable[[Lowering, Expr], Operand | None]
    like: fx.Node
    done: dict[Expr, Operand] = field(default_factory=dict)
    rename: dict[str, str] = field(default_factory=dict)
    comments: dict[Expr, list[str]] = field(default_factory=dict)
    lift: bool = False
    depth: int = 0

    def value(self, expr: Expr) -> Operand:
        """Build an expression; a number stays a number."""
        if expr not in self.done:
            if self.depth == DEEP:
                self._from_below(expr)
            self.depth += 1
            self.done[expr] = self._build(expr)
            self.depth -= 1
        return self.done[expr]

    def _from_below(self, expr: Expr) -> None:
        """Build the equations that an expression stands on, the first one first.

        An update may have thousands, each of which reads the one before it.
        """
        for node in postorder([expr]):
            if node.op == "let" and node not in self.done:
                self.depth = 0
                self.done[node] = self._build(node)
        self.depth = DEEP

    def tensor(self, expr: Expr) -> fx.Node:
        """Build an expression, as a tensor even if it is a number."""
        value = self.value(expr)
        if isinstance(value, fx.Node):
            return self.as_number(value)
        node = self.program.call(library.number, value, self.like)
        return note(node, (), 0, wide=True)

    def _build(self, expr: Expr) -> Operand:
        taken = self.structured(self, expr)
        if taken is not None:
            return taken
        match expr.op:
            case "const":
                return float(expr.attr("value"))
            case "stream" | "param" | "state" | "variable" | "position" | "ask":
                return self.leaf(expr)
            case "let":
                value = self.value(expr.args[0])
                self._call_it(value, expr)
                return value
            case "where" if _is_flag(expr.args[0]):
                return self._chosen(expr)
        args = [self.value(arg) for arg in expr.args]
        if self.lift and OPERATIONS[expr.op].kind in ("elementwise", "reduction"):
            args = [a if _exact(a) else self.widen(a) for a in args]
        from nlc.codegen.spelling import SPELLING

        return SPELLING[expr.op](self, expr, args)

    def _chosen(self, expr: Expr) -> Operand:
        """A value inside a block of equations that run at some times only."""
        from nlc.codegen.spelling import SPELLING

        condition, yes, no = expr.args
        names: list[Expr] = []
        while yes.op == "let" and yes not in self.done:
            # the choice has the name: the value is computed where it is chosen, if nowhere else
            names.append(yes)
            yes = yes.args[0]
        value = SPELLING["where"](self, expr, [self.value(arg) for arg in (condition, yes, no)])
        for name in names:
            self._call_it(value, name)
        return value

    def _call_it(self, value: Operand, let: Expr) -> None:
        """Give a value the name of its equation, and the equation as a comment above it."""
        if not isinstance(value, fx.Node) or value.op == "placeholder":
            return
        name = str(let.attr("name"))
        value.meta.setdefault("name", self.rename.get(name, name))
        above = self.comments.get(let)
        if above and "above" not in value.meta:
            # once, although an equation may give values to several parts
            value.meta["above"] = list(above)
            above.clear()

    # ---- what rows of the table share ----------------------------------------------------------

    def make(
        self, expr: Expr, function: Callable[..., object], *args: Operand, **words: Operand
    ) -> fx.Node:
        """A call whose result has the expression's shape."""
        return self.mark(self.program.call(function, *args, **words), expr.shape, *args)

    def mark(self, node: fx.Node, shape: Shape, *args: Operand) -> fx.Node:
        """Note shape, batch and width, the latter two from the arguments."""
        nodes = [a for a in _flat(args) if isinstance(a, fx.Node) and "shape" in a.meta]
        batch = max(map(batch_of, nodes), default=0)
        return note(node, shape, batch, any(map(is_wide, nodes)))

    def method(self, expr: Expr, name: str, *args: Operand, **words: Operand) -> fx.Node:
        """A method whose result has the expression's shape."""
        return self.mark(self.program.method(name, *args, **words), expr.shape, *args)

    def unsqueeze(self, value: fx.Node, place: int) -> fx.Node:
        """Insert an axis of size 1 at a position counted over batch and own axes."""
        from nlc.ir.shape import ONE

        batch, shape = batch_of(value), value.meta["shape"]
        node = self.program.method("unsqueeze", value, place)
        if value.meta.get("bool"):
            node.meta["bool"] = True
        if place >= batch:
            own = place - batch
            shape = (*shape[:own], ONE, *shape[own:])
            return note(node, shape, batch, is_wide(value))
        return note(node, shape, batch + 1, is_wide(value))

    def align(
        self, values: list[Operand], keep: tuple[int, ...] | int = 0, bools: bool = False
    ) -> list[Operand]:
        """Bring values to equal rank behind the batch axes.

        `keep` says how many last axes of each are not part of what is aligned; `bools` leaves
        comparisons as they are.
        """
        kept = keep if isinstance(keep, tuple) else (keep,) * len(values)
        batch = max(map(batch_of, values))
        front = max(rank_of(v) - k for v, k in zip(values, kept, strict=True))
        result: list[Operand] = []
        for value, last in zip(values, kept, strict=True):
            if isinstance(value, fx.Node):
                value = value if bools else self.as_number(value)
                if batch_of(value) == 0 or batch == 0:
                    result.append(value)
                    continue
                if batch_of(value) == 1 and batch == 2:
                    value = self.unsqueeze(value, 1)
                for _ in range(front - (rank_of(value) - last)):
                    value = self.unsqueeze(value, batch)
            result.append(value)
        return result

    def as_number(self, value: fx.Node) -> fx.Node:
        """A comparison as 1 and 0."""
        if not value.meta.get("bool"):
            return value
        dtype = self.program.call(builtins.getattr, self.like, "dtype")
        node = self.program.method("to", value, dtype)
        return note(node, value.meta["shape"], batch_of(value), is_wide(self.like))

    def same_type(self, values: list[Operand]) -> list[Operand]:
        """Make all wide where one is: a product of matrices wants one type."""
        return [self.widen(v) for v in values] if any(map(is_wide, values)) else values

    def narrow(self, value: fx.Node) -> fx.Node:
        """Cast a wide value to the streams' type."""
        if not is_wide(value) or is_wide(self.like):
            return value
        dtype = self.program.call(builtins.getattr, self.like, "dtype")
        node = self.program.method("to", value, dtype)
        return note(node, value.meta["shape"], batch_of(value))

    def widen(self, value: Operand) -> Operand:
        """Cast a value to float32 or better."""
        if not isinstance(value, fx.Node) or is_wide(value):
            return value
        node = self.program.call(library.wide, value)
        return note(node, value.meta["shape"], batch_of(value), wide=True)


def _is_flag(condition: Expr) -> bool:
    """Say whether a condition is that a period ends."""
    while condition.op == "unsqueeze":
        (condition,) = condition.args
    return condition.op == "due"


def _exact(value: Operand) -> bool:
    """Say whether a value is no floating tensor that could be wider."""
    return isinstance(value, fx.Node) and bool(
        value.meta.get("bool") or value.meta.get("integer") or value.op == "get_attr"
    )


def _flat(args: object) -> list[object]:
    if isinstance(args, tuple | list):
        return [leaf for arg in args for leaf in _flat(arg)]
    return [args]
