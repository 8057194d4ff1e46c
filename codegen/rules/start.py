"""The states of an emitted rule at its first call.

In: the cells of a motion. Out: entries of the dict that `start(w)` returns for one parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nlc.codegen.rules.each import alone
from nlc.codegen.rules.elements import Site
from nlc.codegen.rules.numbers import is_number, literal, number_of

from nlc.ir.rule import Cell, Motion

# how `start` calls the parameter's sizes
SIZES = ("in_", "out")


def states_of(motion: Motion) -> list[str]:
    """Name the states, each once: those of several parts are dicts of tensors."""
    return list(dict.fromkeys(motion.parts.get(c.name, (c.name, ""))[0] for c in motion.cells))


def start_entries(motion: Motion, numbers: Collection[str], used: set[str]) -> list[str]:
    """Write each state with its value at the first call."""
    found: dict[str, dict[str, str]] = {}
    for cell in motion.cells:
        state, part = motion.parts.get(cell.name, (cell.name, ""))
        found.setdefault(state, {})[part] = _value(cell, numbers, used)
    return [entry for state, values in found.items() for entry in _entry(state, values)]


def _entry(state: str, values: Mapping[str, str]) -> list[str]:
    if "" in values:
        return [f'"{state}": {values[""]}']
    lines = [f'"{state}": {{', *(f'    "{part}": {text},' for part, text in values.items()), "}"]
    return ["\n".join(lines)]


def _value(cell: Cell, numbers: Collection[str], used: set[str]) -> str:
    """Write the value of a state at the first call."""
    site = Site("w", sizes=SIZES)
    sizes = [site.size(axis) for axis in cell.shape]
    whole = f"({', '.join(['*lead', *sizes])})" if sizes else "lead"
    if cell.draw:
        used.add("drawn" if cell.size is not None else "normal")
        if cell.size is not None:
            return f"drawn(w.new_empty({whole}), {site.size(cell.size)})"
        return f"normal(w.new_empty({whole}), {literal(cell.start.attr('value')).text})"
    if is_number(cell.start, set()):
        value = number_of(cell.start)
        if cell.name in numbers:
            return value.text
        if cell.like:
            zero = value.value == 0
            return "torch.zeros_like(w)" if zero else f"torch.full_like(w, {value.text})"
        if value.value == 0:
            return f"w.new_zeros({whole})"
        return f"w.new_full({whole}, {value.text})"
    text = alone(cell.start, "w", used)
    if text == "w":
        return "w.clone()"
    return f"({text}).expand_as(w).clone()" if cell.like else f"({text}).clone()"
