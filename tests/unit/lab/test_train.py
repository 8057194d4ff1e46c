"""Training learns, goes on exactly where it was, and says clearly when it cannot."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nlc.lab import checkpoint
from nlc.lab.data import Corpus
from nlc.lab.faults import Diverged, LabError
from nlc.lab.progress import Shown
from nlc.lab.run import Run, free_folder, make_folder, new_folder, read
from nlc.lab.train import Outcome, train

sys.path.insert(0, str(Path(__file__).parent))
import fake

CORPUS = Corpus("text", "t", fake.TEXT)


def go(run: Run, compiled: Any = None) -> Outcome:
    return train(run, compiled or fake.Compiled(), CORPUS, Shown(None, None))


def numbers(run: Run) -> list[dict[str, Any]]:
    """The measurements less what a clock says."""
    return [{k: v for k, v in m.items() if k != "seconds"} for m in run.measurements()]


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and all(map(same, a, b))
    return a == b


def assert_same_run(a: Run, b: Run) -> None:
    assert numbers(a) == numbers(b)
    one, other = a.last(), b.last()
    one.pop("seconds"), other.pop("seconds")
    assert same(one, other)


def test_it_learns_and_measures(tmp_path: Path) -> None:
    run = fake.begin(tmp_path / "run", steps=60)
    outcome = go(run)
    assert (outcome.how, outcome.step) == ("finished", 60)
    lines = run.measurements()
    train_bits = [m["train"] for m in lines if "train" in m]
    assert len(train_bits) == 60 and train_bits[-1] < train_bits[0] - 1
    assert [m["step"] for m in lines if "held_out" in m] == [8, 16, 24, 32, 40, 48, 56, 60]
    assert outcome.held_out == lines[-1]["held_out"] < 6
    assert [p.name for p in run.checkpoints()] == [
        "step-00000055.safetensors",
        "step-00000060.safetensors",
    ]


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    runs = [fake.begin(tmp_path / n, steps=12) for n in "ab"]
    for run in runs:
        go(run)
    assert_same_run(*runs)
    other = fake.begin(tmp_path / "c", steps=12, seed=1)
    go(other)
    assert numbers(other) != numbers(runs[0])


class Stops(fake.Compiled):
    """Sends itself a Ctrl-C in the middle of a step."""

    def __init__(self, at: int, number: int = signal.SIGINT):
        super().__init__()
        self.at, self.number, self.steps = at, number, 0

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().optimizer(module)

        def count(*_: object) -> None:
            self.steps += 1
            if self.steps == self.at:
                os.kill(os.getpid(), self.number)

        optimizer.register_step_pre_hook(count)
        return optimizer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_by_the_user_goes_on_exactly(tmp_path: Path, number: int) -> None:
    whole = fake.begin(tmp_path / "whole", steps=20)
    go(whole)
    cut = fake.begin(tmp_path / "cut", steps=20)
    outcome = go(cut, Stops(13, number))
    assert (outcome.how, outcome.step) == ("stopped", 13)
    assert go(read(tmp_path / "cut")).how == "finished"
    assert_same_run(whole, cut)


def test_a_killed_run_goes_on_exactly(tmp_path: Path) -> None:
    script, settings = str(Path(fake.__file__)), json.dumps({"steps": 400})
    command = [sys.executable, script, str(tmp_path / "cut"), settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if metrics.exists() and metrics.read_bytes().count(b"\n") > 12:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    cut = read(tmp_path / "cut")
    steps = [m["step"] for m in cut.measurements()]
    assert steps and max(steps) < 400, "it was killed too late to show anything"
    # as if the kill had come in the middle of a line, and of a checkpoint
    with open(metrics, "a", encoding="utf-8") as file:
        file.write('{"step": 4')
    (tmp_path / "cut" / "checkpoints" / ".step-00000099.safetensors.new").write_bytes(b"half")
    subprocess.run(command, check=True, capture_output=True)
    whole = fake.begin(tmp_path / "whole", steps=400)
    go(whole)
    assert_same_run(whole, read(tmp_path / "cut"))


KILLED_WHILE_SAVING = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import fake
from nlc.lab import checkpoint
from pathlib import Path
save, replace = checkpoint.save_file, os.replace
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def save_half(tensors, path, **more):
    save(tensors, path, **more)
    if "00000010" in str(path):
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: len(data) // 2])
        die()
def replace_not(old, new):
    die() if "00000010" in str(new) else replace(old, new)
if {when!r} == "writing":
    checkpoint.save_file = save_half
else:
    os.replace = replace_not
fake.train(fake.begin(Path("cut"), steps=20), fake.Compiled(), fake.Corpus("text", "t", fake.TEXT),
           fake.Shown(None, None))
"""


@pytest.mark.parametrize("when", ["writing", "renaming"])
def test_a_run_killed_while_it_saves_goes_on_exactly(tmp_path: Path, when: str) -> None:
    code = KILLED_WHILE_SAVING.format(folder=str(Path(fake.__file__).parent), when=when)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    cut = read(tmp_path / "cut")
    assert [p.name for p in cut.checkpoints()][-1] == "step-00000005.safetensors"
    assert max(m["step"] for m in cut.measurements()) == 10
    go(cut)
    whole = fake.begin(tmp_path / "whole", steps=20)
    go(whole)
    assert_same_run(whole, cut)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run = fake.begin(tmp_path / "run", steps=10)
    go(run)
    before = numbers(run)
    assert go(run).how == "finished"
    assert numbers(run) == before


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole, run = (fake.begin(tmp_path / n, steps=20) for n in "ab")
    go(whole)
    go(run)
    newest = run.checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    go(run)
    assert_same_run(whole, run)


def test_minutes_end_a_run(tmp_path: Path) -> None:
    run = fake.begin(tmp_path / "run", minutes=0.005)
    outcome = go(run)
    assert outcome.how == "finished" and outcome.step > 0 and outcome.seconds >= 0.3


class Explodes(fake.Compiled):
    """Its parameters, and so its loss, become infinite at a step."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().optimizer(module)
        steps = iter(range(1, 1000))

        def hook(*_: object) -> None:
            if next(steps) == self.at:
                with torch.no_grad():
                    next(module.parameters()).fill_(math.inf)

        optimizer.register_step_post_hook(hook)
        return optimizer


@pytest.mark.parametrize(("at", "kept"), [(7, 5), (10, 5)])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, at: int, kept: int
) -> None:
    run = fake.begin(tmp_path / "run", steps=20, eval_every=100)
    with pytest.raises(Diverged, match=f"at step {at + 1}.*\n?.*step-0000000{kept}"):
        go(run, Explodes(at))
    assert run.last()["step"] == kept
    assert checkpoint.is_finite(run.last()["model"])


def test_a_full_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LabError, match="not empty"):
        make_folder(tmp_path)


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot make the run folder"):
        make_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"settings": {"warp": 9}}', '{"a": 1}'])
def test_what_is_no_run_folder_is_a_clear_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(LabError):
        read(tmp_path)


def test_a_checkpoint_of_another_model_is_a_clear_error(tmp_path: Path) -> None:
    run = fake.begin(tmp_path / "run", steps=4)
    go(run)

    class Other(fake.Compiled):
        def model(self) -> nn.Module:
            return fake.Model(vocab=300)

    with pytest.raises(LabError, match="do not fit"):
        go(run, Other())


def test_folders_are_numbered(tmp_path: Path) -> None:
    assert free_folder("a", tmp_path / "runs") == tmp_path / "runs" / "a-001"
    assert free_folder("a", tmp_path / "runs") == tmp_path / "runs" / "a-002"


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: free_folder("a", tmp_path), range(40)))
    assert len(set(found)) == 40


def test_a_numbered_folder_is_taken_away_where_a_run_could_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError), new_folder(None, "a") as folder:
        raise KeyError(folder)
    assert not list((tmp_path / "runs").iterdir())
