"""Short names for what long expressions repeat, so that they can be read.

In: expressions, and names that are taken. Out: a name for each value that stands in them several
times, with what it stands for, and for derivatives: `gelu'(h1)` for the derivative of gelu at h1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from nlc.ir.expr import Expr, Graph
from nlc.ir.operations import OPERATIONS
from nlc.ir.show import plain, show_expr
from nlc.passes.gradients import GRADIENTS, Maker, NoGradient

# what is shorter than this is written out wherever it stands
SHORT = 14


@dataclass
class Abbreviations:
    """`names` are by the id of a node; `lines` say what they stand for, inner ones first."""

    names: dict[int, str] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)


def abbreviate(graph: Graph, roots: Iterable[Expr], taken: set[str]) -> Abbreviations:
    """Name what is repeated; nothing where all is short."""
    roots = [plain(root) for root in roots]
    slopes = _slopes(graph, roots)
    order = list(_inner_first(roots, slopes))
    uses: Counter[int] = Counter(id(root) for root in roots)
    for node in order:
        for arg in _arguments(node, slopes):
            uses[id(arg)] += 1
    found = Abbreviations()
    free = (f"h{i}" for i in range(1, 10**6) if f"h{i}" not in taken)
    for node in order:
        if id(node) in slopes:
            function, x = slopes[id(node)]
            found.names[id(node)] = f"{function}'({show_expr(x, names=found.names)})"
            continue
        text = show_expr(node, names=found.names)
        if uses[id(node)] > 1 and node.args and node.op != "let" and len(text) > SHORT:
            name = next(free)
            found.names[id(node)] = name
            found.lines.append((name, text))
    return found


def _slopes(graph: Graph, roots: list[Expr]) -> dict[int, tuple[str, Expr]]:
    """Find derivatives of elementwise functions at values that stand there too."""
    found: dict[int, tuple[str, Expr]] = {}
    one = graph.constant(1.0)
    for node in _inner_first(roots, {}):
        if node.op.endswith("_slope"):
            found[id(node)] = (node.op.removesuffix("_slope"), plain(node.args[0]))
            continue
        row = GRADIENTS[node.op]
        if len(node.args) == 1 and OPERATIONS[node.op].kind == "elementwise" and node.op != "neg":
            if isinstance(row, NoGradient):
                continue
            slope = plain(row(Maker(graph), node, one, 0))
            if len(slope.args) > 1:
                found[id(slope)] = (node.op, plain(node.args[0]))
    return found


def _arguments(node: Expr, slopes: dict[int, tuple[str, Expr]]) -> list[Expr]:
    if id(node) in slopes:
        return [slopes[id(node)][1]]
    # a state that is applied has the map's name, and is not written out
    args = node.args[:1] if node.op == "apply" else node.args
    return [plain(arg) for arg in args]


def _inner_first(roots: list[Expr], slopes: dict[int, tuple[str, Expr]]) -> Iterable[Expr]:
    """Yield every node once, arguments before users."""
    seen: set[int] = set()
    for root in roots:
        stack: list[tuple[Expr, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                yield node
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack += [(arg, False) for arg in reversed(_arguments(node, slopes))]
