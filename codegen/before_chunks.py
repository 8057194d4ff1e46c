"""What chunks' writes are made of and hangs on no state: made before the chunks, for all tokens.

In: normal forms whose writes are over arguments and the state before the chunk. Out: the same over
further streams, and what these are. Terms of a sum, and numbers of a product, are put together
where they hang on no state, so that little is left to do in every chunk.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from nlc.codegen.one_copy import of_writes, with_writes

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.normal_form import Affine
from nlc.ir.shape import count

Forms = list[tuple[str, Affine]]


class On(IntEnum):
    """What a value hangs on: nothing, arguments alone, or a state too."""

    NOTHING = 0
    ARGUMENTS = 1
    STATE = 2


def before_chunks(forms: Forms, given: Collection[Expr]) -> tuple[Forms, dict[Expr, Expr]]:
    """Take what hangs on arguments alone out of what forms write: a stream for each value.

    Nothing larger than what it is made of is taken out. Where a write reads with `c x` what else is
    asked with x, the two are kept apart.
    """
    roots = [e for _, form in forms for e in of_writes(form)]
    gather = Gather(frozenset(given))
    gathered = rewrite(gather.graph, roots, gather.put)
    taken: dict[Expr, Expr] = {}
    new = dict(zip(roots, gathered, strict=True))
    asked = {node.args[1] for node in postorder(gathered) if node.op == "matvec"}
    apart: set[Expr] = set()
    for p in [
        p for _, form in forms for write in form.writes for p in write.reads if p is not None
    ]:
        chain, rest = products(new[p])
        apart |= set(chain) if asked.intersection(rest) else set()
    waiting, seen = gathered[::-1], set[Expr]()
    while waiting:
        node = waiting.pop()
        if node in seen or node in given:
            continue
        seen.add(node)
        if gather.worth(node) and node not in apart:
            name = f"ahead {len(taken)}"
            taken[node] = gather.graph.make("stream", name=name, shape=node.shape)
        else:
            waiting += node.args[::-1]

    def stream(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        return node if node in given else taken.get(node)

    found = dict(zip(roots, rewrite(gather.graph, gathered, stream), strict=True))
    made = {leaf: value for value, leaf in taken.items()}
    return [(part, with_writes(form, found.__getitem__)) for part, form in forms], made


def products(root: Expr) -> tuple[list[Expr], list[Expr]]:
    """List the products that a value is, and their factors."""
    chain, rest, waiting = list[Expr](), list[Expr](), [root]
    while waiting:
        node = waiting.pop()
        if node.op in ("mul", "neg", "let"):
            chain.append(node)
            waiting += node.args
        else:
            rest.append(node)
    return chain, rest


@dataclass
class Gather:
    """Puts together what hangs on arguments alone."""

    given: frozenset[Expr]
    graph: Graph = field(default_factory=Graph)
    on: dict[Expr, On] = field(default_factory=dict)
    # the entries of the largest argument that a value is made of
    largest: dict[Expr, int] = field(default_factory=dict)

    def worth(self, node: Expr) -> bool:
        """Say whether a value is to be made ahead: not what only gives another further axes."""
        plain = node.op in ("unsqueeze", "transpose", "const")
        small = count(node.shape) <= self.largest[node]
        return self.on[node] is On.ARGUMENTS and small and not plain

    def put(self, node: Expr, args: tuple[Expr, ...]) -> Expr:
        """Make a node anew over new arguments."""
        if node in self.given:
            self.on[node], self.largest[node] = On.ARGUMENTS, count(node.shape)
            return node
        if all(a is b for a, b in zip(args, node.args, strict=True)):
            return self.gathered(self.noted(node))
        return self.gathered(self.make(node.op, *args, span=node.span, **dict(node.attrs)))

    def make(self, op: str, *args: Expr, **attrs: Any) -> Expr:
        """Make a node, and note what it hangs on."""
        return self.noted(self.graph.make(op, *args, **attrs))

    def noted(self, node: Expr) -> Expr:
        """Note what a node hangs on, by what its arguments do."""
        if node not in self.on:
            op, args = node.op, node.args
            below = max((self.on[arg] for arg in args), default=On.NOTHING)
            self.on[node] = On.STATE if op == "state" else below
            self.largest[node] = max((self.largest[arg] for arg in args), default=0)
        return node

    def gathered(self, node: Expr) -> Expr:
        """Put together what is free of states in a sum or product that is not."""
        if self.on[node] is not On.STATE:
            return node
        if node.op in ("add", "sub"):
            return self.sum(node)
        return self.product(node) if node.op in ("mul", "neg") else node

    def sum(self, node: Expr) -> Expr:
        """`(k + M q) - v` as `M q + (k - v)`."""
        terms = self.terms(node, False)
        free = [(e, minus) for e, minus in terms if self.on[e] is not On.STATE]
        if len(free) < 2:
            return node
        rest = [(e, minus) for e, minus in terms if self.on[e] is On.STATE]
        (a, less_a), (b, less_b) = self.total(rest), self.total(free)
        if less_a:
            return self.make("neg", self.make("add", a, b)) if less_b else self.make("sub", b, a)
        return self.make("sub" if less_b else "add", a, b)

    def terms(self, node: Expr, minus: bool) -> list[tuple[Expr, bool]]:
        """List the terms of a sum, and which are taken from it."""
        if self.on[node] is On.STATE and node.op in ("add", "sub"):
            left, right = node.args
            return self.terms(left, minus) + self.terms(right, minus ^ (node.op == "sub"))
        if self.on[node] is On.STATE and node.op == "neg":
            return self.terms(node.args[0], not minus)
        return [(node, minus)]

    def total(self, terms: list[tuple[Expr, bool]]) -> tuple[Expr, bool]:
        """Add terms, all of them to be taken away where none is to be added."""
        first = next((i for i, (_, minus) in enumerate(terms) if not minus), None)
        value = terms[first or 0][0]
        for i, (e, minus) in enumerate(terms):
            if i != (first or 0):
                value = self.make("sub" if minus and first is not None else "add", value, e)
        return value, first is None

    def product(self, node: Expr) -> Expr:
        """`-(2 * (eta * (W e)))` as `(-2 * eta) * (W e)`."""
        constant, numbers, vectors, rest = 1.0, list[Expr](), list[Expr](), list[Expr]()
        for e in self.factors(node):
            if e.op == "const":
                constant *= float(e.attr("value"))
            elif self.on[e] is On.STATE:
                rest.append(e)
            elif e.op == "unsqueeze" and -1 in e.attr("axes"):
                # a number with an axis for vectors, and ones for copies
                ones = tuple(a + 1 for a in e.attr("axes") if a != -1)
                (inner,) = e.args
                numbers.append(self.make("unsqueeze", inner, axes=ones) if ones else inner)
            else:
                vectors.append(e)
        found = len(numbers) + len(vectors)
        if not found or found + (constant != 1.0) < 2:
            return node
        if numbers:
            number = self.scaled(constant, self.of_all(numbers))
            vectors.insert(0, self.make("unsqueeze", number, axes=(-1,)))
        else:
            vectors[0] = self.scaled(constant, vectors[0])
        return self.of_all([*vectors, *rest])

    def of_all(self, factors: list[Expr]) -> Expr:
        """Multiply, from the left."""
        made = factors[0]
        for e in factors[1:]:
            made = self.make("mul", made, e)
        return made

    def scaled(self, constant: float, value: Expr) -> Expr:
        """Multiply by a constant."""
        if constant == -1.0:
            return self.make("neg", value)
        factor = self.make("const", value=constant)
        return value if constant == 1.0 else self.make("mul", factor, value)

    def factors(self, node: Expr) -> list[Expr]:
        """List the factors of a product."""
        if node in self.given:
            return [node]
        if node.op == "mul":
            return [e for arg in node.args for e in self.factors(arg)]
        if node.op == "neg":
            return [self.make("const", value=-1.0), *self.factors(node.args[0])]
        return [node]
