"""What every part of name resolution shares: the graph, the faults, dims and levels.

In: the syntax tree. Out: `Context`, which makes expressions and records faults. A fault inside an
expression raises `Bad`, caught where the next statement begins, so that all are found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from nlc.diagnostics import Faults, Severity
from nlc.errors import nearest
from nlc.ir.expr import Expr, Graph
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import Level, Unit
from nlc.source import Span
from nlc.syntax import tree
from nlc.syntax.print_expression import print_expression

LARGEST = 2**31
# passes of a repeat, and of those within it together
REPEATS = 4096


class Bad(Exception):
    """A fault was recorded; what was being resolved has no value."""


def head(span: Span) -> Span:
    """The first line of a clause, up to its `{`: what a label marks of a clause with a body."""
    first, newline, _ = span.text.partition("\n")
    if "{" in first:
        first = first[: first.index("{")].rstrip()
    elif not newline or not first.rstrip().endswith(":"):
        return span
    return Span(span.source, span.start, span.start + len(first)) if first else span


def several(count: int, what: str) -> str:
    """Write a number of things: `1 stream`, `2 streams`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


class ClauseFaults(Faults):
    """Faults whose labels mark the head of a clause, not all of its body."""

    def _add(
        self,
        severity: Severity,
        code: str,
        title: str,
        span: Span | None,
        text: str,
        hint: str | None,
        others: tuple[tuple[Span, str], ...],
    ) -> None:
        place = None if span is None else head(span)
        heads = tuple((head(other), words) for other, words in others)
        super()._add(severity, code, title, place, text, hint, heads)


@dataclass
class Context:
    """The state of one resolution."""

    graph: Graph = field(default_factory=Graph)
    faults: Faults = field(default_factory=ClauseFaults)
    dims: dict[str, int] = field(default_factory=dict)
    levels: dict[str, Level] = field(default_factory=dict)
    rules: dict[str, tree.Rule] = field(default_factory=dict)
    blocks: dict[str, tree.Block] = field(default_factory=dict)
    # levels at fault, for which a stand-in is there
    broken: set[str] = field(default_factory=set)
    # features that are checked but cannot run yet: (code, what, place, hint)
    unsupported: list[tuple[str, str, Span, str]] = field(default_factory=list)

    def fail(
        self,
        code: str,
        title: str,
        span: Span,
        text: str,
        hint: str,
        *others: tuple[Span, str],
    ) -> NoReturn:
        """Record an error and give up the present expression."""
        self.faults.error(code, title, span, text, hint, *others)
        raise Bad(code)

    def unknown(self, what: str, name: str, span: Span, known: list[str], code: str) -> NoReturn:
        """Record an unknown name, with the nearest known one."""
        close = nearest(name, known)
        if close:
            hint = f"did you mean `{close}`?"
        elif known:
            hint = f"known here: {', '.join(f'`{k}`' for k in sorted(known)[:12])}"
        else:
            hint = f"there is no {what} here to name"
        self.fail(code, f"unknown {what} `{name}`", span, "nothing has this name", hint)

    # ---- integer expressions over dims -----------------------------------------------------

    def integer(self, expr: tree.Expr, extra: dict[str, int] | None = None) -> int:
        """Evaluate an integer expression over dims, bounded by 2^31; `/` must divide."""
        value = self._integer(expr, extra or {})
        if abs(value) > LARGEST:
            self._too_large(expr)
        return value

    def positive(self, expr: tree.Expr, what: str, extra: dict[str, int] | None = None) -> int:
        """Evaluate an integer expression that must be at least 1."""
        value = self.integer(expr, extra)
        if value < 1:
            self.fail(
                "NL0401", f"{what} must be at least 1", expr.span, f"this is {value}",
                "write a positive whole number",
            )  # fmt: skip
        return value

    def repeats(self, count: tree.Expr, around: int = 1) -> int:
        """Evaluate a number of repeats; those around it multiply, up to 4096 in all."""
        times = self.positive(count, "a number of repeats")
        if times * around > REPEATS:
            within = f"{times}" if around == 1 else f"{times}, within {around}: {times * around}"
            self.fail(
                "NL0402", "too many repeats", count.span, within,
                f"up to {REPEATS}, all in all" if around > 1 else f"up to {REPEATS}",
            )  # fmt: skip
        return times

    def _too_large(self, expr: tree.Expr) -> NoReturn:
        self.fail(
            "NL0402", "a size is too large", expr.span, "larger than 2^31",
            "sizes are at most 2147483648",
        )  # fmt: skip

    def _integer(self, expr: tree.Expr, extra: dict[str, int]) -> int:
        match expr:
            case tree.Number():
                if not isinstance(expr.value, int):
                    self.fail(
                        "NL0401", "a size is not a whole number", expr.span,
                        f"`{expr.text}` is not an integer", "write a whole number",
                    )  # fmt: skip
                if len(expr.text) > 12 or expr.value > LARGEST:
                    self._too_large(expr)
                return expr.value
            case tree.Name(id=name):
                if name in extra:
                    return extra[name]
                if name not in self.dims:
                    self.unknown("dim", name, expr.span, [*self.dims, *extra], "NL0413")
                return self.dims[name]
            case tree.Unary(operator=op, operand=operand):
                value = self._integer(operand, extra)
                return -value if op == "-" else value
            case tree.Binary(operator=op, left=left, right=right):
                return self._binary(
                    expr, op, self._integer(left, extra), self.integer(right, extra)
                )
            case _:
                self.fail(
                    "NL0401", "a size is not a whole number", expr.span,
                    "not an integer expression", "use numbers, dims and + - * / ^",
                )  # fmt: skip

    def _binary(self, expr: tree.Expr, op: str, a: int, b: int) -> int:
        match op:
            case "+":
                value = a + b
            case "-":
                value = a - b
            case "*":
                value = a * b
            case "/":
                if b == 0 or a % b:
                    self.fail(
                        "NL0403", "a division leaves a remainder", expr.span, f"{a} / {b}",
                        "sizes are integers: `/` must divide evenly",
                    )  # fmt: skip
                value = a // b
            case "^":
                if b < 0 or (abs(a) > 1 and b > 31):
                    self._too_large(expr)
                value = a**b
            case _:
                self.fail(
                    "NL0401", "a size is not a whole number", expr.span, f"`{op}` makes no size",
                    "use numbers, dims and + - * / ^",
                )  # fmt: skip
        if abs(value) > LARGEST * LARGEST:
            self._too_large(expr)
        return value

    # ---- axes ------------------------------------------------------------------------------

    def axis(self, expr: tree.Expr, extra: dict[str, int] | None = None, role: str = "") -> Axis:
        """Make one axis of an entry of a shape."""
        size = self.positive(expr, "a size", extra)
        return Axis(_axis_name(expr), size, role=role)

    def axes(self, expr: tree.Expr, extra: dict[str, int] | None = None) -> Shape:
        """Make the axes of a map's side: a product of dims is several; 1 is none."""
        size = self.positive(expr, "a size", extra)
        if isinstance(expr, tree.Number) and size == 1:
            return ()
        factors = _factors(expr)
        result: list[Axis] = []
        scale = 1
        for factor in factors:
            value = self.integer(factor, extra)
            if isinstance(factor, tree.Number):
                scale *= value
                continue
            name = _axis_name(factor)
            result.append(Axis(f"{scale}*{name}" if scale > 1 else name, scale * value))
            scale = 1
        if scale > 1 or not result:
            if result:
                last = result.pop()
                result.append(Axis(f"{scale}*{last.name}", scale * last.size))
            else:
                result.append(Axis(str(size), size))
        return tuple(result)

    def shape(self, entries: tuple[tree.Expr, ...], extra: dict[str, int] | None = None) -> Shape:
        """Make a written shape `[heads, d_k]`."""
        return tuple(self.axis(entry, extra) for entry in entries)

    # ---- small makers ----------------------------------------------------------------------

    def number(self, value: float, span: Span) -> Expr:
        """A constant."""
        return self.graph.constant(value, span)

    def period(self, period: tree.Period) -> tuple[Unit, int]:
        """Evaluate a period."""
        if period.unit in ("always", "never") or period.count is None:
            return period.unit, 1
        return period.unit, self.positive(period.count, "a period")


def _factors(expr: tree.Expr) -> list[tree.Expr]:
    found: list[tree.Expr] = []
    stack: list[tree.Expr] = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, tree.Binary) and node.operator == "*":
            stack.extend((node.right, node.left))
        else:
            found.append(node)
    return found


def _axis_name(expr: tree.Expr) -> str:
    return print_expression(expr).replace(" ", "")


def flat(shape: Shape) -> Axis:
    """The one axis that a product of axes makes when stored: `heads*d_k`."""
    if len(shape) == 1:
        return shape[0]
    size = 1
    for axis in shape:
        size *= axis.size
    return Axis("*".join(axis.name for axis in shape) or "1", size)


def real(context: Context, expr: tree.Expr, known: Mapping[str, float] | None = None) -> float:
    """Evaluate a number written with dims, `3e-4`, `1/sqrt(d_k)`, or with other known names."""
    names = {**context.dims, **(known or {})}
    functions: dict[str, Callable[[float], float]] = {
        "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "abs": abs,
    }  # fmt: skip
    match expr:
        case tree.Number():
            return float(expr.value)
        case tree.Name(id=name) if name in names:
            return float(names[name])
        case tree.Name(id=name):
            context.unknown("dim", name, expr.span, list(names), "NL0413")
        case tree.Unary(operator=op, operand=operand):
            value = real(context, operand, known)
            return -value if op == "-" else value
        case tree.Call(function=tree.Name(id=name), arguments=(one,)) if name in functions:
            value = real(context, one, known)
            if (name == "log" and value <= 0) or (name == "sqrt" and value < 0):
                _no_number(context, expr)
            return float(functions[name](value)) if abs(value) < 700 or name != "exp" else math.inf
        case tree.Binary(operator=op, left=left, right=right) if op in "+-*/^":
            a, b = real(context, left, known), real(context, right, known)
            try:
                match op:
                    case "+":
                        return a + b
                    case "-":
                        return a - b
                    case "*":
                        return a * b
                    case "/":
                        return a / b
                    case _:
                        return float(a**b)
            except (ArithmeticError, TypeError):
                _no_number(context, expr)
        case _:
            _no_number(context, expr)


def _no_number(context: Context, expr: tree.Expr) -> NoReturn:
    context.fail(
        "NL0414", "an option is not a number", expr.span, "this is not a number",
        "write a number, or an expression of numbers and dims",
    )  # fmt: skip
