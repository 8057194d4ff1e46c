"""Activations with their slopes: the values and gradients that autograd finds, made in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nlc.codegen import library
from torch import Tensor

import nlc
from nlc.ir.system import System
from tests.unit.codegen.agree import agree

BOTH: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "gelu": (F.gelu, library.gelu_with_slope),
    "silu": (F.silu, library.silu_with_slope),
}


def by_autograd(act: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    y = act(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y, slope


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -1.3)])
def test_gradients_are_those_of_autograd_to_third_order(
    name: str, weights: tuple[float, float]
) -> None:
    act, both = BOTH[name]
    x = torch.linspace(-7, 7, 57, dtype=torch.float64).requires_grad_()

    def orders(made: tuple[Tensor, Tensor]) -> list[Tensor]:
        # what has no part is left out, so that its gradient is None
        found = [sum((w * y.sin() for w, y in zip(weights, made, strict=True) if w), x * 0)]
        for _ in range(2):
            found += torch.autograd.grad(found[-1].sum(), x, create_graph=True)
        return [*made, *found]

    for ours, truth in zip(orders(both(x)), orders(by_autograd(act, x)), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BOTH)
def test_without_gradients_the_same_values(name: str) -> None:
    act, both = BOTH[name]
    x = torch.randn(33, dtype=torch.float64).requires_grad_()
    truth = by_autograd(act, x)
    with torch.no_grad():
        for ours, true in zip(both(x), truth, strict=True):
            torch.testing.assert_close(ours, true.detach())
            assert not ours.requires_grad


DEEP = """system deep
dims { d = 6, heads = 2, d_k = 3, h = 5, m = 4 }
level fast every 1 token, chunk 4
level slow every 1 step
block mixer(x[d]) -> out[d] {
  weights W_k, W_v : linear(d -> heads*d_k)
  weights W_o      : linear(heads*d_k -> d)
  weights W_lr     : linear(d -> heads, bias)
  eta = 0.1 * sigmoid(W_lr(x))
  memory M : mlp(d_k -> HIDDEN -> d_k, act = ACT) at fast {
    key W_k(x)
    value W_v(x)
    update { M = M - eta * grad }
    init learned
  }
  out = W_o(M(W_k(x)))
}
"""


def deep(act: str, hidden: str) -> System:
    return nlc.parse(DEEP.replace("ACT", act).replace("HIDDEN", hidden))


def writes_of(act: str, hidden: str) -> str:
    text = nlc.compile(deep(act, hidden)).source
    return text.split("def writes(")[1].split("def read(")[0]


@pytest.mark.parametrize("act", BOTH)
def test_a_chunk_makes_an_activation_and_its_slope_in_one_call(act: str) -> None:
    text = writes_of(act, "h")
    assert f"{act}_with_slope(" in text
    assert f"F.{act}(" not in text


def test_rates_go_with_the_shortest_vector_through_all_layers() -> None:
    text = writes_of("gelu", "h -> m")
    assert text.count("negative") == 2, text
    assert "u = negative.unsqueeze(2) * (matvecs(" in text
    # here it would be the longer one
    assert "matvecs(layer2_weight.mT, difference) * slope" in writes_of("gelu", "2")


@pytest.mark.parametrize(
    ("act", "hidden"), [("gelu", "h -> m"), ("silu", "2"), ("silu", "m -> 2 -> h")]
)
def test_what_layers_write_is_what_the_interpreter_writes(act: str, hidden: str) -> None:
    agree(deep(act, hidden), tokens=7)
