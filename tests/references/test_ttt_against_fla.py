"""TTT-Linear token by token against fla's naive reference, by a spec that says the same.

fla learns a bias too, fits LN(W k + b) to v - k, and gives out z + LN(z), z = W q + b, where the
paper has q + LN(W q). At longer mini-batches it takes a step at the rate of the token that reads.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nlc
from tests.references.test_cores_against_fla import FLA

pytestmark = pytest.mark.skipif(FLA is None, reason="fla-core is not installed")

SPEC = """
system ttt

dims { heads = 2, d_k = 6 }

level fast every 1 token
level slow every 1 step

block core(q[heads, d_k], k[heads, d_k], v[heads, d_k], eta[heads]) -> out[heads, d_k] {
  weights w, b : vector(heads, d_k)

  memory M : linear(d_k -> d_k, bias) at fast {
    key       k
    value     v - k
    objective 1/2 * ||layernorm(M(key), gain = w, offset = b, eps = 1e-6) - value||^2
    update { M = M - eta * grad }
    init      learned
  }

  z   = M(q / sqrt(d_k))
  out = z + layernorm(z, gain = w, offset = b, eps = 1e-6)
}
"""


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def test_ttt_linear_at_single_tokens_is_flas() -> None:
    from fla.ops.ttt.naive import chunk_ttt_linear_ref

    torch.manual_seed(0)
    module = nlc.compile(nlc.parse(SPEC)).block("core")
    own = dict(module.named_parameters())
    with torch.no_grad():
        for parameter in own.values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    q, k, v = (torch.randn(2, 9, 2, 6, requires_grad=True) for _ in range(3))
    eta = torch.rand(2, 9, 2).mul(0.5).requires_grad_()
    out, state = module(q, k, v, eta)
    start = own["M.weight"].mT.expand(2, -1, -1, -1), own["M.bias"].expand(2, -1, -1)[:, :, None]
    want, last, bias = chunk_ttt_linear_ref(
        q.clone(), k, v, own["w"], own["b"], eta[..., None], mini_batch_size=1,
        initial_state=start[0], initial_state_bias=start[1], output_final_state=True,
    )  # fmt: skip
    assert relative(out, want) < 1e-5
    assert relative(state["M"]["weight"], last.mT) < 1e-5
    assert relative(state["M"]["bias"], bias[:, :, 0]) < 1e-5
    given = [q, k, v, eta, *own.values()]
    weights = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), given) for y in (out, want))
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b) < 1e-4
