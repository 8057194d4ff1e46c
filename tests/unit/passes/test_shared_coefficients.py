"""Coefficients that are one for all copies, and what is divided: they keep an update affine."""

from __future__ import annotations

import pytest

import nlc
from nlc.passes.plan import plan
from tests.references.specs import block
from tests.unit.codegen.agree import agree

UPDATES = [
    "self @ diag(w_k) + outer(v, k)",
    "self @ (0.9 - outer(w_k, w_k)) + outer(v, k)",
    "self @ (diag(w_k) - 0.1 * outer(w_k, k)) + outer(v, k)",
    "self @ transpose(diag(w_k) - 0.1 * outer(w_k, w_k)) + outer(v, k)",
    "diag(w_v) @ self + outer(v, k)",
    "0.9 * self + outer(v, k) / (1 + <k, k>)",
    "0.9 * self + (outer(v, k) / 2 - outer(w_v, k) / (1 + <k, k>))",
]


@pytest.mark.parametrize("update", UPDATES)
def test_gates_without_heads_and_divided_writes_run_in_tiles(update: str) -> None:
    system = nlc.parse(
        block(f"""
  weights w_k : vector(d_k)
  weights w_v : vector(d_v)
  memory M[heads] : linear(d_k -> d_v) at fast {{
    update {{ self = {update} }}
  }}
  out = W_o(M(q))
""")
    )
    schedule = plan(system).block("mixer").schedule("M")
    assert schedule.kind in ("tile-solve", "tile-scan"), schedule.reason
    agree(system, tokens=5)
