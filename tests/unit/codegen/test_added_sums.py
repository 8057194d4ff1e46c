"""Sums of an update that take in their product: one pass over the state, and what it costs."""

from __future__ import annotations

import pytest
import torch

import nlc
from nlc.passes.cost import cost
from nlc.passes.plan import plan
from tests.unit.codegen.agree import agree

SPEC = """system sums
dims {{ d = 4, heads = 2, k = 3, n = 5 }}
level fast every 1 token
level slow every 1 step
block mixer(x[d]) -> y[d] {{
  weights W_k, W_q : linear(d -> heads*k)
  weights W_v      : linear(d -> heads*n)
  weights W_o      : linear(heads*n -> d)
  weights W_a      : linear(d -> heads)
  a = sigmoid(W_a(x))
  q[heads, k] = unit(W_q(x))
  c[heads, k] = unit(W_k(x))
  v[heads, n] = W_v(x)
  memory M : linear(k -> n) at fast {{
    key    c
    value  v
    update {{ M = {update} }}
    init   normal(0.3)
  }}
  y = W_o(M(q))
}}
"""
UPDATES = {
    "a number for each token": "(1 - a) * M - a * grad",
    "a number": "0.9 * M - 0.1 * grad",
    "rows": "M - sigmoid(v) * outer(v, c)",
    "the product first": "a * outer(v, c) + 0.9 * M",
    "a matrix": "0.5 * M + tanh(M) * outer(v, c)",
    "used twice": "0.5 * M + outer(v, c) + tanh(outer(v, c))",
    "a number, and one value": "0.5 * M - 0.1 * tanh(grad)",
    "a square": "0.9 * M + 0.1 * grad^2",
    "a quotient": "M - grad / (1 + M^2)",
    "a number and a quotient": "0.9 * M + 0.1 * grad / (sqrt(M^2 + 1) + 0.5)",
    "a number and two values": "0.5 * M - 0.1 * (tanh(M) * grad)",
    "no bound on reads": "0.5 * tanh(M) + a * M",
}


@pytest.mark.parametrize("name", UPDATES)
def test_a_sum_that_takes_in_its_product_is_the_equation(name: str) -> None:
    agree(nlc.parse(SPEC.format(update=UPDATES[name])))


def test_a_step_passes_over_the_state_twice() -> None:
    system = nlc.parse(SPEC.format(update=UPDATES["a number for each token"]))
    source = nlc.compile(system).source
    step = source[source.index("def step(") : source.index("def read_step(")]
    assert step.count("addcmul_(") == 1 and "torch.addcmul(" not in step and "outer(" not in step
    found = cost(system, plan(system), 8)
    assert found is not None
    # M of 2 * 5 * 3 decays, and one operation adds a product; v is taken away, a multiplies: 2 * 5
    # entries each; 1 - a
    assert found.entry("mixer.M").decode.elementwise == 30 + 2 * 30 + 10 + 10 + 2


def test_numbers_in_front_cost_no_pass_over_the_state() -> None:
    system = nlc.parse(SPEC.format(update=UPDATES["a number and a quotient"]))
    source = nlc.compile(system).source
    step = source[source.index("def step(") : source.index("def read_step(")]
    assert step.count("addcdiv_(") == 1 and "value=0.1" in step


def test_a_step_compiles_with_torch() -> None:
    block = nlc.compile(nlc.parse(SPEC.format(update=UPDATES["rows"]))).block("mixer")
    x = torch.randn(2, 4)
    _, state = block.step(x)
    compiled = torch.compile(block.step, backend="aot_eager")
    assert torch.allclose(compiled(x, state)[0], block.step(x, state)[0], atol=1e-6)
