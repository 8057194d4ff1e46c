"""What stands directly before a memory, taken into its kernels: activations of keys, values, gates.

In: a normal form and its block. Out: the form over what the activations are made of, so that
streams reach the kernels in their own type and are read once; and the streams' names, for the text.
A stream that anything else reads is computed there as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.normal_form import Affine, Gate, Write
from nlc.ir.schedule import BlockPlan, Parallel, Run
from nlc.ir.system import Block, Equation

ACTIVATIONS = frozenset({
    "unit", "rmsnorm", "silu", "sigmoid", "exp", "log", "tanh", "softplus", "relu", "neg", "sqrt",
})  # fmt: skip
# what belongs to one place in time or to other memories stays where it is
ELSEWHERE = frozenset({"state", "attend", "shift", "position", "due", "window", "route", "grad"})


def fuse(
    graph: Graph, form: Affine, block: Block, plan: BlockPlan, line: Callable[[Equation], str]
) -> tuple[Affine, Mapping[Expr, tuple[str, str]]]:
    """Put the activations that make a form's streams into it.

    `line` gives the line of the spec that an equation comes from.
    """
    if not all(isinstance(stage, Parallel | Run) for stage in plan.stages):
        return form, {}
    found = {s.name: s for s in block.steps if isinstance(s, Equation) and _fuses(s.value)}
    made = {name: step.value for name, step in found.items()}
    names: dict[Expr, tuple[str, str]] = {}

    def instead(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        name = str(node.attr("name")) if node.op == "stream" else ""
        if name not in made:
            return None
        names[made[name]] = (name, line(found[name]))
        return made[name]

    def put(expr: Expr | None) -> Expr | None:
        return None if expr is None else rewrite(graph, [expr], instead)[0]

    def sure(expr: Expr) -> Expr:
        return rewrite(graph, [expr], instead)[0]

    writes = tuple(
        Write(
            tuple(map(put, write.reads)),
            tuple((s, sure(c)) for s, c in write.earlier),
            put(write.offset),
            tuple(map(put, write.targets)),
        )
        for write in form.writes
    )
    decay = tuple(
        tuple(None if gate is None else Gate(gate.kind, sure(gate.value)) for gate in row)
        for row in form.decay
    )
    return replace(form, decay=decay, writes=writes), names


def _fuses(value: Expr) -> bool:
    """Say whether a stream is an activation of something that is computed before the memory."""
    if value.op not in ACTIVATIONS:
        return False
    return not any(node.op in ELSEWHERE for node in postorder([value]))
