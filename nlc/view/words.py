"""Words that the views share.

In: levels, periods, components, numbers. Out: short texts.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlc.ir.level_graph import Component
from nlc.ir.system import Level, Period, System


def frequency_words(period: Period) -> str:
    """Write how often something changes: `1 per token`, `1/16 per token`."""
    match period.unit:
        case "always":
            return "∞"
        case "never":
            return "0"
        case _:
            rate = "1" if period.count == 1 else f"1/{period.count}"
            return f"{rate} per {period.unit[:-1]}"


def level_words(level: Level) -> str:
    """Write a level's period, chunk and optimizer: `every 1 token, chunk 16`."""
    parts = [str(level.period)]
    if level.chunk > 1:
        parts.append(f"chunk {level.chunk}")
    if level.optimizer is not None:
        parts.append(level.optimizer.rule)
    return ", ".join(parts)


def amount(number: int) -> str:
    """Write a number shortly.

    >>> amount(960), amount(41_300), amount(999_999), amount(1_234_567)
    ('960', '41.3 k', '1.0 M', '1.2 M')
    """
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        # what would be rounded up to a thousand of the smaller unit is one of this
        if number >= size - size // 20_000:
            return f"{number / size:.1f} {unit}"
    return str(number)


def whole(number: int) -> str:
    """Write a number in full.

    >>> whole(512), whole(2097152)
    ('512', '2,097,152')
    """
    return f"{number:,}" if number >= 10_000 else str(number)


def map_of(component: Component) -> str:
    """Write a component's map with its leading axes: `mlp 64-128-64, 4 heads`."""
    return ", ".join(filter(None, (component.map, component.lead)))


def block_words(component: Component) -> str:
    """Write the block of a component, with how often it is there: `mixer × 4`."""
    copies = component.copies
    return f"{component.block} × {copies}" if component.block and copies > 1 else component.block


def filled(system: System) -> list[Level]:
    """List the levels that hold something, fastest first."""
    return [level for level in system.levels if at(system, level)]


def learning(system: System, level: Level) -> list[Component]:
    """List what a level's optimizer moves."""
    return [c for c in at(system, level) if c.kind in ("weights", "start", "pairs")]


def at(system: System, level: Level) -> list[Component]:
    """List the components of a level, fastest first."""
    return [c for c in system.components if c.level == level.name]


def ranks(components: Sequence[Component]) -> list[list[Component]]:
    """Split components into antichains, fastest first."""
    found: dict[int, list[Component]] = {}
    for component in components:
        found.setdefault(component.rank, []).append(component)
    return [found[rank] for rank in sorted(found)]
