"""Norms of emitted modules: their gradients are those of what they say, to third order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nlc.codegen import library
from torch import Tensor

NORMS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Any], Tensor]]] = {
    "unit": (
        library.unit,
        lambda x, dim: x / x.square().sum(dim, keepdim=True).sqrt().clamp_min(1e-12),
    ),
    "rmsnorm": (
        library.rmsnorm,
        lambda x, dim: x / (x.square().mean(dim, keepdim=True) + 1e-6).sqrt(),
    ),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dim", [-1, -2, (-2, -1)])
def test_gradients_of_norms_to_third_order(name: str, dim: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, 3, 4, dtype=torch.float64)

    def orders(norm: Callable[[Tensor, Any], Tensor]) -> list[Tensor]:
        found = [(weights * norm(x, dim).sin()).sum()]
        for _ in range(3):
            found.append(torch.autograd.grad(found[-1].cos().sum(), x, create_graph=True)[0])
        return found

    ours, truth = (orders(norm) for norm in NORMS[name])
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(NORMS[name][0](x, dim), NORMS[name][1](x, dim))


@pytest.mark.parametrize("name", NORMS)
def test_zeros_have_a_gradient(name: str) -> None:
    norm = NORMS[name][0]
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(norm(x).sum(), x)
    assert torch.equal(grad, norm(torch.ones(3, dtype=torch.float64) * 0 + 1e-30) / 1e-30)


@pytest.mark.parametrize("name", NORMS)
def test_narrow_types_stay_narrow(name: str) -> None:
    x = torch.randn(5, 8, dtype=torch.bfloat16).requires_grad_()
    y = NORMS[name][0](x)
    (grad,) = torch.autograd.grad(y.square().sum() + y.sum(), x)
    assert y.dtype == grad.dtype == torch.bfloat16
