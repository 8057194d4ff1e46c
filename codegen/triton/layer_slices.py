"""Layers too large for one program's registers: kernels that walk a hidden width in slices.

In: a map, and kernels of `triton.layers` as graphs. Out: which widths between layers are walked and
how many of their channels a program takes at a time; the text of a kernel that does.

A value that has channels of such a width, `[C, h]` or a slice of a state, lives inside a loop over
slices; a sum over them grows from slice to slice. What hangs on such a sum, and has these channels
again, needs one more loop, in which a slice is made anew of what it is made of:

    y = W2 act(W1 x)                  one loop: W1 and W2 slice by slice, y grows
    u1 = act'(W1 x) (W2^T (y - v))    a second one: the error is known only after the first

States stand in memory before each tile, so a slice is loaded, and stored, where it is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.triton.graph import BINARY, NAMED, UNARY, Dims, Tile
from nlc.codegen.triton.layer_printer import BARRIER, MAKE, RESERVED, LayerPrinter
from nlc.codegen.triton.layer_values import block_size, count, own_dims
from nlc.codegen.triton.solve import Kernel
from nlc.codegen.writer import Writer

from nlc.ir.expr import postorder
from nlc.ir.system import Map

# entries of a layer that one program holds
LARGEST = 1 << 13
# channels of a slice, and entries of a slice of a layer: what goes back holds more of them at once
NARROWEST, WIDEST = 16, 64
FORWARD, BACK = 1 << 12, 1 << 11
# how widths are called that are walked: those between the first layers
LETTERS = "hjlmnp"


@dataclass(frozen=True)
class Slices:
    """The axes of each part by name, and how many entries each channel of those walked has."""

    axes: Mapping[str, Dims]
    walked: Mapping[str, int]


def slices(form: Map) -> Slices | str:
    """Choose which widths of a map are walked; a text says what no slices help with."""
    places = {part.name: _places(form, part.name) for part in form.parts}
    axes = {part.name: own_dims(part.shape) for part in form.parts}
    places = {name: found[len(found) - len(axes[name]) :] for name, found in places.items()}
    large = [name for name, dims in axes.items() if _entries(dims) > LARGEST]
    walked: list[int] = []
    for name in large:
        inner = [p for p in places[name] if 0 < p < len(form.chain) - 1]
        walked += sorted(inner, key=lambda p: form.chain[p].size)[-1:]
    walked = sorted(set(walked))[: len(LETTERS)]
    axes = {
        name: tuple(
            f"{LETTERS[walked.index(p)]}{count(axis)}" if p in walked else axis
            for p, axis in zip(places[name], dims, strict=True)
        )
        for name, dims in axes.items()
    }
    entries: dict[str, int] = {}
    for name, dims in axes.items():
        cut = [axis for axis in dims if not axis.isdigit()]
        if len(cut) > 1:
            return f"a layer between two hidden widths has more than {LARGEST} weights"
        if name in large and not cut:
            return f"a layer has more than {LARGEST} weights"
        for axis in cut:
            others = _entries(tuple(other for other in dims if other != axis))
            if NARROWEST * others > BACK:
                return f"{NARROWEST} channels of a layer have more than {BACK} weights"
            entries[axis] = max(others, entries.get(axis, 0))
    return Slices(axes, entries)


def widths(walked: Mapping[str, int], kernel: Kernel) -> dict[str, int]:
    """How many channels of each width a kernel takes at a time."""
    most = BACK if kernel.name.endswith("_back") else FORWARD
    return {axis: min(WIDEST, most // n) for axis, n in walked.items()}


def _entries(dims: Dims) -> int:
    total = 1
    for axis in dims:
        total *= block_size(axis)
    return total


def _places(form: Map, part: str) -> tuple[int, ...]:
    """Where the axes of a part stand in its map's chain of widths."""
    layer, last = part.partition(".")[0], len(form.chain) - 1
    match form.kind, layer:
        case "mlp", "norm":
            out = last
        case "mlp", _:
            out = int(layer.removeprefix("layer"))
        case "glu" | "lora", ("up" | "down") as word:
            out = 1 if word == ("up" if form.kind == "glu" else "down") else 2
        case _:
            out = 1
    rank = len(next(p.shape for p in form.parts if p.name == part))
    return (out, out - 1)[:rank]


def printer_of(
    kernel: Kernel,
    out: Writer,
    used: set[str],
    about: list[str],
    chunk: int,
    walked: Mapping[str, int],
) -> LayerPrinter:
    """What prints a kernel."""
    if not walked:
        return LayerPrinter(kernel, out, used, about, chunk=chunk)
    taken = widths(walked, kernel)
    return SlicePrinter(kernel, out, used, about, chunk=chunk, widths=taken)


@dataclass(frozen=True)
class _Store:
    """What a kernel stores: where, and whether it is made of what stands there."""

    word: str
    tile: Tile
    again: bool

    @property
    def tensor(self) -> str:
        return self.word.partition(":")[0]


@dataclass
class SlicePrinter(LayerPrinter):
    """Prints one kernel that walks some widths; `levels` say how many loops come before a value."""

    widths: Mapping[str, int] = field(default_factory=dict)
    levels: dict[Tile, int] = field(default_factory=dict)
    # which vectors are made anew where they are taken, and how values are called inside loops
    cheap: dict[Tile, bool] = field(default_factory=dict)
    inside: dict[Tile, str] = field(default_factory=dict)
    # tensors into which was stored since all threads last waited for one another
    fresh: set[str] = field(default_factory=set)
    names: Names = field(default_factory=lambda: Names({*RESERVED, *NAMED, "begin"}))

    @property
    def narrow(self) -> bool:
        """Say whether it holds more than registers would take at once: it goes back."""
        return self.kernel.name.endswith("_back")

    def block(self, axis: str) -> str:
        """How many entries a block has along an axis."""
        return str(self.widths[axis]) if axis in self.widths else super().block(axis)

    def size(self, axis: str) -> str:
        """How many entries an axis has, for the text beside a value."""
        return self.block(axis) if axis in self.widths else super().size(axis)

    def padded(self, axis: str) -> bool:
        """Say whether a block reaches beyond the end of an axis."""
        if axis in self.widths:
            return count(axis) % self.widths[axis] != 0
        return super().padded(axis)

    def passing(self, tile: Tile) -> bool:
        """Say whether a value is made again for each thing that takes it."""
        return super().passing(tile) or self._cheap(tile)

    def _cheap(self, tile: Tile) -> bool:
        """Say whether vectors are made entry by entry of what is loaded: kept, they take room."""
        if len(tile.dims) < 2 or tile.dims[0] != "C" or tile.dims[1] == "I" or self._walked(tile):
            return False
        if tile not in self.cheap:
            by_entry = tile.op in {"load", "here", "where", "spread", *UNARY, *BINARY}
            vectors = [arg for arg in tile.args if len(arg.dims) == 2]
            self.cheap[tile] = by_entry and all(map(self._cheap, vectors))
        return self.cheap[tile]

    def _channels(self, axis: str) -> None:
        if axis not in self.widths:
            super()._channels(axis)

    def _walked(self, tile: Tile) -> str:
        """The width that a value has a slice of, or nothing."""
        found = [axis for axis in tile.dims if axis in self.widths]
        assert len(found) < 2, tile.dims
        return found[0] if found else ""

    def _sums(self, tile: Tile) -> str:
        """The width whose channels a value sums, or nothing."""
        return "" if self._walked(tile) else "".join({self._walked(arg) for arg in tile.args})

    def _stores(self) -> None:
        order = list(postorder(self.roots))
        for node in order:
            before = max((self.levels[arg] for arg in node.args), default=0)
            self.levels[node] = before + bool(self._sums(node))
        stores = self._sorted()
        for level in range(max(self.levels.values()) + 1):
            for axis in ("", *self.widths):
                sums = [n for n in order if axis and self._sums(n) == axis]
                now = {n for n in sums if self.levels[n] == level + 1}
                totals = self._totals(now, order)
                here = [s for at, s in stores if at == level and self._walked(s.tile) == axis]
                if totals or here:
                    self._part(axis, now, totals, here)

    def _totals(self, sums: set[Tile], order: list[Tile]) -> dict[Tile, list[Tile]]:
        """What grows over a loop, with its terms: sums over slices, and what is there before it.

        Sums that are only added up grow as one.
        """
        found: dict[Tile, list[Tile]] = {}
        taken: set[Tile] = set()
        for node in reversed(order):
            terms = self._terms(node)
            grow = [term for term in terms if term in sums]
            alone = all(term is node or self.uses[term] == 1 for term in grow)
            there = all(term in sums or self.levels[term] < self.levels[node] for term in terms)
            if node not in taken and grow and alone and there:
                found[node] = terms
                taken.update(grow)
                taken.update(postorder([node], set(map(id, terms))))
        return {node: found[node] for node in order if node in found}

    def _terms(self, node: Tile) -> list[Tile]:
        """The terms of a chain of additions; those that others ask for are not taken apart."""
        found, waiting = [], [node]
        while waiting:
            term = waiting.pop()
            apart = term.op == "add" and (term is node or self.uses[term] == 1)
            if apart and all(arg.dims == term.dims for arg in term.args):
                waiting += reversed(term.args)
            else:
                found.append(term)
        return found

    def _sorted(self) -> list[tuple[int, _Store]]:
        """What is stored, and when: never before what goes into the same tensor."""
        found: list[tuple[int, _Store]] = []
        given = self.kernel.stores
        for i, (word, tile) in enumerate(given):
            if word in (MAKE, BARRIER):
                continue
            again = i > 1 and given[i - 1][0] == BARRIER and given[i - 2] == (MAKE, tile)
            store = _Store(word, tile, again)
            same = [at for at, other in found if other.tensor == store.tensor]
            found.append((max([self.levels[tile], *same]), store))
        return found

    def _part(
        self, axis: str, sums: set[Tile], totals: dict[Tile, list[Tile]], stores: list[_Store]
    ) -> None:
        """Write one loop over slices, or what stands before it."""
        if not axis:
            self._write(stores)
            return
        growing = [(n, term) for n, terms in totals.items() for term in terms if term in sums]
        roots = [*(term for _, term in growing), *(store.tile for store in stores)]
        for node in self._outside(roots):
            self._make(node)
        for node, terms in totals.items():
            self._begin(node, [term for term in terms if term not in sums])
        out, width = self.out, self.widths[axis]
        self._settle(stores)
        outside, self.loaded_as, self.inside = dict(self.bound), self.inside, self.loaded_as
        out.line("begin = tl.full([], 0, tl.int32)")
        out.line(f"while begin < {count(axis)}:")
        with out.indent():
            out.line(f"c{axis} = begin + tl.arange(0, {width})")
            for place, (node, term) in enumerate(growing):
                if place and self.narrow:
                    self._wait()
                self._make_all(list(term.args))
                self._say(self.bound[node], self._expression(term), node, "+=")
            for place, store in enumerate(stores, len(growing)):
                if place and self.narrow:
                    self._wait()
                self._write([store])
            out.line(f"begin += {width}")
        for node in self.bound.keys() - outside.keys():
            self.loaded_as.setdefault(node, self.bound[node])
        self.bound, self.loaded_as, self.inside = outside, self.inside, self.loaded_as

    def _begin(self, node: Tile, terms: list[Tile]) -> None:
        """Begin what grows with the terms that are there."""
        self._make_all(terms)
        shape = ", ".join(self.block(axis) for axis in self.seen(node.dims))
        zero = f"tl.zeros([{shape}], tl.float32)" if shape else "tl.full([], 0.0, tl.float32)"
        name = self._take(node)
        self._say(name, self.text(terms[0]) if terms else zero, node)
        for term in terms[1:]:
            self._say(name, self.text(term), node, "+=")

    def _write(self, stores: list[_Store]) -> None:
        for store in stores:
            self._settle([store])
            self._make(store.tile)
            if store.again:
                self._wait()
            self._store_tile(store.word, store.tile)
            self.fresh.add(store.tensor)

    def _settle(self, stores: list[_Store]) -> None:
        """Wait for what was stored, where it is loaded again."""
        if any(store.again and store.tensor in self.fresh for store in stores):
            self._wait()

    def _wait(self) -> None:
        """Let all threads wait: nothing that is loaded after it is loaded before it, and kept."""
        self.out.line("tl.debug_barrier()")
        self.fresh.clear()

    def _outside(self, roots: list[Tile]) -> list[Tile]:
        """What a loop takes that has nothing of its slices."""
        order = list(postorder(roots))
        inside, found = set(roots), set[Tile]()
        for node in reversed(order):
            if node in inside:
                for arg in node.args:
                    (inside if self._walked(arg) or self._cheap(arg) else found).add(arg)
        return [node for node in order if node in found]
