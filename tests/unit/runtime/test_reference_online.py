"""Learning from the task while a sequence is read: the interpreter against loops by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu

import nlc
from nlc.runtime.initial import initial_parameters
from nlc.runtime.reference import Reference

CHAIN = """
system chain

dims { d = 5 }

level fast every 2 tokens, optimizer sgd(lr = 0.3)
level mid  every 4 tokens, optimizer momentum(lr = 0.2, beta = 0.5)
level slow every 1 step, optimizer adamw(lr = 1e-3)

block cms(x[d]) -> out[d] {
  weights A : linear(d -> d) at fast
  weights B : linear(d -> d, bias) at mid
  weights C : linear(d -> d)
  out = C(gelu(B(gelu(A(x)))))
}

model {
  vocab 7
  x[d] = embed(tokens)
  x = x + cms(x)
  logits = unembed(x)
}
"""


def reference(text: str, form: str = "nl", **settings: object) -> Reference:
    """The interpreter of a model with parameters drawn at random."""
    system = nlc.parse(text, form, set={k.replace("__", "."): v for k, v in settings.items()})
    torch.manual_seed(4)
    drawn = initial_parameters(system)
    return Reference(
        system,
        {n: (v.double() + 0.3 * torch.randn(v.shape).double()).requires_grad_()
         for n, v in drawn.items()},
    )  # fmt: skip


def tokens(length: int, rows: int = 2, vocab: int = 7) -> Tensor:
    """Random tokens."""
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(1))


def by_hand(parameters: dict[str, Tensor], x: Tensor, rate: float = 0.3) -> Tensor:
    """The chain above, one sequence at a time, in windows of 4 that hold two of 2."""
    rows = []
    for row in x:
        a, b, bias = (parameters[f"cms.{n}"] for n in ("A.weight", "B.weight", "B.bias"))
        step, step_bias = torch.zeros_like(b), torch.zeros_like(bias)
        found: list[Tensor] = []

        def loss(logits: Tensor, row: Tensor, at: int) -> Tensor:
            return cross_entropy(logits, row[at + 1 : at + 3], reduction="sum")

        for at in range(0, len(row), 4):
            b, bias = b.clone(), bias.clone()
            whole: list[Tensor] = []
            for inner in (at, at + 2):
                piece = row[inner : inner + 2]
                if not len(piece):
                    break
                a = a.clone()
                h = parameters["embed.weight"][piece]
                y = gelu(gelu(h @ a.T) @ b.T + bias)
                logits = (h + y @ parameters["cms.C.weight"].T) @ parameters["unembed.weight"].T
                found.append(logits)
                if inner + 2 < len(row):
                    one = loss(logits, row, inner)
                    (slope,) = torch.autograd.grad(one, a, create_graph=True)
                    a, whole = a - rate * slope, [*whole, one]
            if len(whole) == 2:
                total = whole[0] + whole[1]
                slopes = torch.autograd.grad(total, (b, bias), create_graph=True)
                step = 0.5 * step - 0.2 * slopes[0]
                step_bias = 0.5 * step_bias - 0.2 * slopes[1]
                b, bias = b + step, bias + step_bias
        rows.append(torch.cat(found))
    return torch.stack(rows)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 14])
def test_nested_windows_equal_a_loop_by_hand_in_values_and_gradients(length: int) -> None:
    """The slower window's gradient passes through the updates of the faster inside it."""
    truth, x = reference(CHAIN), tokens(length)
    given = dict(truth.parameters)
    (ours, _), theirs = truth(x), by_hand(given, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=torch.float64)
    left, right = (
        torch.autograd.grad((y * weights).sum(), list(given.values()), allow_unused=True)
        for y in (ours, theirs)
    )
    for name, a, b in zip(given, left, right, strict=True):
        a, b = (torch.zeros_like(given[name]) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=name)


def test_any_cut_gives_the_same_numbers_states_and_gradients() -> None:
    """What is pending when a sequence ends is in the state, and differentiable."""
    truth, x = reference(CHAIN), tokens(11)
    given = list(truth.parameters.values())
    whole, after = truth(x)
    slopes = torch.autograd.grad((whole**2).sum(), given)
    for at in (0, 1, 3, 4, 6, 8, 11):
        left, state = truth(x[:, :at])
        right, final = truth(x[:, at:], state)
        torch.testing.assert_close(torch.cat([left, right], 1), whole, rtol=0, atol=1e-13)
        for name in ("A", "B.S"):
            torch.testing.assert_close(final["cms"][name], after["cms"][name])
        assert final["tokens.recent"].equal(after["tokens.recent"])
        again = torch.autograd.grad((left**2).sum() + (right**2).sum(), given)
        for a, b in zip(slopes, again, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_without_gradients_outside_the_same_is_learned() -> None:
    """A model learns under `no_grad` too, and its state holds no graph."""
    truth, x = reference(CHAIN), tokens(10)
    whole, after = truth(x)
    with torch.no_grad():
        found, state = truth(x)
    assert not found.requires_grad and not state["cms"]["A"].requires_grad
    assert found.equal(whole.detach()) and state["cms"]["A"].equal(after["cms"]["A"])


def test_a_rate_of_zero_is_the_same_model_at_a_level_of_steps() -> None:
    """Nothing moves, bit by bit, and the answers are those of weights."""
    still = "momentum(lr = 0, beta = 0.5)"
    truth = reference(
        CHAIN.replace("sgd(lr = 0.3)", "sgd(lr = 0)").replace(
            "momentum(lr = 0.2, beta = 0.5)", still
        )
    )
    static = reference(CHAIN.replace(" at fast", "").replace(" at mid", ""))
    plain = Reference(static.system, truth.parameters)
    x = tokens(11)
    (ours, state), (theirs, _) = truth(x), plain(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    kept = truth.parameters["cms.A.weight"].expand(2, -1, -1)
    assert state["cms"]["A"].equal(kept)


def test_rows_learn_alone() -> None:
    """Each sequence has its own copy of what learns."""
    truth, x = reference(CHAIN), tokens(9, rows=3)
    whole, _ = truth(x)
    one, _ = truth(x[1:2])
    torch.testing.assert_close(whole[1:2], one, rtol=0, atol=1e-13)


NESTED = CHAIN.replace(
    "weights A : linear(d -> d) at fast",
    """memory A : linear(d -> d) at fast {
    objective task
    init      from M
    reset     every 4 tokens
  }
  weights M : linear(d -> d) at mid""",
).replace("weights B : linear(d -> d, bias) at mid", "weights B : linear(d -> d, bias)")


def nested_by_hand(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """A begins each window of 4 as M, whose gradient passes through A's start."""
    rows = []
    for row in x:
        m = parameters["cms.M.weight"]
        step = torch.zeros_like(m)
        found: list[Tensor] = []
        for at in range(0, len(row), 4):
            m = m.clone()
            a, losses = m, []
            for inner in (at, at + 2):
                piece = row[inner : inner + 2]
                if not len(piece):
                    break
                a = a.clone()
                h = parameters["embed.weight"][piece]
                y = gelu(gelu(h @ a.T) @ parameters["cms.B.weight"].T + parameters["cms.B.bias"])
                logits = (h + y @ parameters["cms.C.weight"].T) @ parameters["unembed.weight"].T
                found.append(logits)
                if inner + 2 < len(row):
                    one = cross_entropy(logits, row[inner + 1 : inner + 3], reduction="sum")
                    (slope,) = torch.autograd.grad(one, a, create_graph=True)
                    a, losses = a - 0.3 * slope, [*losses, one]
            if len(losses) == 2:
                (slope,) = torch.autograd.grad(losses[0] + losses[1], m, create_graph=True)
                step = 0.5 * step - 0.2 * slope
                m = m + step
        rows.append(torch.cat(found))
    return torch.stack(rows)


@pytest.mark.parametrize("length", [4, 9, 14])
def test_a_copy_of_a_slower_level_passes_its_gradient(length: int) -> None:
    """`init from` what learns from the task, back to it at each of its windows."""
    truth, x = reference(NESTED), tokens(length)
    given = dict(truth.parameters)
    (ours, _), theirs = truth(x), nested_by_hand(given, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    left, right = (torch.autograd.grad((y**2).sum(), list(given.values())) for y in (ours, theirs))
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("through", ["first_order", "stop"])
def test_through_decides_what_slower_levels_see(through: str) -> None:
    """The numbers stay; the gradients of slower levels lose what passes through the update."""
    memory = """memory A : linear(d -> d) at fast {
    objective task
    init      learned
    through   THROUGH
  }"""
    text = CHAIN.replace("weights A : linear(d -> d) at fast", memory)
    text = text.replace(
        "weights B : linear(d -> d, bias) at mid", "weights B : linear(d -> d, bias)"
    )
    full, less = (reference(text.replace("THROUGH", word)) for word in ("full", through))
    x = tokens(9)
    (whole, _), (other, _) = full(x), less(x)
    assert whole.equal(other)
    names = list(full.parameters)
    one, two = (
        dict(
            zip(names, torch.autograd.grad((y**2).sum(), list(r.parameters.values())), strict=True)
        )
        for y, r in ((whole, full), (other, less))
    )
    assert not torch.allclose(one["embed.weight"], two["embed.weight"])
    # the start is reached in every window: an update adds to it
    start = two["cms.A.weight"]
    assert start.abs().sum() > 0 and not torch.allclose(one["cms.A.weight"], start)
