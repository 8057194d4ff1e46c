"""What a fault has been told of is not told of again where its name is used."""

from __future__ import annotations

import pytest

import nlc
from tests.references.specs import block

BROKEN = """
  memory K : mlp(d_k -> 4 -> d_v, residual) at fast { key k
  value v
  update sgd(lr = 0.1) }
  out = W_o(v * {read})
"""


@pytest.mark.parametrize(
    "read", ["loss(K)", "sum(prev(K)(k))", "sum(initial(K)(k))", "sum(K(k))", "sum(prev(K).layer1)"]
)
def test_reads_of_a_memory_whose_map_is_refused(read: str) -> None:
    with pytest.raises(nlc.SpecError) as raised:
        nlc.parse(block(BROKEN.replace("{read}", read)))
    assert [fault.code for fault in raised.value.diagnostics] == ["NL0414"]
