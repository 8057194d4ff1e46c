"""What a model that learns while it reads can run before all that learns, for a long window.

In: the units of the model. Out: the same, with how many of their first steps that is; the streams
that cross from there to the rest. What learns is read in short windows, one after another; nothing
before it hangs on what it learns, so that runs once for the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nlc.codegen.unit import Passes, Unit, expressions, streams

from nlc.ir.online import waiting
from nlc.ir.schedule import Parallel, made_by
from nlc.ir.system import Call, Step, System

# a step, or a repeat with the class of its passes
Item = Step | Passes


def ahead_of_learning(system: System, units: list[Unit]) -> list[Unit]:
    """Find what comes before all that learns, in the model and its first pass."""
    model = next((unit for unit in units if unit.kind == "model"), None)
    if model is None or not model.online or model.histories:
        return units
    by_name = {unit.name: unit for unit in units}
    items = list(model.steps)
    at = _first(system, by_name, items)
    inner, first = None, items[at]
    if isinstance(first, Passes):
        unit = by_name[first.unit]
        place = _first(system, by_name, unit.steps)
        if _worth(unit.steps[:place]) and not (unit.optional or unit.shared):
            inner = replace(unit, ahead=place)
            items[at] = replace(first, ahead=True)
    if inner is None and not _worth(items[:at]):
        return units
    changed = {model.name: replace(model, stages=in_stages(items), ahead=at)}
    changed |= {inner.name: inner} if inner is not None else {}
    return [changed.get(unit.name, unit) for unit in units]


def _first(system: System, units: dict[str, Unit], items: Sequence[Item]) -> int:
    """Find the first step in which something learns, or begins as what does."""
    return next((i for i, item in enumerate(items) if _learns(system, units, item)), len(items))


def _learns(system: System, units: dict[str, Unit], item: Item) -> bool:
    match item:
        case Call(block=name):
            block = system.block(name)
            inner = [step for step in block.steps if isinstance(step, Call)]
            return bool(waiting(block.memories)) or any(_learns(system, units, i) for i in inner)
        case Passes(unit=name):
            return any(_learns(system, units, inside) for inside in units[name].steps)
        case _:
            return False


def _worth(items: Iterable[Item]) -> bool:
    """Say whether steps do more than a few operations."""
    return any(isinstance(item, Call | Passes) for item in items)


def in_stages(items: Iterable[Item]) -> tuple[Parallel | Passes, ...]:
    """Give steps as stages."""
    return tuple(item if isinstance(item, Passes) else Parallel((item,)) for item in items)


def crossing(unit: Unit) -> list[str]:
    """List the streams that are made ahead and read by the rest."""
    assert unit.ahead is not None
    items = unit.steps
    wanted = set(unit.outputs)
    for item in items[unit.ahead :]:
        given = set(item.inputs) if isinstance(item, Passes) else streams(expressions([item]))
        wanted |= given
    made = [name for item in items[: unit.ahead] for name in made_of(item)]
    return [name for name in dict.fromkeys(made) if name in wanted]


def made_of(item: Item) -> tuple[str, ...]:
    """List the streams that a step makes."""
    return item.outputs if isinstance(item, Passes) else made_by(item)


def goes_on(unit: Unit) -> Passes | None:
    """Return the repeat whose first pass begins ahead."""
    rest = unit.steps[unit.ahead :] if unit.ahead is not None else []
    first = rest[0] if rest else None
    return first if isinstance(first, Passes) and first.ahead else None


def ahead_of(stage: Passes) -> str:
    """Name the variable of what the first pass has done ahead."""
    return f"{stage.name}_ahead"
