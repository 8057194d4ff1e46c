"""Expression graphs: hash-consed, positional, one token of one sequence at a time.

    expr = Expr(op, args, attrs, shape)

Axes have been matched by name when an expression is made; from here on they are positions,
counted from the right (negative numbers), with numpy's broadcasting. Executors may therefore put
batch and time axes in front of every value that depends on tokens, and evaluate the same graph.

Two expressions made by one `Graph` are equal exactly when they are the same object. What the
operations mean stands in `operations`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import Shape
from nlc.source import NOWHERE, Span


@dataclass(frozen=True, eq=False, slots=True)
class Expr:
    """A node of the graph; `attrs` are sorted by name, `span` is where it was first written."""

    op: str
    args: tuple[Expr, ...]
    attrs: tuple[tuple[str, Any], ...]
    shape: Shape
    span: Span = field(default=NOWHERE, repr=False)

    def attr(self, name: str) -> Any:
        """Return an attribute's value."""
        for key, value in self.attrs:
            if key == name:
                return value
        raise KeyError(f"{self.op} has no attribute {name}")

    def has(self, name: str) -> bool:
        """Say whether an attribute was given."""
        return any(key == name for key, _ in self.attrs)

    def __repr__(self) -> str:
        words = [f"{key}={value!r}" for key, value in self.attrs]
        return f"{self.op}({', '.join([*map(repr, self.args), *words])})"


@dataclass
class Graph:
    """The maker of expressions: gives back the same object for the same expression.

    `simple` remembers the simple form of what has been simplified, for as long as the graph lives.
    """

    _nodes: dict[tuple[Any, ...], Expr] = field(default_factory=dict)
    simple: dict[Expr, Expr] = field(default_factory=dict, repr=False)

    def make(self, op: str, *args: Expr, span: Span = NOWHERE, **attrs: Any) -> Expr:
        """Make `op(args)`; its shape follows from the operation."""
        pairs = tuple(sorted(attrs.items()))
        # the shapes of the arguments are part of the arguments' identity
        key = (op, tuple(map(id, args)), pairs)
        known = self._nodes.get(key)
        if known is None:
            shape = OPERATIONS[op].infer(tuple(a.shape for a in args), attrs)
            known = Expr(op, args, pairs, shape, span)
            self._nodes[key] = known
        return known

    def constant(self, value: float, span: Span = NOWHERE) -> Expr:
        """A number."""
        return self.make("const", value=float(value), span=span)


class Node(Protocol):
    """What stands in a graph: its arguments are nodes of its own kind."""

    @property
    def args(self) -> tuple[Self, ...]: ...


NodeT = TypeVar("NodeT", bound=Node)


def postorder(roots: Iterable[NodeT], known: Container[int] = ()) -> Iterator[NodeT]:
    """Yield every node once, arguments before users; never recurses.

    A node whose identity is `known` is left out, with what only it needs.
    """
    seen: set[int] = set()
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                yield node
                continue
            if id(node) in seen or id(node) in known:
                continue
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))


def rewrite(
    graph: Graph,
    roots: Iterable[Expr],
    replace: Callable[[Expr, tuple[Expr, ...]], Expr | None],
) -> list[Expr]:
    """Rebuild graphs bottom-up: `replace(node, new_args)` gives the new node or None to keep it."""
    roots = list(roots)
    new: dict[int, Expr] = {}
    for node in postorder(roots):
        args = tuple(new[id(arg)] for arg in node.args)
        value = replace(node, args)
        if value is None:
            same = all(a is b for a, b in zip(args, node.args, strict=True))
            value = node if same else graph.make(node.op, *args, span=node.span, **dict(node.attrs))
        new[id(node)] = value
    return [new[id(root)] for root in roots]
