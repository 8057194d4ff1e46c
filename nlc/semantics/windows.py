"""What varies inside a window of tokens, and where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from nlc.ir.expr import Expr
from nlc.source import Span


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
        stack.extend(_bare(node))


def _bare(node: Expr) -> tuple[Expr, ...]:
    """The arguments that are not reduced over the tokens of a window."""
    if node.op == "window":
        return ()
    return node.args[1:] if node.op == "grad" else node.args


def place_of(leaf: Expr, roots: Iterable[Expr], within: Span) -> Span:
    """Find where a leaf is used inside a clause; equal leaves are one, with one place."""

    def inside(span: Span) -> bool:
        return (
            span.source is within.source and within.start <= span.start and span.end <= within.end
        )

    if inside(leaf.span):
        return leaf.span
    seen: set[int] = set()
    stack = [(root, within) for root in roots]
    while stack:
        node, place = stack.pop()
        if node is leaf:
            # the leaf's own words, where the expression around it begins or ends with them
            words = leaf.attr("name") if leaf.op == "stream" else leaf.op
            at = _word(place, words)
            return place if at is None else at
        if id(node) in seen:
            continue
        seen.add(id(node))
        if inside(node.span):
            place = node.span
        stack.extend((arg, place) for arg in _bare(node))
    return within


def _word(span: Span, word: str) -> Span | None:
    """Find a name in the words of a span."""
    found = re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", span.text)
    if found is None:
        return None
    return Span(span.source, span.start + found.start(), span.start + found.end())
