"""Emitted models that learn from the task while they read, against the interpreter."""

from __future__ import annotations

import pytest
import torch

import nlc
from nlc.compiled import compile_system
from nlc.ir.schedule import Plan
from tests.unit.codegen.online import agree_model, tokens

HEAD = """
system s
dims { d = 6, heads = 2, d_k = 3, n = 3 }
level now  always
level tok  every 1 token
level part every 1 token, chunk 2
level win  every 2 tokens
level one  every 1 token, optimizer sgd(lr = 0.1)
level fast every 2 tokens, optimizer sgd(lr = 0.1)
level mid  every 4 tokens, optimizer momentum(lr = 0.1)
level slow every 1 step, optimizer adamw(lr = 1e-3)
"""
MODEL = """
model {
  vocab 11
  x[d] = embed(tokens)
  repeat 2 { x = x + mixer(rmsnorm(x)) }
  logits = unembed(rmsnorm(x))
}
"""
PROJECTIONS = """
  weights W_q, W_k : linear(d -> heads*d_k)
  weights W_v : linear(d -> heads*d_k) at fast
  weights W_o : linear(heads*d_k -> d) at mid
"""
SYSTEMS = {
    "windows of one token, and a gated map": """
  weights A : linear(d -> d) at one
  weights B : glu(d -> 2*d -> d) at mid
  out = B(A(x))
""",
    "beside attention": PROJECTIONS
    + """
  weights g : vector(d) init 1 at fast
  memory A : kernel(softmax, window = 3) at now { key W_k(x); value W_v(x) }
  out = g * W_o(A(W_q(x)))
""",
    "around a memory of its own objective": PROJECTIONS
    + """
  weights w : linear(d -> heads) at fast
  memory M : linear(d_k -> d_k) at tok {
    key    unit(W_k(x))
    value  W_v(x)
    update { self = self - sigmoid(w(x)) * grad }
  }
  out = W_o(M(W_q(x)))
""",
    "around a deep memory in chunks": PROJECTIONS
    + """
  memory M : mlp(d_k -> d_k -> d_k) at part {
    key    unit(W_k(x))
    value  W_v(x)
    update sgd(lr = 0.1)
  }
  out = W_o(M(W_q(x)))
""",
    "around a memory with windows": PROJECTIONS
    + """
  memory M : linear(d_k -> d_k) at win {
    key    unit(W_k(x))
    value  W_v(x)
    update sgd(lr = 0.1)
  }
  out = W_o(M(W_q(x)))
""",
    "after a convolution, with times": """
  weights c : conv(d, width = 3)
  weights W : mlp(d -> 2*d -> d, act = silu, bias, norm) at fast
  weights L : lora(d -> 2 -> d) at mid
  out = L(W(c(x) + shift(x, 1)) + 0.1 * position * x)
""",
    "by equations, with learned rates, states and resets": """
  weights rate, gate : scalar init 0.1
  memory W : linear(d -> d) at fast {
    objective task
    state  S = 0
    update {
      S    = sigmoid(gate) * S + grad
      self = self - rate * S + 0.01 * (initial(self) - self)
    }
    reset  every 8 tokens
  }
  out = W(x)
""",
    "as copies of a slower level": """
  memory A : mlp(d -> d -> d, bias) at fast {
    objective task
    init      from B
    reset     every 4 tokens
  }
  weights B : mlp(d -> d -> d, bias) at mid
  out = A(x)
""",
    "as copies, first order": """
  memory A : linear(d -> d) at fast {
    objective task
    init      from B
    through   first_order
    reset     every 4 tokens
  }
  weights B : linear(d -> d) at mid
  out = A(x) + B(x)
""",
    "first order at every level, per head": """
  weights W_q : linear(d -> heads*d_k)
  memory M[heads] : linear(d_k -> d_k) at fast { objective task; through first_order }
  memory A : mlp(d -> 2*d -> d, bias) at fast { objective task; through first_order }
  memory B : glu(d -> 2*d -> d) at mid { objective task; through first_order }
  weights W_o : linear(heads*d_k -> d)
  out = B(A(W_o(M(W_q(x))))) + A.layer2.bias
""",
    "with no gradient through the faster": """
  memory A : linear(d -> d) at fast { objective task; through stop }
  weights B : linear(d -> d) at mid
  out = A(gelu(B(x)))
""",
    "from weights, zeros and numbers": """
  weights W : linear(d -> d)
  memory A : linear(d -> d) at fast {
    objective task
    init      from W
    reset     every 4 tokens
  }
  memory Z : linear(d -> d) at mid { objective task; init zeros }
  memory E : vector(d) at mid { objective task; init 0.5 }
  out = A(x) + Z(x) + E * x
""",
    "where a memory of its own objective begins": """
  weights W_q, W_k, W_v : linear(d -> d)
  weights B : linear(d -> d) at mid
  memory M : linear(d -> d) at tok {
    key    unit(W_k(x))
    value  W_v(x)
    update sgd(lr = 0.1)
    init   from B
    reset  every 2 tokens
  }
  out = M(W_q(x))
""",
    "through a norm that no level moves, to the third order": """
  weights A : linear(d -> d) at fast
  weights B : linear(d -> d) at mid
  weights S : mlp(d -> 2*d -> d, act = silu, bias, norm)
  out = S(B(S(A(x))))
""",
    "with copies per head": """
  weights W_q : linear(d -> heads*d_k)
  weights M[heads] : linear(d_k -> d_k) at fast
  weights v[heads] : vector(d_k) init 1 at mid
  weights W_o : linear(heads*d_k -> d)
  out = W_o(M(v * W_q(x)))
""",
    "as a matrix, a vector and a number": """
  weights M : matrix(d, d) init normal(0.2) at fast
  weights b : vector(d) at mid
  weights s : scalar init 1 at one
  out = s * (M @ x) + b
""",
}


def system(body: str, model: str = MODEL, head: str = HEAD) -> nlc.System:
    """A model of blocks with this body."""
    return nlc.parse(f"{head}block mixer(x[d]) -> out[d] {{{body}}}{model}")


def test_a_block_of_tokens_learns_in_the_type_of_its_weights() -> None:
    """What is looked up is no whole number, though all that such blocks take is."""
    blocks = """
block inner(s[]) -> out[d] {
  weights E : table(11 -> d) at fast
  out = E(s)
}
block emb(t[]) -> out[d] {
  y = inner(shift(t, 1))
  out = 2 * y
}"""
    model = MODEL.replace("repeat 2 { x = x + mixer(rmsnorm(x)) }", "x = x + emb(tokens)")
    agree_model(nlc.parse(f"{HEAD}{blocks}{model}"))


def test_positions_look_up_a_row_for_each_sequence() -> None:
    body = """
  weights E : table(5 -> d) at fast
  out = E(min(position, 4)) + x
"""
    agree_model(system(body))


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_learns_while_it_reads_agrees_with_the_interpreter(name: str) -> None:
    """Outputs, states, gradients of the second order too, any cut, steps, rows."""
    agree_model(system(SYSTEMS[name]))


RULES = """
  sgd(lr = 0.1, weight_decay = 0.1) | nesterov(lr = 0.1) | adam(lr = 0.05) | adamw | adagrad
  sam(lr = 0.1) | muon(lr = 0.1) | adamuon(lr = 0.01) | rmsuon(lr = 0.01) | m3(lr = 0.01, f = 2)
"""


@pytest.mark.parametrize(
    "rule", [r.strip() for r in RULES.replace("\n", "|").split("|") if r.strip()]
)
def test_any_rule_is_the_optimizer_of_a_level_of_tokens(rule: str) -> None:
    """Its states are each sequence's own, sums over calls too."""
    head = HEAD.replace("momentum(lr = 0.1)", rule)
    body = """
  weights A : mlp(d -> d -> d, bias) at fast
  weights B : mlp(d -> d -> d, bias) at mid
  out = B(A(x))
"""
    agree_model(system(body, head=head), length=10)


@pytest.mark.parametrize("map", ["lora(d -> 2 -> d)", "mlp(d -> 2*d -> d, act = relu)"])
@pytest.mark.parametrize("rule", ["adam(lr = 0.05)", "rmsuon(lr = 0.01)"])
def test_roots_of_gradients_that_are_0_have_a_gradient(rule: str, map: str) -> None:
    """A fresh lora's first part and the dead units of a relu have a gradient of exactly 0."""
    head = HEAD.replace("momentum(lr = 0.1)", rule)
    compiled = compile_system(system(f"weights B : {map} at mid; out = B(x)", head=head))
    torch.manual_seed(0)
    model = compiled.model().double()
    x = tokens(10, 11)
    wanted = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(read(x)[0].sin().sum(), wanted, allow_unused=True)
        for read in (model, compiled.reference(None, model))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.isfinite().all()
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("map", ["linear(d -> d)", "mlp(d -> 2*d -> d, bias)"])
@pytest.mark.parametrize(
    "rule", ["deep_momentum(lr = 0.1)", "delta_momentum(lr = 0.1)", "dgd(lr = 0.1)"]
)
def test_rules_of_one_matrix_move_each_of_a_map(rule: str, map: str) -> None:
    """A rule with memories, one that multiplies with its state, one with the inputs of maps."""
    head = HEAD.replace("momentum(lr = 0.1)", rule)
    agree_model(system(f"weights B : {map} at mid; out = B(x)", head=head), length=10)


def test_instances_in_calls_and_shared_ones_learn() -> None:
    """Blocks inside blocks, a shared instance called in each pass, an objective of its own."""
    inner = "block piece(x[d]) -> out[d] {\n  weights A : linear(d -> d) at fast\n  out = A(x)\n}\n"
    model = """
model {
  vocab 11
  objective cross_entropy(logits, targets) + 0.01 * ||x||^2
  share once = mixer
  x[d] = embed(tokens)
  x = x + mixer(x)
  x = x + once(x)
  logits = unembed(x)
}
"""
    body = "weights B : linear(d -> d) at mid; y = piece(x); out = B(y)"
    agree_model(system(body, model, HEAD + inner), length=9)


CHAIN = """
system chain
dims { d = 6 }
level fast every 2 tokens, optimizer sgd(lr = 0)
level mid  every 4 tokens, optimizer momentum(lr = 0)
level slow every 1 step, optimizer adamw(lr = 1e-3)
block mixer(x[d]) -> out[d] {
  weights A : mlp(d -> 2*d -> d, residual) at fast
  weights B : mlp(d -> 2*d -> d, residual) at mid
  out = B(A(x))
}
"""


def test_a_rate_of_zero_leaves_what_a_level_of_steps_gives() -> None:
    """Weights load by name from the static model; nothing moves, bit by bit."""
    online = compile_system(nlc.parse(CHAIN + MODEL)).model().double()
    still = nlc.parse(CHAIN.replace(" at fast", "").replace(" at mid", "") + MODEL)
    static = compile_system(still).model().double()
    static.load_state_dict(online.state_dict())
    x = tokens(11, 11)
    (ours, state), (theirs, _) = online(x), static(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    own, start = state["repeat"]["1"]["mixer"]["A"], online.repeat[1].mixer.A
    assert own["layer1.weight"].equal(start.layer1.weight.expand(2, -1, -1))
    # read alike, in the same pieces, it is the same bit by bit
    pieces, now = [], online.first_state(2, online.embed.weight)
    for at in range(0, 11, 2):
        y, now = online.read_piece(x[:, at : at + 2], now)
        pieces.append(y)
    assert ours.equal(torch.cat(pieces, 1))


def test_settings_put_pretrained_weights_at_a_level_of_tokens() -> None:
    """A weight's level is one setting; it keeps its name."""
    text = CHAIN.replace("lr = 0)", "lr = 0.1)").replace(" at fast", "").replace(" at mid", "")
    static = nlc.parse(text + MODEL)
    levels = {"A": "fast", "B": "mid"}
    online = nlc.parse(
        text + MODEL,
        set={f"blocks.mixer.weights.{name}.level": level for name, level in levels.items()},
    )
    trained, adapting = compile_system(static).model(), compile_system(online).model()
    adapting.load_state_dict(trained.state_dict())
    x = tokens(3, 11)
    ours, _ = adapting(x)
    theirs, _ = trained(x)
    torch.testing.assert_close(ours[:, :2], theirs[:, :2])
    assert not torch.allclose(ours[:, 2], theirs[:, 2])


def test_learning_lowers_the_loss_of_what_is_read_again() -> None:
    """A sequence that repeats itself is foretold better by what learns from it."""
    text = CHAIN.replace("sgd(lr = 0)", "sgd(lr = 0.3)").replace(
        "momentum(lr = 0)", "sgd(lr = 0.3)"
    )
    torch.manual_seed(0)
    model = compile_system(nlc.parse(text + MODEL)).model()
    x = torch.tensor([[1, 2, 3, 4] * 40])
    with torch.inference_mode():
        logits, _ = model(x)
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], x[0, 1:], reduction="none")
    assert losses[-20:].mean() < 0.7 * losses[:20].mean()


def test_plans_say_that_it_runs_online() -> None:
    """The schedule is `online`, with its reason; the loss is in no block."""
    found = nlc.check(nlc.parse(CHAIN + MODEL))
    assert isinstance(found.plan, Plan)
    schedule = found.plan.block("mixer").schedule("A")
    assert schedule.kind == "online" and "a window of 2 tokens" in schedule.reason
    assert found.stability["mixer.A"].term == "it learns from the task's loss"


def test_what_is_differentiated_twice_runs_without_kernels() -> None:
    """Whatever target is asked for; where the gradient is a constant, kernels are welcome."""
    text = CHAIN + MODEL
    assert compile_system(nlc.parse(text), target="triton").target == "torch"
    plain = text.replace(
        "weights A : mlp(d -> 2*d -> d, residual) at fast",
        "memory A : mlp(d -> 2*d -> d, residual) at fast { objective task; through first_order }",
    ).replace(" at mid", "")
    assert compile_system(nlc.parse(plain), target="triton").target == "triton"
