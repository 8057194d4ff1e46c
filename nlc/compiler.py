"""The pipeline: from a spec to a typed system, a report, a compiled system.

    read       path, text -> source              parse      source -> tree
    use, set   tree -> tree                      resolve    tree -> System
    plan       System -> Plan                    emit       System, Plan -> package

The only place that knows the order of the stages, and the only one here that opens files: those of
the spec's own folder and of the shipped library. Analysis loads no torch; `compile` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlc.diagnostics import Diagnostic, SpecError
from nlc.ir.cost import Cost
from nlc.ir.schedule import Plan
from nlc.ir.stability import Verdict
from nlc.ir.system import Level, System
from nlc.library import library_folder, shipped_rules
from nlc.semantics.resolve import resolve
from nlc.semantics.settings import apply_settings
from nlc.semantics.uses import bring_in, in_main
from nlc.source import Source
from nlc.syntax import tree
from nlc.syntax.read import parse_source, read_source

if TYPE_CHECKING:
    from nlc.compiled import Compiled

FORMS = {".nl": "nl", ".yaml": "yaml", ".yml": "yaml"}


@dataclass(frozen=True)
class Report:
    """What `check` found out.

    `stability` is by `block.memory`; `cost` is None for a system that cannot run yet.
    """

    diagnostics: tuple[Diagnostic, ...]
    levels: tuple[Level, ...]
    plan: Plan
    stability: Mapping[str, Verdict]
    cost: Cost | None = None


def load(path: str | Path, set: Mapping[str, Any] | None = None) -> System:
    """Read a spec and resolve it.

    `set` changes it first: `{"dims.d": 128}`. Raises `SpecError` with all faults of a stage.
    """
    path = Path(path)
    source, form = read_source(path)
    return _resolve(source, form, path.parent, set or {})


def parse(text: str, form: str = "nl", set: Mapping[str, Any] | None = None) -> System:
    """Resolve a spec given as text (`form` is `nl` or `yaml`); it can use the library's specs."""
    return _resolve(Source("<text>", text), form, None, set or {})


def _resolve(source: Source, form: str, folder: Path | None, set: Mapping[str, Any]) -> System:
    spec = parse_source(source, form)
    whole, places = bring_in(spec, _reader(folder), _known(folder), (spec.name or "",))
    whole = apply_settings(whole, set)
    try:
        found = resolve(whole, source, shipped_rules())
    except SpecError as error:
        raise SpecError(in_main(error.diagnostics, source, places)) from None
    changes = tuple((name, str(value)) for name, value in set.items())
    return replace(found, picture=_picture, uses=places, changes=changes)


def _picture(system: System) -> str:
    from nlc.view import as_svg

    return as_svg(system)


def check(system: System) -> Report:
    """Say what there is to know of a system: warnings, levels, schedules, stability, cost.

    Raises `SpecError` where an optimizer cannot move what lives at its level.
    """
    from nlc.optimizers import optimizer_faults
    from nlc.passes.cost import cost
    from nlc.passes.plan import plan
    from nlc.passes.stability import stability

    if faults := optimizer_faults(system):
        raise SpecError(in_main(faults, system.source, system.uses))
    found = plan(system)
    steady = stability(system, found)
    warnings = (*system.warnings, *steady.warnings)
    shown = in_main(warnings, system.source, system.uses)
    return Report(shown, system.levels, found, steady.verdicts, cost(system, found))


def compile(system: System, target: str = "auto") -> Compiled:
    """Compile a system for a target; a wrong spec raises `SpecError` and nothing else."""
    from nlc.compiled import compile_system

    try:
        return compile_system(system, target)
    except SpecError as error:
        raise SpecError(in_main(error.diagnostics, system.source, system.uses)) from None


# ---- where specs are found ---------------------------------------------------------------------


def _folders(folder: Path | None) -> list[Path]:
    return [library_folder()] if folder is None else [folder, library_folder()]


def _known(folder: Path | None) -> list[str]:
    return sorted(
        {p.stem for place in _folders(folder) for p in place.glob("*") if p.suffix in FORMS}
    )


def _reader(folder: Path | None):  # type: ignore[no-untyped-def]
    def read(name: str) -> tree.Spec | None:
        for place in _folders(folder):
            for suffix in FORMS:
                path = place / f"{name}{suffix}"
                if path.is_file():
                    source, form = read_source(path)
                    return parse_source(source, form)
        return None

    return read
