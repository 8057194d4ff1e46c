"""The rules of `simplify`, keyed by operation.

A rule is given a maker of simple expressions and a node whose arguments are simple; it gives an
equal expression or None. `simplify` refuses a result of another shape, so rules need not ask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from nlc.ir.expr import Expr
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import sizes
from nlc.passes.structure import Term, is_scale, terms_of


class Make(Protocol):
    """Makes an expression in its simple form."""

    def __call__(self, op: str, *args: Expr, **attrs: object) -> Expr: ...


Rule = Callable[[Make, Expr], Expr | None]

# how deep `_factor` looks into a product
DEPTH = 8

FOLD: Mapping[str, Callable[..., float]] = {
    "neg": lambda a: -a,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": abs,
    "sign": lambda a: float((a > 0) - (a < 0)),
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "relu": lambda a: max(a, 0.0),
    "erf": math.erf,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "maximum": max,
    "minimum": min,
    "lt": lambda a, b: float(a < b),
    "le": lambda a, b: float(a <= b),
    "gt": lambda a, b: float(a > b),
    "ge": lambda a, b: float(a >= b),
    "eq": lambda a, b: float(a == b),
    "ne": lambda a, b: float(a != b),
}


def number(node: Expr) -> float | None:
    """Return the value of a constant, or None."""
    return float(node.attr("value")) if node.op == "const" else None


def _const(make: Make, value: float) -> Expr:
    return make("const", value=float(value))


def _fold(make: Make, node: Expr) -> Expr | None:
    values = [number(arg) for arg in node.args]
    if not values or any(v is None for v in values) or node.op not in FOLD:
        return None
    try:
        result = FOLD[node.op](*values)
    except (ValueError, ZeroDivisionError, OverflowError):
        # what has no number stays as written and gives inf or nan when it runs
        return None
    return _const(make, result) if isinstance(result, float) and math.isfinite(result) else None


def _bare_constants(make: Make, node: Expr) -> Expr | None:
    """op(unsqueeze(2), x) -> op(2, x)."""
    args = tuple(a.args[0] if a.op == "unsqueeze" and not a.args[0].shape
                 and a.args[0].op == "const" else a for a in node.args)  # fmt: skip
    if all(a is b for a, b in zip(args, node.args, strict=True)):
        return None
    return make(node.op, *args, **dict(node.attrs))


def _gather_axes(make: Make, node: Expr) -> Expr | None:
    """op(unsqueeze(a), unsqueeze(b)) -> unsqueeze(op(a, b)), the same axes on both."""
    axes = {arg.attr("axes") for arg in node.args if arg.op == "unsqueeze"}
    if len(axes) != 1:
        return None
    (places,) = axes
    inner = -max(places)
    args = []
    for arg in node.args:
        if arg.op == "unsqueeze":
            args.append(arg.args[0])
        elif len(arg.shape) < inner:
            # it lies wholly to the right of the new axes, so it stays where it is
            args.append(arg)
        else:
            return None
    return make("unsqueeze", make(node.op, *args, **dict(node.attrs)), axes=places)


def _factor(node: Expr, depth: int = DEPTH) -> float:
    """Return the constant that a product holds."""
    if depth == 0:
        return 1.0
    match node.op:
        case "const":
            return float(node.attr("value"))
        case "neg":
            return -_factor(node.args[0], depth - 1)
        case "unsqueeze" | "transpose":
            return _factor(node.args[0], depth - 1)
        case "mul" | "outer":
            return _factor(node.args[0], depth - 1) * _factor(node.args[1], depth - 1)
        case "div" if number(node.args[1]):
            return _factor(node.args[0], depth - 1) / float(node.args[1].attr("value"))
    return 1.0


def _rest(make: Make, node: Expr, depth: int = DEPTH) -> Expr:
    """Return a product without the constant that `_factor` finds in it."""
    if depth == 0 or (
        _factor(node, depth) == 1.0 and node.op not in ("mul", "neg", "div", "outer")
    ):
        return node
    match node.op:
        case "const":
            return _const(make, 1.0)
        case "neg":
            return _rest(make, node.args[0], depth - 1)
        case "div" if number(node.args[1]):
            return _rest(make, node.args[0], depth - 1)
        case "unsqueeze" | "transpose":
            return make(node.op, _rest(make, node.args[0], depth - 1), **dict(node.attrs))
        case "mul" | "outer":
            return make(node.op, *(_rest(make, a, depth - 1) for a in node.args))
    return node


def _merge_constants(make: Make, node: Expr) -> Expr | None:
    """2 * (1/2 * x) -> x; the one constant of a product stands first."""
    a, b = node.args
    if number(b) is not None and number(a) is None:
        return make("mul", b, a)
    left, right = _factor(a), _factor(b)
    if left == 0.0 or right == 0.0:
        return None
    value = number(a)
    if value == 1.0:
        return b
    if value == -1.0:
        return make("neg", b)
    if value is not None:
        if right == 1.0:
            return None
        return make("mul", _const(make, value * right), _rest(make, b))
    if left in (1.0, -1.0) and right in (1.0, -1.0):
        # signs only: one in front
        if left * right == 1.0 and left == 1.0:
            return None
        plain = make("mul", _rest(make, a), _rest(make, b))
        return plain if left * right == 1.0 else make("neg", plain)
    if left == 1.0 or right == 1.0:
        # one constant in all: it stays at the smaller side, where it costs least
        return None
    plain_a, plain_b = _rest(make, a), _rest(make, b)
    if left * right == 1.0:
        return make("mul", plain_a, plain_b)
    return make("mul", make("mul", _const(make, left * right), plain_a), plain_b)


def _zero(node: Expr, depth: int = 3) -> bool:
    """Say whether a value is 0 everywhere: 0, 0 * x, a product with such, or that in other axes."""
    while node.op in ("unsqueeze", "neg", "mul", "reshape", "transpose"):
        zero = [arg for arg in node.args if number(arg) == 0.0]
        if not zero and node.op == "mul" and depth and _zero(node.args[1], depth - 1):
            return True
        node = zero[0] if zero else node.args[0]
    if node.op in ("outer", "dot", "matvec", "matmul") and depth:
        return any(_zero(arg, depth - 1) for arg in node.args)
    return number(node) == 0.0


def _scaled(node: Expr) -> tuple[float, Expr]:
    """Split c * x."""
    if node.op == "neg":
        value, rest = _scaled_once(node.args[0])
        return -value, rest
    return _scaled_once(node)


def _scaled_once(node: Expr) -> tuple[float, Expr]:
    if node.op == "mul" and (value := number(node.args[0])) is not None:
        return value, node.args[1]
    return 1.0, node


def _add(make: Make, node: Expr) -> Expr | None:
    a, b = node.args
    if _zero(a):
        return b
    if _zero(b):
        return a
    (p, x), (q, y) = _scaled(a), _scaled(b)
    if x is y:
        return make("mul", _const(make, p + q), x) if p + q else None
    if q < 0:
        return make("sub", a, make("neg", b))
    if p < 0:
        return make("sub", b, make("neg", a))
    return None


def _sub(make: Make, node: Expr) -> Expr | None:
    a, b = node.args
    if _zero(b):
        return a
    if _zero(a):
        return make("neg", b)
    (p, x), (q, y) = _scaled(a), _scaled(b)
    if x is y:
        return make("mul", _const(make, p - q), x) if p - q else None
    if q < 0:
        return make("add", a, make("neg", b))
    if p < 0:
        return make("neg", make("add", make("neg", a), b))
    return None


def _one_product(make: Make, node: Expr) -> Expr | None:
    """(x + M a) - (y + M b) -> (x - y) + M (a - b): one product for two."""
    flip = -1 if node.op == "sub" else 1
    for p, a, x in _products(node.args[0]):
        for q, b, y in _products(node.args[1]):
            q *= flip
            same = a.args[0] is b.args[0] and sizes(a.args[1].shape) == sizes(b.args[1].shape)
            if not same or sizes(a.shape) != sizes(b.shape):
                continue
            first, second = (a.args[1], b.args[1]) if p >= q else (b.args[1], a.args[1])
            product = make("matvec", a.args[0], make("add" if p == q else "sub", first, second))
            product = make("neg", product) if p == q == -1 else product
            return product if x is y is None else make("add", _rests(make, node.op, x, y), product)
    return None


def _products(node: Expr) -> list[tuple[int, Expr, Expr | None]]:
    """List the ways to see a sum as a matrix times a vector, its sign, and the rest."""
    match node.op:
        case "matvec":
            return [(1, node, None)]
        case "add":
            a, b = node.args
            return [(1, one, rest) for one, rest in ((a, b), (b, a)) if one.op == "matvec"]
        case "sub" if node.args[1].op == "matvec":
            return [(-1, node.args[1], node.args[0])]
    return []


def _rests(make: Make, op: str, x: Expr | None, y: Expr | None) -> Expr:
    """x + y or x - y, of which one may be nothing."""
    if x is not None:
        return x if y is None else make(op, x, y)
    assert y is not None
    return make("neg", y) if op == "sub" else y


def _neg(make: Make, node: Expr) -> Expr | None:
    (x,) = node.args
    match x.op:
        case "neg":
            return x.args[0]
        case "sub":
            return make("sub", x.args[1], x.args[0])
        case "mul" | "div" if (value := number(x.args[0])) is not None:
            return make(x.op, _const(make, -value), x.args[1])
        case "unsqueeze":
            return make("unsqueeze", make("neg", x.args[0]), axes=x.attr("axes"))
    return None


def _div(make: Make, node: Expr) -> Expr | None:
    a, b = node.args
    if number(b) == 1.0:
        return a
    if a.op == "neg" and b.op == "neg":
        return make("div", a.args[0], b.args[0])
    if a.op == "neg":
        return make("neg", make("div", a.args[0], b))
    if b.op == "neg":
        return make("neg", make("div", a, b.args[0]))
    return None


def _pow(make: Make, node: Expr) -> Expr | None:
    x, power = node.args
    if number(power) == 1.0:
        return x
    if number(power) == 2.0 and x.op == "norm":
        inner, axes, keep = x.args[0], x.attr("axes"), x.has("keep") and x.attr("keep")
        if tuple(axes) == (-1,) and not keep:
            return make("dot", inner, inner)
        return make("sum", make("mul", inner, inner), axes=axes, keep=keep)
    return None


def _sqrt(make: Make, node: Expr) -> Expr | None:
    """sqrt(x * x) -> abs(x), whose slope is a sign.

    That of the root is x / sqrt(x * x), whose own slope is a difference of two equal numbers.
    """
    (x,) = node.args
    if x.op in ("mul", "pow"):
        base, other = x.args
        if other is base if x.op == "mul" else number(other) == 2.0:
            return make("abs", base)
    return None


def _where(make: Make, node: Expr) -> Expr | None:
    condition, yes, no = node.args
    if yes is no:
        return yes
    value = number(condition)
    return None if value is None else yes if value != 0.0 else no


def _unsqueeze(make: Make, node: Expr) -> Expr | None:
    (x,) = node.args
    if not node.attr("axes"):
        return x
    if x.op != "unsqueeze":
        return _in_front(make, x, tuple(node.attr("axes")))
    rank, inner = len(node.shape), len(x.shape)
    outer_places = {a % rank for a in node.attr("axes")}
    kept = [i for i in range(rank) if i not in outer_places]
    inner_places = {kept[a % inner] for a in x.attr("axes")}
    places = sorted(outer_places | inner_places)
    return make("unsqueeze", x.args[0], axes=tuple(p - rank for p in places))


def _in_front(make: Make, x: Expr, axes: tuple[int, ...]) -> Expr | None:
    """Put axes in front of a matrix's parts, so that it is still seen what it is made of.

    `self @ diag(w)` with one w for all heads: unsqueeze(diag(w)) -> diag(unsqueeze(w)).
    """
    terms = terms_of(x) or []
    # the identity takes no axes in, so a matrix of that alone would go in circles
    if any(a > -3 for a in axes) or all(term.kind == "identity" for term in terms):
        return None
    rank = len(x.shape)
    match x.op:
        case "diag" | "outer" if all(len(arg.shape) == rank - 1 for arg in x.args):
            inner = tuple(a + 1 for a in axes)
            return make(x.op, *(make("unsqueeze", arg, axes=inner) for arg in x.args))
        case "add" | "sub" | "mul" | "neg" | "transpose":
            if all(len(arg.shape) == rank or not arg.shape for arg in x.args):
                wide = (make("unsqueeze", a, axes=axes) if a.shape else a for a in x.args)
                return make(x.op, *wide)
    return None


def _reshape(make: Make, node: Expr) -> Expr | None:
    (x,) = node.args
    last, axes = node.attr("last"), node.attr("axes")
    before = x.shape[len(x.shape) - last :]
    if [a.size for a in before] == [a.size for a in axes]:
        return x
    if x.op == "reshape" and len(x.attr("axes")) == last:
        return make("reshape", x.args[0], last=x.attr("last"), axes=axes)
    if x.op == "unsqueeze" and all(a >= -last for a in x.attr("axes")):
        inner = x.args[0]
        return make("reshape", inner, last=last - len(x.attr("axes")), axes=axes)
    if x.op == "neg":
        return make("neg", make("reshape", x.args[0], last=last, axes=axes))
    return None


def _transpose(make: Make, node: Expr) -> Expr | None:
    (x,) = node.args
    match x.op:
        case "transpose":
            return x.args[0]
        case "outer":
            return make("outer", x.args[1], x.args[0])
        case "identity" | "diag":
            return x
        case "neg":
            return make("neg", make("transpose", x.args[0]))
    return None


def _permute(make: Make, node: Expr) -> Expr | None:
    order = tuple(node.attr("order"))
    if order == tuple(range(len(order))):
        return node.args[0]
    return None


def _reduce_scaled(make: Make, node: Expr) -> Expr | None:
    """sum(c * x) -> c * sum(x)."""
    value, x = _scaled(node.args[0])
    if value == 1.0:
        return None
    return make("mul", _const(make, value), make(node.op, x, **dict(node.attrs)))


def _sum(make: Make, node: Expr) -> Expr | None:
    (x,) = node.args
    axes = tuple(node.attr("axes"))
    if not axes:
        return x
    if node.has("keep") and node.attr("keep"):
        return None
    if x.op == "unsqueeze" and sorted(axes) == sorted(x.attr("axes")):
        return x.args[0]
    if axes == (-1,) and x.op == "mul":
        a, b = x.args
        if len(a.shape) and len(b.shape) and a.shape[-1].size == b.shape[-1].size:
            return make("dot", a, b)
    return None


def _signs_out(make: Make, node: Expr) -> Expr | None:
    """outer(-a, b) -> -outer(a, b)."""
    flips = sum(arg.op == "neg" for arg in node.args)
    if not flips:
        return None
    plain = make(node.op, *(a.args[0] if a.op == "neg" else a for a in node.args))
    return make("neg", plain) if flips == 1 else plain


def _matvec(make: Make, node: Expr) -> Expr | None:
    matrix, x = node.args
    match matrix.op:
        case "identity":
            return x
        case "diag":
            return make("mul", matrix.args[0], x)
        case "outer":
            left, right = matrix.args
            return make("mul", make("unsqueeze", make("dot", right, x), axes=(-1,)), left)
        case "mul":
            # a number before a matrix goes before the product, which is smaller
            for scale, inner in (matrix.args, matrix.args[::-1]):
                if scale.op == "const" and len(inner.shape) >= 2:
                    return make("mul", scale, make("matvec", inner, x))
                if scale.op == "unsqueeze" and is_scale(scale) and not is_scale(inner):
                    rest = tuple(a + 1 for a in sorted(scale.attr("axes")) if a != -1)
                    if len(rest) < len(scale.attr("axes")):
                        thin = make("unsqueeze", scale.args[0], axes=rest)
                        return make("mul", thin, make("matvec", inner, x))
    return None


def _matmul(make: Make, node: Expr) -> Expr | None:
    """X @ (a I + diag(w) + b c^T) -> a X + X diag(w) + (X b) c^T, and so on the left."""
    left, right = node.args
    right_terms = terms_of(right)
    if right_terms is not None:
        return _total(make, [_times(make, left, term) for term in right_terms])
    left_terms = terms_of(left)
    if left_terms is not None:
        flipped = make("transpose", right)
        turned = [replace(term, parts=term.turned) for term in left_terms]
        return make("transpose", _total(make, [_times(make, flipped, term) for term in turned]))
    return None


def _times(make: Make, x: Expr, term: Term) -> tuple[float, Expr]:
    """Return x @ term without the term's number, and the number."""
    match term.kind:
        case "identity":
            result = x
        case "diagonal":
            result = make("mul", x, make("unsqueeze", term.parts[0], axes=(-2,)))
        case "outer":
            result = make("outer", make("matvec", x, term.parts[0]), term.parts[1])
    for scale in reversed(term.scales):
        result = make("mul", scale, result)
    return term.number, result


def _total(make: Make, terms: list[tuple[float, Expr]]) -> Expr:
    total: Expr | None = None
    for sign, value in terms:
        scaled = value if sign == 1.0 else make("mul", _const(make, sign), value)
        total = scaled if total is None else make("add", total, scaled)
    assert total is not None
    return total


def _stop(make: Make, node: Expr) -> Expr | None:
    return node.args[0] if node.args[0].op in ("const", "stop") else None


def _table() -> Mapping[str, tuple[Rule, ...]]:
    table: dict[str, tuple[Rule, ...]] = {}
    for name, operation in OPERATIONS.items():
        if operation.kind == "elementwise":
            table[name] = (_fold, _bare_constants, _gather_axes)
    for name, rules in {
        "add": (_add, _one_product),
        "sub": (_sub, _one_product),
        "mul": (_merge_constants,),
        "neg": (_neg,),
        "div": (_div,),
        "pow": (_pow,),
        "sqrt": (_sqrt,),
        "where": (_where,),
        "unsqueeze": (_unsqueeze,),
        "reshape": (_reshape,),
        "transpose": (_transpose,),
        "permute": (_permute,),
        "sum": (_sum, _reduce_scaled),
        "mean": (_reduce_scaled,),
        "outer": (_signs_out,),
        "dot": (_signs_out,),
        "matvec": (_signs_out, _matvec),
        "matmul": (_signs_out, _matmul),
        "stop": (_stop,),
    }.items():
        table[name] = table.get(name, ()) + rules
    return table


RULES: Mapping[str, tuple[Rule, ...]] = _table()
