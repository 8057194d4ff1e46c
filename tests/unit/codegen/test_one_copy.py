"""Copies of a memory as rows of the batch, where what they write says the same of each."""

from __future__ import annotations

import pytest

import nlc
from tests.unit.codegen.agree import agree

TEXT = """system small
dims { d = 6, heads = 2, n = 2, d_k = 3 }
level fast every 1 token, chunk 3
level slow every 1 step
block mixer(x[d]) -> out[d] {
  weights W_k, W_v : linear(d -> heads*n*d_k)
  weights W_o      : linear(heads*n*d_k -> d)
  weights W_s      : linear(d -> d_k)
  weights W_a      : linear(d -> heads*n, bias)
  weights W_b      : linear(d -> n)
  vector rate      : vector(heads, n)
  k[heads, n, d_k] = W_k(x)
  v[heads, n, d_k] = W_v(x)
  a[heads, n] = sigmoid(W_a(x))
  b = sigmoid(W_b(x))
  s = W_s(x)
  memory M[heads, n] : linear(d_k -> d_k) at fast {
    key unit(KEY)
    value v
    update { self = a * self - RATE * grad }
    init learned
  }
  out = W_o(M(k) + prev(M)(v))
}
""".replace("  vector rate      :", "  weights rate     :")


@pytest.mark.parametrize(
    ("key", "rate", "together"),
    [
        ("k", "0.1", True),
        ("k + s", "a", True),
        ("k", "0.1 * sigmoid(sum(s))", True),
        ("k", "0.1 * sigmoid(rate)", True),
        # across copies, before the chunks
        ("softmax(k, over = heads)", "0.1", True),
        # only some of the copies' axes
        ("k", "0.1 * b", False),
    ],
)
def test_copies_run_as_rows_where_they_can(key: str, rate: str, together: bool) -> None:
    text = TEXT.replace("KEY", key).replace("RATE", rate)
    compiled = agree(nlc.parse(text), tokens=8)
    assert ("= run_copies(" in compiled.source) == together
