"""How products of gates enter a kernel, one class for each way that a plan keeps them.

In: the gates of n states as tiles: numbers, [C] or [C, K], None 0. Each class offers what
`library_gates` tells for PyTorch, with F(t, i) = D_{i+1} ... D_t, and t-1 in the place of t unless
`late`:

    reach(into, j, q, b)     <F(t, i) b_i, q_t> [C, I], writes into some states, read in state j
    asked(j, q)              what the first states are asked by a read of state j, each [C, K]
    left(into, j, b)         F(C, i) b_i [C, K], what a write leaves in state j at the tile's end
    whole(a, j)              F(C, 0): a number or [K]
    kept(a, j, x)            F_aj(t, 0) applied to rows x [C, K] of state a
    spread(into, j, s, b)    sum_i s[t, i] F(t, i) b_i [C, K]
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.codegen.triton.eliminate import times
from nlc.codegen.triton.graph import Tile, Tiles, renamed

Given = list[list[Tile | None]]


@dataclass
class Scalar:
    """One gate of each token, a number; n states may flow into one another, not in a circle."""

    tiles: Tiles
    gates: Given
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        waiting = list(range(len(self.gates)))
        while waiting:
            free = [j for j in waiting if all(self.gates[m][j] is None for m in waiting if m != j)]
            assert free, "states that flow in a circle have no kernel"
            self.order += free
            waiting = [j for j in waiting if j not in free]

    # ---- products between two states -----------------------------------------------------------

    def _own(self, j: int) -> Tile | None:
        """The gate of a state by itself: None 0, a number 1 where it keeps everything."""
        return self.gates[j][j]

    def _flows(self, a: int, j: int) -> list[tuple[Tile, int]]:
        """The states through which state a flows into j: the last gate, and where it stands."""
        return [
            (gate, m)
            for m in range(len(self.gates))
            if m != j and (gate := self.gates[m][j]) is not None and self._reaches(a, m)
        ]

    def _reaches(self, a: int, j: int) -> bool:
        return a == j or any(
            self._reaches(a, m)
            for m in range(len(self.gates))
            if m != j and self.gates[m][j] is not None
        )

    def table(self, a: int, j: int, late: bool) -> Tile | None:
        """F_aj(t, i) [C, I]."""
        tiles = self.tiles
        own = self._rows("late" if late else "early", j)
        if a == j:
            return own
        came: Tile | None = None
        for gate, m in self._flows(a, j):
            inner = self.table(a, m, late=False)
            assert inner is not None
            came = tiles.add(came, tiles.mul(_flow(tiles, gate), inner))
        if came is None:
            return None
        found = tiles.dot(own, came, (False, False), ("C", "I"))
        return renamed(found, f"F{a + 1}{j + 1}" + ("" if late else "_early"))

    def since(self, a: int, j: int, late: bool) -> Tile | None:
        """F_aj(t, 0) [C]."""
        tiles = self.tiles
        if a == j:
            return self._rows("since" if late else "since_early", j)
        own, found = self._rows("late" if late else "early", j), None
        for gate, m in self._flows(a, j):
            inner = self.since(a, m, late=False)
            assert inner is not None
            came = tiles.make("turned", tiles.mul(_flow(tiles, gate), inner), dims=("I",))
            found = tiles.add(found, tiles.sum(tiles.mul(own, came), "I"))
        return found

    def until(self, a: int, j: int) -> Tile | None:
        """F_aj(C, i) [C]."""
        tiles = self.tiles
        if a == j:
            return self._rows("until", j)
        own, found = self._rows("until", j), None
        for gate, m in self._flows(a, j):
            inner = self.table(a, m, late=False)
            assert inner is not None
            came = tiles.sum(tiles.mul(tiles.mul(own, _flow(tiles, gate)), inner), "C")
            found = tiles.add(found, tiles.make("turned", came, dims=("C",)))
        return found

    def whole(self, a: int, j: int) -> Tile | None:
        """F_aj(C, 0), a number."""
        tiles = self.tiles
        if a == j:
            return self._rows("whole", j)
        own, found = self._rows("until", j), None
        for gate, m in self._flows(a, j):
            inner = self.since(a, m, late=False)
            assert inner is not None
            came = tiles.mul(tiles.mul(own, _flow(tiles, gate)), inner)
            found = tiles.add(found, tiles.sum(came, "C"))
        return found

    def _rows(self, op: str, j: int) -> Tile:
        tiles, gate = self.tiles, self._own(j)
        g = tiles.number(0.0) if gate is None else gate
        if g.op == "number" and g.number == 1.0:
            # everything is kept
            if op not in ("late", "early"):
                return g
            return tiles.named("upto" if op == "late" else "below", tiles.spread(g, ("C", "I")))
        label = "" if len(self.gates) == 1 else str(j + 1)
        return renamed(self.tiles.named(op, _full(self.tiles, g)), f"{WORDS[op]}{label}", SAID[op])

    # ---- what kernels ask ----------------------------------------------------------------------

    def reach(self, into: tuple[int, ...], j: int, q: Tile, b: Tile, late: bool) -> Tile | None:
        """<F(t, i) b_i, q_t>."""
        tiles, total = self.tiles, None
        for a in into:
            table = self.table(a, j, late)
            total = total if table is None else tiles.add(total, table)
        if total is None:
            return None
        return tiles.mul(total, tiles.dot(q, b, (False, True), ("C", "I")))

    def asked(self, j: int, q: Tile, late: bool) -> dict[int, Tile]:
        """F(t, 0) q_t, by state."""
        found = {a: self.since(a, j, late) for a in range(len(self.gates))}
        return {a: self.tiles.mul(x, q) for a, x in found.items() if x is not None}

    def left(self, into: tuple[int, ...], j: int, b: Tile) -> Tile | None:
        """F(C, i) b_i."""
        column = self.column(into, j)
        return None if column is None else self.tiles.mul(column, b)

    def kept(self, a: int, j: int, x: Tile, late: bool) -> Tile | None:
        """F_aj(t, 0) x_t."""
        since = self.since(a, j, late)
        return None if since is None else self.tiles.mul(since, x)

    def spread(
        self, into: tuple[int, ...], j: int, scores: Tile, b: Tile, late: bool
    ) -> Tile | None:
        """sum_i s[t, i] F(t, i) b_i."""
        tiles, total = self.tiles, None
        for a in into:
            table = self.table(a, j, late)
            total = total if table is None else tiles.add(total, table)
        if total is None:
            return None
        return times(tiles, tiles.mul(total, scores), b)

    def column(self, into: tuple[int, ...], j: int) -> Tile | None:
        """How much of a write is in state j at the tile's end [C]."""
        total = None
        for a in into:
            part = self.until(a, j)
            total = total if part is None else self.tiles.add(total, part)
        return total


@dataclass
class Relative:
    """A gate of each channel whose products stay within exp(-60) and exp(60): they are split."""

    tiles: Tiles
    gates: Given
    axis: str = "K"

    def __post_init__(self) -> None:
        g = self.gates[0][0]
        assert g is not None
        self.g = _full(self.tiles, g, ("C", self.axis))
        self.running = renamed(self.tiles.named("running", self.g), "F", "F(t, 0)")
        self.end = renamed(self.tiles.named("last", self.running), "F_end", "F(C, 0)")

    def _since(self, late: bool) -> Tile:
        return self.running if late else self.tiles.binary("div", self.running, self.g)

    def reach(self, into: tuple[int, ...], j: int, q: Tile, b: Tile, late: bool) -> Tile | None:
        """<F(t, i) b_i, q_t>, rows and keys taken relative to the tile's start."""
        tiles = self.tiles
        rows, keys = tiles.mul(q, self._since(late)), tiles.binary("div", b, self.running)
        scores = tiles.dot(rows, keys, (False, True), ("C", "I"))
        return tiles.named("upto" if late else "below", scores)

    def asked(self, j: int, q: Tile, late: bool) -> dict[int, Tile]:
        """F(t, 0) q_t."""
        return {0: self.tiles.mul(q, self._since(late))}

    def left(self, into: tuple[int, ...], j: int, b: Tile) -> Tile | None:
        """F(C, i) b_i."""
        tiles = self.tiles
        return tiles.mul(b, tiles.binary("div", self.end, self.running))

    def column(self, into: tuple[int, ...], j: int) -> Tile | None:
        """There is none: what is left differs by channel."""
        return None

    def whole(self, a: int, j: int) -> Tile | None:
        """F(C, 0) [K]."""
        return self.end

    def kept(self, a: int, j: int, x: Tile, late: bool) -> Tile | None:
        """F(t, 0) x_t."""
        return self.tiles.mul(self._since(late), x)

    def spread(
        self, into: tuple[int, ...], j: int, scores: Tile, b: Tile, late: bool
    ) -> Tile | None:
        """sum_i s[t, i] F(t, i) b_i."""
        tiles = self.tiles
        seen = tiles.named("upto" if late else "below", tiles.spread(scores, ("C", "I")))
        keys = tiles.binary("div", b, self.running)
        return tiles.mul(self._since(late), tiles.dot(seen, keys, (False, False), b.dims))


@dataclass
class Direct:
    """A gate of each channel, multiplied forward: keys as every later token sees them."""

    tiles: Tiles
    gates: Given
    axis: str = "K"

    def __post_init__(self) -> None:
        g = self.gates[0][0]
        assert g is not None
        self.g = _full(self.tiles, g, ("C", self.axis))

    def _since(self, late: bool) -> Tile:
        op = "passed" if late else "passed_early"
        return renamed(self.tiles.named(op, self.g), "F" if late else "F_early", SAID_DIRECT[op])

    def reach(self, into: tuple[int, ...], j: int, q: Tile, b: Tile, late: bool) -> Tile | None:
        """<F(t, i) b_i, q_t>, channel by channel."""
        return self.tiles.named("direct" if late else "direct_early", q, b, self.g)

    def asked(self, j: int, q: Tile, late: bool) -> dict[int, Tile]:
        """F(t, 0) q_t."""
        return {0: self.tiles.mul(q, self._since(late))}

    def left(self, into: tuple[int, ...], j: int, b: Tile) -> Tile | None:
        """F(C, i) b_i."""
        until = renamed(self.tiles.named("ahead", self.g), "F_end", "F(C, i)")
        return self.tiles.mul(b, until)

    def column(self, into: tuple[int, ...], j: int) -> Tile | None:
        """There is none: what is left differs by channel."""
        return None

    def whole(self, a: int, j: int) -> Tile | None:
        """F(C, 0) [K]."""
        return renamed(self.tiles.named("last", self._since(True)), "F_whole", "F(C, 0)")

    def kept(self, a: int, j: int, x: Tile, late: bool) -> Tile | None:
        """F(t, 0) x_t."""
        return self.tiles.mul(self._since(late), x)

    def spread(
        self, into: tuple[int, ...], j: int, scores: Tile, b: Tile, late: bool
    ) -> Tile | None:
        """sum_i s[t, i] F(t, i) b_i."""
        scores = self.tiles.spread(scores, ("C", "I"))
        return self.tiles.named("given" if late else "given_early", scores, b, self.g)


SAID_DIRECT = {"passed": "F(t, 0)", "passed_early": "F(t-1, 0)"}
WORDS = {
    "late": "F", "early": "F_early", "since": "f", "since_early": "f_early",
    "until": "f_end", "whole": "f_whole",
}  # fmt: skip
SAID = {
    "late": "F(t, i), i <= t", "early": "F(t-1, i), i < t", "since": "F(t, 0)",
    "since_early": "F(t-1, 0)", "until": "F(C, i)", "whole": "F(C, 0)",
}  # fmt: skip

KINDS = {
    "ScalarGate": Scalar, "CoupledGates": Scalar, "RelativeGates": Relative,
    "ChannelGates": Direct,
}  # fmt: skip


def _full(tiles: Tiles, gate: Tile, dims: tuple[str, ...] = ("C",)) -> Tile:
    return tiles.here(tiles.spread(gate, dims), 1.0) if gate.op == "number" else gate


def _flow(tiles: Tiles, gate: Tile) -> Tile:
    """A gate from one state into another: nothing flows beyond the sequence."""
    return tiles.here(tiles.spread(gate, ("C",)), 0.0) if gate.op == "number" else gate
