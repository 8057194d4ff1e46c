"""What training does to parameters: their norms, the next update, how far they are from the start.

In: a learner at some step, its lesson, its parameters at step 0. Out: a description of each
parameter and each level, in plain numbers. The next update is found by taking the next step and
going back, to the last bit; what a level of N steps does is the update at its next N-th step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nlc.lab.faults import Diverged
from nlc.lab.lesson import Lesson
from nlc.lab.spectrum import number, spread
from nlc.lab.tasks import Examples

# a level whose next update is further away is not waited for
PATIENCE = 32

Values = Mapping[str, Tensor]


class Learner(Protocol):
    """What a probe needs of a learner."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int

    def learn(self, examples: Examples) -> float:
        """Take one training step."""


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's parameters."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}


def describe_weights(learner: Learner, lesson: Lesson, first: Values) -> dict[str, Any]:
    """Describe all parameters and levels of steps."""
    groups = {id(p): group for group in learner.optimizer.param_groups for p in group["params"]}
    moved = next_update(learner, lesson)
    found: dict[str, Any] = {}
    for name, p in learner.model.named_parameters():
        group = groups.get(id(p), {})
        own = min(p.dim() - (group.get("lead") or 0), 2)
        now = p.detach().cpu()
        described = {
            "level": group.get("level"),
            "shape": list(p.shape),
            "norm": number(float(now.double().norm())),
            "change": _described(now - first[name], own),
            "optimizer": {
                state: _described(value.detach().cpu(), own)
                for state, value in learner.optimizer.state.get(p, {}).items()
                if isinstance(value, Tensor) and value.shape == p.shape
            },
        }
        if name in moved:
            described["update"] = _described(moved[name], own)
        found[name] = described
    return {"weights": found, "levels": _levels(found)}


def _described(matrix: Tensor, own: int) -> dict[str, Any]:
    """Describe a tensor by its norm, and its matrices by their spectrum."""
    found: dict[str, Any] = {"norm": number(float(matrix.double().norm()))}
    spectrum = spread(matrix) if own == 2 else None
    return found | {"spectrum": spectrum} if spectrum is not None else found


def _levels(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Sum up each level: norms over all of its parameters, ranks as shares of the full rank."""
    found: dict[str, Any] = {}
    for level in dict.fromkeys(w["level"] for w in weights.values() if w["level"]):
        own = [w for w in weights.values() if w["level"] == level]
        entry: dict[str, Any] = {"norm": _total([w["norm"] for w in own])}
        for what in ("update", "change"):
            parts = [w[what] for w in own if what in w]
            if not parts:
                continue
            spectra = [part["spectrum"] for part in parts if "spectrum" in part]
            shares = [s["rank"] / s["full"] for s in spectra]
            entry[what] = {"norm": _total([part["norm"] for part in parts])}
            if shares:
                entry[what]["rank_share"] = number(sum(shares) / len(shares))
                entry[what]["entropy"] = number(sum(s["entropy"] for s in spectra) / len(spectra))
        found[level] = entry
    return found


def _total(norms: list[float | None]) -> float | None:
    """Put norms of parts together."""
    return None if None in norms else number(sum(x * x for x in norms if x is not None) ** 0.5)


def next_update(learner: Learner, lesson: Lesson) -> dict[str, Tensor]:
    """Return what the next update of each parameter's level does to it; the learner stays.

    Levels that are not due within `PATIENCE` steps are left out, and so is everything if training
    would leave the finite numbers.
    """
    due: dict[str, int] = {}
    names = {id(p): name for name, p in learner.model.named_parameters()}
    for group in learner.optimizer.param_groups:
        period = group.get("period", 1)
        due |= {names[id(p)]: period - group.get("calls", 0) % period for p in group["params"]}
    ahead = max((n for n in due.values() if n <= PATIENCE), default=0)
    before = values_of(learner.model)
    found: dict[str, Tensor] = {}
    with _returning(learner, before):
        try:
            for passed in range(1, ahead + 1):
                learner.learn(lesson.at(learner.step))
                now = values_of(learner.model)
                found |= {name: now[name] - before[name] for name, n in due.items() if n == passed}
        except Diverged:
            return {}
    return found


@contextmanager
def _returning(learner: Learner, before: Values) -> Iterator[None]:
    """Bring a learner back to where it was."""
    optimizer = copy.deepcopy(learner.optimizer.state_dict())
    step = learner.step
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for name, p in learner.model.named_parameters():
                p.copy_(before[name])
        learner.optimizer.load_state_dict(optimizer)
        learner.step = step
