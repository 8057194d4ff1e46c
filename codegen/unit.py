"""What becomes one class with streams: a block, one pass of a repeat, or the model.

In: the system and its plan. Out: `Unit`s, innermost first, with everything their writer asks for.
A repeat's body is a unit of its own, whose inputs and outputs are the streams that cross it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from nlc.codegen.names import class_name, class_names

from nlc.ir.expr import Expr, postorder
from nlc.ir.online import online_levels
from nlc.ir.schedule import BlockPlan, Parallel, Plan, Stage, TokenLoop, Windows
from nlc.ir.system import (
    Block,
    Call,
    Equation,
    History,
    Input,
    Memory,
    Repeat,
    Step,
    System,
    Update,
    Weight,
)


@dataclass(frozen=True)
class Passes:
    """`repeat` as a step: the unit of one pass, how often, and the streams through it.

    `ahead` says that the first pass begins ahead of what learns from the task.
    """

    name: str
    count: int
    unit: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shared: tuple[str, ...]
    ahead: bool = False


@dataclass(frozen=True)
class Unit:
    """A class to be: `kind` is `block`, `pass` or `model`.

    Of a model whose parts learn from the task while it reads, and of its first pass, so many steps
    as `ahead` says come before all that learns, if it is worth while to run them by themselves.
    """

    kind: str
    name: str
    title: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    weights: tuple[Weight, ...]
    memories: tuple[Memory, ...]
    stages: tuple[Stage | Passes, ...]
    histories: tuple[History, ...]
    plan: BlockPlan | None
    tied: bool = False
    shared: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    block: Block | None = None
    values: dict[str, Expr] = field(default_factory=dict)
    counts: bool = False
    # a model whose parts learn from the task while it reads
    online: bool = False
    ahead: int | None = None

    def memory(self, name: str) -> Memory:
        """Return a memory by name."""
        return next(m for m in self.memories if m.name == name)

    @property
    def steps(self) -> list[Step | Passes]:
        """All steps, in the order of a token."""
        if self.block is not None:
            return list(self.block.steps)
        found: list[Step | Passes] = []
        for stage in self.stages:
            found += [stage] if isinstance(stage, Passes) else list(getattr(stage, "steps", ()))
        return found

    @cached_property
    def alike(self) -> frozenset[str]:
        """The streams that are the same in every row: no input and no state goes into them."""
        equations = [step for step in self.steps if isinstance(step, Equation)]
        found = {step.name for step in equations}
        for step in self.steps:
            found -= set(getattr(step, "results", ())) | set(getattr(step, "outputs", ()))
        while True:
            moving = {
                step.name for step in equations
                if step.name in found and not is_alike([step.value], found)
            }  # fmt: skip
            if not moving:
                return frozenset(found)
            found -= moving


def is_alike(roots: Iterable[Expr], streams_alike: Container[str]) -> bool:
    """Say whether values are the same in every row of a batch."""
    return not any(
        node.op in ("state", "attend", "shift", "conv")
        or (node.op == "stream" and node.attr("name") not in streams_alike)
        for node in postorder(roots)
    )


def units(system: System, plan: Plan) -> list[Unit]:
    """List the classes of a system, each after those it uses."""
    names = class_names(system)
    found = [
        _block(block, plan.block(block.name), names[(block.name,)])
        for block in callees_first(system)
    ]
    return found + (_model(system) if system.model is not None else [])


def callees_first(system: System) -> list[Block]:
    """List the blocks, each after those it calls."""
    done: list[Block] = []

    def visit(block: Block) -> None:
        if block in done:
            return
        for call in calls(block.steps):
            visit(system.block(call.block))
        done.append(block)

    for block in system.blocks:
        visit(block)
    return done


def calls(steps: Iterable[Step]) -> Iterator[Call]:
    """List the calls among some steps."""
    for step in steps:
        if isinstance(step, Call):
            yield step
        elif isinstance(step, Repeat):
            yield from calls(step.steps)


def given_whole_numbers(system: System) -> frozenset[tuple[str, str]]:
    """Find the inputs of blocks that some call gives tokens, or what is made of tokens alone."""
    found: set[tuple[str, str]] = set()

    def follow(steps: Iterable[Step], whole: set[str]) -> None:
        for step in steps:
            match step:
                case Equation(name=name, value=value):
                    (whole.add if is_whole(value, whole) else whole.discard)(name)
                case Call(block=block, inputs=inputs, results=results):
                    found.update((block, name) for name, value in inputs if is_whole(value, whole))
                    whole.difference_update(results)
                case Repeat(steps=inner):
                    follow(inner, whole)

    if system.model is not None:
        follow(system.model.steps, {"tokens"})
    for block in reversed(callees_first(system)):
        follow(block.steps, {i.name for i in block.inputs if (block.name, i.name) in found})
    return frozenset(found)


def is_whole(value: Expr, whole: Container[str]) -> bool:
    """Say whether an expression is made of streams of whole numbers alone."""
    leaves = [node for node in postorder([value]) if not node.args]
    return any(leaf.op == "stream" for leaf in leaves) and all(
        leaf.op in ("const", "position") or (leaf.op == "stream" and leaf.attr("name") in whole)
        for leaf in leaves
    )


def expressions(steps: Iterable[Step]) -> Iterator[Expr]:
    """List the expressions of some steps, without those of updates."""
    for step in steps:
        match step:
            case Equation():
                yield step.value
            case Call():
                yield from (value for _, value in step.inputs)
            case Repeat():
                yield from expressions(step.steps)
            case Update():
                pass


def streams(roots: Iterable[Expr]) -> set[str]:
    """The streams that expressions read."""
    return {str(n.attr("name")) for n in postorder(roots) if n.op == "stream"}


def of_memory(memory: Memory) -> list[Expr]:
    """The expressions of a memory's update; pairs count where they are stored as they are."""
    if memory.map.kind == "kernel":
        return [e for pair in memory.pairs for e in pair]
    return [a.value for a in memory.update]


def _block(block: Block, plan: BlockPlan, name: str) -> Unit:
    everything = [*expressions(block.steps)]
    for memory in block.memories:
        everything += of_memory(memory)
    starts = any(
        n.op == "state" and n.attr("when") == "start" and block.memory(n.attr("memory")).chunk > 1
        for n in postorder(everything)
    )
    # what the model moves, it tells whether periods end
    moving = [e for m in block.memories if not m.is_task for e in of_memory(m)]
    due = any(n.op == "due" for n in postorder([*expressions(block.steps), *moving]))
    resets = any(m.reset is not None for m in block.memories)
    return Unit(
        kind="block",
        name=name,
        title=block.name,
        inputs=block.inputs,
        outputs=tuple(name for name, _ in block.outputs),
        weights=block.weights,
        memories=block.memories,
        stages=joined(block, plan.stages),
        histories=block.histories,
        plan=plan,
        block=block,
        counts=block.uses_position or starts or resets or due,
    )


def joined(block: Block, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Join loops where one reads what moves in an earlier one at every token."""
    found = list(stages)
    for at, stage in enumerate(found):
        if isinstance(stage, Windows):
            found[at] = replace(stage, stages=joined(block, stage.stages))
        if not isinstance(stage, TokenLoop):
            continue
        for before in range(at):
            other = found[before]
            if isinstance(other, TokenLoop) and _reads(block, stage.steps) & set(other.memories):
                between = found[before + 1 : at]
                inside, outside = _depending(block, other, between)
                loop = TokenLoop(
                    (*other.steps, *inside, *stage.steps), (*other.memories, *stage.memories)
                )
                rest = (*found[:before], *outside, loop, *found[at + 1 :])
                return joined(block, rest)
    return tuple(found)


def _reads(block: Block, steps: Iterable[Step]) -> set[str]:
    """The memories whose states some steps read, also inside updates."""
    roots = list(expressions(steps))
    sources: set[str] = set()
    for step in steps:
        if isinstance(step, Update):
            memory = block.memory(step.memory)
            roots += of_memory(memory)
            if memory.reset is not None:
                sources |= {p.initial.source for v in memory.variables for p in v.parts}
    return sources | {
        str(n.attr("memory"))
        for n in postorder(roots)
        if n.op in ("state", "attend")
        and (n.attr("when") != "initial" or starts_anew(block, str(n.attr("memory"))))
    }


def starts_anew(block: Block, name: str) -> bool:
    """Say whether resets make a memory's initial state a copy of another memory's."""
    memory = block.memory(name)
    names = {m.name for m in block.memories}
    sources = {p.initial.source for v in memory.variables for p in v.parts}
    return memory.reset is not None and bool(sources & names)


def _depending(
    block: Block, loop: TokenLoop, between: list[Stage]
) -> tuple[list[Step], list[Stage]]:
    """Split stages into steps that need the loop's streams, and stages that do not."""
    made = set(_assigned(loop.steps))
    inside: list[Step] = []
    outside: list[Stage] = []
    for stage in between:
        if not isinstance(stage, Parallel):
            outside.append(stage)
            continue
        free: list[Step] = []
        for step in stage.steps:
            if streams(expressions([step])) & made:
                inside.append(step)
                made |= set(_assigned([step]))
            else:
                free.append(step)
        if free:
            outside.append(Parallel(tuple(free)))
    return inside, outside


def _assigned(steps: Iterable[Step]) -> list[str]:
    found: list[str] = []
    for step in steps:
        match step:
            case Equation():
                found.append(step.name)
            case Call():
                found += step.results
            case Repeat():
                found += _assigned(step.steps)
            case Update():
                pass
    return list(dict.fromkeys(found))


def _read_first(steps: Iterable[Step]) -> list[str]:
    """The streams that some steps read before they assign them."""
    assigned: set[str] = set()
    found: list[str] = []
    for step in steps:
        read = _read_first(step.steps) if isinstance(step, Repeat) else []
        read += sorted(streams(expressions([step]))) if not isinstance(step, Repeat) else []
        found += [name for name in read if name not in assigned]
        assigned |= set(_assigned([step]))
    return list(dict.fromkeys(found))


def _model(system: System) -> list[Unit]:
    model = system.model
    assert model is not None
    found: list[Unit] = []
    wanted = ("logits", *sorted(streams([model.objective]) - {"targets", "tokens"}))
    outputs = tuple(dict.fromkeys(wanted))
    stages = _stages(model.steps, "Model", set(outputs), found, {"tokens"})
    found.append(
        Unit(
            kind="model",
            name="Model",
            title=system.name,
            inputs=(Input("tokens", (), integer=True),),
            outputs=outputs,
            weights=model.weights,
            memories=(),
            stages=stages,
            histories=model.histories,
            plan=None,
            tied=model.tied,
            shared=tuple(
                dict.fromkeys(call.instance for call in calls(model.steps) if call.shared)
            ),
            counts=model.uses_position,
            online=bool(online_levels(system, model)),
        )
    )
    return found


def _stages(
    steps: tuple[Step, ...], owner: str, needed: set[str], found: list[Unit], known: set[str]
) -> tuple[Stage | Passes, ...]:
    """Split steps at their repeats; `needed` is read after them, `known` has a value before."""
    stages: list[Stage | Passes] = []
    for i, step in enumerate(steps):
        if not isinstance(step, Repeat):
            if stages and isinstance(stages[-1], Parallel):
                stages[-1] = Parallel((*stages[-1].steps, step))
            else:
                stages.append(Parallel((step,)))
            known = known | set(_assigned([step]))
            continue
        later = needed | set(_read_first(steps[i + 1 :]))
        inputs = _read_first(step.steps)
        assigned = _assigned(step.steps)
        outputs = tuple(name for name in assigned if name in later or name in inputs)
        # what crosses from pass to pass has to be given to the first
        name = class_name(owner, step.name)
        inner = _stages(step.steps, name, set(outputs), found, set(inputs) & known)
        shared = tuple(dict.fromkeys(c.instance for c in calls(step.steps) if c.shared))
        unit = Unit(
            kind="pass",
            name=name,
            title=step.name,
            inputs=tuple(Input(n, ()) for n in inputs),
            outputs=outputs,
            weights=(),
            memories=(),
            stages=inner,
            histories=(),
            plan=None,
            shared=shared,
            optional=frozenset(set(inputs) - known),
        )
        found.append(unit)
        stages.append(Passes(step.name, step.count, name, tuple(inputs), outputs, shared))
        known = known | set(assigned)
    return tuple(stages)
