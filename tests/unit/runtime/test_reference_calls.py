"""How the interpreter is called: inputs, outputs, states, and what it is differentiable in."""

from __future__ import annotations

import pytest
import torch

from nlc.ir.system import System
from nlc.runtime.reference import Reference
from tests.references.compare import close, draw_input, draw_parameters, leaves, project
from tests.references.layers import linear
from tests.references.specs import HEAD, block, resolve

INNER = """
block scale(x[d], by[d] = 2 * twin) -> y[d], twin[d] {
  weights g : vector(d) init 1
  memory z : vector(d) at fast { update { self = 0.5 * self + x } }
  twin = x * g
  y = by + z
}
block outer_block(x[d], a[d] = x) -> out[d] {
  weights W : linear(d -> d)
  y, t = scale(W(x))
  u, s = scale(y, a)
  out = u + t + s
}
"""


@pytest.fixture(scope="module")
def nested() -> System:
    return resolve(HEAD.format(chunk="") + INNER)


@pytest.fixture(scope="module")
def chunked() -> System:
    body = """
  weights conv_k : conv(heads*d_k, width = 3)
  memory M : mlp(d_k -> 5 -> d_v) at fast {
    key conv_k(W_k(x))
    value v
    state S = 0
    update {
      S = 0.5 * S - 0.1 * grad
      self = 0.9 * self + S
    }
  }
  out = W_o(M(q) + shift(v))
"""
    return resolve(block(body, chunk="3"))


def test_inputs_by_order_and_name_and_several_outputs(nested: System) -> None:
    p = draw_parameters(nested, "scale")
    x, by = draw_input(nested, "scale", 2, 4), draw_input(nested, "scale", 2, 4, seed=5)
    run = Reference(nested, p, "scale")
    (y, twin), state = run(x, by)
    (named, _), _ = run(by=by, x=x)
    assert torch.equal(y, named)
    close(twin, x * p["g"], "twin")
    (default, _), _ = run(x)
    close(default - y, 2 * twin - by, "the default is over the block's streams")
    assert set(state) == {"z"}


def test_block_within_block_has_states_of_its_own(nested: System) -> None:
    p = draw_parameters(nested, "outer_block")
    assert set(p) == {"W.weight", "scale.g", "scale_1.g"}
    x = draw_input(nested, "outer_block", 2, 4)
    out, state = Reference(nested, p, "outer_block")(x)
    assert set(leaves(state)) == {"/scale/z", "/scale_1/z"}
    h = linear(p, "W", x)
    z = torch.zeros(2, 6, dtype=torch.float64)
    w, wanted = z, []
    for t in range(4):
        z = 0.5 * z + h[:, t]
        y = 2 * h[:, t] * p["scale.g"] + z
        w = 0.5 * w + y
        wanted.append(x[:, t] + w + h[:, t] * p["scale.g"] + y * p["scale_1.g"])
    close(out, torch.stack(wanted, 1), "out")


def test_state_layout(chunked: System) -> None:
    p = draw_parameters(chunked, "mixer")
    _, state = Reference(chunked, p, "mixer")(draw_input(chunked, "mixer", 2, 4))
    shapes = {name: tuple(value.shape) for name, value in leaves(state).items()}
    parts = {"layer1.weight": (2, 2, 5, 4), "layer2.weight": (2, 2, 3, 5)}
    wanted = {
        f"/{name}/{part}": shape
        for name in ("M", "M.S", "M.start")
        for part, shape in parts.items()
    }
    wanted |= {"/conv_k": (2, 2, 8), "/shift_1": (2, 1, 2, 3)}
    assert shapes == wanted
    assert state["position"] == 4


def test_gradients_pass_through_a_state_that_is_carried(chunked: System) -> None:
    p = draw_parameters(chunked, "mixer")
    x = draw_input(chunked, "mixer", 2, 7)
    run = Reference(chunked, p, "mixer")
    whole, last = run(x)
    first, state = run(x[:, :4])
    second, after = run(x[:, 4:], state)
    of = [x, *p.values()]
    ours = project({"out": torch.cat([first, second], 1), **leaves(after)})
    theirs = project({"out": whole, **leaves(last)})
    for a, b in zip(torch.autograd.grad(ours, of), torch.autograd.grad(theirs, of), strict=True):
        close(a, b, "gradient")


def test_gradients_reach_an_incoming_state(chunked: System) -> None:
    p = {name: value.detach() for name, value in draw_parameters(chunked, "mixer").items()}
    x = draw_input(chunked, "mixer", 2, 5).detach()
    run = Reference(chunked, p, "mixer")
    _, state = run(x[:, :2])
    state["M"]["layer1.weight"].requires_grad_()
    out, _ = run(x[:, 2:], state)
    (gradient,) = torch.autograd.grad(out.sum(), state["M"]["layer1.weight"])
    assert bool(gradient.abs().sum() > 0)


def test_nothing_is_tracked_where_nothing_asks(chunked: System) -> None:
    p = draw_parameters(chunked, "mixer")
    x = draw_input(chunked, "mixer", 2, 5)
    with torch.no_grad():
        out, state = Reference(chunked, p, "mixer")(x)
    tracked, _ = Reference(chunked, p, "mixer")(x)
    assert not out.requires_grad
    assert not any(value.requires_grad for value in leaves(state).values())
    assert torch.equal(out, tracked)


def test_no_tokens_give_the_first_state(chunked: System) -> None:
    p = draw_parameters(chunked, "mixer")
    run = Reference(chunked, p, "mixer")
    out, state = run(draw_input(chunked, "mixer", 2, 0))
    assert out.shape == (2, 0, 6)
    first = leaves(run.first_state(2))
    assert all(torch.equal(value, first[name]) for name, value in leaves(state).items())


def test_wrong_calls_say_what_is_wanted(nested: System) -> None:
    run = Reference(nested, draw_parameters(nested, "scale"), "scale")
    x = draw_input(nested, "scale", 2, 4)
    with pytest.raises(TypeError, match="the inputs are x, by"):
        run(x, q=x)
    with pytest.raises(TypeError, match="x is missing"):
        run(by=x)
    with pytest.raises(ValueError, match="x has shape"):
        run(x[..., :3])
