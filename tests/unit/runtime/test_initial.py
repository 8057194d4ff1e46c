"""Written initial values: of the weights' shape, of one number, and of some of their axes."""

from __future__ import annotations

import pytest
import torch

import nlc
from nlc.runtime.initial import initial_parameters

SPEC = """system initial
dims {{ d = 3, heads = 2, d_k = 3, n = 4 }}
level slow every 1 step
block b(x[d]) -> y[heads, d_k] {{
  weights W : vector({shape}) init {value}
  weights F : linear(d -> heads*d_k)
  y = F(x) + sum(W)
}}
"""


def drawn(shape: str, value: str) -> torch.Tensor:
    system = nlc.parse(SPEC.format(shape=shape, value=value))
    interpreted = initial_parameters(system, "b")["W"]
    emitted = dict(nlc.compile(system).block("b").named_parameters())["W"]
    assert torch.equal(interpreted, emitted)
    return interpreted


def test_axes_that_a_value_has_not_are_alike() -> None:
    assert drawn("heads, n", "index(n)").tolist() == [[0, 1, 2, 3]] * 2
    assert drawn("heads, n", "1 + index(heads)").tolist() == [[1] * 4, [2] * 4]
    assert drawn("heads, n", "2").tolist() == [[2] * 4] * 2


@pytest.mark.parametrize("shape, value", [("heads, n", "index(d)"), ("n, n", "index(n)")])
def test_a_value_that_fits_no_axis_or_two_is_refused(shape: str, value: str) -> None:
    with pytest.raises(nlc.SpecError) as caught:
        nlc.parse(SPEC.format(shape=shape, value=value))
    assert [d.code for d in caught.value.diagnostics] == ["NL0510"]


def test_a_state_cannot_begin_as_weights_with_other_parts() -> None:
    text = """system s
dims { d = 3 }
level fast every 1 token
level slow every 1 step
block b(x[d]) -> y[d] {
  weights W : linear(d -> d, bias)
  memory M : mlp(d -> d -> d) at fast {
    key   x
    value x
    state S = W
    update { S = grad; self = self - S }
  }
  y = M(x)
}
"""
    with pytest.raises(nlc.SpecError) as caught:
        nlc.parse(text)
    assert [d.code for d in caught.value.diagnostics] == ["NL0515"]
    assert "`layer1.weight`" in str(caught.value.diagnostics[0].hint)
