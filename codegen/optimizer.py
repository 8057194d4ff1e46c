"""The emitted `optimizers.py`: one `torch.optim.Optimizer` over all step levels.

In: a system. Out: Python text that imports torch only. A level's optimizer is told by what its
rule's definition says, not by its name: sgd and adamw as the library writes them are run by torch's
own; any other rule is refused by `unsupported_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nlc.codegen.library_source import source_of
from nlc.codegen.names import class_name
from nlc.codegen.unit import calls
from nlc.codegen.writer import Writer, split_call

from nlc.ir.system import Block, Level, Model, Optimizer, Repeat, Step, System

# what torch calls the arguments of a rule
WORDS: Mapping[str, Mapping[str, str]] = {
    "sgd": {"lr": "lr", "weight_decay": "weight_decay"},
    "adamw": {"lr": "lr", "eps": "eps", "weight_decay": "weight_decay"},
}
CLASSES = {"sgd": "SGD", "adamw": "AdamW"}


@dataclass(frozen=True)
class StepLevel:
    """A step level with torch's class for its rule and the names of its parameters."""

    level: Level
    torch_class: str
    words: tuple[tuple[str, object], ...]
    parameters: tuple[str, ...]


def known_rule(definition: Any, shipped: Mapping[str, Any]) -> str | None:
    """Return which of torch's optimizers a rule is, by its definition alone."""
    for name in CLASSES:
        rule = shipped.get(name)
        if rule is not None and replace(rule, name="") == replace(definition, name=""):
            return name
    return None


def unsupported_rules(system: System, shipped: Mapping[str, Any]) -> list[Optimizer]:
    """List the optimizers of step levels that cannot be run yet."""
    return [
        level.optimizer
        for level in system.levels
        if level.period.unit == "steps"
        and level.optimizer is not None
        and known_rule(level.optimizer.definition, shipped) is None
    ]


def step_levels(system: System, shipped: Mapping[str, Any], root: str) -> list[StepLevel]:
    """List the step levels with an optimizer; `root` is a block's name, or "" for the model."""
    module: Block | Model | None = system.block(root) if root else system.model
    if module is None:
        return []
    names = dict(parameter_levels(system, module))
    found = []
    for level in system.levels:
        if level.period.unit != "steps" or level.optimizer is None:
            continue
        rule = known_rule(level.optimizer.definition, shipped)
        if rule is None:
            continue
        given = dict(level.optimizer.arguments)
        words: dict[str, object] = {
            word: given[name] for name, word in WORDS[rule].items() if name in given
        }
        if rule == "adamw":
            words["betas"] = (given.get("beta1", 0.9), given.get("beta2", 0.999))
        own = tuple(name for name, at in names.items() if at == level.name)
        found.append(StepLevel(level, CLASSES[rule], tuple(words.items()), own))
    return found


def parameter_levels(
    system: System, module: Block | Model, prefix: str = ""
) -> list[tuple[str, str]]:
    """List all parameters of a module with the level that moves them."""
    found: list[tuple[str, str]] = []
    for weight in module.weights:
        if isinstance(module, Model) and module.tied and weight.name == "unembed":
            continue
        for part in weight.map.parts:
            name = f"{weight.name}.{part.name}" if part.name else weight.name
            found.append((prefix + name, weight.level))
    slow = [level.name for level in system.levels if level.period.unit == "steps"]
    if isinstance(module, Block):
        from nlc.codegen.parameters import of_memory

        for memory in module.memories:
            for own in of_memory(memory):
                name = f"{memory.name}.{own.name}" if own.name else memory.name
                # a learned start is moved by the fastest level of steps
                found.append((prefix + name, slow[0] if slow else ""))
    for path, block in _instances(system, module.steps, ""):
        found += parameter_levels(system, block, f"{prefix}{path}.")
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


def emit_optimizers(system: System, shipped: Mapping[str, Any]) -> str:
    """Return the text of `optimizers.py`."""
    out = Writer()
    out.docstring([
        f"Optimizers of {system.name}: one for all levels of steps.",
        "Call `step` at every training step and `zero_grad` after it; each level acts at its own",
        "period, with the sum of the gradients since it last did.",
    ])  # fmt: skip
    out.blank()
    for line in (
        "from __future__ import annotations", "", "from collections.abc import Callable",
        "from typing import Any", "", "import torch", "from torch import Tensor, nn",
    ):  # fmt: skip
        out.line(line)
    out.blank(2)
    out.lines += source_of("library_optimizer", "Levels").splitlines()
    out.lines += source_of("library_optimizer", "grouped").splitlines() and [
        "", "", *source_of("library_optimizer", "grouped").splitlines()
    ]  # fmt: skip
    roots = [(f"{class_name(b.name)}", b.name) for b in system.blocks]
    if system.model is not None:
        roots.append(("Model", ""))
    out.blank(2)
    out.line("# the level that moves each parameter, by module")
    out.line("LEVELS: dict[str, dict[str, str]] = {")
    with out.indent():
        for label, root in roots:
            module = system.block(root) if root else system.model
            assert module is not None
            out.line(f'"{label}": {{')
            with out.indent():
                for name, level in parameter_levels(system, module):
                    out.line(f'"{name}": "{level}",')
            out.line("},")
    out.line("}")
    out.blank(2)
    _make(out, step_levels(system, shipped, "" if system.model else system.blocks[0].name))
    return out.text()


def _make(out: Writer, levels: list[StepLevel]) -> None:
    out.line("def optimizer(module: nn.Module) -> Levels:")
    with out.indent():
        out.docstring(["Make the optimizer of a model or a block, for all its levels of steps."])
        out.line("groups = grouped(module, LEVELS[type(module).__name__])")
        out.line("rules: list[tuple[str, int, Any, dict[str, Any]]] = [")
        with out.indent():
            for entry in levels:
                words = ", ".join(f'"{k}": {v!r}' for k, v in entry.words)
                pieces = [
                    f'"{entry.level.name}"', str(entry.level.period.count),
                    f"torch.optim.{entry.torch_class}", f"{{{words}}}",
                ]  # fmt: skip
                for text in split_call("(", pieces, "),", out.room):
                    out.line(text)
        out.line("]")
        out.line("return Levels(groups, rules)")
