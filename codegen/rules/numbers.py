"""Plain Python numbers in emitted optimizers: arguments, counts of calls, sizes, and what is made
of them.

In: a motion. Out: which of its names are numbers, the same for all parameters that move together;
and the text of an expression over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nlc.ir.expr import Expr, postorder
from nlc.ir.operations import OPERATIONS
from nlc.ir.rule import Action, Ask, Every, Loop, Motion, Set, Slope, When

ATOM, POWER, UNARY, PRODUCT, SUM, COMPARE, CHOICE = 18, 15, 14, 13, 12, 6, 1


@dataclass(frozen=True)
class Number:
    """A number as text, how strongly it binds, and its value where it is a literal.

    `inverse` is x where the number is 1 / x.
    """

    text: str
    strength: int = ATOM
    value: float | None = None
    inverse: Number | None = None

    def within(self, least: int) -> str:
        """The text, in brackets if it binds less than `least`."""
        return f"({self.text})" if self.strength < least else self.text


def literal(value: float) -> Number:
    """Write a number as one would by hand: `1`, `0.5`, `1e-08`."""
    whole = value == int(value) and abs(value) < 1e15 if math.isfinite(value) else False
    text = str(int(value)) if whole else repr(value)
    if not math.isfinite(value):
        text = f'float("{value}")'
    return Number(text, UNARY if text.startswith("-") else ATOM, value)


ZERO, ONE = literal(0.0), literal(1.0)


def negative(a: Number) -> Number:
    """-a."""
    if a.value is not None:
        return literal(-a.value)
    if a.strength in (UNARY, PRODUCT) and a.text.startswith("-"):
        return Number(a.text[1:], ATOM if a.strength == UNARY else PRODUCT)
    if a.strength == PRODUCT:
        return Number(f"-{a.text}", PRODUCT)
    return Number(f"-{a.within(UNARY)}", UNARY)


def plus(a: Number, b: Number) -> Number:
    """a + b."""
    if a.value == 0:
        return b
    if b.value == 0:
        return a
    if a.value is not None and b.value is not None:
        return literal(a.value + b.value)
    if b.text.startswith("-"):
        return minus(a, negative(b))
    return Number(f"{a.within(SUM)} + {b.within(SUM + 1)}", SUM)


def minus(a: Number, b: Number) -> Number:
    """a - b."""
    if b.value == 0:
        return a
    if a.value is not None and b.value is not None:
        return literal(a.value - b.value)
    if a.value == 0:
        return negative(b)
    return Number(f"{a.within(SUM)} - {b.within(SUM + 1)}", SUM)


def times(a: Number, b: Number) -> Number:
    """a b."""
    if a.value is not None and b.value is not None:
        return literal(a.value * b.value)
    if b.value is not None:
        a, b = b, a
    if a.value == 1:
        return b
    if a.value == 0:
        return ZERO
    if b.inverse is not None:
        return over(a, b.inverse)
    if a.inverse is not None:
        return over(b, a.inverse)
    if a.value == -1:
        return Number(f"-{b.within(PRODUCT)}", PRODUCT if b.strength == PRODUCT else UNARY)
    return Number(f"{a.within(PRODUCT)} * {b.within(PRODUCT + 1)}", PRODUCT)


def over(a: Number, b: Number) -> Number:
    """a / b."""
    if b.value == 1:
        return a
    if a.value is not None and b.value:
        return literal(a.value / b.value)
    inverse = b if a.value == 1 else None
    text = f"{a.within(PRODUCT)} / {b.within(PRODUCT + 1)}"
    return Number(text, PRODUCT, inverse=inverse)


def power(a: Number, b: Number) -> Number:
    """a ** b."""
    if b.value == 1:
        return a
    if b.value is not None and b.value % 1:
        # `**` gives a complex number where there is no real one; this says so
        return _call("math.pow", a, b)
    return Number(f"{a.within(POWER + 1)}**{b.within(UNARY)}", POWER)


def _call(name: str, *args: Number) -> Number:
    return Number(f"{name}({', '.join(a.text for a in args)})")


def _compare(sign: str) -> Callable[..., Number]:
    def row(a: Number, b: Number) -> Number:
        return Number(f"{a.within(COMPARE + 1)} {sign} {b.within(COMPARE + 1)}", COMPARE)

    return row


def _choice(c: Number, a: Number, b: Number) -> Number:
    if c.value is not None:
        return a if c.value else b
    sides = (a.within(CHOICE + 1), c.within(CHOICE + 1), b.within(CHOICE + 1))
    return Number("{} if {} else {}".format(*sides), CHOICE)


def _sigmoid(x: Number) -> Number:
    return over(ONE, plus(ONE, _call("math.exp", negative(x))))


def _gelu(x: Number) -> Number:
    below = plus(ONE, _call("math.erf", times(literal(math.sqrt(0.5)), x)))
    return times(times(literal(0.5), x), below)


def _gelu_slope(x: Number) -> Number:
    below = plus(ONE, _call("math.erf", times(literal(math.sqrt(0.5)), x)))
    density = _call("math.exp", times(literal(-0.5), times(x, x)))
    return plus(
        times(literal(0.5), below), times(times(literal(1 / math.sqrt(2 * math.pi)), x), density)
    )


def _silu_slope(x: Number) -> Number:
    return times(_sigmoid(x), plus(ONE, times(x, minus(ONE, _sigmoid(x)))))


# how each elementwise operation is written over Python numbers
NUMBERS: Mapping[str, Callable[..., Number]] = {
    "neg": negative,
    "exp": lambda x: _call("math.exp", x),
    "log": lambda x: _call("math.log", x),
    "sqrt": lambda x: _call("math.sqrt", x),
    "abs": lambda x: _call("abs", x),
    "sign": lambda x: minus(
        Number(f"({x.within(COMPARE + 1)} > 0)"), Number(f"({x.within(COMPARE + 1)} < 0)")
    ),
    "sin": lambda x: _call("math.sin", x),
    "cos": lambda x: _call("math.cos", x),
    "tanh": lambda x: _call("math.tanh", x),
    "sigmoid": _sigmoid,
    "silu": lambda x: times(x, _sigmoid(x)),
    "gelu": _gelu,
    "gelu_slope": _gelu_slope,
    "silu_slope": _silu_slope,
    "relu": lambda x: _call("max", x, ZERO),
    "softplus": lambda x: plus(
        _call("math.log1p", _call("math.exp", negative(_call("abs", x)))), _call("max", x, ZERO)
    ),
    "erf": lambda x: _call("math.erf", x),
    "add": plus,
    "sub": minus,
    "mul": times,
    "div": over,
    "pow": power,
    "maximum": lambda a, b: _call("max", a, b),
    "minimum": lambda a, b: _call("min", a, b),
    "lt": _compare("<"),
    "le": _compare("<="),
    "gt": _compare(">"),
    "ge": _compare(">="),
    "eq": _compare("=="),
    "ne": _compare("!="),
    "where": _choice,
}


def is_number(expr: Expr, names: set[str]) -> bool:
    """Say whether an expression is made of numbers alone; `names` are the numbers among names."""
    for node in postorder([expr]):
        match node.op:
            case "const" | "param" | "unsqueeze" | "stop":
                continue
            case "stream" if node.attr("name") in names:
                continue
            case op if OPERATIONS[op].kind == "elementwise":
                continue
            case _:
                return False
    return True


def number_of(expr: Expr, name: Callable[[str], str] = str) -> Number:
    """Write an expression over plain numbers; `name` says how names are written."""
    match expr.op:
        case "const":
            return literal(expr.attr("value"))
        case "param" | "stream":
            return Number(name(expr.attr("name")))
        case "unsqueeze" | "stop":
            return number_of(expr.args[0], name)
    return NUMBERS[expr.op](*(number_of(a, name) for a in expr.args))


def number_names(motion: Motion) -> set[str]:
    """Find the names that are numbers: whatever they are set to is one, wherever it is set."""
    cells = {cell.name: cell for cell in motion.cells}
    names = {
        c.name for c in motion.cells
        if not c.shape and not c.like and c.start.op == "const" and not c.draw
    }  # fmt: skip
    settings = _settings(motion.actions, ())
    names |= {name for name, _, _ in settings if name not in cells and name != "self"}
    changed = True
    while changed:
        changed = False
        for name, value, conditions in settings:
            if name not in names:
                continue
            held = all(is_number(c, names) for c in conditions)
            if value is None or not held or not is_number(value, names):
                names.discard(name)
                changed = True
    return names


def _settings(
    actions: tuple[Action, ...], around: tuple[Expr, ...]
) -> list[tuple[str, Expr | None, tuple[Expr, ...]]]:
    """List what is set: name, value (None: a gradient) and the conditions around."""
    found: list[tuple[str, Expr | None, tuple[Expr, ...]]] = []
    for action in actions:
        match action:
            case Set(target=target, value=value):
                found.append((target, value, around))
            case Ask(target=target):
                found.append((target, None, around))
            case Slope(targets=targets):
                found += [(name, None, around) for _, name in targets]
            case When(condition=condition, body=body):
                found += _settings(body, (*around, condition))
            case Every(body=body) | Loop(body=body):
                found += _settings(body, around)
    return found
