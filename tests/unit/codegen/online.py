"""Compare an emitted model that learns while it reads with the interpreter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlc.compiled import Compiled, compile_system
from nlc.ir.system import System
from tests.unit.codegen.agree import close, flat, like_truth, randomised, same_states, total


def tokens(length: int, vocab: int, rows: int = 2) -> Tensor:
    """Random tokens."""
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(2))


def numbers(state: Any) -> dict[str, Tensor]:
    """The leaves of a state that a gradient can reach."""
    found = flat(state)
    return {n: v for n, v in found.items() if isinstance(v, Tensor) and v.is_floating_point()}


def first(result: tuple[Any, Any]) -> tuple[Tensor, Any]:
    """The logits of a model whose objective reads other streams too."""
    outputs, state = result
    return (outputs[0] if isinstance(outputs, tuple) else outputs), state


def agree_model(system: System, length: int = 13) -> Compiled:
    """Hold outputs, states, all gradients, cuts, steps and rows against the interpreter."""
    compiled = compile_system(system)
    model = randomised(compiled.model().double())
    x = tokens(length, system.model.vocab)
    logits, state = first(model(x))
    truth, true_state = compiled.reference(None, model)(x)
    slots = {h.slot for block in system.blocks for h in block.histories}
    true_state = like_truth(state, true_state, slots)
    close(logits, truth, "logits")
    same_states(state, true_state, "whole")
    wanted = dict(model.named_parameters())
    nothing = sum(0 * value.sum() for value in wanted.values())
    ours, theirs = (
        torch.autograd.grad(
            total(y, numbers(s)) + nothing, list(wanted.values()), retain_graph=True
        )
        for y, s in ((logits, state), (truth, true_state))
    )
    for name, a, b in zip(wanted, ours, theirs, strict=True):
        close(a, b, f"gradient of {name}", 1e-9)
    with torch.no_grad():
        _cuts(model, x, logits, state)
    _gradient_of_a_cut(model, x, logits, list(wanted.values()))
    return compiled


def _cuts(model: Any, x: Tensor, logits: Tensor, state: Any) -> None:
    for at in range(x.shape[1] + 1):
        left, middle = first(model(x[:, :at]))
        right, after = first(model(x[:, at:], middle))
        close(torch.cat([left, right], 1), logits, f"cut at {at}")
        same_states(after, state, f"cut at {at}")
    after, found = None, []
    for t in range(x.shape[1]):
        y, after = first(model.step(x[:, t], after))
        found.append(y)
    close(torch.stack(found, 1), logits, "steps")
    same_states(after, state, "steps")
    alone, _ = first(model(x[1:]))
    close(alone, logits[1:], "rows")


def _gradient_of_a_cut(model: Any, x: Tensor, logits: Tensor, wanted: list[Tensor]) -> None:
    half = x.shape[1] // 2
    left, middle = first(model(x[:, :half]))
    right, _ = first(model(x[:, half:], middle))
    nothing = sum(0 * value.sum() for value in wanted)
    ours, theirs = (
        torch.autograd.grad((y**2).sum() + nothing, wanted, retain_graph=True)
        for y in (torch.cat([left, right], 1), logits)
    )
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, "gradient through a cut", 1e-9)
