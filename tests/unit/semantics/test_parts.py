"""Assignments to a part of a map go to that part."""

from __future__ import annotations

import pytest

from tests.references.specs import block, resolve

BODY = """
  memory M : mlp(d_k -> d_k -> d_v, bias) at fast {{
    key k
    value v
    update {{ M.{part} = 0.5 * M.{part} - 0.1 * grad.{part} }}
  }}
  out = W_o(M(q))
"""


@pytest.mark.parametrize("part", ["layer1.weight", "layer1.bias", "layer2.bias"])
def test_a_bias_is_assigned_and_not_the_weights_of_its_layer(part: str) -> None:
    (memory,) = resolve(block(BODY.format(part=part))).blocks[0].memories
    moved = {a.part for a in memory.update if a.value.op != "state"}
    assert moved == {part}


def test_a_layer_is_its_weights_and_its_bias() -> None:
    (memory,) = resolve(block(BODY.format(part="layer1"))).blocks[0].memories
    moved = {a.part for a in memory.update if a.value.op != "state"}
    assert moved == {"layer1.weight", "layer1.bias"}
