"""How a system runs: stages of each block, a schedule for each memory.

In: a `System`. Out: a `Plan`. Steps that do not wait for the past run over all tokens at once; a
memory alone runs by its normal form; what hangs together through time runs token by token. Chosen
from the equations alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import networkx as nx

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.normal_form import Affine, Neither, NormalForm
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
)
from nlc.ir.system import Block, Call, Equation, Memory, Step, System, Update
from nlc.passes.bound import Bounds
from nlc.passes.gates import keep_gates
from nlc.passes.normalise import normalise
from nlc.passes.obstacles import obstacle
from nlc.source import Span

# the schedules that run a memory over the whole sequence at once
WHOLE = ("tile-solve", "tile-scan", "scan", "attention")

Node = tuple[str, str]
Forms = tuple[tuple[str, NormalForm], ...]


def plan(system: System) -> Plan:
    """Choose how every block runs."""
    return Plan(tuple(_block(system.graph_of, block) for block in system.blocks))


# ---- dependencies ------------------------------------------------------------------------------


def _exprs(block: Block, step: Step) -> tuple[Expr, ...]:
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


def _node(step: Step) -> Node:
    match step:
        case Equation(name=name):
            return ("stream", name)
        case Call(instance=name):
            return ("call", name)
        case Update(memory=name):
            return ("memory", name)
        case _:
            raise AssertionError("a block holds no repeat")


def _graph(block: Block) -> nx.DiGraph:
    """What each step needs, at this token or from earlier ones."""
    graph = nx.DiGraph()
    makers: dict[str, Node] = {}
    for step in block.steps:
        graph.add_node(_node(step))
        for name in step.results if isinstance(step, Call) else ():
            makers[name] = _node(step)
        if isinstance(step, Equation):
            makers[step.name] = _node(step)
    defaults = {i.name: i.default for i in block.inputs if i.default is not None}
    for step in block.steps:
        node = _node(step)
        waiting = list(_exprs(block, step))
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
                elif leaf.op in ("state", "attend") and leaf.attr("when") != "initial":
                    source = ("memory", leaf.attr("memory"))
                    if source != node:
                        graph.add_edge(source, node)
    return graph


def _block(graph: Graph, block: Block) -> BlockPlan:
    needs = _graph(block)
    place = {_node(step): i for i, step in enumerate(block.steps)}
    whole = nx.condensation(needs)
    members = {n: sorted(whole.nodes[n]["members"], key=place.__getitem__) for n in whole}
    groups = [
        members[n]
        for n in nx.lexicographical_topological_sort(whole, key=lambda n: place[members[n][0]])
    ]
    by_node = {_node(step): step for step in block.steps}
    schedules: dict[str, Schedule] = {}
    stages: list[Stage] = []
    moving: dict[str, Schedule] = {}
    for group in groups:
        memories = [block.memory(name) for kind, name in group if kind == "memory"]
        if len(group) == 1 and not memories:
            stages.append(Parallel((by_node[group[0]],)))
            continue
        alone = len(group) == 1
        together = {} if alone else _in_chunks(graph, block, memories, group, schedules)
        if together:
            schedules |= together
            steps = tuple(by_node[node] for node in group)
            stages.append(ChunkLoop(steps, tuple(together), memories[0].chunk))
            continue
        for memory in memories:
            others = [name for _, name in group]
            schedule = _schedule(graph, block, memory, others, schedules)
            schedules[memory.name] = schedule
            if schedule.kind == "sequential":
                moving[memory.name] = schedule
        if alone and schedules[memories[0].name].kind != "sequential":
            stages.append(Run(memories[0].name))
        else:
            steps = tuple(by_node[node] for node in group)
            stages.append(TokenLoop(steps, tuple(m.name for m in memories)))
    stages = _hoist(graph, block, stages, {m.name for m in block.memories if m.name in moving})
    ordered = tuple(schedules[m.name] for m in block.memories)
    return BlockPlan(block.name, tuple(_merge(stages)), ordered)


def _in_chunks(
    graph: Graph,
    block: Block,
    memories: list[Memory],
    group: list[Node],
    schedules: Mapping[str, Schedule],
) -> dict[str, Schedule]:
    """Schedule a group that hangs together through states before the chunk alone, else give {}.

    Then a chunk's streams are known before its memories move, and all run through it in tiles.
    """
    names = {memory.name for memory in memories}
    if len({memory.chunk for memory in memories}) > 1 or not all(map(reads_start, memories)):
        return {}
    by_node = {_node(step): step for step in block.steps}
    roots = [e for node in group for e in _exprs(block, by_node[node])]
    roots += [a.value for memory in memories for a in memory.update]
    for node in postorder(roots):
        if node.op in ("state", "attend") and node.attr("memory") in names:
            own = node.op == "state" and node.attr("when") in ("start", "post", "initial")
            moving = node.op == "state" and node.attr("when") == "prev"
            if not own and not (moving and _only_own(node, memories)):
                return {}
    found: dict[str, Schedule] = {}
    for memory in memories:
        # while it is asked, the others run as it hopes that they do
        others = {name: Schedule(name, "tile-scan", "") for name in names}
        schedule = _schedule(graph, block, memory, [memory.name], {**schedules, **others})
        if schedule.kind not in ("tile-scan", "tile-solve"):
            return {}
        found[memory.name] = schedule
    return found


def _only_own(leaf: Expr, memories: list[Memory]) -> bool:
    """Say whether a running state stands in its own memory's update alone."""
    for memory in memories:
        inside = any(node is leaf for node in postorder([a.value for a in memory.update]))
        if inside != (memory.name == leaf.attr("memory")):
            return False
    return True


def _merge(stages: list[Stage]) -> list[Stage]:
    merged: list[Stage] = []
    for stage in stages:
        if isinstance(stage, Parallel) and merged and isinstance(merged[-1], Parallel):
            merged[-1] = Parallel(merged[-1].steps + stage.steps)
        else:
            merged.append(stage)
    return merged


# ---- schedules ---------------------------------------------------------------------------------


def _schedule(
    graph: Graph,
    block: Block,
    memory: Memory,
    group: list[str],
    schedules: Mapping[str, Schedule],
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
    forms = normalise(graph, memory)
    for part, form in forms:
        if isinstance(form, Neither):
            where = f"`{part.removesuffix('.weight')}`: " if len(forms) > 1 else ""
            return one_by_one(where + form.reason, form.hint, forms, form.span)
    found = [(part, form) for part, form in forms if isinstance(form, Affine)]
    chunked = reads_start(memory)
    if any(len(memory.variables) > len(form.states) for _, form in found):
        extra = [v for v in memory.variables if v.name not in dict(found[0][1].states)]
        names = ", ".join(f"`{v.name}`" for v in extra)
        return sequential("other shapes", forms, extra[0].span, names=names)
    if len(found) > 1 and not chunked:
        return sequential("several parts", forms)
    if any(_gates_read(form) for _, form in found):
        return sequential("moving gates", forms)
    if memory.reset is not None and _copies(memory):
        return sequential("copied at resets", forms)
    elsewhere = _read_elsewhere(memory, schedules)
    if elsewhere is not None:
        return sequential("elsewhere", forms, elsewhere[1], name=elsewhere[0])
    if not any(_varies(form) for _, form in found):
        return sequential("still", forms)
    known = all(form.known for _, form in found)
    if known and not chunked and memory.reset is None and _one_row(memory, found[0][1]):
        reason = "affine in its state, channel by channel, and nothing in its writes reads it"
        return Schedule(memory.name, "scan", reason, forms, memory.chunk)
    reason = "affine in its state, which its writes read"
    if known:
        reason = "affine in its state, and its writes are known in advance"
        if chunked:
            reason = "affine in its state, and its writes are known at the chunk's start"
    log = Bounds(block).log
    parts = tuple((part, keep_gates(form, log)) for part, form in found)
    kind: Kind = "tile-scan" if known else "tile-solve"
    return Schedule(memory.name, kind, reason, forms, memory.chunk, parts)


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
        if isinstance(step, Update) or _node(step)[1] not in group:
            continue
        for node in postorder(_exprs(block, step)):
            if any(_is_own(arg, memory) for arg in node.args) or _is_own(node, memory, "attend"):
                return node.span
    return None


def _read_elsewhere(memory: Memory, schedules: Mapping[str, Schedule]) -> tuple[str, Span] | None:
    """Find a read of another memory in the update that has no value for all tokens."""
    for node in postorder([a.value for a in memory.update]):
        states = [arg for arg in node.args if _is_other(arg, memory)]
        if node.op == "apply":
            # the state of a memory that runs over the whole sequence can be asked at every token
            states = [arg for arg in states if schedules[arg.attr("memory")].kind not in WHOLE]
        if states:
            return str(states[0].attr("memory")), node.span
        if node.op == "attend" and schedules[node.attr("memory")].kind not in WHOLE:
            return str(node.attr("memory")), node.span
    return None


def _is_own(node: Expr, memory: Memory, op: str = "state") -> bool:
    own = node.op == op and node.attr("memory") == memory.name
    return own and node.attr("when") != "initial"


def _is_other(node: Expr, memory: Memory) -> bool:
    other = node.op == "state" and node.attr("memory") != memory.name
    return other and node.attr("when") != "initial"


def _varies(form: Affine) -> bool:
    """Say whether anything in a form depends on the token."""
    roots = [gate.value for row in form.decay for gate in row if gate is not None]
    for write in form.writes:
        roots += [e for e in (*write.reads, write.offset, *write.targets) if e is not None]
    return any(node.op in ("stream", "shift", "conv") for node in postorder(roots))


# ---- reads of memories that move token by token ------------------------------------------------


def _hoist(graph: Graph, block: Block, stages: list[Stage], moving: set[str]) -> list[Stage]:
    """Move reads of such a memory into its loop, as streams of their own.

    What a read is asked with is made before the loop where it can be, so that all that is left
    in the loop is the memory and its reads.
    """
    taken = {i.name for i in block.inputs} | {
        s.name for s in block.steps if isinstance(s, Equation)
    }
    taken |= {name for s in block.steps if isinstance(s, Call) for name in s.results}
    taken |= {m.name for m in block.memories}
    known: dict[int, Expr] = {}
    result: list[Stage] = list(stages)
    for stage in stages:
        if not isinstance(stage, Parallel):
            continue
        (step,) = stage.steps
        roots = _exprs(block, step)
        reads = [n for n in _outermost(roots, moving) if id(n) not in known]
        for read in reads:
            name = _fresh(f"{_memory_of(read)}_{'read' if read.op == 'apply' else 'state'}", taken)
            at = _loop_of(result, _memory_of(read))
            loop = result[at]
            assert isinstance(loop, TokenLoop)
            read_now = read
            if read.op == "apply" and read.args[0].op != "stream":
                asked = read.args[0]
                if not _outermost((asked,), moving):
                    query = _fresh(f"{_memory_of(read)}_query", taken)
                    before = Equation(query, asked, "", read.span)
                    place = _after(block, result, asked)
                    stream = graph.make("stream", name=query, shape=asked.shape, span=read.span)
                    if place <= at:
                        result.insert(at, Parallel((before,)))
                        at += 1
                        read_now = graph.make(
                            "apply", stream, *read.args[1:], span=read.span, **dict(read.attrs)
                        )
            equation = Equation(name, read_now, "", read.span)
            steps = _placed(loop.steps, equation, read)
            result[at] = replace(loop, steps=steps)
            known[id(read)] = graph.make("stream", name=name, shape=read.shape, span=read.span)
        if any(id(n) in known for n in postorder(roots)):
            result[result.index(stage)] = Parallel((_replaced(graph, step, known),))
    return _sorted(block, result)


def _memory_of(read: Expr) -> str:
    name: str = read.attr("memory")
    return name


def _outermost(roots: tuple[Expr, ...], moving: set[str]) -> list[Expr]:
    """Find reads of moving memories that are not inside another one's state."""
    found: list[Expr] = []
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        states = [a for a in node.args[1:] if a.op == "state" and a.attr("when") != "initial"]
        read = node.op == "apply" and states and node.args[1].op == "state"
        if read and _memory_of(states[0]) in moving:
            # inner reads first, so that they have names when this one is placed
            stack.append(node.args[0])
            found.append(node)
            continue
        bare = node.op in ("state", "attend") and node.attr("when") != "initial"
        if bare and _memory_of(node) in moving:
            found.append(node)
            continue
        stack.extend(node.args)
    return found[::-1]


def _fresh(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def _loop_of(stages: list[Stage], memory: str) -> int:
    return next(
        i for i, s in enumerate(stages) if isinstance(s, TokenLoop) and memory in s.memories
    )


def _after(block: Block, stages: list[Stage], expr: Expr) -> int:
    """Find the place before which all that an expression needs is made."""
    streams = {n.attr("name") for n in postorder([expr]) if n.op == "stream"}
    memories = {n.attr("memory") for n in postorder([expr]) if n.op in ("state", "attend")}
    place = 0
    for i, stage in enumerate(stages):
        made: set[str] = set()
        if isinstance(stage, Run):
            if stage.memory in memories:
                place = i + 1
            continue
        for step in stage.steps:
            if isinstance(step, Equation):
                made.add(step.name)
            elif isinstance(step, Call):
                made |= set(step.results)
        if made & streams:
            place = i + 1
    return place


def _placed(steps: tuple[Step, ...], equation: Equation, read: Expr) -> tuple[Step, ...]:
    leaf = next(n for n in (read, *read.args) if n.op in ("state", "attend") and n.has("when"))
    place = len(steps)
    if leaf.attr("when") in ("prev", "start"):
        place = next(
            i for i, s in enumerate(steps)
            if isinstance(s, Update) and s.memory == _memory_of(read)
        )  # fmt: skip
    return (*steps[:place], equation, *steps[place:])


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
    graph = nx.DiGraph()
    makers: dict[Node, int] = {}
    for i, stage in enumerate(stages):
        graph.add_node(i)
        if isinstance(stage, Run):
            makers["memory", stage.memory] = i
            continue
        for step in stage.steps:
            if isinstance(step, Equation):
                makers["stream", step.name] = i
            elif isinstance(step, Call):
                makers.update({("stream", name): i for name in step.results})
            elif isinstance(step, Update):
                makers["memory", step.memory] = i
    defaults = {i.name: i.default for i in block.inputs if i.default is not None}
    for i, stage in enumerate(stages):
        steps: tuple[Step, ...] = (Update(stage.memory),) if isinstance(stage, Run) else stage.steps
        waiting = [e for step in steps for e in _exprs(block, step)]
        while waiting:
            for leaf in postorder([waiting.pop()]):
                maker = None
                if leaf.op == "stream":
                    maker = makers.get(("stream", leaf.attr("name")))
                    default = defaults.get(leaf.attr("name"))
                    if default is not None:
                        waiting.append(default)
                elif leaf.op in ("state", "attend") and leaf.attr("when") != "initial":
                    maker = makers.get(("memory", leaf.attr("memory")))
                if maker is not None and maker != i:
                    graph.add_edge(maker, i)
    return [stages[i] for i in nx.lexicographical_topological_sort(graph)]
