"""Windows of tokens: how long a level's state stays, which state is read, what varies inside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr
from nlc.ir.system import Period
from nlc.semantics.context import Context
from nlc.source import Span

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver
    from nlc.semantics.records import Body

# longer than any window
FOREVER = 2**62


def window_of(context: Context, level: str) -> int:
    """Count the tokens for which a level's state stays; what moves at steps stays for ever."""
    unit, count = own_period(context, level)
    match unit:
        case "tokens":
            return count
        case "always":
            return 1
        case _:
            return FOREVER


def own_period(context: Context, level: str) -> tuple[str, int]:
    """Give the period of a memory's updates; a rule by itself moves at each step."""
    period = context.levels[level].period if level else Period("steps")
    return (period.unit, period.count)


def seen(block: BlockResolver, body: Body, when: str, clock: int) -> str:
    """Say which state a read after the update sees, for a reader that moves every `clock` tokens.

    What moves later than the reader has not moved yet.
    """
    late = window_of(block.context, body.level) > clock or body.is_task
    return "prev" if when == "post" and late else when


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
