"""Kernels in Triton's interpreter, in a process of its own: `python -m tests.kernels.interpreted`.

In: names of cases, as arguments. Out: one line of JSON for each: what was compared, and the largest
error of each kind as an RMS ratio to emitted PyTorch in float64, which is held against the
reference interpreter elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

# before triton is imported
os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor, nn

from nlc.compiled import Compiled, compile_system
from nlc.ir.system import System
from tests.references.specs import resolve
from tests.unit.codegen.agree import flat, randomised, streams, total


def ratio(ours: Tensor, truth: Tensor) -> float:
    """The error relative to the size of what is true."""
    if not truth.numel():
        return 0.0
    error = (ours.double() - truth.double()).square().mean().sqrt()
    return float(error / truth.double().square().mean().sqrt().clamp_min(1e-6))


def tensors(outputs: Any, state: Any) -> list[Tensor]:
    """All tensors of a result."""
    leaves = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*leaves, *(v for v in flat(state).values() if isinstance(v, Tensor))]


def both(system: System, name: str) -> tuple[nn.Module, nn.Module, Compiled]:
    """A block with kernels in float32, and one of plain PyTorch in float64."""
    ours = compile_system(system, "triton")
    assert ours.kernels_source, "no memory has kernels"
    torch.manual_seed(0)
    mine = randomised(ours.block(name).double())
    truth = compile_system(system, "torch").block(name).double()
    truth.load_state_dict(mine.state_dict())
    return mine.float(), truth, ours


def compare(system: System, tokens: int, name: str = "mixer") -> dict[str, float]:
    """Outputs, states and gradients of two calls, the second of which goes on; and cuts."""
    mine, truth, _ = both(system, name)
    xs = [x.detach() for x in streams(system, name, tokens)]

    def run(module: nn.Module, kind: torch.dtype) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        inputs = [x.to(kind).requires_grad_() for x in xs]
        first, state = module(*inputs)
        second, after = module(*(x[:, :5] for x in inputs), state=state)
        found = [*tensors(first, {}), *tensors(second, after)]
        wanted = [*inputs, *module.parameters()]
        loss = total(first, {}) + total(second, after)
        loss = loss + sum(0 * value.sum() for value in wanted)
        return found, torch.autograd.grad(loss, wanted)

    (ours, our_grads), (theirs, true_grads) = run(mine, torch.float32), run(truth, torch.float64)
    errors = {
        "values": max(map(ratio, ours, theirs)),
        "gradients": max(map(ratio, our_grads, true_grads)),
    }
    with torch.no_grad():
        whole = tensors(*truth(*xs))
        pieces = [x.float() for x in xs]
        cut = []
        for at in (1, tokens // 2):
            left, state = mine(*(x[:, :at] for x in pieces))
            right, state = mine(*(x[:, at:] for x in pieces), state=state)
            lefts, rights = (y if isinstance(y, tuple) else (y,) for y in (left, right))
            joined = [torch.cat(pair, 1) for pair in zip(lefts, rights, strict=True)]
            cut.append(max(map(ratio, [*joined, *tensors((), state)], whole)))
        errors["cuts"] = max(cut)
    return errors


def cases() -> dict[str, Any]:
    """Everything that can be asked for."""
    from tests.kernels import cases as found
    from tests.kernels import layer_cases, loops, windows

    return {**found.CASES, **layer_cases.CASES, **loops.CASES, **windows.CASES}


def run(names: list[str]) -> Iterator[dict[str, Any]]:
    """Run cases."""
    known = cases()
    for name in names:
        if name.startswith("random:"):
            from tests.kernels.cases import random_case

            yield {"case": name, **random_case(int(name.removeprefix("random:")))}
        elif name.startswith("step:random:"):
            from tests.kernels.cases import step_random

            yield {"case": name, **step_random(int(name.removeprefix("step:random:")))}
        elif name.startswith(("loop:random:", "scan:random:", "window:random:")):
            from tests.kernels import loops, windows

            kind, _, seed = name.split(":")
            yield {"case": name, **{**loops.RANDOM, **windows.RANDOM}[kind](int(seed))}
        else:
            yield {"case": name, **known[name]()}


def text_case(text: str, tokens: int) -> dict[str, float]:
    """Compare a spec given as text."""
    return compare(resolve(text), tokens)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in run(sys.argv[1:]):
        print(json.dumps(line), flush=True)
