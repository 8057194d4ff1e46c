"""Texts, their split, and batches that depend on seed and step alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nlc.lab.data import NAMED, Batches, Corpus, again, from_file, named, windows
from nlc.lab.faults import LabError

TEXT = bytes(range(256)) * 4


def test_the_last_tenth_is_held_out() -> None:
    corpus = Corpus("text", "t", TEXT)
    assert len(corpus.held_out) == 102 and len(corpus.train) == 922
    assert bytes(corpus.train.tolist()) + bytes(corpus.held_out.tolist()) == TEXT


def test_batches_depend_on_seed_and_step() -> None:
    data = Corpus("text", "t", TEXT).train
    batches = Batches(data, batch=4, length=8, seed=3)
    assert torch.equal(batches.at(5), Batches(data, 4, 8, 3).at(5))
    assert not torch.equal(batches.at(5), batches.at(6))
    assert not torch.equal(batches.at(5), Batches(data, 4, 8, 4).at(5))
    window = batches.at(0)
    assert window.shape == (4, 9) and window.dtype == torch.int64
    assert ((window[:, 1:] - window[:, :-1]) % 256 == 1).all()


def test_the_shortest_text_that_fills_a_window() -> None:
    data = torch.arange(9, dtype=torch.uint8)
    assert Batches(data, 2, 8, 0).at(0).tolist() == [list(range(9))] * 2
    with pytest.raises(LabError, match="too short"):
        Batches(data, 2, 9, 0)


def test_windows_cover_a_text_once() -> None:
    data = torch.arange(100, dtype=torch.uint8)
    targets = torch.cat([w[:, 1:].flatten() for w in windows(data, batch=3, length=10)])
    assert targets.tolist() == list(range(1, 91))
    assert sum(w[:, 1:].numel() for w in windows(data, 3, 10, limit=35)) == 30
    assert [w.shape for w in windows(data, 3, 500)] == [(1, 100)]
    with pytest.raises(LabError, match="too short"):
        list(windows(data[:1], 3, 10))


def test_named_texts_are_there() -> None:
    assert set(NAMED) == {"pydoc_data.topics", "stdlib"}
    topics = named("pydoc_data.topics")
    assert len(topics.text) > 300_000 and b"assert" in topics.text
    assert again(topics.kind, topics.name).sha256 == topics.sha256
    with pytest.raises(LabError, match="no data named") as caught:
        named("pile")
    assert "pydoc_data.topics" in caught.value.hint


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    corpus = from_file(str(tmp_path / "a.txt"))
    assert corpus.text == TEXT and again(corpus.kind, corpus.name).sha256 == corpus.sha256
    (tmp_path / "empty").write_bytes(b"")
    for wrong in ("empty", "missing", "."):
        with pytest.raises(LabError):
            from_file(str(tmp_path / wrong))


def test_what_has_no_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="is a device"):
        from_file("/dev/zero")
    monkeypatch.setattr("nlc.lab.data.MAX_BYTES", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(LabError, match="larger than 10 bytes"):
        from_file(str(tmp_path / "large"))
    with pytest.raises(LabError, match="cannot read"):
        from_file("a" * 5000)
