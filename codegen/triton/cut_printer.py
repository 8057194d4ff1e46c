"""Kernels of a tile that go over blocks of d_v, where a whole state would not stay in registers.

In: a `Kernel` that is no loop over tiles. Out: its text as `triton.printer` writes it, with what
has channels of values inside a loop; sums over these grow from block to block. That needs a graph
in which no value with these channels hangs on a sum over them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.codegen.triton.graph import BINARY, UNARY, Tile
from nlc.codegen.triton.printer import KernelPrinter
from nlc.codegen.triton.solve import Kernel

from nlc.ir.expr import postorder

# as many channels as a program holds at once
WHOLE = 64


def is_cut(kernel: Kernel, d_v: int) -> bool:
    """Say whether a kernel goes over blocks of d_v: it holds states, and can."""
    roots = [tile for _, tile in kernel.stores]
    nodes = list(postorder(roots))
    held = any(set(node.dims) == {"K", "V"} for node in nodes)
    if kernel.loop or d_v <= WHOLE or not held:
        return False
    late: set[Tile] = set()
    for node in nodes:
        if _sums(node):
            if not node.dims:
                return False
            late.add(node)
        elif any(arg in late for arg in node.args):
            if "V" in node.dims:
                return False
            late.add(node)
    return True


def _sums(node: Tile) -> bool:
    """Say whether a value is a sum over the channels of values."""
    return "V" not in node.dims and any("V" in arg.dims for arg in node.args)


# what walks the tokens of a tile with all channels in registers
WALKS = frozenset({
    "direct", "direct_early", "given", "given_early", "taken", "taken_early", "decays",
    "decays_early", "passed_back", "ahead", "ahead_back",
})  # fmt: skip
ENTRIES = frozenset({*UNARY, *BINARY, "load", "here", "where", "spread"})


@dataclass
class CutPrinter(KernelPrinter):
    """Prints one kernel that goes over blocks of d_v.

    Where tokens are walked, vectors that are loaded, or made of such entry by entry, are made again
    after each walk: kept, they would fill the registers.
    """

    named: dict[Tile, str] = field(default_factory=dict)

    def _values(self) -> None:
        """Write what stands in the loop first: the channels, and where their values are."""
        out = self.out
        out.line("cv = begin + tl.arange(0, V)")
        if self.dims & {("C", "V")}:
            out.line("in_v = here[:, None] & (cv < d_v)[None, :]")
            out.line("at_v = at[:, None] * d_v + cv[None, :]")
        if self.dims & {("K", "V")}:
            out.line("in_m = (ck < d_k)[:, None] & (cv < d_v)[None, :]")
            out.line("at_m = (this * d_k + ck[:, None]) * d_v + cv[None, :]")

    def _run(self) -> None:
        nodes, out = list(postorder(self.roots)), self.out
        sums = [node for node in nodes if _sums(node)]
        moving = {node for node in nodes if "V" in node.dims}
        self.names.used.add("begin")
        # what blocks need, once
        for node in nodes:
            if node in moving or node in sums:
                for arg in node.args:
                    if arg not in moving and arg not in sums:
                        self._make(arg)
        for node in sums:
            shape = ", ".join(self.block(axis) for axis in node.dims)
            self._say(self._take(node), f"tl.zeros([{shape}], tl.float32)", node)
        out.line("for begin in range(0, d_v, V):")
        with out.indent():
            self._values()
            for node in nodes:
                if node in sums:
                    self._say(self.bound[node], self._expression(node), node, "+=")
                elif node in moving and node not in self.bound and self._alone(node):
                    body = self._expression(node)
                    self._say(self._take(node), body, node)
            for word, tile in self.kernel.stores:
                if tile in moving:
                    self._store_tile(word, tile)
        walks = any(node.op in WALKS for node in nodes)
        if walks:
            self._forget()
        for word, tile in self.kernel.stores:
            if tile not in moving:
                (self._make_walking if walks else self._make)(tile)
                self._store_tile(word, tile)
                if walks:
                    self._forget()

    def _make_walking(self, root: Tile) -> None:
        """Make a value, and what is cheap only where it is wanted."""
        for node in postorder([root]):
            if node in self.bound or (node is not root and _cheap(node)):
                continue
            if node.op in WALKS:
                self._forget()
            for inner in postorder([node], set(map(id, self.bound))):
                if inner not in self.bound and self._alone(inner):
                    name = self.named.get(inner) or self._take(inner)
                    self.bound[inner] = name
                    self._say(name, self._expression(inner), inner)
            if node.op in WALKS:
                self._forget()

    def _forget(self) -> None:
        """Forget what is cheap, and keep the compiler from remembering it."""
        self.out.line("tl.debug_barrier()")
        for node in [node for node in self.bound if _cheap(node)]:
            self.named[node] = self.bound.pop(node)


def _cheap(node: Tile) -> bool:
    """Say whether a vector of each token is loaded, or made of such entry by entry."""
    if node.dims != ("C", "K") or node.op not in ENTRIES:
        return False
    return all(len(arg.dims) < 2 or _cheap(arg) for arg in node.args)
