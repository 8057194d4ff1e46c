"""Continuum memory systems in training, against loops by hand: sums, periods, starts, resets.

The models are those of `library`; what moves their parameters is written out here from eqs. 71
and 72 of arXiv:2512.24695, with AdamW (arXiv:1711.05101) as f.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import SpecError
from nlc.lab.tasks import Examples
from nlc.lab.train import Learner
from tests.references.compare import close
from tests.references.layers import cross_entropy
from tests.references.library import MODELS
from tests.references.test_library import SPECS, draw_tokens

SIZES = {"dims.d": 8, "dims.heads": 2, "dims.d_k": 4, "dims.d_v": 6, "dims.hidden": 10}
HOPE = {"dims.d": 8, "dims.inner": 6, "dims.hidden": 10}
PERIODS = {"levels.slower.every": "2 steps", "levels.slowest.every": "4 steps"}
RESETS = {
    "blocks.cms.memories.F_1.reset": "2 steps",
    "blocks.cms.memories.F_2.reset": "4 steps",
}
NESTED = {"F_1": ("F_2", 2), "F_2": ("F_3", 4)}
RATE, DECAY, BETAS, EPS = 1e-3, 0.1, (0.9, 0.999), 1e-8


def small(name: str) -> nlc.ir.system.System:
    changes: dict[str, Any] = (HOPE if name == "hope" else SIZES) | PERIODS
    return nlc.load(SPECS / f"{name}.nl", set=changes | (RESETS if name == "cms_nested" else {}))


class ByHand:
    """Parameters that move as the paper says: of each the sum of gradients, m, v and steps."""

    def __init__(self, p: dict[str, Tensor], starts: dict[str, tuple[str, int]]) -> None:
        self.p, self.starts = p, starts
        self.sums = {name: torch.zeros_like(value) for name, value in p.items()}
        self.moments: dict[str, tuple[Tensor, Tensor, int]] = {}
        self.steps = 0

    def period(self, name: str) -> int:
        return {"F_2": 2, "F_3": 4}.get(label(name), 1)

    def step(self, found: dict[str, Tensor]) -> None:
        """Eq. 71: at every N-th step theta moves by the sum of N gradients, else not at all."""
        self.steps += 1
        for name, value in self.p.items():
            self.sums[name] += found[name]
            if self.steps % self.period(name) == 0:
                self.p[name] = self.moved(name, value, self.sums[name])
                self.sums[name] = torch.zeros_like(value)
        for own in sorted(self.starts, reverse=True):
            # slow ones first: F_1 begins as what F_2 begins as
            start, count = self.starts[own]
            for name in [n for n in self.p if label(n) == own and self.steps % count == 0]:
                self.p[name] = self.p[name.replace(own, start)].clone()
                del self.moments[name]

    def moved(self, name: str, value: Tensor, gradient: Tensor) -> Tensor:
        """AdamW."""
        zero = torch.zeros_like(value)
        m, v, n = self.moments.get(name, (zero, zero, 0))
        m, v = (
            b * old + (1 - b) * new
            for b, old, new in zip(BETAS, (m, v), (gradient, gradient**2), strict=True)
        )
        self.moments[name] = (m, v, n + 1)
        first, second = (x / (1 - b ** (n + 1)) for x, b in zip((m, v), BETAS, strict=True))
        return value - RATE * DECAY * value - RATE * first / (second.sqrt() + EPS)


def label(name: str) -> str:
    """F_1, F_2 or F_3, and "" for all else."""
    return next((word for word in name.split(".") if word.startswith("F_")), "")


def passed_on(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What begins as F_2 has its gradient, and F_2 that of F_3 (eq. 72 at first order)."""
    whole = dict(found)
    for own, start in (("F_1", "F_2"), ("F_2", "F_3")):
        for name in [n for n in whole if label(n) == own]:
            other = name.replace(own, start)
            whole[other] = whole[other] + whole[name]
    return whole


@pytest.mark.parametrize("name", ["cms", "cms_independent", "cms_nested", "hope_attention", "hope"])
def test_training_is_the_loop_by_hand(name: str) -> None:
    compiled = nlc.compile(small(name))
    torch.manual_seed(0)
    model = compiled.model().double()
    optimizer = compiled.optimizer(model)
    nested = name == "cms_nested"
    hand = ByHand(
        {n: value.detach().clone() for n, value in model.named_parameters()},
        NESTED if nested else {},
    )
    dims = dict(compiled.system.dims) | {v.name: v.chunk for v in compiled.system.levels}
    for step in range(9):
        tokens, targets = draw_tokens(5, step), draw_tokens(5, 100 + step)
        logits, _ = model(tokens)
        model.loss(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        p = {n: value.requires_grad_() for n, value in hand.p.items()}
        loss = cross_entropy(MODELS[name](p, tokens, dims)[0], targets)
        gradients = torch.autograd.grad(loss, list(p.values()), allow_unused=True)
        pairs = zip(p.items(), gradients, strict=True)
        found = {n: torch.zeros_like(v) if g is None else g for (n, v), g in pairs}
        hand.p = {n: value.detach() for n, value in p.items()}
        hand.step(passed_on(found) if nested else found)
        for n, value in model.named_parameters():
            close(value.detach(), hand.p[n], f"{n} after step {step}", 1e-9)


def learner(name: str) -> Learner:
    settings = SimpleNamespace(seed=0, device="cpu")
    return Learner(SimpleNamespace(settings=settings), nlc.compile(small(name)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cms", "cms_nested"])
def test_training_moves_each_level_at_its_own_period(name: str) -> None:
    one = learner(name)
    moves: dict[str, list[int]] = {"F_1": [], "F_2": [], "F_3": []}
    for step in range(1, 9):
        before = {n: value.detach().clone() for n, value in one.model.named_parameters()}
        one.learn(examples(step))
        for label_ in moves:
            names = [n for n in before if label(n) == label_]
            after = dict(one.model.named_parameters())
            if any(not torch.equal(before[n], after[n]) for n in names):
                moves[label_].append(step)
            if name == "cms_nested" and label_ in NESTED and step % NESTED[label_][1] == 0:
                for n in names:
                    assert torch.equal(after[n], after[n.replace(label_, NESTED[label_][0])])
    assert moves == {"F_1": [*range(1, 9)], "F_2": [2, 4, 6, 8], "F_3": [4, 8]}


def test_a_run_that_begins_anew_goes_on_exactly_where_it_was() -> None:
    one = learner("cms_nested")
    for step in range(3):
        one.learn(examples(step))
    model = {n: value.clone() for n, value in one.model.state_dict().items()}
    state = one.optimizer.state_dict()
    other = learner("cms_nested")
    other.model.load_state_dict(model)
    other.optimizer.load_state_dict(state)
    for step in range(3, 8):
        one.learn(examples(step))
        other.learn(examples(step))
    for n, value in other.model.state_dict().items():
        assert torch.equal(value, one.model.state_dict()[n]), n


def examples(step: int) -> Examples:
    return Examples(draw_tokens(5, step), draw_tokens(5, 100 + step))


WRONG = [
    ("through   stop", "through   full", "NL0514", "pass through them"),
    ("    through   stop\n", "", "NL0514", "would go back over all steps"),
    ("every 16 steps\n    through", "every 16 tokens\n    through", "NL0205", "counts steps"),
    ("every 16 steps\n    through", "every 6 steps\n    through", "NL0205", "multiple of 4"),
    ("every 16 steps\n    through", "every 32 steps\n    through", "NL0205", "two resets"),
    ("reset     every 4 steps", "reset     every 3 steps", "NL0205", "two resets"),
    ("init      from F_3", "init      learned", "NL0514", "does not belong"),
    ("weights F_3 : mlp(d -> hidden -> d)", "weights F_3 : mlp(d -> d -> d)", "NL0510", "shapes"),
    ("weights F_3 : mlp(d", "weights F_3[heads] : mlp(d", "NL0510", "shapes"),
    (
        "F_2 : mlp(d -> hidden -> d) at slower",
        "F_2 : mlp(d -> hidden -> d) at slowest",
        "NL0205",
        "",
    ),
]


@pytest.mark.parametrize("old, new, code, words", WRONG)
def test_what_cannot_begin_anew_is_refused(old: str, new: str, code: str, words: str) -> None:
    text = (SPECS / "cms_nested.nl").read_text("utf-8")
    assert old in text
    with pytest.raises(SpecError) as caught:
        nlc.parse(text.replace(old, new, 1))
    found = caught.value.diagnostics
    assert [d.code for d in found][:1] == [code]
    told = " ".join(
        [found[0].title, found[0].hint or "", *(label.text for label in found[0].labels)]
    )
    assert words in told, told
