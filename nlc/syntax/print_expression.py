"""Expressions, maps and shapes as text, with no bracket that is not needed.

In: nodes of the syntax tree. Out: one line of text, which parses to the same nodes. Does not break
lines; `print_text` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nlc.syntax import tree as t

# how tightly an expression binds: what is looser than its place asks for stands in brackets
COMPARE, SUM, PRODUCT, SIGNED, POWER, APPLIED = range(6)
_OPERATORS = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "@": PRODUCT, "^": POWER}


def print_expression(expression: t.Expr, *, tight: bool = False, binding: int = COMPARE) -> str:
    """Return an expression as text; `tight` writes products of dims as `heads*d_k`.

    `binding` is what its place asks for: brackets stand around anything looser.
    """
    text = _written(expression, tight)
    return f"({text})" if _binding(expression) < binding else text


def _binding(expression: t.Expr) -> int:
    match expression:
        case t.Compare():
            return COMPARE
        case t.Binary(operator):
            return _OPERATORS[operator]
        case t.Unary():
            return SIGNED
        case _:
            return APPLIED


def _written(expression: t.Expr, tight: bool) -> str:
    def inner(part: t.Expr, binding: int = COMPARE) -> str:
        return print_expression(part, tight=tight, binding=binding)

    match expression:
        case t.Number(text):
            return text
        case t.Name(name):
            return name
        case t.Attribute(base, name):
            return f"{_base(base, tight)}.{name}"
        case t.Call(function, arguments, keywords):
            return f"{_base(function, tight)}({print_arguments(arguments, keywords)})"
        case t.Unary(operator, operand):
            return f"{operator}{inner(operand, SIGNED)}"
        case t.Binary("^", left, right):
            return f"{inner(left, APPLIED)}^{inner(right, SIGNED)}"
        case t.Binary(operator, left, right):
            own = _OPERATORS[operator]
            joint = operator if own == PRODUCT and (tight or _fraction(expression)) else None
            joint = joint or f" {operator} "
            return f"{inner(left, own)}{joint}{inner(right, own + 1)}"
        case t.Compare(operator, left, right):
            return f"{inner(left, SUM)} {operator} {inner(right, SUM)}"
        case t.Norm(operand):
            return f"||{inner(operand, SUM)}||"
        case t.Inner(left, right):
            return f"<{inner(left, SUM)}, {inner(right, SUM)}>"
        case t.Tuple(items):
            listed = ", ".join(inner(item) for item in items)
            return f"({listed},)" if len(items) == 1 else f"({listed})"


def _base(base: t.Expr, tight: bool) -> str:
    """Return what is called, or has a part: brackets around all but names, parts and calls."""
    text = print_expression(base, tight=tight)
    return text if isinstance(base, t.Name | t.Attribute | t.Call) else f"({text})"


def _fraction(expression: t.Binary) -> bool:
    """Say whether it is one like `1/2` or `1/sqrt(d)`, which reads better without spaces."""
    left, right = expression.left, expression.right
    plain = isinstance(right, t.Number | t.Name | t.Call)
    return expression.operator == "/" and isinstance(left, t.Number) and plain


def print_arguments(arguments: Sequence[t.Expr], keywords: Sequence[t.Keyword]) -> str:
    """Return the arguments of a call, without its brackets."""
    texts = [print_expression(argument) for argument in arguments]
    texts.extend(f"{k.name} = {print_expression(k.value)}" for k in keywords)
    return ", ".join(texts)


def print_expressions(expressions: Sequence[t.Expr]) -> str:
    """Return expressions with commas between them, as after `key` or `=`."""
    return ", ".join(print_expression(expression) for expression in expressions)


def print_integer(expression: t.Expr) -> str:
    """Return an expression over dims, as after `repeat` or in `dims`."""
    return print_expression(expression, tight=True, binding=SUM)


def print_shape(shape: Sequence[t.Expr] | None) -> str:
    """Return `[heads, d_k]`, or nothing where no shape is written."""
    return "" if shape is None else f"[{', '.join(map(print_integer, shape))}]"


def print_axes(axes: Sequence[t.Expr]) -> str:
    """Return the axes behind the names of weights or memories, or nothing."""
    return print_shape(axes) if axes else ""


def print_map(kind: t.Map) -> str:
    """Return `linear(d -> heads*d_k, bias)`, `scalar` or `like self`."""
    match kind:
        case t.Map("like", (t.Chain((t.Name(name),)),), ()):
            return f"like {name}"
        case t.Map(word, (), ()):
            return word
    texts = [
        " -> ".join(print_expression(item, tight=True) for item in chain.items)
        for chain in kind.arguments
    ]
    texts.extend(f"{k.name} = {print_expression(k.value)}" for k in kind.keywords)
    return f"{kind.kind}({', '.join(texts)})"


def print_period(period: t.Period) -> str:
    """Return `1 token`, `4 steps`, `always` or `never`."""
    if period.count is None:
        return period.unit
    one = isinstance(period.count, t.Number) and period.count.text == "1"
    return f"{print_integer(period.count)} {period.unit[:-1] if one else period.unit}"


def print_every(period: t.Period) -> str:
    """Return a period with its word: `every 1 token`, `never`."""
    return print_period(period) if period.count is None else f"every {print_period(period)}"


def print_target(target: t.Target) -> str:
    """Return what stands left of `=`."""
    return ".".join(target.path) + print_shape(target.shape)


def print_parameter(parameter: t.Parameter) -> str:
    """Return an argument of a rule or an input of a block."""
    text = parameter.name + print_shape(parameter.shape)
    if parameter.default is None:
        return text
    return f"{text} = {print_expression(parameter.default)}"


def print_init(init: t.Expr | t.From) -> str:
    """Return what stands after `init`."""
    if isinstance(init, t.From):
        return f"from {init.name}"
    text = print_expression(init)
    # an expression that begins with a stream called `from` would read as `init from NAME`
    return f"({text})" if re.match(r"from\b", text) else text


def print_assign(assign: t.Assign) -> tuple[str, str]:
    """Return the left side of an equation, and the rest from ` = ` on."""
    targets = ", ".join(map(print_target, assign.targets))
    return targets, f" = {print_expressions(assign.values)}"


def print_level_tail(level: t.Level) -> str:
    """Return a level without its name: `every 1 token, chunk 16`."""
    text = print_every(level.period)
    if level.chunk is not None:
        text += f", chunk {print_integer(level.chunk)}"
    if level.optimizer is not None:
        text += f", optimizer {print_expression(level.optimizer, binding=SUM)}"
    return text


def print_rule_head(rule: t.Rule) -> str:
    """Return `titans(lr, momentum, decay)`."""
    return f"{rule.name}({', '.join(map(print_parameter, rule.parameters))})"


def print_block_head(block: t.Block) -> str:
    """Return `mixer(x[d]) -> out[d]`."""
    inputs = ", ".join(map(print_parameter, block.inputs))
    outputs = ", ".join(map(print_target, block.outputs))
    return f"{block.name}({inputs}) -> {outputs}"


def print_names(node: t.Weights | t.Memory) -> str:
    """Return the names of weights or memories with their axes."""
    return ", ".join(node.names) + print_axes(node.axes)
