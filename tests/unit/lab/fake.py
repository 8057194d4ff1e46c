"""A small recurrent model with the interface of a compiled system, and a run to train it in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from nlc.lab.data import Corpus
from nlc.lab.progress import Shown
from nlc.lab.run import Origin, Run, Settings, make_folder, read, write
from nlc.lab.train import train

TEXT = b"".join(b"the cat number %d sat on the mat. " % (i % 17) for i in range(400))


class Model(nn.Module):
    """h = a h + W e(token): one decaying vector per sequence."""

    def __init__(self, vocab: int = 256, width: int = 16):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = torch.zeros(len(tokens), 16) if state is None else state
        seen = []
        for x in self.embed(tokens).unbind(1):
            h = 0.5 * h + self.mix(x)
            seen.append(self.out(torch.tanh(h)))
        return torch.stack(seen, 1), h

    def step(self, token: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, state = self(token[:, None], state)
        return logits[:, 0], state


class Compiled:
    """What `nlc.compile` gives, as far as training needs it."""

    def __init__(self, lr: float = 1e-2):
        self.lr = lr

    def model(self) -> nn.Module:
        return Model()

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=self.lr)


def begin(folder: Path, **settings: object) -> Run:
    make_folder(folder)
    origin = Origin("fake", "spec.nl", {}, "torch", {"kind": "text", "name": "t"}, "nlc", {})
    defaults = {"batch": 2, "length": 16, "eval_every": 8, "save_every": 5, "eval_bytes": 256}
    return write(folder, origin, Settings(**(defaults | settings)))


if __name__ == "__main__":
    # python fake.py FOLDER '{"steps": 20}': begin, or go on if it is there
    where = Path(sys.argv[1])
    if (where / "run.json").exists():
        found = read(where)
    else:
        found = begin(where, **json.loads(sys.argv[2]))
    outcome = train(found, Compiled(), Corpus("text", "t", TEXT), Shown(None, None))
    print(outcome.how, outcome.step)
