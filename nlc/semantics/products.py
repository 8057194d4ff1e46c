"""Products: `A @ B`, where a number added to a matrix means that multiple of the identity.

In: a scope and a product's tree. Out: its value; maps with parts are multiplied part by part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape, show
from nlc.semantics.axes import broadcast_front, embeddings, split
from nlc.semantics.maps import makes_value, reads_key
from nlc.semantics.values import Struct, Value, each
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.expressions import Scope

ELEMENTWISE = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow"}


def product(scope: Scope, expr: tree.Binary) -> Value:
    """`A @ B`: a number added to a matrix in an operand means that multiple of the identity."""
    a_number, a = operand(scope, expr.left)
    b_number, b = operand(scope, expr.right)
    terms: list[Value] = []
    span = expr.span

    def times(number: Expr | None, value: Value | None, at: Span) -> None:
        if number is not None and value is not None:
            terms.append(scope.combine("mul", span, [(number, at), (value, at)]))

    if a is not None and b is not None:
        terms.append(_multiply(scope, a, b, expr, a_number, b_number))
        if not (isinstance(a, Struct) or isinstance(b, Struct)):
            times(a_number, b, expr.right.span)
            times(b_number, a, expr.left.span)
    elif isinstance(a, Struct) or isinstance(b, Struct) or a is None or b is None:
        times(a_number, b, expr.right.span)
        times(b_number, a, expr.left.span)
    if a_number is not None and b_number is not None:
        if a is not None or b is not None:
            # the identity times both numbers has a matrix's shape
            matrix = a if isinstance(a, Expr) else b
            assert isinstance(matrix, Expr)
            both = scope.combine("mul", span, [(a_number, span), (b_number, span)])
            terms.append(_identity(scope, matrix, both, span))
        else:
            terms.append(scope.combine("mul", span, [(a_number, span), (b_number, span)]))
    total = terms[0]
    for term in terms[1:]:
        total = scope.combine("add", span, [(total, span), (term, span)])
    return total


def _identity(scope: Scope, matrix: Expr, number: Value, span: Span) -> Value:
    _square(scope, matrix, span)
    eye = scope.make("identity", axis=matrix.shape[-1], span=span)
    return scope.combine("mul", span, [(number, span), (eye, span)])


def _square(scope: Scope, matrix: Expr, span: Span) -> None:
    rows, columns = matrix.shape[-2:]
    if not rows.fits(columns):
        scope.context.fail(
            "NL0410", "a number is added to a matrix that is not square", span,
            f"this is {show(matrix.shape[-2:])}",
            "in an operand of `@` a number means that multiple of the identity",
        )  # fmt: skip


def operand(scope: Scope, expr: tree.Expr) -> tuple[Expr | None, Value | None]:
    """Resolve an operand of `@`: (the multiple of the identity, the rest)."""
    match expr:
        case tree.Unary(operator="-", operand=inner):
            number, rest = operand(scope, inner)
            return (
                None if number is None else scope.make("neg", number, span=expr.span),
                None if rest is None
                else each(scope.context, [rest], lambda v: scope.make("neg", *v, span=expr.span),
                          expr.span),
            )  # fmt: skip
        case tree.Binary(operator="+" | "-" as op, left=left, right=right):
            return _operand_sum(scope, expr, op, left, right)
        case tree.Binary(operator="*" | "/" as op, left=left, right=right):
            parts = [operand(scope, left), operand(scope, right)]
            (ln, lm), (rn, rm) = parts
            if lm is None and rm is None:
                assert ln is not None and rn is not None
                value = scope.combine(ELEMENTWISE[op], expr.span,
                                     [(ln, left.span), (rn, right.span)])  # fmt: skip
                assert isinstance(value, Expr)
                return value, None
            if op == "*" and lm is None and ln is not None and rn is not None:
                return _scaled(scope, op, ln, rn, rm, left.span, right.span, expr.span)
            if rm is None and rn is not None and ln is not None:
                return _scaled(scope, op, rn, ln, lm, right.span, left.span, expr.span)
    value = scope.value(expr)
    if isinstance(value, Expr) and scope.body_rank(value) == 0:
        return value, None
    return None, value


def _scaled(
    scope: Scope, op: str, scale: Expr, number: Expr, rest: Value | None, at: Span, rest_at: Span,
    span: Span,
) -> tuple[Expr | None, Value | None]:  # fmt: skip
    def scaled(value: Value) -> Value:
        pair = [(value, rest_at), (scale, at)]
        return scope.combine(ELEMENTWISE[op], span, pair)

    new = scaled(number)
    assert isinstance(new, Expr)
    return new, None if rest is None else scaled(rest)


def _operand_sum(
    scope: Scope, expr: tree.Binary, op: str, left: tree.Expr, right: tree.Expr
) -> tuple[Expr | None, Value | None]:
    ln, lm = operand(scope, left)
    rn, rm = operand(scope, right)
    word = ELEMENTWISE[op]

    def join(a: Value | None, b: Value | None) -> Value | None:
        if a is None or b is None:
            if b is None or op == "+":
                return a if b is None else b
            return each(scope.context, [b], lambda v: scope.make("neg", *v, span=right.span),
                        right.span)  # fmt: skip
        return scope.combine(word, expr.span, [(a, left.span), (b, right.span)])

    rest = join(lm, rm)
    for value, at in ((lm, left.span), (rm, right.span)):
        if isinstance(value, Expr) and (ln is not None or rn is not None):
            if scope.body_rank(value) == 1:
                # a number added to a vector is an ordinary sum
                whole = scope.value(expr)
                return None, whole
            _square(scope, value, at)
    number = join(ln, rn)
    assert number is None or isinstance(number, Expr)
    return number, rest


def _multiply(
    scope: Scope,
    a: Value,
    b: Value,
    expr: tree.Binary,
    a_number: Expr | None,
    b_number: Expr | None,
) -> Value:
    span = expr.span
    zero = scope.context.number(0.0, span)
    if isinstance(a, Struct) and isinstance(b, Struct):
        scope.context.fail(
            "NL0409", "two maps with parts have no product", span, "both sides have parts",
            "multiply their parts: `scope.layer1 @ grad.layer1`",
        )  # fmt: skip
    if isinstance(a, Struct) or isinstance(b, Struct):
        struct, matrix, at = (a, b, expr.right) if isinstance(a, Struct) else (b, a, expr.left)
        assert isinstance(struct, Struct) and isinstance(matrix, Expr)
        if scope.body_rank(matrix) < 2:
            scope.context.fail(
                "NL0409", "a map with parts is applied, not multiplied", at.span,
                "a vector", "write `self(x)`",
            )  # fmt: skip
        right = isinstance(a, Struct)
        number = b_number if right else a_number
        acts = reads_key if right else makes_value
        parts: list[tuple[str, Expr]] = []
        for name, part in struct.parts:
            scaled = scope.combine("mul", span, [(number or zero, at.span), (part, span)])
            assert isinstance(scaled, Expr)
            if acts(struct.map, name):
                turned = (
                    matrices(scope, part, matrix, expr) if right
                    else matrices(scope, matrix, part, expr)
                )  # fmt: skip
                if number is not None:
                    total = scope.combine("add", span, [(turned, span), (scaled, span)])
                    assert isinstance(total, Expr)
                    scaled = total
                else:
                    scaled = turned
            parts.append((name, scaled))
        return Struct(struct.map, tuple(parts))
    return matrices(scope, a, b, expr)


def matrices(scope: Scope, a: Expr, b: Expr, expr: tree.Binary) -> Expr:
    """Multiply two tensors: matrix @ matrix, matrix @ vector, vector @ matrix."""
    spans = [expr.left.span, expr.right.span]
    ra, rb = scope.body_rank(a), scope.body_rank(b)
    if ra == 1 and rb >= 2:
        # a row from the left: x^T A = A^T x
        turned = scope.make("transpose", b, span=spans[1])
        return _contract(scope, "matvec", turned, a, [2, 1], [spans[1], spans[0]], expr)
    scope.need_rank(a, 2, spans[0])
    scope.need_rank(b, 1, spans[1])
    inner = a.shape[-1]
    as_matrix = rb >= 2 and inner.fits(b.shape[-2])
    if as_matrix and _fronts(scope, a.shape[:-2], b.shape[:-2]):
        return _contract(scope, "matmul", a, b, [2, 2], spans, expr)
    if inner.fits(b.shape[-1]):
        return _contract(scope, "matvec", a, b, [2, 1], spans, expr)
    seen = b.shape[split(b.shape, scope.lead) :]
    scope.context.fail(
        "NL0404", "the sides of `@` do not fit", spans[1], f"this is {show(seen)}",
        f"the right side needs the axis {inner.name}",
        (spans[0], f"this is {show(a.shape[split(a.shape, scope.lead):])}"),
    )  # fmt: skip


def _fronts(scope: Scope, a: Shape, b: Shape) -> bool:
    x, y = a[split(a, scope.lead) :], b[split(b, scope.lead) :]
    small, big = (x, y) if len(x) <= len(y) else (y, x)
    return len(embeddings(small, big)) == 1


def _contract(
    scope: Scope, op: str, a: Expr, b: Expr, lasts: list[int], spans: list[Span], expr: tree.Binary
) -> Expr:
    left, right = broadcast_front(scope.context, [a, b], spans, lasts, scope.lead, "`@`")
    return scope.make(op, left, right, span=expr.span)
