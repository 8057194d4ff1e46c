"""`use NAME`: the rules and blocks of another spec, brought in.

In: a tree and a way to read specs by name. Out: the tree with the used rules and blocks, and with
the dims and levels that those need where the spec has none of the name. Reads no file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath

from nlc.diagnostics import Diagnostic, Faults, Label, SpecError
from nlc.errors import nearest
from nlc.source import Source, Span
from nlc.syntax import tree

# gives the tree of a spec by name, None where there is none; raises SpecError
Reader = Callable[[str], tree.Spec | None]


def bring_in(
    spec: tree.Spec, reader: Reader, known: list[str], path: tuple[str, ...] = ()
) -> tuple[tree.Spec, dict[int, Span]]:
    """Bring in what is used; also give, by used source, the `use` line that brought it."""
    faults = Faults()
    places: dict[int, Span] = {}
    rules, blocks = list(spec.rules), list(spec.blocks)
    dims, levels = list(spec.dims), list(spec.levels)
    for use in spec.uses:
        if use.name in path:
            faults.error(
                "NL0312", f"`use {use.name}` is circular", use.span,
                " -> ".join([*path, use.name]), "a spec cannot use itself",
            )  # fmt: skip
            continue
        try:
            found = reader(use.name)
        except SpecError as error:
            faults.found.extend(on_line(d, use.span) for d in error.diagnostics)
            continue
        if found is None:
            close = nearest(use.name, known)
            faults.error(
                "NL0308", f"there is no spec `{use.name}` to use", use.span, "named here",
                f"did you mean `{close}`?" if close
                else "a spec beside this one, or one of the library (`nlc specs` lists them)",
            )  # fmt: skip
            continue
        try:
            used, inner = bring_in(found, reader, known, (*path, use.name))
        except SpecError as error:
            faults.found.extend(on_line(d, use.span) for d in error.diagnostics)
            continue
        places |= dict.fromkeys(inner, use.span)
        for item in (*used.rules, *used.blocks):
            places[id(item.span.source)] = use.span
        own_rules = {r.name for r in rules}
        own_blocks = {b.name for b in blocks}
        rules += [r for r in used.rules if r.name not in own_rules]
        blocks += [b for b in used.blocks if b.name not in own_blocks]
        own_dims = {d.name for d in dims}
        dims += [d for d in used.dims if d.name not in own_dims]
        needed = _levels_of(used.blocks)
        own_levels = {lv.name for lv in levels}
        steps = any(lv.period.unit == "steps" for lv in levels)
        levels += [
            lv for lv in used.levels
            if lv.name not in own_levels
            and (lv.name in needed or (lv.period.unit == "steps" and not steps))
        ]  # fmt: skip
    faults.stop_on_errors()
    whole = replace(
        spec, rules=tuple(rules), blocks=tuple(blocks), dims=tuple(dims), levels=tuple(levels)
    )
    return whole, places


def _levels_of(blocks: tuple[tree.Block, ...]) -> set[str]:
    found: set[str] = set()
    for block in blocks:
        for memory in block.memories:
            found |= set(memory.levels)
        found |= {w.level for w in block.weights if w.level}
    return found


def on_line(diagnostic: Diagnostic, span: Span) -> Diagnostic:
    """Put a used spec's fault on the `use` line; the text names the file and line."""
    labels: list[Label] = []
    for i, label in enumerate(diagnostic.labels):
        text = label.text
        if label.span.source is not span.source:
            text = f"{_line_of(label.span)}: {text}"
        labels.append(Label(span, text, primary=i == 0))
    return replace(diagnostic, labels=tuple(labels) or (Label(span, "in this spec", True),))


def moved(diagnostic: Diagnostic, places: Mapping[int, Span]) -> Diagnostic:
    """Move labels out of sources, by their identity, to a place; the text names file and line."""
    labels: list[Label] = []
    for label in diagnostic.labels:
        place = places.get(id(label.span.source))
        if place is not None:
            text = f"{_line_of(label.span)}: {label.text}"
            label = Label(place, text, label.primary)
        labels.append(label)
    return replace(diagnostic, labels=tuple(labels))


def _line_of(span: Span) -> str:
    return f"{PurePath(span.source.name).name}:{span.line}"


def in_main(
    diagnostics: Iterable[Diagnostic], source: Source, places: Mapping[int, Span]
) -> tuple[Diagnostic, ...]:
    """Move labels that stand in used specs to the `use` lines of the main one.

    What stands in the library, which no line uses, goes to the place of the fault itself.
    """
    elsewhere = {key: span for key, span in places.items() if key != id(source)}
    found: list[Diagnostic] = []
    for diagnostic in diagnostics:
        diagnostic = moved(diagnostic, elsewhere)
        primary = next((x.span for x in diagnostic.labels if x.primary), None)
        if primary is not None and primary.source is source:
            others = {id(x.span.source) for x in diagnostic.labels} - {id(source)}
            diagnostic = moved(diagnostic, dict.fromkeys(others, primary))
        found.append(diagnostic)
    return tuple(found)
