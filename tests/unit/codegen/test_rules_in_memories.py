"""Every shipped rule, which is an optimizer, also moves a memory inside the forward pass."""

from __future__ import annotations

import pytest

import nlc
from nlc.library import shipped_rules
from tests.unit.codegen.agree import agree

# what a division needs to stay well conditioned, and numbers of which one matters in few tokens
ARGUMENTS = {
    "sgd": "lr = 0.2, weight_decay = 0.1",
    "momentum": "lr = 0.2",
    "nesterov": "lr = 0.1",
    "titans": "lr = 0.2, momentum = 0.5, decay = 0.1",
    "gated_delta": "lr = 0.2, gate = 0.9",
    "adam": "lr = 0.05, eps = 0.1",
    "adamw": "lr = 0.05, eps = 0.1",
    "adagrad": "lr = 0.1, eps = 0.1",
    "muon": "lr = 0.05",
    "adamuon": "lr = 0.02, eps = 0.1",
    "rmsuon": "lr = 0.05, eps = 0.1",
    "sam": "lr = 0.1",
    "delta_momentum": "lr = 0.1",
    "deep_momentum": "lr = 0.1",
    "m3": "lr = 0.05, eps = 0.1, f = 3",
    "dgd": "lr = 0.3",
}
SPEC = """
system moved

dims {{ d = 6, heads = 2, k = 4 }}

level fast every {period}
level slow every 1 step, optimizer sgd(lr = 0.1)

block mixer(x[d]) -> y[d] {{
  weights W_k, W_v, W_q : linear(d -> heads*k)
  weights W_o           : linear(heads*k -> d)

  memory M : linear(k -> k) at fast {{
    key    unit(W_k(x))
    value  W_v(x)
    update {rule}({arguments})
    init   normal(0.3)
  }}

  y = W_o(M(W_q(x)))
}}
"""
# at both periods what has times, counts, reductions over tokens or a memory of its own
WINDOWS = ("adamw", "deep_momentum", "dgd", "m3", "muon", "sam")


@pytest.mark.parametrize(
    ("rule", "period"),
    [*((r, "1 token") for r in shipped_rules()), *((r, "3 tokens") for r in WINDOWS)],
)
def test_a_rule_of_the_library_moves_a_memory(rule: str, period: str) -> None:
    text = SPEC.format(rule=rule, arguments=ARGUMENTS[rule], period=period)
    agree(nlc.parse(text), tokens=8)


@pytest.mark.parametrize(
    ("rule", "period", "map"),
    [
        ("delta_momentum", "1 token", "mlp(k -> k -> k, bias)"),
        ("delta_momentum", "3 tokens", "glu(k -> k -> k)"),
        ("deep_momentum", "3 tokens", "mlp(k -> k -> k)"),
        ("muon", "1 token", "mlp(k -> 2*k -> k)"),
    ],
)
def test_a_rule_for_one_matrix_moves_each_of_a_map(rule: str, period: str, map: str) -> None:
    """With states, sizes and a memory of its own for each; a vector as a matrix of one row."""
    text = SPEC.format(rule=rule, arguments=ARGUMENTS[rule], period=period)
    agree(nlc.parse(text.replace("linear(k -> k) at", f"{map} at")), tokens=7)
