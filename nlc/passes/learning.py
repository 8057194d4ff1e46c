"""What it costs that parts of a model learn from the task while it reads.

In: a system, and what its components cost without that. Out: the same with it. The updates are
counted: as often as windows end, and again where a window is read once more. The gradients of
windows are estimates, by how often each token lies in a window that is differentiated: of what
learns, both gradients of a product; of the rest, the half of a backward that goes on to what was
before, and nothing before all that learns. A gradient through faster gradients takes at least one
product for each of theirs.

Without gradients of gradients one backward serves all levels. In decoding, a window that ends is
read once more, the longest of those that end together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from nlc.ir.cost import NOTHING, Entry, Work
from nlc.ir.expr import postorder
from nlc.ir.online import asks, online_levels
from nlc.ir.schedule import Plan
from nlc.ir.system import Block, Call, Equation, Memory, Repeat, Step, System
from nlc.passes.tally import Tally
from nlc.passes.walk import Walk
from nlc.passes.walk_windows import move_by_task
from nlc.passes.work import layers


@dataclass(frozen=True)
class Window:
    """Windows of so many tokens: how often an update asks for their gradient once more.

    `deep` gradients are differentiated again, by slower windows and from outside.
    """

    tokens: int
    asks: int
    deep: bool


def windows(system: System) -> list[Window]:
    """List the windows at whose ends something learns from the task, the shortest first."""
    if system.model is None:
        return []
    found: dict[int, Window] = {}
    for level in online_levels(system, system.model):
        own = [m for b in system.blocks for m in b.memories if m.level == level.name and m.is_task]
        before = found.get(level.period.count, Window(level.period.count, 0, False))
        found[before.tokens] = Window(
            before.tokens,
            max(before.asks, *(len(asks(m)) for m in own)),
            before.deep or any(m.through == "full" for m in own),
        )
    return [found[count] for count in sorted(found)]


@dataclass(frozen=True)
class Times:
    """How often tokens are read once more, and lie in windows that are differentiated, by window.

    `ends` says of how many tokens a window of each length ends.
    """

    read: Fraction
    learned: tuple[Fraction, ...]
    ends: tuple[Fraction, ...]

    def of_sides(
        self, found: Sequence[Window], own: int | None, apart: bool, passed: Fraction
    ) -> Fraction:
        """Say how many gradients of one operand there are for each product of a token.

        `own` learns from windows of that place; `apart` are the gradients of each length; `passed`
        is the share of products whose gradient goes on to what was before.
        """
        each, below = [], Fraction(0)
        for window, learned in zip(found, self.learned, strict=True):
            times = 1 + below
            below += times if window.deep else 0
            each.append(times * learned)
        passed *= sum(each, Fraction(0)) if apart else max(each)
        if own is None:
            return passed
        deep = any(window.deep for window in found)
        return passed + (sum(each[own:], Fraction(0)) if deep else each[own])


def in_sequence(found: Sequence[Window], tokens: int) -> Times:
    """Count over a sequence; a window has its gradient where its last target is in it."""
    learned, ends = [Fraction(0)] * len(found), [Fraction(0)] * len(found)
    read, times = Fraction(0), 1
    for place in reversed(range(len(found))):
        window = found[place]
        whole = times * (max(tokens - 1, 0) // window.tokens)
        read += whole * window.tokens * window.asks
        # faster windows lie in slower ones, each time that these are read
        times *= 1 + window.asks
        learned[place] = Fraction(whole * window.tokens * (1 + window.asks))
        ends[place] = Fraction(whole)
    return Times(read, tuple(learned), tuple(ends))


def in_decoding(found: Sequence[Window]) -> Times:
    """Count for one token, in the mean: a window is read again where it ends and no longer one."""
    read = Fraction(0)
    learned, ends = [Fraction(0)] * len(found), [Fraction(0)] * len(found)
    for last, window in enumerate(found):
        longer = found[last + 1].tokens if last + 1 < len(found) else None
        alone = 1 - Fraction(window.tokens, longer) if longer else Fraction(1)
        times = 1
        for place in reversed(range(last + 1)):
            ends[place] += alone * times / found[place].tokens
            times *= 1 + found[place].asks
            learned[place] += alone * times
        read += alone * times
    return Times(read, tuple(learned), tuple(ends))


def with_learning(system: System, plan: Plan, entries: list[Entry], tokens: int) -> list[Entry]:
    """Add to components what the gradients of windows and the updates at their ends take."""
    found = windows(system)
    lengths = [window.tokens for window in found]
    sequence, token = in_sequence(found, tokens), in_decoding(found)
    before, memories = _before(system), _memories(system)
    deep = any(window.deep for window in found)
    # one backward serves all lengths, where nothing that is carried on hangs on what learns
    apart = deep or any(_carries(b) and before.get(b.name, 0) < 1 for b in system.blocks)
    learned = []
    for entry in entries:
        memory = memories.get(entry.name)
        own = None if memory is None else lengths.index(memory.window)
        # of weights, one of two gradients goes on; of what takes streams alone, all
        streams = _streams_alone(system, entry)
        share = Fraction(1, (1 if streams else 2) * tokens)
        passed = 1 - before.get(entry.block if memory is None else entry.name, Fraction(0))
        again = entry.forward.share(1, tokens)
        late = Fraction(1)
        if streams and again.products:
            # the last queries meet all pairs
            late, again = Fraction(entry.decode.products, again.products), entry.decode
        work = [
            _times(entry.backward, share * times.of_sides(found, own, apart, passed) * more)
            for times, more in ((sequence, 1), (token, late))
        ]
        forward = entry.forward + work[0] + _times(entry.forward, sequence.read / tokens)
        decode = entry.decode + work[1] + _times(again, token.read)
        backward = entry.backward
        if deep:
            # a gradient of a gradient is about two of it
            backward += work[0].times(2)
        if memory is not None and own is not None:
            moved = _moved(system, plan, entry)
            forward += _times(moved.forward, sequence.ends[own] * entry.copies)
            decode += _times(moved.forward, token.ends[own] * entry.copies)
            if memory.through != "stop":
                backward += _times(moved.backward, sequence.ends[own] * entry.copies)
        learned.append(replace(entry, forward=forward, backward=backward, decode=decode))
    return learned


def _times(work: Work, times: Fraction) -> Work:
    return work.times(times.numerator).share(1, times.denominator) if times else NOTHING


def _memories(system: System) -> dict[str, Memory]:
    """What learns from the task, by the names of components."""
    return {
        f"{block.name}.{memory.name}": memory
        for block in system.blocks
        for memory in block.memories
        if memory.is_task
    }


def _carries(block: Block) -> bool:
    """Say whether a block that is called hands anything on that is made of streams."""
    return bool(block.histories) or not all(memory.is_task for memory in block.memories)


def _streams_alone(system: System, entry: Entry) -> bool:
    """Say whether a component is a softmax memory, all of which is made of streams."""
    own = next((block for block in system.blocks if block.name == entry.block), None)
    kernels = [m.name for m in own.memories if m.map.kind == "kernel"] if own else []
    return entry.name.removeprefix(f"{entry.block}.") in kernels


def pieces(system: System, block: str) -> int:
    """Say in how many tokens at once a block is read: 0 where all are."""
    found = windows(system)
    if not found:
        return 0
    ahead = _before(system).get(block, Fraction(0)) == 1
    return found[-1 if ahead else 0].tokens


def _moved(system: System, plan: Plan, entry: Entry) -> Tally:
    """Count one update of a memory at the end of a window."""
    block = system.block(entry.block)
    name = entry.name.removeprefix(f"{block.name}.")
    walk = Walk(block, plan.block(block.name), block.memory(name).window, False)
    move_by_task(walk, name)
    return walk.tallies[name]


def _before(system: System) -> dict[str, Fraction]:
    """Say what share of a component comes before all that learns, where some of it does.

    That is, of the calls of blocks, and of the products of what is the first to learn.
    """
    found: dict[str, Fraction] = {}
    assert system.model is not None

    def follow(steps: Sequence[Step], passes: int) -> bool:
        for step in steps:
            if isinstance(step, Repeat):
                if follow(step.steps, passes * step.count):
                    return True
            elif isinstance(step, Call):
                block = system.block(step.block)
                if _learns(system, block):
                    for name, share in _first(block).items():
                        found[f"{block.name}.{name}"] = share / passes
                    return True
                found[block.name] = found.get(block.name, Fraction(0)) + Fraction(1, passes)
        return False

    follow(system.model.steps, 1)
    return {name: min(share, Fraction(1)) for name, share in found.items()}


def _first(block: Block) -> dict[str, Fraction]:
    """Say of what learns and reads what hangs on nothing that does, what share its first map is."""
    hanging: set[str] = set()
    first: dict[str, Fraction] = {}
    later: set[str] = set()
    for step in block.steps:
        if not isinstance(step, Equation):
            hanging |= set(getattr(step, "results", ()))
            continue
        inside: set[int] = set()
        for node in postorder([step.value]):
            learns = node.op == "state" and block.memory(str(node.attr("memory"))).is_task
            hangs = node.op == "stream" and node.attr("name") in hanging
            if node.op == "apply" and any(id(arg) in inside for arg in node.args[1:]):
                name, (products, _) = str(node.args[1].attr("memory")), layers(node.attr("map"))
                sizes = [a * b for a, b in products]
                if id(node.args[0]) in inside or not sizes:
                    later.add(name)
                else:
                    first[name] = Fraction(sizes[0], sum(sizes))
            if learns or hangs or any(id(arg) in inside for arg in node.args):
                inside.add(id(node))
        if id(step.value) in inside:
            hanging.add(step.name)
    return {name: share for name, share in first.items() if name not in later}


def _learns(system: System, block: Block) -> bool:
    calls = [step for step in block.steps if isinstance(step, Call)]
    own = any(memory.is_task for memory in block.memories)
    return own or any(_learns(system, system.block(call.block)) for call in calls)
