"""What is told of a good spec: its levels with what lives there, as a table and as JSON.

In: a system, and what the compiler found out about it. Out: text, and plain data. The same rows are
behind both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nlc.cli.cost_report import amount, cost_json
from nlc.compiler import Report
from nlc.diagnostics import Diagnostic
from nlc.ir.cost import Cost
from nlc.ir.schedule import Schedule
from nlc.ir.shape import count
from nlc.ir.stability import Verdict
from nlc.ir.system import Block, Call, Level, Map, Memory, Model, Repeat, Step, System, Weight
from nlc.render import render_json

# names shown of a level's weights before the rest becomes `...`
SHOWN = 6


@dataclass(frozen=True)
class Row:
    """A component of a level: `copies` instances of it are in the model, 1 where there is none."""

    level: str
    block: str
    name: str
    kind: str
    map: Map
    lead: tuple[Any, ...]
    parameters: int
    copies: int


@dataclass(frozen=True)
class Findings:
    """What the compiler found out about a system."""

    diagnostics: tuple[Diagnostic, ...]
    schedules: Mapping[tuple[str, str], Schedule]
    stability: Mapping[str, Verdict]
    cost: Cost | None

    @staticmethod
    def of(report: Report) -> Findings:
        """Take them from a report."""
        schedules = {
            (plan.block, schedule.memory): schedule
            for plan in report.plan.blocks
            for schedule in plan.schedules
        }
        return Findings(tuple(report.diagnostics), schedules, report.stability, report.cost)

    def schedule(self, row: Row) -> str:
        """Name the schedule of a memory, "" for weights."""
        found = self.schedules.get((row.block, row.name))
        return found.kind if found else ""

    def verdict(self, row: Row) -> str:
        """Say how stable a memory is, where that is known."""
        return str(self.stability.get(f"{row.block}.{row.name}", ""))

    def as_json(self, file: str, system: System) -> dict[str, object]:
        """Return what `check --format json` prints."""
        levels = levels_json(system, self)
        cost = None if self.cost is None else cost_json(self.cost)
        verdicts = {name: verdict_json(v) for name, v in self.stability.items()}
        return render_json(file, self.diagnostics, levels, verdicts, cost)


def rows(system: System) -> list[Row]:
    """List all components, in the order of the spec: blocks first, then the model's own."""
    if system.model is None:
        copies = Counter({block.name: 1 for block in system.blocks})
    else:
        copies = Counter(dict(_instances(system, system.model.steps)))
    found = [
        row
        for block in system.blocks
        if copies[block.name]
        for row in _of_module(block, block.name, copies[block.name])
    ]
    if system.model is not None:
        found += _of_module(system.model, "", 1)
    return found


def _instances(system: System, steps: tuple[Step, ...]) -> Iterator[tuple[str, int]]:
    """Count the instances of each block; a shared one counts once."""
    names: dict[tuple[str, ...], str] = {}
    stack: list[tuple[tuple[str, ...], tuple[Step, ...]]] = [((), steps)]
    while stack:
        prefix, inner = stack.pop()
        for step in inner:
            match step:
                case Call():
                    path = (step.instance,) if step.shared else (*prefix, step.instance)
                    if path not in names:
                        names[path] = step.block
                        stack.append((path, system.block(step.block).steps))
                case Repeat():
                    stack += [
                        ((*prefix, step.name, str(turn)), step.steps) for turn in range(step.count)
                    ]
    yield from Counter(names.values()).items()


def _of_module(module: Block | Model, block: str, copies: int) -> list[Row]:
    tied = isinstance(module, Model) and module.tied
    found = [
        Row(w.level, block, w.name, "weights", w.map, w.lead, _size(w), copies)
        for w in module.weights
        if not (tied and w.name == "unembed")
    ]
    if isinstance(module, Block):
        found += [
            Row(m.level, block, m.name, "memory", m.map, m.lead, _learned(m), copies)
            for m in module.memories
        ]
    return found


def _size(owner: Weight | Memory) -> int:
    return count(owner.lead) * sum(count(part.shape) for part in owner.map.parts)


def _learned(memory: Memory) -> int:
    """The parameters of a memory: its learned start, or its learned pairs."""
    if memory.map.kind == "kernel":
        axes = count(memory.map.inputs) + count(memory.map.outputs)
        return count(memory.lead) * memory.persistent * axes
    states = [variable for _, variable in memory.learned_states()]
    return count(memory.lead) * sum(count(part.shape) for v in states for part in v.parts)


# ---- text --------------------------------------------------------------------------------------


def table(lines: list[list[str]], indent: str = "  ") -> str:
    """Align columns; the last one ends where it ends."""
    columns = max(map(len, lines), default=0)
    padded = [[*line, *[""] * (columns - len(line))] for line in lines]
    widths = [max(len(line[i]) for line in padded) for i in range(columns)]
    return "".join(
        indent
        + "   ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in padded
    )


def levels_text(system: System, findings: Findings) -> str:
    """Write a line per level and memory: period, components, schedule or parameters, stability."""
    found = rows(system)
    width = max((len(row.name) for row in found if row.kind == "memory"), default=0)
    lines = []
    for level in system.levels:
        here = [row for row in found if row.level == level.name]
        head = [level.name, period(level)]
        for row in [r for r in here if r.kind == "memory"]:
            name = f"{row.name:<{width}}  {shape_of(row)}"
            lines.append([*head, name, findings.schedule(row), findings.verdict(row)])
            head = ["", ""]
        weights = [r for r in here if r.kind == "weights"]
        if weights:
            total = sum(r.parameters * r.copies for r in here)
            lines.append([*head, _names(weights), f"{amount(total)} parameters"])
        elif head[0]:
            lines.append(head)
    return table(lines)


def period(level: Level) -> str:
    """Write a level's period, chunk and optimizer: `every 1 token, chunk 16`."""
    parts = [str(level.period)]
    if level.chunk > 1:
        parts.append(f"chunk {level.chunk}")
    if level.optimizer is not None:
        parts.append(level.optimizer.rule)
    return ", ".join(parts)


def shape_of(row: Row) -> str:
    """Write a component's map: `mlp 64-128-64, 4 heads`."""
    sizes = "-".join(str(axis.size) for axis in row.map.chain) if row.map.chain else ""
    lead = "".join(f", {axis.size} {axis.name}" for axis in row.lead)
    return f"{row.map.kind} {sizes}".rstrip() + lead


def _names(weights: list[Row]) -> str:
    names = list(dict.fromkeys(row.name for row in weights))
    return " ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


# ---- JSON --------------------------------------------------------------------------------------


def levels_json(system: System, findings: Findings) -> list[dict[str, object]]:
    """Return the levels as data, fastest first."""
    found = rows(system)
    return [
        {
            "name": level.name,
            "period": str(level.period),
            "frequency": frequency(level),
            "chunk": level.chunk,
            "optimizer": level.optimizer.rule if level.optimizer else None,
            "components": [
                {
                    "block": row.block or None,
                    "name": row.name,
                    "kind": row.kind,
                    "map": shape_of(row),
                    "parameters": row.parameters,
                    "copies": row.copies,
                    "schedule": findings.schedule(row) or None,
                }
                for row in found
                if row.level == level.name
            ],
        }
        for level in system.levels
    ]


def verdict_json(verdict: Verdict) -> dict[str, object]:
    """Return how a memory's state develops: the word, the term that decides it, and its place."""
    place = None
    if verdict.place is not None:
        line, column = verdict.place.source.position(verdict.place.start)
        place = {"line": line, "column": column}
    return {
        "verdict": verdict.word,
        "term": verdict.term or None,
        "rate": verdict.rate,
        "given": verdict.given or None,
        "place": place,
    }


def frequency(level: Level) -> dict[str, object]:
    """Return how often a level changes; JSON has no infinity, so the unit says `always`."""
    rate = 1 / level.period.count if level.period.unit in ("tokens", "steps") else None
    return {"unit": level.period.unit, "rate": rate}
