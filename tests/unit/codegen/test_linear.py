"""Linear maps of emitted modules: by oneDNN where they are large, and then still torch's own."""

from __future__ import annotations

import pytest
import torch
from nlc.codegen.library_maps import Linear, OneDNNLinear
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

D_IN, D_OUT = 64, 96


def drawn(bias: bool = True) -> tuple[Linear, nn.Linear, Tensor]:
    """A map, torch's with the same parameters, and enough rows for oneDNN."""
    torch.manual_seed(0)
    ours, theirs = Linear(D_IN, D_OUT, bias=bias), nn.Linear(D_IN, D_OUT, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2**24 // (4 * D_IN * D_OUT) + 1, D_IN)
    mkldnn = torch.backends.mkldnn
    assert ours.large(x) == (mkldnn.is_available() and torch.backends.mkl.is_available())
    return ours, theirs, x


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_of_two_orders_are_those_of_torch(bias: bool) -> None:
    *maps, x = drawn(bias)
    found = []
    for each in maps:
        given = x.clone().requires_grad_()
        y = each(given)
        y.cos().sum().backward()
        first = [given.grad, *(p.grad for p in each.parameters())]
        each.zero_grad()
        again = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad((each(again) ** 3).mean(), again, create_graph=True)
        slope.square().sum().backward()
        found.append([y, *first, again.grad, *(p.grad for p in each.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))


def test_transforms_of_torch_go_through() -> None:
    ours, theirs, x = drawn()

    def loss(module: nn.Module, weight: Tensor) -> Tensor:
        given = {"weight": weight, "bias": module.bias}
        return torch.func.functional_call(module, given, (x,)).square().mean()

    a, b = (torch.func.grad(lambda w, m=m: loss(m, w))(ours.weight) for m in (ours, theirs))
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    a, b = (torch.func.jvp(m, (x,), (x,))[1] for m in (ours, theirs))
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_who_watches_sees_linear_maps_of_torch() -> None:
    ours, _, x = drawn()
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watching():
        ours(x)
    assert torch.nn.functional.linear in seen
    with FlopCounterMode(display=False) as counter:
        ours(x)
    assert counter.get_total_flops() == 2 * x.numel() * D_OUT
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16


def test_what_is_small_or_of_another_type_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, x = drawn()
    monkeypatch.setattr(OneDNNLinear, "apply", None)
    assert torch.equal(ours(x[:, :1]), theirs(x[:, :1]))
    assert torch.equal(ours.double()(x.double()), theirs.double()(x.double()))
