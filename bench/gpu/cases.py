"""What is measured on a GPU: bare memories by their specs, at three shapes, with their streams.

Out: `CASES` in the order in which they are measured. Vectors are in bfloat16, gates in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import others
from bench.cores import CORES, GLA, KDA, KEPT, Core, draw_stream
from bench.gpu import ops
from nlc.ir.normal_form import Affine


class Shape(NamedTuple):
    """Sequences, tokens, heads, and the size of keys and values."""

    B: int
    T: int
    H: int
    d: int

    def __str__(self) -> str:
        return f"({self.B}, {self.T}, {self.H}, {self.d})"


SHAPES = (Shape(8, 2048, 16, 128), Shape(1, 32768, 16, 128), Shape(32, 512, 8, 64))
# numbers that become gates, and steps: as in mixed precision, these stay in float32
WIDE = ("decay", "decays", "theta", "eta", "alpha")
EXP = torch.exp


@dataclass(frozen=True)
class Case:
    """A core, and how fla's operation takes its streams: `turned` makes these of the core's.

    `name` is a function of `ops`; "" where fla has none.
    """

    core: Core
    name: str = ""
    turned: Callable[..., tuple[Tensor, ...]] = lambda *streams: streams

    @property
    def title(self) -> str:
        """The title of its rows."""
        return self.core.name

    def draw(self, shape: Shape, device: str, tokens: bool = True) -> list[Tensor]:
        """Draw the streams on a device, [B, T, H, (d)], or those of a token [B, H, (d)]."""
        front = (shape.B, shape.T) if tokens else (shape.B,)
        found = []
        for name in self.core.streams:
            x = draw_stream(name, *front, heads=shape.H, size=shape.d, device=device)
            found.append(x if name in WIDE else x.bfloat16())
        return found

    def block(self, shape: Shape, device: str) -> nn.Module:
        """Compile the core with kernels."""
        compiled = self.core.compiled(shape.H, shape.d, "triton")
        return compiled.block("core").to(device)

    def ours(self, shape: Shape, device: str) -> Callable[..., Tensor]:
        """Make the function of the streams that emitted code is."""
        block: Any = self.block(shape, device)
        return lambda *streams: block(*streams)[0]

    @property
    def theirs(self) -> Callable[..., Tensor] | None:
        """Fla's function, of the streams that `turned` gives."""
        return getattr(ops, self.name) if self.name else None

    def truth(self, streams: Sequence[Tensor]) -> Tensor:
        """Run the memory in float64, token by token, as it is written by hand."""
        given = self.core.given([x.double() for x in streams])
        return others.loop(self.core.token, given, self.core.count)

    def form(self, shape: Shape) -> Affine:
        """The normal form of the memory."""
        (schedule,) = self.core.compiled(shape.H, shape.d, "triton").schedules.values()
        ((_, form),) = schedule.forms
        assert isinstance(form, Affine)
        return form


def _rwkv7(
    q: Tensor, w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, share: Tensor
) -> tuple[Tensor, ...]:
    # fla's layer has the logarithms of the gates in the type of the other streams
    return q, -0.606531 * torch.sigmoid(w), k, v, -kappa, share * kappa


def _kept(*streams: Tensor) -> tuple[Tensor, ...]:
    return (*streams[:-1], -0.606531 * torch.sigmoid(streams[-1].float()))


DELTA = ("q", "k", "v", "beta")
DIRECT = ("exp(decays)", EXP)
CASES: dict[str, Case] = {
    "deltanet": Case(CORES["deltanet"], "delta"),
    "gated_deltanet": Case(
        Core(
            "Gated DeltaNet", (*DELTA, "decay"), "M = g * M; M = M - beta * grad(at = M)",
            others.delta, gate=("exp(decay)", EXP), gate_of="decay",
        ),
        "gated_delta",
    ),
    "rwkv7": Case(CORES["rwkv7"], "rwkv7", _rwkv7),
    "gla": Case(
        Core(
            "GLA", ("q", "k", "v", "decays"), GLA, others.gla, gate=DIRECT, gate_of="decays",
        ),
        "gla",
    ),
    "kda": Case(
        Core("KDA", (*DELTA, "decays"), KDA, others.kda, gate=DIRECT, gate_of="decays"), "kda",
    ),
    "retnet": Case(
        Core(
            "RetNet", ("q", "k", "v"), "M = g * M + outer(v, k)", others.retention,
            gate=("1 - 2^(-5 - index(heads))", EXP), gate_of="",
        ),
        "retention",
    ),
    "titans_linear": Case(CORES["titans_linear"]),
    # the same memories, with gates that are proved to stay away from 0
    "gla_kept": Case(Core("GLA", ("q", "k", "v", "w"), GLA, others.gla, gate=KEPT), "gla", _kept),
    "kda_kept": Case(Core("KDA", (*DELTA, "w"), KDA, others.kda, gate=KEPT), "kda", _kept),
}  # fmt: skip
# what is shown beside each other: what is slower, and what it is held against
PAIRS = (("titans_linear", "gated_deltanet"),)
