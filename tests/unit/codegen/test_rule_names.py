"""Rules with any names work; what no optimizer can do is refused, and never ends in a traceback."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nlc
from nlc.diagnostics import SpecError
from nlc.render import render_text
from tests.unit.codegen.optimizers import agree, system_of

SHAPES = {"a": (3, 4), "d": (4,), "e": ()}
NAMED = {
    "levels": """
rule levels(lr, w = 1, at = 2) {
  state torch = 0; state parts = 0; state wide = 0; state grad_i = 0; state m_i = 0; state m = 0
  m     = m + grad * at
  m_i   = m + grad
  torch = m - parts
  parts = silu(m + m_i + wide + grad_i)
  self  = self - lr * w * torch * norm(m, over = (in, out)) / (1 + norm(m, over = (in, out)))
}""",
    "lambda": """
rule lambda(lr, class = 3, None = 1) {
  state def = 0
  def  = def + grad
  self = self - lr * def * class * None
}""",
    "any": "rule any(η, β = 0.9) { state μ = 0; μ = β*μ + grad; self = self - η*μ }",
    "empty": "rule empty(lr) { }",
    "late": "rule late(lr, half = lr / 2, warm = 3) { self = self - half * grad / warm }",
}


@pytest.mark.parametrize("name", NAMED)
def test_any_names(name: str) -> None:
    first = "η" if name == "any" else "lr"
    agree(NAMED[name], name, SHAPES, **{first: 0.1})


def test_rules_whose_classes_would_have_one_name() -> None:
    text = (
        "rule my_rule(lr) { self = self - lr * grad }\nrule myRule(lr) { self = self + lr * grad }"
    )
    compiled = nlc.compile(system_of(text))
    values = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for name, value in zip(("my_rule", "myRule"), values, strict=True):
        value.grad = torch.ones(2)
        compiled.rule(name)([value], lr=1.0).step()
    assert [float(value.detach()[0]) for value in values] == [-1.0, 1.0]
    assert compiled.optimizers_source.count("class MyRule") == 2


REFUSED = {
    "a slice": ("self = self - lr * sum(slice(grad, 0, 3))", "NL0806", "another size"),
    "tokens in no order": ("self = self - lr * sum(last(key))", "NL0806", "in no order"),
    "no gradient of a token": ("self = sum(grad, over = tokens)", "NL0806", "of the step"),
    "a bare key": ("self = self - lr * grad * sum(key)", "NL0603", "key"),
    "no position": ("self = self - lr * position * grad", "NL0605", "counts its calls"),
    "tokens": ("every 2 tokens { self = self - lr * grad }", "NL0806", "a period counts steps"),
    "an objective elsewhere": ("every 2 steps { self = grad(at = self) }", "NL0806", "are gone"),
    "logits": ("self = self - lr * cross_entropy(grad, 1) * grad", "NL0806", "streams of tokens"),
    "rows as columns": ("Q, w = eig(grad); self = self - lr * Q", "NL0410", "square"),
    "drawn": (
        "memory m : mlp(in -> 3 -> in) {\nkey grad; value grad; state S = self\n"
        "update { self = S }\n}\nself = m(grad)", "NL0806", "drawn",
    ),
    "a convolution inside": (
        "memory m : conv(in, width = 2) { key grad; value grad; update sgd(lr = 1) }\n"
        "self = m(grad)", "NL0514", "cannot be a memory of a rule",
    ),
}  # fmt: skip
SPEC = """
system refused
dims {{ d = 4 }}
rule r({arguments}) {{
{body}
}}
level slow every 1 step, optimizer r(lr = 0.1)
block f(x[d]) -> out[d] {{
  weights A : linear(d -> d, bias)
  out = A(x)
}}
"""


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_optimizer_can_do(name: str) -> None:
    body, code, words = REFUSED[name]
    with pytest.raises(SpecError) as found:
        nlc.compile(nlc.parse(SPEC.format(arguments="lr", body=body)))
    assert {d.code for d in found.value.diagnostics} == {code}
    assert words in render_text(found.value.diagnostics, False)


@pytest.mark.parametrize("name", ["params", "lead", "level", "period", "calls"])
def test_arguments_are_no_options_of_param_groups(name: str) -> None:
    text = SPEC.format(arguments=f"lr, {name} = 1", body=f"self = self - lr * {name} * grad")
    with pytest.raises(SpecError, match="NL0806"):
        nlc.compile(nlc.parse(text))


def test_periods_are_whole_numbers() -> None:
    text = SPEC.format(arguments="lr, f = 1", body="every f steps { self = self - lr * grad }")
    for wrong in ("0", "2.5"):
        with pytest.raises(SpecError, match="NL0401"):
            nlc.parse(text.replace("r(lr = 0.1)", f"r(lr = 0.1, f = {wrong})"))


@pytest.mark.parametrize("body", ["lr / (n - 1)", "log(n - 1)", "10^(1000 * n)", "(lr - n)^0.5"])
def test_numbers_without_a_value_are_told_with_the_arguments(body: str) -> None:
    text = f"rule r(lr) {{ state n[] = 0\n n = n + 1\n self = self - {body} * grad }}"
    value = nn.Parameter(torch.ones(2))
    value.grad = torch.ones(2)
    with pytest.raises(ArithmeticError, match=r"R has no value for its numbers.*lr = 0\.1"):
        nlc.compile(system_of(text)).rule("r")([value], lr=0.1).step()
