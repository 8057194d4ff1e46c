"""How well a model predicts a text.

In: a model and bytes. Out: bits per byte. Changes nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nlc.lab.data import windows
from nlc.lab.faults import LabError

BYTES = 256


def loss_of(model: nn.Module, window: Tensor) -> Tensor:
    """Return the mean cross entropy in nats of predicting each next byte of [batch, length + 1]."""
    logits, _ = model(window[:, :-1])
    if logits.shape[-1] < BYTES:
        raise LabError(
            f"the model's vocab is {logits.shape[-1]}, and a text has {BYTES} different bytes",
            "`vocab bytes` in the model, or --set model.vocab=256",
        )
    return functional.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())


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
        predicted = window[:, 1:].numel()
        total += float(loss_of(model, window.to(device))) * predicted
        count += predicted
    model.train(was_training)
    return total / count / math.log(2)
