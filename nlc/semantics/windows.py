"""What varies inside a window of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nlc.ir.expr import Expr


def varying(roots: Iterable[Expr]) -> Iterator[Expr]:
    """Yield streams that stand bare: not in an objective, not reduced over a window's tokens."""
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op in ("stream", "position"):
            yield node
        elif node.op == "grad":
            stack.extend(node.args[1:])
        elif node.op != "window":
            stack.extend(node.args)
