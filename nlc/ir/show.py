"""Write an expression as the language would, for people to read.

In: an `Expr`. Out: one line, `alpha * v - beta * <k, q>`. Layout operations leave no trace and long
expressions are cut, so what is written is not read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nlc.ir.expr import Expr

# symbol and strength of the operators; a stronger one binds its operands tighter
INFIX = {
    "lt": (" < ", 1),
    "le": (" <= ", 1),
    "gt": (" > ", 1),
    "ge": (" >= ", 1),
    "eq": (" == ", 1),
    "ne": (" != ", 1),
    "add": (" + ", 2),
    "sub": (" - ", 2),
    "mul": (" * ", 3),
    "div": (" / ", 3),
    "matmul": (" @ ", 3),
    "matvec": (" @ ", 3),
    "pow": ("^", 5),
}
# for - and /, a right operand of the same strength needs brackets; for ^ a left one
LEFT_ONLY = {"sub", "div", "matmul", "matvec"}
LAYOUT = {"unsqueeze", "reshape", "permute", "stop"}
ATOM = 9
DEPTH = 12


def show_expr(expr: Expr, depth: int = DEPTH, names: Mapping[int, str] | None = None) -> str:
    """Write an expression; `names` are words for nodes, by id, that are not written out."""
    return _Writer(names or {}).show(expr, depth)[0]


def plain(expr: Expr) -> Expr:
    """Return what is left of an expression without its layout.

    >>> from nlc.ir.expr import Graph
    >>> from nlc.ir.shape import Axis
    >>> k = Graph().make("stream", name="k", shape=(Axis("d_k", 4),))
    >>> plain(Graph().make("unsqueeze", k, axes=(-1,))) is k
    True
    """
    while expr.op in LAYOUT:
        expr = expr.args[0]
    return expr


@dataclass
class _Writer:
    names: Mapping[int, str]
    known: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)

    def show(self, expr: Expr, depth: int) -> tuple[str, int]:
        """Return the text of an expression and its strength."""
        expr = plain(expr)
        if id(expr) in self.names:
            return self.names[id(expr)], ATOM
        if depth == 0:
            return "...", ATOM
        key = (id(expr), depth)
        if key not in self.known:
            self.known[key] = self.written(expr, depth)
        return self.known[key]

    def written(self, expr: Expr, depth: int) -> tuple[str, int]:
        """Write a node out."""
        match expr.op:
            case op if op in INFIX:
                return self.infix(expr, depth)
            case "neg":
                return f"-{self.operand(expr.args[0], 4, depth)}", 4
            case "transpose":
                return f"{self.operand(expr.args[0], 6, depth)}^T", 6
            case "dot":
                left, right = (self.show(arg, depth - 1)[0] for arg in expr.args)
                return (f"||{left}||^2", 5) if left == right else (f"<{left}, {right}>", ATOM)
            case "norm":
                return f"||{self.show(expr.args[0], depth - 1)[0]}||", ATOM
            case "sum" if (squared := _squared(expr)) is not None:
                return f"||{self.show(squared, depth - 1)[0]}||^2", 5
            case "apply":
                return f"{_owner(expr)}({self.show(expr.args[0], depth - 1)[0]})", ATOM
            case "shift" if expr.attr("n") > 1:
                return f"shift({self.show(expr.args[0], depth - 1)[0]}, {expr.attr('n')})", ATOM
            case "conv":
                weight, x = leaf_name(expr.args[1]), self.show(expr.args[0], depth - 1)[0]
                return f"{weight}({x})", ATOM
            case "grad":
                # of the memory's objective, where it stands, or at another value of it
                return "grad", ATOM
        if not expr.args or expr.op == "let":
            return leaf_name(expr), ATOM
        arguments = ", ".join(self.show(arg, depth - 1)[0] for arg in expr.args)
        return f"{expr.op}({arguments})", ATOM

    def infix(self, expr: Expr, depth: int) -> tuple[str, int]:
        """Write an operation between its operands."""
        symbol, strength = INFIX[expr.op]
        left, right = map(plain, expr.args)
        if expr.op == "div" and left.op == right.op == "const":
            return f"{leaf_name(left)}/{leaf_name(right)}", strength
        if expr.op == "add" and right.op == "neg" and id(right) not in self.names:
            # a + -b
            symbol, right = " - ", right.args[0]
            strength_right = strength + 1
        else:
            strength_right = strength + (expr.op in LEFT_ONLY)
        a = self.operand(left, strength + (expr.op == "pow"), depth)
        b = self.operand(right, strength_right, depth)
        return f"{a}{symbol}{b}", strength

    def operand(self, expr: Expr, least: int, depth: int) -> str:
        """Write an operand, in brackets where it is too weak."""
        text, strength = self.show(expr, depth - 1)
        return f"({text})" if strength < least else text


def _squared(expr: Expr) -> Expr | None:
    """Return x where a sum over the last axis is one of x * x."""
    inner = plain(expr.args[0])
    if tuple(expr.attr("axes")) != (-1,):
        return None
    if inner.op == "mul" and inner.args[0] is inner.args[1]:
        return inner.args[0]
    square = inner.op == "pow" and inner.args[1].op == "const"
    return inner.args[0] if square and inner.args[1].attr("value") == 2.0 else None


def _owner(expr: Expr) -> str:
    """The name of the map that is applied."""
    part = expr.args[1] if len(expr.args) > 1 else None
    if part is not None and part.op == "state" and part.attr("when") in ("prev", "start"):
        return f"{part.attr('when')}({part.attr('memory')})"
    if expr.attr("memory"):
        return str(expr.attr("memory"))
    if part is not None and part.op in ("state", "variable"):
        return str(part.attr("memory"))
    named = part is not None and part.has("name")
    return str(part.attr("name")).rsplit(".", 1)[0] if part is not None and named else "map"


def leaf_name(expr: Expr) -> str:
    """Write a leaf, or a named value, by its name."""
    match expr.op:
        case "const":
            return f"{expr.attr('value'):g}"
        case "stream" | "let":
            return str(expr.attr("name"))
        case "param":
            return str(expr.attr("name")).removesuffix(".weight")
        case "variable":
            return ".".join(w for w in (expr.attr("memory"), part_name(expr.attr("part"))) if w)
        case "state":
            words = (expr.attr("memory"), expr.attr("var"), part_name(expr.attr("part")))
            name = ".".join(word for word in words if word)
            when = expr.attr("when")
            return name if when == "post" else f"{when}({name})"
        case "index" | "identity":
            return f"{expr.op}({expr.attr('axis').name})"
        case "position":
            return "position"
        case "due":
            unit, number = expr.attr("period")
            return f"due(every {number} {unit})"
    return f"{expr.op}()"


def part_name(part: str) -> str:
    """Shorten a part of a map to what tells it from others: `layer1` for `layer1.weight`."""
    return "" if part == "weight" else part.removesuffix(".weight")
