"""Continue a text, byte by byte, with constant memory per token.

In: a model, a prompt, how to sample. Out: bytes, one at a time. The state that `model.step` takes
and returns is all that is kept of the past.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nlc.lab.evaluate import BYTES
from nlc.lab.faults import LabError

# a model must read something before it can continue
EMPTY_PROMPT = b"\n"
# bytes of the prompt that are read in one pass
PIECE = 1024


@dataclass(frozen=True)
class Sampling:
    """How the next byte is drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise LabError("--temperature must not be negative", "0 (the likeliest byte) or more")
        if self.top_k is not None and self.top_k < 1:
            raise LabError("--top-k must be at least 1", "1 (the likeliest byte) to 256")


@torch.no_grad()
def continue_text(
    model: nn.Module, prompt: bytes, count: int, sampling: Sampling
) -> Iterator[bytes]:
    """Yield `count` further bytes, one by one."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(sampling.seed)
    model.eval()
    text = torch.tensor(list(prompt or EMPTY_PROMPT), device=device)
    step: Any = model.step
    state = None
    for piece in torch.split(text, PIECE):
        logits, state = model(piece[None], state)
    last = logits[:, -1]
    for number in range(count):
        token = _draw(last[0, :BYTES].float().cpu(), sampling, generator)
        yield bytes([int(token)])
        if number + 1 < count:
            last, state = step(token.to(device).reshape(1), state)


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw one byte from softmax(logits / temperature), among the top k."""
    if not bool(torch.isfinite(logits).all()):
        raise LabError("the model's output is not finite", "an earlier checkpoint or another spec")
    if sampling.temperature == 0:
        return logits.argmax()
    if sampling.top_k is not None and sampling.top_k < len(logits):
        least = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    # shifted first, so that a tiny temperature cannot overflow
    weights = torch.softmax((logits - logits.max()) / max(sampling.temperature, 1e-6), -1)
    return torch.multinomial(weights, 1, generator=generator)[0]


def decoded(pieces: Iterable[bytes]) -> Iterator[str]:
    """Turn bytes into text as it comes, unfinished characters held back, wrong ones replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)
