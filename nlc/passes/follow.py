"""Values that read the running state, with a role for each of their last axes.

In: the nodes of an update, arguments before users. Out: for each that depends on a state before
the token its `Value`; all others are coefficients. What each operation does stands in
`follow_rows`. Raises `Stuck` at a term that has no place in the algebra of `affine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nlc.ir.expr import Expr
from nlc.ir.system import Memory
from nlc.passes.affine import Matrix, Register, Vector
from nlc.passes.obstacles import obstacle
from nlc.passes.shaping import drop, size_at
from nlc.passes.structure import is_scale, split_scale, terms_of

Role = str
ROW, COLUMN, THIN = "row", "column", "one"


@dataclass(frozen=True)
class Value:
    """A value that reads the running state; `roles` are of its last axes."""

    form: Vector | Matrix
    roles: tuple[Role, ...]


Rule = Callable[["Follow", Expr], Value]

# operations that are no row of the table and have words of their own
KINDS = {
    "newton_schulz": "orthogonal",
    "window": "window",
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), "condition"),
}


class Stuck(Exception):
    """Carries the obstacle out of the rows of the table."""

    def __init__(self, kind: str, **words: object):
        self.kind = kind
        self.obstacle = obstacle(kind, **words)
        super().__init__(self.obstacle.reason)


class Follow:
    """The values of the nodes that read the running state; all others are coefficients."""

    def __init__(
        self,
        register: Register,
        memory: Memory,
        states: list[tuple[str, str]],
        lead: int,
        turned: bool,
        rows: Mapping[str, Rule],
    ):
        self.rows = rows
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
        self.held: dict[tuple[object, ...], tuple[Expr, Vector]] = {}
        self.at: Expr | None = None

    def visit(self, node: Expr) -> None:
        """Give a node its value, unless it is free of running states."""
        self.at = node
        if node.op == "state":
            self._state(node)
        elif node.op == "window" and self.memory.window == 1:
            # it is kept from token to token, whatever it is the sum of
            raise Stuck("updates", count=node.attr("period")[1])
        elif any(id(arg) in self.values for arg in node.args):
            row = self.rows.get(node.op)
            if row is None:
                raise Stuck(KINDS.get(node.op, "operation"), op=node.op)
            self.values[id(node)] = row(self, node)

    def _state(self, node: Expr) -> None:
        if node.attr("memory") != self.memory.name or node.attr("when") != "prev":
            return
        state = (node.attr("var"), node.attr("part"))
        if state not in self.states:
            if not state[0]:
                raise Stuck("other part", name=state[1].removesuffix(".weight"))
            raise Stuck("other state", name=state[0])
        matrix = Matrix({self.states.index(state): (self.register.one, None)}, ())
        self.values[id(node)] = Value(matrix, self.roles)

    def hold(self, e: Vector) -> Expr:
        """Return the stream that stands for a vector whose value is a constant to gradients."""
        if e.earlier:
            raise Stuck("stop")
        if e.key not in self.held:
            rows = self.register.rows
            shape = (*self.memory.lead, *(() if rows is None else (rows,)))
            name = f"{self.memory.name}.held{len(self.held) + 1}"
            self.held[e.key] = (self.graph.make("stream", name=name, shape=shape), e)
        return self.held[e.key][0]

    def matrix_of(self, node: Expr | None, number: int) -> Matrix:
        """Return the new value of a state; one that is not assigned keeps its value."""
        if node is None:
            return Matrix({number: (self.register.one, None)}, ())
        self.at = node
        value = self.value(node)
        if value is None:
            value = self.lift(node, self.roles, Matrix)
        if not isinstance(value.form, Matrix) or value.roles != self.roles:
            raise Stuck("shape")
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
            raise Stuck("shape")
        return [place for place in range(-count, 0) if size_at(w.shape, place) != 1]

    def only(self, w: Expr, roles: tuple[Role, ...], keep: int | None) -> Expr:
        """Drop all last axes of a coefficient but one."""
        return drop(self.graph, w, tuple(p for p in range(-len(roles), 0) if p != keep))

    def lift(self, w: Expr, roles: tuple[Role, ...], kind: type) -> Value:
        """Turn a coefficient into a value of the given kind, to be added to one."""
        register = self.register
        varies = self.places(w, roles)
        if any(roles[place] == THIN for place in varies):
            raise Stuck("shape")
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
        split = len(roles) == 2 and column is not None and _is_outer(w)
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
        if w.op == "div" and is_scale(w.args[1]):
            number = register.make("div", register.one, drop(self.graph, w.args[1], (-2, -1)))
            return register.scale_matrix(self._outers(w.args[0], upright), number)
        if terms_of(w) is None:
            match w.op:
                case "let":
                    return self._outers(w.args[0], upright)
                case "transpose":
                    return self._outers(w.args[0], not upright)
                case "neg":
                    inner = self._outers(w.args[0], upright)
                    return register.scale_matrix(inner, self.graph.constant(-1.0))
                case "add" | "sub":
                    first, second = (self._outers(arg, upright) for arg in w.args)
                    sign = self.graph.constant(1.0 if w.op == "add" else -1.0)
                    return register.add_matrices(first, register.scale_matrix(second, sign))
                case "mul":
                    split = split_scale(w)
                    if split is not None:
                        scale, added = split
                        number = self.graph.constant(scale) if isinstance(scale, float) else scale
                        number = drop(self.graph, number, (-2, -1))
                        return register.scale_matrix(self._outers(added, upright), number)
                    for channels, whole in (w.args, w.args[::-1]):
                        if _along_one(channels):
                            return self._channels(whole, channels, upright)
        stopped = w.op == "stop"
        terms = terms_of(w.args[0] if stopped else w)
        if terms is None or any(term.kind != "outer" for term in terms):
            raise Stuck("matrix added")
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

    def _channels(self, w: Expr, channels: Expr, upright: bool) -> Matrix:
        """Split a matrix times a number for each of its rows or columns."""
        matrix = self._outers(w, upright)
        place = -1 if size_at(channels.shape, -1) > 1 else -2
        part = drop(self.graph, channels, (-3 - place,))
        if (place == -1) == upright:
            return self.register.scale_columns(matrix, part)
        scaled = self._rows(matrix, part)
        assert isinstance(scaled, Matrix)
        return scaled

    # ---- operations ------------------------------------------------------------------------

    def add(self, a: Value, b: Value) -> Value:
        """A + b, axis by axis of the same role."""
        if a.roles != b.roles:
            raise Stuck("side" if sorted(a.roles) == sorted(b.roles) else "shape")
        if isinstance(a.form, Matrix) and isinstance(b.form, Matrix):
            return Value(self.register.add_matrices(a.form, b.form), a.roles)
        if isinstance(a.form, Vector) and isinstance(b.form, Vector):
            return Value(self.register.add_vectors(a.form, b.form), a.roles)
        raise Stuck("shape")

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
            raise Stuck("hadamard")
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
        raise Stuck("shape")

    def _rows(self, form: Vector | Matrix, w: Expr) -> Vector | Matrix:
        """Scale the value's channels: possible where nothing is read."""
        if isinstance(form, Vector):
            if not form.known:
                raise Stuck("side")
            offset = None if form.offset is None else self.register.make("mul", w, form.offset)
            return Vector({}, {}, offset)
        if form.gates:
            raise Stuck("side")
        total = Matrix({}, ())
        for term in form.terms:
            if isinstance(term.e, int):
                raise Stuck("side")
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
            raise Stuck("shape")
        if role == ROW or not isinstance(a.form, Matrix):
            raise Stuck("side" if isinstance(a.form, Matrix) else "reduced")
        return Value(self.register.apply(a.form, self.only(w, a.roles, -1)), rest)

    def squeeze(self, a: Value) -> Value:
        """Drop the last axis where it has size 1."""
        if a.roles[-1] != THIN:
            raise Stuck("side")
        return Value(a.form, a.roles[:-1])

    def unsqueeze(self, a: Value, axes: tuple[int, ...]) -> Value:
        """Put in axes of size 1."""
        rank = len(a.roles) + len(axes)
        if any(-axis > rank for axis in axes):
            raise Stuck("shape")
        rest = iter(a.roles)
        roles = tuple(THIN if place in axes else next(rest) for place in range(-rank, 0))
        return Value(a.form, roles)

    def pair(self, node: Expr) -> tuple[Value, Expr, bool]:
        """Split the arguments into the value and the coefficient; the last says value first."""
        left, right = (self.value(arg) for arg in node.args)
        if left is not None and right is not None:
            raise Stuck("product")
        if left is not None:
            return left, node.args[1], True
        assert right is not None
        return right, node.args[0], False


def _is_outer(w: Expr) -> bool:
    """Say whether a matrix is an outer product, or a number times one."""
    terms = terms_of(w)
    return terms is not None and [term.kind for term in terms] == ["outer"]


def _along_one(w: Expr) -> bool:
    """Say whether a value varies along one of the last two axes alone."""
    return (size_at(w.shape, -1) > 1) != (size_at(w.shape, -2) > 1)
