"""Functions that read the memories inside a rule: a map's parts applied to vectors.

In: a map. Out: the text of a function of x [*copies, *more, in], the parts by name and the number
of further axes. A map of one matrix needs no function: `times` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nlc.codegen.names import identifier
from nlc.codegen.rules.elements import ELEMENTS, Element, Site
from nlc.codegen.writer import Writer

from nlc.ir.expr import Expr
from nlc.ir.system import Map


@dataclass
class Reading:
    """Writes the body of one function."""

    form: Map
    out: Writer
    used: set[str] = field(default_factory=set)

    def times(self, part: str, x: str, bias: str = "") -> str:
        """W x, plus the bias where there is one."""
        self.used.add("times")
        text = f'times(parts["{part}"], {x}, more)'
        if all(p.name != bias for p in self.form.parts):
            return text
        return f"{text} + {self.beside(bias)}"

    def beside(self, part: str) -> str:
        """A vector of the map, beside the further axes."""
        self.used.add("beside")
        return f'beside(parts["{part}"], more)'

    def act(self, x: str, usual: str) -> str:
        """The map's activation."""
        name = str(self.form.option("act", usual))
        if name == "none":
            return x
        leaf = Expr("stream", (), (), ())
        return ELEMENTS[name](Site(x, self.used), leaf, [Element(x)]).text

    def let(self, text: str) -> None:
        """y = text."""
        self.out.line(f"y = {text}")


def write_reading(name: str, form: Map, used: set[str]) -> list[str]:
    """Write the function that reads a map."""
    out = Writer()
    out.line(f"def {name}(x: Tensor, parts: dict[str, Tensor], more: int) -> Tensor:")
    with out.indent():
        out.docstring([f"Read {form.text}, at `more` further axes of vectors."])
        reading = Reading(form, out, used)
        if len(form.inputs) > 1:
            out.line(f"x = x.flatten(-{len(form.inputs)})")
        BODIES[form.kind](reading)
        out.line("return y[..., 0]" if not form.outputs else "return y")
    return out.lines


def reading_name(rule: str, memory: str) -> str:
    """Name the function that reads a memory of a rule."""
    return identifier(f"read_{rule}_{memory}")


def _linear(read: Reading) -> None:
    read.let(read.times(read.form.parts[0].name, "x", "bias"))


def _mlp(read: Reading) -> None:
    layers = len(read.form.chain) - 1
    for i in range(1, layers + 1):
        read.let(read.times(f"layer{i}.weight", "x" if i == 1 else "y", f"layer{i}.bias"))
        if i < layers:
            read.let(read.act("y", "gelu"))
    if read.form.option("norm", False):
        read.used.add("layernorm")
        read.let(f"layernorm(y) * {read.beside('norm.weight')} + {read.beside('norm.bias')}")
    if read.form.option("residual", False):
        read.let("x + y")


def _glu(read: Reading) -> None:
    gate = read.times("gate", "x")
    read.out.line(f"gate = {gate}")
    read.let(f"{read.act('gate', 'silu')} * {read.times('up', 'x')}")
    read.let(read.times("down", "y"))


def _lora(read: Reading) -> None:
    up = "up" if any(p.name == "up" for p in read.form.parts) else "up.weight"
    read.let(read.times("down", "x"))
    if read.act("y", "none") != "y":
        read.let(read.act("y", "none"))
    read.let(read.times(up, "y", "up.bias"))


BODIES: Mapping[str, Callable[[Reading], None]] = {
    "linear": _linear,
    "mlp": _mlp,
    "glu": _glu,
    "lora": _lora,
}
