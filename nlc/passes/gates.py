"""How products of gates are kept within a tile, and how many tokens a tile holds.

In: a normal form and an interval for the logarithm of a gate. Out: `Keeping`. Numbers between any
states are multiplied forward. A gate for each channel may be split, F(t, i) = F(t, 0) / F(i, 0),
where |log F| cannot exceed 60 within a tile; otherwise keys are decayed for every later token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Affine
from nlc.ir.schedule import Gates, Keeping
from nlc.ir.show import show_expr
from nlc.passes.interval import Interval

# exp of it, and of its negative, are far inside what float32 can hold
DEEPEST = 60.0
# below so many tokens a tile is not made shorter for that
SHORTEST = 8
# tokens that a tile holds (measured on a CPU), where writes read the state and where they do not
TILES: dict[Gates, tuple[int, int]] = {
    "ScalarGate": (32, 64),
    "RelativeGates": (32, 64),
    "ChannelGates": (8, 16),
    "CoupledGates": (32, 64),
    "CoupledChannels": (8, 8),
}


def keep_gates(form: Affine, log: Callable[[Expr], Interval], chunk: int = 0) -> Keeping:
    """Choose how the gates of a form are kept; `log` bounds the logarithm of a gate.

    Where it runs chunk by chunk, a `chunk` that one write solves is one tile if it can be.
    """
    given = [gate for row in form.decay for gate in row if gate is not None]
    channels = any(gate.kind == "diagonal" for gate in given)
    if len(form.states) > 1:
        kept = _kept(form, "CoupledChannels" if channels else "CoupledGates")
    elif not channels:
        kept = _kept(form, "ScalarGate")
    if len(form.states) > 1 or not channels:
        whole = kept.tile < chunk <= TILES[kept.gates][1] and solved_apart(form)
        return replace(kept, tile=chunk) if whole and not channels else kept
    value = given[0].value
    size, found, name = _tile(form, "RelativeGates"), log(value), show_expr(value)
    while size > SHORTEST and found.size * size > DEEPEST:
        size //= 2
    if found.size * size <= DEEPEST:
        most = f"{found.size * size:.3g} over {size} tokens"
        return Keeping("RelativeGates", size, f"factored: |log {name}| <= {found.size:.3g}, {most}")
    reason = (
        f"direct, channel by channel: log {name} is in {found!r}, and factoring {size} tokens "
        f"needs |log {name}| <= {DEEPEST / size:.3g}"
    )
    return _kept(form, "ChannelGates", reason)


def solved_apart(form: Affine) -> bool:
    """Say whether no more than one write reads the state, and none sees another of its token."""
    return sum(not w.known for w in form.writes) < 2 and not any(w.earlier for w in form.writes)


def _kept(form: Affine, gates: Gates, reason: str = "") -> Keeping:
    return Keeping(gates, _tile(form, gates), reason)


def _tile(form: Affine, gates: Gates) -> int:
    """Tokens of a tile; several writes that read the state make its solve as many times larger."""
    solved, scanned = TILES[gates]
    reading = sum(not write.known for write in form.writes)
    return max(solved // max(reading, 1), min(solved, 8)) if reading else scanned
