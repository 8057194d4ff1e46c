"""Compare an emitted optimizer with the interpreter for rules: values, states, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import nlc
from nlc.compiled import Compiled
from nlc.ir.rule import Motion
from nlc.ir.system import System
from nlc.library import shipped_rules
from nlc.optimizers import rule_as_optimizer
from nlc.runtime.rules import Mover, RuleReference
from nlc.semantics.motions import motion_of, shape_of

SHAPES = {"a": (3, 4), "b": (3, 4), "c": (5, 2), "d": (4,), "e": (), "f": (2, 3, 4), "g": (2, 3)}
# axes in front that are copies, where these are not all but the last two
COPIES = {"g": 1}
Again = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def system_of(rules: str) -> System:
    """A system with rules and nothing to move."""
    return nlc.parse(f"system rules\ndims {{ n = 3 }}\n{rules}")


def motion_for(system: System, name: str, sizes: tuple[int, ...]) -> Motion:
    """The motion of a rule for one parameter's own sizes."""
    rules = {**shipped_rules(), **{rule.name: rule for rule in system.rules}}
    rule = rule_as_optimizer(system, rules[name])
    kind = ("scalar", "vector", "matrix")[len(sizes)]
    if kind in rule.as_rows:
        sizes = (1,) * (2 - len(sizes)) + sizes
    found = motion_of(system, shipped_rules(), rules[name], shape_of(sizes))
    assert isinstance(found, Motion), found
    return found


def reference(
    system: System, name: str, arguments: Mapping[str, float], values: Mapping[str, Tensor],
    copies: Mapping[str, int] = COPIES, period: int = 1,
) -> RuleReference:  # fmt: skip
    """The interpreter over the same values."""
    own = {n: tuple(v.shape)[copies.get(n, max(v.ndim - 2, 0)) :] for n, v in values.items()}
    motions = {n: motion_for(system, name, sizes) for n, sizes in own.items()}
    axes = {n: len(sizes) for n, sizes in own.items()}
    begin = {n: v.detach().clone() for n, v in values.items()}
    return RuleReference(motions, dict(arguments), begin, axes, period)


def loss(values: Mapping[str, Tensor], turn: int) -> Tensor:
    """A loss that couples all parameters and changes with the turn."""
    total = torch.zeros((), dtype=torch.float64)
    whole = torch.zeros((), dtype=torch.float64)
    for i, (_, value) in enumerate(sorted(values.items())):
        places = torch.arange(value.numel(), dtype=torch.float64).view(value.shape)
        weight = torch.cos(places + turn + i)
        total = total + (weight * value).sin().sum() + 0.05 * value.square().sum()
        whole = whole + (weight * value).sum()
    return total + 0.1 * whole.square()


def gradients(values: Mapping[str, Tensor], turn: int) -> dict[str, Tensor]:
    """The gradients of the loss."""
    names = sorted(values)
    points = [values[n].detach().clone().requires_grad_() for n in names]
    found = torch.autograd.grad(loss(dict(zip(names, points, strict=True)), turn), points)
    return dict(zip(names, found, strict=True))


def start(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.nn.Parameter]:
    """Values to begin with."""
    torch.manual_seed(0)
    return {n: torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for n, s in shapes.items()}


def groups(values: Mapping[str, torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Param groups: one for each number of copies."""
    usual = [p for n, p in values.items() if n not in COPIES]
    found: list[dict[str, Any]] = [{"params": usual}] if usual else []
    return found + [
        {"params": [p], "lead": COPIES[n]} for n, p in values.items() if n in COPIES
    ]  # fmt: skip


def agree(
    rules: str, name: str, shapes: Mapping[str, tuple[int, ...]] = SHAPES, steps: int = 7,
    tolerance: float = 1e-11, keyed: tuple[str, ...] = (), **arguments: float,
) -> Compiled:  # fmt: skip
    """Hold an emitted rule against the interpreter, with a gradient missing now and then."""
    system = system_of(rules)
    compiled = nlc.compile(system)
    values = start(shapes)
    given_to: Any = nn.ParameterDict(values) if keyed else groups(values)
    optimizer: Any = compiled.rule(name)(given_to, **arguments)
    given = {k: v for k, v in optimizer.param_groups[0].items() if isinstance(v, int | float)}
    truth = reference(system, name, given, values)
    begin(optimizer, truth, values)
    for turn in range(steps):
        inputs = {n: torch.randn(3 + turn, SHAPES[n][-1], dtype=torch.float64) for n in keyed}
        missing = [n for i, n in enumerate(sorted(values)) if (i + turn) % 5 == 4]

        def closure(missing: list[str] = missing, turn: int = turn, inputs: Any = inputs) -> Tensor:
            optimizer.zero_grad()
            total = loss(values, turn)
            total.backward()  # type: ignore[no-untyped-call]
            for n in missing:
                values[n].grad = None
            for n in keyed:
                optimizer.inputs[values[n]] = [inputs[n][:2], inputs[n][2:]]
            return total

        def again(at: Mapping[str, Tensor], turn: int = turn) -> dict[str, Tensor]:
            return gradients(at, turn)

        here = gradients(truth.values, turn)
        truth.step({n: g for n, g in here.items() if n not in missing}, again, inputs)
        optimizer.step(closure)
        for n, p in values.items():
            same(p, truth.values[n], f"{n} after step {turn}", tolerance)
    for n, p in values.items():
        for cell, want in truth.state(n).items():
            have = cell_of(optimizer.state[p], cell)
            have = torch.as_tensor(have, dtype=torch.float64)
            want = want if isinstance(have, Tensor) and have.ndim else want.flatten()[0]
            same(have, want.view(have.shape), f"state {cell} of {n}", tolerance)
    trained = {n: p.detach().clone() for n, p in values.items()}
    optimizer.eval()
    for n, p in values.items():
        same(p, truth.evaluated(n).view(p.shape), f"{n} outside training", tolerance)
    optimizer.train()
    for n, p in values.items():
        assert torch.equal(p, trained[n]), n
    return compiled


def cell_of(kept: Mapping[str, Any], cell: str) -> Any:
    """A tensor of a state: `m`, or the part `layer1.weight` of `m`."""
    if cell in kept:
        return kept[cell]
    state = max((n for n in kept if cell.startswith(f"{n}.")), key=len)
    return kept[state][cell.removeprefix(f"{state}.")]


def begin(optimizer: Any, truth: RuleReference, values: Mapping[str, torch.nn.Parameter]) -> None:
    """Give the interpreter the values that the optimizer draws for its memories."""
    rule = type(optimizer)
    if all(not cell.draw for motion in truth.motions.values() for cell in motion.cells):
        return
    for n, p in values.items():
        axes = truth.axes[n]
        w = p.detach()
        if axes in rule.rows:
            w, axes = (w.unsqueeze(-2) if axes else w[..., None, None]), 2
        optimizer.state[p].update(rule.start(w, axes))
        mover = Mover(truth.motions[n], truth.arguments, truth.values[n], truth.axes[n])
        for cell in mover.motion.cells:
            if cell.draw:
                drawn = cell_of(optimizer.state[p], cell.name)
                mover.held[cell.name] = drawn.clone().view(mover.held[cell.name].shape)
        truth.movers[n] = mover


def same(a: Tensor, b: Tensor, what: str, tolerance: float = 1e-11) -> None:
    """Compare two tensors, relative to their size."""
    assert a.shape == b.shape, (what, a.shape, b.shape)
    if not a.numel():
        return
    scale = max(1.0, float(b.detach().abs().max()))
    error = float((a.detach() - b.detach()).abs().max()) / scale
    assert error < tolerance, f"{what}: {error:.2e}"
