"""The executable program of a block or an update: a `torch.fx` graph whose nodes know their names.

In: calls of torch functions, methods and submodules, one after another. Out: a `Program`, whose
graph holds no expression twice and nothing without a use. Nodes carry in `meta`:

    shape, batch   an expression's axes, and how many axes (batch, time) stand in front of them
    wide           whether it is in float32 or better whatever the module's type
    name           the name it is printed under, if it has one
    above          comment lines that stand above its statement
    results        the names of the parts of a tuple

Does not know the language; `lowering` builds programs from expressions and `printer` prints them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from nlc.ir.shape import Shape

Operand = Any
"""What an argument may be: a node, a number, or tuples of them."""


def _key(value: object) -> object:
    match value:
        case fx.Node():
            return ("node", id(value))
        case tuple() | list():
            return tuple(_key(v) for v in value)
        case dict():
            return tuple((k, _key(v)) for k, v in value.items())
        case float() | int() | bool():
            return (type(value).__name__, value)
        case slice():
            return ("slice", _key(value.start), _key(value.stop), _key(value.step))
        case _:
            return ("object", id(value)) if value.__hash__ is None else value


@dataclass
class Program:
    """A graph under construction; equal calls give the same node."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    known: dict[object, fx.Node] = field(default_factory=dict)

    def input(self, name: str) -> fx.Node:
        """Add an argument of the function; the same name gives the same node."""
        key = ("input", name)
        if key not in self.known:
            node = self.graph.placeholder(name)
            node.meta["name"] = name
            self.known[key] = node
        return self.known[key]

    def unused(self, wanted: str) -> str:
        """Return a name for an argument that is none yet."""
        while ("input", wanted) in self.known:
            wanted += "_"
        return wanted

    def attribute(self, path: str) -> fx.Node:
        """`self.path`."""
        key = ("attribute", path)
        if key not in self.known:
            # no root module is at hand to check the path against
            node = self.graph.create_node("get_attr", path)
            self.known[key] = node
        return self.known[key]

    def _make(self, op: str, target: Any, args: tuple[Operand, ...], words: Any) -> fx.Node:
        key = (op, target, _key(args), _key(words))
        if key not in self.known:
            self.known[key] = self.graph.create_node(op, target, args, words)
        return self.known[key]

    def call(self, function: Callable[..., Any], *args: Operand, **words: Operand) -> fx.Node:
        """`function(*args)`."""
        return self._make("call_function", function, args, words)

    def method(self, name: str, *args: Operand, **words: Operand) -> fx.Node:
        """`args[0].name(*args[1:])`."""
        return self._make("call_method", name, args, words)

    def module(self, path: str, *args: Operand, **words: Operand) -> fx.Node:
        """`self.path(*args)`."""
        return self._make("call_module", path, args, words)

    def unpack(self, node: fx.Node, names: Sequence[str]) -> list[fx.Node]:
        """Take a tuple apart; its parts are printed under `names`."""
        node.meta["results"] = list(names)
        parts = [self.call(operator.getitem, node, i) for i in range(len(names))]
        for part, name in zip(parts, names, strict=True):
            part.meta["name"] = name
        return parts

    def finish(self, results: Operand) -> None:
        """Set what the function returns, drop what nothing uses, and share what two may."""
        from nlc.codegen.in_place import add_in_place
        from nlc.codegen.pairs import pair_slopes

        self.graph.output(results)
        for node in reversed(self.graph.nodes):
            if node.op not in ("placeholder", "output") and not node.users:
                self.graph.erase_node(node)
        pair_slopes(self.graph)
        add_in_place(self.graph)

    @property
    def result(self) -> Operand:
        """What the function returns."""
        return next(n for n in reversed(self.graph.nodes) if n.op == "output").args[0]

    @property
    def inputs(self) -> list[fx.Node]:
        """The arguments of the function."""
        return [n for n in self.graph.nodes if n.op == "placeholder"]


def note(
    node: fx.Node, shape: Shape, batch: int, wide: bool = False, *, name: str | None = None
) -> fx.Node:
    """Set what is known of a node, keeping an earlier name."""
    node.meta["shape"], node.meta["batch"], node.meta["wide"] = shape, batch, wide
    if name is not None:
        node.meta.setdefault("name", name)
    return node


def choose(condition: bool, yes: Operand, no: Operand) -> Operand:
    """`yes if condition else no`, over Python numbers; printed as such."""
    return yes if condition else no


@dataclass(frozen=True)
class LoopKernel:
    """A function that runs a whole loop: it takes `count` arguments and the states `carried`.

    `guard` says of the first state, or of the `part` of it, whether it is called.
    """

    name: str
    count: int
    carried: tuple[str, ...]
    guard: str
    part: str = ""


@dataclass(eq=False)
class Loop:
    """A loop over tokens as one call: its body runs for each.

    Arguments of the call: the sequences it takes apart, the carried values, what it uses from
    around it, and, where they are needed, the first position and the number of tokens. Results: the
    stacked sequences, then the carried values. The body's inputs are named by `items`, `carried`
    and `around`; its result is (rows, carried). With `chunk` it runs for each chunk of so many
    tokens instead, counted from the carried `position`; `lists` are rows that are lists already.

    With `length` it goes over windows of so many tokens, or what is left of them: its items are
    pieces of the sequences, `counter` is how many tokens a piece has, and rows are joined.

    Where a `kernel` does the same, the call's last arguments are what that takes. One that runs
    `once` is the one token at hand.
    """

    body: Program
    items: tuple[str, ...]
    rows: tuple[str, ...]
    carried: tuple[str, ...]
    counter: str | None = None
    start: str | None = None
    around: tuple[str, ...] = ()
    chunk: int = 0
    lists: tuple[str, ...] = ()
    length: int = 0
    kernel: LoopKernel | None = None
    once: bool = False

    __name__ = "loop"
    __module__ = "nlc.codegen.program"

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError("a loop runs as printed")


@dataclass(eq=False)
class Branch:
    """Statements under a condition on Python numbers, as one call.

    Arguments of the call: the condition, the carried values, what it uses from around it. Results:
    the carried values, changed where the condition holds. The body's inputs are named by `carried`
    and `around`; its result is the changed values, which are printed under `names`.
    """

    body: Program
    carried: tuple[str, ...]
    around: tuple[str, ...]
    names: tuple[str, ...]

    __name__ = "branch"
    __module__ = "nlc.codegen.program"

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError("a branch runs as printed")
