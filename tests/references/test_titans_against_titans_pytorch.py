"""Titans' neural memory against titans-pytorch's `NeuralMemory`, by a spec that says the same.

With one head, that module averages the streams of a chunk for the momentum and the decay, adds up
the steps of its tokens, and moves once per chunk; the chunk's last token reads what comes of it.
Gradients are taken at the memory of the last multiple of `batch_size` tokens, or at its start where
there is no such size. By default its memory is normed and added to its input; the norm's gain is
part of it, and decays to 1.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nlc

pytestmark = pytest.mark.skipif(
    find_spec("titans_pytorch") is None, reason="titans-pytorch is not installed"
)

D, TOKENS = 6, 19
SPEC = """
system peer

dims {{ d = {d}, size = {size} }}

level each every 1 token
level fast every 1 token, chunk {refresh}
level slow every 1 step

block memory(x[d]) -> out[d] {{
  weights g_q, g_s         : vector(d) init 1
  weights W_q, W_k, W_v    : linear(d -> d)
  weights W_lr, W_m, W_f   : linear(d -> 1, bias)

  s = rmsnorm(x, gain = g_s, eps = {eps})
  q = W_q(rmsnorm(x, gain = g_q, eps = {eps}))

  memory average : vector(d) at each {{
    update {{ self = self + s / size }}
    reset every size tokens
  }}

  theta, eta, alpha = sigmoid(W_lr(s)) / 4, sigmoid(W_m(average)), sigmoid(W_f(average))

  memory M : mlp(d -> 2*d -> d{options}) at fast {{
    key       W_k(s)
    value     W_v(s)
    objective ||M(key) - value||^2 / d
    state     G = 0
    state     S = 0
    update {{
      G = G + theta * {grad}
      every size tokens {{
        S = eta * S - G
        G = 0
        {move}
      }}
    }}
    init learned
  }}

  out = M(q)
}}
"""
PLAIN = "M = (1 - alpha) * M + S"
NORMED = """M.layer1 = (1 - alpha) * M.layer1 + S.layer1
        M.layer2 = (1 - alpha) * M.layer2 + S.layer2
        M.norm.weight = 1 + (1 - alpha) * (M.norm.weight - 1) + S.norm.weight"""
# our names and theirs
NAMES = {
    "g_q": "retrieve_norm.weight",
    "g_s": "store_norm.weight",
    "W_q.weight": "to_queries.weight",
    "W_k.weight": "to_keys.weight",
    "W_v.weight": "to_values.weight",
    "W_lr.weight": "to_adaptive_step.0.weight",
    "W_lr.bias": "to_adaptive_step.0.bias",
    "W_m.weight": "to_momentum.0.weight",
    "W_m.bias": "to_momentum.0.bias",
    "W_f.weight": "to_decay_factor.0.weight",
    "W_f.bias": "to_decay_factor.0.bias",
}
SETTINGS = [(1, 1), (4, 4), (4, 8), (2, 6), (3, None)]


def spec(size: int, refresh: int | None, normed: bool) -> str:
    return SPEC.format(
        d=D, size=size, refresh=refresh or 1, eps=torch.finfo(torch.float64).eps,
        options=", residual, norm" if normed else "", move=NORMED if normed else PLAIN,
        grad="grad" if refresh else "grad(at = initial(M))",
    )  # fmt: skip


def theirs(size: int, refresh: int | None, normed: bool) -> nn.Module:
    from titans_pytorch import MemoryMLP, NeuralMemory

    torch.manual_seed(0)
    module: nn.Module = NeuralMemory(
        dim=D, chunk_size=size, batch_size=refresh, heads=1, mem_model_norm_add_residual=normed,
        default_step_transform_max_lr=0.25,
        model=MemoryMLP(D, depth=2, expansion_factor=2.0),
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def partners(peer: nn.Module, ours: dict[str, Any], normed: bool) -> list[tuple[str, Tensor, Any]]:
    """Our names of what is learned, theirs as we have it, and the parameter it comes from."""
    own = dict(peer.named_parameters())
    found = [(name, own[of].reshape(ours[name].shape), own[of]) for name, of in NAMES.items()]
    for layer in (1, 2):
        start = own[f"memory_model_parameters.{layer - 1 + normed}"]
        found.append((f"M.layer{layer}.weight", start[0].T, start))
    if normed:
        gain = own["memory_model_parameters.0"]
        found.append(("M.norm.weight", 1 + gain[0], gain))
    return found


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("size", "refresh"), SETTINGS)
def test_a_spec_that_says_the_same_gives_the_same(
    size: int, refresh: int | None, normed: bool
) -> None:
    peer = theirs(size, refresh, normed)
    compiled = nlc.compile(nlc.parse(spec(size, refresh, normed)))
    module = compiled.block("memory").double()
    ours = dict(module.named_parameters())
    pairs = partners(peer, ours, normed)
    with torch.no_grad():
        for name, value, _ in pairs:
            ours[name].copy_(value)
    x = torch.randn(2, TOKENS, D, dtype=torch.float64, requires_grad=True)
    want, _ = peer(x)
    weights = torch.randn_like(want)
    wanted = torch.autograd.grad((want * weights).sum(), [x, *(p for *_, p in pairs)])
    for run in (module, compiled.reference("memory", module)):
        got, _ = run(x)
        assert float((got - want).detach().abs().max()) < 1e-12
        found = torch.autograd.grad((got * weights).sum(), [x, *(ours[n] for n, *_ in pairs)])
        for name, a, b in zip(["x", *(n for n, *_ in pairs)], found, wanted, strict=True):
            b = b[0].T if "layer" in name else b
            scale = float(b.abs().max())
            assert float((a.reshape(b.shape) - b).abs().max()) < 1e-12 * max(scale, 1), name
