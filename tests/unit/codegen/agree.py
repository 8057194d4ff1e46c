"""Compare an emitted block with the interpreter: outputs, states, all gradients; cuts and steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nlc.compiled import Compiled, compile_system
from nlc.ir.system import System


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a state by their dotted names."""
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= flat(inner, f"{prefix}{key}|")
        return found
    return {prefix: value}


def randomised(module: nn.Module, seed: int = 1) -> nn.Module:
    """Move every parameter a little, so that zeros do not hide anything."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def close(a: Any, b: Any, what: str, tolerance: float = 1e-10) -> None:
    """Compare two leaves."""
    if not isinstance(a, Tensor):
        assert a == b, what
        return
    assert a.shape == b.shape, (what, a.shape, b.shape)
    scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
    error = float((a - b).detach().abs().max()) / scale if b.numel() else 0.0
    assert error < tolerance, f"{what}: {error:.2e}"


def same_states(a: Any, b: Any, what: str) -> None:
    """Compare two states."""
    left, right = flat(a), flat(b)
    assert left.keys() == right.keys(), (what, sorted(left), sorted(right))
    for name in left:
        close(left[name], right[name], f"{what}: state {name}")


def like_truth(ours: Any, truth: Any, slots: set[str]) -> Any:
    """The truth without chunk starts and pasts that emitted code does without."""
    if not isinstance(truth, dict):
        return truth
    return {
        name: like_truth(ours.get(name), value, slots)
        for name, value in truth.items()
        if name in ours or not (name.endswith(".start") or name in slots)
    }


def total(outputs: Any, state: Any) -> Tensor:
    """A number that depends on everything."""
    leaves = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [*leaves, *(v for v in flat(state).values() if isinstance(v, Tensor))]
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in leaves]
    return sum((v * w).sum() for v, w in zip(leaves, weights, strict=True))  # type: ignore[return-value]


def streams(system: System, name: str, tokens: int, rows: int = 2) -> list[Tensor]:
    """Random inputs of a block."""
    torch.manual_seed(0)
    found = []
    for entry in system.block(name).inputs:
        shape = (rows, tokens, *(axis.size for axis in entry.shape))
        x = torch.randn(shape, dtype=torch.float64)
        found.append(x.requires_grad_())
    return found


def agree(system: System, name: str = "mixer", tokens: int = 11, target: str = "torch") -> Compiled:
    """Hold an emitted block against the interpreter."""
    compiled = compile_system(system, target)
    module = randomised(compiled.block(name).double())
    xs = streams(system, name, tokens)
    outputs, state = module(*xs)
    truth, true_state = compiled.reference(name, module)(*xs)
    true_state = like_truth(state, true_state, {h.slot for h in system.block(name).histories})
    pairs = zip(
        outputs if isinstance(outputs, tuple) else (outputs,),
        truth if isinstance(truth, tuple) else (truth,),
        strict=True,
    )
    for a, b in pairs:
        close(a, b, "output")
    same_states(state, true_state, "whole")
    wanted = [*xs, *module.parameters()]
    ours, theirs = (
        # what nothing depends on has a gradient of 0
        torch.autograd.grad(total(*found) + sum(0 * value.sum() for value in wanted), wanted)
        for found in ((outputs, state), (truth, true_state))
    )
    names = [*(f"input {i}" for i in range(len(xs))), *dict(module.named_parameters())]
    for label, a, b in zip(names, ours, theirs, strict=True):
        close(a, b, f"gradient of {label}")
    cuts(module, xs, outputs, state)
    return compiled


def cuts(module: nn.Module, xs: list[Tensor], outputs: Any, state: Any) -> None:
    """Any cut of the sequence, and single steps, give the same."""
    tokens = xs[0].shape[1]
    one = outputs[0] if isinstance(outputs, tuple) else outputs
    with torch.no_grad():
        for at in (0, 1, tokens // 2, tokens):
            left, middle = module(*(x[:, :at] for x in xs))
            right, after = module(*(x[:, at:] for x in xs), middle)
            first = [y[0] if isinstance(y, tuple) else y for y in (left, right)]
            close(torch.cat(first, 1), one, f"cut at {at}")
            same_states(after, state, f"cut at {at}")
        half = tokens // 2
        after = None
        ys = []
        if half:
            left, after = module(*(x[:, :half] for x in xs))
            ys = list((left[0] if isinstance(left, tuple) else left).unbind(1))
        for t in range(half, tokens):
            y, after = module.step(*(x[:, t] for x in xs), after)
            ys.append(y[0] if isinstance(y, tuple) else y)
        close(torch.stack(ys, 1), one, "steps")
        same_states(after, state, "steps")
        y, after = None, None
        for t in range(tokens):
            y, after = module.step(*(x[:, t] for x in xs), state=after)
        same_states(after, state, "steps from the start")
        alone, _ = module(*(x[1:] for x in xs))
        close((alone[0] if isinstance(alone, tuple) else alone), one[1:], "rows")
