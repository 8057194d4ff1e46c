"""Memories of shipped specs with several states, against fla's naive references, in float32.

As in `test_specs_against_fla`, a memory is cut out of its spec as it stands there.
"""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import nlc
from tests.references.test_cores_against_fla import FLA, draw, naive

pytestmark = pytest.mark.skipif(FLA is None, reason="fla-core is not installed")

B, H, K, V = 2, 3, 8, 6
BLOCK = """system core
dims {{ heads = 3, d_k = 8, d_v = {d_v} }}
level fast every 1 token
level slow every 1 step
block core({inputs}) -> out[heads, d_v] {{
{memories}
  out = {read}
}}
"""
KEYS = "q[heads, d_k], k[heads, d_k], v[heads, d_v]"


def core(spec: str, inputs: str, read: str = "M(q)", d_v: int = V) -> nn.Module:
    """The memories of a shipped spec in a block of their own."""
    text = files("nlc.specs").joinpath(f"{spec}.nl").read_text("utf-8")
    memories = re.findall(r"^  memory .*?\n  }\n", text, re.MULTILINE | re.DOTALL)
    body = {"memories": "".join(memories), "read": read, "d_v": d_v}
    system = nlc.parse(BLOCK.format(inputs=inputs, **body))
    block: nn.Module = nlc.compile(system).block("core")
    return block


def gates(length: int, *seeds: int) -> list[Tensor]:
    return [draw(B, length, H, seed=seed).sigmoid().requires_grad_() for seed in seeds]


def keys(length: int, d_v: int = V) -> list[Tensor]:
    q, v = draw(B, length, H, K, seed=20), draw(B, length, H, d_v, seed=21)
    k = normalize(draw(B, length, H, K, seed=30), dim=-1)
    return [x.requires_grad_() for x in (q, k, v)]


def compare(ours: list[Tensor], theirs: list[Tensor], given: list[Tensor]) -> None:
    """Outputs and states, and the gradients of what was given."""
    weights = [draw(*x.shape, seed=50 + i) for i, x in enumerate(ours)]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(ours, given, weights)
    wanted = torch.autograd.grad(theirs, given, weights)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("length", [1, 7, 70])
def test_titans_linear_is_flas_delta_rule_with_momentum(length: int) -> None:
    """fla keeps the momentum with the other sign; its erasing key p is the key here."""
    q, k, v = keys(length)
    theta, eta, alpha = gates(length, 1, 2, 3)
    M = draw(B, H, V, K, seed=6).requires_grad_()
    S = draw(B, H, V, K, seed=7).requires_grad_()
    block = core("titans_linear", f"{KEYS}, theta[heads], eta[heads], alpha[heads]")
    out, state = block(q, k, v, theta, eta, alpha, state={"M": M, "M.S": S})
    wanted, last = naive("momentum_delta_rule").recurrent_momentum_delta_rule_ref(
        q, k, v, (1 - alpha).log(), eta.log(), k, torch.ones_like(theta), theta,
        1.0, M.mT, -S.mT, True,
    )  # fmt: skip
    ours = [out, state["M"], state["M.S"]]
    compare(ours, [wanted, last[0].mT, -last[1].mT], [q, k, v, theta, eta, alpha, M, S])


@pytest.mark.parametrize("length", [1, 7, 70])
def test_mesanet_is_flas_exact_form(length: int) -> None:
    """fla's h_kk is H, its h_kv the transpose of G; its values are as wide as its keys."""
    q, k, v = keys(length, K)
    beta, gamma = gates(length, 1, 2)
    strength = 0.25 + draw(H, K, seed=3).sigmoid()
    inputs = f"{KEYS}, beta[heads], gamma[heads], Lambda[heads, d_k]"
    block = core("mesanet", inputs, "G(solve(H + diag(Lambda), q))", K)
    out, state = block(q, k, v, beta, gamma, strength.expand(B, length, H, K))
    wanted, kk, kv = naive("mesa_net").naive_mesa_net_exact(q, k, v, gamma.log(), strength, beta)
    ours = [out, state["H"], state["G"]]
    compare(ours, [wanted, kk, kv.mT], [q, k, v, beta, gamma])
    if length == 70:
        solved, *_ = naive("mesa_net").naive_mesa_net_CG(
            q, k, v, gamma.log(), strength, beta, chunk_size=35
        )
        torch.testing.assert_close(out, solved, rtol=1e-3, atol=1e-3)
