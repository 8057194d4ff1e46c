"""Levels: their periods, their order, and the checks that they nest.

In: `tree.Level`s. Out: `ir.Level`s, fastest first, and faults NL02xx.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from nlc.ir.system import Level, Optimizer, Period
from nlc.semantics.context import Bad, Context, real
from nlc.semantics.periods import count_arguments
from nlc.syntax import tree


def resolve_levels(context: Context, written: tuple[tree.Level, ...], resolver: Any) -> None:
    """Resolve the levels into `context.levels` and check that their periods nest."""
    places: dict[str, tree.Level] = {}
    for level in written:
        if level.name in places:
            continue
        places[level.name] = level
        try:
            context.levels[level.name] = _level(context, level, resolver)
        except Bad:
            # a stand-in, so that what names the level is not reported too
            context.broken.add(level.name)
            context.levels[level.name] = Level(
                level.name, Period(level.period.unit), span=level.span
            )
    for unit in ("tokens", "steps"):
        _nest(context, unit, places)


def _level(context: Context, written: tree.Level, resolver: Any) -> Level:
    unit, count = context.period(written.period)
    chunk = 1
    if written.chunk is not None:
        chunk = context.positive(written.chunk, "a chunk")
        if unit != "tokens" or count != 1:
            context.fail(
                "NL0204", f"level `{written.name}` cannot have a chunk", written.chunk.span,
                f"the level changes {Period(unit, count)}",
                "a chunk belongs to a level of period `every 1 token`",
                (written.period.span, "the period"),
            )  # fmt: skip
    optimizer = None
    if written.optimizer is not None:
        if unit in ("always", "never"):
            context.fail(
                "NL0209", f"level `{written.name}` has nothing to optimise", written.optimizer.span,
                f"the level is `{unit}`", "an optimizer belongs to a level of steps or tokens",
                (written.period.span, "the period"),
            )  # fmt: skip
        optimizer = _optimizer(context, written.optimizer, resolver)
    return Level(written.name, Period(unit, count), chunk, optimizer, written.span)


def _optimizer(context: Context, written: tree.Expr, resolver: Any) -> Optimizer:
    name = written.function if isinstance(written, tree.Call) else written
    if not isinstance(name, tree.Name):
        context.fail(
            "NL0305", "an optimizer is a rule", written.span, "no rule",
            "write `optimizer adamw(lr = 3e-4)`",
        )  # fmt: skip
    rule = resolver.rule(name.id, name.span)
    given = resolver.arguments(rule, written)
    numbers: dict[str, float] = {}
    defaults = {id(parameter.default) for parameter in rule.parameters}
    for key, value in given.items():
        # a default sees the arguments before it, what is given sees dims alone
        numbers[key] = real(context, value, numbers if id(value) in defaults else None)
    for key in sorted(count_arguments(rule)):
        if numbers[key] < 1 or numbers[key] != int(numbers[key]):
            context.fail(
                "NL0401", f"`{key}` is not a whole number", given[key].span,
                f"this is {numbers[key]:g}", "it counts steps: write a whole number of at least 1",
                (rule.span, "the rule"),
            )  # fmt: skip
    return Optimizer(rule.name, tuple(numbers.items()), rule, written.span)


def _nest(context: Context, unit: str, places: dict[str, tree.Level]) -> None:
    levels = sorted(
        (level for level in context.levels.values() if level.period.unit == unit),
        key=lambda level: level.period.count,
    )
    for faster, slower in pairwise(levels):
        a, b = faster.period.count, slower.period.count
        if b % a:
            multiples = ", ".join(str(a * i) for i in range(max(1, b // a), max(1, b // a) + 3))
            context.faults.error(
                "NL0203", f"level `{slower.name}` does not nest over `{faster.name}`",
                places[slower.name].period.span, f"{b} is not a multiple of {a}",
                f"the period of a slower level must be a multiple of the faster one's: "
                f"{multiples}, ...",
                (places[faster.name].period.span, f"`{faster.name}` updates every {a} {unit}"),
            )  # fmt: skip
    if unit != "tokens":
        return
    for chunked in levels:
        for slower in levels:
            if (
                chunked.chunk > 1
                and slower.period.count > 1
                and slower.period.count % chunked.chunk
            ):
                chunk = places[chunked.name].chunk
                context.faults.error(
                    "NL0205", f"the chunk of `{chunked.name}` does not divide what contains it",
                    chunk.span if chunk else None,
                    f"{slower.period.count} is not a multiple of {chunked.chunk}",
                    f"a chunk must divide the period of every slower level: {slower.period.count}",
                    (places[slower.name].period.span, f"`{slower.name}` updates here"),
                )  # fmt: skip


def check_reset(context: Context, memory: tree.Memory, level: Level) -> None:
    """Check that a memory's reset falls on ends of its chunks and windows."""
    if memory.reset is None or level.period.unit == "steps":
        # weights that begin anew count steps: `nested` looks at them
        return
    unit, count = context.period(memory.reset)
    if unit != "tokens":
        context.fail(
            "NL0205", "a reset counts tokens", memory.reset.span, f"{unit}",
            "write `reset every 256 tokens`", (memory.span, "the memory"),
        )  # fmt: skip
    whole = level.period.count * level.chunk if level.period.unit == "tokens" else 1
    if count % whole:
        what = f"chunks of {level.chunk}" if level.chunk > 1 else f"periods of {whole}"
        context.fail(
            "NL0205", "the reset does not fall on an end", memory.reset.span,
            f"{count} is not a multiple of {whole}",
            f"a reset must be a multiple of the level's {what} tokens",
            (level.span, "the level"),
        )  # fmt: skip


def sort_levels(levels: dict[str, Level]) -> tuple[Level, ...]:
    """Order levels by frequency, fastest first; equal ones as they were written."""
    return tuple(sorted(levels.values(), key=lambda level: -level.frequency))
