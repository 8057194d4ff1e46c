"""What tiles and attention cost: `codegen/library_tiles.py`, counted and not run.

In: how a memory is cut into tiles, which coefficients its writes have, how its gates are kept. Out:
the `Course` over a sequence, from which reads are counted. The functions have the names of those
they count, and follow them line by line.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlc.ir.cost import WIDTH, Work
from nlc.passes.sized import Sized, Sizes
from nlc.passes.tally import Tally
from nlc.passes.work_gates import Products, inverse


@dataclass(frozen=True)
class Tiling:
    """`lanes` copies of n states [rows, columns] over `tiles` tiles of `size` tokens each.

    `ends` of the tiles are followed by a reset, so that nothing reads the states after them;
    `begins` of them begin a chunk.
    """

    lanes: int
    rows: int
    columns: int
    tiles: int
    size: int
    n: int = 1
    ends: int = 0
    begins: int = 0

    def of_token(self, width: int, needs: bool) -> Sized:
        """A vector for each token, cut into tiles."""
        return Sized((self.tiles, self.lanes, self.size, width), needs)


@dataclass(frozen=True)
class Write:
    """One outer product: whether each of its coefficients needs a gradient.

    `p` pairs that with the state that is read, `b` with the states it goes to, `c` with the write
    of the same token that it sees; `u` is None for 0. `met` says that what it reads of the state
    before a chunk is known.
    """

    p: tuple[tuple[bool, int], ...]
    u: bool | None
    b: tuple[tuple[bool, tuple[int, ...]], ...]
    c: tuple[tuple[bool, int], ...] = ()
    met: bool = False


Keys = list[tuple[Sized, tuple[int, ...]]]


@dataclass(frozen=True)
class Course:
    """A memory's course over a sequence."""

    tiling: Tiling
    gates: Products
    writes: tuple[Sized, ...]
    keys: tuple[Keys, ...]
    starts: Sized
    transposed: bool


def solve_tiles(
    t: Tiling, writes: list[Write], D: Products, transposed: bool, learned: bool
) -> tuple[Course, Tally]:
    """Count the solve of all tokens' writes; a gate that is 1 of one state alone is None."""
    tally = Tally()
    at, d_v, d_k = Sizes(tally), t.rows, t.columns
    keys = [[(D.keys(at, t.of_token(d_k, b)), into) for b, into in w.b] for w in writes]
    E = [t.of_token(d_v, bool(w.u)) for w in writes]
    open_ = [r for r, w in enumerate(writes) if w.p or w.c]
    known = [r for r in range(len(writes)) if r not in open_]
    left = {r: D.left(at, keys[r]) for r in known}
    before = tally.backward
    added = [at.matmul(E[s].mT, left[s]) for s in known]
    add = at.total([Sized((*x.shape[:-1], t.n * d_k), x.needs) for x in added]) if known else None
    if not open_:
        tally.backward = before + (tally.backward - before).share(t.tiles - t.ends, t.tiles)
    state = Sized((t.tiles, t.lanes, d_v, t.n * d_k), learned)
    whole = D.whole()
    if not open_:
        # where every tile begins anew, only what is learned needs a gradient
        goes_on = not t.ends or t.ends < t.tiles - 1
        needs = learned or (goes_on and (whole.needs or bool(add and add.needs)))
        starts = Sized(state.shape, needs)
        carried(tally, t, 1, whole, learned)
        carried(tally, t, t.tiles - 1, whole, needs)
        return Course(t, D, tuple(E), tuple(keys), starts, transposed), tally
    reads = {r: [(D.rows(at, t.of_token(d_k, p)), j) for p, j in writes[r].p] for r in open_}

    def A(r: int, s: int) -> Sized:
        found = [D.reach(at, into, j, p, b) for p, j in reads[r] for b, into in keys[s]]
        given = [x for x in found if x is not None]
        given += [t.of_token(t.size, c) for c, seen in writes[r].c if seen == s]
        return at.total(given) if given else t.of_token(t.size, False)

    U = [at.total([*(at.matmul(A(r, s), E[s]) for s in known), E[r]]) for r in open_]
    for r in open_:
        if reads[r]:
            D.asked(at, reads[r])
        D.left(at, keys[r])
        for s in open_:
            A(r, s)
    _scan(tally, t, U[0].last(t.size * len(open_), d_v), whole)
    E = [t.of_token(d_v, True) if r in open_ else e for r, e in enumerate(E)]
    return Course(t, D, tuple(E), tuple(keys), Sized(state.shape), transposed), tally


def move_tiles(
    t: Tiling, writes: list[Write], D: Products, transposed: bool, learned: bool
) -> tuple[Course, Tally]:
    """Count a tile whose gates are numbers, at most one write solved: `library_known.py`."""
    tally = Tally()
    at, d_v, d_k = Sizes(tally), t.rows, t.columns
    keys = [[(t.of_token(d_k, b), into) for b, into in w.b] for w in writes]
    E = [t.of_token(d_v, bool(w.u)) for w in writes]
    whole = D.whole()
    if any(w.p for w in writes):
        # the solve is made as a whole, whatever needs it
        learned = True
        _solve_tile(at, t, writes, D, (keys, E))
    state = Sized((t.tiles, t.lanes, d_k, d_v), learned)
    needs = learned or whole.needs or any(x.needs for x in E)
    for _ in range(t.n):
        at.each(state, whole.last(1, 1), flops=t.n)
    if whole.needs and t.n > 1:
        # numbers between states, from each pair of them
        tally.backward += Work(products=2 * t.n * state.entries * t.n)
    for found, e in zip(keys, E, strict=True):
        for b, into in found:
            needs = needs or b.needs
            for j in range(t.n):
                # all states are in one product, also those of which nothing is left
                left = D.left_in(into, j)
                of_left = left is not None and left.needs
                # numbers go with the smaller side, and their gradients with one of the two
                small, large = (e, b) if d_k > d_v else (b, e)
                key = at.each(small, Sized((*small.shape[:-1], 1), of_left))
                of_key = small.needs or (of_left and not large.needs)
                at.matmul(Sized(key.shape, of_key).mT, large)
    starts = Sized((t.tiles, t.lanes, d_v, t.n * d_k), needs)
    return Course(t, D, tuple(E), tuple(keys), starts, transposed), tally


def _solve_tile(
    at: Sizes, t: Tiling, writes: list[Write], D: Products, given: tuple[list[Keys], list[Sized]]
) -> None:
    """Count the one write that reads the state: of the start, of known writes, of itself."""
    keys, E = given
    r = next(r for r, w in enumerate(writes) if w.p)
    V = E[r]
    # a product for each tile but for those whose start is the state before the chunk
    tiles = t.tiles - t.begins if writes[r].met else t.tiles
    for needs, j in writes[r].p:
        p = t.of_token(t.columns, needs)
        x = at.each(p, Sized((*p.shape[:-1], 1), D.whole().needs))
        at.matmul(
            Sized((tiles, *x.shape[1:-1], t.n * t.columns), x.needs),
            Sized((tiles, t.lanes, t.n * t.columns, t.rows)),
        )
        V = at.total([V, Sized(V.shape)])
        for s, found in enumerate(keys):
            for b, into in found:
                scores = D.reach(at, into, j, p, b)
                if scores is not None and s != r:
                    V = at.total([V, at.matmul(scores, E[s])])
    E[r] = at.matmul(inverse(at, Sized((t.tiles, t.lanes, t.size, t.size))), V)


def carried(tally: Tally, t: Tiling, tiles: int, w: Sized, needs: bool) -> None:
    """M_j <- sum_a M_a w_aj at some tiles; where w are numbers between states, a product."""
    entries = t.columns * t.rows
    if t.n > 1 and w.shape[-1] == 1 and t.rows > 1:
        numbers = Sized((tiles, t.lanes, t.n, t.n), w.needs)
        Sizes(tally).matmul(numbers, Sized((tiles, t.lanes, t.n, entries), needs))
    else:
        state = Sized((tiles, t.lanes, t.n * entries), needs or w.needs)
        Sizes(tally).each(state, flops=2 * t.n)


def _scan(tally: Tally, t: Tiling, U: Sized, w: Sized) -> None:
    """From tile to tile: E = (I - A)^-1 (U + P M), then the states that the writes leave."""
    at = Sizes(tally)
    size = U.shape[-2]
    # the gradient is made as a whole, whatever needs it
    state = Sized((t.tiles, t.lanes, t.n * t.columns, t.rows))
    asked = Sized((t.tiles, t.lanes, size, t.n * t.columns))
    lower = inverse(at, Sized((t.tiles, t.lanes, size, size)))
    E = at.matmul(lower, at.each(Sized(U.shape), at.matmul(asked, state)))
    at.each(state, at.matmul(asked.mT, E))
    carried(tally, t, t.tiles, Sized(w.shape, False), True)
    # that of the gates: for each pair of states a sum over their entries
    if w.shape[-1] == 1:
        tally.backward += Work(products=2 * t.n * state.entries)
    tally.backward += Work(elementwise=2 * t.n * state.entries, bytes=2 * WIDTH * state.entries)


def read_tiles(course: Course, queries: int, state: int = 0) -> Tally:
    """Count M_t q_t for `queries` vectors of every token; of the transposed state its own way."""
    tally = Tally()
    at, t, D = Sizes(tally), course.tiling, course.gates
    rows = t.size * queries
    width = t.rows if course.transposed else t.columns
    q = Sized((t.tiles, t.lanes, rows, width))
    q = q if course.transposed else D.rows(at, q)
    pairs = [(e, b, into) for e, keys in zip(course.writes, course.keys, strict=True)
             for b, into in keys]  # fmt: skip
    if course.transposed:
        met = at.matmul(q, course.starts)
        found = [D.kept(at, state, Sized((*met.shape[:-1], t.columns), met.needs))]
        for e, b, into in pairs:
            before = tally.backward
            given = D.spread(at, into, state, at.matmul(q, e.mT), b)
            found += [given] if given is not None else []
            # no gradient comes back to a product that reaches no answer
            tally.backward = before if given is None else tally.backward
    else:
        asked = D.asked(at, [(q, state)])
        starts = Sized((*course.starts.shape[:-1], asked.shape[-1]), course.starts.needs)
        found = [at.matmul(asked, starts.mT)]
        for e, b, into in pairs:
            scores = D.reach(at, into, state, q, b)
            found += [at.matmul(scores, e)] if scores is not None else []
    at.total(found)
    return tally


def states_of_tiles(course: Course, state: int = 0) -> Tally:
    """Count the state as a whole, for every token."""
    tally = Tally()
    at, t, D = Sizes(tally), course.tiling, course.gates
    rows = t.size * t.rows
    first = Sized((t.tiles, t.lanes, rows, t.columns), course.starts.needs)
    found = [D.kept(at, state, first)]
    for e, keys in zip(course.writes, course.keys, strict=True):
        for b, into in keys:
            scores = Sized((t.tiles, t.lanes, rows, t.size), e.needs)
            given = D.spread(at, into, state, scores, b)
            found += [given] if given is not None else []
    at.total(found)
    return tally


def attend(lanes: int, rows: int, pairs: int, d_k: int, d_v: int) -> Tally:
    """Let rows attend to pairs, all scores computed; backward computes the scores once more."""
    tally = Tally()
    scores = lanes * rows * pairs
    moved = WIDTH * lanes * (rows + pairs) * (d_k + d_v)
    tally.forward += Work(products=2 * scores * (d_k + d_v), bytes=moved)
    tally.backward += Work(products=2 * scores * (3 * d_k + 2 * d_v), bytes=2 * moved)
    tally.elementwise(4 * scores, 0, 0)
    return tally
