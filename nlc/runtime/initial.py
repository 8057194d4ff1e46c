"""Initial values of the parameters: drawn in their order, as the emitted modules draw them.

In: a system and a block of it, or its model. Out: a tensor for each parameter, of torch's default
type: with the same seed the same numbers as `reset_parameters` of what is emitted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlc.ir.shape import sizes
from nlc.ir.system import System
from nlc.runtime.evaluate import evaluate
from nlc.runtime.frame import Run, make_frame
from nlc.runtime.layout import Parameter, parameters
from nlc.runtime.maps import front
from nlc.runtime.reference import module_of


def initial_parameters(
    system: System, block: str | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Draw the parameters of a block, or of the model, by name."""
    torch.manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for parameter in parameters(system, module_of(system, block)):
        drawn[parameter.name] = _draw(system, parameter, drawn)
    return drawn


def _draw(system: System, parameter: Parameter, drawn: dict[str, Tensor]) -> Tensor:
    initial, value = parameter.initial, torch.empty(sizes(parameter.shape))
    match initial.kind:
        case "uniform":
            bound = 1 / math.sqrt(initial.value)
            return value.uniform_(-bound, bound)
        case "normal":
            return value.normal_(0.0, initial.value)
        case "constant":
            return value.fill_(initial.value)
        case "expr":
            assert initial.expr is not None
            run = Run(system, drawn, 1, tracks=False).within(parameter.prefix)
            result = evaluate(initial.expr, make_frame(run, 0, {}))
            return value.copy_(front(result, value.dim())[0].expand(value.shape))
        case "source":
            part = parameter.name.removeprefix(parameter.prefix).partition(".")[2]
            source = parameter.prefix + initial.source + (f".{part}" if part else "")
            return value.copy_(drawn[source])
