"""The emitted `optimizers.py`: a class for each rule, and one optimizer over all step levels.

In: a system, the motions of its rules. Out: Python text that imports torch only. Which parameters a
level has follows from where the system's weights are; what a rule does, from its equations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlc.codegen.library_source import constant, library_texts, needed, source_of
from nlc.codegen.names import class_names
from nlc.codegen.parameters import of_memory
from nlc.codegen.rules.body import dictionary
from nlc.codegen.rules.classes import RuleText, write_class
from nlc.codegen.rules.names import ALWAYS, LEVELS, SOMETIMES, STEPS, rule_classes
from nlc.codegen.scope import memory_path
from nlc.codegen.unit import calls
from nlc.codegen.writer import Writer, split_call

from nlc.ir.rule import OptimizerRule
from nlc.ir.shape import Shape
from nlc.ir.system import Block, Level, Model, Repeat, Step, System


@dataclass(frozen=True)
class Owned:
    """A parameter of a module: its name, its level, its leading axes and its own shape.

    `start` says what it begins as, and after how many steps again.
    """

    name: str
    level: str
    lead: Shape
    shape: Shape
    start: tuple[str, int] | None = None

    @property
    def copies(self) -> int | None:
        """How many axes in front are copies, where these are not all but the last two."""
        usual = max(len(self.lead) + len(self.shape) - 2, 0)
        return len(self.lead) if len(self.lead) > usual else None

    @property
    def axes(self) -> int:
        """How many axes an optimizer takes as the parameter's own: 2, 1 or 0."""
        return min(len(self.shape), 2)


def owned(system: System, module: Block | Model, prefix: str = "") -> list[Owned]:
    """List all parameters of a module with the level that moves them."""
    found: list[Owned] = []
    for weight in module.weights:
        if isinstance(module, Model) and module.tied and weight.name == "unembed":
            continue
        for part in weight.map.parts:
            rest = f".{part.name}" if part.name else ""
            again, start = weight.restart, None
            if again is not None:
                start = (prefix + again.source + rest, again.count)
            name = prefix + weight.name + rest
            found.append(Owned(name, weight.level, weight.lead, part.shape, start))
    slow = [level.name for level in system.levels if level.period.unit == "steps"]
    if isinstance(module, Block):
        for memory in module.memories:
            for own in of_memory(memory):
                name = f"{memory_path(memory)}.{own.name}" if own.name else memory.name
                lead, shape = memory.lead, own.shape[len(memory.lead) :]
                # a learned start is moved by the fastest level of steps
                found.append(Owned(prefix + name, slow[0] if slow else "", lead, shape))
    for path, block in _instances(system, module.steps, ""):
        found += owned(system, block, f"{prefix}{path}.")
    return found


def _instances(system: System, steps: tuple[Step, ...], prefix: str) -> list[tuple[str, Block]]:
    found: dict[str, Block] = {}
    shared = {call.instance for call in calls(steps) if call.shared}
    for step in steps:
        if isinstance(step, Repeat):
            for turn in range(step.count):
                for path, block in _instances(system, step.steps, f"{prefix}{step.name}.{turn}."):
                    short = path.split(".")[-1]
                    found[short if short in shared else path] = block
        else:
            for call in calls([step]):
                path = call.instance if call.shared else prefix + call.instance
                found[path] = system.block(call.block)
    return list(found.items())


def moving_levels(system: System) -> list[Level]:
    """List the levels of steps that have an optimizer."""
    return [
        level for level in system.levels
        if level.period.unit == "steps" and level.optimizer is not None
    ]  # fmt: skip


def emit_optimizers(
    system: System, rules: Sequence[OptimizerRule], with_kernels: bool = False
) -> str:
    """Return the text of `optimizers.py`, with the given rules and the levels' own."""
    out = Writer()
    levels = moving_levels(system)
    about = [f"Optimizers of {system.name}."]
    if levels:
        about += [
            "`optimizer(module)` is one optimizer for all levels of steps. Call `step` at every",
            "training step and `zero_grad` after it; each level acts at its own period, with the",
            "sum of the gradients since it last did.",
        ]  # fmt: skip
    names = rule_classes(rules)
    texts = [write_class(rule, system, names[rule.rule.name], with_kernels) for rule in rules]
    _imports(out, about, texts, bool(levels))
    nested = any(own.start for module in _modules(system) for own in owned(system, module))
    of_levels = [name for name in LEVELS if levels and (nested or name != "Nested")]
    for name in (*ALWAYS[:2], *of_levels, *ALWAYS[2:]):
        _definition(out, name)
    helpers = sorted({name for text in texts for name in text.used})
    own = [name for name in SOMETIMES if name in helpers]
    for name in own:
        _definition(out, name)
    for source in library_texts([name for name in helpers if name not in own]):
        if not source.startswith("def wide("):
            out.blank(2)
            out.lines += source.splitlines()
    if any(text.fused for text in texts):
        for source in needed("library_steps", [n for n in STEPS if n != "rooms" or n in helpers]):
            out.blank(2)
            out.lines += source.splitlines()
    for text in texts:
        for function in text.readings:
            out.blank(2)
            out.lines += function
        out.blank(2)
        out.lines += text.lines
    if levels:
        out.blank(2)
        _tables(out, system)
        if nested:
            _starts(out, system)
        out.blank(2)
        _make(out, levels, names, nested)
    return out.text()


def _imports(out: Writer, about: list[str], texts: Sequence[RuleText], levels: bool) -> None:
    out.docstring(about)
    out.blank()
    lines = ["from __future__ import annotations", ""]
    written = [line for text in texts for part in (text.lines, *text.readings) for line in part]
    fused = any(text.fused for text in texts)
    if any("math." in line for line in written):
        lines.append("import math")
    lines += ["import os"] if fused else []
    abstract = ["Callable", "Generator", "Iterable", "Iterator", *(["Sequence"] if fused else [])]
    lines.append(f"from collections.abc import {', '.join(abstract)}")
    lines += ["from functools import lru_cache"] if fused else []
    lines += ["from itertools import chain", "from typing import Any", "", "import torch"]
    lines += ["import torch.nn.functional as F"]
    lines += ["import triton", "import triton.language as tl"] if fused else []
    lines += ["from torch import Tensor, nn", "from torch.overrides import TorchFunctionMode"]
    for line in lines:
        out.line(line)
    out.blank()
    out.line("# yields values at which it wants gradients, and is sent these")
    out.line("Points = Generator[list[Tensor], list[Tensor], None]")
    if fused:
        # these stand in the library as they stand here
        for name in ("INTERPRETED", "TYPES", "BLOCK"):
            for line in constant("library_steps", name):
                out.line(line)


def _definition(out: Writer, name: str) -> None:
    out.blank(2)
    out.lines += source_of("library_optimizer", name).splitlines()


def _tables(out: Writer, system: System) -> None:
    """Write which level moves each parameter, by module, and where axes in front are copies."""
    modules = _labelled(system)
    out.line("# the level that moves each parameter, by module")
    out.line("LEVELS: dict[str, dict[str, str]] = {")
    with out.indent():
        for label, module in modules:
            out.line(f'"{label}": {{')
            with out.indent():
                for own in owned(system, module):
                    out.line(f'"{own.name}": "{own.level}",')
            out.line("},")
    out.line("}")
    some = {label: [own for own in owned(system, m) if own.copies is not None]
            for label, m in modules}  # fmt: skip
    out.line("# how many axes in front are copies, where these are not all but the last two")
    if not any(some.values()):
        out.line("COPIES: dict[str, dict[str, int]] = {}")
        return
    out.line("COPIES: dict[str, dict[str, int]] = {")
    with out.indent():
        for label, parameters in some.items():
            if not parameters:
                continue
            out.line(f'"{label}": {{')
            with out.indent():
                for own in parameters:
                    out.line(f'"{own.name}": {own.copies},')
            out.line("},")
    out.line("}")


def _modules(system: System) -> list[Block | Model]:
    """List the blocks and the model."""
    return [*system.blocks, *([] if system.model is None else [system.model])]


def _labelled(system: System) -> list[tuple[str, Block | Model]]:
    """List the blocks and the model, each with its class."""
    names = class_names(system)
    return [("Model" if isinstance(m, Model) else names[(m.name,)], m) for m in _modules(system)]


def _starts(out: Writer, system: System) -> None:
    """Write what parameters begin as, and after how many steps again, by module."""
    moving = {level.name for level in moving_levels(system)}
    out.line("# what parameters begin as, and after how many steps again")
    out.line("STARTS: dict[str, dict[str, tuple[str, int]]] = {")
    with out.indent():
        for label, module in _labelled(system):
            some = [own for own in owned(system, module) if own.start and own.level in moving]
            if not some:
                continue
            out.line(f'"{label}": {{')
            with out.indent():
                for own in some:
                    assert own.start is not None
                    out.line(f'"{own.name}": ("{own.start[0]}", {own.start[1]}),')
            out.line("},")
    out.line("}")


def _make(out: Writer, levels: list[Level], names: Mapping[str, str], nested: bool) -> None:
    out.line("def optimizer(module: nn.Module) -> Levels:")
    with out.indent():
        out.docstring(["Make the optimizer of a model or a block, for all its levels of steps."])
        out.line("name = type(module).__name__")
        out.line("levels: list[tuple[str, int, dict[str, Any]]] = [")
        with out.indent():
            for level in levels:
                assert level.optimizer is not None
                words = ", ".join(f'"{k}": {v!r}' for k, v in level.optimizer.arguments)
                pieces = [f'"{level.name}"', str(level.period.count), f"{{{words}}}"]
                for text in split_call("(", pieces, "),", out.room):
                    out.line(text)
        out.line("]")
        pairs = [
            f'"{lv.name}": {names[lv.optimizer.rule]}' for lv in levels if lv.optimizer
        ]  # fmt: skip
        dictionary(out, "rules: dict[str, type[Rule]] = ", pairs)
        out.line("groups = grouped(module, LEVELS[name], COPIES.get(name, {}), levels)")
        if nested:
            out.line("return Nested(module, groups, rules, STARTS.get(name, {}))")
        else:
            out.line("return Levels(module, groups, rules)")
