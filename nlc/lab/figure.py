"""The picture of a run's probes: what memories and levels do, in training and along a text.

In: what probes have found, by step. Out: one SVG, 1200 pixels wide, that stands alone and follows
the reader's light or dark theme. Instances of one memory are one line, with a band from the least
to the largest of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nlc.view.drawing import attribute, escaped, text
from nlc.view.plot import LABEL, LINE, Chart, Point, Row, Series, draw_chart, draw_mark, draw_rows
from nlc.view.style import FONTS

PAGE, MARGIN, GAP = 1200.0, 28.0, 36.0
WIDE, HIGH = (PAGE - 2 * MARGIN - GAP) / 2, 290.0
NAMES = 240.0
LIGHT = (
    "#0553b1", "#b3540a", "#116329", "#b3202c", "#6c3fc0", "#85600a", "#0b7285", "#a61e6f",
)  # fmt: skip
DARK = (
    "#6bb1ff", "#f0a64b", "#56c271", "#ff8b86", "#b79bf5", "#d9c13c", "#4fd1e0", "#f58bc4",
)  # fmt: skip
SHEET = {
    "text": ("#1a1d21", "#e8ebef"), "soft": ("#555d66", "#a3abb5"),
    "page": ("#ffffff", "#0f1216"), "grid": ("#e3e6ea", "#2a3038"), "axis": ("#8b939c", "#747d88"),
}  # fmt: skip
Entry = Mapping[str, Any]
Steps = Sequence[tuple[int, Entry]]


def figure(name: str, steps: Steps) -> str:
    """Draw all panels; `steps` are (step, what a probe found), oldest first."""
    steps = sorted(steps, key=lambda entry: entry[0])
    step, last = steps[-1]
    rows, tokens = last["tokens"]
    parts = [
        text(MARGIN, 44, f"{name}: probes", 23, "bold"),
        text(
            MARGIN, 66,
            f"{len(steps)} of them, the last at step {step}; memories and activations over "
            f"{rows} x {tokens} held-out tokens. A band goes from the least to the largest of all "
            "layers and copies.",
            LABEL, "soft",
        ),
    ]  # fmt: skip
    y = 92.0
    charts = [chart for chart in _charts(steps) if any(s.points for s in chart.series)]
    for number, chart in enumerate(charts):
        x = MARGIN + (WIDE + GAP) * (number % 2)
        parts += draw_chart(chart, x, y, WIDE, HIGH)
        if number % 2 or number == len(charts) - 1:
            y += HIGH + 26
    ranks, y = _ranks(last, step, y)
    return _document(name, [*parts, *ranks], y + 20)


def _charts(steps: Steps) -> Iterator[Chart]:
    step, last = steps[-1]
    memories = last["memories"]
    along = f"token, at step {step}"
    yield Chart(
        "Surprise: the inner loss before a token's update", "training step",
        _over_steps(steps, lambda m: m.get("loss")),
    )  # fmt: skip
    yield Chart(
        "Surprise along the text", along, _along(memories, lambda m: m.get("loss_by_token", []))
    )
    yield Chart(
        "Norm of a memory's update, the mean over tokens", "training step",
        _over_steps(steps, lambda m: _own_state(m, "update")),
    )  # fmt: skip
    yield Chart(
        "Norm of a memory's state along the text", along,
        _along(memories, lambda m: _own_state(m, "norm_by_token") or []),
    )  # fmt: skip
    still = _still(memories)
    yield Chart(
        "Half-life of gates, in tokens", "training step", _half_lives(steps),
        f"no gate fades: {', '.join(still)}" if still else "",
    )  # fmt: skip
    yield Chart("Levels: norm of the next update, and of W_T - W_0", "training step",
                _levels(steps, lambda entry: entry["norm"]))  # fmt: skip
    yield Chart(
        "Levels: effective rank as a share of the full rank", "training step",
        _levels(steps, lambda entry: entry.get("rank_share")),
        "the mean over matrices; 1 is a matrix that is alike in all directions",
    )  # fmt: skip
    yield Chart(
        f"Activations: singular values over the largest, at step {step}", "number",
        _activations(last["activations"]),
    )  # fmt: skip


# ---- what alike instances share ----------------------------------------------------------------


def family(name: str) -> str:
    """Name an instance without its pass of a repeat.

    >>> family("repeat.0.mixer.M"), family("mixer_1.M")
    ('mixer.M', 'mixer_1.M')
    """
    return re.sub(r"(^|\.)repeat(_\d+)?\.\d+(?=\.)", "", name).lstrip(".")


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(family(name), []).append(name)
    return found


def _spread(x: float, values: Iterable[float | None]) -> list[Point]:
    """Give one point for the values of all instances; none where nothing finite is there."""
    known = [v for v in values if v is not None]
    return [Point(x, sum(known) / len(known), min(known), max(known))] if known else []


def _over_steps(steps: Steps, of: Callable[[Entry], float | None]) -> tuple[Series, ...]:
    """One line for each memory, over training."""
    found = []
    for colour, (name, instances) in enumerate(_grouped(steps[-1][1]["memories"]).items()):
        points: list[Point] = []
        for step, probe in steps:
            points += _spread(step, [of(probe["memories"].get(i, {})) for i in instances])
        found.append(Series(name, tuple(points), colour=colour))
    return tuple(series for series in found if series.points)


def _along(memories: Entry, of: Callable[[Entry], list[float | None]]) -> tuple[Series, ...]:
    """One line for each memory, over the tokens of the piece."""
    found = []
    for colour, (name, instances) in enumerate(_grouped(memories).items()):
        lists = [of(memories[i]) for i in instances]
        points: list[Point] = []
        for t in range(max(map(len, lists), default=0)):
            points += _spread(t + 1, [values[t] for values in lists if values])
        found.append(Series(name, tuple(points), colour=colour))
    return tuple(series for series in found if series.points)


def _own_state(memory: Entry, what: str) -> Any:
    """What is known of the memory itself, which stands before its extra states."""
    states = memory.get("states", {})
    return next(iter(states.values()))[what] if states else None


# ---- gates, levels, activations ----------------------------------------------------------------


def _half_lives(steps: Steps) -> tuple[Series, ...]:
    """One line for each gate that fades: the middle, with a band over copies and instances."""
    found = []
    for name, instances in _grouped(steps[-1][1]["memories"]).items():
        block = name.rpartition(".")[0]
        for gate in dict.fromkeys(
            g for i in instances for g in steps[-1][1]["memories"][i]["gates"]
        ):
            points: list[Point] = []
            for step, probe in steps:
                lives = [
                    probe["memories"].get(i, {}).get("gates", {}).get(gate, {}).get("half_life")
                    for i in instances
                ]
                points += _range(step, [life for life in lives if life is not None])
            found.append(Series(f"{block}.{gate}" if block else gate, tuple(points)))
    return tuple(series for series in found if series.points)


def _range(x: float, ranges: list[list[float | None]]) -> list[Point]:
    """Give one point for the (least, middle, largest) of all instances."""
    middles = [r[1] for r in ranges if r[1] is not None]
    if not middles:
        return []
    ends = [v for r in ranges for v in r if v is not None]
    return [Point(x, sum(middles) / len(middles), min(ends), max(ends))]


def _still(memories: Entry) -> list[str]:
    """List the memories whose gates do not fade, or that have none."""
    found = []
    for name, instances in _grouped(memories).items():
        lives = [
            gate["half_life"][1]
            for i in instances
            for gate in memories[i]["gates"].values()
            if "half_life" in gate
        ]
        if not any(life is not None for life in lives):
            found.append(name)
    return found


def _levels(steps: Steps, of: Callable[[Entry], float | None]) -> tuple[Series, ...]:
    """Two lines for each level of steps: its next update, and the way from the start."""
    found = []
    for colour, level in enumerate(steps[-1][1]["levels"]):
        for what, words, dashed in (
            ("update", "next update", False),
            ("change", "W_T - W_0", True),
        ):
            points: list[Point] = []
            for step, probe in steps:
                entry = probe["levels"].get(level, {}).get(what)
                value = of(entry) if entry is not None else None
                # nothing has moved yet at the first step
                points += _spread(step, [value] if value else [])
            found.append(Series(f"{level}: {words}", tuple(points), dashed, colour))
    return tuple(series for series in found if series.points)


def _activations(activations: Entry) -> tuple[Series, ...]:
    found = []
    for name, instances in _grouped(activations).items():
        lists = [activations[i]["singular"] for i in instances]
        shares = [[s / values[0] for s in values if s > 0] for values in lists if values[0] > 0]
        points: list[Point] = []
        for n in range(max(map(len, shares), default=0)):
            points += _spread(n + 1, [values[n] for values in shares if n < len(values)])
        found.append(Series(name, tuple(points)))
    return tuple(series for series in found if series.points)


# ---- the ranks of all matrices -----------------------------------------------------------------


def _ranks(last: Entry, step: int, y: float) -> tuple[list[str], float]:
    """Draw a row for each matrix, by level: how much of its full rank is used."""
    rows: list[Row] = []
    by_level: dict[str, list[Row]] = {}
    for name, instances in _grouped(last["memories"]).items():
        block = name.rpartition(".")[0]
        spectra = [last["memories"][i]["spectra"] for i in instances]
        for part in spectra[0]:
            found = [s[part] for s in spectra if part in s]
            row = _row(f"{block}.{part}" if block else part, found)
            by_level.setdefault(last["memories"][instances[0]]["level"], []).append(row)
    for name, instances in _grouped(last["weights"]).items():
        own = [last["weights"][i] for i in instances]
        found = [{k: w.get(k, {}).get("spectrum") for k in ("update", "change")} for w in own]
        if any(f["update"] or f["change"] for f in found):
            by_level.setdefault(own[0]["level"] or "never", []).append(_row(name, found))
    for level, entries in by_level.items():
        rows += [Row(f"level {level}"), *entries]
    if not rows:
        return [], y
    title = f"Effective rank of every matrix over its full rank, at step {step}"
    names = ((0, "an update: of a token for a memory, the next one for weights"),
             (1, "the whole change: over the text, or W_T - W_0"))  # fmt: skip
    parts = [text(MARGIN, y + 14, title, 15, "bold")]
    for colour, words in names:
        x = MARGIN + 8 + 420 * colour
        parts += [draw_mark(x, y + 32, colour), text(x + 12, y + 36, words, LABEL)]
    parts += draw_rows(rows, MARGIN, y + 50, PAGE - 2 * MARGIN, NAMES)
    return parts, y + 50 + LINE * len(rows) + 30


def _row(name: str, found: list[Any]) -> Row:
    """Put instances together."""
    dots = []
    for colour, what in enumerate(("update", "change")):
        spectra = [f[what] for f in found if f.get(what)]
        dots += [(colour, p) for p in _spread(0, [s["rank"] / s["full"] for s in spectra])]
    return Row(name, tuple(dots))


def _document(name: str, parts: list[str], high: float) -> str:
    size = f'width="{PAGE:g}" height="{high:g}"'
    light, dark = (_rules(place, colours) for place, colours in enumerate((LIGHT, DARK)))
    style = "\n".join(
        [
            f".probes text{{font-family:{FONTS}}}",
            ".probes .bold{font-weight:600}",
            ".probes .line{fill:none;stroke-width:1.8;stroke-linejoin:round}",
            ".probes .band{stroke:none;opacity:.16}",
            ".probes .grid,.probes .axis{fill:none;stroke-width:1}",
            light,
            "@media screen and (prefers-color-scheme:dark){",
            dark,
            "}",
        ]
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {PAGE:g} {high:g}" '
            f'class="probes" role="img" aria-label="{attribute(name)}: probes">',
            f"<title>{escaped(name)}: probes</title>",
            f"<style>\n{style}\n</style>",
            f'<rect {size} class="page"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _rules(place: int, colours: Sequence[str]) -> str:
    """The rules of a theme, 0 light or 1 dark."""
    fixed = {name: both[place] for name, both in SHEET.items()}
    rules = [
        f".probes text{{fill:{fixed['text']}}}",
        f".probes text.soft{{fill:{fixed['soft']}}}",
        f".probes .page{{fill:{fixed['page']}}}",
        f".probes .grid{{stroke:{fixed['grid']}}}",
        f".probes .axis{{stroke:{fixed['axis']}}}",
    ]
    for number, colour in enumerate(colours):
        rules.append(f".probes .line.c{number}{{stroke:{colour}}}")
        rules.append(f".probes .dot.c{number},.probes .band.c{number}{{fill:{colour}}}")
    return "\n".join(rules)
