"""Norms that inner gradients go through: gradients of every order, only where one is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nlc.codegen import library, library_norms
from torch import Tensor

import nlc
from tests.unit.codegen.agree import agree

SPECS = Path(nlc.__file__).parents[1] / "specs"
TEXT = """system small
dims { d = 6, h = 5 }
level fast every 1 token, chunk 3
level slow every 1 step
block mixer(x[d]) -> out[d] {
  weights W : linear(d -> d)
  memory M : mlp(d -> h -> d, act = tanh, norm) at fast {
    key x
    value W(x)
    objective 1/2*||NORM - value||^2
    update { self = self - 0.1 * grad }
    init learned
  }
  out = M(x)
}
"""


def orders(y: Tensor, x: Tensor, g: Tensor, count: int) -> list[Tensor]:
    found = []
    for _ in range(count):
        (slope,) = torch.autograd.grad((y * g).sin().sum(), x, create_graph=True)
        found.append(slope.detach())
        y = slope
    return found


@pytest.mark.parametrize("dim", [-1, (-2, -1)])
def test_gradients_of_every_order(dim: int | tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 5, dtype=torch.float64)
    plain = library.layernorm(x, dim)
    (slope,) = torch.autograd.grad(plain, x, g, create_graph=True)
    pairs = [
        (library_norms.layernorm(x, dim), plain),
        (library_norms.layernorm_slope(x, g, dim), slope),
    ]
    for ours, truth in pairs:
        for a, b in zip(orders(ours, x, g, 4), orders(truth, x, g, 4), strict=True):
            torch.testing.assert_close(a, b)


def test_the_slope_spreads_what_has_fewer_axes_and_keeps_types() -> None:
    x, g = torch.randn(2, 3, 4), torch.randn(4)
    spread = library_norms.layernorm_slope(x, g)
    torch.testing.assert_close(spread, library_norms.layernorm_slope(x, g.expand(2, 3, 4)))
    half = library_norms.layernorm_slope(x.bfloat16(), g.bfloat16())
    assert half.dtype == library_norms.layernorm(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), spread, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("norm", ["M(k)", "layernorm(M(k), eps = 0.01)"])
def test_a_memory_with_norms_in_its_objective(norm: str) -> None:
    agree(nlc.parse(TEXT.replace("NORM", norm.replace("k", "key"))), tokens=7)


def test_other_packages_have_the_plain_one() -> None:
    def source(name: str) -> str:
        return nlc.compile(nlc.load(SPECS / f"{name}.nl")).source

    assert "class Layernorm" in source("ttt_linear")
    assert "def layernorm(" in source("retnet") and "class Layernorm" not in source("retnet")
