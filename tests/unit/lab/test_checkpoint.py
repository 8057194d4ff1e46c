"""A nest comes back bit by bit, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nlc.lab import checkpoint
from nlc.lab.faults import LabError


def test_a_nest_comes_back(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    nest = {
        "a.b": torch.arange(3),
        "a": {"b": torch.tensor(0.1, dtype=torch.bfloat16), 3: [1, 2.5, None, True, "x"]},
        "tuple": (shared, shared[0], shared.t(), torch.zeros(0, 2)),
        "float": [float("inf"), 1e-300],
    }
    checkpoint.save(tmp_path / "c.safetensors", nest)
    found = checkpoint.load(tmp_path / "c.safetensors")
    assert found["a"][3] == [1, 2.5, None, True, "x"] and found["float"] == nest["float"]
    assert list(found) == list(nest)
    for before, after in [
        (nest["a.b"], found["a.b"]),
        (nest["a"]["b"], found["a"]["b"]),
        *zip(nest["tuple"], found["tuple"], strict=True),
    ]:
        assert before.dtype == after.dtype and torch.equal(before, after)


def test_an_optimizer_comes_back(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), betas=(0.8, 0.9))
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path / "c", optimizer.state_dict())
    other = torch.optim.AdamW(layer.parameters())
    other.load_state_dict(checkpoint.load(tmp_path / "c"))
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(
        other.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


def test_nothing_but_plain_values_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold set"):
        checkpoint.save(tmp_path / "c", {"a": {1}})


def test_the_old_file_stays_if_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "c", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match="No space left"):
        checkpoint.save(tmp_path / "c", {"a": 2})
    assert checkpoint.load(tmp_path / "c") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("content", [b"", b"x" * 50, b"\xff" * 8])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(LabError, match="cannot read the checkpoint"):
        checkpoint.load(tmp_path / "c")
