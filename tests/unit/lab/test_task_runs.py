"""Training on tasks: what is asked counts and nothing else, runs go on exactly, streams forget."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nlc.lab import lesson
from nlc.lab.evaluate import answers, cross_entropy, predict
from nlc.lab.faults import LabError
from nlc.lab.lesson import TaskLesson, forgetting
from nlc.lab.progress import Shown
from nlc.lab.run import Settings, read
from nlc.lab.tasks import NOTHING, Examples, find_task
from nlc.lab.train import train

sys.path.insert(0, str(Path(__file__).parent))
import fake


class Oracle(nn.Module):
    """Answers as it is told, some of it wrong."""

    def __init__(self, targets: Tensor):
        super().__init__()
        self.rows: Iterator[Tensor] = iter(targets)
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, tokens: Tensor, state: object = None) -> tuple[Tensor, object]:
        found = torch.stack([next(self.rows) for _ in tokens]).clamp(min=0)
        return self.scale * nn.functional.one_hot(found, 256).float(), None


def test_answers_are_counted_where_something_is_asked() -> None:
    targets = torch.full((4, 6), NOTHING)
    targets[:, 2:4] = torch.tensor([[5, 6], [5, 7], [5, 5], [5, 6]])
    said = targets.clone()
    said[0, 2], said[1] = 9, 8
    # what is said where nothing is asked does not count
    said[2, 0] = 77
    found = answers(Oracle(said), Examples(torch.zeros_like(targets), targets))
    assert (found.asked, found.right, found.sequences, found.whole) == (8, 5, 4, 2)
    assert found.accuracy == 5 / 8 and found.exact == 0.5 and found.guess == 5 / 8


def test_a_choice_among_some_answers_is_counted_besides() -> None:
    targets = torch.tensor([[5], [6], [6]])
    model = Oracle(torch.tensor([[5], [9], [9]]))
    # what is not said is equally unlikely, and then the first of the choices is taken
    found = answers(model, Examples(torch.zeros_like(targets), targets), range(6, 8))
    assert (found.right, found.chosen) == (1, 2)


def test_many_sequences_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = find_task("mqar").examples(0, 0, 10, 32)
    torch.manual_seed(0)
    model = fake.Model()
    whole = answers(model, examples)
    monkeypatch.setattr("nlc.lab.evaluate.TOKENS", 96)
    pieces = answers(model, examples)
    assert (pieces.right, pieces.whole) == (whole.right, whole.whole)
    assert pieces.bits == pytest.approx(whole.bits, rel=1e-6)


def test_the_loss_is_the_mean_over_what_is_asked() -> None:
    torch.manual_seed(0)
    model, examples = fake.Model(), find_task("copy").examples(0, 0, 3, 20)
    logits, targets = predict(model, examples)
    whole, _ = model(examples.inputs)
    by_hand = torch.nn.functional.cross_entropy(
        whole.transpose(1, 2), examples.targets, ignore_index=NOTHING
    )
    torch.testing.assert_close(cross_entropy(logits, targets), by_hand)


def begun(folder: Path, words: str, **settings: Any) -> tuple[Any, Any]:
    task = find_task(words)
    run = fake.begin(folder, **({"length": 20, "batch": 4} | settings))
    run = replace(run, origin=replace(run.origin, data=lesson.named(task)))
    (folder / "run.json").write_text(
        json.dumps(json.loads((folder / "run.json").read_text()) | {"data": run.origin.data})
    )
    return run, task


def go(run: Any, subject: Any) -> Any:
    return train(run, fake.Compiled(), subject, Shown(None, None))


def numbers(run: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if k != "seconds"} for m in run.measurements()]


def test_a_task_is_learned_and_measured(tmp_path: Path) -> None:
    run, task = begun(tmp_path / "run", "aa", steps=60, batch=8, eval_every=30)
    outcome = go(run, task)
    lines = [m for m in run.measurements() if "held_out" in m]
    assert [m["step"] for m in lines] == [30, 60]
    assert outcome.held_out == lines[-1]["held_out"] < lines[0]["held_out"]
    assert {"accuracy", "exact"} <= set(lines[0])


def test_a_run_on_a_task_goes_on_exactly(tmp_path: Path) -> None:
    whole, task = begun(tmp_path / "whole", "mqar:pairs=2", steps=12)
    go(whole, task)
    cut, _ = begun(tmp_path / "cut", "mqar:pairs=2", steps=5)
    go(cut, task)
    again = read(cut.folder)
    again = replace(again, settings=replace(again.settings, steps=12))
    subject = lesson.again(again.origin.data)
    assert subject == task
    go(again, subject)
    # the shorter run measured its own end, too
    assert [m for m in numbers(again) if m["step"] != 5 or "train" in m] == numbers(whole)
    one, other = again.last()["model"], whole.last()["model"]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stream_is_seen_part_by_part_and_measured_on_all(tmp_path: Path) -> None:
    run, task = begun(tmp_path / "run", "modules:classes=4,group=2,steps=6", steps=12, eval_every=6)
    go(run, task)
    rows = [m for m in run.measurements() if "parts" in m]
    assert [(m["step"], m["part"]) for m in rows] == [(6, 0), (12, 1)]
    assert all(len(m["parts"]) == 2 for m in rows)
    assert all(t >= p for m in rows for t, p in zip(m["told"], m["parts"], strict=True))
    assert rows[1]["known"] == pytest.approx(sum(rows[1]["parts"]) / 2)
    found = TaskLesson(task, run.settings)
    assert set(found.at(5).targets[:, -1].tolist()) <= {128, 129}
    assert set(found.at(6).targets[:, -1].tolist()) <= {130, 131}


def test_forgetting_is_what_was_known_less_what_is_left() -> None:
    rows = [
        {"part": 0, "parts": [0.9, 0.0, 0.1]},
        {"part": 1, "parts": [0.95, 0.8, 0.0]},
        {"step": 3, "train": 1.0},
        {"part": 2, "parts": [0.5, 0.7, 1.0]},
    ]
    assert forgetting(rows) == pytest.approx((0.45 + 0.1) / 2)
    assert forgetting(rows[:1]) is None and forgetting([]) is None


def test_a_task_made_of_another_text_is_not_gone_on_with() -> None:
    data = dict(lesson.named(find_task("modules")))
    assert lesson.again(data) == find_task("modules")
    with pytest.raises(LabError, match="not made of the text"):
        lesson.again(data | {"sha256": "0"})


def test_settings_that_a_task_cannot_meet_are_refused() -> None:
    with pytest.raises(LabError, match="cannot be made in 3 tokens"):
        lesson.check_fit(find_task("mqar"), Settings(length=3))
