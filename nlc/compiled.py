"""A compiled system: its modules, its package, its optimizer.

In: a `System`. Out: `Compiled`, which makes modules from the emitted code. Stages: updates
written out, plan, emit, load.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nlc.codegen.names import class_names
from nlc.codegen.optimizer import emit_optimizers
from nlc.codegen.package import write_package
from nlc.codegen.rules.names import rule_classes
from nlc.codegen.scope import memory_path
from nlc.codegen.torch_module import WithKernels, emit_model, emit_with_kernels
from nlc.diagnostics import Faults
from nlc.ir.kernel import Calculus
from nlc.ir.schedule import Plan, Schedule
from nlc.ir.system import System
from nlc.library import shipped_rules
from nlc.optimizers import (
    ARTICLES,
    optimizer_faults,
    refuse_rule,
    rule_as_optimizer,
    rules_to_emit,
)  # fmt: skip
from nlc.passes.explicit import explicit
from nlc.passes.plan import plan
from nlc.passes.token import gradients_of, simple_products, written_out
from nlc.runtime.load import load_module, load_package

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nlc.runtime.reference import Reference

TARGETS = ("auto", "torch", "triton")


def compile_system(system: System, target: str = "auto") -> Compiled:
    """Compile a system. Raises `SpecError` for what cannot be compiled."""
    if target not in TARGETS:
        raise ValueError(f"the target is one of {', '.join(TARGETS)}, not {target!r}")
    refuse(system)
    ready = explicit(system)
    return Compiled(system, ready, plan(ready), chosen(target, system))


def chosen(target: str, system: System) -> str:
    """Decide what `auto` is: kernels where there is a GPU to run them, else PyTorch.

    Where a system can have no kernels, `triton` is PyTorch too.
    """
    if kernels_refused(system):
        return "torch"
    if target != "auto":
        return target
    import torch

    return "triton" if torch.cuda.is_available() else "torch"


def kernels_refused(system: System) -> str:
    """Say why a system can have no kernels at all; "" where it can.

    Kernels cannot be differentiated twice, as they are where a gradient passes through what learns
    from the task while it reads.
    """
    found = [
        f"{block.name}.{memory.name}"
        for block in system.blocks
        for memory in block.memories
        if memory.is_task and memory.through == "full"
    ]
    if not found:
        return ""
    *others, last = found
    names = f"{', '.join(others)} and {last} learn" if others else f"{last} learns"
    return (
        f"{names} from the model's loss while a sequence is read, and training differentiates "
        "that gradient again, which kernels cannot do"
    )


def refuse(system: System) -> None:
    """Refuse what resolves but cannot run yet."""
    faults = Faults()
    for code, words, span, hint in getattr(system, "unsupported", ()):
        faults.error(code, words, span, "not supported yet", hint)
    faults.found += optimizer_faults(system)
    faults.stop_on_errors()


class Compiled:
    """What `nlc.compile` gives: modules, the package, the optimizer, the truth to compare with."""

    def __init__(self, system: System, ready: System, schedule: Plan, target: str = "torch"):
        self.system = system
        self.target = target
        self._ready = ready
        self._plan = schedule
        # the module of each name that was made last, for `reference`
        self._made: dict[str | None, nn.Module] = {}

    @property
    def schedules(self) -> dict[str, Schedule]:
        """How each memory runs, by `block.memory`; by its own name where that is unique."""
        found: dict[str, Schedule] = {}
        names = [s.memory for b in self._plan.blocks for s in b.schedules]
        for block in self._plan.blocks:
            for schedule in block.schedules:
                single = names.count(schedule.memory) == 1
                name = schedule.memory if single else f"{block.block}.{schedule.memory}"
                found[name] = schedule
        return found

    @property
    def kernels_refused(self) -> str:
        """Why the package can have no kernels whatever the target; "" where it can."""
        return kernels_refused(self.system)

    @property
    def spec_name(self) -> str:
        """The spec's file in the package."""
        return "spec.yaml" if self.system.source.name.endswith((".yaml", ".yml")) else "spec.nl"

    @cached_property
    def source(self) -> str:
        """The text of `model.py`."""
        return self._texts["model.py"]

    @cached_property
    def kernels_source(self) -> str:
        """The text of `kernels.py`; "" where no memory has kernels."""
        return self._texts.get("kernels.py", "")

    @cached_property
    def with_kernels(self) -> WithKernels:
        """The package with kernels, what they are, and why some memories have none."""
        if why := self.kernels_refused:
            texts = {"model.py": emit_model(self._ready, self._plan, self.spec_name)}
            names = [(b.name, m.name) for b in self.system.blocks for m in b.memories]
            return WithKernels(texts, (), dict.fromkeys(names, why))
        calculus = Calculus(written_out, gradients_of, simple_products)
        return emit_with_kernels(self._ready, self._plan, self.spec_name, calculus)

    @cached_property
    def _texts(self) -> dict[str, str]:
        if self.target == "triton":
            return self.with_kernels.texts
        return {"model.py": emit_model(self._ready, self._plan, self.spec_name)}

    @cached_property
    def module(self) -> ModuleType:
        """The emitted code, loaded."""
        if self.kernels_source and find_spec("triton") is None:
            # without triton it runs as it does on a CPU
            plain = emit_model(self._ready, self._plan, self.spec_name)
            return load_module(plain, self.system.name)
        if self.kernels_source:
            return load_package(self._texts, self.system.name)
        return load_module(self.source, self.system.name)

    def model(self, **new: Any) -> nn.Module:
        """Make the model: `logits, state = model(tokens, state=None)`."""
        if self.system.model is None:
            raise ValueError("this system has no model; it has blocks: compiled.block(name)")
        made: nn.Module = self.module.Model(**new)
        self._made[None] = made
        return made

    def block(self, name: str, **new: Any) -> nn.Module:
        """Make a block: `out, state = block(x, state=None)`."""
        names = [block.name for block in self.system.blocks]
        if name not in names:
            raise ValueError(f"there is no block {name!r}; there are {', '.join(names)}")
        made: nn.Module = getattr(self.module, class_names(self.system)[(name,)])(**new)
        self._made[name] = made
        return made

    def reference(self, name: str | None = None, module: nn.Module | None = None) -> Reference:
        """Make the interpreter of a block, or of the model, over the parameters of a module.

        Without a module they are those of the one that was made last under that name.
        """
        from nlc.runtime.reference import Reference

        if module is None:
            module = self._made.get(name)
        if module is None:
            module = self.model() if name is None else self.block(name)
        # a memory whose learned start has its own name keeps further parameters beside that
        memories = [memory for block in self.system.blocks for memory in block.memories]
        words = {memory_path(memory): memory.name for memory in memories}
        parameters = {
            ".".join(words.get(word, word) for word in path.split(".")): value
            for path, value in module.named_parameters()
        }
        return Reference(self.system, parameters, name)

    @cached_property
    def optimizers_source(self) -> str:
        """The text of `optimizers.py`."""
        return emit_optimizers(self.system, rules_to_emit(self.system), self._fuses)

    @property
    def _fuses(self) -> bool:
        """Say whether optimizers have kernels: what is loaded here needs triton for that."""
        return self.target == "triton" and find_spec("triton") is not None

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer of all step levels for a model or a block of this system."""
        if all(lv.optimizer is None or lv.period.unit != "steps" for lv in self.system.levels):
            raise ValueError(
                "no level of steps has an optimizer: write `level slow every 1 step, optimizer "
                "adamw(lr = 1e-3)`"
            )
        loaded = load_module(self.optimizers_source, f"{self.system.name}_optimizers")
        made: torch.optim.Optimizer = loaded.optimizer(module)
        return made

    def files(self) -> dict[str, str]:
        """All files of the package, by name."""
        from nlc.view import as_json, as_svg

        levels = json.dumps(as_json(self.system), indent=2, ensure_ascii=False) + "\n"
        return {
            **self._texts,
            "optimizers.py": self.optimizers_source,
            self.spec_name: self.system.source.text,
            "levels.json": levels,
            "levels.svg": as_svg(self.system),
        }

    def write(self, folder: str | Path) -> None:
        """Write the package that stands alone; an older one is replaced when this is whole."""
        write_package(Path(folder), self.files())

    def rule(self, name: str) -> Callable[..., torch.optim.Optimizer]:
        """Return one rule as an optimizer over a plain list of tensors: `rule(params, lr = 0.1)`.

        Raises `SpecError` where the rule cannot be one.
        """
        rules = {**shipped_rules(), **{rule.name: rule for rule in self.system.rules}}
        if name not in rules:
            raise ValueError(f"there is no rule {name!r}; there are {', '.join(sorted(rules))}")
        found = rule_as_optimizer(self.system, rules[name])
        if not found.motions:
            faults = Faults()
            refuse_rule(faults, found, "matrix", ARTICLES["matrix"], rules[name].span)
            faults.stop_on_errors()
        plain = replace(self.system, levels=())
        loaded = load_module(
            emit_optimizers(plain, [found], self._fuses), f"{self.system.name}_{name}"
        )
        made: Callable[..., torch.optim.Optimizer] = getattr(loaded, rule_classes([found])[name])
        return made
