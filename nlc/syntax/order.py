"""Where a block's memories stand among its equations.

In: memories and equations, each in order. Out: for each memory, before which equation the text
form prints it. A memory stands before the first equation that reads it, and memories keep their
order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nlc.syntax import tree as t


def memory_places(memories: Sequence[t.Memory], equations: Sequence[t.Stmt]) -> list[int]:
    """Return for each memory the index of the equation that it precedes."""
    first: dict[str, int] = {}
    for index, equation in enumerate(equations):
        for name in names_in(equation):
            first.setdefault(name, index)
    places = [
        min((first.get(name, len(equations)) for name in memory.names), default=len(equations))
        for memory in memories
    ]
    for index in range(len(places) - 2, -1, -1):
        places[index] = min(places[index], places[index + 1])
    return places


def names_in(statement: t.Stmt) -> Iterator[str]:
    """Yield the names that a statement mentions."""
    match statement:
        case t.Assign(targets, values):
            for target in targets:
                yield target.path[0]
            yield from _expression_names(values)
        case t.Every(_, body):
            for inner in body:
                yield from names_in(inner)
        case t.When(head, body) | t.Repeat(head, body):
            yield from _expression_names([head])
            for inner in body:
                yield from names_in(inner)
        case t.Share():
            pass


def _expression_names(expressions: Iterable[t.Expr]) -> Iterator[str]:
    waiting = list(expressions)
    while waiting:
        match waiting.pop():
            case t.Name(name):
                yield name
            case t.Attribute(base, _) | t.Unary(_, base) | t.Norm(base):
                waiting.append(base)
            case t.Call(function, arguments, keywords):
                waiting.extend([function, *arguments, *(k.value for k in keywords)])
            case t.Binary(_, left, right) | t.Compare(_, left, right) | t.Inner(left, right):
                waiting.extend([left, right])
            case t.Tuple(items):
                waiting.extend(items)
            case t.Number():
                pass
