"""Updates of what learns from the task that need more than its gradient, against the interpreter.

Gradients at other values, what the tokens of a window give, other memories, slots.
"""

from __future__ import annotations

import pytest
import torch

import nlc
from nlc.compiled import compile_system
from nlc.diagnostics import SpecError
from nlc.passes.cost import cost
from nlc.passes.explicit import explicit
from nlc.passes.plan import plan
from tests.unit.codegen.agree import flat
from tests.unit.codegen.online import agree_model, tokens
from tests.unit.codegen.test_online import CHAIN, HEAD, MODEL, system

SYSTEMS = {
    "gradients at other values, beside one that asks for none": """
  weights rate : scalar init 0.1
  memory A : linear(d -> d) at fast {
    objective task
    update { repeat 2 { self = self - rate * grad(at = self) } }
  }
  memory B : linear(d -> d) at mid { objective task; update sam(lr = 0.1, rho = 0.3) }
  memory C : linear(d -> d) at mid { objective task; through first_order }
  out = C(gelu(B(gelu(A(x)))))
""",
    "gradients at other values, first order and stopped": """
  memory A : linear(d -> d) at fast {
    objective task; through stop; update sam(lr = 0.1, rho = 0.3)
  }
  memory B : linear(d -> d) at mid {
    objective task; through first_order; update sam(lr = 0.1, rho = 0.3)
  }
  out = B(gelu(A(x)))
""",
    "gradients at other values, where others begin as copies": """
  weights W_q, W_k, W_v : linear(d -> d)
  memory A : linear(d -> d) at fast {
    objective task
    init      from B
    reset     every 4 tokens
  }
  memory B : linear(d -> d) at mid {
    objective task
    state  S = 0
    update {
      when norm(grad, over = (in, out)) > 0 { S = 0.5 * S + grad(at = self + 0.3 * grad) }
      self = self - 0.1 * S
    }
    reset  every 8 tokens
  }
  memory M : linear(d -> d) at tok {
    key    unit(W_k(x))
    value  W_v(x)
    update sgd(lr = 0.1)
    init   from B
    reset  every 4 tokens
  }
  out = A(x) + M(W_q(x))
""",
    "equations over tokens": """
  weights w : linear(d -> 1)
  weights c : conv(d, width = 3)
  g = sigmoid(w(x))
  memory A : linear(d -> d) at fast {
    objective task
    update {
      self = last(g) * self - mean(g, over = tokens) * grad
      self = self - 0.01 * sum(outer(c(x), shift(x)), over = tokens)
    }
  }
  memory B : vector(d) at one {
    objective task
    init      0.5
    update { self = g * self - sigmoid(w(x)) * grad + 0.01 * shift(x) }
  }
  out = B * A(x)
""",
    "what its tokens give once it has moved": """
  weights w : linear(d -> 1)
  memory A : linear(d -> d) at mid {
    objective task
    update {
      self = self - 0.1 * grad
      self = self - sum(sigmoid(w(x)) * outer(self(x) - x, x), over = tokens)
      self = self - 0.1 * grad(at = self) - 0.1 * grad(1/2 * ||self(x) - x||^2)
    }
  }
  memory B : linear(d -> d) at one {
    objective task
    update { self = self - 0.1 * grad - 0.1 * grad(1/2 * ||self(x) - x||^2) }
  }
  out = A(x) + B(x)
""",
    "what other memories give": """
  weights W_k, W_v : linear(d -> d)
  weights B : linear(d -> d) at fast
  memory M : linear(d -> d) at tok {
    key    unit(W_k(x))
    value  W_v(x)
    update { self = 0.9 * self - 0.5 * grad }
    reset  every 4 tokens
  }
  memory N : mlp(d -> d -> d) at part {
    key    unit(W_k(x))
    value  W_v(x)
    update { self = self - 0.5 * grad }
  }
  memory A : linear(d -> d) at mid {
    objective task
    update {
      self = self @ (1 - 0.1 * mean(outer(B(x), M(N(x))), over = tokens)) - 0.1 * grad
      self = self + 0.1 * sum(outer(self(x), N(x)), over = tokens)
    }
  }
  out = A(M(x) + B(x))
""",
    "what others are, and places": """
  weights W_k, W_v : linear(d -> d)
  weights B : linear(d -> d) at mid
  weights C : vector(d) at fast
  memory M : linear(d -> d) at tok {
    key    unit(W_k(x))
    value  W_v(x)
    update { self = 0.9 * self - 0.5 * grad }
    reset  every 4 tokens
  }
  memory S : kernel(softmax, window = 3) at now { key W_k(x); value W_v(x) }
  memory A : linear(d -> d) at fast {
    objective task
    update {
      self = self - 0.1 * grad + 0.01 * (B + M - prev(M)) * last(position)
      self = self @ diag(1 + 0.01 * C + 0.01 * last(S(x)))
    }
  }
  memory D : linear(d -> d) at one {
    objective task
    update {
      self = self - 0.1 * grad + 0.01 * (B + M) / (1 + position)
      self = self + 0.01 * outer(S(x), M(x))
    }
  }
  out = A(D(x)) + B(x) + C
""",
    "convolutions, before a memory and after it": """
  weights c : conv(d, width = 3, bias) at fast
  weights W_k, W_v : linear(d -> d)
  memory M : linear(d -> d) at tok {
    key    unit(W_k(c(x)))
    value  W_v(x)
    update sgd(lr = 0.1)
  }
  weights f : conv(d, width = 1)
  memory e : conv(d, width = 2) at mid {
    objective task; update sam(lr = 0.1); reset every 8 tokens
  }
  memory A : linear(d -> d) at mid {
    objective task
    update { self = self - 0.1 * grad - 0.01 * mean(outer(c(x), e(x)), over = tokens) }
  }
  out = f(e(M(c(x)))) + c(W_v(A(x)))
""",
    "what is faster as it was last, with copies for heads": """
  weights W_q : linear(d -> heads*d_k)
  weights g : linear(d -> heads)
  weights b : vector(d) at fast
  weights W_o : linear(heads*d_k -> d)
  memory M[heads] : linear(d_k -> d_k) at mid {
    objective task; init learned
    update {
      self = self * last(sigmoid(g(x))) - mean(sigmoid(g(x)), over = tokens) * grad
      write = mean(outer(W_q(x), W_q(x)), over = tokens)
      every 2 steps { self = self - 0.01 * last(sum(b)) * write }
    }
  }
  out = W_o(M(W_q(x))) + b
""",
    "in slots that tokens select": """
  weights r : linear(d -> n)
  memory A : linear(d -> d) at mid {
    objective task; init learned
    slots n; route r(x); select top_k(1)
  }
  memory B : mlp(d -> d -> d) at one {
    objective task
    slots n; route r(x); select top_p(0.6)
  }
  memory C : linear(d -> d) at one {
    objective task; init learned
    slots n; route r(x); select top_k(1)
  }
  out = A(B(C(x)))
""",
    "of the inputs of what slots hold": """
  weights r : linear(d -> n)
  memory A : mlp(d -> d -> d, bias) at fast {
    objective task
    slots n; route r(x); select top_k(1)
    update dgd(lr = 0.1)
  }
  out = A(x)
""",
    "in slots that all tokens use": """
  weights r : linear(d -> n)
  memory A : mlp(d -> d -> d) at fast {
    objective task
    slots n; route r(x)
    update momentum(lr = 0.1)
  }
  out = A(x)
""",
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_such_updates_agree_with_the_interpreter(name: str) -> None:
    """Outputs, states, gradients of the second order too, any cut, steps, rows."""
    agree_model(system(SYSTEMS[name]), length=9)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_kept_until_they_run_is_counted_in_the_state(name: str) -> None:
    """Sums and last tokens; after 8 tokens all updates wait for a target."""
    told = system(SYSTEMS[name])
    counted = cost(told, plan(explicit(told)), 8)
    assert counted is not None
    _, state = compile_system(told).model()(tokens(8, 11, rows=1))
    held = [value for value in flat(state).values() if isinstance(value, torch.Tensor)]
    assert counted.total.state_bytes == 4 * sum(value.numel() for value in held)


def test_sharpness_aware_steps_are_those_of_a_window_read_twice() -> None:
    """By hand: the loss of a window with weights a step uphill, for each sequence."""
    text = CHAIN.replace("sgd(lr = 0)", "sam(lr = 0.5, rho = 0.3)").replace(" at mid", "")
    online = compile_system(nlc.parse(text + MODEL)).model().double()
    static = compile_system(nlc.parse(text.replace(" at fast", "") + MODEL)).model().double()
    static.load_state_dict(online.state_dict())
    x = tokens(3, 11)
    _, state = online(x)
    names = [name for name, _ in static.named_parameters() if ".mixer.A." in name]
    for row in range(2):
        start = {name: value.detach() for name, value in static.named_parameters()}

        def slopes(moved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            points = {name: value.clone().requires_grad_() for name, value in moved.items()}
            logits, _ = torch.func.functional_call(static, {**start, **points}, (x[row, None, :2],))  # noqa: B023
            loss = torch.nn.functional.cross_entropy(logits[0], x[row, 1:], reduction="sum")  # noqa: B023
            return dict(zip(points, torch.autograd.grad(loss, list(points.values())), strict=True))

        first = slopes({name: start[name] for name in names})
        uphill = {name: start[name] + 0.3 * g / g.norm() for name, g in first.items()}
        for name, g in slopes(uphill).items():
            _, turn, _, _, part = name.split(".", 4)
            found = state["repeat"][turn]["mixer"]["A"][part][row]
            torch.testing.assert_close(found, start[name] - 0.5 * g, rtol=0, atol=1e-12)


TABLE = """
model {
  vocab 11
  x[d] = embed(tokens)
  x = x + mixer(rmsnorm(x), tokens)
  logits = unembed(rmsnorm(x))
}
"""


@pytest.mark.parametrize("rule", ["adamw", "dgd(lr = 0.1)"])
def test_a_table_learns_while_it_is_read(rule: str) -> None:
    """Each sequence has rows of its own; a rule that asks for an input is given 0."""
    text = HEAD.replace("momentum(lr = 0.1)", rule) + (
        "block mixer(x[d], ids) -> out[d] {\n"
        "  weights E : table(11 -> d) at mid\n"
        "  memory A : linear(d -> d) at fast {\n    objective task\n"
        "    update { self = self - 0.1 * grad - sum(outer(x, E(ids)), over = tokens) }\n  }\n"
        "  out = E(ids) * A(x)\n}\n"
    )
    agree_model(nlc.parse(text + TABLE), length=9)


RULES = """
  sam(lr = 0.1, rho = 0.1) | muon(lr = 0.1) | adamuon(lr = 0.01) | rmsuon(lr = 0.01)
  m3(lr = 0.01, f = 2) | delta_momentum(lr = 0.1) | dgd(lr = 0.1)
"""
MAPS = ("mlp(d -> 2*d -> d, bias)", "glu(d -> 2*d -> d)", "lora(d -> 2 -> d, act = silu, bias)")


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize(
    "rule", [r.strip() for r in RULES.replace("\n", "|").split("|") if r.strip()]
)
def test_a_rule_moves_maps_between_tokens_as_it_does_between_steps(rule: str, map: str) -> None:
    """Two windows, each a step of the optimizer on the maps as weights, for any layer and bias."""
    text = CHAIN.replace("sgd(lr = 0)", rule).replace(" at mid", "")
    text = text.replace("mlp(d -> 2*d -> d, residual) at fast", f"{map} at fast")
    online = compile_system(nlc.parse(text + MODEL)).model().double()
    trained = compile_system(nlc.parse(text.replace(" at fast", "") + MODEL))
    static = trained.model().double()
    static.load_state_dict(online.state_dict())
    for name, value in static.named_parameters():
        value.requires_grad_(".mixer.A." in name)
    x = tokens(5, 11, rows=1)
    _, state = online(x)
    name, _, rest = rule.partition("(")
    words = dict(word.split(" = ") for word in rest[:-1].split(", "))
    optimizer = trained.rule(name)(static, **{key: float(v) for key, v in words.items()})
    for at in (0, 2):

        def closure(at: int = at) -> torch.Tensor:
            optimizer.zero_grad()
            logits, _ = static(x[:, at : at + 2])
            loss = torch.nn.functional.cross_entropy(
                logits[0], x[0, at + 1 : at + 3], reduction="sum"
            )
            loss.backward()
            return loss

        optimizer.step(closure)
    for name, value in static.named_parameters():
        if ".mixer.A." in name:
            _, turn, _, _, part = name.split(".", 4)
            found = state["repeat"][turn]["mixer"]["A"][part][0]
            torch.testing.assert_close(found, value.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("update", "out", "code", "words"),
    [
        ("dgd(lr = 0.1)", "A(x) + A(2 * x)", "NL0503", "no single input"),
        ("held(lr = 0.1)", "A(x)", "NL0415", "one part of several at another value"),
    ],
)
def test_rules_say_what_of_a_map_they_cannot_move(
    update: str, out: str, code: str, words: str
) -> None:
    """An input where there are two, a joint gradient where each matrix moves by itself."""
    rule = "rule held(lr) { self = self - lr * self @ transpose(self) @ grad(at = 2 * self) }\n"
    body = f"""
  memory A : mlp(d -> d -> d) at mid {{ objective task; update {update} }}
  out = {out}
"""
    with pytest.raises(SpecError) as error:
        system(body, head=HEAD + rule)
    (diagnostic,) = error.value.diagnostics
    assert diagnostic.code == code and words in diagnostic.title


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        ("update { self = self - sum(x * grad, over = tokens) }", "at one token of a window"),
        ("update { self = B * grad }", "reads what learns faster, `B`"),
    ],
)
def test_updates_that_need_more_than_the_gradient_are_refused(clause: str, words: str) -> None:
    """With the code that says so, where the memory stands."""
    body = f"""
  memory A : vector(d) at mid {{ objective task; {clause} }}
  weights B : vector(d) at fast
  out = A * x + B
"""
    with pytest.raises(SpecError) as error:
        compile_system(system(body))
    (diagnostic,) = error.value.diagnostics
    assert diagnostic.code == "NL0804" and words in diagnostic.title
