"""What a memory computes where a window ends, cut into launches and what PyTorch does between.

In: an update's expressions, and what is a leaf of them: states, sums over the window's tokens, what
the block has evaluated. Out: `Stage`s in order. What works entry by entry, or within a row or a
column, goes into launches; products of matrices, orthogonalisations and the like stand between
them. A stage has an `Item` for each part of a map, since parts do not meet there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nlc.codegen.triton.loop_plan import own_axes
from nlc.codegen.triton.loop_values import SLOPES
from nlc.codegen.triton.operations import BINARY, UNARY, Unprintable

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import Shape, sizes

# what PyTorch has for nothing where it has what that is made of
FREE = frozenset({"let", "stop", "transpose", "unsqueeze"})
# from how many values as large as a state a later launch makes something anew
AGAIN = 2
# what kernels compute besides what works entry by entry
WITHIN = frozenset({"let", "stop", "where", "pow", "unsqueeze", "transpose", "outer", "gelu_slope"})
REDUCED = frozenset({
    "sum", "mean", "max", "min", "norm", "unit", "rmsnorm", "layernorm", "softmax", "logsumexp",
    "dot", "matvec",
})  # fmt: skip


@dataclass(frozen=True)
class Item:
    """Values that share what is as large as a state: a program makes some rows of all of them."""

    outputs: tuple[Expr, ...]


@dataclass(frozen=True)
class Stage:
    """One launch: its items, in the order of the equations."""

    items: tuple[Item, ...]


@dataclass
class Cutter:
    """Cuts expressions into stages; `banned` operations are left to PyTorch."""

    roots: Sequence[Expr]
    lead: Shape
    is_leaf: Callable[[Expr], bool]
    banned: set[Expr] = field(default_factory=set)
    # how many launches there are before one in which a value is made, or may be read
    ready: dict[Expr, int] = field(default_factory=dict)
    inside: set[Expr] = field(default_factory=set)
    # what is small and made of leaves: whoever needs it makes it anew
    light: set[Expr] = field(default_factory=set)
    # what is large, but made of little: a later launch makes it anew
    again: set[Expr] = field(default_factory=set)
    # how many launches there are before PyTorch has a value
    later: dict[Expr, int] = field(default_factory=dict)
    order: list[Expr] = field(default_factory=list)

    def __post_init__(self) -> None:
        entries = [self.entries(root) for root in self.roots]
        self.least = max(2, min((n for n in entries if n > 1), default=2))
        leaves = {id(node) for node in self._leaves()}
        for node in postorder(self.roots, leaves):
            self.order.append(node)
            self._place(node)
        self.again = self._made_again()

    def _leaves(self) -> list[Expr]:
        found, seen, stack = [], set[Expr](), list(self.roots)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if self.is_leaf(node):
                found.append(node)
                self.ready[node] = 0
            else:
                stack.extend(node.args)
        return found

    def entries(self, node: Expr) -> int:
        """Count a value's entries in one copy."""
        return math.prod(sizes(self._own(node))) if self._fits(node) else 1

    def _own(self, node: Expr) -> Shape:
        return own_of(node.shape, self.lead)

    def _fits(self, node: Expr) -> bool:
        try:
            self._own(node)
        except Unprintable:
            return False
        return True

    def _place(self, node: Expr) -> None:
        """Say where a value is made."""
        if node.op == "const":
            self.ready[node] = 0
            self.light.add(node)
            return
        if not self._in_kernel(node):
            self.ready[node] = max((self.after(arg) for arg in node.args), default=0)
            return
        self.inside.add(node)
        self.ready[node] = max((self.ready[arg] for arg in node.args), default=0)
        small = self.entries(node) < self.least
        if small and all(self.ready[a] == 0 and self._plain(a) for a in node.args):
            self.light.add(node)

    def _plain(self, node: Expr) -> bool:
        return node in self.light or node not in self.inside

    def after(self, node: Expr) -> int:
        """How many launches there are before PyTorch has a value."""
        if node not in self.later:
            made = node in self.inside and node not in self.light
            if made and node.op in FREE:
                self.later[node] = max(map(self.after, node.args))
            else:
                self.later[node] = self.ready[node] + made
        return self.later[node]

    def _made_again(self) -> set[Expr]:
        """Find what a later launch makes anew from no more than it would read."""
        wanted = {bare(root) for root in self.roots}
        wanted |= {bare(arg) for node in self.order if node not in self.inside for arg in node.args}
        found: set[Expr] = set()
        large: dict[Expr, frozenset[Expr]] = {}
        for node in self.order:
            if node not in self.inside:
                continue
            leaves = frozenset[Expr]().union(
                *(large.get(arg, frozenset() if self.entries(arg) < self.least else {arg})
                  for arg in node.args)
            )  # fmt: skip
            large[node] = leaves
            if self.ready[node] == 0 and len(leaves) <= AGAIN and bare(node) not in wanted:
                found.add(node)
        return found

    def _in_kernel(self, node: Expr) -> bool:
        if node in self.banned or not self._fits(node) or not all(map(self._fits, node.args)):
            return False
        if sum(axis.size > 1 for axis in self._own(node)) > 2:
            return False
        op = node.op
        if op in ("due", "window") or any(arg.op == "due" for arg in _conditions(node)):
            return False
        if op == "pow":
            return node.args[1].op == "const"
        if op == "matmul":
            return any(map(is_simple, node.args))
        if op in ("identity", "diag"):
            # they stand in products that are none
            return True
        if op in REDUCED:
            return self._within_copies(node)
        return op in UNARY or op in BINARY or op in SLOPES or op in WITHIN

    def _within_copies(self, node: Expr) -> bool:
        """Say whether a reduction is over axes of one copy."""
        axes = node.attr("axes") if node.has("axes") else (-1,)
        x = node.args[0]
        return all(-a <= len(self._own(x)) for a in (a % len(x.shape) - len(x.shape) for a in axes))

    # ---- stages --------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """List the launches."""
        count = max((self.after(root) for root in self.roots), default=0)
        wanted = self._outputs()
        return [
            Stage(tuple(self._items([node for node in wanted if self.ready[node] == at])))
            for at in range(count)
        ]

    def _outputs(self) -> list[Expr]:
        """List what launches store: new states, and what a later launch or PyTorch takes."""
        found: dict[Expr, Expr] = {}

        def store(node: Expr, outside: bool = False) -> None:
            if node in self.inside and node not in self.light:
                if outside and node.op in FREE and node.op != "let":
                    store(node.args[0], outside)
                    return
                inner = bare(node)
                if inner in self.inside and found.get(inner, inner) is inner:
                    # the equation's name, where it has one
                    found[inner] = node

        for node in self.order:
            for arg in node.args:
                if node not in self.inside:
                    store(arg, True)
                elif self.ready[node] > self.ready[arg] and arg not in self.again:
                    store(arg)
        for root in self.roots:
            store(root)
        place = {node: i for i, node in enumerate(self.order)}
        return sorted(found.values(), key=place.__getitem__)

    def reads(self, node: Expr) -> set[int]:
        """What a value's kernel does not make itself, by id."""
        at = self.ready[node]
        return {
            id(other)
            for other in [*self.order, *self.ready]
            if other is not node
            and other not in self.light
            and other not in self.again
            and (other not in self.inside or self.ready[other] < at)
        }

    def _items(self, outputs: list[Expr]) -> list[Item]:
        """Gather outputs that share what is as large as one of them."""
        groups: list[tuple[list[Expr], set[Expr]]] = []
        for node in outputs:
            hidden = self.reads(node)
            own = sizes(self._own(node))
            made = set(self._met(node, hidden))
            large = {n for n in made if self.entries(n) >= self.least and n.op != "const"}
            mine = ([node], large)
            rest = []
            for group in groups:
                alike = sizes(self._own(group[0][0])) == own
                if alike and group[1] & large:
                    mine = ([*group[0], *mine[0]], group[1] | mine[1])
                else:
                    rest.append(group)
            groups = [*rest, mine]
        return [Item(tuple(nodes)) for nodes, _ in groups]

    def _met(self, node: Expr, hidden: set[int]) -> list[Expr]:
        """List what a value is made of in its kernel, with what that reads."""
        found, seen, stack = [], set[Expr](), [node]
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            found.append(value)
            if id(value) not in hidden:
                stack.extend(value.args)
        return found


def own_of(shape: Shape, lead: Shape) -> Shape:
    """The axes of one copy, also of what is the same along some axes of the copies."""
    front = list(zip(shape, lead, strict=False))
    some = len(shape) >= len(lead) and any(a == b for a, b in front)
    if some and all(a == b or a.size == 1 for a, b in front):
        return shape[len(lead) :]
    return own_axes(shape, lead)


def bare(node: Expr) -> Expr:
    """A value without the name of its equation."""
    while node.op == "let":
        (node,) = node.args
    return node


def is_simple(node: Expr) -> bool:
    """Say whether a matrix is a sum of diagonals and outer products: a product with it is none."""
    match node.op:
        case "identity" | "diag" | "outer":
            return True
        case "add" | "sub" | "neg" | "let" | "stop":
            return all(map(is_simple, node.args))
    return False


def _conditions(node: Expr) -> list[Expr]:
    """What a choice hangs on, without axes."""
    if node.op != "where":
        return []
    condition = node.args[0]
    while condition.op == "unsqueeze":
        (condition,) = condition.args
    return [condition]
