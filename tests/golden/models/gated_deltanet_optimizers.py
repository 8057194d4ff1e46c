"""Optimizers of gated_deltanet: one for all levels of steps.

Call `step` at every training step and `zero_grad` after it; each level acts at its own
period, with the sum of the gradients since it last did.
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


# the level that moves each parameter, by module
LEVELS: dict[str, dict[str, str]] = {
    "Mixer": {
        "W_q.weight": "slow",
        "W_k.weight": "slow",
        "W_v.weight": "slow",
        "W_g.weight": "slow",
        "W_beta.weight": "slow",
        "W_dt.weight": "slow",
        "W_o.weight": "slow",
        "conv_q.weight": "slow",
        "conv_k.weight": "slow",
        "conv_v.weight": "slow",
        "A": "slow",
        "b": "slow",
        "gain": "slow",
    },
    "Ffn": {
        "F.gate": "slow",
        "F.up": "slow",
        "F.down": "slow",
    },
    "Model": {
        "embed.weight": "slow",
        "unembed.weight": "slow",
        "repeat.0.mixer.W_q.weight": "slow",
        "repeat.0.mixer.W_k.weight": "slow",
        "repeat.0.mixer.W_v.weight": "slow",
        "repeat.0.mixer.W_g.weight": "slow",
        "repeat.0.mixer.W_beta.weight": "slow",
        "repeat.0.mixer.W_dt.weight": "slow",
        "repeat.0.mixer.W_o.weight": "slow",
        "repeat.0.mixer.conv_q.weight": "slow",
        "repeat.0.mixer.conv_k.weight": "slow",
        "repeat.0.mixer.conv_v.weight": "slow",
        "repeat.0.mixer.A": "slow",
        "repeat.0.mixer.b": "slow",
        "repeat.0.mixer.gain": "slow",
        "repeat.0.ffn.F.gate": "slow",
        "repeat.0.ffn.F.up": "slow",
        "repeat.0.ffn.F.down": "slow",
        "repeat.1.mixer.W_q.weight": "slow",
        "repeat.1.mixer.W_k.weight": "slow",
        "repeat.1.mixer.W_v.weight": "slow",
        "repeat.1.mixer.W_g.weight": "slow",
        "repeat.1.mixer.W_beta.weight": "slow",
        "repeat.1.mixer.W_dt.weight": "slow",
        "repeat.1.mixer.W_o.weight": "slow",
        "repeat.1.mixer.conv_q.weight": "slow",
        "repeat.1.mixer.conv_k.weight": "slow",
        "repeat.1.mixer.conv_v.weight": "slow",
        "repeat.1.mixer.A": "slow",
        "repeat.1.mixer.b": "slow",
        "repeat.1.mixer.gain": "slow",
        "repeat.1.ffn.F.gate": "slow",
        "repeat.1.ffn.F.up": "slow",
        "repeat.1.ffn.F.down": "slow",
        "repeat.2.mixer.W_q.weight": "slow",
        "repeat.2.mixer.W_k.weight": "slow",
        "repeat.2.mixer.W_v.weight": "slow",
        "repeat.2.mixer.W_g.weight": "slow",
        "repeat.2.mixer.W_beta.weight": "slow",
        "repeat.2.mixer.W_dt.weight": "slow",
        "repeat.2.mixer.W_o.weight": "slow",
        "repeat.2.mixer.conv_q.weight": "slow",
        "repeat.2.mixer.conv_k.weight": "slow",
        "repeat.2.mixer.conv_v.weight": "slow",
        "repeat.2.mixer.A": "slow",
        "repeat.2.mixer.b": "slow",
        "repeat.2.mixer.gain": "slow",
        "repeat.2.ffn.F.gate": "slow",
        "repeat.2.ffn.F.up": "slow",
        "repeat.2.ffn.F.down": "slow",
        "repeat.3.mixer.W_q.weight": "slow",
        "repeat.3.mixer.W_k.weight": "slow",
        "repeat.3.mixer.W_v.weight": "slow",
        "repeat.3.mixer.W_g.weight": "slow",
        "repeat.3.mixer.W_beta.weight": "slow",
        "repeat.3.mixer.W_dt.weight": "slow",
        "repeat.3.mixer.W_o.weight": "slow",
        "repeat.3.mixer.conv_q.weight": "slow",
        "repeat.3.mixer.conv_k.weight": "slow",
        "repeat.3.mixer.conv_v.weight": "slow",
        "repeat.3.mixer.A": "slow",
        "repeat.3.mixer.b": "slow",
        "repeat.3.mixer.gain": "slow",
        "repeat.3.ffn.F.gate": "slow",
        "repeat.3.ffn.F.up": "slow",
        "repeat.3.ffn.F.down": "slow",
    },
}


def optimizer(module: nn.Module) -> Levels:
    """Make the optimizer of a model or a block, for all its levels of steps."""
    groups = grouped(module, LEVELS[type(module).__name__])
    rules: list[tuple[str, int, Any, dict[str, Any]]] = [
        (
            "slow",
            1,
            torch.optim.AdamW,
            {"lr": 0.001, "eps": 1e-08, "weight_decay": 0.1, "betas": (0.9, 0.999)},
        ),
    ]
    return Levels(groups, rules)
