"""Follow streams from component to component: who generates, reads, starts and corrects whom.

A stream's sources are the components whose output reaches it with none in between. Where a stream
enters a component, each of its sources is joined with it:

    into keys, values and gates of a memory     source generates them
    into weights, from a memory                 the memory is read
    into weights or a query, from weights       the gradient passes back to the source

In: a resolved system and its components. Out: edges. Depth is no order: what passes from block to
block is marked `across`, and whether a state is needed at the same time is asked within a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nlc.ir.expr import Expr, postorder
from nlc.ir.level_graph import Component, Edge, EdgeKind
from nlc.ir.system import Block, Call, Equation, Memory, Model, Repeat, Step, System, Update

# operations of an update that are not of streams and weights alone
OWN = {"variable", "state", "attend", "grad"}
# operations of the names alone: with a bare parameter, they do not make it a map
QUIET = {"let", "stop", "reshape", "unsqueeze", "permute", "transpose", "slice", "diag"}


@dataclass(frozen=True)
class Flow:
    """Where a value comes from: `direct` components, and whether each is in another instance.

    `now` are the memories of this block that it needs after their update of this token. `fixed`:
    it depends on no stream, as a bare parameter does.
    """

    direct: frozenset[tuple[str, bool]] = frozenset()
    now: frozenset[str] = frozenset()
    fixed: bool = False

    def outside(self) -> Flow:
        """The same, as another instance sees it."""
        return Flow(frozenset((name, True) for name, _ in self.direct))


def joined(flows: Iterable[Flow]) -> Flow:
    """Join flows."""
    flows = list(flows)
    return Flow(
        frozenset().union(*(f.direct for f in flows)), frozenset().union(*(f.now for f in flows))
    )


@dataclass
class Edges:
    """What has been found so far, each way of joining two components once."""

    system: System
    components: Mapping[str, Component]
    found: dict[tuple[str, str, str], Edge] = field(default_factory=dict)
    blocks: dict[tuple[str, ...], dict[str, Flow]] = field(default_factory=dict)

    def add(
        self, source: str, target: str, kind: EdgeKind, reason: str,
        same_time: bool = False, across: bool = False, role: str = "",
    ) -> None:  # fmt: skip
        """Add an edge; one that is known stays, and is at the same time if either is."""
        if source not in self.components or target not in self.components:
            return
        key = (source, target, kind)
        known = self.found.get(key)
        if known is None:
            self.found[key] = Edge(source, target, kind, reason, same_time, across, role)
        else:
            self.found[key] = replace(
                known, same_time=known.same_time or same_time, across=known.across and across
            )

    def into(self, flow: Flow, owner: str) -> None:
        """A stream enters weights, or a memory as its query."""
        for name, across in sorted(flow.direct):
            source, target = self.components.get(name), self.components.get(owner)
            if name == owner or source is None or target is None:
                continue
            if source.kind in ("memory", "state"):
                reason = f"{target.label} is applied to what {source.label} gives"
                self.add(name, owner, "reads", reason, across=across, role="out")
            elif source.period.unit != "never":
                reason = f"the gradient passes through {target.label} to {source.label}"
                role = "query" if target.kind == "memory" else ""
                self.add(owner, name, "backprop", reason, across=across, role=role)


def find_edges(system: System, components: Mapping[str, Component]) -> list[Edge]:
    """Find all edges between weights, memories and their states."""
    edges = Edges(system, components)
    if system.model is not None:
        model = Follower(edges, system.model, "", {})
        model.steps(system.model.steps)
        model.flow(system.model.objective)
    called = {key[0] for key in edges.blocks}
    for block in system.blocks:
        if block.name not in called:
            follow_block(edges, block, {})
    return list(edges.found.values())


def follow_block(edges: Edges, block: Block, inputs: Mapping[str, Flow]) -> dict[str, Flow]:
    """Follow the streams through an instance of a block; return those of its outputs."""
    key = (block.name, *(f"{name}: {sorted(inputs[name].direct)}" for name in sorted(inputs)))
    if key not in edges.blocks:
        follower = Follower(edges, block, block.name, dict(inputs))
        for entry in block.inputs:
            if entry.name not in inputs and entry.default is not None:
                follower.lazy[entry.name] = entry.default
        follower.begins()
        follower.steps(block.steps)
        edges.blocks[key] = {name: follower.stream(name).outside() for name, _ in block.outputs}
    return edges.blocks[key]


class Follower:
    """Follows the streams of one instance of a block, or of the model."""

    def __init__(self, edges: Edges, module: Block | Model, prefix: str, streams: dict[str, Flow]):
        self.edges = edges
        self.module = module
        self.prefix = prefix
        self.streams = streams
        self.lazy: dict[str, Expr] = {}
        self.memo: dict[int, Flow] = {}
        self.memories = {m.name: m for m in module.memories} if isinstance(module, Block) else {}

    def name(self, *parts: str) -> str:
        """A component's name."""
        return ".".join(part for part in (self.prefix, *parts) if part)

    def steps(self, steps: tuple[Step, ...]) -> None:
        """Follow steps in order; a repeat until nothing new comes."""
        for step in steps:
            match step:
                case Equation(name=name, value=value):
                    self.assign(name, self.flow(value))
                case Update(memory=name):
                    self.update(self.memories[name])
                case Call():
                    block = self.edges.system.block(step.block)
                    inputs = {name: self.flow(e).outside() for name, e in step.inputs}
                    outputs = follow_block(self.edges, block, inputs)
                    now = joined(self.flow(e) for _, e in step.inputs).now
                    for result, (name, _) in zip(step.results, block.outputs, strict=True):
                        self.assign(result, replace(outputs[name], now=now))
                case Repeat():
                    for _ in range(min(step.count, 1 + len(self.edges.components))):
                        before = dict(self.streams)
                        self.steps(step.steps)
                        if before == self.streams:
                            break

    def begins(self) -> None:
        """Join weights with the weights that they begin as."""
        for weight in self.module.weights:
            source = next((p.initial.source for p in weight.map.parts if p.initial.source), "")
            if not source:
                continue
            own, start = self.name(weight.name), self.name(source)
            reason = f"{weight.name} begins as a copy of {source}"
            if weight.restart is not None:
                reason += f", and again every {weight.restart.count} steps"
                passed = f"the gradient of {weight.name} is that of {source}, where it begins"
                self.edges.add(own, start, "backprop", passed)
            self.edges.add(start, own, "initialises", reason, role="start")

    def assign(self, name: str, flow: Flow) -> None:
        """Give a stream its flow; what followed from an older one is forgotten."""
        if self.streams.get(name) != flow:
            self.streams[name] = flow
            self.memo.clear()

    def stream(self, name: str) -> Flow:
        """The flow of a stream; an input that nothing is given for has its default's."""
        if name not in self.streams:
            default = self.lazy.pop(name, None)
            self.streams[name] = self.flow(default) if default is not None else Flow()
        return self.streams[name]

    def flow(self, root: Expr) -> Flow:
        """Follow an expression, and join what enters maps on the way."""
        for node in postorder([root]):
            if id(node) not in self.memo:
                self.memo[id(node)] = self.visit(node)
        return self.memo[id(root)]

    def visit(self, node: Expr) -> Flow:
        """The flow of a node, those of its arguments being known."""
        given = [self.memo.get(id(arg), Flow()) for arg in node.args]
        match node.op:
            case "const" | "index" | "identity" | "variable":
                return Flow(fixed=True)
            case "stream":
                return self.stream(node.attr("name"))
            case "param":
                return self.owned(self.parameter(node.attr("name")), fixed=True)
            case "state":
                return self.state(node)
            case "grad":
                return given[0]
            case "apply" | "conv":
                owners = joined(given[1:])
                if node.has("memory") and node.attr("memory"):
                    own = self.name(node.attr("memory"))
                    owners = Flow(frozenset([(own, False)]), owners.now)
                return self.applied(given[0], owners)
            case "attend":
                name = node.attr("memory")
                return self.applied(given[0], self.owned(self.name(name), now=self.at_once(node)))
            case op if op in QUIET or len(given) < 2:
                return replace(joined(given), fixed=bool(given) and all(f.fixed for f in given))
        maps = [f for f in given if f.fixed and f.direct]
        rest = [f for f in given if not (f.fixed and f.direct)]
        if maps and any(not f.fixed for f in rest):
            # a bare parameter or state beside a stream is a map applied to it
            return self.applied(joined(rest), joined(maps))
        return replace(joined(given), fixed=all(f.fixed for f in given))

    def applied(self, x: Flow, owners: Flow) -> Flow:
        """Join what enters a map with its owners; the owners' output goes on."""
        if not owners.direct:
            return Flow(x.direct, x.now | owners.now)
        for owner, _ in sorted(owners.direct):
            self.edges.into(x, owner)
        return Flow(owners.direct, x.now | owners.now)

    def owned(self, name: str, now: frozenset[str] = frozenset(), fixed: bool = False) -> Flow:
        """The output of a component."""
        return Flow(frozenset([(name, False)]), now, fixed)

    def parameter(self, name: str) -> str:
        """The component of a parameter: weights, a learned start or learned pairs."""
        owner = str(name).split(".", 1)[0]
        memory = self.memories.get(owner)
        if memory is None:
            return self.name(owner)
        return self.name(owner, "pairs" if memory.map.kind == "kernel" else "start")

    def state(self, node: Expr) -> Flow:
        """The flow of a memory's state."""
        name = node.attr("memory")
        if node.attr("when") == "initial" and self.memories[name].learned:
            return self.owned(self.name(name, "start"), fixed=True)
        return self.owned(self.name(name, node.attr("var")), self.at_once(node), fixed=True)

    def at_once(self, node: Expr) -> frozenset[str]:
        """The memory that a read needs after this token's update, if it does."""
        return frozenset([node.attr("memory")] if node.attr("when") == "post" else [])

    # ---- a memory's own edges ----------------------------------------------------------------

    def update(self, memory: Memory) -> None:
        """Join a memory with what makes its keys, values and gates, and with its states."""
        own = self.name(memory.name)
        roles: list[tuple[str, Expr]] = []
        for key, value in memory.pairs:
            roles += [("keys", key), ("values", value)]
        if memory.objective is not None:
            roles.append(("objective", memory.objective))
        roles += [("update", assignment.value) for assignment in memory.update]
        made: dict[str, dict[str, bool]] = {}
        now: frozenset[str] = frozenset()
        for role, root in roles:
            streams = [root] if role in ("keys", "values") else list(_streams(root, role))
            flow = joined(self.flow(e) for e in streams)
            now |= flow.now
            for source, across in sorted(flow.direct):
                known = made.setdefault(source, {})
                # the keys and values come back in the objective, and so in the update
                if role in ("keys", "values") or not known:
                    known[role] = across
            if role not in ("keys", "values"):
                now |= self.others(memory, root)
        for source, parts in made.items():
            word = " and ".join("gates" if role == "update" else role for role in parts)
            self.edges.add(
                source, own, "generates", f"makes the {word} of {memory.name}",
                across=all(parts.values()), role=word,
            )  # fmt: skip
        self.same_time(memory, now)
        self.states(memory)
        self.starts(memory)

    def others(self, memory: Memory, root: Expr) -> frozenset[str]:
        """Join other memories that the update reads by itself; return those it needs at once."""
        now: set[str] = set()
        for node in postorder([root]):
            if node.op not in ("state", "attend") or node.attr("memory") == memory.name:
                continue
            other = node.attr("memory")
            state = node.attr("var") if node.op == "state" else ""
            source = self.name(other, state)
            at_once = node.attr("when") == "post"
            reason = f"the update of {memory.name} reads {'.'.join(filter(None, (other, state)))}"
            self.edges.add(source, self.name(memory.name), "reads", reason, same_time=at_once)
            now |= {other} if at_once else set()
        return frozenset(now)

    def same_time(self, memory: Memory, now: frozenset[str]) -> None:
        """Mark the memories that this one's update needs after their own."""
        own = self.name(memory.name)
        for other in sorted(now - {memory.name}):
            source = self.name(other)
            ways = [key for key in self.edges.found if key[:2] == (source, own)]
            for key in ways:
                self.edges.found[key] = replace(self.edges.found[key], same_time=True)
            if not ways:
                reason = f"{memory.name} needs {other} after its update of the same token"
                self.edges.add(source, own, "reads", reason, same_time=True)

    def states(self, memory: Memory) -> None:
        """Join a memory with its extra states, and these with each other."""
        extra = {v.name for v in memory.variables if v.name}
        for assignment in memory.update:
            target = self.name(memory.name, assignment.var)
            for var, at_once in _own_states(memory, assignment.value, assignment.var, extra):
                when = "after" if at_once else "before"
                label = assignment.var or memory.name
                reason = f"{label} takes {var or memory.name} {when} its update of the token"
                kind: EdgeKind = "reads" if assignment.var else "optimises"
                self.edges.add(self.name(memory.name, var), target, kind, reason, at_once)

    def starts(self, memory: Memory) -> None:
        """Join a memory with what it begins from."""
        own = self.name(memory.name)
        self.edges.add(
            f"{own}.start", own, "initialises", f"{memory.name} begins from what has been learned",
            role="start",
        )  # fmt: skip
        self.edges.add(
            f"{own}.pairs", own, "reads", f"{memory.name} holds these pairs beside those it stores",
            role="pairs",
        )  # fmt: skip
        for variable in memory.variables:
            target = self.name(memory.name, variable.name)
            for part in variable.parts:
                if part.initial.source:
                    source = self.name(part.initial.source)
                    reason = f"{memory.name} begins as a copy of {part.initial.source}"
                    self.edges.add(source, target, "initialises", reason, role="start")
                for node in postorder([part.initial.expr] if part.initial.expr else []):
                    if node.op == "param":
                        source = self.parameter(node.attr("name"))
                        reason = f"{variable.name or memory.name} begins as a function of it"
                        self.edges.add(source, target, "initialises", reason, role="start")


def _streams(root: Expr, role: str) -> Iterable[Expr]:
    """Yield what comes into an update from outside, without what comes into its objective.

    Written out or named first, `sigmoid(W(x))` is the same: made by W, and not by what makes x.
    """
    outside: dict[int, bool] = {}
    for node in postorder([root]):
        outside[id(node)] = node.op not in OWN and all(outside[id(arg)] for arg in node.args)
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if outside[id(node)]:
            yield node
        elif role == "objective" or node.op != "grad":
            waiting.extend(node.args)


def _own_states(memory: Memory, root: Expr, target: str, extra: set[str]) -> list[tuple[str, bool]]:
    """List a memory's own states that one of them takes: True where after their update."""
    found: dict[str, bool] = {}
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op == "let":
            name = "" if node.attr("name") == "self" else node.attr("name")
            if name != target and (name in extra or name == ""):
                found[name] = True
                continue
        if node.op == "state" and node.attr("memory") == memory.name:
            var = node.attr("var")
            if var != target and node.attr("when") != "initial":
                found.setdefault(var, False)
        waiting.extend(node.args)
    return sorted(found.items())
