"""Both sides of an assignment: several values at once, shapes written on the left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape, show
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver
    from nlc.semantics.expressions import Scope
    from nlc.semantics.values import Value


def values_of(block: BlockResolver, scope: Scope, statement: tree.Assign) -> list[Value]:
    """Resolve the right side of an assignment: one value per target."""
    targets, values = statement.targets, statement.values
    if len(targets) == len(values):
        return [scope.value(v) for v in values]
    if len(values) == 1 and isinstance(values[0], tree.Call):
        call = values[0]
        name = call.function.id if isinstance(call.function, tree.Name) else ""
        if name == "eig" and len(targets) == 2:
            return list(_eig(block, scope, call))
        if name in block.context.blocks:
            return list(block.call_block(name, call, len(targets)))
    block.context.fail(
        "NL0309", f"{len(targets)} names and {len(values)} values", statement.span,
        "left and right do not pair up",
        "write as many values as names, or one call with several results",
    )  # fmt: skip


def _eig(block: BlockResolver, scope: Scope, call: tree.Call) -> list[Expr]:
    if len(call.arguments) != 1:
        block.context.fail(
            "NL0309", "`eig` takes one matrix", call.span, f"{len(call.arguments)} given",
            "Q, w = eig(A)",
        )  # fmt: skip
    matrix = scope.plain(call.arguments[0])
    scope.need_rank(matrix, 2, call.span)
    rows, columns = matrix.shape[-2:]
    if not rows.fits(columns):
        block.context.fail(
            "NL0410", "`eig` needs a square matrix", call.span,
            f"this is {show(matrix.shape[-2:])}", "a symmetric matrix, such as `A @ transpose(A)`",
        )  # fmt: skip
    vectors = scope.make("eig_vectors", matrix, span=call.span)
    return [vectors, scope.make("eig_values", matrix, span=call.span)]


def as_is(name: str, shape: Shape) -> str:
    """Hint at what a name with another shape written would be."""
    return f"write `{name}{show(shape) if shape else ''}`, as its value is"


def check_shape(
    block: BlockResolver, value: Expr, target: tree.Target, lead: Shape, code: str
) -> Shape:
    """Compare a value with the shape written on the left; give the shape of the name."""
    have = value.shape[len(lead) :] if lead else value.shape
    if target.shape is None:
        return value.shape
    want = block.context.shape(target.shape)
    if len(want) != len(have) or not all(a.fits(b) for a, b in zip(want, have, strict=True)):
        name = ".".join(target.path)
        block.context.fail(
            code, f"`{name}` does not have the declared shape",
            target.span, f"written {show(want)}", as_is(name, have),
            (value.span, f"this is {show(have)}"),
        )  # fmt: skip
    return (*value.shape[: len(lead)], *want) if lead else want
