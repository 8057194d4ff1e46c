"""Which updates and reads of a block make one kernel for one token, while decoding.

In: a block's steps in the order of a token. Out: a `Group`: what comes before it, the steps inside,
and what comes after, in which reads of its memories are streams. Memories belong together where the
one kernel holds all their states, and what stands between their updates is made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.schedule import made_by
from nlc.ir.system import Block, Call, Equation, Memory, Step, Update

Printable = Callable[[Sequence[Step], Sequence[str], Sequence[str]], bool]


@dataclass(frozen=True)
class Group:
    """Steps of a token: `rows` are the streams that what comes after takes from inside."""

    before: tuple[Step, ...]
    inside: tuple[Step, ...]
    after: tuple[Step, ...]
    memories: tuple[str, ...]
    rows: tuple[str, ...]


def find_group(
    graph: Graph, block: Block, wanted: Iterable[str], printable: Printable
) -> Group | None:
    """Find the most memories of a block that one kernel moves; `wanted` are the block's outputs."""
    made = [name for step in block.steps for name in made_by(step)]
    if len(set(made)) < len(made) or len({i.name for i in block.inputs} & set(made)):
        # a stream that is made twice is another one afterwards
        return None
    alone = [m for m in block.memories if printable([Update(m.name)], [m.name], [])]

    def grouped(memories: list[Memory]) -> Group | None:
        found = _Sorted(graph, block, memories).group(set(wanted)) if memories else None
        fits = found is not None and printable(found.inside, found.memories, found.rows)
        return found if fits else None

    together = [m for m in alone if m.lead == alone[0].lead]
    best, chosen = grouped(together), list[Memory]()
    for memory in together if best is None else []:
        # as many as go together, in their order
        more = grouped([*chosen, memory])
        best, chosen = (best, chosen) if more is None else (more, [*chosen, memory])
    return best


class _Sorted:
    """The steps of a block, by whether they come before some memories' updates or after."""

    def __init__(self, graph: Graph, block: Block, memories: Sequence[Memory]):
        self.graph, self.block = graph, block
        self.mine = [memory.name for memory in memories]
        self.taken = {i.name for i in block.inputs} | {m.name for m in block.memories}
        self.taken |= {name for step in block.steps for name in made_by(step)}
        # reads by what they were: the stream, and the read as it is asked inside
        self.reads: dict[Expr, tuple[str, Expr]] = {}
        self.queries: dict[Expr, Equation] = {}
        self.late: set[str] = set()

    def group(self, wanted: set[str]) -> Group | None:
        """Sort the steps; nothing where an update needs what no kernel makes."""
        block = self.block
        before: list[Step] = []
        behind: list[Step] = []
        late, moved = self.late, set[str]()
        for step in block.steps:
            own = isinstance(step, Update) and step.memory in self.mine
            if own or self._needs(step, late, moved):
                behind.append(step)
                late |= set(made_by(step))
                if isinstance(step, Update):
                    moved.add(step.memory)
            else:
                before.append(step)
        inside = self._inside(behind)
        if inside is None:
            return None
        order = [step for step in behind if step in inside]
        after = [self._asking(step) for step in behind if step not in inside]
        asked = {n for s in after for e in self._of(s) for n in _streams([e])} | wanted
        reads = [Equation(name, read, "", read.span) for name, read in self.reads.values()]
        made = [name for step in order for name in made_by(step)]
        rows = [name for name in [*made, *(read.name for read in reads)] if name in asked]
        return Group(
            (*before, *self.queries.values()),
            (*order, *reads),
            tuple(after),
            tuple(m.name for m in block.memories if m.name in self.mine),
            tuple(rows),
        )

    def _of(self, step: Step) -> list[Expr]:
        match step:
            case Equation(value=value):
                return [value]
            case Call(inputs=inputs):
                return [value for _, value in inputs]
            case Update(memory=name):
                memory = self.block.memory(name)
                pairs = [e for pair in memory.pairs for e in pair]
                return pairs if memory.map.kind == "kernel" else [a.value for a in memory.update]
        return []

    def _needs(self, step: Step, late: set[str], moved: set[str]) -> bool:
        """Say whether a step takes what comes behind."""
        return any(
            (node.op == "stream" and node.attr("name") in late)
            or (
                node.op in ("state", "attend")
                and node.attr("memory") in moved
                and node.attr("when") != "prev"
            )
            for node in postorder(self._of(step))
        )

    def _inside(self, behind: list[Step]) -> list[Step] | None:
        """The updates, and the equations that these need of what comes behind."""
        needed: set[str] = set()
        found: list[Step] = []
        moving: set[str] = set()
        for step in reversed(behind):
            own = isinstance(step, Update) and step.memory in self.mine
            if not own and not needed & set(made_by(step)):
                continue
            if not own and not isinstance(step, Equation):
                return None
            found.append(step)
            needed |= _streams(self._of(step))
            moving |= {
                str(node.attr("memory")) for node in postorder(self._of(step))
                if node.op in ("state", "attend")
            }  # fmt: skip
        others = {step.memory for step in behind if isinstance(step, Update)} - set(self.mine)
        return None if moving & others else found[::-1]

    def _asking(self, step: Step) -> Step:
        """A step that comes after, with reads of the group's states as streams."""
        if not isinstance(step, Equation):
            return step

        def replaced(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if not self._is_read(node):
                return None
            if node not in self.reads:
                self.reads[node] = (self._fresh(f"{self._memory(node)}_read"), self._asked(node))
            name = self.reads[node][0]
            return self.graph.make("stream", name=name, shape=node.shape, span=node.span)

        return replace(step, value=rewrite(self.graph, [step.value], replaced)[0])

    def _is_read(self, node: Expr) -> bool:
        """Say whether a value is a read that is asked with what comes before."""
        if node.op == "apply":
            asked, states = node.args[0], node.args[1:]
        elif node.op == "matvec":
            asked, states = node.args[1], node.args[:1]
        else:
            return False
        plain = all(s.op == "state" and s.attr("when") in ("post", "prev") for s in states)
        if not states or not plain or self._memory(node) not in self.mine:
            return False
        lead = self.block.memory(self._memory(node)).lead
        known = not any(
            n.op in ("state", "attend") or (n.op == "stream" and n.attr("name") in self.late)
            for n in postorder([asked])
        )
        return known and node.shape[: len(lead)] == lead

    def _asked(self, node: Expr) -> Expr:
        """A read that is asked with a stream, which is made before."""
        place = 0 if node.op == "apply" else 1
        asked = node.args[place]
        if asked.op == "stream":
            return node
        if asked not in self.queries:
            name = self._fresh(f"{self._memory(node)}_query")
            self.queries[asked] = Equation(name, asked, "", asked.span)
        name = self.queries[asked].name
        stream = self.graph.make("stream", name=name, shape=asked.shape, span=asked.span)
        args = tuple(stream if i == place else arg for i, arg in enumerate(node.args))
        return self.graph.make(node.op, *args, span=node.span, **dict(node.attrs))

    def _memory(self, node: Expr) -> str:
        return str(node.args[1 if node.op == "apply" else 0].attr("memory"))

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name


def _streams(roots: Iterable[Expr]) -> set[str]:
    return {str(node.attr("name")) for node in postorder(roots) if node.op == "stream"}
