"""A bare word that a map does not have: what was meant, or that this map has no such word."""

from __future__ import annotations

import pytest

import nlc
from tests.references.specs import block


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("mlp(d -> d, act = tanh, bias, nrom)", "`mlp` has no word `nrom`", "did you mean `norm`?"),
        ("linear(d -> d, bais)", "`linear` has no word `bais`", "did you mean `bias`?"),
        ("conv(d, biass, width = 3)", "`conv` has no word `biass`", "did you mean `bias`?"),
        ("table(d -> d, bias)", "`table` has no word `bias`", "`table(n -> d)`"),
        ("linear(d -> d, norm)", "`linear` has no word `norm`", "`linear(d -> heads*d_k)`"),
        ("mlp(d -> d, act)", "`mlp` has no word `act`", "act = gelu"),
        ("linear(d -> d, d)", "wrong form of `linear`", "`linear(d -> heads*d_k)`"),
    ],
)
def test_a_word_that_a_map_does_not_have(written: str, message: str, hint: str) -> None:
    with pytest.raises(nlc.SpecError) as raised:
        nlc.parse(
            block(f"""
  weights A : {written}
  out = W_o(v) + A(x)
""")
        )
    (fault,) = raised.value.diagnostics
    assert (fault.code, fault.title) == ("NL0414", message)
    assert hint in (fault.hint or "")
