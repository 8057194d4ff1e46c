"""Memories inside rules that move memories: emitted code equals the interpreter, at any period."""

from __future__ import annotations

import pytest
import torch

import nlc
from tests.unit.codegen.agree import agree

HEAD = """
system inner
dims {{ d = 6, heads = 2, d_k = 3, d_v = 4 }}
{rule}
level fast {period}
level slow every 1 step
block mixer(x[d]) -> out[d] {{
  weights W_k : linear(d -> heads*d_k)
  weights W_v : linear(d -> heads*d_v)
  weights W_o : linear(heads*d_v -> d)
  memory M : linear(d_k -> d_v) at fast {{
    key unit(W_k(x)); value W_v(x); update {update}; reset every 8 tokens
  }}
  out = W_o(M(unit(W_k(x))))
}}
"""
RULES = {
    "like the memory": """
rule r(lr) {
  memory u : like self { objective sum((self - grad)^2, over = (in, out)); update sgd(lr = 0.2) }
  memory w : like self {
    objective sum(self * u, over = (in, out)) + sum(self^2, over = (in, out))
    update    momentum(lr = 0.1)
  }
  self = 0.9 * self - lr * w
}""",
    "drawn, with states, moved by a rule": """
rule r(lr) {
  memory M : glu(in -> 2*in -> out) {
    key    unit(sum(grad, over = out))
    value  -sum(grad, over = in)
    state  S = 0
    update {
      self.gate = 0.9 * self.gate
      S         = 0.5 * S - 0.1 * grad
      self      = self + S
    }
  }
  memory u : mlp(in -> 2 -> in, bias) {
    key grad; value -grad; update muon(lr = 0.1, weight_decay = 0.1)
  }
  self = self + lr * outer(M(unit(sum(grad, over = out))), sum(u(grad), over = out))
}""",
    "read in blocks, before and at first": """
rule r(lr) {
  memory u : linear(in -> in) {
    key       grad
    objective 1/2 * ||self(key) + grad||^2 / out + 0.1 * sum(prev(self) * self, over = (in, out))
    update    { self = self - 0.1 * grad(at = 0.9 * self) + 0.1 * initial(self) }
    init      0.2
  }
  self = self - lr * grad
  every 8 tokens { self = self + prev(u)(grad) }
  when norm(grad, over = (in, out)) > 0.5 { self = self + 0.1 * u(grad) }
}""",
}


@pytest.mark.parametrize("period", ["every 1 token", "every 1 token, chunk 4", "every 4 tokens"])
@pytest.mark.parametrize("name", RULES)
def test_any_period(name: str, period: str) -> None:
    text = HEAD.format(rule=RULES[name], period=period, update="r(lr = 0.3)")
    compiled = agree(nlc.parse(text), tokens=10)
    _, state = compiled.block("mixer")(torch.randn(1, 3, 6))
    assert any(key.startswith("M.u") for key in state)


def test_what_is_drawn_is_a_parameter_of_the_fastest_level_of_steps() -> None:
    text = HEAD.format(rule="", period="every 1 token", update="deep_momentum(lr = 0.3)")
    text = text.replace("every 1 step", "every 1 step, optimizer adamw(lr = 0.1)")
    system = nlc.parse(text)
    assert system.component("mixer.M.initial_m").parameters == 2 * (3 * 6 + 6 * 3)
    compiled = nlc.compile(system)
    module = compiled.block("mixer")
    names = [n for n, _ in module.named_parameters() if n.startswith("M.")]
    assert names == ["M.initial_m.layer1.weight", "M.initial_m.layer2.weight"]
    before = module.M.initial_m.layer1.weight.detach().clone()
    optimizer = compiled.optimizer(module)
    module(torch.randn(2, 9, 6))[0].square().sum().backward()
    optimizer.step()
    assert not torch.equal(module.M.initial_m.layer1.weight, before)
