"""How a system runs: stages of each block, a schedule for each memory.

In: a `System`. Out: a `Plan`. Steps that do not wait for the past run over all tokens at once; a
memory alone runs by its normal form; what hangs together through time runs token by token. Chosen
from the equations alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import gcd

import networkx as nx

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.normal_form import Affine, Neither, NormalForm
from nlc.ir.online import asks
from nlc.ir.schedule import (
    BlockPlan,
    ChunkLoop,
    Kind,
    Parallel,
    Plan,
    Run,
    Schedule,
    Stage,
    TokenLoop,
    Windows,
    made_by,
)
from nlc.ir.slots import choice
from nlc.ir.system import Block, Call, Equation, Memory, Step, System, Update
from nlc.passes.bound import Bounds
from nlc.passes.entrywise import entrywise
from nlc.passes.gates import keep_gates
from nlc.passes.hoist import (
    Knot,
    Node,
    exprs_of,
    hoist,
    moves,
    node_of,
    sources_of,
    starts_read,
)
from nlc.passes.normalise import normalise
from nlc.passes.obstacles import obstacle
from nlc.passes.ties import ties, window_reason
from nlc.source import Span

# the schedules that run a memory over the whole sequence at once
WHOLE = ("tile-solve", "tile-scan", "scan", "attention")
# those whose state can be asked at every token at once
ASKED = (*WHOLE, "window")

Forms = tuple[tuple[str, NormalForm], ...]


def plan(system: System) -> Plan:
    """Choose how every block runs."""
    return Plan(tuple(_block(system.graph_of, block) for block in system.blocks))


# ---- dependencies ------------------------------------------------------------------------------


def _graph(block: Block) -> nx.DiGraph:
    """What each step needs, at this token or from earlier ones."""
    graph, moving = nx.DiGraph(), moves(block)
    makers: dict[str, Node] = {}
    for step in block.steps:
        graph.add_node(node_of(step))
        for name in step.results if isinstance(step, Call) else ():
            makers[name] = node_of(step)
        if isinstance(step, Equation):
            makers[step.name] = node_of(step)
    defaults = {i.name: i.default for i in block.inputs if i.default is not None}
    for step in block.steps:
        node = node_of(step)
        waiting = list(exprs_of(block, step))
        seen: set[str] = set()
        while waiting:
            for leaf in postorder([waiting.pop()]):
                if leaf.op == "stream":
                    name = leaf.attr("name")
                    if name in makers:
                        graph.add_edge(makers[name], node)
                    elif name in defaults and name not in seen:
                        seen.add(name)
                        default = defaults[name]
                        assert default is not None
                        waiting.append(default)
                elif moving(leaf):
                    source = ("memory", leaf.attr("memory"))
                    if source != node:
                        graph.add_edge(source, node)
    return graph


def _block(graph: Graph, block: Block) -> BlockPlan:
    needs = _graph(block)
    for one, other in ties(block):
        needs.add_edges_from([(one, other), (other, one)])
    while True:
        planning = _Planning(
            graph, block, needs, {m.name: online(m) for m in block.memories if m.is_task}
        )
        try:
            stages = hoist(graph, block, planning.stages(list(needs)))
            break
        except Knot as knot:
            nodes = [node for node in knot.nodes if node in needs]
            needs.add_edges_from(zip(nodes, [*nodes[1:], nodes[0]], strict=True))
    ordered = tuple(planning.schedules[m.name] for m in block.memories)
    return BlockPlan(block.name, tuple(_merge(stages)), ordered)


@dataclass
class _Planning:
    """One try at a block: `needs` says which steps need which, `schedules` what was found."""

    graph: Graph
    block: Block
    needs: nx.DiGraph
    schedules: dict[str, Schedule]
    late: set[str] = field(default_factory=set)

    def stages(self, nodes: list[Node]) -> list[Stage]:
        """Order some steps in stages: what needs itself through time is one loop."""
        steps = {node_of(step): step for step in self.block.steps}
        place = {node: i for i, node in enumerate(steps)}
        inner = nx.DiGraph()
        inner.add_nodes_from(nodes)
        inner.add_edges_from((a, b) for a, b in self.needs.edges if a in inner and b in inner)
        whole = nx.condensation(inner)
        members = {n: sorted(whole.nodes[n]["members"], key=place.__getitem__) for n in whole}
        order = nx.lexicographical_topological_sort(whole, key=lambda n: place[members[n][0]])
        return [self._stage([steps[node] for node in members[n]]) for n in order]

    def _stage(self, group: list[Step]) -> Stage:
        names = [step.memory for step in group if isinstance(step, Update)]
        # what is reset at the ends of pieces is not inside of them
        memories = [
            replace(memory, reset=None) if memory.name in self.late else memory
            for memory in map(self.block.memory, names)
        ]
        if not memories and len(group) == 1:
            return Parallel(tuple(group))
        windowed = tuple(m.name for m in memories if m.window > 1)
        if windowed:
            return self._windows(group, windowed)
        nodes = [node_of(step) for step in group]
        together = {}
        if len(group) > 1:
            together = _in_chunks(self.graph, self.block, memories, nodes, self.schedules)
        if together:
            piece = _piece(memories)
            for name, found in together.items():
                # a chunk by itself holds its tiles to its length when it runs
                self.schedules[name] = _in_pieces(found, piece) if found.chunk > piece else found
            return ChunkLoop(self._in_order(group), tuple(names), piece)
        others = [name for _, name in nodes]
        for memory in memories:
            self.schedules[memory.name] = _schedule(
                self.graph, self.block, memory, others, self.schedules
            )
        if len(group) == 1 and self.schedules[names[0]].kind != "sequential":
            return Run(names[0])
        return TokenLoop(tuple(group), tuple(names))

    def _in_order(self, group: list[Step]) -> tuple[Step, ...]:
        """Put the steps of a chunk in order: whose states are read at its tokens goes first."""
        steps = {node_of(step): step for step in group}
        place = {node: i for i, node in enumerate(steps)}
        needs = _within(self.block, list(steps))
        order = nx.lexicographical_topological_sort(needs, key=place.__getitem__)
        return tuple(steps[node] for node in order)

    def _windows(self, group: list[Step], windowed: tuple[str, ...]) -> Windows:
        """Run a group window by window: in there, the states of the windows do not move."""
        memories = [self.block.memory(name) for name in windowed]
        for memory in memories:
            self.schedules[memory.name] = Schedule(memory.name, "window", window_reason(memory))
        length, late = self._late(group, memories)
        self.late |= {memory.name for memory in late}
        rest = [node_of(step) for step in group]
        inner = self.stages([node for node in rest if node[1] not in windowed])
        for memory in (self.block.memory(s.memory) for s in group if isinstance(s, Update)):
            self.schedules[memory.name] = _in_pieces(self.schedules[memory.name], length)
        return Windows(tuple(inner), windowed, length, late=tuple(memory.name for memory in late))

    def _late(self, group: list[Step], windowed: list[Memory]) -> tuple[int, list[Memory]]:
        """Find how long a piece is, and which memories are reset at the ends of pieces alone.

        Those that go back to a state that moves with windows have to be.
        """
        waiting = {memory.name for memory in windowed}
        resetting = self._resetting(group)
        for memory in resetting:
            if set(sources_of(memory)) & waiting:
                waiting.add(memory.name)
        length = gcd(
            min(memory.window for memory in windowed),
            *(m.reset.count for m in resetting if m.reset is not None and m.name in waiting),
        )
        late = [m for m in resetting if m.reset is not None and m.reset.count % length == 0]
        return length, [m for m in late if m.map.kind != "kernel"]

    def _resetting(self, group: list[Step]) -> list[Memory]:
        """List a group's memories that move with every token and are reset, copies last."""
        memories = [self.block.memory(s.memory) for s in group if isinstance(s, Update)]
        found = {m.name: m for m in memories if m.window == 1 and m.reset is not None}
        order = nx.DiGraph()
        order.add_nodes_from(found)
        order.add_edges_from((s, m.name) for m in found.values() for s in sources_of(m))
        return [found[n] for n in nx.lexicographical_topological_sort(order) if n in found]


def _in_chunks(
    graph: Graph,
    block: Block,
    memories: list[Memory],
    group: list[Node],
    schedules: Mapping[str, Schedule],
) -> dict[str, Schedule]:
    """Schedule a group that hangs together through states before the chunk alone, else give {}.

    Then a chunk's streams are known before its memories move, and all run through it in tiles. Of
    several chunks it is what divides them all: no chunk of any memory begins inside it.
    """
    names = {memory.name for memory in memories}
    # what attention reads of a piece is there once the streams of its tokens are
    piece = _piece(memories)
    attending = [memory for memory in memories if memory.map.kind == "kernel"]
    memories = [memory for memory in memories if memory.map.kind != "kernel"]
    if piece < 2:
        return {}
    within = _within(block, group)
    knots = nx.strongly_connected_components(within)
    if any(len(knot) > 1 for knot in knots) or any(a == b for a, b in within.edges):
        return {}
    found: dict[str, Schedule] = {}
    for memory in memories:
        # while it is asked, the others run as it hopes that they do
        others = {name: Schedule(name, "tile-scan", "") for name in names}
        asked = {**schedules, **others}
        starts = memory.name in starts_read(block)
        schedule = _schedule(graph, block, memory, [memory.name], asked, by_chunks=starts)
        if schedule.kind not in ("tile-scan", "tile-solve", "scan"):
            return {}
        found[memory.name] = schedule
    for memory in attending:
        found[memory.name] = _schedule(graph, block, memory, [memory.name], schedules)
    return found


def _piece(memories: list[Memory]) -> int:
    """Find the pieces inside which no chunk begins."""
    return gcd(*(memory.chunk for memory in memories if memory.map.kind != "kernel"))


def _in_pieces(schedule: Schedule, length: int) -> Schedule:
    """Hold the tiles to pieces of a sequence, which have no more tokens."""
    parts = [(part, replace(k, tile=min(k.tile, length))) for part, k in schedule.parts]
    return replace(schedule, parts=tuple(parts))


def _within(block: Block, group: list[Node]) -> nx.DiGraph:
    """What the steps of a group need of each other inside a chunk: not the states before it."""
    steps = {node_of(step): step for step in block.steps}
    makers = {name: node for node in group for name in made_by(steps[node])}
    graph = nx.DiGraph()
    graph.add_nodes_from(group)
    for node in group:
        for leaf in postorder(exprs_of(block, steps[node])):
            source: Node | None = None
            if leaf.op == "stream":
                source = makers.get(leaf.attr("name"))
            elif leaf.op in ("state", "attend") and leaf.attr("when") in ("prev", "post"):
                source = ("memory", leaf.attr("memory"))
            if source in graph and (source != node or leaf.op == "attend"):
                graph.add_edge(source, node)
    return graph


def _merge(stages: list[Stage]) -> list[Stage]:
    merged: list[Stage] = []
    for stage in stages:
        if isinstance(stage, Windows):
            stage = replace(stage, stages=tuple(_merge(list(stage.stages))))
        if isinstance(stage, Parallel) and merged and isinstance(merged[-1], Parallel):
            merged[-1] = Parallel(merged[-1].steps + stage.steps)
        else:
            merged.append(stage)
    return merged


# ---- schedules ---------------------------------------------------------------------------------


def online(memory: Memory) -> Schedule:
    """Say how a memory runs that learns from the task while the sequence is read."""
    tokens = f"{memory.window} tokens" if memory.window > 1 else "1 token"
    again = ", once more for each gradient at another value" if asks(memory) else ""
    reason = (
        f"a window of {tokens} is read{again}, then its loss is differentiated and the memory "
        "moves, when the target of the last token is there"
    )
    return Schedule(memory.name, "online", reason)


def _schedule(
    graph: Graph,
    block: Block,
    memory: Memory,
    group: list[str],
    schedules: Mapping[str, Schedule],
    by_chunks: bool = False,
) -> Schedule:
    """Schedule a memory by its normal form; else entry by entry; else token by token."""
    found = _by_form(graph, block, memory, group, schedules, by_chunks)
    alone = found.kind == "sequential" and len(group) == 1 and reads_start(memory)
    if not alone or (memory.reset is not None and _copies(memory)):
        return found
    hangs = choice(memory)
    if (hangs is not None and hangs.sparse) or _read_elsewhere(block, memory, schedules):
        return found
    split = entrywise(graph, memory)
    if split is None or not _varied(e for entry in split[0] for e in (entry.gate, entry.added)):
        return found
    entries, ends = split
    reason = "entry by entry, as what is added is known at the chunk's start"
    if ends:
        reason += f"; the last of each {ends} tokens by itself"
    return replace(
        found, kind="scan", reason=reason, hint="", span=None,
        by_chunks=True, entries=entries, ends=ends,
    )  # fmt: skip


def _by_form(
    graph: Graph,
    block: Block,
    memory: Memory,
    group: list[str],
    schedules: Mapping[str, Schedule],
    by_chunks: bool = False,
) -> Schedule:
    def sequential(
        kind: str, forms: Forms = (), span: Span | None = None, **words: object
    ) -> Schedule:
        found = obstacle(kind, **words)
        return one_by_one(found.reason, found.hint, forms, span)

    def one_by_one(reason: str, hint: str, forms: Forms, span: Span | None) -> Schedule:
        return Schedule(
            memory.name, "sequential", reason, forms, chunk=memory.chunk, hint=hint, span=span
        )

    if len(group) > 1:
        others = ", ".join(f"`{name}`" for name in group if name != memory.name)
        span = _own_read(block, memory, group)
        return sequential("own past", span=span, others=others, name=memory.name)
    if memory.map.kind == "kernel":
        return Schedule(memory.name, "attention", "every query attends to the stored pairs")
    hangs = choice(memory)
    if hangs is not None and hangs.sparse:
        return sequential("slots", span=hangs.route.span, count=hangs.selected, size=hangs.size)
    forms = normalise(graph, memory)
    for part, form in forms:
        if isinstance(form, Neither):
            where = f"`{part.removesuffix('.weight')}`: " if len(forms) > 1 else ""
            return one_by_one(where + form.reason, form.hint, forms, form.span)
    found = [(part, form) for part, form in forms if isinstance(form, Affine)]
    by_chunks = by_chunks or reads_start(memory)
    stopped = any(form.stopped is not None for _, form in found)
    if stopped and by_chunks:
        return sequential("stop", forms)
    if any(len(memory.variables) > len(form.states) for _, form in found):
        extra = [v for v in memory.variables if v.name not in dict(found[0][1].states)]
        names = ", ".join(f"`{v.name}`" for v in extra)
        return sequential("other shapes", forms, extra[0].span, names=names)
    if len(found) > 1 and not by_chunks:
        return sequential("several parts", forms)
    if any(_gates_read(form) for _, form in found):
        return sequential("moving gates", forms)
    if memory.reset is not None and _copies(memory):
        return sequential("copied at resets", forms)
    elsewhere = _read_elsewhere(block, memory, schedules)
    if elsewhere is not None:
        return sequential("elsewhere", forms, elsewhere[1], name=elsewhere[0])
    if not any(_varies(form) for _, form in found):
        return sequential("still", forms)
    known = all(form.known for _, form in found)
    if known and not by_chunks and memory.reset is None and _one_row(memory, found[0][1]):
        reason = "affine in its state, channel by channel, and nothing in its writes reads it"
        return Schedule(memory.name, "scan", reason, forms, memory.chunk)
    reason = "affine in its state, which its writes read"
    if known:
        reason = "affine in its state, and its writes are known in advance"
        if by_chunks:
            reason = "affine in its state, and its writes are known at the chunk's start"
    if stopped:
        reason = "affine in its state; what gradients take for constant is found first"
    log = Bounds(block).log
    chunk = memory.chunk if by_chunks else 0
    parts = tuple((part, keep_gates(form, log, chunk)) for part, form in found)
    kind: Kind = "tile-scan" if known else "tile-solve"
    return Schedule(memory.name, kind, reason, forms, memory.chunk, parts, by_chunks=by_chunks)


def reads_start(memory: Memory) -> bool:
    """Say whether an update reads its own state at the start of the chunk."""
    return memory.chunk > 1 and any(
        node.op == "state" and node.attr("memory") == memory.name and node.attr("when") == "start"
        for node in postorder([a.value for a in memory.update])
    )


def _gates_read(form: Affine) -> bool:
    """Say whether a gate hangs on the state at the start of the chunk."""
    gates = [gate.value for row in form.decay for gate in row if gate is not None]
    return any(n.op == "state" and n.attr("when") == "start" for n in postorder(gates))


def _one_row(memory: Memory, form: Affine) -> bool:
    """Say whether each state is one row."""
    shape = memory.map.parts[0].shape
    return len(shape) < 2 or (shape[0].size == 1 and not form.transposed)


def _copies(memory: Memory) -> bool:
    """Say whether it begins with a copy of another's state."""
    return any(part.initial.kind == "source" for v in memory.variables for part in v.parts)


def _own_read(block: Block, memory: Memory, group: list[str]) -> Span | None:
    """Find where something that the update needs reads the memory's own state."""
    for step in block.steps:
        if isinstance(step, Update) or node_of(step)[1] not in group:
            continue
        for node in postorder(exprs_of(block, step)):
            if any(_is_own(arg, memory) for arg in node.args) or _is_own(node, memory, "attend"):
                return node.span
    return None


def _read_elsewhere(
    block: Block, memory: Memory, schedules: Mapping[str, Schedule]
) -> tuple[str, Span] | None:
    """Find a read of another memory in the update that has no value for all tokens."""
    moving = moves(block)
    for node in postorder([a.value for a in memory.update]):
        states = [a for a in node.args if a.op == "state" and a.attr("memory") != memory.name]
        states = [arg for arg in states if moving(arg)]
        # a memory that runs over the whole sequence can be asked at every token, and has its state
        # for each where that is a number or a vector
        states = [
            arg for arg in states
            if schedules[arg.attr("memory")].kind not in ASKED
            or not (node.op == "apply" or _is_small(block, arg))
        ]  # fmt: skip
        if states:
            return str(states[0].attr("memory")), node.span
        if node.op == "attend" and schedules[node.attr("memory")].kind not in WHOLE:
            return str(node.attr("memory")), node.span
    return None


def _is_small(block: Block, state: Expr) -> bool:
    """Say whether a state is a number or a vector for each copy."""
    return len(state.shape) - len(block.memory(state.attr("memory")).lead) < 2


def _is_own(node: Expr, memory: Memory, op: str = "state") -> bool:
    own = node.op == op and node.attr("memory") == memory.name
    return own and node.attr("when") != "initial"


def _varies(form: Affine) -> bool:
    """Say whether anything in a form depends on the token."""
    roots = [gate.value for row in form.decay for gate in row if gate is not None]
    for write in form.writes:
        roots += [e for e in (*write.reads, write.offset, *write.targets) if e is not None]
    return _varied(roots)


def _varied(roots: Iterable[Expr | None]) -> bool:
    """Say whether anything in some values depends on the token."""
    given = [root for root in roots if root is not None]
    return any(node.op in ("stream", "shift", "conv") for node in postorder(given))
