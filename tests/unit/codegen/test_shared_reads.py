"""Reads that share their products with what the tokens of a window add to its sums."""

from __future__ import annotations

import pytest

import nlc
from nlc.passes.plan import plan
from tests.unit.codegen.agree import agree
from tests.unit.passes.counters import count
from tests.unit.passes.test_cost import counted

HEAD = """system shared
dims { d = 6, heads = 2, k = 3, hidden = 5 }
level beat every 3 tokens
level bar  every 6 tokens
level slow every 1 step
rule whitened(lr, beta = 0.9) {
  state V = 1
  V    = beta * V + (1 - beta) * grad^2
  self = self - lr * grad / (sqrt(V) + 0.5)
}
"""
CHAIN = """block mixer(x[d], teach[d]) -> out[d] {
  memory F : mlp(d -> hidden -> d, bias) at beat {
    key       rmsnorm(x)
    objective <self(key), teach>
    update    sgd(lr = 0.1)
  }
  y = x + F(rmsnorm(x))
  memory G : mlp(d -> hidden -> d) at bar {
    key       rmsnorm(y)
    value     teach
    update    whitened(lr = 0.1)
  }
  out = y + G(rmsnorm(y))
}
"""
HEADS = """block mixer(x[d]) -> out[d] {
  weights W_k, W_v : linear(d -> heads*k)
  weights W_o      : linear(heads*k -> d)
  k_t = unit(W_k(x))
  memory M : linear(k -> k) at beat {
    key    k_t
    value  W_v(x)
    update sgd(lr = 0.1)
    reset  every 6 tokens
  }
  out = W_o(M(k_t))
}
"""
GATED = """block mixer(x[d], teach[d]) -> out[d] {
  memory F : glu(d -> hidden -> d) at beat {
    key       x
    objective <self(key), teach>
    update    sgd(lr = 0.1, weight_decay = 0.2)
  }
  out = teach + F(x)
}
"""
SHARED = {
    "a chain of levels": CHAIN,
    "heads that begin anew": HEADS,
    "a gated map": GATED,
    "beside a read of its start": HEADS.replace("M(k_t)", "M(k_t) + initial(M)(2 * k_t)"),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_read_that_shares_products_is_the_equation(name: str) -> None:
    source = agree(nlc.parse(HEAD + SHARED[name])).source
    assert "def read_and_collect(" in source


@pytest.mark.parametrize("name", ["a chain of levels", "a gated map"])
def test_shared_products_are_counted_once(name: str) -> None:
    system = nlc.parse(HEAD + SHARED[name])
    ours, theirs = counted(system, 37)[1], count(system, "mixer", 37, True, steps=12)
    assert (ours.forward, ours.backward) == (theirs.forward, theirs.backward)


APART = {
    "another query": HEADS.replace("M(k_t)", "M(unit(W_v(x)))"),
    "a value that the read makes": HEADS.replace("value  W_v(x)", "value  r").replace(
        "  out = W_o(M(k_t))", "  r = tanh(prev(M)(k_t) + x_k)\n  x_k = W_v(x)\n  out = W_o(r)"
    ),
    "two reads": HEADS.replace("M(k_t)", "M(k_t) + M(2 * k_t)"),
}


@pytest.mark.parametrize("name", APART)
def test_other_reads_stand_by_themselves(name: str) -> None:
    compiled = agree(nlc.parse(HEAD + APART[name]))
    assert "read_and_collect" not in compiled.source
    assert plan(nlc.parse(HEAD + APART[name])).block("mixer").schedule("M").kind == "window"
