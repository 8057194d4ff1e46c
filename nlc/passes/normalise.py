"""Find the algebra of an update: its normal form, or the term that keeps it from having one.

In: a memory whose update is over the states before the token. Out: per part of its map the
`NormalForm` of that part together with the extra states of its shape. Nothing is looked up by
name: an update written out and the same through a rule give the same form. Where something that
reads the running state is a constant to gradients, the form is that of the values, and `stopped`
has what gradients see.

Values that read the running state are followed through the expressions as `Vector` or `Matrix` of
`affine`, with a role for each of their last axes: `row` and `column` of the state's matrix, `one`
for an axis of size 1. All else is a coefficient. Streams, states of the chunk's start and states
of other memories are coefficients: `plan` sees to it that they are there. Where an update acts on
the value's side it is tried once more for the transposed state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.normal_form import Affine, Gate, Neither, NormalForm, Stopped
from nlc.ir.system import Memory
from nlc.passes.affine import MOST_WRITES, Register, TooManyWrites
from nlc.passes.explicit import explicit_memory
from nlc.passes.follow import Follow, Stuck
from nlc.passes.follow_rows import ROWS
from nlc.passes.obstacles import Obstacle, obstacle
from nlc.source import Span


def normalise(graph: Graph, memory: Memory) -> tuple[tuple[str, NormalForm], ...]:
    """Return the normal form of each part of a memory's map.

    The delta rule `self - beta * grad` has one write, e = M (-beta k) + beta v along k.
    """
    memory = explicit_memory(graph, memory)
    update = {(assignment.var, assignment.part): assignment.value for assignment in memory.update}
    return tuple((part.name, _part(graph, memory, part.name, update)) for part in memory.map.parts)


Update = Mapping[tuple[str, str], Expr]


def _part(graph: Graph, memory: Memory, part: str, update: Update) -> NormalForm:
    own = next(p for p in memory.map.parts if p.name == part)
    states = [
        (variable.name, p.name)
        for variable in memory.variables
        for p in variable.parts
        if p.name == part and [a.size for a in p.shape] == [a.size for a in own.shape]
    ]
    states.sort(key=lambda state: state[0] != "")
    if len(own.shape) > 2:
        return Neither(f"a state with {len(own.shape)} axes is not a matrix", hint=_MATRIX)
    form = _follow(graph, memory, states, update, turned=False)
    if isinstance(form, Neither) and len(own.shape) == 2:
        other = _follow(graph, memory, states, update, turned=True)
        if isinstance(other, Affine) or form.reason == obstacle("side").reason != other.reason:
            return other
        if form.reason == other.reason == obstacle("side").reason:
            return _neither(obstacle("both sides"), form.term)
    return form


_MATRIX = "split it into matrices, each a memory of its own"


# obstacles that a gradient meets where the objective is not quadratic
NONLINEAR = ("operation", "product", "divisor", "condition")


def _stands_in(term: Expr | None, whole: Span | None) -> bool:
    """Say whether a term was written within a place."""
    if term is None or whole is None or term.span.source is not whole.source:
        return False
    return whole.start <= term.span.start and term.span.end <= whole.end


def _neither(found: Obstacle, term: Expr | None) -> Neither:
    return Neither(found.reason, term, found.hint, None if term is None else term.span)


def _follow(
    graph: Graph, memory: Memory, states: list[tuple[str, str]], update: Update, turned: bool
) -> NormalForm:
    own = next(p for p in memory.map.parts if p.name == states[0][1])
    shape = own.shape[::-1] if turned else own.shape
    rows = shape[-2] if len(shape) == 2 else None
    columns = shape[-1] if shape else None
    register = Register(graph, rows, columns)
    follow = Follow(register, memory, states, len(memory.lead), turned, ROWS)
    roots = [update[state] for state in states if state in update]
    try:
        for node in postorder(roots):
            follow.visit(node)
        matrices = [
            follow.matrix_of(update.get(state), number) for number, state in enumerate(states)
        ]
        writes, gates = register.finish(matrices)
    except Stuck as stuck:
        found = stuck.obstacle
        if stuck.kind in NONLINEAR and _stands_in(follow.at, memory.written_objective):
            found = obstacle("objective", reason=found.reason)
        return _neither(found, follow.at)
    except TooManyWrites:
        return _neither(obstacle("writes", most=MOST_WRITES), follow.at)
    decay = tuple(
        tuple(
            Gate(found[i][0], found[i][1]) if i in found else None  # type: ignore[arg-type]
            for found in gates
        )
        for i in range(len(states))
    )
    form = Affine(tuple(states), decay, writes, transposed=turned)
    if not follow.held:
        return form
    # what moves, and what gradients see of it
    bare = dict(zip(update, rewrite(graph, update.values(), _unstopped), strict=True))
    whole = _follow(graph, memory, states, bare, turned)
    if not isinstance(whole, Affine):
        return whole
    held = tuple((leaf, register.as_write(e, len(states))) for leaf, e in follow.held.values())
    return replace(whole, stopped=Stopped(form, held))


def _unstopped(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
    return args[0] if node.op == "stop" else None
