"""The bare memories that are measured: specs, streams, and the same memory written by others.

Out: `CORES` by name. A core takes q, k, v and gates as streams, and has no parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from bench import fla, others
from nlc.compiled import Compiled

HEADS, SIZE = 4, 64

SPEC = """system core
dims {{ heads = {heads}, d_k = {size}, d_v = {size} }}
level fast every 1 token
level slow every 1 step
block core({inputs}) -> out[heads, d_v] {{
  {gates}
  memory M : linear(d_k -> d_v) at fast {{
    key k
    value v
    {states}
    update {{ {update} }}
  }}
  out = M(q)
}}
"""
# the streams that a core can have: their shapes and how they are drawn
KEYS = ("q", "k", "w", "kappa", "share", "decays")
SHAPES = dict.fromkeys(KEYS, "heads, d_k") | {"v": "heads, d_v"}
UNIT = ("q", "k", "kappa")
NORMAL = ("v", "w")
# a decay near one, a forgetting near zero, and logarithms of gates
SLOW: dict[str, Callable[[Tensor], Tensor]] = {
    "a": lambda x: 1 - 0.1 * x,
    "alpha": lambda x: 0.1 * x,
    "eta": lambda x: 0.9 * x,
    "decay": lambda x: torch.log(1 - 0.1 * x),
    "decays": lambda x: torch.log(1 - 0.5 * x),
}
# what the kinds of gates for each channel are called here
KEPT_AS = {"RelativeGates": "gates factored", "ChannelGates": "gates direct"}


@dataclass(frozen=True)
class Core:
    """One memory: its streams, equations, and the same by hand (one token) and by fla.

    `gate` makes of the stream `gate_of`, any numbers, the gates `g`, in the spec and in torch; the
    others are given them.
    """

    title: str
    streams: tuple[str, ...]
    update: str
    token: others.Token
    fla: Callable[..., Tensor] | None = None
    gate: tuple[str, Callable[[Tensor], Tensor]] | None = None
    states: str = ""
    gate_of: str = "w"

    @property
    def name(self) -> str:
        """The title, and how the compiler chose to keep the gates of channels."""
        (schedule,) = self.compiled().schedules.values()
        kept = {KEPT_AS[k.gates] for _, k in schedule.parts if k.gates in KEPT_AS}
        return ", ".join((self.title, *sorted(kept)))

    @property
    def count(self) -> int:
        """How many states there are."""
        return 2 if self.states else 1

    @cache  # noqa: B019
    def compiled(self, heads: int = HEADS, size: int = SIZE, target: str = "auto") -> Compiled:
        """Compile the core."""
        inputs = [f"{name}[{SHAPES.get(name, 'heads')}]" for name in self.streams]
        text = SPEC.format(
            heads=heads,
            size=size,
            inputs=", ".join(inputs),
            gates=f"g = {self.gate[0]}" if self.gate else "",
            states=self.states,
            update=self.update,
        )
        return nlc.compile(nlc.parse(text), target=target)

    def draw(self, *front: int) -> list[Tensor]:
        """Draw the streams, [*front, heads] or [*front, heads, size]."""
        return [draw_stream(name, *front) for name in self.streams]

    def given(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """What the others are given: the gates in the place of w."""
        if self.gate is None:
            return list(streams)
        pairs = zip(self.streams, streams, strict=True)
        return [self.gate[1](x) if name == self.gate_of else x for name, x in pairs]

    def runs(self) -> dict[str, Callable[..., Tensor]]:
        """Functions of the streams, nlc's first."""
        block = self.compiled().block("core")
        found: dict[str, Callable[..., Tensor]] = {
            "nlc": lambda *x: block(*x)[0],
            "loop": lambda *x: others.loop(self.token, self.given(x), self.count),
        }
        theirs = self.fla
        if theirs is not None and fla.installed():
            found["fla"] = lambda *x: theirs(*self.given(x))
        return found


def draw_stream(
    name: str, *front: int, heads: int = HEADS, size: int = SIZE, device: str = "cpu"
) -> Tensor:
    """Draw a stream, [*front, heads] or [*front, heads, size]."""
    shape = (*front, heads, *([size] if name in SHAPES else []))
    if name in UNIT:
        return F.normalize(torch.randn(shape, device=device), dim=-1)
    if name in NORMAL:
        return torch.randn(shape, device=device)
    return SLOW.get(name, torch.clone)(torch.rand(shape, device=device))


# gates of the channels: nothing keeps these above zero, and these are above exp(-0.61) as RWKV-7's
FREE = ("sigmoid(w)", torch.sigmoid)
KEPT = ("exp(-0.606531 * sigmoid(w))", lambda w: torch.exp(-0.606531 * torch.sigmoid(w)))

DELTA = ("q", "k", "v", "beta")
KDA = "M = M @ diag(g); M = M - beta * grad(at = M)"
GLA = "M = M @ diag(g) + outer(v, k)"

CORES = {
    "deltanet": Core("DeltaNet", DELTA, "M = M - beta * grad", others.delta, fla.delta),
    "gated_deltanet": Core(
        "Gated DeltaNet", (*DELTA, "a"), "M = a * M; M = M - beta * grad(at = M)",
        others.delta, fla.gated_delta,
    ),
    "rwkv7": Core(
        "RWKV-7", ("q", "w", "k", "v", "kappa", "share"),
        "M = M @ (diag(g) - outer(kappa, share * kappa)) + outer(v, k)",
        others.rwkv7, fla.rwkv7, gate=KEPT,
    ),
    "titans_linear": Core(
        "Titans, linear", ("q", "k", "v", "theta", "eta", "alpha"),
        "S = eta * S - theta * grad; M = (1 - alpha) * M + S",
        others.titans, states="state S = 0",
    ),
    "kda_free": Core("KDA", (*DELTA, "w"), KDA, others.kda, gate=FREE),
    "kda_kept": Core("KDA", (*DELTA, "w"), KDA, others.kda, fla.kda, gate=KEPT),
    "gla_free": Core("GLA", ("q", "k", "v", "w"), GLA, others.gla, gate=FREE),
    "gla_kept": Core("GLA", ("q", "k", "v", "w"), GLA, others.gla, gate=KEPT),
}  # fmt: skip
