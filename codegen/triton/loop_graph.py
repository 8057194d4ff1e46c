"""What one token of a loop computes, as one graph: new states and streams from old states.

In: the steps of a loop over tokens and the memories that move in it. Out: a `LoopGraph`, whose
leaves are streams with names of its own: states before the token, and `Leaf`s, which the block
evaluates for all tokens before the loop. Raises `Unprintable` for what no kernel does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nlc.codegen.arguments import argument_name, state_variable
from nlc.codegen.kept import keeps
from nlc.codegen.names import Names, identifier
from nlc.codegen.triton.operations import RESERVED, Unprintable

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.kernel import Calculus
from nlc.ir.shape import Shape
from nlc.ir.slots import choice
from nlc.ir.system import Equation, Memory, Step, Update
from nlc.ir.windows import periods

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter

# what a kernel computes from leaves that no state goes into; all else is evaluated before it
CHEAP = frozenset({
    "neg", "exp", "log", "sqrt", "abs", "sign", "sin", "cos", "tanh", "sigmoid", "silu", "gelu",
    "relu", "softplus", "erf", "add", "sub", "mul", "div", "maximum", "minimum", "lt", "le", "gt",
    "ge", "eq", "ne", "where", "unsqueeze", "outer", "diag", "transpose", "let", "stop", "const",
    "unit", "rmsnorm", "pow", "identity", "index",
})  # fmt: skip
# names that kernels and what starts them use themselves
WORDS = {
    "T", "H", "N", "C", "V", "KEEP", "at", "tile", "t", "s", "part", "parts", "count", "step",
    "blocks", "front", "keep", "found", "ctx", "came", "inputs", "output", "B", "place", "row",
}  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """A value from before the loop: the word it has in kernels, and what it is."""

    word: str
    expr: Expr


@dataclass(frozen=True)
class Carried:
    """A state that goes from token to token; `key` is (memory, when, state, part).

    A block has it in a variable, with others where it has several parts.
    """

    word: str
    key: tuple[str, str, str, str]
    shape: Shape
    variable: str
    several: bool


@dataclass
class LoopGraph:
    """One token: `after` are the new values of what is carried, `rows` the streams it makes.

    Values are over streams named by the words of `leaves` and `carried`, with all copies' axes
    `lead` in front. `comments` are lines of the spec by the values they give, `names` are in use.
    """

    graph: Graph
    lead: Shape
    carried: tuple[Carried, ...]
    leaves: tuple[Leaf, ...] = ()
    after: tuple[Expr, ...] = ()
    rows: tuple[tuple[str, Expr], ...] = ()
    comments: dict[Expr, list[str]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


def leaf_stream(graph: Graph, word: str, shape: Shape, split: tuple[int, ...] = ()) -> Expr:
    """A leaf of a kernel's graph; `split` are the axes of which a program has some entries."""
    return graph.make("stream", name=word, shape=shape, split=split)


def loop_graph(
    graph: Graph,
    calculus: Calculus,
    steps: Sequence[Step],
    memories: Sequence[Memory],
    writers: Mapping[str, MemoryWriter],
    needed: Sequence[str],
    late: Iterable[str],
    once: bool = False,
) -> LoopGraph:
    """Follow one token through the steps of a loop; `needed` are the streams asked for outside.

    With `once` nothing comes after it: what happens where the token ends is left out.
    """
    for memory in memories:
        _check(memory)
    lead = memories[0].lead
    if any(memory.lead != lead for memory in memories):
        raise Unprintable("its memories have different copies")
    token = _Token(graph, list(memories), once)
    for step in steps:
        token.step(step)
    if not once:
        token.end(set(late))
    lines = {
        value: above
        for memory in memories
        for value, above in writers[memory.name].comments().items()
    }
    commented = [value for value in lines if value in token.followed]
    roots = [token.now[key] for key in token.keys]
    roots += [token.streams[name] for name in needed]
    roots += [token.followed[value] for value in commented]
    roots = calculus.written_out(graph, roots, token.moves)
    starts = {memory.name: writers[memory.name].start_name for memory in memories}
    return _closed(graph, lead, token, starts, needed, roots, [lines[value] for value in commented])


def _check(memory: Memory) -> None:
    if memory.map.kind == "kernel":
        raise Unprintable("it stores what it is given")
    if memory.is_task or memory.stays or memory.window > 1:
        raise Unprintable("it moves with windows")
    if keeps(memory) or periods(memory) or choice(memory):
        raise Unprintable("its update keeps more than its states")
    parts = [part for variable in memory.variables for part in variable.parts]
    if memory.reset is not None and any(part.initial.kind == "source" for part in parts):
        raise Unprintable("it goes back to another memory's state")


class _Token:
    """States and streams as they stand while one token goes through the steps."""

    def __init__(self, graph: Graph, memories: list[Memory], once: bool):
        self.graph, self.memories = graph, memories
        self.first: dict[tuple[str, str, str, str], Expr] = {}
        for memory in memories:
            for variable in memory.variables:
                for part in variable.parts:
                    key = (memory.name, "prev", variable.name, part.name)
                    self.first[key] = self._leaf(key, (*memory.lead, *part.shape))
        for memory in [] if once else memories:
            if _has_start(memory):
                for part in memory.map.parts:
                    key = (memory.name, "start", "", part.name)
                    self.first[key] = self._leaf(key, (*memory.lead, *part.shape))
        self.keys = list(self.first)
        self.now = dict(self.first)
        self.streams: dict[str, Expr] = {}
        self.followed: dict[Expr, Expr] = {}

    def _leaf(self, key: tuple[str, str, str, str], shape: Shape) -> Expr:
        memory, when, var, part = key
        return self.graph.make("state", memory=memory, when=when, var=var, part=part, shape=shape)

    def moves(self, node: Expr) -> bool:
        """Say whether a leaf is a state that goes from token to token."""
        return node.op == "state" and any(node is leaf for leaf in self.first.values())

    def step(self, step: Step) -> None:
        """Follow an equation or an update."""
        match step:
            case Equation(name=name, value=value):
                (self.streams[name],) = self.follow([value])
            case Update(memory=name):
                memory = next(m for m in self.memories if m.name == name)
                values = self.follow([a.value for a in memory.update])
                for assignment, value in zip(memory.update, values, strict=True):
                    key = (name, "prev", assignment.var, assignment.part)
                    self.now[key] = self.full(value, self.first[key].shape)
            case _:
                raise Unprintable("a block is called for every token")

    def full(self, value: Expr, shape: Shape) -> Expr:
        """Leave a value's missing axes to whoever stores it, but for those between others."""
        missing = len(shape) - len(value.shape)
        if missing <= 0 or not value.shape:
            return value
        return self.graph.make(
            "unsqueeze", value, axes=tuple(range(-len(shape), -len(value.shape)))
        )

    def follow(self, roots: list[Expr]) -> list[Expr]:
        """Put what is known of this token in the place of streams and states."""

        def replace(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
            match node.op:
                case "stream" if node.attr("name") in self.streams:
                    return self.streams[node.attr("name")]
                case "state":
                    found = self.state(node)
                case "window" if node.attr("how") == "last":
                    found = args[0]
                case "attend" | "shift" | "conv" | "route" | "window" | "due" if any(
                    self.inner(arg) for arg in args
                ):
                    raise Unprintable(f"kernels have no `{node.op}` of what they make")
                case _:
                    found = None
            made = found
            if made is None and any(a is not b for a, b in zip(args, node.args, strict=True)):
                made = self.graph.make(node.op, *args, span=node.span, **dict(node.attrs))
            self.followed[node] = made or node
            return made

        return rewrite(self.graph, roots, replace)

    def inner(self, value: Expr) -> bool:
        """Say whether a state that moves goes into a value."""
        return any(map(self.moves, postorder([value])))

    def state(self, node: Expr) -> Expr | None:
        """A state of the loop's memories as it stands."""
        when, part = node.attr("when"), node.attr("part")
        key = (node.attr("memory"), "prev", node.attr("var"), part)
        if key not in self.first or when == "initial":
            return None
        if when == "start":
            return self.first.get((key[0], "start", "", part))
        return self.first[key] if when == "prev" else self.now[key]

    def end(self, late: set[str]) -> None:
        """What happens where periods end: states begin again, chunks begin."""
        make = self.graph.make
        for memory in self.memories:
            resets = None if memory.name in late else memory.reset
            mine = [key for key in self.keys if key[0] == memory.name]
            if resets is not None:
                again = make("due", period=("tokens", resets.count))
                for key in mine:
                    if key[1] == "prev":
                        initial = self._leaf((key[0], "initial", *key[2:]), self.first[key].shape)
                        self.now[key] = self._where(again, initial, self.now[key])
            for key in mine:
                if key[1] == "start":
                    new = self.now[key[0], "prev", "", key[3]]
                    ends = make("due", period=("tokens", memory.chunk))
                    self.now[key] = self._where(ends, new, self.now[key])
                    if resets is not None:
                        self.now[key] = self._where(again, new, self.now[key])

    def _where(self, due: Expr, yes: Expr, no: Expr) -> Expr:
        return self.graph.make("where", due, yes, no)


def _has_start(memory: Memory) -> bool:
    return memory.chunk > 1 and any(
        node.op == "state" and node.attr("memory") == memory.name and node.attr("when") == "start"
        for node in postorder([a.value for a in memory.update])
    )


def _closed(
    graph: Graph,
    lead: Shape,
    token: _Token,
    starts: Mapping[str, str],
    needed: Sequence[str],
    roots: list[Expr],
    lines: list[list[str]],
) -> LoopGraph:
    """Give names to leaves: what no state goes into, and what goes from token to token."""
    inner = {id(node) for node in postorder(roots) if token.moves(node)}
    for node in postorder(roots):
        if any(id(arg) in inner for arg in node.args):
            inner.add(id(node))
    names = Names(RESERVED | WORDS)
    carried = []
    for key, leaf in token.first.items():
        memory = next(m for m in token.memories if m.name == key[0])
        variable = state_variable(memory, key[2])
        word = variable = starts[key[0]] if key[1] == "start" else variable
        several = len(memory.variable(key[2]).parts) > 1
        names.used |= {variable} if several else set()
        word = names.fresh(f"{word}_{identifier(key[3])}" if several else word)
        names.used |= {f"{word}_{tail}" for tail in ("after", "starts", "kept")}
        names.used.add(f"grad_{word}")
        carried.append(Carried(word, key, leaf.shape, variable, several))
    made: dict[int, Expr] = {
        id(leaf): leaf_stream(graph, c.word, c.shape)
        for c, leaf in zip(carried, token.first.values(), strict=True)
    }
    leaves: list[Leaf] = []
    for leaf in _boundary(roots, inner):
        word = names.fresh(_leaf_word(leaf))
        names.used.add(f"grad_{word}")
        leaves.append(Leaf(word, leaf))
        made[id(leaf)] = leaf_stream(graph, word, leaf.shape)
    closed = _replaced(graph, roots, made)
    count, rows = len(carried), len(needed)
    comments = dict(zip(closed[count + rows :], lines, strict=True))
    return LoopGraph(
        graph,
        lead,
        tuple(carried),
        tuple(leaves),
        tuple(closed[:count]),
        tuple(zip(needed, closed[count : count + rows], strict=True)),
        comments,
        frozenset(names.used),
    )


def _leaf_word(leaf: Expr) -> str:
    """The word for a value from before the loop."""
    if leaf.op == "apply" and leaf.args[1].op not in ("param", "state"):
        # of a map that is a value
        return "applied"
    return argument_name(leaf)


def _boundary(roots: list[Expr], inner: set[int]) -> list[Expr]:
    """List what is evaluated before the loop, streams first."""
    found: list[Expr] = []
    seen: set[int] = set()
    stack = list(reversed(roots))
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if id(node) not in inner and node.op not in CHEAP:
            found.append(node)
            continue
        if id(node) in inner and node.op == "state":
            continue
        stack.extend(reversed(node.args))
    return sorted(found, key=lambda node: node.op != "stream")


def _replaced(graph: Graph, roots: list[Expr], made: dict[int, Expr]) -> list[Expr]:
    """Put leaves in, without looking at what they are made of."""
    new = dict(made)
    for node in postorder(roots, set(made)):
        args = tuple(new[id(arg)] for arg in node.args)
        same = all(a is b for a, b in zip(args, node.args, strict=True))
        new[id(node)] = node if same else graph.make(
            node.op, *args, span=node.span, **dict(node.attrs)
        )  # fmt: skip
    return [new[id(root)] for root in roots]
