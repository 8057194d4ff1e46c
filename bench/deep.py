"""Memories with layers and chunks beside other packages' own: forward and backward, and decoding.

The others' memories are alike, not the same: `titans-pytorch` reads a token later, fla's TTT has a
bias. So nothing is compared but time. What is not installed is left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import nlc
from bench import fla
from bench.measure import shown, side_by_side

WIDTH, HEADS, SIZE = 256, 4, 64
TITANS = """system titans
dims {{ d = 256, heads = 4, d_k = 64, h = 256 }}
level fast every 1 token, chunk {chunk}
level slow every 1 step
use rules
block mixer(x[d]) -> out[d] {{
  weights W_q, W_k, W_v  : linear(d -> heads*d_k)
  weights W_o            : linear(heads*d_k -> d)
  weights W_lr, W_m, W_f : linear(d -> heads, bias)
  k = unit(silu(W_k(x)))
  v[heads, d_k] = silu(W_v(x))
  theta, eta, alpha = 0.1 * sigmoid(W_lr(x)), sigmoid(W_m(x)), 0.1 * sigmoid(W_f(x))
  memory M : mlp(d_k -> h -> d_k) at fast {{
    key k
    value v
    update titans(lr = theta, momentum = eta, decay = alpha)
    init learned
  }}
  out = W_o(rmsnorm(M(unit(silu(W_q(x))))))
}}
"""
TTT = """system ttt
dims { heads = 4, d_k = 64 }
level fast every 1 token, chunk 16
level slow every 1 step
block mixer(q[heads, d_k], k[heads, d_k], v[heads, d_k], eta[heads]) -> out[heads, d_k] {
  memory M : mlp(d_k -> d_k, residual, norm) at fast {
    key k
    value v
    update { M.layer1 = M.layer1 - eta * grad.layer1 }
    init zeros
  }
  out = M(q)
}
"""
Runs = dict[str, Callable[[], Any]]


def deep(tokens: int, rounds: int) -> None:
    """Print a row for each memory and each other that is installed."""
    print(f"Memories with layers, forward and backward, B = 1, T = {tokens}:\n")
    print("| | nlc | compared with | time | other / nlc |\n|---|---|---|---|---|")
    for title, runs in (
        ("Titans, MLP, chunk 64", titans(64, tokens)),
        ("Titans, MLP, chunk 16", titans(16, tokens)),
        ("TTT-Linear, chunk 16", ttt(tokens)),
    ):
        took = side_by_side(runs, rounds)
        for name in list(took)[1:] or [""]:
            other = [shown(took[name]), f"{took[name] / took['nlc']:.2f}"] if name else ["-", "-"]
            print(f"| {title} | {shown(took['nlc'])} | {name} | {other[0]} | {other[1]} |")
    print(flush=True)


@torch.no_grad()
def decoding_deep(rounds: int) -> None:
    """Print what a token takes with Titans' memory of two layers, ends of chunks included."""
    steps, chunk = 64, 16
    print(f"A token of a memory with layers, B = 1, over {steps} tokens:\n")
    print("| | nlc | compared with | time | other / nlc |\n|---|---|---|---|---|")
    x, ours = torch.randn(1, steps, WIDTH), block(TITANS.format(chunk=chunk))

    def own() -> None:
        state = None
        for token in x.unbind(1):
            _, state = ours.step(token, state)

    runs: Runs = {"nlc": own}
    if importlib.util.find_spec("titans_pytorch"):
        memory = neural_memory(chunk, None)

        def other() -> None:
            state = None
            for token in x.split(1, 1):
                _, state = memory(token, state=state)

        runs["titans-pytorch"] = other
    took = {name: taken / steps for name, taken in side_by_side(runs, 4 * rounds).items()}
    there = took.get("titans-pytorch")
    cells = [shown(there), f"{there / took['nlc']:.2f}"] if there else ["-", "-"]
    print(f"| Titans, MLP, chunk {chunk} | {shown(took['nlc'])} | {list(took)[-1]} | ", end="")
    print(" | ".join(cells), "|\n", flush=True)


def block(text: str) -> Any:
    """Compile a block alone."""
    return nlc.compile(nlc.parse(text)).block("mixer")


def back(make: Callable[..., Any], *inputs: Tensor) -> Callable[[], None]:
    """Run forward and backward, with gradients for the inputs too."""

    def run() -> None:
        make(*(x.clone().requires_grad_() for x in inputs)).sum().backward()

    return run


def titans(chunk: int, tokens: int) -> Runs:
    """Titans' memory of two layers; the other's gradients are taken anew in every chunk, or not."""
    x, ours = torch.randn(1, tokens, WIDTH), block(TITANS.format(chunk=chunk))
    runs: Runs = {"nlc": back(lambda x: ours(x)[0], x)}
    if importlib.util.find_spec("titans_pytorch"):

        def other(batch: int | None) -> Callable[[], None]:
            memory = neural_memory(chunk, batch)
            return back(lambda x: memory(x)[0], x)

        runs["titans-pytorch, batch_size = chunk"] = other(chunk)
        runs["titans-pytorch, all gradients at the first weights"] = other(None)
    return runs


def neural_memory(chunk: int, batch: int | None, heads: int = HEADS, size: int = SIZE) -> Any:
    """Make the other's memory."""
    from titans_pytorch import MemoryMLP, NeuralMemory

    model = MemoryMLP(size, depth=2, expansion_factor=4.0)
    return NeuralMemory(
        dim=heads * size,
        chunk_size=chunk,
        batch_size=batch,
        dim_head=size,
        heads=heads,
        model=model,
    )


def ttt(tokens: int) -> Runs:
    """TTT-Linear and fla's reference."""
    ours = block(TTT)
    q, k, v = (torch.randn(1, tokens, HEADS, SIZE) for _ in range(3))
    eta = torch.rand(1, tokens, HEADS) / SIZE
    runs: Runs = {"nlc": back(lambda *x: ours(*x)[0], q, k, v, eta)}
    if fla.installed():
        naive, w = fla.naive("ttt").chunk_ttt_linear_ref, torch.ones(HEADS, SIZE)

        def other(q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> Tensor:
            out: Tensor = naive(q * 1.0, k, v, w, 0 * w, eta[..., None], mini_batch_size=16)[0]
            return out

        runs["fla chunk_ttt_linear_ref"] = back(other, q, k, v, eta)
    return runs
