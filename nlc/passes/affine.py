"""The values that updates are made of, and what may be done to them.

    Vector   e = sum_j M_j p_j + sum_s c_s e_s + u
    Matrix   X = sum_j M_j (a_j + diag(d_j)) + sum_r s_r outer(e_r, b_r)

with M_j the states before the token (j their number), e_s the writes made so far, and everything
else free of running states. Both are closed under sums, scalings, products with a vector and
outer products; `normalise` finds them in an update's expressions.

A `Register` keeps the writes of one update. A write is registered when something reads a matrix
that holds it, or at the end; until then the terms along one direction b are gathered into one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nlc.ir.expr import Expr, Graph
from nlc.ir.normal_form import Write
from nlc.ir.shape import Axis
from nlc.passes.shaping import drop, expand
from nlc.passes.simplify import build

Gates = tuple[Expr | None, Expr | None]
# what each write reads of all earlier ones grows with their square
MOST_WRITES = 64


class TooManyWrites(Exception):
    """Says that an update makes more writes for each token than are worth following."""


@dataclass(frozen=True)
class Vector:
    """`reads` p_j by state, `earlier` c_s by write, `offset` u; None is 0."""

    reads: dict[int, Expr]
    earlier: dict[int, Expr]
    offset: Expr | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two vectors the same."""
        return (
            tuple((j, id(p)) for j, p in sorted(self.reads.items())),
            tuple((s, id(c)) for s, c in sorted(self.earlier.items())),
            id(self.offset),
        )

    @property
    def known(self) -> bool:
        """Say whether it reads no state."""
        return not self.reads and not self.earlier


@dataclass(frozen=True)
class Term:
    """`scale * outer(e, direction)`; `e` is a vector, or the number of a registered write."""

    e: Vector | int
    direction: Expr
    scale: Expr


@dataclass(frozen=True)
class Matrix:
    """`gates[j]` are (a_j, d_j), None being 0."""

    gates: dict[int, Gates]
    terms: tuple[Term, ...]


@dataclass
class Register:
    """The algebra over one graph, and the writes of one update.

    `rows` and `columns` are the axes of the states, None where the state has fewer.
    """

    graph: Graph
    rows: Axis | None
    columns: Axis | None
    writes: list[Vector] = field(default_factory=list)

    # ---- expressions -----------------------------------------------------------------------

    def make(self, op: str, *args: Expr, **attrs: Any) -> Expr:
        """Make a simple expression."""
        return build(self.graph, op, *args, **attrs)

    @property
    def one(self) -> Expr:
        """The number 1."""
        return self.graph.constant(1.0)

    def plus(self, a: Expr | None, b: Expr | None) -> Expr | None:
        """Add, with None for 0."""
        total = b if a is None else a if b is None else self.make("add", a, b)
        is_zero = total is not None and total.op == "const" and total.attr("value") == 0.0
        return None if is_zero else total

    def times(self, scale: Expr, value: Expr | None) -> Expr | None:
        """Scale a number per copy."""
        if value is None or (scale.op == "const" and scale.attr("value") == 0.0):
            return None
        return self.make("mul", scale, value)

    def spread(self, scale: Expr, value: Expr | None, along: Axis | None) -> Expr | None:
        """Scale a vector over the axis `along` by a number per copy."""
        if value is None or along is None:
            return self.times(scale, value)
        return self.times(self.make("unsqueeze", scale, axes=(-1,)), value)

    def full(self, value: Expr, along: Axis | None) -> Expr:
        """Fill a vector that is thin along its axis."""
        return value if along is None else expand(self.graph, value, (along,))

    # ---- vectors ---------------------------------------------------------------------------

    def scale_vector(self, e: Vector, scale: Expr) -> Vector:
        """scale * e."""
        if scale is self.one:
            return e
        reads = {j: self.spread(scale, p, self.columns) for j, p in e.reads.items()}
        earlier = {s: self.times(scale, c) for s, c in e.earlier.items()}
        return Vector(
            {j: p for j, p in reads.items() if p is not None},
            {s: c for s, c in earlier.items() if c is not None},
            self.spread(scale, e.offset, self.rows),
        )

    def add_vectors(self, e: Vector, other: Vector) -> Vector:
        """E + other."""
        reads, earlier = dict(e.reads), dict(e.earlier)
        for into, more in ((reads, other.reads), (earlier, other.earlier)):
            for key, value in more.items():
                total = self.plus(into.pop(key, None), value)
                if total is not None:
                    into[key] = total
        return Vector(reads, earlier, self.plus(e.offset, other.offset))

    # ---- matrices --------------------------------------------------------------------------

    def scale_matrix(self, x: Matrix, scale: Expr) -> Matrix:
        """scale * X."""
        gates = {
            j: (self.times(scale, a), self.spread(scale, d, self.columns))
            for j, (a, d) in x.gates.items()
        }
        terms = (Term(t.e, t.direction, self.make("mul", scale, t.scale)) for t in x.terms)
        return _tidy(gates, tuple(terms))

    def scale_columns(self, x: Matrix, w: Expr) -> Matrix:
        """X diag(w)."""
        gates: dict[int, Gates] = {}
        for j, (a, d) in x.gates.items():
            both = self.plus(None if a is None else self.spread(a, w, self.columns),
                             None if d is None else self.make("mul", d, w))  # fmt: skip
            gates[j] = (None, both)
        terms = (Term(t.e, self.make("mul", w, t.direction), t.scale) for t in x.terms)
        return _tidy(gates, tuple(terms))

    def add_matrices(self, x: Matrix, other: Matrix) -> Matrix:
        """X + other."""
        gates = dict(x.gates)
        for j, (a, d) in other.gates.items():
            b, e = gates.get(j, (None, None))
            gates[j] = (self.plus(b, a), self.plus(e, d))
        return _tidy(gates, x.terms + other.terms)

    def outer(self, e: Vector, direction: Expr) -> Matrix:
        """E direction^T."""
        return Matrix({}, (Term(e, self.full(direction, self.columns), self.one),))

    def apply(self, x: Matrix, p: Expr) -> Vector:
        """X p; what X holds so far is registered, so that it is computed once."""
        p = self.full(p, self.columns)
        reads: dict[int, Expr] = {}
        for j, (a, d) in x.gates.items():
            scaled = None if a is None else self.spread(a, p, self.columns)
            read = self.plus(scaled, None if d is None else self.make("mul", d, p))
            if read is not None:
                reads[j] = read
        earlier: dict[int, Expr] = {}
        for number, direction in self.settle({0: x})[0]:
            product = "mul" if self.columns is None else "dot"
            along = self.make(product, direction, p)
            total = self.plus(earlier.pop(number, None), along)
            if total is not None:
                earlier[number] = total
        return Vector(reads, earlier, None)

    # ---- writes ----------------------------------------------------------------------------

    def settle(self, matrices: dict[int, Matrix]) -> dict[int, list[tuple[int, Expr]]]:
        """Register the terms of matrices; give (write, direction) for each, by matrix."""
        found: dict[int, list[tuple[int, Expr]]] = {j: [] for j in matrices}
        groups: dict[int, tuple[Expr, dict[int, list[tuple[Vector, Expr]]]]] = {}
        for j, matrix in matrices.items():
            for term in matrix.terms:
                if isinstance(term.e, int):
                    found[j].append((term.e, self._scaled(term.scale, term.direction)))
                    continue
                scale, direction = self._peel(term.direction)
                scale = self.make("mul", term.scale, scale)
                _, by_matrix = groups.setdefault(id(direction), (direction, {}))
                by_matrix.setdefault(j, []).append((term.e, scale))
        for direction, by_matrix in groups.values():
            for j, number, scale in self._gather(by_matrix):
                found[j].append((number, self._scaled(scale, direction)))
        return found

    def _gather(
        self, by_matrix: dict[int, list[tuple[Vector, Expr]]]
    ) -> list[tuple[int, int, Expr]]:
        """Make as few writes as serve all matrices along one direction: (matrix, write, scale)."""
        totals: dict[int, Vector] = {}
        for j, pieces in by_matrix.items():
            total = Vector({}, {}, None)
            for e, scale in pieces:
                total = self.add_vectors(total, self.scale_vector(e, scale))
            totals[j] = total
        first = next(iter(by_matrix.values()))
        shared = all(
            len(pieces) == 1 and pieces[0][0].key == first[0][0].key
            for pieces in by_matrix.values()
        )
        if shared and len({total.key for total in totals.values()}) > 1:
            number = self._number(first[0][0])
            return [(j, number, pieces[0][1]) for j, pieces in by_matrix.items()]
        return [(j, self._number(total), self.one) for j, total in totals.items()
                if not total.known or total.offset is not None]  # fmt: skip

    def _number(self, e: Vector) -> int:
        for number, known in enumerate(self.writes):
            if known.key == e.key:
                return number
        if len(self.writes) == MOST_WRITES:
            raise TooManyWrites
        self.writes.append(e)
        return len(self.writes) - 1

    def _scaled(self, scale: Expr, direction: Expr) -> Expr:
        result = self.spread(scale, direction, self.columns)
        assert result is not None
        return result

    def _peel(self, direction: Expr) -> tuple[Expr, Expr]:
        """Split a direction into a number per copy and the rest."""
        scale = self.one
        if self.columns is None or self.columns.size == 1:
            return scale, direction
        while True:
            match direction.op:
                case "let":
                    direction = direction.args[0]
                case "neg":
                    scale, direction = self.make("neg", scale), direction.args[0]
                case "mul" | "div":
                    a, b = direction.args
                    if _thin(a) and not _thin(b) and direction.op == "mul":
                        a, b = b, a
                    if not _thin(b) or _thin(a):
                        return scale, direction
                    number = drop(self.graph, b, (-1,))
                    scale, direction = self.make(direction.op, scale, number), a
                case _:
                    return scale, direction

    def finish(
        self, matrices: list[Matrix]
    ) -> tuple[tuple[Write, ...], list[dict[int, tuple[str, Expr]]]]:
        """Give the writes, and by state j the gates (kind, value) of each state i."""
        settled = self.settle(dict(enumerate(matrices)))
        targets: list[dict[int, Expr]] = [{} for _ in self.writes]
        for j, found in settled.items():
            for number, direction in found:
                total = self.plus(targets[number].pop(j, None), direction)
                if total is not None:
                    targets[number][j] = total
        used = self._used(targets)
        place = {number: i for i, number in enumerate(used)}
        count = len(matrices)
        writes = tuple(
            Write(
                tuple(self._lift(self.writes[n].reads.get(j), self.columns) for j in range(count)),
                tuple((place[s], c) for s, c in sorted(self.writes[n].earlier.items())),
                self._lift(self.writes[n].offset, self.rows),
                tuple(self._lift(targets[n].get(j), self.columns) for j in range(count)),
            )
            for n in used
        )
        gates = [
            {i: gate for i, pair in x.gates.items() if (gate := self._gate(pair))} for x in matrices
        ]
        return writes, gates

    def _used(self, targets: list[dict[int, Expr]]) -> list[int]:
        """List the writes that go into a state, or into one that does."""
        used: set[int] = set()
        for number in reversed(range(len(self.writes))):
            if targets[number] or number in used:
                used.add(number)
                used.update(self.writes[number].earlier)
        return sorted(used)

    def _gate(self, pair: Gates) -> tuple[str, Expr] | None:
        scalar, diagonal = pair
        if diagonal is None:
            return None if scalar is None else ("scalar", scalar)
        if scalar is not None:
            wide = self.make("unsqueeze", scalar, axes=(-1,))
            diagonal = self.make("add", wide, diagonal)
        return ("diagonal", diagonal)

    def as_write(self, e: Vector, states: int) -> Write:
        """Give a vector over states and streams alone as a write that goes nowhere."""
        return Write(
            tuple(self._lift(e.reads.get(j), self.columns) for j in range(states)),
            (),
            self._lift(e.offset, self.rows),
            (None,) * states,
        )

    def _lift(self, value: Expr | None, axis: Axis | None) -> Expr | None:
        """Give a value of a state of lower rank the axis of size 1 that the form has."""
        if value is None or axis is not None:
            return value
        return self.make("unsqueeze", value, axes=(-1,))


def _thin(x: Expr) -> bool:
    return not x.shape or x.shape[-1].size == 1


def _tidy(gates: dict[int, Gates], terms: tuple[Term, ...]) -> Matrix:
    zero = [t for t in terms if t.scale.op == "const" and t.scale.attr("value") == 0.0]
    return Matrix(
        {j: pair for j, pair in gates.items() if pair != (None, None)},
        tuple(t for t in terms if t not in zero) if zero else terms,
    )
