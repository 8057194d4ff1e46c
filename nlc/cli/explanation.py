"""How a system runs, and why, as a page for people: what `nlc explain SPEC` prints.

In: a system, its report, and what a chunk would change. Out: text, levels first, then each memory
with its update, normal form, schedule, stability and cost, then the cost of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap

from nlc.cli.cost_report import amount, cost_lines, size
from nlc.cli.report import Findings, levels_text, period, table
from nlc.cli.told import Told, line_at, place, told
from nlc.compiler import Report
from nlc.ir.cost import Cost
from nlc.ir.show_form import Line
from nlc.ir.stability import Verdict
from nlc.ir.system import System
from nlc.render import printable

WIDTH = 100
# the column in which what is said of a memory begins
INDENT = 15


def explanation(system: System, report: Report, chunks: Mapping[str, str]) -> str:
    """Write the page."""
    lines = [system.name + (f": {printable(system.about)}" if system.about else ""), ""]
    lines += levels_text(system, Findings.of(report)).splitlines()
    for code, what, span, _ in system.unsupported:
        lines += ["", f"cannot run yet: {printable(what)} ({code}), at {place(span)}"]
    for t in told(system, report, chunks):
        lines += ["", *_memory(t, report.cost)]
    if report.cost is not None:
        lines += ["", *_cost(report.cost)]
    return "\n".join(lines) + "\n"


def _memory(t: Told, cost: Cost | None) -> Iterator[str]:
    yield f"memory {t.memory.name} of {t.block}, at {t.level.name}: {period(t.level)}"
    if t.pairs:
        yield from _said("pairs", t.pairs)
    if t.objective:
        yield from _said("objective", t.objective)
    word = "update"
    for line in t.update:
        yield from _said(word, line)
        word = ""
    for part, form in t.forms:
        yield from _form(part, form)
    word = "where"
    for name, text in t.where:
        yield from _equation(word, f"{name} = ", [text])
        word = ""
    yield from _schedule(t)
    if t.frozen:
        chunk = t.schedule.chunk
        yield from _said("frozen", f"{', '.join(t.frozen)}: taken before each chunk of {chunk}")
    if t.stability is not None:
        yield from _stability(t.stability)
    if t.cost is not None and cost is not None:
        yield from _said("cost", _cost_of(t, cost))


def _form(part: str, form: tuple[Line, ...] | str) -> Iterator[str]:
    if isinstance(form, str):
        of = f" of {part}" if part else ""
        yield from _said("normal form", f"none{of}: {form}")
        return
    word = "normal form"
    width = max(len(line.name) for line in form)
    for line in form:
        (sign, first), *rest = line.terms or (("+", "0"),)
        terms = [f"-{first}" if sign == "-" else first, *(f"{s} {t}" for s, t in rest)]
        yield from _equation(word, f"{line.name:<{width}} = ", terms)
        word = ""


def _schedule(t: Told) -> Iterator[str]:
    schedule = t.schedule
    how: str = schedule.kind
    if schedule.kind == "sequential":
        how += ", one token after another"
    # a tile ends where a chunk ends whose start is read
    tile = min(schedule.tile, schedule.chunk) if t.frozen else schedule.tile
    if tile > 1:
        how += f", {tile} tokens at a time"
    told_before = any(isinstance(form, str) for _, form in t.forms) and not schedule.entries
    yield from _said("schedule", how if told_before else f"{how}: {schedule.reason}")
    if schedule.gates_reason:
        yield from _said("gates", schedule.gates_reason)
    where = place(schedule.span)
    if where and schedule.span is not None:
        room = WIDTH - INDENT - len(where) - 2
        line = line_at(schedule.span)
        yield from _said(
            "at", f"{where}  {line if len(line) <= room else line[: room - 3] + '...'}"
        )
    word = "faster"
    for hint in t.faster:
        yield from _said(word, hint)
        word = "or"


def _stability(verdict: Verdict) -> Iterator[str]:
    """How the state develops."""
    rate = f", by {verdict.rate:.3g} or less at every token" if verdict.rate is not None else ""
    yield from _said("stability", f"{printable(str(verdict))}{rate}")


def _cost_of(t: Told, cost: Cost) -> str:
    entry = t.cost
    assert entry is not None
    state = f"state {size(entry.state_bytes)}"
    if t.memory.map.kind == "kernel":
        state = f"pairs {size(entry.state_bytes)} after {cost.tokens:,} tokens"
    copies = f"; {t.copies} copies" if t.copies > 1 else ""
    forward = amount(entry.forward.flops / cost.tokens)
    backward = amount(entry.backward.flops / cost.tokens)
    decode = amount(entry.decode.flops)
    return f"FLOPs {forward} forward, {backward} backward, {decode} decoding; {state}{copies}"


def _cost(cost: Cost) -> Iterator[str]:
    yield f"cost of a token among {cost.tokens:,}: FLOPs, and bytes moved in float32"
    yield from table(cost_lines(cost)).splitlines()


# ---- layout ------------------------------------------------------------------------------------


def _said(word: str, text: str) -> Iterator[str]:
    """Write a word and what is said under it, wrapped."""
    head = f"  {word}"
    for line in wrap(text, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False) or [""]:
        yield f"{head:<{INDENT}}{line}"
        head = ""


def _equation(word: str, left: str, terms: list[str]) -> Iterator[str]:
    """Write an equation; terms that do not fit go below the first."""
    head, line = f"{f'  {word}':<{INDENT}}{left}", ""
    for term in terms:
        if line and len(head) + len(line) + len(term) + 1 > WIDTH:
            yield head + line
            head, line = " " * (INDENT + len(left)), ""
        line += f" {term}" if line else term
    yield head + line
