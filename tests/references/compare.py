"""Hold the reference interpreter against a loop written by hand: outputs, states, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nlc.ir.system import System
from nlc.runtime.initial import initial_parameters
from nlc.runtime.reference import Reference

Hand = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, dict[str, Any]]]


def draw_parameters(system: System, block: str | None, seed: int = 0) -> dict[str, Tensor]:
    """Initial values, moved a little so that none is zero, in float64 and with gradients."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in initial_parameters(system, block, seed).items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        found[name] = (value.double() + 0.2 * noise).requires_grad_()
    return found


def leaves(state: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors of a nested state by their paths; counters are left out."""
    if isinstance(state, Tensor):
        return {path: state}
    if isinstance(state, Mapping):
        found: dict[str, Tensor] = {}
        for name, value in state.items():
            found |= leaves(value, f"{path}/{name}")
        return found
    return {}


def close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 1e-10) -> None:
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    if not theirs.is_floating_point():
        assert ours.equal(theirs), what
        return
    error = (ours - theirs).pow(2).mean().sqrt() if ours.numel() else torch.zeros(())
    scale = theirs.pow(2).mean().sqrt().clamp(min=1e-3) if theirs.numel() else torch.ones(())
    assert bool(error <= tolerance * scale), (what, float(error), float(scale))


def project(values: Mapping[str, Tensor], seed: int = 1) -> Tensor:
    """A number that depends on every entry, so that its gradients compare all of them."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for name in sorted(values):
        weight = torch.randn(values[name].shape, generator=generator, dtype=torch.float64)
        total = total + (values[name] * weight).sum()
    return total


def gradients(total: Tensor, of: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(total, list(of.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if g is None else g
        for (name, value), g in zip(of.items(), found, strict=True)
    }


def draw_input(system: System, block: str, rows: int, length: int, seed: int = 2) -> Tensor:
    shape = [axis.size for axis in system.block(block).inputs[0].shape]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, length, *shape), generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def compare(
    system: System, block: str, hand: Hand, rows: int = 3, length: int = 7, seed: int = 0
) -> None:
    """Run both on the same parameters and input; the hand's states may be fewer."""
    p = draw_parameters(system, block, seed)
    x = draw_input(system, block, rows, length)
    out, state = Reference(system, p, block)(x)
    wanted, wanted_state = hand(p, x)
    close(out, wanted, "out")
    states, wanted_states = leaves(state), leaves(wanted_state)
    assert set(wanted_states) <= set(states), (set(wanted_states), set(states))
    for name, value in wanted_states.items():
        close(states[name], value, name)
    chosen = {name: states[name] for name in wanted_states}
    ours = gradients(project({"out": out, **chosen}), {**p, "x": x})
    theirs = gradients(project({"out": wanted, **wanted_states}), {**p, "x": x})
    for name, value in theirs.items():
        close(ours[name], value, f"gradient of {name}")


def compare_cuts(system: System, block: str, length: int = 7, rows: int = 2) -> None:
    """Any cut of the sequence, and token by token, give what one pass gives."""
    p = draw_parameters(system, block)
    x = draw_input(system, block, rows, length)
    run = Reference(system, p, block)
    whole, last = run(x)
    for cut in range(length + 1):
        first, state = run(x[:, :cut])
        second, after = run(x[:, cut:], state=state)
        close(torch.cat([first, second], dim=1), whole, f"cut at {cut}")
        same_state(after, last)
    state, steps = None, []
    for t in range(length):
        y, state = run.step(x[:, t], state)
        steps.append(y)
    close(torch.stack(steps, dim=1), whole, "step by step")
    same_state(state, last)


def same_state(ours: Any, theirs: Any) -> None:
    a, b = leaves(ours), leaves(theirs)
    assert set(a) == set(b)
    for name, value in b.items():
        close(a[name], value, name)


def compare_rows(system: System, block: str, length: int = 5) -> None:
    """Each row of a batch is as if it were alone."""
    p = draw_parameters(system, block)
    x = draw_input(system, block, 3, length)
    run = Reference(system, p, block)
    whole, _ = run(x)
    for row in range(3):
        close(run(x[row : row + 1])[0], whole[row : row + 1], f"row {row}")
