"""The kernels that go backwards, from those of `triton.solve`.

In: a `Solve`. Out: a `Kernel` for the way from the last tile to the first, one for what each tile
was made of, one for each read. What is not kept is computed anew from the states before each tile.
"""

from __future__ import annotations

from nlc.codegen.triton.gradient import gradients
from nlc.codegen.triton.graph import Tile, renamed
from nlc.codegen.triton.solve import Kernel, Solve


def states_back(solve: Solve) -> Kernel:
    """The last tile first: the gradients of the states after each tile, and of its writes."""
    solve.begin()
    tiles = solve.tiles
    dM = [
        tiles.make(
            "carried", dims=("K", "V"), word=f"dM{solve.number(j)}", name=f"dM{solve.number(j)}"
        )
        for j in solve.states
    ]
    stores = [(f"dends{solve.number(j)}", dM[j]) for j in solve.states]
    dE: dict[int, Tile] = {}
    for r in solve.open_:
        total = tiles.load(f"de{solve.label(r)}", ("C", "V"))
        for j in solve.states:
            for left in solve.left(r, j):
                total = tiles.add(total, tiles.dot(left, dM[j], (False, False), ("C", "V")))
        dE[r] = renamed(total, f"de{solve.label(r)}_all")
        stores.append((f"de{solve.label(r)}_all", dE[r]))
    after = []
    for a in solve.states:
        total = solve.state("dstarts", a)
        for j in solve.states:
            whole = solve.whole(a, j)
            if whole is not None:
                total = tiles.add(total, tiles.mul(whole, dM[j]))
        for r in solve.open_:
            word = solve.word(f"w{solve.number(a)}", r)
            if word in solve.words:
                w = tiles.load(word, ("C", "K"), about="(I - A)^-1 P")
                total = tiles.add(total, tiles.dot(w, dE[r], (True, False), ("K", "V")))
        after.append(total)
    return Kernel(
        "states_back",
        "Go from the last tile to the first: the gradients of its writes and states.",
        tuple(stores),
        loop=-1,
        carried=tuple((m, f"dM{solve.number(j)}_after") for j, m in enumerate(dM)),
        after=tuple(after),
        ends=tuple(f"dM{solve.number(j)}_before" for j in solve.states),
    )


def tiles_back(solve: Solve) -> Kernel:
    """The gradients of what the tiles kernel was given."""
    solve.begin()
    tiles = solve.tiles
    found = solve.solved()
    reached: dict[Tile, Tile] = {}

    def reach(value: Tile, grad: Tile) -> None:
        if value.op != "number":
            reached[value] = tiles.add(reached.get(value), grad)

    for r in solve.open_:
        de = tiles.load(f"de{solve.label(r)}_all", ("C", "V"))
        word = solve.word("u", r)
        if word in found:
            reach(found[word], de)
        for a in solve.states:
            word = solve.word(f"w{solve.number(a)}", r)
            if word in found:
                M = solve.state("starts", a)
                reach(found[word], tiles.dot(de, M, (False, True), ("C", "K")))
    for j in solve.states:
        dM = solve.state("dends", j)
        for r in range(len(solve.form.writes)):
            for b, into in solve.keys(r):
                left = solve.gates.left(into, j, b)
                if left is None:
                    continue
                reach(left, tiles.dot(solve.written(r), dM, (False, True), ("C", "K")))
                if r in solve.known:
                    e = solve.offset(r)
                    reach(e, tiles.dot(left, dM, (False, False), ("C", "V")))
        for a in solve.states:
            whole = solve.gates.whole(a, j)
            if whole is not None and whole.op != "number":
                product = tiles.mul(solve.state("starts", a), dM)
                product = tiles.sum(product, "V")
                if not whole.dims:
                    product = tiles.sum(product, "K")
                reach(whole, product)
    return _back(solve, "tiles_back", "Give the gradients of what each tile was made of.", reached)


def read_back(solve: Solve, state: int, late: bool, name: str) -> Kernel:
    """The gradients of what a read was given."""
    solve.begin()
    y = solve.answered(state, late)
    about = "Give the gradients of all that a read hangs on."
    return _back(solve, name, about, {y: solve.tiles.load("dy", y.dims)})


def _back(solve: Solve, name: str, about: str, reached: dict[Tile, Tile]) -> Kernel:
    found = gradients(solve.tiles, reached)
    stores = []
    for load, grad in found.items():
        stores.append((f"grad_{load.word}", renamed(grad, f"grad_{load.word}")))
    return Kernel(name, about, tuple(sorted(stores)))
