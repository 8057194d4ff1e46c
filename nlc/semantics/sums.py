"""What a memory keeps until a window ends: running sums, and tokens for a second pass over them.

In: the equations of an update. Out: the same, in which every `window` node says under which slot it
is kept. A value that needs other totals of the window (the second step of an inner loop) is found
for all tokens once these are there: what it takes from each token is kept until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.system import Kept
from nlc.ir.windows import read_of

# leaves of another value at each token; states depend on whose they are
TOKENS = ("stream", "position", "shift", "conv", "attend")


def settle(
    graph: Graph,
    roots: Iterable[Expr],
    window: int,
    moves: Callable[[str], bool],
    waits: str = "",
) -> list[Expr]:
    """Give every `window` node its slot; `moves` says whether a memory moves within the window.

    An update that `waits` for a gradient of this name comes later: the last token is kept for it.
    """
    return _Settling(graph, window, moves, waits).settle(list(roots))


def lasts(graph: Graph, roots: Iterable[Expr], own: str) -> list[Expr]:
    """Say of what the one token of a window gives to an update that waits: it is the last one's.

    `own` is how the memory that moves is called.
    """
    new: dict[int, Expr] = {}
    roots = list(roots)
    stack: list[tuple[Expr, bool]] = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if id(node) in new:
            continue
        given = any(n.op == "state" and n.attr("memory") != own for n in read_of(node))
        if node.op == "grad":
            given = any(n.op in TOKENS for n in postorder(node.args[:1]))
        if node.op == "window":
            new[id(node)] = node
        elif node.op in TOKENS or given:
            new[id(node)] = graph.make(
                "window", node, how="last", period=("tokens", 1), slot="", again=False,
                span=node.span,
            )  # fmt: skip
        elif done:
            args = tuple(new[id(arg)] for arg in node.args)
            new[id(node)] = graph.make(node.op, *args, span=node.span, **dict(node.attrs))
        else:
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
    return [new[id(root)] for root in roots]


def kept(roots: Iterable[Expr]) -> tuple[tuple[Kept, ...], tuple[Kept, ...]]:
    """List the sums and the values of single tokens that some equations need kept."""
    sums: dict[str, Kept] = {}
    recent: dict[str, Kept] = {}
    for node in postorder(roots):
        if node.op == "window" and node.attr("slot"):
            where = recent if node.attr("how") in ("each", "end") else sums
            slot, (_, period) = node.attr("slot"), node.attr("period")
            where[slot] = Kept(slot, node.shape, period, node.attr("how") == "end")
    return tuple(sums.values()), tuple(recent.values())


@dataclass
class _Settling:
    """One update's windows; slots are numbered in the order in which they are needed."""

    graph: Graph
    window: int
    moves: Callable[[str], bool]
    waits: str = ""
    sums: int = 0
    each: dict[tuple[int, str], Expr] = field(default_factory=dict)

    def settle(self, roots: list[Expr]) -> list[Expr]:
        """Settle all windows, the inner ones first."""
        return rewrite(self.graph, roots, self._replace)

    def _replace(self, node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "window":
            return None
        (x,), how = args, node.attr("how")
        if node.attr("period") == ("tokens", self.window) and not any(map(_moves, postorder([x]))):
            # the same at each token
            number = self.graph.constant(float(self.window))
            return x if how != "sum" else self.graph.make("mul", number, x, span=node.span)
        needs_totals = any(self._is_total(n) for n in postorder(args))
        # sums over updates are taken when a window ends, and then all totals are there
        again = needs_totals and node.attr("period") == ("tokens", self.window)
        ends = bool(self.waits) and how == "last"
        again = again or ends
        slot = ""
        if again:
            x = self._keep(x, "end" if ends else "each")
        elif how != "last":
            self.sums += 1
            slot = str(self.sums)
        attrs = dict(node.attrs) | {"slot": slot, "again": again}
        return self.graph.make("window", x, span=node.span, **attrs)

    def _is_total(self, node: Expr) -> bool:
        """Say whether a value is known when the window has ended."""
        late = node.op == "variable" and bool(self.waits) and node.attr("memory") == self.waits
        return node.op in ("window", "ask") or late

    def _keep(self, root: Expr, how: str) -> Expr:
        """Keep the streams of each token and what it reads; the rest is found again from them."""
        varies: dict[int, bool] = {}
        whole: dict[int, bool] = {}
        for node in postorder([root]):
            varies[id(node)] = self._varies(node, varies)
            whole[id(node)] = _is_whole(node, whole)
        new: dict[int, Expr] = {}
        stack: list[tuple[Expr, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if id(node) in new:
                continue
            if node.op == "window" or not varies[id(node)]:
                new[id(node)] = node
            elif whole[id(node)] and self._is_read(node):
                new[id(node)] = self._each(node, how)
            elif done:
                args = tuple(new[id(arg)] for arg in node.args)
                new[id(node)] = self.graph.make(
                    node.op, *args, span=node.span, **dict(node.attrs)
                )  # fmt: skip
            else:
                stack.append((node, True))
                stack.extend((arg, False) for arg in reversed(node.args))
        return new[id(root)]

    def _each(self, x: Expr, how: str) -> Expr:
        place = (id(x), how)
        if place not in self.each:
            self.each[place] = self.graph.make(
                "window", x, how=how, period=("tokens", self.window),
                slot=str(len(self.each) + 1), again=False, span=x.span,
            )  # fmt: skip
        return self.each[place]

    def _is_read(self, node: Expr) -> bool:
        """Say whether a value is a stream, or what a token takes from a memory that moves on."""
        parts = read_of(node)
        return node.op in TOKENS or any(
            part.op == "state" and self.moves(part.attr("memory")) for part in parts
        )

    def _varies(self, node: Expr, inner: dict[int, bool]) -> bool:
        if node.op in TOKENS:
            return True
        if node.op == "state":
            return self.moves(node.attr("memory"))
        return node.op != "window" and any(inner[id(arg)] for arg in node.args)


def _moves(node: Expr) -> bool:
    """Say whether a leaf may be another at each token, or known only at the end of a window."""
    late = ("state", "variable", "window", "ask", "grad", "due", "route")
    return node.op in TOKENS or node.op in late


def _is_whole(node: Expr, inner: dict[int, bool]) -> bool:
    """Say whether a value needs no totals and no point at which an objective is differentiated."""
    if node.op in ("variable", "window", "ask"):
        return False
    args = node.args
    if node.op == "grad":
        # the objective's variables are the gradient's own
        totals = any(n.op == "window" for n in postorder(args[:1]))
        return not totals and all(inner[id(arg)] for arg in args[1:])
    return all(inner[id(arg)] for arg in args)
