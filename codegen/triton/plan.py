"""Which memories run as kernels, and why the others do not.

In: a memory with its schedule and the reads that its block makes. Out: a `Solve`, or a reason in
words. Decided from the form alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlc.codegen.names import Names, identifier
from nlc.codegen.triton.gates import KINDS
from nlc.codegen.triton.layer_plan import LayerPlan, circle, plan_layers
from nlc.codegen.triton.solve import Solve
from nlc.codegen.triton.table import LARGEST

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Affine
from nlc.ir.schedule import Keeping

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter

# names that the functions of `kernels.py` use themselves
USED = {
    "q", "y", "dy", "run", "dot", "blocks", "front", "given", "leaves", "found", "path", "shape",
    "came", "x", "vector", "rows", "writes", "starts", "torch", "tl", "triton", "ctx", "e", "de",
    "N",
}  # fmt: skip
SHORTEST = 16


@dataclass(frozen=True)
class KernelPlan:
    """The kernels of a memory: `name` begins all their names."""

    name: str
    solve: Solve
    reads: tuple[tuple[int, bool], ...]


def plan_kernels(
    writer: MemoryWriter, block: str, called: Mapping[Expr, tuple[str, str]] | None = None
) -> KernelPlan | LayerPlan | str:
    """Plan the kernels of a memory; a text says why it has none.

    `called` are the names of expressions that stand for streams.
    """
    if writer.schedule.by_chunks and not writer.schedule.entries:
        return plan_layers(writer, block)
    form = writer.form
    if writer.schedule.kind not in ("tile-solve", "tile-scan") or form is None:
        return f"`{writer.schedule.kind}` runs as PyTorch"
    if form.stopped is not None:
        return "its gradient does not pass through all that moves it: it runs as PyTorch"
    keeping = writer.schedule.keeping(writer.forms[0][0])
    reason = why_not(writer, form, keeping)
    if reason:
        return reason
    (part,) = writer.memory.map.parts
    rows, columns = (axis.size for axis in part.shape)
    sizes = {"K": columns, "V": rows} if not form.transposed else {"K": rows, "V": columns}
    reads = [
        ([v.name for v in writer.memory.variables].index(var), when == "post")
        for kind, when, var, _ in sorted(writer.reads)
        if kind == "apply" and when in ("post", "prev")
    ]
    several = range(max(len(form.states), len(form.writes), 1))
    words = ("M", "dM", "e", "de", "starts", "dstarts", "dends", "w", "u", "M_after", "dM_after")
    own = {f"{word}{n}" for word in words for n in ["", *(i + 1 for i in several)]}
    name = identifier(f"{block}_{writer.memory.name}".lower())
    solve = Solve(form, keeping, sizes, Names(USED | own), called or {})
    return KernelPlan(name, solve, tuple(dict.fromkeys(reads)))


def why_not(writer: MemoryWriter, form: Affine, keeping: Keeping) -> str:
    """Say what keeps a form from kernels, or nothing."""
    memory = writer.memory
    part = memory.map.parts[0]
    if len(part.shape) != 2 or len(memory.map.inputs) != 1 or len(memory.map.outputs) != 1:
        return "its state is no matrix"
    if max(axis.size for axis in part.shape) > LARGEST:
        return f"its state has more than {LARGEST} rows or columns"
    if writer.has_start:
        return "its update reads the state of its chunk's start"
    if any(kind == "bare" and when in ("post", "prev") for kind, when, *_ in writer.reads):
        return "its whole state is read"
    if keeping.gates not in KINDS:
        return f"its gates are kept as {keeping.gates}"
    if keeping.gates == "RelativeGates" and keeping.tile < SHORTEST:
        return f"its gates hold for fewer than {SHORTEST} tokens"
    if not any(any(b is not None for b in write.targets) for write in form.writes):
        return "nothing is written into it"
    if circle(form):
        return "its states flow in a circle"
    return ""
