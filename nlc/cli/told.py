"""What the compiler found out of each memory, in words and numbers.

In: a system, its report, and what a chunk would change. Out: `Told`, one for each memory, in the
order of the levels, and the same as plain data. Computes nothing: schedules, forms, verdicts and
costs are the report's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlc.cli.abbreviate import abbreviate
from nlc.cli.cost_report import cost_json
from nlc.cli.report import Findings, levels_json, verdict_json
from nlc.compiler import Report
from nlc.ir.cost import Entry
from nlc.ir.expr import Expr, postorder
from nlc.ir.normal_form import Affine, NormalForm
from nlc.ir.schedule import Schedule
from nlc.ir.show import part_name, show_expr
from nlc.ir.show_form import Line, form_lines
from nlc.ir.stability import Verdict
from nlc.ir.system import Block, Level, Memory, System
from nlc.render import printable
from nlc.source import Span


@dataclass(frozen=True)
class Told:
    """A memory: `forms` by part, a list of lines or the reason why there is none.

    `pairs` is what a softmax memory keeps; `where` says what the short names of `forms` stand for,
    `faster` what would make it faster.
    """

    block: str
    memory: Memory
    level: Level
    copies: int
    objective: str
    pairs: str
    update: tuple[str, ...]
    forms: tuple[tuple[str, tuple[Line, ...] | str], ...]
    where: tuple[tuple[str, str], ...]
    schedule: Schedule
    faster: tuple[str, ...]
    stability: Verdict | None
    cost: Entry | None

    @property
    def name(self) -> str:
        """`BLOCK.MEMORY`."""
        return f"{self.block}.{self.memory.name}"

    @property
    def frozen(self) -> tuple[str, ...]:
        """The reads that are taken at a chunk's start."""
        return tuple(dict.fromkeys(printable(" ".join(r.what.split())) for r in self.memory.frozen))


def told(system: System, report: Report, chunks: Mapping[str, str]) -> list[Told]:
    """Tell of all memories, fastest level first; `chunks` says what a chunk would do, by name."""
    found = [
        _memory(system, report, block, memory, chunks)
        for block in system.blocks
        for memory in block.memories
    ]
    order = [level.name for level in system.levels]
    return sorted(found, key=lambda t: order.index(t.level.name))


def _memory(
    system: System, report: Report, block: Block, memory: Memory, chunks: Mapping[str, str]
) -> Told:
    name = f"{block.name}.{memory.name}"
    schedule = report.plan.block(block.name).schedule(memory.name)
    forms, where = _forms(system, block, memory, schedule)
    cost = None
    if report.cost is not None:
        cost = next((e for e in report.cost.entries if e.name == name), None)
    component = next((c for c in system.components if c.name == name), None)
    hints = [schedule.hint] if schedule.hint else []
    hints += [chunks[name]] if name in chunks else []
    return Told(
        block=block.name,
        memory=memory,
        level=system.level(memory.level),
        copies=component.copies if component is not None else 1,
        objective=_objective(memory),
        pairs=_pairs(memory),
        update=tuple(printable(" ".join(s.text.split())) for s in memory.statements),
        forms=forms,
        where=where,
        schedule=schedule,
        faster=tuple(hints),
        stability=report.stability.get(name),
        cost=cost,
    )


def _objective(memory: Memory) -> str:
    """The objective as it was written, or the usual one where the update asks for its gradient."""
    if memory.is_task:
        return "the model's own loss"
    if memory.written_objective is not None:
        return written(memory.written_objective)
    asks = any(node.op == "grad" for node in postorder(a.value for a in memory.update))
    return show_expr(memory.objective) if memory.objective is not None and asks else ""


def _pairs(memory: Memory) -> str:
    """What a softmax memory keeps."""
    if memory.map.kind != "kernel":
        return ""
    shown = [f"{written(k.span) or show_expr(k)} -> {written(v.span) or show_expr(v)}"
             for k, v in memory.pairs]  # fmt: skip
    window = memory.map.option("window")
    last = f", of the last {window} tokens" if window else ""
    learned = f", and {memory.persistent} learned ones" if memory.persistent else ""
    return f"{', '.join(shown)}{last}{learned}"


Forms = tuple[tuple[str, tuple[Line, ...] | str], ...]


def _forms(
    system: System, block: Block, memory: Memory, schedule: Schedule
) -> tuple[Forms, tuple[tuple[str, str], ...]]:
    affine = [form for _, form in schedule.forms if isinstance(form, Affine)]
    taken = {step.name for step in block.steps if hasattr(step, "name")}
    taken |= {variable.name for variable in memory.variables} | {i.name for i in block.inputs}
    short = abbreviate(system.graph_of, [e for f in affine for e in _coefficients(f)], taken)
    ranks = {part.name: len(part.shape) for part in memory.map.parts}

    def lines(part: str, form: NormalForm) -> tuple[Line, ...] | str:
        if not isinstance(form, Affine):
            return form.reason
        taken_here = taken | set(short.names.values())
        return tuple(form_lines(form, memory.name, ranks[part], short.names, taken_here))

    forms: list[tuple[str, tuple[Line, ...] | str]] = []
    for part, form in schedule.forms:
        name = part_name(part) or (part if len(schedule.forms) > 1 else "")
        said = lines(part, form)
        same = next((i for i, (_, other) in enumerate(forms) if other == said), None)
        if isinstance(said, str) and same is not None:
            forms[same] = (f"{forms[same][0]}, {name}", said)
        else:
            forms.append((name, said))
    shown = " ".join(line.text for _, said in forms if not isinstance(said, str) for line in said)
    return tuple(forms), _used(shown, short.lines)


def _used(shown: str, lines: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keep the names that stand in what is shown, or in what these stand for."""
    found: list[tuple[str, str]] = []
    for name, text in reversed(lines):
        if re.search(rf"\b{name}\b", shown):
            found.insert(0, (name, text))
            shown += f" {text}"
    return tuple(found)


def _coefficients(form: Affine) -> list[Expr]:
    found: list[Expr | None] = []
    for row in form.decay:
        found += [None if gate is None else gate.value for gate in row]
    for write in form.writes:
        found += [*write.reads, *(c for _, c in write.earlier), write.offset, *write.targets]
    return [expr for expr in found if expr is not None]


def place(span: Span | None) -> str:
    """Write a place: `small.nl:12:14`, "" where there is none."""
    if span is None or not span.source.text:
        return ""
    line, column = span.source.position(span.start)
    return f"{printable(span.source.name)}:{line}:{column}"


def written(span: Span | None) -> str:
    """Give the words of the spec at a place, on one line."""
    return "" if span is None else printable(" ".join(span.text.split()))


def line_at(span: Span) -> str:
    """Give the line of the spec on which a place begins, without its comment."""
    line = span.source.line(span.line).split(" #")[0]
    return printable(" ".join(line.split()))


# ---- JSON --------------------------------------------------------------------------------------


def as_json(file: str, system: System, report: Report, chunks: Mapping[str, str]) -> dict[str, Any]:
    """Return what `nlc explain SPEC --format json` prints."""
    findings = Findings.of(report)
    return {
        "file": file,
        "system": system.name,
        "about": system.about or None,
        "levels": levels_json(system, findings),
        "memories": [_told_json(t) for t in told(system, report, chunks)],
        "cost": None if report.cost is None else cost_json(report.cost),
    }


def _told_json(t: Told) -> dict[str, Any]:
    schedule = t.schedule
    return {
        "block": t.block,
        "name": t.memory.name,
        "level": t.level.name,
        "copies": t.copies,
        "objective": t.objective or None,
        "pairs": t.pairs or None,
        "update": list(t.update),
        "normal_forms": [_form_json(part, form) for part, form in t.forms],
        "where": dict(t.where),
        "schedule": {
            "kind": schedule.kind,
            "tile": schedule.tile,
            "chunk": schedule.chunk,
            "reason": schedule.reason,
            "gates": schedule.gates_reason or None,
            "place": place(schedule.span) or None,
            "faster": list(t.faster),
        },
        "frozen": list(t.frozen),
        "stability": None if t.stability is None else verdict_json(t.stability),
    }


def _form_json(part: str, form: tuple[Line, ...] | str) -> dict[str, Any]:
    if isinstance(form, str):
        return {"part": part or None, "equations": None, "reason": form}
    equations = {line.name: line.text for line in form}
    return {"part": part or None, "equations": equations, "reason": None}
