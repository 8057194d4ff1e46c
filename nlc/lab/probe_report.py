"""What a probe has found, in words: a line for each memory, gate, level and output.

In: a probe's description. Out: lines of text. Instances of one memory have lines of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nlc.ir.system import System

Entry = Mapping[str, Any]


def report(system: System, probe: Entry) -> Iterator[str]:
    """Write a description, fastest level first."""
    for level in system.levels:
        memories = {n: m for n, m in probe["memories"].items() if m["level"] == level.name}
        entry = probe["levels"].get(level.name)
        if not memories and entry is None:
            continue
        yield f"level {level.name}, {level.period}"
        for name, memory in memories.items():
            yield from _memory(name, memory)
        if entry is not None:
            yield from _level(entry, probe["weights"], level.name)
    if probe["activations"]:
        yield "activations"
    for name, found in probe["activations"].items():
        values = "  ".join(f"{s:.3g}" for s in found["singular"][:4])
        yield f"  {name:<28}  {_rank(found['spectrum'])}; singular values {values} ..."


def _memory(name: str, memory: Entry) -> Iterator[str]:
    loss = f"surprise {_size(memory['loss'])}   " if "loss" in memory else ""
    state = next(iter(memory["states"].values()))
    norms = f"state {_size(state['norm'])}   update {_size(state['update'])}"
    yield f"  {name:<28}  {loss}{norms}"
    for gate, found in memory["gates"].items():
        life = f"; half-life {_range(found['half_life'])} tokens" if "half_life" in found else ""
        if found.get("half_life") == [None, None, None]:
            life = "; nothing fades"
        yield f"    gate {gate:<21}  {_range(found['value'])}{life}"
    for name, share in memory["erases"].items():
        yield f"    {name + ' erases':<26}  {_range(share)} of what stood where a token writes"
    if "no_gates" in memory:
        yield f"    no gates: {memory['no_gates']}"
    for part, spectra in memory["spectra"].items():
        found = f"an update {_rank(spectra['update'])}, over the text {_rank(spectra['change'])}"
        yield f"    {part:<26}  {found}"


def _level(entry: Entry, weights: Entry, level: str) -> Iterator[str]:
    update = entry.get("update")
    moved = "not due soon" if update is None else _size(update["norm"])
    change = entry["change"]["norm"]
    norms = f"norm {_size(entry['norm'])}   next update {moved}   W_T - W_0 {_size(change)}"
    yield f"  {'all weights':<28}  {norms}"
    for name, found in weights.items():
        spectra = {what: found.get(what, {}).get("spectrum") for what in ("update", "change")}
        if found["level"] == level and any(spectra.values()):
            words = [
                f"{what} {_rank(spectra[key])}"
                for key, what in (("update", "next update"), ("change", "W_T - W_0"))
                if spectra[key]
            ]
            yield f"  {name:<28}  {', '.join(words)}"


def _rank(spectrum: Entry | None) -> str:
    """Write an effective rank beside the full one."""
    if spectrum is None:
        return "zero"
    return f"rank {spectrum['rank']:.1f} of {spectrum['full']} (entropy {spectrum['entropy']:.2f})"


def _range(values: list[float | None]) -> str:
    """Write the middle, and the ends where they differ."""
    least, middle, most = map(_number, values)
    return middle if least == most else f"{middle} ({least} to {most})"


def _size(value: float | None) -> str:
    """Write a loss or a norm."""
    return "not finite" if value is None else _number(value)


def _number(value: float | None) -> str:
    return "endless" if value is None else f"{value:.3g}"
