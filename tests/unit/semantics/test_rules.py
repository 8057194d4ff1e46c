"""Rules that serve memories of any period, and levels of steps."""

from __future__ import annotations

import pytest

from nlc import SpecError, parse
from nlc.ir.expr import postorder

SPEC = """system example
dims {{ d = 6, heads = 2, d_k = 4, d_v = 3 }}
level fast every {period}
level slow every 1 step, optimizer {optimizer}
rule bare(lr) {{ self = self @ (1 - lr * outer(key, key)) - lr * grad }}
block mixer(x[d]) -> out[d] {{
  weights W_k, W_q : linear(d -> heads*d_k)
  weights W_v      : linear(d -> heads*d_v)
  weights W_o      : linear(heads*d_v -> d)
  memory M : linear(d_k -> d_v) at fast {{
    key    W_k(x)
    value  W_v(x)
    update {rule}(lr = 0.5)
  }}
  out = W_o(M(W_q(x)))
}}
"""


def spec(period: str = "1 token", optimizer: str = "sgd(lr = 0.1)", rule: str = "dgd") -> str:
    return SPEC.format(period=period, optimizer=optimizer, rule=rule)


def windows(period: str) -> int:
    memory = parse(spec(period)).block("mixer").memory("M")
    return sum(n.op == "window" for n in postorder([a.value for a in memory.update]))


def test_a_window_of_one_token_is_that_token() -> None:
    assert windows("1 token") == 0
    assert windows("4 tokens") == 3


def test_a_rule_that_reduces_its_keys_is_an_optimizer_too() -> None:
    assert parse(spec(optimizer="dgd(lr = 0.1)")).level("slow").optimizer is not None
    with pytest.raises(SpecError, match="NL0603"):
        parse(spec(optimizer="bare(lr = 0.1)"))


def test_a_rule_with_a_bare_key_moves_a_memory_of_one_token_only() -> None:
    assert parse(spec(rule="bare")).warnings == ()
    with pytest.raises(SpecError, match="NL0603"):
        parse(spec("4 tokens", rule="bare"))


def test_only_sums_means_and_the_last_go_over_tokens() -> None:
    text = spec().replace(
        "update dgd(lr = 0.5)", "update { self = self - norm(grad, over = tokens) }"
    )
    with pytest.raises(SpecError, match="NL0606"):
        parse(text)
