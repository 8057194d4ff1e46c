"""How much arithmetic an operation, and a map applied once, stand for.

In: a node, or a map. Out: the matrix products it needs and how many operations on single entries,
for one evaluation; no gradients. An elementwise operation counts as one for each entry of its
result, a reduction as one for each entry of its argument; what only lays out counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from nlc.ir.expr import Expr
from nlc.ir.operations import OPERATIONS, broadcast
from nlc.ir.shape import Shape, count
from nlc.ir.system import Map


@dataclass(frozen=True)
class Arithmetic:
    """One evaluation: products (2mnk each), solves, and operations on single entries.

    `inner` counts the entries that are written and read on the way, besides operands and result.
    """

    products: int = 0
    solves: int = 0
    elementwise: int = 0
    inner: int = 0


Count = Callable[[Expr], Arithmetic]


def arithmetic(node: Expr) -> Arithmetic:
    """Count one evaluation of a node, its arguments being there.

    >>> from nlc.ir.expr import Graph
    >>> from nlc.ir.shape import Axis
    >>> g, m, k = Graph(), Axis("m", 3), Axis("k", 4)
    >>> W = g.make("param", name="W", shape=(m, k))
    >>> arithmetic(g.make("matvec", W, g.make("stream", name="x", shape=(k,)))).products
    24
    """
    return ARITHMETIC[node.op](node)


def _each(times: int, inner: int = 0) -> Count:
    def row(node: Expr) -> Arithmetic:
        size = count(node.shape)
        return Arithmetic(elementwise=times * size, inner=inner * size)

    return row


def _of_argument(times: int, inner: int = 0) -> Count:
    def row(node: Expr) -> Arithmetic:
        size = count(node.args[0].shape)
        return Arithmetic(elementwise=times * size, inner=inner * size)

    return row


def _none(node: Expr) -> Arithmetic:
    return Arithmetic()


def _product(node: Expr) -> Arithmetic:
    return Arithmetic(products=2 * count(node.shape) * node.args[0].shape[-1].size)


def _dot(node: Expr) -> Arithmetic:
    # emitted as a product of entries and a sum
    size = count(broadcast(tuple(a.shape for a in node.args)))
    return Arithmetic(elementwise=2 * size, inner=2 * size)


def _matrix(shape: Shape) -> tuple[int, int, int]:
    return count(shape[:-2]), shape[-2].size, shape[-1].size


def _solve(node: Expr) -> Arithmetic:
    batch, n, _ = _matrix(node.args[0].shape)
    columns = 1 if node.attr("vector") else node.args[1].shape[-1].size
    return Arithmetic(solves=batch * (2 * n**3 // 3 + 2 * n * n * columns))


def _newton_schulz(node: Expr) -> Arithmetic:
    if len(node.shape) < 2:
        return Arithmetic()
    batch, m, n = _matrix(node.shape)
    m, n = sorted((m, n))
    steps = batch * int(node.attr("steps"))
    per_entry = 3 * batch * m * n + steps * (2 * m * n + 3 * m * m)
    products = steps * (4 * m * m * n + 2 * m**3)
    return Arithmetic(products, 0, per_entry, 3 * batch * m * n + steps * (9 * m * n + 12 * m * m))


def _eigen(node: Expr) -> Arithmetic:
    # reduction to tridiagonal form, QR, and the vectors
    batch, n, _ = _matrix(node.args[0].shape)
    return Arithmetic(solves=9 * batch * n**3)


def _conv(node: Expr) -> Arithmetic:
    # the tokens before are joined to those at hand
    size = count(node.shape)
    return Arithmetic(products=2 * size * int(node.attr("width")), inner=2 * size)


def _table() -> dict[str, Count]:
    by_kind: dict[str, Count] = {
        "leaf": _none,
        "elementwise": _each(1),
        "reduction": _of_argument(1),
        "contraction": _product,
        "layout": _none,
    }
    table = {name: by_kind[op.kind] for name, op in OPERATIONS.items() if op.kind in by_kind}
    return table | {
        "norm": _of_argument(2),
        "logsumexp": _of_argument(3),
        "softmax": _of_argument(4),
        "unit": _of_argument(3, inner=1),
        "rmsnorm": _of_argument(4, inner=3),
        "layernorm": _of_argument(6, inner=3),
        "layernorm_slope": _of_argument(10, inner=6),
        "dot": _dot,
        "outer": _each(1),
        "solve": _solve,
        "newton_schulz": _newton_schulz,
        "eig_values": _eigen,
        "eig_vectors": _eigen,
        "rotate": _each(3, inner=8),
        "cross_entropy": _of_argument(5),
        "conv": _conv,
        "window": _of_argument(1),
        "route": _of_argument(6),
        "due": _none,
        "shift": _none,
        "lookup": _none,
        "let": _none,
        "stop": _none,
        # what asks for a map or a memory is counted where that is known
        "apply": _none,
        "attend": _none,
        "grad": _none,
        "ask": _none,
    }


ARITHMETIC: Mapping[str, Count] = _table()


def layers(form: Map) -> tuple[list[tuple[int, int]], int]:
    """Return a map's products, (inputs, outputs) of each, and its operations on single entries."""
    chain = [axis.size for axis in form.chain]
    biased = bool(form.option("bias", False))
    match form.kind:
        case "linear" | "matrix":
            (a, b) = chain
            return [(a, b)], b if biased else 0
        case "mlp":
            pairs = list(pairwise(chain))
            extra = sum(chain[1:-1]) + (sum(chain[1:]) if biased else 0)
            extra += 8 * chain[-1] if form.option("norm", False) else 0
            return pairs, extra + (chain[-1] if form.option("residual", False) else 0)
        case "glu":
            a, h, b = chain
            return [(a, h), (a, h), (h, b)], 2 * h
        case "lora":
            a, r, b = chain
            return [(a, r), (r, b)], r + (b if biased else 0)
        case "conv" | "vector" | "scalar" | "table" | "kernel":
            return [], 0
