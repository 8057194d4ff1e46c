"""Train a model on a text or a task, so that a run can stop anywhere and go on exactly.

In: a run folder, a compiled system, a subject. Out: checkpoints and measurements in the folder.
The numbers of a step depend only on the last checkpoint and the step; a run that was interrupted
measures what an uninterrupted one does. Knows no learning rate: the spec's optimizers do.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nlc.lab import checkpoint
from nlc.lab.evaluate import cross_entropy, predict
from nlc.lab.faults import Diverged, LabError
from nlc.lab.lesson import Lesson, Subject, lesson_of
from nlc.lab.progress import Progress
from nlc.lab.run import Run
from nlc.lab.tasks import Examples

# seconds between two checkpoints, where no number of steps is asked for
SAVE_SECONDS = 30.0


class Compiled(Protocol):
    """What training needs of a compiled system."""

    def model(self) -> nn.Module:
        """Make the model with fresh parameters."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer of all step levels."""


@dataclass(frozen=True)
class Outcome:
    """How training ended: `finished`, or `stopped` by the user.

    `held_out` is the last measurement, in the subject's unit.
    """

    how: str
    step: int
    seconds: float
    held_out: float | None
    checkpoint: Path


class Learner:
    """A model with its optimizer at some step: all that a checkpoint holds."""

    def __init__(self, run: Run, compiled: Compiled):
        torch.manual_seed(run.settings.seed)
        self.run = run
        self.device = torch.device(run.settings.device)
        self.model = compiled.model().to(self.device)
        self.optimizer = compiled.optimizer(self.model)
        self.step = 0
        self.seconds = 0.0

    def save(self) -> Path:
        """Write a checkpoint; refuse parameters that are not finite."""
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        if not checkpoint.is_finite(model):
            raise self.diverged("a parameter is not finite")
        random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        nest = {
            "seconds": self.seconds,
            "model": dict(model),
            "optimizer": optimizer,
            "random": random,
        }
        return self.run.save(self.step, nest)

    def restore(self, nest: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        load_model(self.model, nest, self.run)
        try:
            self.optimizer.load_state_dict(nest["optimizer"])
        except (ValueError, KeyError) as error:
            raise LabError(
                f"the checkpoint does not fit the optimizer: {error}",
                "the spec and the version of nlc that the run began with",
            ) from None
        torch.set_rng_state(nest["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in nest["random"]:
            torch.cuda.set_rng_state(nest["random"]["cuda"], self.device)
        self.step, self.seconds = nest["step"], nest["seconds"]

    def learn(self, examples: Examples) -> float:
        """Take one training step on the model's objective; return bits per answer before it.

        The objective is the mean over what is asked, which of a text is every next byte.
        """
        self.model.train()
        objective: Any = getattr(self.model, "loss", cross_entropy)
        found: list[float] = []

        def again() -> Tensor:
            """Compute the loss and its gradients; a rule may ask for them at other values."""
            self.optimizer.zero_grad(set_to_none=True)
            logits, targets = predict(self.model, examples)
            loss: Tensor = objective(logits, targets)
            with torch.no_grad():
                bits = float(cross_entropy(logits, targets)) / math.log(2)
            if not math.isfinite(bits) or not math.isfinite(float(loss.detach())):
                raise self.diverged(f"the loss became {float(loss.detach())}")
            torch.autograd.backward(loss)
            found.append(bits)
            return loss

        try:
            self.optimizer.step(again)  # type: ignore[arg-type]
        except ArithmeticError as error:
            raise LabError(f"the optimizer cannot step: {error}", "other arguments") from None
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return found[0]

    def diverged(self, what: str) -> Diverged:
        """Say that training left the finite numbers, and what is left."""
        kept = self.run.checkpoints()
        left = (
            f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
        )
        return Diverged(
            f"{what} at step {self.step + 1}: training stopped; {left}\n"
            "a smaller learning rate of the step levels, or of the memories' updates, is the first "
            "thing to try"
        )


def load_model(model: nn.Module, nest: dict[str, Any], run: Run) -> None:
    """Put a checkpoint's parameters into a model."""
    try:
        model.load_state_dict(nest["model"])
    except (RuntimeError, KeyError):
        raise LabError(
            f"the checkpoints of {run.folder} do not fit its spec",
            "the spec and the version of nlc that the run began with",
        ) from None


def train(
    run: Run,
    compiled: Compiled,
    subject: Subject,
    progress: Progress,
    probe: Callable[[Learner, Lesson], None] | None = None,
) -> Outcome:
    """Train until the settings' steps or minutes are spent, or the user stops it.

    `probe` looks at the learner at the beginning and at each measurement of what is held out.
    """
    settings = run.settings
    torch.set_num_threads(settings.threads)
    lesson = lesson_of(subject, settings)
    learner = Learner(run, compiled)
    if run.checkpoints():
        learner.restore(run.last())
        run.forget_after(learner.step)
    else:
        run.forget_after(-1)
        learner.save()

    held_out = _measured(run, learner.step)
    saved_at, saved_seconds = learner.step, learner.seconds
    if probe is not None and learner.step == 0:
        probe(learner, lesson)
    with _stop_signals() as stopped, progress:
        begun = time.monotonic() - learner.seconds
        while not _spent(run, learner) and not stopped():
            bits = learner.learn(lesson.at(learner.step))
            learner.seconds = time.monotonic() - begun
            tokens = learner.step * settings.batch * settings.length
            run.note(
                step=learner.step, train=bits, tokens=tokens, seconds=round(learner.seconds, 3)
            )
            progress.step(learner.step, learner.seconds, bits, settings.batch * settings.length)
            if learner.step % settings.eval_every == 0:
                held_out = _evaluate(run, learner, lesson)
                progress.held_out(learner.step, held_out)
                if probe is not None:
                    probe(learner, lesson)
            if _save_is_due(run, learner, saved_seconds):
                learner.save()
                saved_at, saved_seconds = learner.step, learner.seconds
        interrupted = stopped() and not _spent(run, learner)
        if not interrupted and _measured(run, learner.step) is None:
            held_out = _evaluate(run, learner, lesson)
            progress.held_out(learner.step, held_out)
            if probe is not None:
                probe(learner, lesson)
        if saved_at != learner.step:
            learner.save()
    how = "stopped" if interrupted else "finished"
    return Outcome(how, learner.step, learner.seconds, held_out, run.checkpoints()[-1])


def _spent(run: Run, learner: Learner) -> bool:
    """Say whether the budget is used up; with both limits, the first one counts."""
    steps, minutes = run.settings.steps, run.settings.minutes
    return (steps is not None and learner.step >= steps) or (
        minutes is not None and learner.seconds >= 60 * minutes
    )


def _save_is_due(run: Run, learner: Learner, saved_seconds: float) -> bool:
    """Say whether to write a checkpoint now: by steps if the settings say so, else by time."""
    if run.settings.save_every is not None:
        return learner.step % run.settings.save_every == 0
    return learner.seconds - saved_seconds >= SAVE_SECONDS


def _evaluate(run: Run, learner: Learner, lesson: Lesson) -> float:
    """Measure what is held out and note it."""
    with _evaluated_values(learner.optimizer):
        found = lesson.measure(learner.model, learner.step)
    run.note(step=learner.step, **found)
    return float(found["held_out"])


def _measured(run: Run, step: int) -> float | None:
    """The held-out measurement that was taken at just this step, if there is one."""
    found = [m["held_out"] for m in run.measurements() if m.get("step") == step and "held_out" in m]
    return float(found[-1]) if found else None


@contextmanager
def _evaluated_values(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let rules with a line `eval = e` put that value in place for the time being."""
    swap: Callable[[], object] | None = getattr(optimizer, "eval", None)
    back: Callable[[], object] | None = getattr(optimizer, "train", None)
    if swap is None or back is None:
        yield
        return
    swap()
    try:
        yield
    finally:
        back()


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question that training asks between two steps."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # not in the main thread: nobody sends signals here
        old = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
