"""The kernels of an affine memory in tiles, as tile graphs: the three that go forward.

In: an `Affine` form of matrices and how its gates are kept. Out: `Kernel`s:

    tiles     each tile alone: A, X = (I - A)^-1, u <- X (U + A_known E), w <- X P, and the gates'
              products at the tile's end
    states    from tile to tile: E = u + w M, M <- carried(M) + E b^T; M stands as M^T [K, V]
    read      each tile alone: y_t = M_0 F(t, 0) q_t + sum_i <F(t, i) b_i, q_t> e_i

Those that go backwards stand in `triton.back`, how they are printed in `triton.printer`, and what
launches them in `triton.launch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.triton.coefficients import Coefficients
from nlc.codegen.triton.eliminate import Given, eliminate
from nlc.codegen.triton.gates import KINDS, Direct, Relative, Scalar
from nlc.codegen.triton.graph import Tile, Tiles, renamed

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Affine, Gate
from nlc.ir.schedule import Keeping


@dataclass(frozen=True)
class Kernel:
    """One kernel: what it stores, by the tensors' names; `loop` says which way it goes over tiles.

    `carried` are the states that a loop carries, with the tensors that they begin with, and
    `after` what they become; `ends` are where they are stored in the end.
    """

    name: str
    about: str
    stores: tuple[tuple[str, Tile], ...]
    loop: int = 0
    carried: tuple[tuple[Tile, str], ...] = ()
    after: tuple[Tile, ...] = ()
    ends: tuple[str, ...] = ()


@dataclass
class Solve:
    """Builds the kernels of one form; each kernel has a graph of its own."""

    form: Affine
    keeping: Keeping
    sizes: dict[str, int]
    names: Names
    called: Mapping[Expr, tuple[str, str]] = field(default_factory=dict)
    coefficients: Coefficients = field(init=False)
    # what the tiles kernel stores
    words: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.coefficients = Coefficients(Tiles(), self.sizes, self.names, self.called)
        self.begin()
        # the list of leaves is that of all coefficients
        for r, write in enumerate(self.form.writes):
            for p in write.reads:
                if p is not None:
                    self.coefficients.vector(p, "K")
            for _, c in write.earlier:
                self.coefficients.number(c)
            self.offset(r)
            self.keys(r)
        self.words = tuple(self.solved())

    def begin(self) -> None:
        """Begin a graph."""
        self.tiles = Tiles()
        self.coefficients.tiles = self.tiles
        kind = KINDS[self.keeping.gates]
        self.gates: Scalar | Relative | Direct = kind(
            self.tiles,
            [
                [None if g is None else self._gate(g, i, j) for j, g in enumerate(row)]
                for i, row in enumerate(self.form.decay)
            ],
        )

    def _gate(self, gate: Gate, i: int, j: int) -> Tile:
        # beyond the sequence a state stays, and nothing flows into another
        found = self.coefficients.gate(gate, float(i == j))
        return renamed(found, f"g{self.pair(i, j)}")

    # ---- coefficients --------------------------------------------------------------------------

    @property
    def states(self) -> range:
        """The numbers of the states."""
        return range(len(self.form.states))

    @property
    def open_(self) -> list[int]:
        """The writes that read a state."""
        return [r for r, write in enumerate(self.form.writes) if not write.known]

    @property
    def known(self) -> list[int]:
        """The writes that do not."""
        return [r for r, write in enumerate(self.form.writes) if write.known]

    def label(self, r: int) -> str:
        """What tells a write's values from those of others."""
        return str(r + 1) if len(self.form.writes) > 1 else ""

    def number(self, j: int) -> str:
        """What tells a state's values from those of others."""
        return str(j + 1) if len(self.form.states) > 1 else ""

    def pair(self, a: int, j: int) -> str:
        """What tells what flows from one state into another."""
        return f"{a + 1}{j + 1}" if len(self.form.states) > 1 else ""

    def offset(self, r: int) -> Tile:
        """u of a write [C, V]."""
        u = self.form.writes[r].offset
        if u is None:
            return self.tiles.spread(self.tiles.number(0.0), ("C", "V"))
        found = self.coefficients.vector(u, "V")
        return renamed(found, f"u{self.label(r)}")

    def keys(self, r: int) -> list[tuple[Tile, tuple[int, ...]]]:
        """b of a write [C, K], each with the states into which it goes."""
        into: dict[Expr, list[int]] = {}
        for j, b in enumerate(self.form.writes[r].targets):
            if b is not None:
                into.setdefault(b, []).append(j)
        found = []
        for n, (b, js) in enumerate(into.items()):
            key = self.coefficients.vector(b, "K")
            word = f"b{self.label(r)}" + (f"_{n + 1}" if len(into) > 1 else "")
            found.append((renamed(key, word), tuple(js)))
        return found

    def written(self, r: int) -> Tile:
        """E of a write [C, V]: loaded, or known."""
        if r in self.known:
            return self.offset(r)
        return self.tiles.load(f"e{self.label(r)}", ("C", "V"), about="what was written")

    def state(self, word: str, j: int) -> Tile:
        return self.tiles.load(f"{word}{self.number(j)}", ("K", "V"))

    def asked(self, r: int) -> dict[int, Tile]:
        """What a write asks the tile's first states."""
        found: dict[int, Tile] = {}
        for j, p in enumerate(self.form.writes[r].reads):
            if p is not None:
                row = renamed(self.coefficients.vector(p, "K"), f"p{self.label(r)}")
                for a, x in self.gates.asked(j, row, late=False).items():
                    found[a] = self.tiles.add(found.get(a), x)
        return found

    def _scores(self, r: int, s: int) -> Tile | None:
        """A[t, i]: how much the reads of write r take of write s."""
        found: Tile | None = None
        for j, p in enumerate(self.form.writes[r].reads):
            if p is None:
                continue
            row = renamed(self.coefficients.vector(p, "K"), f"p{self.label(r)}")
            for b, into in self.keys(s):
                part = self.gates.reach(into, j, row, b, late=False)
                found = found if part is None else self.tiles.add(found, part)
        seen = [c for other, c in self.form.writes[r].earlier if other == s]
        for c in seen:
            found = self.tiles.add(found, self.tiles.named("diagonal", self.coefficients.number(c)))
        return found

    # ---- each tile alone -----------------------------------------------------------------------

    def solved(self) -> dict[str, Tile]:
        """What the tiles kernel stores: u and w, and the products at the tile's end."""
        found = self._eliminated()
        found |= {name: value for name, value, _ in self._ends()}
        for a in self.states:
            for j in self.states:
                whole = self.gates.whole(a, j)
                if whole is not None and whole.op != "number":
                    found[f"whole{self.pair(a, j)}"] = whole
        return found

    def _eliminated(self) -> dict[str, Tile]:
        """Solve E_r = sum_s A_rs E_s + U_r + P_r M for all writes that read."""
        rows = self.open_
        A = {(r, s): self._scores(r, s) for r in rows for s in rows}
        given = {r: self._given(r) for r in rows}
        solved = eliminate(self.tiles, rows, A, given, self.label)
        return {
            self.word(word, r): renamed(value, f"{word}{self.label(r)}_solved")
            for r in rows
            for word, value in solved[r].items()
        }

    def word(self, word: str, r: int) -> str:
        """The tensor that holds what is solved for a write."""
        return f"{word}_{self.label(r)}x" if len(self.open_) > 1 else f"{word}_x"

    def _given(self, r: int) -> Given:
        """What a write is made of but for other writes that read: "u" [C, V], "w" [C, K]."""
        tiles = self.tiles
        found: Given = {}
        u = None if self.form.writes[r].offset is None else self.offset(r)
        for s in self.known:
            scores = self._scores(r, s)
            if scores is not None:
                renamed(scores, f"A{r + 1}{s + 1}")
                u = tiles.add(u, tiles.dot(scores, self.offset(s), (False, False), ("C", "V")))
        if u is not None:
            found["u"] = u
        for a, x in self.asked(r).items():
            found[f"w{self.number(a)}"] = x
        return found

    def _end_of(self, r: int, n: int) -> str:
        """What holds F(C, i) b_i of the n-th keys of a write."""
        return f"b{self.label(r)}{f'_{n + 1}' if n else ''}_end"

    def _ends(self) -> list[tuple[str, Tile, Tile]]:
        """What the end of a tile keeps of writes: name, a column or keys, the keys themselves."""
        found: dict[str, tuple[str, Tile, Tile]] = {}
        for r in range(len(self.form.writes)):
            for n, (b, into) in enumerate(self.keys(r)):
                for j in self.states:
                    column = self.gates.column(into, j)
                    if column is not None and column.op != "number":
                        # the same for all writes into the same states
                        name = "end" + "".join(self.number(a) for a in (*into, j))
                        found[name] = (name, column, b)
                    elif column is None:
                        left = self.gates.left(into, j, b)
                        if left is not None:
                            name = self._end_of(r, n)
                            found[name] = (name, left, b)
        return list(found.values())

    def tiles_kernel(self) -> Kernel:
        """The tiles, each alone."""
        self.begin()
        stores = tuple(self.solved().items())
        return Kernel(
            "tiles", "Solve the writes of each tile, but for the states before it.", stores
        )

    # ---- from tile to tile ---------------------------------------------------------------------

    def left(self, r: int, j: int) -> list[Tile]:
        """F(C, i) b_i of a write in state j [C, K], from what the tiles kernel stored."""
        tiles, found = self.tiles, []
        for n, (b, into) in enumerate(self.keys(r)):
            column = self.gates.column(into, j)
            if column is not None:
                if column.op != "number":
                    name = "end" + "".join(self.number(a) for a in (*into, j))
                    column = tiles.load(name, ("C",), about="F(C, i)")
                found.append(tiles.mul(column, b))
            elif self.gates.left(into, j, b) is not None:
                found.append(tiles.load(self._end_of(r, n), ("C", "K"), about="F(C, i) b_i"))
        return found

    def whole(self, a: int, j: int) -> Tile | None:
        """F_aj(C, 0), from what the tiles kernel stored."""
        whole = self.gates.whole(a, j)
        if whole is None or whole.op == "number":
            return whole
        return self.tiles.load(f"whole{self.pair(a, j)}", whole.dims, about="F(C, 0)")

    def states_kernel(self) -> Kernel:
        """From tile to tile."""
        self.begin()
        tiles = self.tiles
        M = [
            tiles.make(
                "carried", dims=("K", "V"), word=f"M{self.number(j)}", name=f"M{self.number(j)}"
            )
            for j in self.states
        ]
        E: dict[int, Tile] = {}
        stores = [(f"starts{self.number(j)}", M[j]) for j in self.states]
        for r in range(len(self.form.writes)):
            if r in self.known:
                E[r] = self.offset(r)
                continue
            e: Tile | None = None
            if self.word("u", r) in self.words:
                e = tiles.load(self.word("u", r), ("C", "V"), about="(I - A)^-1 U")
            for a in self.states:
                word = self.word(f"w{self.number(a)}", r)
                if word in self.words:
                    w = tiles.load(word, ("C", "K"), about="(I - A)^-1 P")
                    e = tiles.add(e, tiles.dot(w, M[a], (False, False), ("C", "V")))
            assert e is not None
            E[r] = renamed(e, f"e{self.label(r)}")
            stores.append((f"e{self.label(r)}", E[r]))
        after = []
        for j in self.states:
            total: Tile | None = None
            for a in self.states:
                whole = self.whole(a, j)
                if whole is not None:
                    total = tiles.add(total, tiles.mul(whole, M[a]))
            for r, e in E.items():
                for left in self.left(r, j):
                    total = tiles.add(total, tiles.dot(left, e, (True, False), ("K", "V")))
            after.append(total or tiles.spread(tiles.number(0.0), ("K", "V")))
        return Kernel(
            "states",
            "Go from tile to tile: E = u + w M, then M <- carried(M) + b^T E; M is transposed.",
            tuple(stores),
            loop=1,
            carried=tuple((m, f"M{self.number(j)}_before") for j, m in enumerate(M)),
            after=tuple(after),
            ends=tuple(f"M{self.number(j)}_after" for j in self.states),
        )

    # ---- reading -------------------------------------------------------------------------------

    def answer(self, state: int, late: bool) -> Tile:
        """A read of a state after or before each token's update: y [C, V]."""
        tiles = self.tiles
        q = tiles.load("q", ("C", "K"))
        y: Tile | None = None
        for a, row in self.gates.asked(state, q, late).items():
            y = tiles.add(y, tiles.dot(row, self.state("starts", a), (False, False), ("C", "V")))
        for r in range(len(self.form.writes)):
            for b, into in self.keys(r):
                scores = self.gates.reach(into, state, q, b, late)
                if scores is not None:
                    seen = tiles.dot(scores, self.written(r), (False, False), ("C", "V"))
                    y = tiles.add(y, seen)
        return renamed(y or tiles.spread(tiles.number(0.0), ("C", "V")), "y")

    def turned_answer(self, state: int, late: bool) -> Tile:
        """A read of the transposed state: q [C, V] -> y [C, K]."""
        tiles = self.tiles
        q = tiles.load("q", ("C", "V"))
        y: Tile | None = None
        for a in self.states:
            found = tiles.dot(q, self.state("starts", a), (False, True), ("C", "K"))
            part = self.gates.kept(a, state, found, late)
            y = y if part is None else tiles.add(y, part)
        for r in range(len(self.form.writes)):
            for b, into in self.keys(r):
                scores = tiles.dot(q, self.written(r), (False, True), ("C", "I"))
                part = self.gates.spread(into, state, scores, b, late)
                y = y if part is None else tiles.add(y, part)
        return renamed(y or tiles.spread(tiles.number(0.0), ("C", "K")), "y")

    def read_kernel(self, state: int, late: bool, name: str) -> Kernel:
        """A read at every token."""
        self.begin()
        about = "Read the state at every token: y_t = M_0 F(t, 0) q_t + sum <F(t, i) b_i, q_t> e_i."
        return Kernel(name, about, (("y", self.answered(state, late)),))

    def answered(self, state: int, late: bool) -> Tile:
        return (self.turned_answer if self.form.transposed else self.answer)(state, late)
