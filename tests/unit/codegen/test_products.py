"""Products of large matrices on a CPU: the same numbers, and gradients where they are asked for."""

from __future__ import annotations

import pytest
import torch
from nlc.codegen.library import Matvecs, add_outer_sum, matvecs
from nlc.codegen.library_products import by_onednn, matrix_products
from torch.utils.flop_counter import FlopCounterMode

SIZES = [(1, 16, 256, 1024), (2, 64, 192, 256), (3, 8, 512, 640)]


@pytest.mark.parametrize("sizes", SIZES)
def test_large_products_are_those_of_bmm(sizes: tuple[int, int, int, int]) -> None:
    batch, m, k, n = sizes
    a, b = torch.randn(batch, m, k), torch.randn(batch, k, n)
    turned = a.mT.contiguous().mT, b.mT.contiguous().mT
    # half of wider matrices, with gaps between rows
    gaps = tuple(torch.cat([x, x], -1)[..., : x.shape[-1]] for x in (a, b))
    with torch.no_grad():
        for x, y in ((a, b), turned, gaps, (a[:1].expand(batch, m, k), b)):
            want = torch.bmm(x.double(), y.double())
            assert float((matrix_products(x, y) - want).abs().max()) < 1e-3
        got, want = matrix_products(a.double(), b.double()), torch.bmm(a.double(), b.double())
        assert torch.equal(got, want)


def test_products_whose_gradients_are_asked_for_have_them() -> None:
    matrix, x = torch.randn(2, 512, 128), torch.randn(2, 64, 128)
    with torch.no_grad():
        assert by_onednn(matrix, x) == torch.backends.mkl.is_available()
        plain = matvecs(matrix, x)
    pair = [matrix.requires_grad_(), x.requires_grad_()]
    y = matvecs(*pair)
    assert torch.allclose(y, plain, atol=1e-4)
    first = torch.autograd.grad((y**2).sum() / 2, pair, create_graph=True)
    want = (y.mT @ x, y @ matrix)
    for got, wanted in zip(first, want, strict=True):
        assert float((got - wanted).detach().abs().max() / wanted.detach().abs().max()) < 1e-5
    again = torch.autograd.grad(sum(g.square().sum() for g in first), pair, retain_graph=True)
    wanted_again = torch.autograd.grad(sum(w.square().sum() for w in want), pair)
    for got, wanted in zip(again, wanted_again, strict=True):
        assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_onednn_is_given_no_matrix_with_gaps_between_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # it takes them, at a thousandth of its speed
    given = []
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda x, W, *_: (given.append(W), x @ W.mT)[1]
    )
    wide = torch.randn(1, 64, 512)
    with torch.no_grad():
        matrix_products(torch.randn(1, 256, 64), wide[..., :256])
    assert all(W.is_contiguous() or W.mT.is_contiguous() for W in given)


def test_counters_see_every_product() -> None:
    matrix, x = torch.randn(1, 1024, 256), torch.randn(1, 16, 256)
    total = torch.zeros(1, 256, 1024)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = Matvecs.of(matrix, x)
        add_outer_sum(total, x, y, begins=True)
    assert counter.get_total_flops() == 2 * 2 * 16 * 1024 * 256


def test_under_autocast_large_products_have_the_type_of_small_ones() -> None:
    small, large = (torch.randn(1, n, n) for n in (8, 256))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for x in (small, large):
            assert matrix_products(x, x).dtype == torch.bmm(x, x).dtype == torch.bfloat16
