"""A step of compiled optimizers beside torch's, and beside the matrix products that they need.

In: the number of rounds. Out: a Markdown table. The parameters are those of a transformer of 30
million; everything is compared with torch, or with the equation by hand, before it is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import nlc
from bench.measure import shown, side_by_side

WIDTH, HIDDEN, LAYERS, VOCAB = 512, 2048, 9, 256
STEPS = 5  # of an orthogonalisation


def parameters(width: int = WIDTH, layers: int = LAYERS, device: str = "cpu") -> list[nn.Parameter]:
    """Make the parameters of a transformer, with gradients."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = HIDDEN // WIDTH * width
    shapes: list[tuple[int, ...]] = [(VOCAB, width)]
    for _ in range(layers):
        shapes += [(width, width)] * 4 + [(hidden, width), (width, hidden), (width,), (width,)]
    shapes += [(width,), (VOCAB, width)]

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    found = [nn.Parameter(0.02 * drawn(shape)) for shape in shapes]
    for p in found:
        p.grad = drawn(tuple(p.shape))
    return found


def optimizers(rounds: int) -> None:
    """Compare steps."""
    rules = nlc.compile(nlc.parse("system rules\ndims { n = 1 }"))
    every = parameters()
    matrices = [p for p in every if p.ndim == 2]
    million = sum(p.numel() for p in every) / 1e6
    ours = rules.rule("adamw")(parameters(), lr=1e-3)
    theirs = torch.optim.AdamW(parameters(), lr=1e-3, foreach=True)
    same(ours, theirs)
    runs: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
        "adamw": (ours.step, theirs.step, "torch's foreach AdamW"),
        "muon": (
            rules.rule("muon")(only_matrices(), lr=1e-3).step,
            partial(products, matrices), "its matrix products",
        ),
        "m3, f = 100": (
            rules.rule("m3")(only_matrices(), lr=1e-3).step,
            partial(products, matrices), "its matrix products",
        ),
    }  # fmt: skip
    print(f"A step of an optimizer, {million:.1f} million parameters:\n")
    print("| rule | nlc | compared with | time | nlc / other |")
    print("|---|---|---|---|---|")
    for name, (step, other, what) in runs.items():
        took = side_by_side({"nlc": step, "other": other}, min(rounds, 3))
        ratio = took["nlc"] / took["other"]
        cells = [shown(took["nlc"]), what, shown(took["other"]), f"{ratio:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()


def only_matrices() -> list[nn.Parameter]:
    """Make the matrices among the parameters."""
    return [p for p in parameters() if p.ndim == 2]


@torch.no_grad()
def products(matrices: list[nn.Parameter]) -> None:
    """Run the products of an orthogonalisation of each matrix, and nothing else."""
    for p in matrices:
        x: Tensor = p.mT if p.shape[0] > p.shape[1] else p
        for _ in range(STEPS):
            gram = x @ x.mT
            other = gram @ gram
            other @ x


def same(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Stop unless two optimizers make the same of the same parameters."""
    for _ in range(3):
        ours.step()
        theirs.step()
    for a, b in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        if not torch.allclose(a, b, atol=1e-6):
            sys.exit("nlc's optimizer and torch's disagree")
