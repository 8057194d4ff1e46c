"""How well a model predicts a text.

In: a model and bytes. Out: bits per byte. Changes nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nlc.lab.data import windows

BYTES = 256


def predict(model: nn.Module, window: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets for each next byte of [batch, length + 1]."""
    logits, _ = model(window[:, :-1])
    return logits, window[:, 1:]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of the targets, in nats."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, data: Tensor, batch: int, length: int, limit: int | None = None
) -> float:
    """Average over the text's windows (the first `limit` bytes of them), each read from scratch."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for window in windows(data, batch, length, limit):
        logits, targets = predict(model, window.to(device))
        total += float(cross_entropy(logits, targets)) * targets.numel()
        count += targets.numel()
    model.train(was_training)
    return total / count / math.log(2)
