"""Whole models in the interpreter: repeat, share, input defaults, loss, initial values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nlc.ir.system import System
from nlc.runtime.initial import initial_parameters
from nlc.runtime.reference import Reference
from tests.references import cores
from tests.references.compare import close, draw_parameters, gradients, leaves, same_state
from tests.references.layers import cross_entropy, heads, linear, rmsnorm, silu, within
from tests.references.specs import HEAD, resolve

BLOCKS = """
block mixer(x[d], v_first[heads, d_v] = own) -> out[d], own[heads, d_v] {
  weights W_q, W_k : linear(d -> heads*d_k)
  weights W_v : linear(d -> heads*d_v)
  weights W_o : linear(heads*d_v -> d)
  own = W_v(x)
  v = 0.5 * own + 0.5 * v_first
  memory M : linear(d_k -> d_v) at fast {
    key W_k(x)
    value v
    objective -<M(key), value>
    update { self = 0.9 * self - grad }
  }
  out = W_o(M(W_q(x)))
}
block ffn(x[d]) -> out[d] {
  weights up : linear(d -> 2*d, bias)
  weights down : linear(2*d -> d)
  out = down(silu(up(x)))
}
"""
MODEL = f"""{HEAD.format(chunk="")}{BLOCKS}
model {{
  vocab 11
  share f = ffn
  x[d] = embed(tokens)
  repeat 2 {{
    y, v = mixer(rmsnorm(x), v)
    x = x + y
    x = x + ffn(rmsnorm(x))
  }}
  x = x + f(x)
  x = x + f(x)
  logits = unembed(rmsnorm(x))
}}
"""


def mixer(p: dict[str, Tensor], x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    q, k, own = (heads(linear(p, name, x), 2) for name in ("W_q", "W_k", "W_v"))
    v = own if v_first is None else 0.5 * own + 0.5 * v_first
    first = torch.zeros(x.shape[0], 2, 3, 4, dtype=x.dtype)
    decay = torch.full(q.shape[:3], 0.9, dtype=x.dtype)
    y, S = cores.decayed_attention(q, k, v, decay, first)
    return linear(p, "W_o", y.flatten(-2)), own, S


def ffn(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return linear(p, "down", silu(linear(p, "up", x)))


def model(p: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, dict[str, object]]:
    x, v, states = p["embed.weight"][tokens], None, {}
    for turn in range(2):
        own = within(p, f"repeat.{turn}.mixer.")
        y, v, S = mixer(own, rmsnorm(x), v)
        states[str(turn)] = {"mixer": {"M": S}}
        x = x + y
        x = x + ffn(within(p, f"repeat.{turn}.ffn."), rmsnorm(x))
    shared = within(p, "f.")
    x = x + ffn(shared, x)
    x = x + ffn(shared, x)
    return linear(p, "unembed", rmsnorm(x)), {"repeat": states}


@pytest.fixture(scope="module")
def system() -> System:
    return resolve(MODEL)


def draw_tokens(rows: int = 3, length: int = 6) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(3))


def test_model_agrees_with_a_loop_by_hand(system: System) -> None:
    p, tokens = draw_parameters(system, None), draw_tokens()
    logits, state = Reference(system, p)(tokens)
    wanted, states = model(p, tokens)
    close(logits, wanted, "logits")
    ours, theirs = leaves(state), leaves(states)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        close(ours[name], value, name)


def test_loss_is_the_mean_cross_entropy_and_has_gradients(system: System) -> None:
    p, tokens, targets = draw_parameters(system, None), draw_tokens(), draw_tokens(3, 6) // 2
    ours = Reference(system, p).loss(tokens, targets)
    theirs = cross_entropy(model(p, tokens)[0], targets)
    close(ours, theirs, "loss")
    wanted = gradients(theirs, p)
    for name, value in gradients(ours, p).items():
        close(value, wanted[name], name)


def test_model_can_be_cut_and_stepped(system: System) -> None:
    p, tokens = draw_parameters(system, None), draw_tokens()
    run = Reference(system, p)
    whole, last = run(tokens)
    first, state = run(tokens[:, :2])
    second, after = run(tokens[:, 2:], state)
    close(torch.cat([first, second], dim=1), whole, "cut")
    same_state(after, last)
    state = None
    for t in range(tokens.shape[1]):
        logits, state = run.step(tokens[:, t], state)
        close(logits, whole[:, t], f"token {t}")
    same_state(state, last)


def test_a_state_that_was_given_back_does_not_change(system: System) -> None:
    p, tokens = draw_parameters(system, None), draw_tokens()
    run = Reference(system, p)
    _, state = run(tokens)
    before = {name: value.clone() for name, value in leaves(state).items()}
    run(tokens, state)
    for name, value in leaves(state).items():
        assert torch.equal(value, before[name])


def test_parameters_stay_linked_whatever_their_type(system: System) -> None:
    p = {name: v.requires_grad_() for name, v in initial_parameters(system).items()}
    assert all(value.dtype == torch.float32 for value in p.values())
    Reference(system, p).loss(draw_tokens(), draw_tokens()).backward()
    assert all(value.grad is not None for value in p.values())


def test_initial_values_are_the_same_for_the_same_seed(system: System) -> None:
    first, again = initial_parameters(system, seed=4), initial_parameters(system, seed=4)
    other = initial_parameters(system, seed=5)
    assert list(first) == list(again)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    bound = 6**-0.5
    assert float(first["repeat.0.mixer.W_q.weight"].abs().max()) <= bound


def test_missing_parameters_are_named(system: System) -> None:
    p = initial_parameters(system)
    del p["unembed.weight"]
    with pytest.raises(ValueError, match=r"unembed\.weight"):
        Reference(system, p)(draw_tokens())
