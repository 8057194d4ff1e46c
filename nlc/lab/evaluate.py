"""How well a model predicts a text, or answers a task.

In: a model, and bytes or examples. Out: bits per byte; answers right and wrong. Changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nlc.lab.data import windows
from nlc.lab.tasks import Examples

BYTES = 256

# tokens that are read in one pass where a task is measured
TOKENS = 4096


def predict(model: nn.Module, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return logits and targets where something is asked.

    They are [batch, length, vocab] and [batch, length] where that is everywhere, else all answers
    in one row: [1, asked, vocab] and [1, asked].
    """
    device = next(model.parameters()).device
    inputs, targets = examples.inputs.to(device), examples.targets.to(device)
    logits, _ = model(inputs)
    asked = examples.asked.to(device)
    if bool(asked.all()):
        return logits, targets
    return logits[asked][None], targets[asked][None]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of the targets, in nats."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, data: Tensor, batch: int, length: int, limit: int | None = None
) -> float:
    """Average over the text's windows (the first `limit` bytes of them), each read from scratch."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for window in windows(data, batch, length, limit):
        logits, targets = predict(model, Examples(window[:, :-1], window[:, 1:]))
        total += float(cross_entropy(logits, targets)) * targets.numel()
        count += targets.numel()
    model.train(was_training)
    return total / count / math.log(2)


@dataclass(frozen=True)
class Answers:
    """How a task was answered: `right` of `asked`, `whole` of `sequences` without a mistake.

    `guess` is the share of the most frequent answer: what answering always the same would give.
    `chosen` counts answers that are right among given choices.
    """

    asked: int
    right: int
    sequences: int
    whole: int
    bits: float
    guess: float
    chosen: int = 0

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.asked

    @property
    def exact(self) -> float:
        """The share of sequences that are right from beginning to end."""
        return self.whole / self.sequences

    def as_dict(self) -> dict[str, Any]:
        """Return the measurement as a line of `metrics.jsonl` has it."""
        return {"held_out": self.bits, "accuracy": self.accuracy, "exact": self.exact}


@torch.no_grad()
def answers(model: nn.Module, examples: Examples, choices: range | None = None) -> Answers:
    """Ask a model, each sequence from scratch; right is the answer where it is the likeliest.

    `choices` are tokens among which the likeliest is taken besides.
    """
    was_training = model.training
    model.eval()
    nats, right, whole, chosen = 0.0, 0, 0, 0
    rows = max(1, TOKENS // examples.inputs.shape[1])
    for first in range(0, len(examples), rows):
        piece = Examples(
            examples.inputs[first : first + rows], examples.targets[first : first + rows]
        )
        logits, targets = predict(model, piece)
        nats += float(cross_entropy(logits, targets)) * targets.numel()
        hits = (logits.argmax(-1) == targets).flatten().cpu()
        wrong = torch.zeros_like(piece.asked)
        wrong[piece.asked] = ~hits
        right += int(hits.sum())
        whole += int((~wrong.any(1)).sum())
        if choices is not None:
            among = logits[..., choices.start : choices.stop].argmax(-1) + choices.start
            chosen += int((among == targets).sum())
    model.train(was_training)
    wanted = examples.targets[examples.asked]
    asked = len(wanted)
    guess = int(torch.bincount(wanted).max()) / asked
    return Answers(asked, right, len(examples), whole, nats / asked / math.log(2), guess, chosen)
