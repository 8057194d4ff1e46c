"""What a write reads of the state before its chunk, where its other terms ask that state the same.

In: the normal form of a part. Out: for each write that reads it with `c x`, the product `M_start x`
that stands in what is added. Where a chunk begins, the running state is the one before the chunk,
so that c times this product is what the write reads of it. Emitter and cost both ask here.
"""

from __future__ import annotations

from nlc.ir.expr import Expr, postorder
from nlc.ir.normal_form import Affine


def met_at_start(form: Affine) -> dict[int, Expr]:
    """Find the products, by the number of the write."""
    found: dict[int, Expr] = {}
    if len(form.states) > 1 or len(form.writes) > 1 or form.transposed:
        return found
    (_, part), offsets = form.states[0], [w.offset for w in form.writes if w.offset is not None]
    products = {
        node.args[1]: node
        for node in postorder(offsets)
        if node.op == "matvec" and _is_start(node.args[0], part)
    }
    for r, write in enumerate(form.writes):
        asked = write.reads[0]
        if asked is not None and not write.earlier:
            _, _, rest = factors(asked)
            if len(rest) == 1 and rest[0] in products:
                found[r] = products[rest[0]]
    return found


def _is_start(matrix: Expr, part: str) -> bool:
    own = matrix.op == "state" and matrix.attr("when") == "start"
    return own and matrix.attr("var") == "" and matrix.attr("part") == part


def factors(expr: Expr) -> tuple[float, list[Expr], list[Expr]]:
    """Split a product into its number, its factors of one number a copy, and all others."""
    match expr.op:
        case "neg":
            sign, numbers, rest = factors(expr.args[0])
            return -sign, numbers, rest
        case "mul":
            left, right = (factors(arg) for arg in expr.args)
            return left[0] * right[0], left[1] + right[1], left[2] + right[2]
        case "const":
            return float(expr.attr("value")), [], []
        case "let":
            return factors(expr.args[0])
        case "unsqueeze" if tuple(expr.attr("axes")) == (-1,):
            return 1.0, [expr.args[0]], []
        case _:
            return 1.0, [], [expr]
