"""Find the algebra of an update: its normal form, or the term that keeps it from having one.

In: a memory whose update is over the states before the token. Out: per part of its map the
`NormalForm` of that part together with the extra states of its shape. Nothing is looked up by
name: an update written out and the same through a rule give the same form.

Values that read the running state are followed through the expressions as `Vector` or `Matrix` of
`affine`, with a role for each of their last axes: `row` and `column` of the state's matrix, `one`
for an axis of size 1. All else is a coefficient. Streams, states of the chunk's start and states
of other memories are coefficients: `plan` sees to it that they are there. Where an update acts on
the value's side it is tried once more for the transposed state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.normal_form import Affine, Gate, Neither, NormalForm
from nlc.ir.system import Memory
from nlc.passes.affine import Matrix, Register, Vector
from nlc.passes.explicit import explicit_memory
from nlc.passes.obstacles import Obstacle, obstacle
from nlc.passes.shaping import drop, size_at
from nlc.passes.structure import terms_of

Role = str
ROW, COLUMN, THIN = "row", "column", "one"


@dataclass(frozen=True)
class Value:
    """A value that reads the running state; `roles` are of its last axes."""

    form: Vector | Matrix
    roles: tuple[Role, ...]


def normalise(graph: Graph, memory: Memory) -> tuple[tuple[str, NormalForm], ...]:
    """Return the normal form of each part of a memory's map.

    The delta rule `self - beta * grad` has one write, e = M (-beta k) + beta v along k.
    """
    memory = explicit_memory(graph, memory)
    update = {(assignment.var, assignment.part): assignment.value for assignment in memory.update}
    return tuple((part.name, _part(graph, memory, part.name, update)) for part in memory.map.parts)


Update = Mapping[tuple[str, str], Expr]


def _part(graph: Graph, memory: Memory, part: str, update: Update) -> NormalForm:
    own = next(p for p in memory.map.parts if p.name == part)
    states = [
        (variable.name, p.name)
        for variable in memory.variables
        for p in variable.parts
        if p.name == part and [a.size for a in p.shape] == [a.size for a in own.shape]
    ]
    states.sort(key=lambda state: state[0] != "")
    if len(own.shape) > 2:
        return Neither(f"a state with {len(own.shape)} axes is no matrix", hint=_MATRIX)
    form = _follow(graph, memory, states, update, turned=False)
    if isinstance(form, Neither) and len(own.shape) == 2:
        other = _follow(graph, memory, states, update, turned=True)
        if isinstance(other, Affine) or form.reason == obstacle("side").reason != other.reason:
            return other
        if form.reason == other.reason == obstacle("side").reason:
            return _neither(obstacle("both sides"), form.term)
    return form


_MATRIX = "split it into matrices, each a memory of its own"


def _neither(found: Obstacle, term: Expr | None) -> Neither:
    return Neither(found.reason, term, found.hint, None if term is None else term.span)


class _Stuck(Exception):
    """Carries the obstacle out of the rows of the table."""

    def __init__(self, kind: str, **words: object):
        self.obstacle = obstacle(kind, **words)
        super().__init__(self.obstacle.reason)


def _follow(
    graph: Graph, memory: Memory, states: list[tuple[str, str]], update: Update, turned: bool
) -> NormalForm:
    own = next(p for p in memory.map.parts if p.name == states[0][1])
    shape = own.shape[::-1] if turned else own.shape
    rows = shape[-2] if len(shape) == 2 else None
    columns = shape[-1] if shape else None
    register = Register(graph, rows, columns)
    follow = _Follow(register, memory, states, len(memory.lead), turned)
    roots = [update[state] for state in states if state in update]
    try:
        for node in postorder(roots):
            follow.visit(node)
        matrices = [
            follow.matrix_of(update.get(state), number) for number, state in enumerate(states)
        ]
    except _Stuck as stuck:
        return _neither(stuck.obstacle, follow.at)
    writes, gates = register.finish(matrices)
    decay = tuple(
        tuple(
            Gate(found[i][0], found[i][1]) if i in found else None  # type: ignore[arg-type]
            for found in gates
        )
        for i in range(len(states))
    )
    return Affine(tuple(states), decay, writes, transposed=turned)


class _Follow:
    """The values of the nodes that read the running state; all others are coefficients."""

    def __init__(
        self,
        register: Register,
        memory: Memory,
        states: list[tuple[str, str]],
        lead: int,
        turned: bool,
    ):
        self.register = register
        self.graph = register.graph
        self.memory = memory
        self.states = states
        self.lead = lead
        self.roles: tuple[Role, ...] = ()
        if register.columns is not None:
            self.roles = (COLUMN,) if register.rows is None else (ROW, COLUMN)
            if register.rows is not None and register.rows.size == 1:
                # an axis of one row comes and goes with `linear(d -> 1)`
                self.roles = (THIN, COLUMN)
        if turned:
            self.roles = self.roles[::-1]
        self.values: dict[int, Value] = {}
        self.at: Expr | None = None

    def visit(self, node: Expr) -> None:
        """Give a node its value, unless it is free of running states."""
        self.at = node
        if node.op == "state":
            self._state(node)
        elif any(id(arg) in self.values for arg in node.args):
            row = ROWS.get(node.op)
            if row is None:
                raise _Stuck("operation", op=node.op)
            self.values[id(node)] = row(self, node)

    def _state(self, node: Expr) -> None:
        if node.attr("memory") != self.memory.name or node.attr("when") != "prev":
            return
        state = (node.attr("var"), node.attr("part"))
        if state not in self.states:
            name = ".".join(word for word in state if word) or "the state"
            raise _Stuck("other state", name=name)
        matrix = Matrix({self.states.index(state): (self.register.one, None)}, ())
        self.values[id(node)] = Value(matrix, self.roles)

    def matrix_of(self, node: Expr | None, number: int) -> Matrix:
        """Return the new value of a state; one that is not assigned keeps its value."""
        if node is None:
            return Matrix({number: (self.register.one, None)}, ())
        self.at = node
        value = self.value(node)
        if value is None:
            value = self.lift(node, self.roles, Matrix)
        if not isinstance(value.form, Matrix) or value.roles != self.roles:
            raise _Stuck("shape")
        return value.form

    def value(self, node: Expr) -> Value | None:
        """Return a node's value, or None for a coefficient."""
        return self.values.get(id(node))

    # ---- coefficients ----------------------------------------------------------------------

    def places(self, w: Expr, roles: tuple[Role, ...]) -> list[int]:
        """Return the places, among the last axes, along which a coefficient varies."""
        count = len(roles)
        further = w.shape[: max(len(w.shape) - count - self.lead, 0)]
        if any(axis.size != 1 for axis in further):
            raise _Stuck("shape")
        return [place for place in range(-count, 0) if size_at(w.shape, place) != 1]

    def only(self, w: Expr, roles: tuple[Role, ...], keep: int | None) -> Expr:
        """Drop all last axes of a coefficient but one."""
        return drop(self.graph, w, tuple(p for p in range(-len(roles), 0) if p != keep))

    def lift(self, w: Expr, roles: tuple[Role, ...], kind: type) -> Value:
        """Turn a coefficient into a value of the given kind, to be added to one."""
        register = self.register
        varies = self.places(w, roles)
        if any(roles[place] == THIN for place in varies):
            raise _Stuck("shape")
        if kind is Vector:
            row = next((p - len(roles) for p, role in enumerate(roles) if role == ROW), None)
            offset = self.only(w, roles, row)
            if row is None and register.rows is not None:
                offset = register.make("unsqueeze", offset, axes=(-1,))
            return Value(Vector({}, {}, register.full(offset, register.rows)), roles)
        row = next((p - len(roles) for p, role in enumerate(roles) if role == ROW), None)
        column = next((p - len(roles) for p, role in enumerate(roles) if role == COLUMN), None)
        if w.op == "const" and w.attr("value") == 0.0:
            return Value(Matrix({}, ()), roles)
        split = w.op == "outer" and len(roles) == 2 and column is not None
        if (row is None or row not in varies) and not split:
            ones = Vector({}, {}, register.full(register.one, register.rows))
            return Value(register.outer(ones, self.only(w, roles, column)), roles)
        if (column is None or column not in varies) and not split:
            along = Vector({}, {}, self.only(w, roles, row))
            return Value(register.outer(along, register.one), roles)
        return Value(self._outers(w, upright=column == -1), roles)

    def _outers(self, w: Expr, upright: bool) -> Matrix:
        """Split a matrix that is added into outer products."""
        register = self.register
        stopped = w.op == "stop"
        terms = terms_of(w.args[0] if stopped else w)
        if terms is None or any(term.kind != "outer" for term in terms):
            raise _Stuck("matrix added")
        total = Matrix({}, ())
        for term in terms:
            left, right = term.parts if upright else term.turned
            scales = term.scales
            if stopped:
                left, right = register.make("stop", left), register.make("stop", right)
                scales = tuple(register.make("stop", scale) for scale in scales)
            e = Vector({}, {}, register.full(left, register.rows))
            matrix = register.scale_matrix(
                register.outer(e, right), self.graph.constant(term.number)
            )
            for scale in scales:
                matrix = register.scale_matrix(matrix, drop(self.graph, scale, (-2, -1)))
            total = register.add_matrices(total, matrix)
        return total

    # ---- operations ------------------------------------------------------------------------

    def add(self, a: Value, b: Value) -> Value:
        """A + b, axis by axis of the same role."""
        if a.roles != b.roles:
            raise _Stuck("side" if sorted(a.roles) == sorted(b.roles) else "shape")
        if isinstance(a.form, Matrix) and isinstance(b.form, Matrix):
            return Value(self.register.add_matrices(a.form, b.form), a.roles)
        if isinstance(a.form, Vector) and isinstance(b.form, Vector):
            return Value(self.register.add_vectors(a.form, b.form), a.roles)
        raise _Stuck("shape")

    def scale(self, a: Value, scale: Expr) -> Value:
        """Multiply by one number per copy."""
        if isinstance(a.form, Matrix):
            return Value(self.register.scale_matrix(a.form, scale), a.roles)
        return Value(self.register.scale_vector(a.form, scale), a.roles)

    def times(self, a: Value, w: Expr) -> Value:
        """Multiply entry by entry with a coefficient."""
        varies = self.places(w, a.roles)
        if not varies:
            return self.scale(a, self.only(w, a.roles, None))
        if len(varies) > 1:
            raise _Stuck("hadamard")
        (place,) = varies
        role, part = a.roles[place], self.only(w, a.roles, place)
        if role == COLUMN and isinstance(a.form, Matrix):
            return Value(self.register.scale_columns(a.form, part), a.roles)
        if role == ROW:
            return Value(self._rows(a.form, part), a.roles)
        columns = self.register.columns
        if isinstance(a.form, Vector) and columns and size_at(w.shape, place) == columns.size:
            count = len(a.roles)
            roles = tuple(COLUMN if p - count == place else r for p, r in enumerate(a.roles))
            return Value(self.register.outer(a.form, part), roles)
        raise _Stuck("shape")

    def _rows(self, form: Vector | Matrix, w: Expr) -> Vector | Matrix:
        """Scale the value's channels: possible where nothing is read."""
        if isinstance(form, Vector):
            if not form.known:
                raise _Stuck("side")
            offset = None if form.offset is None else self.register.make("mul", w, form.offset)
            return Vector({}, {}, offset)
        if form.gates:
            raise _Stuck("side")
        total = Matrix({}, ())
        for term in form.terms:
            if isinstance(term.e, int):
                raise _Stuck("side")
            e = self._rows(term.e, w)
            assert isinstance(e, Vector)
            scaled = self.register.scale_matrix(self.register.outer(e, term.direction), term.scale)
            total = self.register.add_matrices(total, scaled)
        return total

    def contract(self, a: Value, w: Expr) -> Value:
        """Sum over the last axis of a * w; `w` has the same last axes, or fewer."""
        role, rest = a.roles[-1], a.roles[:-1]
        if role == THIN:
            return self.squeeze(self.times(a, w))
        if [p for p in self.places(w, a.roles) if p != -1]:
            raise _Stuck("shape")
        if role == ROW or not isinstance(a.form, Matrix):
            raise _Stuck("side")
        return Value(self.register.apply(a.form, self.only(w, a.roles, -1)), rest)

    def squeeze(self, a: Value) -> Value:
        """Drop the last axis where it has size 1."""
        if a.roles[-1] != THIN:
            raise _Stuck("side")
        return Value(a.form, a.roles[:-1])

    def unsqueeze(self, a: Value, axes: tuple[int, ...]) -> Value:
        """Put in axes of size 1."""
        rank = len(a.roles) + len(axes)
        if any(-axis > rank for axis in axes):
            raise _Stuck("shape")
        rest = iter(a.roles)
        roles = tuple(THIN if place in axes else next(rest) for place in range(-rank, 0))
        return Value(a.form, roles)

    def pair(self, node: Expr) -> tuple[Value, Expr, bool]:
        """Split the arguments into the value and the coefficient; the last says value first."""
        left, right = (self.value(arg) for arg in node.args)
        if left is not None and right is not None:
            raise _Stuck("product")
        if left is not None:
            return left, node.args[1], True
        assert right is not None
        return right, node.args[0], False


Rule = Callable[[_Follow, Expr], Value]


def _first(f: _Follow, node: Expr) -> Value:
    value = f.value(node.args[0])
    assert value is not None
    return value


def _neg(f: _Follow, node: Expr) -> Value:
    return f.scale(_first(f, node), f.graph.constant(-1.0))


def _sum_of(sign: float) -> Rule:
    def row(f: _Follow, node: Expr) -> Value:
        a, b = (f.value(arg) for arg in node.args)
        model = a or b
        assert model is not None
        left = a or f.lift(node.args[0], model.roles, type(model.form))
        right = b or f.lift(node.args[1], model.roles, type(model.form))
        return f.add(left, f.scale(right, f.graph.constant(sign)))

    return row


def _mul(f: _Follow, node: Expr) -> Value:
    value, w, _ = f.pair(node)
    return f.times(value, w)


def _div(f: _Follow, node: Expr) -> Value:
    value, w, first = f.pair(node)
    if not first:
        raise _Stuck("divisor")
    return f.times(value, f.register.make("div", f.register.one, w))


def _where(f: _Follow, node: Expr) -> Value:
    condition, *branches = node.args
    if f.value(condition) is not None:
        raise _Stuck("condition")
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
    return total


def _sum(f: _Follow, node: Expr) -> Value:
    value = _first(f, node)
    keep = node.has("keep") and node.attr("keep")
    axes = tuple(sorted(node.attr("axes")))
    if axes != (-1,):
        raise _Stuck("sum")
    size = node.args[0].shape[-1].size
    summed = f.contract(value, f.register.one)
    if node.op == "mean":
        summed = f.scale(summed, f.graph.constant(1.0 / size))
    return f.unsqueeze(summed, (-1,)) if keep else summed


def _dot(f: _Follow, node: Expr) -> Value:
    value, w, _ = f.pair(node)
    return f.contract(value, w)


def _matvec(f: _Follow, node: Expr) -> Value:
    value, w, first = f.pair(node)
    if first:
        return f.contract(value, f.register.make("unsqueeze", w, axes=(-2,)))
    terms = terms_of(w)
    if terms is None:
        raise _Stuck("full matrix")
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


def _matmul(f: _Follow, node: Expr) -> Value:
    # products with the identity, diagonals and outer products were written out before
    f.pair(node)
    raise _Stuck("full matrix")


def _outer(f: _Follow, node: Expr) -> Value:
    value, w, first = f.pair(node)
    if first:
        return f.times(f.unsqueeze(value, (-1,)), f.register.make("unsqueeze", w, axes=(-2,)))
    # the value's own last axis stays last
    wide = Value(value.form, (*value.roles[:-1], THIN, *value.roles[-1:]))
    return f.times(wide, f.register.make("unsqueeze", w, axes=(-1,)))


def _transpose(f: _Follow, node: Expr) -> Value:
    value = _first(f, node)
    if len(value.roles) < 2:
        raise _Stuck("shape")
    return Value(value.form, (*value.roles[:-2], *value.roles[:-3:-1]))


def _permute(f: _Follow, node: Expr) -> Value:
    value = _first(f, node)
    order, count = tuple(node.attr("order")), len(value.roles)
    front = len(order) - count
    if order[:front] != tuple(range(front)):
        raise _Stuck("shape")
    return Value(value.form, tuple(value.roles[place - front] for place in order[front:]))


def _unsqueeze(f: _Follow, node: Expr) -> Value:
    return f.unsqueeze(_first(f, node), tuple(node.attr("axes")))


def _reshape(f: _Follow, node: Expr) -> Value:
    value = _first(f, node)
    last, axes = node.attr("last"), node.attr("axes")
    if last > len(value.roles):
        raise _Stuck("shape")
    moved = value.roles[len(value.roles) - last :]
    real = [role for role in moved if role != THIN]
    sizes = [axis.size for axis in axes if axis.size != 1]
    own = {ROW: f.register.rows, COLUMN: f.register.columns}
    want = [axis.size for role in real if (axis := own[role]) is not None]
    if sizes != want or 1 in want:
        raise _Stuck("shape")
    rest = iter(real)
    roles = tuple(THIN if axis.size == 1 else next(rest) for axis in axes)
    return Value(value.form, (*value.roles[: len(value.roles) - last], *roles))


def _stop(f: _Follow, node: Expr) -> Value:
    value = _first(f, node)
    raise_if = value.form.gates if isinstance(value.form, Matrix) else not value.form.known
    if raise_if:
        raise _Stuck("stop")
    if isinstance(value.form, Vector):
        return Value(_stopped(f, value.form), value.roles)
    total = Matrix({}, ())
    for term in value.form.terms:
        if isinstance(term.e, int) or not term.e.known:
            raise _Stuck("stop")
        direction = f.register.make("stop", term.direction)
        matrix = f.register.outer(_stopped(f, term.e), direction)
        scaled = f.register.scale_matrix(matrix, f.register.make("stop", term.scale))
        total = f.register.add_matrices(total, scaled)
    return Value(total, value.roles)


def _stopped(f: _Follow, e: Vector) -> Vector:
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
