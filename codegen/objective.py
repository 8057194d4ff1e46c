"""The model's loss: the spec's objective, the mean over batch and tokens.

In: the emitter and the model's writer. Out: the method `loss` of the model's class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlc.codegen.names import Names
from nlc.codegen.printer import Printer
from nlc.codegen.program import Program, note
from nlc.codegen.scope import Scope
from nlc.codegen.torch_memory import reserved
from nlc.codegen.unit import streams
from nlc.codegen.writer import Writer

if TYPE_CHECKING:
    from nlc.codegen.torch_block import UnitWriter
    from nlc.codegen.torch_module import Emitter


def write_loss(emitter: Emitter, owner: UnitWriter, out: Writer) -> None:
    """Write `loss(logits, targets)`; where the objective reads more, its streams are given too."""
    _write(
        emitter,
        owner,
        out,
        "loss",
        "mean",
        "The objective of the spec: its mean over batch and tokens.",
    )
    if owner.unit.online:
        _write(
            emitter,
            owner,
            out,
            "window_loss",
            "sum",
            "The objective of the spec, summed over a window's tokens.",
        )


def _write(
    emitter: Emitter, owner: UnitWriter, out: Writer, name: str, how: str, about: str
) -> None:
    model = emitter.system.model
    assert model is not None
    names = sorted(streams([model.objective]) - {"logits", "targets"})
    inputs = ["logits", "targets", *names]
    out.blank()
    with out.indent():
        words = ", ".join(f"{name}: Tensor" for name in inputs)
        out.line(f"def {name}(self, {words}) -> Tensor:")
        with out.indent():
            out.docstring([about])
            program = Program()
            shapes = owner.shapes
            nodes = {n: note(program.input(n), shapes.get(n, ()), 2) for n in inputs}
            from nlc.ir.expr import postorder

            for leaf in postorder([model.objective]):
                if leaf.op == "stream":
                    note(nodes[str(leaf.attr("name"))], leaf.shape, 2)
            scope = Scope(owner.unit, program, 2, nodes["logits"], dict(nodes))
            scope.first = nodes["targets"]
            value = scope.low.tensor(model.objective)
            if how == "sum":
                value = scope.full(value, model.objective)
            result = program.method(how, value)
            program.finish(result)
            printer = Printer(program, out, Names(reserved() | set(inputs)), owner.used)
            for label, node in nodes.items():
                printer.bind(node, label)
            printer.run()
            out.line(f"return {printer.operand(result)}")
