"""Generating: reproducible, one byte at a time, from the state alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from nlc.lab.faults import LabError
from nlc.lab.generate import Sampling, continue_text, decoded

sys.path.insert(0, str(Path(__file__).parent))
import fake


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return fake.Model()


def generate(model: torch.nn.Module, count: int = 20, **sampling: object) -> bytes:
    return b"".join(continue_text(model, b"the cat", count, Sampling(**sampling)))


def test_the_same_seed_gives_the_same_text(model: torch.nn.Module) -> None:
    assert generate(model, seed=1) == generate(model, seed=1) != generate(model, seed=2)
    assert generate(model, 5, seed=1) == generate(model, 20, seed=1)[:5]


def test_temperature_zero_and_top_one_take_the_likeliest(model: torch.nn.Module) -> None:
    best = generate(model, temperature=0.0)
    assert generate(model, top_k=1, seed=5) == best
    assert generate(model, temperature=1e-9, seed=5) == best
    state, text = None, list(b"the cat")
    for byte in best:
        logits, _ = model(torch.tensor([text]), state)
        assert byte == int(logits[0, -1].argmax())
        text.append(byte)


def test_an_empty_prompt_and_no_tokens(model: torch.nn.Module) -> None:
    assert len(b"".join(continue_text(model, b"", 3, Sampling()))) == 3
    assert b"".join(continue_text(model, b"a", 0, Sampling())) == b""


def test_a_long_prompt_is_read_in_pieces(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = b"".join(continue_text(model, b"the cat " * 9, 8, Sampling(0.0)))
    monkeypatch.setattr("nlc.lab.generate.PIECE", 7)
    assert b"".join(continue_text(model, b"the cat " * 9, 8, Sampling(0.0))) == whole


def test_memory_per_token_is_constant(model: torch.nn.Module) -> None:
    """No call sees more than one byte after the prompt."""
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    generate(model, 10)
    assert seen == [(1, 7)] + [(1, 1)] * 9


def test_wrong_numbers_are_clear_errors(model: torch.nn.Module) -> None:
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}):
        with pytest.raises(LabError):
            Sampling(**wrong)
    with torch.no_grad():
        model.out.bias.fill_(float("nan"))
    with pytest.raises(LabError, match="not finite"):
        generate(model)


def test_bytes_become_text_as_they_come() -> None:
    pieces = [bytes([b]) for b in "aé系".encode() + b"\xff" + b"\xe7"]
    assert "".join(decoded(pieces)) == "aé系��"
