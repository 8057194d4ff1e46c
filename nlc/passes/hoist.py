"""Reads of memories that move in a loop, moved into it as streams of their own.

In: the stages of a block. Out: stages whose reads stand where the state is: what a read is asked
with is made before the loop where it can be, so that all that is left in the loop is the memory and
its reads. The stages are in order again; where they cannot be, because loops need one another's
reads, their steps are given back instead: they belong into one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

import networkx as nx

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.schedule import (
    ChunkLoop,
    Parallel,
    Run,
    Stage,
    TokenLoop,
    Windows,
    made_by,
    memories_of,
    steps_of,
)
from nlc.ir.shape import sizes
from nlc.ir.slots import routed
from nlc.ir.system import Block, Call, Equation, Memory, Step, Update

Node = tuple[str, str]


class Knot(Exception):
    """Steps that need one another through time, and so belong into one loop."""

    def __init__(self, nodes: list[Node]):
        super().__init__(nodes)
        self.nodes = nodes


def exprs_of(block: Block, step: Step) -> tuple[Expr, ...]:
    """List the expressions that a step evaluates."""
    match step:
        case Equation(value=value):
            return (value,)
        case Call(inputs=inputs):
            return tuple(e for _, e in inputs)
        case Update(memory=name):
            memory = block.memory(name)
            pairs = tuple(e for pair in memory.pairs for e in pair)
            kernel = memory.map.kind == "kernel"
            return pairs if kernel else tuple(a.value for a in memory.update)
        case _:
            return ()


def node_of(step: Step) -> Node:
    """Name a step."""
    match step:
        case Equation(name=name):
            return ("stream", name)
        case Call(instance=name):
            return ("call", name)
        case Update(memory=name):
            return ("memory", name)
        case _:
            raise AssertionError("a block holds no repeat")


def hoist(graph: Graph, block: Block, stages: list[Stage]) -> list[Stage]:
    """Move reads into the loops of their memories; raises `Knot`."""
    taken = {i.name for i in block.inputs} | {m.name for m in block.memories}
    for step in block.steps:
        taken |= set(made_by(step))
    done = _Hoisting(graph, block, taken).stages(stages)
    _check_apart(block, done)
    return done


def fresh(wanted: str, taken: set[str]) -> str:
    """Find a name for a stream, and take it."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


class _Hoisting:
    """The loops of one block; `taken` are names in use."""

    def __init__(self, graph: Graph, block: Block, taken: set[str]):
        self.graph, self.block, self.taken = graph, block, taken
        self.moves, self.starts = moves(block), starts_read(block)

    def stages(self, stages: list[Stage]) -> list[Stage]:
        """Move the reads of some stages, then those inside of windows."""
        result = list(stages)
        moving = {
            name
            for stage in stages
            for name in memories_of(stage)
            if isinstance(stage, TokenLoop | Windows) or self._of_chunks(stage, name)
        }
        known: dict[int, Expr] = {}
        for stage in stages:
            if isinstance(stage, Parallel):
                self._of_step(result, stage, moving, known)
        return [
            self._inside(stage) if isinstance(stage, Windows) else stage
            for stage in _sorted(self.block, result)
        ]

    def _of_step(
        self, result: list[Stage], stage: Parallel, moving: set[str], known: dict[int, Expr]
    ) -> None:
        (step,) = stage.steps
        roots = exprs_of(self.block, step)
        for read in self.outermost(roots, moving):
            if id(read) not in known:
                known[id(read)] = self._move(result, read, moving)
        if any(id(n) in known for n in postorder(roots)):
            result[result.index(stage)] = Parallel((_replaced(self.graph, step, known),))

    def _move(self, result: list[Stage], read: Expr, moving: set[str]) -> Expr:
        """Move one read into its loop; returns the stream that holds it."""
        memory = memory_of(read)
        asked = asked_of(read, self.moves)
        name = fresh(f"{memory}_{'state' if asked is None else 'read'}", self.taken)
        at = next(
            i for i, s in enumerate(result)
            if memory in memories_of(s)
        )  # fmt: skip
        read_now, free = read, asked is None or not self.outermost(asked, moving)
        if asked is not None and asked[0].op != "stream" and free:
            query = fresh(f"{memory}_query", self.taken)
            if _after(result, asked[0]) <= at:
                before = Equation(query, asked[0], "", read.span)
                result.insert(at, Parallel((before,)))
                at += 1
                stream = self._stream(query, asked[0])
                read_now = _asking(self.graph, read, asked[0], stream)
        result[at] = _placed(result[at], Equation(name, read_now, "", read.span), read, free)
        return self._stream(name, read)

    def _of_chunks(self, stage: Stage, name: str) -> bool:
        """Say whether a memory moves in a loop over chunks without a start of its own.

        Then it has no course over all of them, and is read inside.
        """
        return isinstance(stage, ChunkLoop) and name not in self.starts

    def _stream(self, name: str, value: Expr) -> Expr:
        return self.graph.make("stream", name=name, shape=value.shape, span=value.span)

    def outermost(self, roots: Iterable[Expr], moving: set[str]) -> list[Expr]:
        """Find reads of moving memories that are not inside another one's state."""
        found: list[Expr] = []
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            asked = asked_of(node, self.moves)
            if asked is not None and memory_of(node) in moving and self._is_read(node):
                # inner reads first, so that they have names when this one is placed
                stack.extend(asked)
                found.append(node)
                continue
            if self.moves(node) and memory_of(node) in moving:
                found.append(node)
                continue
            stack.extend(node.args)
        return found[::-1]

    def _is_read(self, node: Expr) -> bool:
        """Say whether a product M @ q is asked as M(q) is, not for the whole state."""
        if node.op != "matvec":
            return True
        form, (state, asked) = self.block.memory(memory_of(node)).map, node.args
        plain = len(form.parts) == len(form.inputs) == len(form.outputs) == 1
        return plain and sizes(asked.shape[:-1]) == sizes(state.shape[:-2])

    def _inside(self, stage: Windows) -> Windows:
        """Move the reads inside of windows, also those of the updates at their ends."""
        inner = list(stage.stages)
        moving = {
            name for part in inner if isinstance(part, TokenLoop) for name in memories_of(part)
        }
        aliases: dict[Expr, Expr] = {}
        for name in stage.memories:
            for read in self.outermost(_of_tokens(self.block.memory(name)), moving):
                aliases.setdefault(read, self._alias(inner, read))
            for read in self.outermost(exprs_of(self.block, Update(name)), moving):
                if read not in aliases and not self._at_end(read, stage.late):
                    aliases[read] = self._alias(inner, read)
        return replace(stage, stages=tuple(self.stages(inner)), reads=tuple(aliases.items()))

    def _alias(self, inner: list[Stage], read: Expr) -> Expr:
        name = fresh(f"{memory_of(read)}_at", self.taken)
        inner.append(Parallel((Equation(name, read, "", read.span),)))
        return self._stream(name, read)

    def _at_end(self, read: Expr, late: Collection[str]) -> bool:
        """Say whether a read is of the state after the window's last token, not yet reset."""
        name = memory_of(read)
        kept = self.block.memory(name).reset is None or name in late
        return kept and leaf_of(read).attr("when") == "post"


def _of_tokens(memory: Memory) -> Iterator[Expr]:
    """Yield what is evaluated at every token of a window."""
    for node in postorder(assignment.value for assignment in memory.update):
        if node.op == "window" and node.attr("how") != "last":
            yield from node.args


Moves = Callable[[Expr], bool]


def moves(block: Block) -> Moves:
    """Return what says whether a value is a state that moves.

    An initial state does where a reset makes it a copy of another memory's. What learns from the
    task stays as it is while a block reads.
    """
    names = {memory.name for memory in block.memories if not memory.is_task}
    still = {memory.name for memory in block.memories if memory.is_task}
    again = {
        memory.name
        for memory in block.memories
        if memory.reset is not None and names & set(sources_of(memory))
    }

    def moving(node: Expr) -> bool:
        if node.op not in ("state", "attend"):
            return False
        if node.attr("memory") in still:
            return False
        return node.attr("when") != "initial" or node.attr("memory") in again

    return moving


def starts_read(block: Block) -> set[str]:
    """Name the memories of which something reads the state before the chunk."""
    roots = [e for step in block.steps for e in exprs_of(block, step)]
    leaves = (node for node in postorder(roots) if node.op == "state")
    return {str(node.attr("memory")) for node in leaves if node.attr("when") == "start"}


def read_by(block: Block, memory: Memory) -> set[str]:
    """Name what an update or a reset reads the states of."""
    found = states_in(block, [assignment.value for assignment in memory.update])
    return found | set(sources_of(memory) if memory.reset is not None else ())


def sources_of(memory: Memory) -> list[str]:
    """Name what the initial state is a copy of."""
    parts = [part for variable in memory.variables for part in variable.parts]
    return [part.initial.source for part in parts if part.initial.kind == "source"]


def states_in(block: Block, roots: Iterable[Expr]) -> set[str]:
    """Name the memories whose states some expressions read, where these move."""
    moving = moves(block)
    return {
        str(node.attr("memory")) for node in postorder(roots) if node.op == "state" and moving(node)
    }


def _check_apart(block: Block, stages: list[Stage]) -> None:
    """Raise `Knot` where a loop reads what moves in another, and one of them is over windows."""
    place = {
        name: i
        for i, stage in enumerate(stages)
        if isinstance(stage, TokenLoop | Windows)
        for name in memories_of(stage)
    }
    for i, stage in enumerate(stages):
        for step in () if isinstance(stage, Parallel) else steps_of(stage):
            if isinstance(step, Update):
                read = read_by(block, block.memory(step.memory))
            else:
                read = states_in(block, exprs_of(block, step))
            for j in sorted({place[name] for name in read if name in place} - {i}):
                if isinstance(stage, Windows) or isinstance(stages[j], Windows):
                    raise Knot([node_of(s) for k in (j, i) for s in steps_of(stages[k])])


def asked_of(node: Expr, moving: Moves) -> tuple[Expr, ...] | None:
    """Return what a read asks a state with: M(q), M @ q, weights over slots; None for all else."""
    if node.op == "apply" and len(node.args) > 1 and moving(node.args[1]):
        return node.args[:1]
    if node.op == "matvec" and moving(node.args[0]):
        return node.args[1:]
    split = routed(node)
    if split is not None and moving(split[1].args[1]):
        return (split[1].args[0], split[0])
    return None


def _asking(graph: Graph, read: Expr, asked: Expr, stream: Expr) -> Expr:
    """Put a stream in the place of what a read asks with."""
    if read.op == "sum":
        (product,) = read.args
        put = [_asking(graph, a, asked, stream) if a.op == "apply" else a for a in product.args]
        product = graph.make(product.op, *put, span=product.span, **dict(product.attrs))
        return graph.make(read.op, product, span=read.span, **dict(read.attrs))
    args = tuple(stream if arg is asked else arg for arg in read.args)
    return graph.make(read.op, *args, span=read.span, **dict(read.attrs))


def memory_of(read: Expr) -> str:
    """Name the memory that a read is of."""
    name: str = leaf_of(read).attr("memory")
    return name


def leaf_of(read: Expr) -> Expr:
    """Return the state that a read is of, or the read of a softmax memory itself."""
    split = routed(read)
    read = read if split is None else split[1]
    if read.op in ("apply", "matvec"):
        return next(arg for arg in read.args if arg.op == "state")
    return read


def _after(stages: list[Stage], expr: Expr) -> int:
    """Find the place before which all that an expression needs is made."""
    streams = {n.attr("name") for n in postorder([expr]) if n.op == "stream"}
    memories = {n.attr("memory") for n in postorder([expr]) if n.op in ("state", "attend")}
    place = 0
    for i, stage in enumerate(stages):
        made = {name for step in steps_of(stage) for name in made_by(step)}
        whole = isinstance(stage, Run) and stage.memory in memories
        if whole or made & streams:
            place = i + 1
    return place


def _placed(loop: Stage, equation: Equation, read: Expr, free: bool) -> Stage:
    """Put a read into a loop; `free` says that it asks with nothing that moves there."""
    if isinstance(loop, Windows):
        return replace(loop, stages=(*loop.stages, Parallel((equation,))))
    if isinstance(loop, ChunkLoop):
        return replace(loop, steps=(*loop.steps, equation))
    assert isinstance(loop, TokenLoop)
    leaf = leaf_of(read)
    steps, place = loop.steps, len(loop.steps)
    if free and leaf.attr("when") in ("prev", "start"):
        place = next(
            i for i, s in enumerate(steps) if isinstance(s, Update) and s.memory == memory_of(read)
        )
    return replace(loop, steps=(*steps[:place], equation, *steps[place:]))


def _replaced(graph: Graph, step: Step, known: dict[int, Expr]) -> Step:
    def stream(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        return known.get(id(node))

    match step:
        case Equation(value=value):
            return replace(step, value=rewrite(graph, [value], stream)[0])
        case Call(inputs=inputs):
            new = rewrite(graph, [e for _, e in inputs], stream)
            return replace(
                step, inputs=tuple((n, e) for (n, _), e in zip(inputs, new, strict=True))
            )
        case _:
            return step


def _sorted(block: Block, stages: list[Stage]) -> list[Stage]:
    """Put stages in order again: a query may have moved before the loop that needs it."""
    graph, moving = nx.DiGraph(), moves(block)
    makers: dict[Node, int] = {}
    for i, stage in enumerate(stages):
        graph.add_node(i)
        for step in steps_of(stage):
            makers |= {("stream", name): i for name in made_by(step)}
            if isinstance(step, Update):
                makers["memory", step.memory] = i
    defaults = {i.name: i.default for i in block.inputs if i.default is not None}
    for i, stage in enumerate(stages):
        waiting = [e for step in steps_of(stage) for e in exprs_of(block, step)]
        while waiting:
            for leaf in postorder([waiting.pop()]):
                maker = None
                if leaf.op == "stream":
                    maker = makers.get(("stream", leaf.attr("name")))
                    default = defaults.get(leaf.attr("name"))
                    if default is not None:
                        waiting.append(default)
                elif moving(leaf):
                    maker = makers.get(("memory", leaf.attr("memory")))
                if maker is not None and maker != i:
                    graph.add_edge(maker, i)
    for group in nx.strongly_connected_components(graph):
        if len(group) > 1:
            raise Knot([node_of(step) for i in sorted(group) for step in steps_of(stages[i])])
    return [stages[i] for i in nx.lexicographical_topological_sort(graph)]
