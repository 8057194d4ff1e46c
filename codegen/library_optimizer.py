"""The optimizer over all step levels; its text is copied into emitted packages.

In: parameters by level, and each level's rule. Out: one `torch.optim.Optimizer` that is called at
every training step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Levels(torch.optim.Optimizer):
    """All levels of steps as one optimizer; one param group per level.

    rules: per level its name, its period in steps, a class of torch.optim and its arguments. A
    level with a period N sums the gradients of N calls and moves at the N-th.
    """

    def __init__(
        self,
        groups: dict[str, list[Tensor]],
        rules: list[tuple[str, int, Any, dict[str, Any]]],
    ):
        params = []
        self.inner: list[torch.optim.Optimizer] = []
        for level, period, rule, words in rules:
            if groups.get(level):
                self.inner.append(rule(groups[level], **words))
                group = {"params": groups[level], "level": level, "period": period}
                params.append({**group, **words, "calls": 0})
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one training step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, inner in zip(self.param_groups, self.inner, strict=True):
            group["calls"] += 1
            if group["period"] == 1:
                self.move(group, inner)
                continue
            for p in group["params"]:
                if p.grad is not None:
                    total = self.state[p].get("sum")
                    self.state[p]["sum"] = p.grad.clone() if total is None else total + p.grad
            if group["calls"] % group["period"] == 0:
                now = [p.grad for p in group["params"]]
                for p in group["params"]:
                    p.grad = self.state[p].pop("sum", None)
                self.move(group, inner)
                for p, grad in zip(group["params"], now, strict=True):
                    p.grad = grad
        return loss

    def move(self, group: dict[str, Any], inner: torch.optim.Optimizer) -> None:
        """Let a level's rule move its parameters, with the group's present numbers."""
        own = inner.param_groups[0]
        own.update({k: v for k, v in group.items() if k in own and k != "params"})
        inner.step()

    def state_dict(self) -> dict[str, Any]:
        """The sums, and the states of all rules."""
        return {**super().state_dict(), "inner": [inner.state_dict() for inner in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        rest = dict(state_dict)
        for inner, state in zip(self.inner, rest.pop("inner"), strict=True):
            inner.load_state_dict(state)
        super().load_state_dict(rest)


def grouped(module: nn.Module, levels: dict[str, str]) -> dict[str, list[Tensor]]:
    """The parameters of each level, in order; a frozen one belongs to none."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found.setdefault(levels[name], []).append(parameter)
    return found
