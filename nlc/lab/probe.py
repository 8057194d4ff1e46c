"""Look inside a system while it trains: each level, each memory, what it learns and what it keeps.

In: a run, its compiled system, a learner at some step, a piece of text. Out: a description in
plain numbers, which a run's measurements keep under `probe`. Changes nothing: a probed run has the
numbers of one that was not. Memories and activations come from the reference interpreter over a
short piece, in float64; parameters and optimizers from training itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlc.ir.system import System
from nlc.lab.checkpoint import load, write_text
from nlc.lab.figure import figure
from nlc.lab.lesson import Lesson, Subject, lesson_of
from nlc.lab.probe_memories import Watched
from nlc.lab.probe_weights import Learner, describe_weights, values_of
from nlc.lab.run import Run
from nlc.lab.spectrum import number
from nlc.lab.tasks import NOTHING, Examples
from nlc.lab.train import Learner as Resumed
from nlc.runtime.reference import Reference

# sequences of the piece that is read, and how many tokens of each, if no window is longer
ROWS, TOKENS = 2, 128


def describe(system: System, model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Describe memories and activations over a piece: tokens and what follows, [rows, length].

    A target NOTHING asks for no answer.
    """
    inputs, targets = inputs.cpu(), targets.cpu()
    watched = Watched(system, inputs.shape[1])
    truth = Reference(system, dict(model.named_parameters()))
    asked = targets != NOTHING
    loss = truth.observe(inputs, targets.where(asked, torch.zeros_like(targets)), watched)
    return {
        "tokens": list(inputs.shape),
        "loss": number(float(loss[asked].mean())),
        "memories": {name: seen.described(loss) for name, seen in watched.memories.items()},
        "activations": watched.activations(),
    }


class Prober:
    """Describes a learner again and again, over the same piece and from the same beginning."""

    def __init__(
        self, system: System, make: Callable[[], nn.Module], seed: int, piece: Examples
    ) -> None:
        self.system, self.piece = system, piece
        with torch.random.fork_rng():
            # what the run began with: parameters are drawn first of all
            torch.manual_seed(seed)
            self.first = values_of(make())

    def __call__(self, learner: Learner, lesson: Lesson) -> dict[str, Any]:
        """Describe the learner at its step."""
        found = describe(self.system, learner.model, self.piece.inputs, self.piece.targets)
        found |= describe_weights(learner, lesson, self.first)
        return found


def prober(
    run: Run, compiled: Any, subject: Subject, tokens: int | None = None
) -> Callable[[Learner, Lesson], None]:
    """Make what training tells of its steps: it notes what it sees, and draws all so far."""
    windows = [m.window for b in compiled.system.blocks for m in b.memories]
    # the longest window, and a token that sees what came of it
    wanted = max(run.settings.probe or TOKENS, *(window + 1 for window in windows), 0)
    tokens = tokens or min(wanted, run.settings.length)
    piece = lesson_of(subject, run.settings).piece(ROWS, tokens)
    look = Prober(compiled.system, compiled.model, run.settings.seed, piece)

    def probe(learner: Learner, lesson: Lesson) -> None:
        run.note(step=learner.step, probe=look(learner, lesson))
        draw(run, compiled.system)

    return probe


def look_at(
    run: Run, compiled: Any, subject: Subject, at: Path | None, tokens: int | None
) -> dict[str, Any]:
    """Probe a checkpoint, the newest if none is named; return its step and what was found."""
    # a GPU may be elsewhere now
    run = replace(run, settings=replace(run.settings, device="cpu"))
    torch.set_num_threads(run.settings.threads)
    learner = Resumed(run, compiled)
    learner.restore(run.last() if at is None else load(at))
    prober(run, compiled, subject, tokens)(learner, lesson_of(subject, run.settings))
    return run.measurements()[-1]


def draw(run: Run, system: System) -> None:
    """Draw what all probes of a run have found."""
    found = {m["step"]: m["probe"] for m in run.measurements() if "probe" in m and "step" in m}
    if found:
        write_text(run.figure, figure(system.name, [*found.items()]))
