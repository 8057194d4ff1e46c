"""Emitted cores against flash-linear-attention's naive references: outputs, states, gradients.

Nothing of this project stands on the other side, so an error that interpreter and emitter share
would show here. Where fla has a token loop and a chunkwise form, both are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import nlc
from tests.references.test_cores_against_fla import FLA, draw, naive

pytestmark = pytest.mark.skipif(FLA is None, reason="fla-core is not installed")

B, H, K, V = 2, 3, 8, 6
CORE = """system core
dims {{ heads = 3, d_k = 8, d_v = 6 }}
level fast every 1 token
level slow every 1 step
block core(q[heads, d_k], k[heads, d_k], v[heads, d_v]{more}) -> out[heads, d_v] {{
  {equations}
  memory M : linear(d_k -> d_v) at fast {{
    key k
    value v
    objective {objective}
    update {{ {update} }}
  }}
  out = M(q)
}}
"""
L2, DOT = "1/2 * ||M(k) - v||^2", "-<M(k), v>"
Others = Callable[..., tuple[Tensor, Tensor | None]]


@cache
def core(objective: str, update: str, more: str = "", equations: str = "") -> nn.Module:
    text = CORE.format(objective=objective, update=update, more=more, equations=equations)
    block: nn.Module = nlc.compile(nlc.parse(text)).block("core")
    return block


def streams(length: int) -> list[Tensor]:
    """q, k of norm 1, v, and two gates: a write in (0, 1) and a decay in (0.7, 1)."""
    k = torch.nn.functional.normalize(draw(B, length, H, K, seed=1), dim=-1)
    write = draw(B, length, H, seed=3).sigmoid()
    decay = 0.7 + 0.3 * draw(B, length, H, seed=4).sigmoid()
    found = [draw(B, length, H, K), k, draw(B, length, H, V, seed=2), write, decay]
    return [x.requires_grad_() for x in found]


def compare(block: nn.Module, given: list[Tensor], theirs: Others) -> None:
    """Run both from a random state; fla's state is the transpose."""
    first = draw(B, H, V, K, seed=6).requires_grad_()
    out, state = block(*given, state={"M": first})
    wanted, last = theirs(*given, first.mT)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    if last is not None:
        torch.testing.assert_close(state["M"], last.mT, rtol=1e-4, atol=1e-5)
    weight = draw(*out.shape, seed=7)
    mine = torch.autograd.grad(out, [*given, first], weight)
    other = torch.autograd.grad(wanted, [*given, first], weight)
    for x, y in zip(mine, other, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


def swap(*values: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in values]


@pytest.mark.parametrize("length", [1, 31, 64, 77])
def test_linear_attention_is_flas(length: int) -> None:
    def theirs(q: Tensor, k: Tensor, v: Tensor, S: Tensor) -> tuple[Tensor, Tensor | None]:
        recurrent = naive("linear_attn").naive_recurrent_linear_attn
        found: tuple[Tensor, Tensor | None] = recurrent(q, k, v, 1.0, S, True)
        return found

    compare(core(DOT, "M = M - grad"), streams(length)[:3], theirs)


@pytest.mark.parametrize("length", [1, 63, 64, 130])
def test_gated_linear_attention_of_one_gate_per_head_is_flas(length: int) -> None:
    def theirs(
        q: Tensor, k: Tensor, v: Tensor, a: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        chunk = naive("simple_gla").naive_chunk_simple_gla
        found: tuple[Tensor, Tensor | None] = chunk(q, k, v, a.log(), S, True, scale=1.0)
        return found

    q, k, v, _, a = streams(length)
    compare(core(DOT, "M = a * M; M = M - grad", ", a[heads]"), [q, k, v, a], theirs)


@pytest.mark.parametrize("length", [1, 40])
def test_retention_is_flas(length: int) -> None:
    """Its decay comes from `index(heads)`; fla's has no state, so ours begins at zero."""
    q, k, v = streams(length)[:3]
    block = core(DOT, "M = gamma * M; M = M - grad", "", "gamma = 1 - 2^(-5 - index(heads))")
    out, _ = block(q * K**-0.5, k, v)
    wanted = naive("retention").naive_retention(*swap(q, k, v)).transpose(1, 2)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 31, 64, 77])
def test_delta_rule_is_flas(length: int) -> None:
    def theirs(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        recurrence = naive("delta_rule").delta_rule_recurrence
        out, last = recurrence(*swap(q * K**0.5, k, v, beta), initial_state=S)
        return out.transpose(1, 2), last

    compare(core(L2, "M = M - beta * grad", ", beta[heads]"), streams(length)[:4], theirs)


def test_delta_rule_is_flas_chunkwise_form() -> None:
    q, k, v, beta = streams(96)[:4]
    out, state = core(L2, "M = M - beta * grad", ", beta[heads]")(q, k, v, beta)
    wanted, last = naive("delta_rule").delta_rule_chunkwise(*swap(q * K**0.5, k, v, beta))
    torch.testing.assert_close(out, wanted.transpose(1, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["M"], last.mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "form", ["naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"]
)
@pytest.mark.parametrize("length", [1, 63, 64, 130])
def test_gated_delta_rule_is_flas(length: int, form: str) -> None:
    def theirs(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        found: tuple[Tensor, Tensor | None] = getattr(naive("gated_delta_rule"), form)(
            q=q, k=k, v=v, beta=beta, g=a.log(), scale=1.0, initial_state=S, output_final_state=True
        )
        return found

    update = "M = a * M; M = M - beta * grad(at = M)"
    compare(core(L2, update, ", beta[heads], a[heads]"), streams(length), theirs)


@pytest.mark.parametrize("form", ["dplr_recurrence", "dplr_chunkwise"])
@pytest.mark.parametrize("length", [32, 64])
def test_rwkv7_is_flas_diagonal_plus_low_rank(length: int, form: str) -> None:
    """Removal key and write key are one here, as in fla's own tests; w has a number per channel."""

    def theirs(
        q: Tensor, k: Tensor, v: Tensor, w: Tensor, a: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        recurrence = getattr(naive("generalized_delta_rule/dplr"), form)
        given = swap(q * K**0.5, k, v, -k, k * a, w.log())
        out, last = recurrence(*given, initial_state=S)
        return out.transpose(1, 2), last

    q, k, v, *_ = streams(length)
    w = (0.6 + 0.4 * draw(B, length, H, K, seed=8).sigmoid()).requires_grad_()
    a = draw(B, length, H, K, seed=9).sigmoid().requires_grad_()
    update = "M = M @ (diag(w) - outer(k, a * k)) + outer(v, k)"
    block = core(L2, update, ", w[heads, d_k], a[heads, d_k]")
    compare(block, [q, k, v, w, a], theirs)
