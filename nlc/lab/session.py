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
from nlc.lab import run as folders
from nlc.lab.data import Batches, Corpus, again
from nlc.lab.evaluate import BYTES
from nlc.lab.faults import LabError
from nlc.lab.run import Origin, Run, Settings
from nlc.lab.train import load_model
from nlc.syntax.read import parse_source, read_source


def begin(
    spec: Path,
    changes: Mapping[str, str],
    target: str,
    corpus: Corpus,
    settings: Settings,
    out: Path | None,
) -> tuple[Run, Any]:
    """Compile a spec and make its run folder; raises `nlc.SpecError` for a wrong spec."""
    system = nlc.load(spec, set=dict(changes))
    if system.model is None:
        raise LabError(
            f"{system.name} has no model, only blocks", "a spec with a `model`, which reads tokens"
        )
    if system.model.vocab < BYTES:
        raise LabError(
            f"the model's vocab is {system.model.vocab}, and a text has {BYTES} different bytes",
            "`vocab bytes` in the model, or --set model.vocab=256",
        )
    # a text that is too short is a fault before there is a folder
    Batches(corpus.train, settings.batch, settings.length, settings.seed)
    compiled = nlc.compile(system, target=target)
    folder = out or folders.free_folder(system.name)
    with folders.new_folder(folder):
        copied = _copy_spec(spec, folder / "spec")
        compiled.write(folder / "package")
        return _written(folder, copied, system.name, changes, target, corpus, settings), compiled


def _written(
    folder: Path,
    copied: Path,
    name: str,
    changes: Mapping[str, str],
    target: str,
    corpus: Corpus,
    settings: Settings,
) -> Run:
    """Write what a run is made of, which makes the folder a run."""
    origin = Origin(
        name=name,
        spec=str(copied.relative_to(folder)),
        set=dict(changes),
        target=target,
        data={"kind": corpus.kind, "name": corpus.name, "sha256": corpus.sha256},
        command=folders.command(),
        versions=folders.versions(),
    )
    return folders.write(folder, origin, settings)


def reopen(folder: Path, **changed: Any) -> tuple[Run, Any, Corpus]:
    """Open a run to train on; `changed` are settings that replace its own."""
    run = folders.read(folder)
    corpus = corpus_of(run)
    if changed:
        settings = replace(run.settings, **changed)
        run = folders.write(folder, run.origin, settings)
    return run, compiled_of(run), corpus


def corpus_of(run: Run) -> Corpus:
    """Return the text that a run trains on; an error if it is not the same any more."""
    data = run.origin.data
    corpus = again(data["kind"], data["name"])
    if corpus.sha256 != data["sha256"]:
        raise LabError(
            f"{data['name']} is not the text that this run began with", "that text, unchanged"
        )
    return corpus


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


def _copy_spec(spec: Path, folder: Path) -> Path:
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
