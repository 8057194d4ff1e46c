"""Memories with layers of which an update leaves some as they are: no part of any course."""

from __future__ import annotations

import pytest

from nlc import parse
from nlc.ir.system import System
from tests.unit.codegen.agree import agree
from tests.unit.passes.counters import count
from tests.unit.passes.test_cost import counted

TEXT = """system small
dims { d = 6, heads = 2, d_k = 3, d_v = 4, h = 5 }
level fast every 1 token, chunk 3
level slow every 1 step
block mixer(x[d]) -> out[d] {
  weights W_q, W_k : linear(d -> heads*d_k)
  weights W_v      : linear(d -> heads*d_v)
  weights W_o      : linear(heads*d_v -> d)
  weights W_a      : linear(d -> heads, bias)
  q[heads, d_k] = W_q(x)
  k[heads, d_k] = W_k(x)
  v[heads, d_v] = W_v(x)
  a = sigmoid(W_a(x))
  memory M : mlp(d_k -> h -> d_v, act = tanh, bias, norm) at fast {
    key k
    value v
    UPDATE
    init learned
    RESET
  }
  out = W_o(OUT)
}
"""
LAST = "update { self.layer2 = a * self.layer2 - 0.3 * grad.layer2 }"
MOMENTUM = """
    state S = 0
    update {
      S.layer1    = a * S.layer1 - 0.3 * grad.layer1
      self.layer1 = self.layer1 + S.layer1
    }"""
RESETS = ["", "reset every 6 tokens"]


def system(update: str, out: str, reset: str = "") -> System:
    return parse(TEXT.replace("UPDATE", update).replace("OUT", out).replace("RESET", reset))


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("update", [LAST, MOMENTUM])
@pytest.mark.parametrize("out", ["M(q)", "M(q) + sigmoid(M.norm.bias) * prev(M)(k)"])
def test_parts_that_stay_as_they_are(update: str, out: str, reset: str) -> None:
    spec = system(update, out, reset)
    compiled = agree(spec, tokens=13)
    source = compiled.source
    assert '"layer' in source.rsplit("moves = {", 1)[1].split("}")[0]
    assert '"norm.weight"' not in source.rsplit("moves = {", 1)[1].split("}")[0]


@pytest.mark.parametrize("reset", RESETS)
def test_a_further_state_has_still_parts_of_its_own(reset: str) -> None:
    inner = "tanh(M.S.layer1.weight @ q)"
    out = f"M(q) + M.S.layer2.weight @ {inner} + M.layer2.weight @ {inner}"
    agree(system(MOMENTUM, out, reset), tokens=8)


@pytest.mark.parametrize("update", [LAST, MOMENTUM])
def test_what_stays_is_read_at_the_price_of_weights(update: str) -> None:
    spec = system(update, "M(q)")
    ours, theirs = counted(spec, 37)[1], count(spec, "mixer", 37, given=True)
    assert ours == theirs
