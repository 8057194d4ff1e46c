"""Counts the work of one block or model, over a sequence or for one token.

In: a block whose updates are written out, its plan, the number of tokens. Out: a `Tally` for each
component. Follows what the emitted code does: every expression of a sequence is evaluated once,
those that do not depend on tokens for all tokens together; a memory moves as its schedule says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from nlc.ir.added import Added, added
from nlc.ir.cost import NOTHING, WIDTH, Work
from nlc.ir.expr import Expr, postorder
from nlc.ir.operations import OPERATIONS
from nlc.ir.schedule import (
    BlockPlan,
    ChunkLoop,
    Parallel,
    Run,
    Schedule,
    Stage,
    TokenLoop,
    Windows,
    memories_of,
)
from nlc.ir.shape import count
from nlc.ir.system import Block, Call, Equation, Memory, Model, Repeat, Step, Update
from nlc.passes.reach import ALL, FLAT, Reached, live_nodes, reach
from nlc.passes.tally import Tally
from nlc.passes.walk_memories import (
    asked_ahead,
    collect,
    move_by_tiles,
    move_by_tokens,
    whole_states,
)
from nlc.passes.walk_nodes import applied, asked_course, attended, operation, read, sum_with
from nlc.passes.walk_slots import note_reads
from nlc.passes.walk_windows import move_by_windows, outer_sum, total
from nlc.passes.work_scan import Rows
from nlc.passes.work_tiles import Course

# what has a value for every token, whatever it is made of
MOVING = ("state", "attend", "position", "due", "shift", "conv", "window")

# the schedules that run on a normal form
TILED = ("tile-solve", "tile-scan", "scan")

# the component of what is neither weights nor a memory
EQUATIONS = ""


@dataclass
class Walk:
    """One execution: `tokens` at once, or one token after `tokens` where `decode`.

    `times_of` says how many values a stream has, `flat` which have no gradient; `courses` are the
    memories that ran over the sequence, by part and run; `calls` counts calls by block and whether
    from a loop; `looped` says that steps run token by token, though within a sequence.
    """

    module: Block | Model
    plan: BlockPlan | None
    tokens: int
    decode: bool
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    times_of: dict[str, int] = field(default_factory=dict)
    flat: set[str] = field(default_factory=set)
    courses: dict[str, dict[str, tuple[Course | Rows, ...]]] = field(default_factory=dict)
    calls: dict[tuple[str, bool], int] = field(default_factory=lambda: defaultdict(int))
    reached: Reached = ALL
    looped: bool = False
    done: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    known: dict[int, tuple[int, bool]] = field(default_factory=dict)
    # after how many tokens what is visited now is evaluated, and what of it more rarely
    moves: int = 1
    periods: dict[int, int] = field(default_factory=dict)
    # how many tokens run at once, inside windows
    piece: int = 0
    # the softmax memories that gather their pairs piece by piece, and how many tokens these have
    gathers: dict[str, int] = field(default_factory=dict)
    # outer products that are summed over tokens, those of them that go into what is kept of a
    # window by themselves, and what is done with such sums, by id
    summed: set[int] = field(default_factory=set)
    into_totals: set[int] = field(default_factory=set)
    totals: set[int] = field(default_factory=set)
    kept: list[Expr] = field(default_factory=list)
    # sums that take in their product, and what they take in, by id
    joined: dict[int, Added] = field(default_factory=dict)
    taken_in: set[int] = field(default_factory=set)
    # of memories with slots, for how many of the parts a node stands: (some, all)
    parts: dict[int, tuple[int, int]] = field(default_factory=dict)
    # what a gradient has not reached yet: what its backward would be, by id
    owed: dict[int, tuple[str, Tally, int, tuple[int, int]]] = field(default_factory=dict)

    # ---- steps ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Count everything."""
        if isinstance(self.module, Model):
            self.steps(self.module.steps)
            return
        self.reached = reach(self.module)
        self.flat |= {i.name for i in self.module.inputs if i.integer}
        if self.decode or self.plan is None:
            self.steps(self.module.steps)
        else:
            for stage in self.plan.stages:
                self.stage(stage)
        self.visit([i.default for i in self.module.inputs if i.default is not None], EQUATIONS)

    def stage(self, stage: Stage) -> None:
        """Count a stage of a sequence."""
        match stage:
            case Parallel(steps=steps):
                self.steps(steps)
            case Run(memory=name) if self.memory(name).map.kind == "kernel":
                collect(self, name)
            case Run(memory=name) if self.schedule(name).entries:
                move_by_tokens(self, name)
            case Run(memory=name) if self.schedule(name).kind in TILED:
                move_by_tiles(self, name)
            case Run(memory=name):
                move_by_tokens(self, name)
            case TokenLoop():
                self.loop(stage)
            case ChunkLoop(steps=steps, chunk=chunk):
                around, self.piece = self.piece, chunk
                self.gathers |= dict.fromkeys(memories_of(stage), chunk)
                for step in steps:
                    if isinstance(step, Update) and self.memory(step.memory).map.kind != "kernel":
                        move_by_tiles(self, step.memory)
                    else:
                        self.steps([step])
                self.piece = around
            case Windows(stages=stages, memories=names, length=length, reads=reads):
                self.piece = length
                self.gathers |= dict.fromkeys(memories_of(stage), length)
                for inner in stages:
                    self.stage(inner)
                # these are streams now
                self.done |= {id(read) for read, _ in reads}
                for name in names:
                    move_by_windows(self, name)
                self.piece = 0

    def loop(self, stage: TokenLoop) -> None:
        """Count steps that run token by token within a sequence.

        What the updates ask for and nothing in the loop makes is there before it; of all else, a
        loop shares nothing with what stands around it but streams.
        """
        made = {step.name for step in stage.steps if isinstance(step, Equation)}
        made |= {n for step in stage.steps if isinstance(step, Call) for n in step.results}
        ahead = {n: asked_ahead(self.memory(n), made, set(stage.memories)) for n in stage.memories}
        for name, roots in ahead.items():
            self.visit(roots, name)
        outside, self.looped = self.done, True
        self.done = {id(node) for roots in ahead.values() for node in postorder(roots)}
        self.steps(stage.steps)
        self.done, self.looped = outside, False

    def steps(self, steps: Iterable[Step], passes: int = 1) -> None:
        """Count steps that run `passes` times."""
        for step in steps:
            match step:
                case Equation(name=name, value=value):
                    if name not in self.reached.idle:
                        self.visit([value], EQUATIONS, passes, name not in self.reached.flat)
                    self.assign(name, *self.facts(value))
                case Call(block=block, inputs=inputs, results=results):
                    self.visit([value for _, value in inputs], EQUATIONS, passes)
                    self.calls[block, self.looped] += passes
                    for name in results:
                        self.assign(name, self.span, True)
                case Repeat(count=number, steps=inner):
                    self.steps(inner, passes * number)
                case Update(memory=name) if self.memory(name).map.kind == "kernel":
                    collect(self, name)
                case Update(memory=name) if self.memory(name).window > 1:
                    move_by_windows(self, name)
                case Update(memory=name):
                    move_by_tokens(self, name)

    def assign(self, name: str, times: int, needs: bool) -> None:
        """Give a stream its value; what was known of another value of that name is forgotten."""
        if name in self.times_of:
            self.done.clear()
            self.used.clear()
            self.known.clear()
        self.times_of[name] = times
        self.flat.discard(name)
        if not needs:
            self.flat.add(name)

    @property
    def span(self) -> int:
        """How many values something has that depends on tokens."""
        return 1 if self.decode else self.tokens // self.moves

    @property
    def ended(self) -> int:
        """How many windows there are of what is visited, for one that begins and does not end."""
        return 1 if self.decode else max(self.tokens // max(self.moves, self.piece, 1), 1)

    def share(self, node: Expr) -> tuple[int, int]:
        """Say of how many evaluations that are counted how many there are: (some, all)."""
        period = self.periods.get(id(node), self.moves)
        some, whole = (1, period) if self.decode else (self.tokens // period, max(self.span, 1))
        part, parts = self.parts.get(id(node), (1, 1))
        return some * part, whole * parts

    def pieces(self, memory: Memory) -> list[tuple[int, int]]:
        """Cut a sequence as a softmax memory takes it: the first token of each, and how many."""
        length = self.gathers.get(memory.name, max(self.tokens, 1))
        return [(at, min(length, self.tokens - at)) for at in range(0, self.tokens, length)]

    def memory(self, name: str) -> Memory:
        """Return a memory by name."""
        assert isinstance(self.module, Block)
        memory = self.module.memory(name)
        if self.plan is not None and name in self.plan.late:
            return replace(memory, reset=None)
        return memory

    def schedule(self, name: str) -> Schedule:
        """Return the schedule of a memory."""
        assert self.plan is not None
        return self.plan.schedule(name)

    # ---- expressions ---------------------------------------------------------------------------

    def facts(self, root: Expr) -> tuple[int, bool]:
        """Say how many values an expression has, and whether a gradient passes through it."""
        if id(root) not in self.known:
            for node in postorder([root], self.known):
                self.known[id(node)] = self._facts(node)
        return self.known[id(root)]

    def _facts(self, node: Expr) -> tuple[int, bool]:
        if node.op == "stream":
            name = str(node.attr("name"))
            return min(self.times_of.get(name, self.span), self.span), name not in self.flat
        below = [self.known[id(arg)] for arg in node.args]
        times = self.span if node.op in MOVING else max((t for t, _ in below), default=1)
        if node.op == "window" and node.attr("how") in ("each", "end"):
            # of every token again
            times = self.span * self.moves
        elif node.op == "state" and node.attr("when") == "start" and self.by_chunks(node):
            times = -(-self.tokens // self.memory(str(node.attr("memory"))).chunk)
        elif node.op == "state" and self.moves == 1 and not self.decode:
            # one for each window that begins
            times = -(-self.tokens // self.memory(str(node.attr("memory"))).window)
        needs = OPERATIONS[node.op].kind == "leaf" or node.op in ("attend", "window")
        return times, node.op not in FLAT and (needs or any(n for _, n in below))

    def at_hand(self, state: Expr) -> bool:
        """Say whether a state is there as it is: at the end of a window, after its last token."""
        ended = self.moves > 1 and state.attr("when") == "post"
        return ended and self.memory(str(state.attr("memory"))).reset is None

    def by_chunks(self, state: Expr) -> bool:
        """Say whether the memory runs over the sequence, a chunk at a time."""
        name = str(state.attr("memory"))
        return name in self.courses and self.memory(name).chunk > 1

    def entries(self, node: Expr) -> int:
        """Count the numbers that all values of an expression hold."""
        return count(node.shape) * self.facts(node)[0]

    def visit(
        self,
        roots: Iterable[Expr],
        owner: str,
        passes: int = 1,
        live: bool = True,
        users: Iterable[Expr] = (),
    ) -> None:
        """Count what some expressions need that has not been counted yet.

        A gradient reaches them if one reaches what is made of them, the `users`, where these are
        given.
        """
        roots = list(roots)
        if isinstance(self.module, Block):
            note_reads(self, roots)
        passed = live_nodes(list(users) or roots) if live else set()
        # the state of a memory that is applied is not asked for as a whole
        bare = {id(root) for root in roots}
        for node in postorder(roots):
            asked = asked_course(self, node)
            applied_to = node.args[:1] if node.op == "apply" else node.args
            bare |= {id(arg) for arg in applied_to if arg is not asked}
        for node in postorder(roots):
            if id(node) in self.done or (node.op == "state" and id(node) not in bare):
                if id(node) in passed and id(node) in self.owed:
                    self.add(*self.owed.pop(id(node)))
                continue
            self.done.add(id(node))
            who, tally = self.node(node, owner)
            if id(node) in passed:
                tally.backward += self.added_up(node)
            else:
                back = Tally(NOTHING, tally.backward)
                self.owed[id(node)] = (who, back, passes, self.share(node))
                tally.backward = NOTHING
            self.add(who, tally, passes, self.share(node))

    def node(self, node: Expr, owner: str) -> tuple[str, Tally]:
        """Count all evaluations of a node; say whose work it is."""
        state = asked_course(self, node)
        if state is not None:
            return owner or str(state.attr("memory")), read(self, node, state)
        if id(node) in self.totals or id(node) in self.summed:
            return owner, (total if id(node) in self.totals else outer_sum)(self, node)
        if id(node) in self.joined or id(node) in self.taken_in:
            return owner, sum_with(self, node, self.joined.get(id(node)))
        match node.op:
            case "window" if not node.args:
                return owner, Tally()
            case "apply":
                return self.owner(node, owner), applied(self, node)
            case "attend":
                return str(node.attr("memory")), attended(self, node)
            case "state":
                name = str(node.attr("memory"))
                if name not in self.courses or node.attr("when") not in ("post", "prev"):
                    return name, Tally()
                if self.at_hand(node):
                    return name, Tally()
                runs, var = self.courses[name][str(node.attr("part"))], str(node.attr("var"))
                number = [v.name for v in self.memory(name).variables].index(var)
                return name, whole_states(runs, number)
            case _:
                return self.owner(node, owner), operation(self, node)

    def join(self, roots: list[Expr]) -> None:
        """Note which sums of an update are one pass with their products."""
        sums = added(roots)
        self.joined = {id(node): found for node, found in sums.items()}
        self.taken_in = {id(node) for found in sums.values() for node in found.within}

    def added_up(self, node: Expr) -> Work:
        """Count the sums of gradients that come from several uses of the node's arguments."""
        work = NOTHING
        for arg in node.args:
            if self.facts(arg)[1]:
                if id(arg) in self.used:
                    size = self.entries(arg)
                    work += Work(elementwise=size, bytes=3 * WIDTH * size)
                self.used.add(id(arg))
        return work

    def owner(self, node: Expr, owner: str) -> str:
        """Name whose parts a node uses: weights, a memory, or what asks for it."""
        if node.op not in ("apply", "matvec", "lookup", "conv"):
            return owner
        for part in node.args:
            if part.op == "param":
                name = str(part.attr("name")).split(".")[0]
                if any(weight.name == name for weight in self.module.weights):
                    tied = isinstance(self.module, Model) and self.module.tied
                    return "embed" if tied and name == "unembed" else name
            if part.op == "state" and not owner:
                return str(part.attr("memory"))
        return owner

    def add(
        self, owner: str, tally: Tally, passes: int = 1, share: tuple[int, int] = (1, 1)
    ) -> None:
        """Add to the work of a component."""
        into = self.tallies[owner]
        into.forward += tally.forward.times(passes).share(*share)
        into.backward += tally.backward.times(passes).share(*share)
