"""Begin a run from a spec, or open one again: what stands between a run folder and the compiler.

In: a spec's path and settings, or a run folder. Out: a `Run` and its compiled system.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nlc
import nlc.compiler
from nlc.ir.system import System
from nlc.lab import lesson
from nlc.lab import run as folders
from nlc.lab.faults import LabError
from nlc.lab.lesson import Subject
from nlc.lab.run import Origin, Run, Settings
from nlc.lab.train import load_model
from nlc.syntax.read import parse_source, read_source


def begin(
    spec: Path,
    changes: Mapping[str, str],
    target: str,
    subject: Subject,
    settings: Settings,
    out: Path | None,
) -> tuple[Run, Any]:
    """Compile a spec and make its run folder; raises `nlc.SpecError` for a wrong spec."""
    system = nlc.load(spec, set=dict(changes))
    check_model(system, subject)
    # a text that is too short is a fault before there is a folder
    lesson.check_fit(subject, settings)
    compiled = nlc.compile(system, target=target)
    with folders.new_folder(out, system.name) as folder:
        copied = copy_spec(spec, folder / "spec")
        compiled.write(folder / "package")
        return _written(folder, copied, system.name, changes, target, subject, settings), compiled


def check_model(system: System, subject: Subject) -> None:
    """Refuse a system that cannot read a subject's tokens or cannot answer."""
    if system.model is None:
        raise LabError(
            f"{system.name} has no model, only blocks", "a spec with a `model`, which reads tokens"
        )
    tokens, words = lesson.vocab_of(subject)
    if system.model.vocab < tokens:
        raise LabError(
            f"the model's vocab is {system.model.vocab}, and {words.format(tokens)}",
            "`vocab bytes` in the model, or --set model.vocab=256",
        )


def _written(
    folder: Path,
    copied: Path,
    name: str,
    changes: Mapping[str, str],
    target: str,
    subject: Subject,
    settings: Settings,
) -> Run:
    """Write what a run is made of, which makes the folder a run."""
    origin = Origin(
        name=name,
        spec=str(copied.relative_to(folder)),
        set=dict(changes),
        target=target,
        data=lesson.named(subject),
        command=folders.command(),
        versions=folders.versions(),
    )
    return folders.write(folder, origin, settings)


def reopen(folder: Path, **changed: Any) -> tuple[Run, Any, Subject]:
    """Open a run to train on; `changed` are settings that replace its own."""
    run = folders.read(folder)
    subject = subject_of(run)
    if changed:
        settings = replace(run.settings, **changed)
        run = folders.write(folder, run.origin, settings)
    return run, compiled_of(run), subject


def subject_of(run: Run) -> Subject:
    """Return what a run trains on; an error if it is not the same any more."""
    return lesson.again(run.origin.data)


def compiled_of(run: Run) -> Any:
    """Compile a run's spec again."""
    system = nlc.load(run.spec, set=dict(run.origin.set))
    return nlc.compile(system, target=run.origin.target)


def trained_model(run: Run, compiled: Any, device: str) -> nn.Module:
    """Return a run's model with the parameters of its newest checkpoint."""
    nest = run.last()
    model: nn.Module = compiled.model()
    load_model(model, nest, run)
    return model.to(torch.device(device))


def copy_spec(spec: Path, folder: Path) -> Path:
    """Copy a spec, and the specs beside it that it uses, however deep."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, seen = [spec], {spec}
    while waiting:
        path = waiting.pop()
        shutil.copyfile(path, folder / path.name)
        for use in parse_source(*read_source(path)).uses:
            beside = [path.with_name(use.name + form) for form in nlc.compiler.FORMS]
            used = next((file for file in beside if file.is_file()), None)
            if used is not None and used not in seen:
                seen.add(used)
                waiting.append(used)
    return folder / spec.name
