"""What every operation does to values that read the running state: name -> row.

In: a `Follow` and a node at least one of whose arguments has a value. Out: the node's value. An
operation without a row is not linear in the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nlc.ir.expr import Expr
from nlc.passes.affine import Matrix, Vector
from nlc.passes.follow import COLUMN, ROW, THIN, Follow, Rule, Stuck, Value
from nlc.passes.shaping import drop
from nlc.passes.structure import terms_of


def _first(f: Follow, node: Expr) -> Value:
    value = f.value(node.args[0])
    assert value is not None
    return value


def _neg(f: Follow, node: Expr) -> Value:
    return f.scale(_first(f, node), f.graph.constant(-1.0))


def _sum_of(sign: float) -> Rule:
    def row(f: Follow, node: Expr) -> Value:
        a, b = (f.value(arg) for arg in node.args)
        model = a or b
        assert model is not None
        left = a or f.lift(node.args[0], model.roles, type(model.form))
        right = b or f.lift(node.args[1], model.roles, type(model.form))
        return f.add(left, f.scale(right, f.graph.constant(sign)))

    return row


def _mul(f: Follow, node: Expr) -> Value:
    value, w, _ = f.pair(node)
    return f.times(value, w)


def _div(f: Follow, node: Expr) -> Value:
    value, w, first = f.pair(node)
    if not first:
        raise Stuck("divisor")
    return f.times(value, f.register.make("div", f.register.one, w))


def _where(f: Follow, node: Expr) -> Value:
    condition, *branches = node.args
    if f.value(condition) is not None:
        raise Stuck("condition")
    values = [f.value(branch) for branch in branches]
    if condition.op == "const":
        chosen = 0 if condition.attr("value") != 0.0 else 1
        return values[chosen] or f.lift(branches[chosen], f.roles, Matrix)
    model = values[0] or values[1]
    assert model is not None
    one, zero = f.register.one, f.graph.constant(0.0)
    total: Value | None = None
    for branch, value, (yes, no) in zip(branches, values, ((one, zero), (zero, one)), strict=True):
        part = value or f.lift(branch, model.roles, type(model.form))
        part = f.times(part, f.register.make("where", condition, yes, no))
        total = part if total is None else f.add(total, part)
    assert total is not None
    return _as_in_both(total, values)


def _as_in_both(total: Value, values: list[Value | None]) -> Value:
    """Leave the gates as they are that both values of a choice have."""
    match total.form, *(value.form if value is not None else None for value in values):
        case Matrix() as whole, Matrix() as yes, Matrix() as no:
            same = {j: gates for j, gates in yes.gates.items() if no.gates.get(j) == gates}
            return replace(total, form=replace(whole, gates=whole.gates | same))
    return total


def _sum(f: Follow, node: Expr) -> Value:
    value = _first(f, node)
    keep = node.has("keep") and node.attr("keep")
    axes = tuple(sorted(node.attr("axes")))
    if axes != (-1,):
        raise Stuck("sum")
    size = node.args[0].shape[-1].size
    summed = f.contract(value, f.register.one)
    if node.op == "mean":
        summed = f.scale(summed, f.graph.constant(1.0 / size))
    return f.unsqueeze(summed, (-1,)) if keep else summed


def _dot(f: Follow, node: Expr) -> Value:
    value, w, _ = f.pair(node)
    return f.contract(value, w)


def _matvec(f: Follow, node: Expr) -> Value:
    value, w, first = f.pair(node)
    if first:
        return f.contract(value, f.register.make("unsqueeze", w, axes=(-2,)))
    terms = terms_of(w)
    if terms is None:
        raise Stuck("full matrix")
    total: Value | None = None
    for term in terms:
        match term.kind:
            case "identity":
                part = value
            case "diagonal":
                part = f.times(value, term.parts[0])
            case "outer":
                left, right = term.parts
                part = f.times(f.unsqueeze(f.contract(value, right), (-1,)), left)
        part = f.scale(part, f.graph.constant(term.number))
        for scale in term.scales:
            part = f.scale(part, drop(f.graph, scale, (-2, -1)))
        total = part if total is None else f.add(total, part)
    assert total is not None
    return total


def _matmul(f: Follow, node: Expr) -> Value:
    # products with the identity, diagonals and outer products were written out before
    f.pair(node)
    raise Stuck("full matrix")


def _outer(f: Follow, node: Expr) -> Value:
    value, w, first = f.pair(node)
    if first:
        return f.times(f.unsqueeze(value, (-1,)), f.register.make("unsqueeze", w, axes=(-2,)))
    # the value's own last axis stays last
    wide = Value(value.form, (*value.roles[:-1], THIN, *value.roles[-1:]))
    return f.times(wide, f.register.make("unsqueeze", w, axes=(-1,)))


def _transpose(f: Follow, node: Expr) -> Value:
    value = _first(f, node)
    if len(value.roles) < 2:
        raise Stuck("shape")
    return Value(value.form, (*value.roles[:-2], *value.roles[:-3:-1]))


def _permute(f: Follow, node: Expr) -> Value:
    value = _first(f, node)
    order, count = tuple(node.attr("order")), len(value.roles)
    front = len(order) - count
    if order[:front] != tuple(range(front)):
        raise Stuck("shape")
    return Value(value.form, tuple(value.roles[place - front] for place in order[front:]))


def _unsqueeze(f: Follow, node: Expr) -> Value:
    return f.unsqueeze(_first(f, node), tuple(node.attr("axes")))


def _reshape(f: Follow, node: Expr) -> Value:
    value = _first(f, node)
    last, axes = node.attr("last"), node.attr("axes")
    if last > len(value.roles):
        raise Stuck("shape")
    moved = value.roles[len(value.roles) - last :]
    real = [role for role in moved if role != THIN]
    sizes = [axis.size for axis in axes if axis.size != 1]
    own = {ROW: f.register.rows, COLUMN: f.register.columns}
    want = [axis.size for role in real if (axis := own[role]) is not None]
    if sizes != want or 1 in want:
        raise Stuck("shape")
    rest = iter(real)
    roles = tuple(THIN if axis.size == 1 else next(rest) for axis in axes)
    return Value(value.form, (*value.roles[: len(value.roles) - last], *roles))


def _stop(f: Follow, node: Expr) -> Value:
    value = _first(f, node)
    if isinstance(value.form, Matrix) and value.form.gates:
        raise Stuck("stop")
    if isinstance(value.form, Vector):
        return Value(_stopped(f, value.form), value.roles)
    total = Matrix({}, ())
    for term in value.form.terms:
        if isinstance(term.e, int):
            raise Stuck("stop")
        direction = f.register.make("stop", term.direction)
        matrix = f.register.outer(_stopped(f, term.e), direction)
        scaled = f.register.scale_matrix(matrix, f.register.make("stop", term.scale))
        total = f.register.add_matrices(total, scaled)
    return Value(total, value.roles)


def _stopped(f: Follow, e: Vector) -> Vector:
    if not e.known:
        return Vector({}, {}, f.hold(e))
    return Vector({}, {}, None if e.offset is None else f.register.make("stop", e.offset))


ROWS: Mapping[str, Rule] = {
    "let": _first,
    "neg": _neg,
    "add": _sum_of(1.0),
    "sub": _sum_of(-1.0),
    "mul": _mul,
    "div": _div,
    "where": _where,
    "sum": _sum,
    "mean": _sum,
    "dot": _dot,
    "matvec": _matvec,
    "matmul": _matmul,
    "outer": _outer,
    "transpose": _transpose,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "reshape": _reshape,
    "stop": _stop,
}
