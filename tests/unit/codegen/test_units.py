"""Blocks in blocks, optional inputs, nested repeats, several results."""

from __future__ import annotations

import pytest
import torch

import nlc
from tests.unit.codegen.agree import agree, close, randomised, same_states

NESTED = """system nested
dims { d = 6, h = 2, n = 3 }
level fast every 1 token
level slow every 1 step
block inner(x[d], first[h, n] = own) -> out[d], kept[h, n] {
  weights V : linear(d -> h*n)
  weights O : linear(h*n -> d)
  own = V(shift(x, 2))
  mixed = lerp(own, first, 0.25)
  memory M : linear(n -> n) at fast { key mixed
  value own
  update { self = 0.9 * self - 0.1 * grad
  self = tanh(self) } }
  out = O(M(mixed))
  kept = first
}
block whole(x[d]) -> out[d] {
  a, f = inner(x)
  b, g = inner(a, f)
  out = b + 0
}
model {
  vocab 20
  x[d] = embed(tokens)
  repeat 2 {
    y, first = inner(x, first)
    x = x + y
    repeat 2 { x = x + whole(rmsnorm(x)) }
  }
  logits = unembed(x, tied)
}
"""


@pytest.mark.parametrize("name", ["inner", "whole"])
def test_blocks_in_blocks(name: str) -> None:
    agree(nlc.parse(NESTED), name)


def test_a_stream_without_a_value_takes_the_default() -> None:
    compiled = nlc.compile(nlc.parse(NESTED))
    block = randomised(compiled.block("inner").double())
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    (out, kept), state = block(x)
    (want, kept_want), state_want = compiled.reference("inner", block)(x)
    close(out, want, "out")
    close(kept, kept_want, "kept")
    same_states(state, state_want, "state")


def test_nested_repeats_and_tied_embeddings() -> None:
    compiled = nlc.compile(nlc.parse(NESTED))
    model = randomised(compiled.model().double())
    tokens = torch.randint(0, 20, (2, 9))
    logits, state = model(tokens)
    want, state_want = compiled.reference(None, model)(tokens)
    close(logits, want, "logits")
    same_states(state, state_want, "state")
    assert "unembed.weight" not in dict(model.named_parameters())


def test_a_reference_has_the_parameters_of_the_module_made_last() -> None:
    compiled = nlc.compile(nlc.parse(NESTED))
    block = randomised(compiled.block("inner").double())
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    close(block(x)[0][0], compiled.reference("inner")(x)[0][0], "out")


def test_one_rule_over_plain_tensors() -> None:
    compiled = nlc.compile(nlc.parse(NESTED))
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = compiled.rule("sgd")([weight], lr=0.5)
    weight.sum().backward()
    optimizer.step()
    assert torch.equal(weight.data, torch.full((2,), 0.5))


def test_a_read_used_twice_in_one_place_is_read_once() -> None:
    from tests.unit.codegen.test_emitted import SYSTEMS

    # loss(M) = ||M(k) - v||^2 squares what is read
    source = nlc.compile(nlc.parse(SYSTEMS["surprise"])).source
    assert source.count("self.M.read_before(") == 1


def test_what_a_loop_does_not_make_is_made_before_it() -> None:
    """Keys written in place, of a memory that runs token by token, are one product for all."""
    from tests.references.specs import block

    system = nlc.parse(
        block("""
  weights conv_k : conv(heads*d_k, width = 3)
  memory M : linear(d_k -> d_v) at fast {
    key unit(conv_k(W_k(x)))
    value W_v(shift(x))
    update { self = tanh(self - 0.1 * grad) }
  }
  out = W_o(M(q))
""")
    )
    source = agree(system).source
    forward = source[source.index("class Mixer(") :]
    forward = forward[forward.index("def forward") : forward.index("def step")]
    loop = forward[forward.index("        ):\n") :].split("\n        #")[0]
    assert "self.M.step(" in loop and "self.W_" not in loop and "self.conv_k" not in loop


@pytest.mark.parametrize("given", ["index(d)", "position * index(d)", "p", "sin(position * p)"])
def test_a_block_may_be_called_with_what_is_the_same_in_every_row(given: str) -> None:
    text = f"""system alike
dims {{ d = 3 }}
level fast every 1 token
level slow every 1 step
block inner(x[d]) -> out[d] {{
  weights V : linear(d -> d)
  weights c : conv(d, width = 2)
  memory M : linear(d -> d) at fast {{
    key   unit(x)
    value V(x)
    update sgd(lr = 0.1)
  }}
  out = M(x) + shift(x) + c(x)
}}
block outer_one(x[d]) -> out[d] {{
  weights p : vector(d) init 0.5
  out = x * inner({given})
}}
block nothing(x[d]) -> out[d] {{
  weights p : vector(d) init 0.5
  out = {given}
}}
model {{
  vocab 5
  y[d] = embed(tokens)
  z = position * index(d)
  repeat 2 {{ y = y + inner(z) + outer_one(y) }}
  logits = unembed(y)
}}
"""
    compiled = agree(nlc.parse(text), "outer_one", tokens=4)
    agree(nlc.parse(text), "nothing", tokens=4)
    model = randomised(compiled.model().double())
    tokens = torch.randint(0, 5, (3, 6))
    logits, state = model(tokens)
    want, want_state = compiled.reference(None, model)(tokens)
    close(logits, want, "logits")
    same_states(state, want_state, "state")
