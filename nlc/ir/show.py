"""Write an expression as the language would, for people to read.

In: an `Expr`. Out: one line, `alpha * v - beta * <k, q>`. Layout operations leave no trace and long
expressions are cut, so what is written is not read back.
"""

from __future__ import annotations

from nlc.ir.expr import Expr

# symbol and strength of the operators; a stronger one binds its operands tighter
INFIX = {
    "lt": ("<", 1),
    "le": ("<=", 1),
    "gt": (">", 1),
    "ge": (">=", 1),
    "eq": ("==", 1),
    "ne": ("!=", 1),
    "add": ("+", 2),
    "sub": ("-", 2),
    "mul": ("*", 3),
    "div": ("/", 3),
    "matmul": ("@", 3),
    "matvec": ("@", 3),
    "pow": ("^", 5),
}
# for - and /, a right operand of the same strength needs brackets; for ^ a left one
LEFT_ONLY = {"sub", "div", "matmul", "matvec"}
LAYOUT = {"unsqueeze", "reshape", "permute", "stop"}
ATOM = 9
DEPTH = 12


def show_expr(expr: Expr, depth: int = DEPTH) -> str:
    """Write an expression."""
    return _show(expr, depth)[0]


def _show(expr: Expr, depth: int) -> tuple[str, int]:
    """Return the text of an expression and its strength."""
    if depth == 0:
        return "...", ATOM
    match expr.op:
        case op if op in LAYOUT:
            return _show(expr.args[0], depth)
        case op if op in INFIX:
            return _infix(expr, depth)
        case "neg":
            return f"-{_operand(expr.args[0], 4, depth)}", 4
        case "dot":
            left, right = (show_expr(arg, depth - 1) for arg in expr.args)
            return (f"||{left}||^2" if left == right else f"<{left}, {right}>"), ATOM
        case "apply":
            return f"{_owner(expr)}({show_expr(expr.args[0], depth - 1)})", ATOM
    if not expr.args or expr.op == "let":
        return _leaf(expr), ATOM
    arguments = ", ".join(show_expr(arg, depth - 1) for arg in expr.args)
    if expr.op == "shift" and expr.attr("n") != 1:
        arguments += f", {expr.attr('n')}"
    return f"{expr.op}({arguments})", ATOM


def _infix(expr: Expr, depth: int) -> tuple[str, int]:
    symbol, strength = INFIX[expr.op]
    left, right = expr.args
    a = _operand(left, strength + (expr.op == "pow"), depth)
    b = _operand(right, strength + (expr.op in LEFT_ONLY), depth)
    return f"{a} {symbol} {b}", strength


def _operand(expr: Expr, least: int, depth: int) -> str:
    text, strength = _show(expr, depth - 1)
    return f"({text})" if strength < least else text


def _owner(expr: Expr) -> str:
    """The name of the map that is applied."""
    if expr.attr("memory"):
        return str(expr.attr("memory"))
    part = expr.args[1]
    if part.op in ("state", "variable"):
        return _leaf(part)
    return str(part.attr("name")).rsplit(".", 1)[0] if part.has("name") else "map"


def _leaf(expr: Expr) -> str:
    match expr.op:
        case "const":
            return f"{expr.attr('value'):g}"
        case "stream" | "let":
            return str(expr.attr("name"))
        case "param":
            return str(expr.attr("name")).removesuffix(".weight")
        case "variable":
            return str(expr.attr("memory"))
        case "state":
            parts = (expr.attr("memory"), expr.attr("var"), expr.attr("part"))
            name = ".".join(p for p in parts if p and p != "weight")
            when = expr.attr("when")
            return name if when == "post" else f"{when}({name})"
        case "index" | "identity":
            return f"{expr.op}({expr.attr('axis').name})"
        case "position":
            return "position"
    return f"{expr.op}()"
