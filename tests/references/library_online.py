"""Continuum memory systems that learn while they read, by hand: everything is read again each time.

A piece of the shortest window at a time: the whole sequence so far goes through the model, every
token through the MLPs of the windows it lies in, of which each window has its own; what a window
ends with is moved by the gradient of its tokens' losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references.layers import linear, rmsnorm, within
from tests.references.mixers import Dims, Mixed, Mixer, P
from tests.references.titans import gelu

PARTS = ("layer1.weight", "layer2.weight")
LEVELS = {"F_1": "beat", "F_2": "phrase", "F_3": "page"}
# an MLP of a pass: (pass, name); its values in the windows so far, one a sequence
Key = tuple[int, str]
Windows = dict[Key, list[tuple[Tensor, Tensor]]]


def continuum(mixer: str, mix: Mixer, unembed: str, rates: tuple[float, float, float]) -> Any:
    """x = x + mix(rmsnorm(x)), then three MLPs that learn; four times over."""

    def model(p: P, tokens: Tensor, dims: Dims) -> Mixed:
        lengths = {name: dims[f"{level} period"] for name, level in LEVELS.items()}
        windows: Windows = {}
        logits: list[Tensor] = []
        states: dict[str, Any] = {}
        for at in range(0, tokens.shape[1], lengths["F_1"]):
            for name, length in lengths.items():
                if at % length == 0 and at:
                    _move(windows, name, logits, tokens, at, length, rates)
            for turn in range(4):
                for name, length in lengths.items():
                    if at % length == 0:
                        _begin(windows, (turn, name), p, tokens.shape[0])
            seen = tokens[:, : at + lengths["F_1"]]
            whole, states = _read(p, seen, dims, mixer, mix, unembed, windows, lengths)
            logits += whole[:, at:].unbind(1)
        for turn in range(4):
            last = {name: windows[turn, name][-1] for name in LEVELS}
            states[str(turn)]["cms"] = {
                name: dict(zip(PARTS, value, strict=True)) for name, value in last.items()
            }
        state = {"repeat": states, "position": tokens.shape[1]}
        return torch.stack(logits, 1), state

    return model


def _begin(windows: Windows, key: Key, p: P, rows: int) -> None:
    """A window's MLP is a point of its own; the first one begins with the parameters."""
    turn, name = key
    own = within(p, f"repeat.{turn}.cms.{name}.")
    known = windows.setdefault(key, [])
    # where there was a window before, what it moved to has been put behind it
    one, two = known.pop() if known else (own[n].expand(rows, -1, -1) for n in PARTS)
    known.append((one.clone(), two.clone()))


def _move(
    windows: Windows,
    name: str,
    logits: list[Tensor],
    tokens: Tensor,
    at: int,
    length: int,
    rates: tuple[float, float, float],
) -> None:
    """W <- W - lr dL/dW, L the sum over the window that ends before token `at`."""
    losses = [
        -logits[t].log_softmax(-1).gather(-1, tokens[:, t + 1 : t + 2]).sum()
        for t in range(at - length, at)
    ]
    keys = [(turn, name) for turn in range(4)]
    points = [part for key in keys for part in windows[key][-1]]
    slopes = torch.autograd.grad(sum(losses), points, create_graph=True)  # type: ignore[arg-type]
    rate = rates[list(LEVELS).index(name)]
    for i, key in enumerate(keys):
        one, two = windows[key][-1]
        windows[key].append((one - rate * slopes[2 * i], two - rate * slopes[2 * i + 1]))


def _read(
    p: P,
    tokens: Tensor,
    dims: Dims,
    mixer: str,
    mix: Mixer,
    unembed: str,
    windows: Windows,
    lengths: dict[str, int],
) -> tuple[Tensor, dict[str, Any]]:
    x, states = p["embed.weight"][tokens], {}
    for turn in range(4):
        y, state = mix(within(p, f"repeat.{turn}.{mixer}."), rmsnorm(x), dims)
        x = x + y
        for name, length in lengths.items():
            x = x + _answer(windows[turn, name], length, rmsnorm(x))
        states[str(turn)] = {mixer: state}
    return linear(p, unembed, rmsnorm(x)), states


def _answer(known: list[tuple[Tensor, Tensor]], length: int, x: Tensor) -> Tensor:
    """Every token by the MLP of its window."""
    pieces = x.split(length, 1)
    return torch.cat(
        [gelu(y @ one.mT) @ two.mT for y, (one, two) in zip(pieces, known, strict=True)], 1
    )
