"""What comes before all that learns runs once for a long window, and gives the same numbers."""

from __future__ import annotations

import pytest

import nlc
from tests.unit.codegen.online import agree_model, tokens
from tests.unit.codegen.test_online import HEAD, system

BLOCKS = """
block look(x[d]) -> out[d] {
  weights W_q, W_k, W_v : linear(d -> heads*d_k)
  weights W_o : linear(heads*d_k -> d)
  weights c : conv(d, width = 3)
  memory A : kernel(softmax) at now { key W_k(x); value W_v(c(position * x)) }
  out = W_o(A(W_q(x)))
}
block recall(x[d]) -> out[d] {
  weights W_k, W_v : linear(d -> d)
  memory M : linear(d -> d) at win {
    key    unit(W_k(x))
    value  W_v(x)
    update sgd(lr = 0.1)
  }
  out = M(unit(W_k(x)))
}
"""
LEARNS = """
  memory A : mlp(d -> 2*d -> d) at fast {{ objective task; through {through} }}
  memory B : linear(d -> d) at mid {{ objective task; through {through} }}
  out = B(A(x))
"""
MODELS = {
    "in the first pass": """
  repeat 2 {
    x = x + look(rmsnorm(x))
    x = x + mixer(rmsnorm(x))
  }
""",
    "a layer that stands still, and what the rest reads of it": """
  y = x + recall(x)
  ahead = tanh(y)
  repeat 2 { y = y + mixer(look(y) + x + ahead) }
  x = y
""",
    "repeats that stand still": """
  repeat 2 { x = x + look(x) }
  repeat 1 { x = x + recall(x) }
  x = x + mixer(x)
""",
}


def model(steps: str) -> str:
    return "\nmodel {\n  vocab 11\n  x[d] = embed(tokens)\n" + steps + "  logits = unembed(x)\n}\n"


@pytest.mark.parametrize("through", ["full", "first_order"])
@pytest.mark.parametrize("name", MODELS)
def test_what_comes_before_all_that_learns_runs_ahead(name: str, through: str) -> None:
    """Outputs, states, gradients, any cut, steps, rows."""
    body = LEARNS.format(through=through)
    found = agree_model(system(body, model(MODELS[name]), HEAD + BLOCKS))
    assert "def read_ahead(" in found.source


def test_it_runs_once_for_a_long_window() -> None:
    found = nlc.compile(
        system(
            LEARNS.format(through="first_order"), model(MODELS["in the first pass"]), HEAD + BLOCKS
        )
    ).model()
    first, second, seen = found.repeat[0].look, found.repeat[1].look, {"first": 0, "second": 0}
    first.W_k.register_forward_hook(lambda *_: seen.update(first=seen["first"] + 1))
    second.W_k.register_forward_hook(lambda *_: seen.update(second=seen["second"] + 1))
    found(tokens(9, 11))
    # two windows of 4 tokens, each with two of 2 inside; the last token lies in none
    assert seen == {"first": 3, "second": 5}


def test_where_nothing_comes_before_there_is_nothing_to_run_ahead() -> None:
    steps = "  repeat 2 { x = x + mixer(x) }\n"
    source = nlc.compile(system(LEARNS.format(through="full"), model(steps))).source
    assert "read_piece(self, tokens: Tensor, state: dict[str, Any])" in source
    assert "def ahead(" not in source
