"""Parameters of emitted modules: how they are declared and how they are drawn.

In: weights and initial states of the system. Out: lines of `__init__` and `reset_parameters`. The
values are drawn in the order of the parameters, each once.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlc.codegen.writer import Writer, split_call

from nlc.ir.shape import Axis, Shape, sizes
from nlc.ir.system import Initial, Memory, Weight

MODULES = {"linear", "conv", "mlp", "glu", "lora", "table"}


@dataclass(frozen=True)
class Own:
    """One tensor of a module: its dotted name, shape and initial value."""

    name: str
    shape: Shape
    initial: Initial


def as_module(weight: Weight) -> bool:
    """Say whether weights are a module that is called; else they are tensors."""
    return weight.map.kind in MODULES and not weight.lead


def usual(weight: Weight) -> bool:
    """Say whether a module draws its own initial values as the spec wants them."""
    kinds = {"uniform", "constant"} if weight.map.kind != "table" else set()
    return all(part.initial.kind in kinds for part in weight.map.parts) and not any(
        part.initial.kind == "constant" and not _constant_is_usual(weight, part.name, part.initial)
        for part in weight.map.parts
    )


def _constant_is_usual(weight: Weight, part: str, initial: Initial) -> bool:
    expected = {("mlp", "norm.weight"): 1.0, ("mlp", "norm.bias"): 0.0}
    if weight.map.kind == "lora" and part in ("up", "up.weight"):
        return initial.value == 0.0
    return expected.get((weight.map.kind, part)) == initial.value


def of_weight(weight: Weight) -> list[Own]:
    """List the tensors of weights, named from their block."""
    return [
        Own(
            f"{weight.name}.{p.name}" if p.name else weight.name,
            (*weight.lead, *p.shape),
            p.initial,
        )
        for p in weight.map.parts
    ]


def of_memory(memory: Memory) -> list[Own]:
    """List the tensors of a memory's learned initial state, named from the memory."""
    if memory.map.kind == "kernel":
        if not memory.persistent:
            return []
        count = Axis(str(memory.persistent), memory.persistent)
        return [
            Own(name, (*memory.lead, count, *axes), Initial("uniform", float(axes[-1].size)))
            for name, axes in (("key", memory.map.inputs), ("value", memory.map.outputs))
        ]
    return [
        Own(".".join(word for word in (own, p.name) if word), (*memory.lead, *p.shape), p.initial)
        for own, variable in memory.learned_states()
        for p in variable.parts
    ]


def module_text(weight: Weight, used: set[str]) -> tuple[str, list[str]]:
    """Return what makes the module of some weights: the class and its arguments."""
    form = weight.map
    chain = [str(axis.size) for axis in form.chain]
    biased = bool(form.option("bias", False))
    match form.kind:
        case "linear":
            used.add("Linear")
            return "Linear", [*chain, f"bias={biased}", "**new"]
        case "table":
            return "nn.Embedding", [*chain, "**new"]
        case "conv":
            used.add("Conv")
            words = [str(form.parts[0].shape[0].size), str(form.option("width"))]
            return "Conv", [*words, *(["bias=True"] if biased else []), "**new"]
        case "mlp":
            used.add("MLP")
            words = [f"({', '.join(chain)})", f'act="{form.option("act", "gelu")}"']
            words += [f"{w}=True" for w in ("bias", "residual") if form.option(w, False)]
            if form.option("norm", False):
                used.add("Norm")
                words.append("norm=Norm")
            return "MLP", [*words, "**new"]
        case "glu":
            used.add("GLU")
            return "GLU", [*chain, f'act="{form.option("act", "silu")}"', "**new"]
        case _:
            used.add("LoRA")
            words = [*chain, f'act="{form.option("act", "none")}"']
            return "LoRA", [*words, *(["bias=True"] if biased else []), "**new"]


def declare_weight(out: Writer, weight: Weight, used: set[str]) -> None:
    """Write the line of `__init__` that makes some weights."""
    if as_module(weight):
        head, words = module_text(weight, used)
        for text in split_call(f"self.{weight.name} = {head}(", words, ")", out.room):
            out.line(text)
        return
    declare_tensors(out, of_weight(weight), used)


def declare_tensors(out: Writer, tensors: list[Own], used: set[str]) -> None:
    """Write the lines that make bare parameters; a dotted name lies in a holder."""
    holders: dict[str, list[Own]] = {}
    for own in tensors:
        holder = own.name.rpartition(".")[0]
        holders.setdefault(holder, []).append(own)
    for holder, members in holders.items():
        if not holder:
            for own in members:
                size = ", ".join(map(str, sizes(own.shape)))
                size = size or "()"
                out.line(f"self.{own.name} = nn.Parameter(torch.empty({size}, **new))")
            continue
        used.add("Tensors")
        outer = holder.split(".")
        for depth in range(1, len(outer)):
            above = ".".join(outer[:depth])
            if above not in holders and not any(
                f"self.{above} = " in line for line in out.lines[-40:]
            ):
                out.line(f"self.{above} = Tensors(**new)")
        words = [
            f"{own.name.rpartition('.')[2]}=({', '.join(map(str, sizes(own.shape)))}"
            + (",)" if len(own.shape) == 1 else ")")
            for own in members
        ]
        for text in split_call(f"self.{holder} = Tensors(", [*words, "**new"], ")", out.room):
            out.line(text)


def draw_tensors(out: Writer, tensors: list[Own], used: set[str]) -> None:
    """Write the lines that draw parameters whose values are simple."""
    for own in tensors:
        match own.initial.kind:
            case "uniform":
                used.add("uniform")
                out.line(f"uniform(self.{own.name}, {round(own.initial.value)})")
            case "normal":
                out.line(f"nn.init.normal_(self.{own.name}, std={own.initial.value!r})")
            case "constant" if own.initial.value in (0.0, 1.0):
                word = "zeros_" if own.initial.value == 0.0 else "ones_"
                out.line(f"nn.init.{word}(self.{own.name})")
            case "constant":
                out.line(f"nn.init.constant_(self.{own.name}, {own.initial.value!r})")
            case "expr" | "source":
                raise AssertionError("values that are computed are drawn by their block")
