"""How a system runs, and why, in words: what `nlc explain SPEC` prints.

In: a system and its report. Out: text. Computes nothing; the plan says it all.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlc.cli.report import Findings, levels_text, period
from nlc.compiler import Report
from nlc.ir.normal_form import Affine, Neither, Write
from nlc.ir.schedule import Schedule
from nlc.ir.show import show_expr
from nlc.ir.stability import Verdict
from nlc.ir.system import Block, Memory, System
from nlc.render import printable


def explanation(system: System, report: Report) -> str:
    """Write levels, then each memory with its update, normal form, schedule and frozen reads."""
    lines = [system.name + (f": {printable(system.about)}" if system.about else ""), ""]
    lines += levels_text(system, Findings.of(report)).splitlines()
    for block in system.blocks:
        for memory in block.memories:
            schedule = report.plan.block(block.name).schedule(memory.name)
            lines += ["", *_memory(system, block, memory, schedule)]
            verdict = report.stability.get(f"{block.name}.{memory.name}")
            lines += _stability(verdict) if verdict is not None else []
    return "\n".join(lines) + "\n"


def _memory(system: System, block: Block, memory: Memory, schedule: Schedule) -> Iterator[str]:
    level = system.level(memory.level)
    yield f"memory {memory.name} of {block.name}, at {level.name}: {period(level)}"
    if memory.written_objective is not None and not memory.is_task:
        yield f"  objective    {printable(' '.join(memory.written_objective.text.split()))}"
    elif memory.objective is not None:
        yield f"  objective    {show_expr(memory.objective)}"
    word = "update"
    for statement in memory.statements:
        yield f"  {word:<11}  {printable(statement.text)}"
        word = ""
    for part, form in schedule.forms:
        yield from _form(part, form)
    tile = f", {schedule.tile} tokens at a time" if schedule.tile > 1 else ""
    yield f"  schedule     {schedule.kind}{tile}"
    yield f"  because      {schedule.reason}"
    for read in memory.frozen:
        yield f"  frozen read  {printable(read.what)}, taken at the start of each chunk"


def _stability(verdict: Verdict) -> Iterator[str]:
    """How the state develops, and what that takes as given."""
    rate = f", by {verdict.rate:.3g} or less at every token" if verdict.rate is not None else ""
    yield f"  stability    {printable(str(verdict))}{rate}"
    if verdict.given:
        yield f"               given {verdict.given}"


def _form(part: str, form: Affine | Neither) -> Iterator[str]:
    of = f" of {part}" if part and part != "weight" else ""
    match form:
        case Neither():
            yield f"  normal form  none{of}: {form.reason}"
            if form.span is not None:
                line, column = form.span.source.position(form.span.start)
                yield f"               at {printable(form.span.source.name)}:{line}:{column}"
            if form.hint:
                yield f"               {form.hint}"
        case Affine():
            names = [var or "M" for var, _ in form.states]
            word = f"  normal form{of}"
            for j, name in enumerate(names):
                yield f"{word:<13}  {name}' = {_row(form, names, j)}"
                word = ""
            for r, write in enumerate(form.writes, 1):
                yield f"{'':<13}  e{r} = {_write(write, names)}"
            if form.transposed:
                yield f"{'':<13}  (all states transposed)"


def _row(form: Affine, names: list[str], j: int) -> str:
    """The new value of a state: its decayed parts, and what is written to it."""
    terms = []
    for i, name in enumerate(names):
        gate = form.decay[i][j]
        if gate is not None:
            value = show_expr(gate.value)
            one = value == "1"
            terms.append(name if one else f"{name} @ diag({value})")
            if gate.kind == "scalar" and not one:
                terms[-1] = f"{_bracketed(value)} * {name}"
    for r, write in enumerate(form.writes, 1):
        target = write.targets[j]
        if target is not None:
            terms.append(f"outer(e{r}, {show_expr(target)})")
    return " + ".join(terms) or "0"


def _write(write: Write, names: list[str]) -> str:
    """What is written: reads of the states, of earlier writes, and what is known beforehand."""
    terms = [
        f"{name} @ {_bracketed(show_expr(p))}"
        for name, p in zip(names, write.reads, strict=True)
        if p is not None
    ]
    terms += [f"{_bracketed(show_expr(c))} * e{s + 1}" for s, c in write.earlier]
    if write.offset is not None:
        terms.append(show_expr(write.offset))
    return " + ".join(terms) or "0"


def _bracketed(text: str) -> str:
    return f"({text})" if " " in text or text.startswith("-") else text
