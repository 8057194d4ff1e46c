"""Longhorn's two forms: the minimum it is derived from, and the diagonal that its layer keeps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import nlc
from tests.references import cores, cores_affine
from tests.references.compare import close

B, T, K, V = 2, 6, 4, 3
EXACT = """system exact
dims { d_k = 4, d_v = 3 }
level fast every 1 token
level slow every 1 step
block core(q[d_k], k[d_k], v[d_v], step[d_v]) -> out[d_v] {
  e = step / (1 + step * ||k||^2)
  memory S : linear(d_k -> d_v) at fast {
    key k
    value v
    update { S = S - diag(e) @ grad }
  }
  out = S(q)
}
"""


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


Q, KEY, VALUE = draw(B, T, K, seed=0), draw(B, T, K, seed=1), draw(B, T, V, seed=2)
STEP, FIRST = draw(B, T, V, seed=3).sigmoid(), draw(B, V, K, seed=4)


def test_the_minimum_is_a_delta_rule_with_a_smaller_step() -> None:
    wanted, last = cores_affine.longhorn(Q, KEY, VALUE, STEP, FIRST, exact=True)
    e = STEP / (1 + STEP * KEY.pow(2).sum(-1, keepdim=True))
    each = [x[:, :, None].expand(B, T, V, K) for x in (Q, KEY)]
    out, state = cores.delta_rule(*each, VALUE[..., None], e, FIRST[:, :, None])
    close(out[..., 0], wanted, "outputs")
    close(state[:, :, 0], last, "state")


def test_the_minimum_as_a_spec() -> None:
    block = nlc.compile(nlc.parse(EXACT)).block("core").double()
    out, state = block(Q, KEY, VALUE, STEP, state={"S": FIRST})
    wanted, last = cores_affine.longhorn(Q, KEY, VALUE, STEP, FIRST, exact=True)
    close(out, wanted, "outputs")
    close(state["S"], last, "state")


def test_the_diagonal_is_the_minimum_where_keys_do_not_mix_channels() -> None:
    keys = KEY * one_hot(torch.arange(T) % K, K)
    wanted, last = cores_affine.longhorn(Q, keys, VALUE, STEP, FIRST, exact=True)
    out, state = cores_affine.longhorn(Q, keys, VALUE, STEP, FIRST)
    close(out, wanted, "outputs")
    close(state, last, "state")
