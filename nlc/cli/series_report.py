"""What several runs came to, as a table and as JSON, and what differs in their specs.

In: a series with its results, syntax trees. Out: text, plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from nlc.cli.cost_report import amount, size
from nlc.cli.difference import differences, shown
from nlc.cli.report import table
from nlc.ir.cost import Cost

if TYPE_CHECKING:
    from nlc.lab.series import Cell, Result, Series


class Metric(StrEnum):
    """What a table shows of a task."""

    accuracy = "accuracy"
    exact = "exact"


@dataclass(frozen=True)
class Group:
    """The runs of one row: all seeds of a variant, and the results of those that are finished."""

    label: str
    cells: tuple[Cell, ...]
    results: tuple[Result, ...]

    @property
    def good(self) -> list[Result]:
        """The results that have numbers."""
        return [r for r in self.results if not r.fault]


def grouped(series: Series) -> list[Group]:
    """Put the runs of one label together, in their order."""
    found: dict[str, list[tuple[Cell, Result | None]]] = {}
    for cell in series.cells:
        found.setdefault(cell.label, []).append((cell, series.result(cell)))
    return [
        Group(label, tuple(c for c, _ in rows), tuple(r for _, r in rows if r is not None))
        for label, rows in found.items()
    ]


# ---- tables ------------------------------------------------------------------------------------


def series_text(series: Series, groups: Sequence[Group], metric: Metric | None) -> str:
    """Write a row for each variant: quality with its spread, and what it costs."""
    columns = _columns(series, groups, metric)
    trained = sorted({cell.settings.length for g in groups for cell in g.cells})
    state = f"state at {trained[0]}" if len(trained) == 1 else "state"
    head = ["", *(name for name, _ in columns), "parameters", state, "tokens/s"]
    rows = [head]
    for group in groups:
        row = [group.label]
        row += [_spread([value(r) for r in group.good]) for _, value in columns]
        row += _costs(group.good) if group.good else ["-", "-", "-"]
        waiting = len(group.cells) - len(group.results)
        notes = [r.fault for r in group.results if r.fault][:1]
        notes += [f"{waiting} of {len(group.cells)} not finished"] if waiting else []
        rows.append([*row, *notes])
    return f"{_budget(series, groups)}\n{table(rows)}"


def _columns(
    series: Series, groups: Sequence[Group], metric: Metric | None
) -> list[tuple[str, Callable[[Result], float | None]]]:
    """Return the columns of quality: a name, and how to read it from a result."""
    measured = [m for g in groups for r in g.good for m in r.measured]
    if any("bits_per_byte" in m for m in measured):
        return [("bits/byte", lambda r: r.measured[0]["bits_per_byte"])]
    if any("parts" in m for m in measured):
        return [
            ("accuracy", lambda r: r.measured[0]["accuracy"]),
            ("last part", lambda r: r.measured[0]["parts"][-1]),
            ("told the part", lambda r: fmean(r.measured[0]["told"])),
            ("forgotten", lambda r: r.forgotten),
        ]
    word = str(metric or getattr(series.subject, "metric", Metric.accuracy))
    lengths = sorted({m["length"] for m in measured})
    return [(f"{word} at {n}", _at(n, word)) for n in lengths]


def _at(length: int, word: str) -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        return next((m[word] for m in result.measured if m["length"] == length), None)

    return read


def _spread(values: Sequence[float | None]) -> str:
    """Write a mean, and behind it the least and the most.

    >>> _spread([0.5, 0.75, 1.0]), _spread([0.5]), _spread([])
    ('0.750 (0.500-1.000)', '0.500', '-')
    """
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    mean = f"{fmean(found):.3f}"
    return mean if len(found) == 1 else f"{mean} ({min(found):.3f}-{max(found):.3f})"


def _costs(results: Sequence[Result]) -> list[str]:
    state = results[0].state_bytes
    speed = fmean(r.tokens_per_second for r in results)
    return [
        amount(results[0].parameters),
        "-" if state is None else size(state),
        f"{speed:,.0f}",
    ]


def _budget(series: Series, groups: Sequence[Group]) -> str:
    """Say what each run was given."""
    settings = [cell.settings for g in groups for cell in g.cells]
    s = settings[0]
    same = {(x.steps, x.minutes, x.batch, x.length) for x in settings}
    seeds = len({x.seed for x in settings})
    words = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if len(same) == 1:
        steps = [f"{s.steps:,} steps"] if s.steps is not None else []
        steps += [f"{s.minutes:g} minutes"] if s.minutes is not None else []
        words = f"{' or '.join(steps)} of {s.batch} sequences of {s.length} tokens, {words}"
    from nlc.lab.lesson import told

    return f"{told(series.subject)}: {words}"


def plan_text(rows: Sequence[tuple[str, Cost | None]], tokens: int) -> str:
    """Write what specs cost, without having trained them."""
    lines = [["", "parameters", f"state at {tokens}", "operations per token"]]
    for label, cost in rows:
        if cost is None:
            lines.append([label, "-", "-", "-"])
            continue
        total = cost.total
        work = (total.forward.flops + total.backward.flops) / cost.tokens
        lines.append([label, amount(total.parameters), size(total.state_bytes), amount(work)])
    return table(lines)


def difference_text(trees: Mapping[str, Any]) -> str:
    """Write what differs in each spec from the first one."""
    (first, base), *others = trees.items()
    parts = []
    for label, tree in others:
        rows = [[d.clause, shown(d.one), shown(d.other)] for d in differences(base, tree)]
        if rows:
            parts.append(table([["", first, label], *rows]))
        else:
            parts.append(f"  {first} and {label} say the same\n")
    return "\n".join(parts)


# ---- JSON --------------------------------------------------------------------------------------


def series_json(
    series: Series, groups: Sequence[Group], trees: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all of it as data."""
    from nlc.lab.lesson import named

    (first, base), *others = list(trees.items()) or [("", None)]
    return {
        "kind": series.kind,
        "subject": dict(named(series.subject)),
        "rows": [_row_json(series, group) for group in groups],
        "differences": {
            label: [asdict(d) for d in differences(base, tree)] for label, tree in others
        },
        "against": first,
    }


def _row_json(series: Series, group: Group) -> dict[str, Any]:
    runs = []
    for cell in group.cells:
        result = series.result(cell)
        runs.append(
            {
                "seed": cell.settings.seed,
                "folder": str(series.folder / cell.folder),
                "result": None if result is None else asdict(result),
            }
        )
    found: dict[str, Any] = {"label": group.label, "set": dict(group.cells[0].set), "runs": runs}
    for name, value in _columns(series, [group], None):
        numbers = [x for x in map(value, group.good) if x is not None]
        if numbers:
            deviation = stdev(numbers) if len(numbers) > 1 else 0.0
            found[name] = {"mean": fmean(numbers), "deviation": deviation}
    return found
