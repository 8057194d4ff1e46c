"""Memories with layers that are read while they move over a sequence, chunk by chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nlc import parse
from tests.unit.codegen.agree import agree, randomised

TEXT = """system small
dims { d = 6, d_k = WIDTH, d_v = WIDTH, h = HIDDEN }
level fast every 1 token, chunk 4
level slow every 1 step
rule titans(lr, momentum, decay) {
  state S = 0
  S    = momentum * S - lr * grad
  self = (1 - decay) * self + S
}
block mixer(x[d]) -> out[d] {
  weights W_q, W_k      : linear(d -> d_k)
  weights W_v           : linear(d -> d_v)
  weights W_o           : linear(d_v -> d)
  weights W_a           : linear(d -> 1)
  a = 0.1 * sigmoid(sum(W_a(x)))
  memory M : mlp(d_k -> h -> d_v) at fast {
    key W_k(x)
    value W_v(x)
    update titans(lr = a, momentum = 2 * a, decay = a)
    init learned
  }
  OUT
}
"""


def system(width: int, out: str) -> Any:
    text = TEXT.replace("WIDTH", str(width)).replace("HIDDEN", str(2 * width))
    return parse(text.replace("OUT", out))


@pytest.mark.parametrize("width", [4, 32])  # small states, and those that are read in turns
@pytest.mark.parametrize("out", ["out = W_o(M(W_q(x)))", "out = W_o(prev(M)(W_q(x)))"])
def test_read_on_the_way(width: int, out: str) -> None:
    compiled = agree(system(width, out))
    # what it moves over is let go of
    assert not hasattr(compiled.block("mixer").M, "read")


@pytest.mark.parametrize(
    "out",
    [
        "out = W_o(M(W_q(x)) + M(W_k(x)))",
        "y = M(W_q(x))\n  out = W_o(M(W_k(W_o(y))))",
    ],
)
def test_several_queries_are_read_afterwards(out: str) -> None:
    compiled = agree(system(32, out), tokens=9)
    assert hasattr(compiled.block("mixer").M, "read")


def test_queries_that_another_memory_makes() -> None:
    other = "memory N : linear(d_k -> d_v) at fast {\n    key W_k(x)\n    value W_v(x)\n"
    other += "    update titans(lr = a, momentum = a, decay = a)\n  }\n"
    agree(system(32, f"{other}  y = N(W_q(x))\n  out = W_o(M(W_k(W_o(y))))"), tokens=9)


def test_gradients_run_through_a_chunk_before_the_next() -> None:
    module = agree(system(32, "out = W_o(M(W_q(x)))"), tokens=5).block("mixer").double()
    along, order = type(module.M).forward.__globals__["AlongTile"], []

    def noted(ctx: Any, dy: Any, *after: Any, own: Any = along.backward) -> Any:
        order.append("read" if dy is not None else "")
        order[-1] += " moved" if any(grad is not None for grad in after) else ""
        return own(ctx, dy, *after)

    along.backward = staticmethod(noted)
    x = torch.randn(2, 12, 6, dtype=torch.float64, requires_grad=True)
    module(x)[0].sum().backward()
    # two layers, each read and moved at once; what the last chunk moves has no gradient here
    assert order == 2 * ["read"] + 4 * ["read moved"]


def test_second_derivatives() -> None:
    module = randomised(agree(system(32, "out = W_o(M(W_q(x)))"), tokens=5).block("mixer").double())
    x = torch.randn(2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x: module(x)[0], (x,), fast_mode=True, atol=1e-6, rtol=1e-5
    )
