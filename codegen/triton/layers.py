"""The kernels of a memory that moves from chunk to chunk, as tile graphs.

In: the normal forms of its parts, and how it is read. Writes are known at the chunk's start, or
read the state as it moves; then they are solved within each tile (`layer_solve`).
Out: `Kernel`s:

    course       from tile to tile: the writes u, b of all layers from the state before the chunk,
                 then W <- carried(W) + u^T b for each layer
    read         each tile alone: the map, layer by layer, with for each layer's weights
                 W_t x_t = W_0 F(t, 0) x_t + sum_i <F(t, i) b_i, x_t> u_i
    read_back    the gradients of all that a read hangs on, each tile alone
    course_back  from the last tile to the first: the writes anew, and through them to the states
    writes_back  ... to streams and gates, each tile alone

Both ways back are derived from those forward, so that whatever hangs on the inner gradient has its
gradient as well. A state is a matrix [m, n], a vector [n] or a number; it stands in memory before
each tile, and `WORD:start`, `WORD:before` and `WORD:after` are the places of one tile there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.triton.gates import KINDS, Direct, Relative, Scalar
from nlc.codegen.triton.gradient import gradients
from nlc.codegen.triton.graph import Dims, Tile, Tiles, renamed
from nlc.codegen.triton.layer_printer import BARRIER, MAKE, SHORTEST, several
from nlc.codegen.triton.layer_solve import solve_part
from nlc.codegen.triton.layer_values import Values, apply_map, count
from nlc.codegen.triton.solve import Kernel

from nlc.ir.expr import Expr, postorder
from nlc.ir.normal_form import Affine, Write
from nlc.ir.schedule import Keeping
from nlc.ir.system import Memory

# the most tokens of a tile in which writes are solved
SOLVED = 32
# places of a state: before the chunk in which it is read, before and after the tile's own tokens
START, BEFORE, AFTER = ":start", ":before", ":after"


@dataclass(frozen=True)
class State:
    """A part of a state: its word, its axes, and whether it is the memory's own."""

    var: str
    part: str
    word: str
    dims: Dims


@dataclass
class Layers:
    """Builds the kernels of one memory; each kernel has a graph of its own.

    `words` are the names of its states by (variable, part), `stored` those of its writes' vectors
    that are kept for reads: what hangs on the state before the chunk. `solved` are those of writes
    that read the state as it moves.
    """

    memory: Memory
    forms: Mapping[str, Affine]
    words: Mapping[tuple[str, str], str]
    names: Names
    # how the gates of each part are kept
    keepings: Mapping[str, Keeping]
    # the axes of each part, and the widths that programs walk
    axes: Mapping[str, Dims]
    walked: Mapping[str, int] = field(default_factory=dict)
    values: Values = field(init=False)
    stored: dict[tuple[Expr, Dims], str] = field(default_factory=dict)
    solved: dict[tuple[str, int], str] = field(default_factory=dict)
    # what these add, in the present graph
    found: dict[str, dict[int, Tile]] = field(default_factory=dict)
    shapes: dict[str, Dims] = field(default_factory=dict)
    # how many tokens a tile may have
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        keepings = [keeping for part, keeping in self.keepings.items() if part in self.forms]
        lengths = [keeping.tile for keeping in keepings if keeping.gates == "RelativeGates"]
        # those that go token by token inside a tile have short ones
        lengths += [SHORTEST for keeping in keepings if keeping.gates == "ChannelGates"]
        # where writes are solved, tables of tokens stand beside all else
        lengths += [SOLVED for form in self.forms.values() if not form.known]
        self.longest = min(lengths, default=self.memory.chunk)
        starts = {part: self.words["", part] + START for part in self.forms}
        self.values = Values(self.memory, Tiles(), self.names, starts, self.axes)
        self.begin()
        # the list of leaves is that of all coefficients
        for form, part, r, write in self.writes():
            short = part.removesuffix(".weight").replace(".", "_")
            count = str(r + 1) if len(form.writes) > 1 else ""
            for letter, expr, dims in self.vectors(part, r):
                found = self.values.coefficient(expr, dims)
                kept = letter == "b" or (letter == "u" and write.known)
                kept = kept and self.values.own(expr) and found.op != "number"
                if kept and (expr, dims) not in self.stored:
                    word = self.names.fresh(f"{letter}_{short}{count}")
                    self.stored[expr, dims] = word
                    self.shapes[word] = dims
            if not write.known:
                word = self.names.fresh(f"e_{short}{count}")
                self.solved[part, r] = word
                self.shapes[word] = self.sides(part)[0]

    def begin(self) -> None:
        """Begin a graph."""
        self.tiles = Tiles()
        self.found = {}
        self.values.tiles = self.tiles
        made: dict[object, Scalar | Relative | Direct] = {}
        self.gates: dict[str, Scalar | Relative | Direct] = {}
        for part, form in self.forms.items():
            kind = KINDS[self.keepings[part].gates]
            axis = "" if kind is Scalar else self.sides(part)[1][-1]
            key = (form.decay, kind, axis)
            if key not in made:
                # beyond the sequence a state stays, and nothing flows into another
                given = [
                    [
                        None
                        if g is None
                        else renamed(self.values.gate(g, float(i == j), axis), "g")
                        for j, g in enumerate(row)
                    ]
                    for i, row in enumerate(form.decay)
                ]
                made[key] = kind(self.tiles, given, *([axis] if axis else []))
            self.gates[part] = made[key]

    # ---- what there is -------------------------------------------------------------------------

    def states(self) -> Iterator[tuple[Affine, State, int]]:
        """All parts of all states, with their forms and their numbers there."""
        for part, form in self.forms.items():
            for j, (var, _) in enumerate(form.states):
                yield form, State(var, part, self.words[var, part], self.shape(part)), j

    def writes(self) -> Iterator[tuple[Affine, str, int, Write]]:
        """All writes of all parts that go anywhere, or may be seen by those that do."""
        for part, form in self.forms.items():
            for r, write in enumerate(form.writes):
                known = write.offset is not None and any(b is not None for b in write.targets)
                if known or not write.known:
                    yield form, part, r, write

    def vectors(self, part: str, r: int) -> Iterator[tuple[str, Expr, Dims]]:
        """The vectors of a write: its letter, its value and its axes with tokens."""
        (u_dims, b_dims), write = self.sides(part), self.forms[part].writes[r]
        if write.offset is not None:
            yield "u", write.offset, u_dims
        for b in dict.fromkeys(b for b in write.targets if b is not None):
            yield "b", b, b_dims
        for p in dict.fromkeys(p for p in write.reads if p is not None):
            yield "p", p, b_dims
        for _, c in write.earlier:
            yield "c", c, ("C",)

    @property
    def entries(self) -> int:
        """How many numbers the memory's own state has, in one copy."""
        own = [state.dims for _, state, _ in self.states() if not state.var]
        return sum(math.prod(map(count, dims)) for dims in own)

    @property
    def channels(self) -> int:
        """How many channels a vector has that a program holds whole."""
        axes = {axis for dims in self.axes.values() for axis in dims} - set(self.walked)
        return max(map(count, axes))

    def shape(self, part: str) -> Dims:
        """The axes of a part."""
        return self.axes[part]

    def sides(self, part: str) -> tuple[Dims, Dims]:
        """The axes of a write's u and b: those of rows and columns, or the other way round."""
        dims = self.shape(part)
        rows, columns = ("C", *dims[: len(dims) - 1]), ("C", *dims[-1:])
        return (columns, rows) if self.forms[part].transposed else (rows, columns)

    def keys(self, write: Write) -> list[tuple[Expr, tuple[int, ...]]]:
        """The keys of a write, each with the states into which it goes."""
        into: dict[Expr, list[int]] = {}
        for j, b in enumerate(write.targets):
            if b is not None:
                into.setdefault(b, []).append(j)
        return [(b, tuple(js)) for b, js in into.items()]

    def load(self, word: str, place: str, dims: Dims) -> Tile:
        """A state of one chunk."""
        name = word + place.replace(":", "_")
        return self.tiles.make("load", dims=dims, word=word + place, name=name)

    def made(self, expr: Expr, dims: Dims) -> Tile:
        """A write's vector, made in this program."""
        found = self.values.coefficient(expr, dims)
        return renamed(found, self.stored.get((expr, dims), ""))

    def kept(self, expr: Expr, dims: Dims) -> Tile:
        """A write's vector, as the course has kept it, or made of streams."""
        if (expr, dims) in self.stored:
            word = self.stored[expr, dims]
            return self.tiles.load(word, dims)
        return self.made(expr, dims)

    def before(self, part: str, a: int) -> Tile:
        """A state of a part before the tile."""
        return self.load(self.words[self.forms[part].states[a]], BEFORE, self.shape(part))

    def written(self, part: str, r: int) -> Tile | None:
        """What a write adds, made in this program; nothing where it adds nothing."""
        write = self.forms[part].writes[r]
        if write.known:
            return None if write.offset is None else self.made(write.offset, self.sides(part)[0])
        if part not in self.found:
            self.found[part] = solve_part(self, part)
        return renamed(self.found[part][r], self.solved[part, r])

    def added(self, part: str) -> Iterator[tuple[Write, Tile]]:
        """The writes of a part, with what the course has kept of what they add."""
        u_dims = self.sides(part)[0]
        for r, write in enumerate(self.forms[part].writes):
            if not write.known:
                yield write, self.tiles.load(self.solved[part, r], u_dims)
            elif write.offset is not None:
                yield write, self.kept(write.offset, u_dims)

    # ---- from chunk to chunk -------------------------------------------------------------------

    def course(self) -> Kernel:
        """From chunk to chunk."""
        self.begin()
        tiles = self.tiles
        stores = [(word, self.made(*key)) for key, word in self.stored.items()]
        stores += [(word, self._open(*key)) for key, word in self.solved.items()]
        for form, state, j in self.states():
            total: Tile | None = None
            for a, (var, part) in enumerate(form.states):
                whole = self.gates[state.part].whole(a, j)
                if whole is not None:
                    before = self.load(self.words[var, part], BEFORE, state.dims)
                    total = tiles.add(total, self.carried(state.part, whole, before))
            for r in range(len(form.writes)):
                for left, u in self.left(state, r, j):
                    total = tiles.add(total, added(tiles, *self.pair(form, u, left), state.dims))
            after = total or tiles.number(0.0)
            stores.append((state.word + AFTER, tiles.spread(after, state.dims)))
        about = "Go from tile to tile: the writes from the state before it, W <- W + u^T b."
        return Kernel("course", about, tuple(stores), loop=1)

    def _open(self, part: str, r: int) -> Tile:
        found = self.written(part, r)
        assert found is not None
        return found

    def left(self, state: State, r: int, j: int) -> Iterator[tuple[Tile, Tile]]:
        """What a chunk's end keeps of a write in a state: F(C, i) b_i, and what it adds."""
        added = self.written(state.part, r)
        if added is None:
            return
        for b, into in self.keys(self.forms[state.part].writes[r]):
            key = self.made(b, self.sides(state.part)[1])
            left = self.gates[state.part].left(into, j, key)
            if left is not None:
                yield left, added

    def carried(self, part: str, whole: Tile, state: Tile) -> Tile:
        """F(C, 0) of a state, or of a gradient of one."""
        if whole.dims and len(state.dims) == 2:
            return self.tiles.scaled(state, whole, self.forms[part].transposed)
        return self.tiles.mul(whole, state)

    def pair(self, form: Affine, u: Tile, left: Tile) -> tuple[Tile, Tile]:
        """What a write has along the rows of its states, and along the columns."""
        return (left, u) if form.transposed else (u, left)

    # ---- reading -------------------------------------------------------------------------------

    def answer(self, when: str, var: str) -> Tile:
        """A read of the map at every token."""
        form = self.memory.map
        weights = _Read(self, when, var)
        q = self.tiles.load("q", ("C", str(form.chain[0].size)))
        return renamed(apply_map(self.values, form, weights, q), "y")

    def read(self, when: str, var: str, name: str) -> Kernel:
        """A read at every token."""
        self.begin()
        about = "Read the map at every token: W_t x_t = W F(t, 0) x_t + sum <F(t, i) b_i, x_t> u_i."
        return Kernel(name, about, (("y", self.answer(when, var)),))

    # ---- backwards -----------------------------------------------------------------------------

    def read_back(self, when: str, var: str, name: str) -> Kernel:
        """The gradients of what a read was given."""
        self.begin()
        y = self.answer(when, var)
        found = gradients(self.tiles, {y: self.tiles.load("dy", y.dims)})
        stores = sorted((_grad(load.word), named(grad, load)) for load, grad in found.items())
        if when == "start" and several(self.memory.chunk):
            # tiles of one chunk stand side by side: what each gives is added afterwards
            stores = [(word.replace(START, BEFORE), grad) for word, grad in stores]
        return Kernel(name, "Give the gradients of all that a read hangs on.", tuple(stores))

    def course_back(self) -> Kernel:
        """From the last chunk to the first: the gradients of the states before each."""
        reached, stores = self._back()
        tiles = self.tiles
        # gradients of streams are no matter of this kernel
        reached = {value: grad for value, grad in reached.items() if moves(value)}
        wanted = set(reached.values())
        stores = [(word, tile) for word, tile in stores if word != MAKE or tile in wanted]
        stores.append((BARRIER, tiles.number(0.0)))
        for load, grad in gradients(tiles, reached).items():
            if load.word.endswith(START):
                # all tiles of a chunk add to what the state before it is given
                word = f"d{load.word.removesuffix(START)}"
                total = tiles.add(self.load(word, START, grad.dims), named(grad, load))
                stores += _replaced(tiles, word + START, total)
        about = "Go from the last tile to the first: the gradients of the states before each."
        return Kernel("course_back", about, tuple(stores), loop=-1)

    def writes_back(self) -> Kernel:
        """The gradients of what each tile's writes and gates are made of, each tile alone."""
        reached, stores = self._back()
        made = [(word, tile) for word, tile in stores if word == MAKE]
        rest = [
            (_grad(load.word), named(grad, load))
            for load, grad in gradients(self.tiles, reached).items()
            if ":" not in load.word
        ]
        about = "Give the gradients of what each tile's writes and gates are made of."
        return Kernel("writes_back", about, (*made, *sorted(rest)))

    def _back(self) -> tuple[dict[Tile, Tile], list[tuple[str, Tile]]]:
        """What reaches the writes and gates of a chunk, and the states before it by its update."""
        self.begin()
        tiles = self.tiles
        reached: dict[Tile, Tile] = {}
        touched: dict[Tile, None] = {}

        def reach(value: Tile, grad: Tile) -> None:
            if value.op != "number":
                reached[value] = tiles.add(reached.get(value), grad)
                touched[value] = None

        for (expr, dims), word in self.stored.items():
            reach(self.made(expr, dims), tiles.load(f"d{word}", dims))
        for (part, r), word in self.solved.items():
            reach(self._open(part, r), tiles.load(f"d{word}", self.shapes[word]))
        stores = []
        for part, form in self.forms.items():
            touched.clear()
            after = self._states_back(part, form, reach)
            self._read_by_writes(part, reached, after)
            # all that takes these states is made before those of the next layer are loaded
            stores += [(MAKE, reached[value]) for value in touched]
            for word, grad in after.items():
                if not several(self.memory.chunk):
                    stores.append((f"d{word}{BEFORE}", grad))
                    continue
                # ... to which later tiles of its chunk have added
                before = self.load(f"d{word}", BEFORE, grad.dims)
                stores += _replaced(tiles, f"d{word}{BEFORE}", tiles.add(before, grad))
        return reached, stores

    def _states_back(
        self, part: str, form: Affine, reach: Callable[[Tile, Tile], None]
    ) -> dict[str, Tile]:
        """What a chunk's update hands back: the gradients of a part's states before it."""
        tiles, dims = self.tiles, self.shape(part)
        words = [self.words[state] for state in form.states]
        found = {w: self.load(f"g{w}", BEFORE, dims) for w in words}
        for j, (var, _) in enumerate(form.states):
            dW = self.load(f"d{words[j]}", AFTER, dims)
            for a, word in enumerate(words):
                whole = self.gates[part].whole(a, j)
                if whole is None:
                    continue
                found[word] = tiles.add(found[word], self.carried(part, whole, dW))
                if whole.op != "number":
                    product = tiles.mul(self.load(word, BEFORE, dims), dW)
                    reach(whole, self._over(part, product, whole.dims))
            state = State(var, part, words[j], dims)
            for r in range(len(form.writes)):
                for left, u in self.left(state, r, j):
                    pair = self.pair(form, u, left)
                    for value, grad in zip(pair, _added_back(tiles, *pair, dW), strict=True):
                        reach(value, grad)
        return found

    def _read_by_writes(
        self, part: str, reached: Mapping[Tile, Tile], after: dict[str, Tile]
    ) -> None:
        """Add what writes that read a part's states before the tile hand back."""
        given = {e: reached[e] for e in self.found.get(part, {}).values() if e in reached}
        for load, grad in gradients(self.tiles, given).items():
            if load.word.endswith(BEFORE):
                word = load.word.removesuffix(BEFORE)
                after[word] = self.tiles.add(after[word], grad)

    def _over(self, part: str, product: Tile, dims: Dims) -> Tile:
        """The sum of a product of states over axes that a gate does not have."""
        if dims and len(product.dims) == 2 and self.forms[part].transposed:
            return self.tiles.row_sums(product)
        while len(product.dims) > len(dims):
            product = self.tiles.sum(product, product.dims[0])
        return product


def _replaced(tiles: Tiles, word: str, value: Tile) -> list[tuple[str, Tile]]:
    """Store a value that was made of what stands there."""
    return [(MAKE, value), (BARRIER, tiles.number(0.0)), (word, value)]


def _grad(word: str) -> str:
    return f"grad_{word}"


def named(grad: Tile, load: Tile) -> Tile:
    """Name a gradient after what it is of."""
    return renamed(grad, f"grad_{load.name}")


def added(tiles: Tiles, u: Tile, left: Tile, dims: Dims) -> Tile:
    """sum_i u_i left_i^T: [m, n], [n] or a number."""
    if len(dims) == 2:
        return tiles.dot(u, left, (True, False), dims)
    return tiles.sum(tiles.mul(left, u), "C")


def _added_back(tiles: Tiles, u: Tile, left: Tile, dW: Tile) -> tuple[Tile, Tile]:
    """The gradients of u and left of `added`."""
    if len(dW.dims) == 2:
        of_u = tiles.dot(left, dW, (False, True), u.dims)
        return of_u, tiles.dot(u, dW, (False, False), left.dims)
    of_u = tiles.mul(left, dW)
    for axis in dW.dims:
        of_u = tiles.sum(of_u, axis)
    return of_u, tiles.mul(tiles.spread(u, left.dims), dW)


@dataclass
class _Read:
    """The parts of a map as each token meets them."""

    layers: Layers
    when: str
    var: str

    def has(self, part: str) -> bool:
        """Say whether there is such a part."""
        return part in self.layers.forms

    def _start(self, part: str) -> Tile:
        layers = self.layers
        return layers.load(layers.words[self.var, part], START, layers.shape(part))

    def _number(self, part: str) -> int:
        form = self.layers.forms[part]
        return next(j for j, (var, _) in enumerate(form.states) if var == self.var)

    def times(self, part: str, x: Tile) -> Tile:
        """W_t x_t."""
        layers, tiles = self.layers, self.layers.tiles
        if len(layers.shape(part)) == 1:
            # a matrix of one row
            return layers.values.total(tiles.mul(self.vector(part), x))
        m, n = layers.shape(part)
        if self.when == "start":
            return tiles.dot(x, self._start(part), (False, True), ("C", m))
        if layers.forms[part].transposed:
            return self._turned(part, x)
        gates, form, late = layers.gates[part], layers.forms[part], self.when == "post"
        j, y = self._number(part), None
        for a, row in gates.asked(j, x, late).items():
            W = layers.load(layers.words[form.states[a]], BEFORE, (m, n))
            y = tiles.add(y, tiles.dot(row, W, (False, True), ("C", m)))
        for write, u in layers.added(part):
            for b, into in layers.keys(write):
                scores = gates.reach(into, j, x, layers.kept(b, ("C", n)), late)
                if scores is not None:
                    y = tiles.add(y, tiles.dot(scores, u, (False, False), ("C", m)))
        return y or tiles.spread(tiles.number(0.0), ("C", m))

    def _turned(self, part: str, x: Tile) -> Tile:
        """F(t, 0) W x_t + sum_i <u_i, x_t> F(t, i) b_i, where the form is that of W^T."""
        layers, tiles = self.layers, self.layers.tiles
        m, n = layers.shape(part)
        gates, form, late = layers.gates[part], layers.forms[part], self.when == "post"
        j, y = self._number(part), None
        for a, state in enumerate(form.states):
            W = layers.load(layers.words[state], BEFORE, (m, n))
            seen = gates.kept(a, j, tiles.dot(x, W, (False, True), ("C", m)), late)
            y = y if seen is None else tiles.add(y, seen)
        for write, u in layers.added(part):
            scores = tiles.dot(x, u, (False, True), ("C", "I"))
            for b, into in layers.keys(write):
                seen = gates.spread(into, j, scores, layers.kept(b, ("C", m)), late)
                y = y if seen is None else tiles.add(y, seen)
        return y or tiles.spread(tiles.number(0.0), ("C", m))

    def vector(self, part: str) -> Tile:
        """A vector at each token: F(t, 0) w + sum_i F(t, i) u_i b_i."""
        layers, tiles = self.layers, self.layers.tiles
        dims = layers.shape(part)
        if self.when == "start":
            return self._start(part)
        gates, form, late = layers.gates[part], layers.forms[part], self.when == "post"
        j, found = self._number(part), None
        for a, (var, _) in enumerate(form.states):
            w = layers.load(layers.words[var, part], BEFORE, dims)
            seen = gates.kept(a, j, w, late)
            found = found if seen is None else tiles.add(found, seen)
        for write, u in layers.added(part):
            for b, into in layers.keys(write):
                key = layers.kept(b, ("C", *dims))
                key = tiles.mul(key, u)
                more = gates.spread(into, j, tiles.number(1.0), key, late)
                found = found if more is None else tiles.add(found, more)
        return found or tiles.spread(tiles.number(0.0), dims)


def moves(value: Tile) -> bool:
    """Say whether a value hangs on the state before the chunk."""
    return any(node.op == "load" and node.word.endswith(START) for node in postorder([value]))
