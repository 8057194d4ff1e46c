"""The memories of shipped specs, as they stand there, against fla's naive references.

A memory is cut out of its spec and put into a block whose inputs are its streams; it is compiled,
and outputs, the last state and the gradients of all streams are compared, in float32 as fla
computes. A spec whose memory is written anew is compared anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
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
dims {{ heads = 3, d_k = 8, d_v = 6 }}
level fast every 1 token
level slow every 1 step
block core({inputs}) -> out[heads, d_v] {{
{memory}
  out = S(q)
}}
"""
Streams = Mapping[str, Tensor]
Found = tuple[Tensor, Tensor | None]


def excerpt(spec: str) -> str:
    """The memory S of a shipped spec, as it is written."""
    text = files("nlc.specs").joinpath(f"{spec}.nl").read_text("utf-8")
    found = re.search(r"^  memory S.*?\n  }\n", text, re.MULTILINE | re.DOTALL)
    assert found is not None, spec
    return found[0]


@cache
def core(spec: str, inputs: str) -> nn.Module:
    system = nlc.parse(BLOCK.format(inputs=inputs, memory=excerpt(spec)))
    block: nn.Module = nlc.compile(system).block("core")
    return block


def streams(length: int) -> dict[str, Tensor]:
    """By name: vectors of norm 1, writes in (0, 1), decays in (0.7, 1), per head and channel."""
    shape = (B, length, H)
    keep = {"a": shape, "alpha": (*shape, K), "alpha_v": (*shape, V)}
    write = {"beta": shape, "e": (*shape, K), "w": (*shape, V), "b1": shape, "b2": shape}
    plain = {"q": (*shape, K), "v": (*shape, V), "v1": (*shape, V), "v2": (*shape, V)}
    key = {"k": (*shape, K), "k1": (*shape, K), "k2": (*shape, K), "B": (B, length, K)}
    found = {n: 0.7 + 0.3 * draw(*s, seed=i).sigmoid() for i, (n, s) in enumerate(keep.items())}
    found |= {n: draw(*s, seed=10 + i).sigmoid() for i, (n, s) in enumerate(write.items())}
    found |= {n: draw(*s, seed=20 + i) for i, (n, s) in enumerate(plain.items())}
    found |= {n: normalize(draw(*s, seed=30 + i), dim=-1) for i, (n, s) in enumerate(key.items())}
    # a weight of the block, for all tokens the same
    found["b"] = draw(H, seed=40).sigmoid().expand(shape)
    found["step"] = draw(*shape, seed=41).sigmoid()
    return {n: x.contiguous().requires_grad_() for n, x in found.items()}


# ---- fla, with its own names and the transposed state ------------------------------------------


def gla(s: Streams, first: Tensor) -> Found:
    found: Found = naive("gla").naive_recurrent_gla(
        s["q"] * K**0.5, s["k"], s["v"], s["alpha"].log(), first, output_final_state=True
    )
    return found


def mamba2(s: Streams, first: Tensor) -> Found:
    shared = s["B"][:, :, None].expand(-1, -1, H, -1)
    written = s["step"][..., None] * s["v"]
    found: Found = naive("simple_gla").naive_chunk_simple_gla(
        s["q"], shared, written, s["a"].log(), first, True, scale=1.0
    )
    return found


def kda(s: Streams, first: Tensor) -> Found:
    found: Found = naive("kda").naive_recurrent_kda(
        s["q"], s["k"], s["v"], s["alpha"].log(), s["beta"], 1.0, first, True
    )
    return found


def gdn2(s: Streams, first: Tensor) -> Found:
    found: Found = naive("gdn2").naive_recurrent_gdn2(
        s["q"], s["k"], s["v"], s["alpha"].log(), s["e"], s["w"], 1.0, first, True
    )
    return found


def comba(s: Streams, first: Tensor) -> Found:
    """Its chunkwise form, as its kernels have it; its recurrent one decays before the feedback."""
    fed_back = s["b"][..., None] * s["k"]
    found: Found = naive("comba").naive_chunk_comba(
        s["q"], s["k"], s["v"], fed_back, s["a"].log(), s["beta"],
        scale=1.0, initial_state=first, output_final_state=True,
    )  # fmt: skip
    return found


def gated_deltaproduct(s: Streams, first: Tensor) -> Found:
    ks, vs, betas = (torch.stack([s[f"{n}1"], s[f"{n}2"]], 2).flatten(1, 2) for n in "kvb")
    found: Found = naive("gated_delta_product").naive_recurrent_gated_delta_product(
        s["q"], ks, vs, s["a"].log(), betas, 1.0, None, first, True, num_householder=2
    )
    return found


def gated_oja(s: Streams, first: Tensor) -> Found:
    """KDA with key and value exchanged, token by token: fla has no naive form of its own."""
    outs, state = [], first.mT
    for t in range(s["q"].shape[1]):
        now = slice(t, t + 1)
        _, state = naive("kda").naive_recurrent_kda(
            torch.zeros_like(s["v"][:, now]), s["v"][:, now], s["k"][:, now],
            s["alpha"][:, now].log(), s["beta"][:, now], 1.0, state, True,
        )  # fmt: skip
        outs.append(torch.einsum("bhvk,bhk->bhv", state, s["q"][:, t]))
    return torch.stack(outs, 1), state.mT


KEYS = "q[heads, d_k], k[heads, d_k], v[heads, d_v]"
SPECS: dict[str, tuple[str, Callable[[Streams, Tensor], Found]]] = {
    "gla": (f"{KEYS}, alpha[heads, d_k]", gla),
    "mamba2": ("q[heads, d_k], B[d_k], v[heads, d_v], a[heads], step[heads]", mamba2),
    "kda": (f"{KEYS}, alpha[heads, d_k], beta[heads]", kda),
    "gdn2": (f"{KEYS}, alpha[heads, d_k], e[heads, d_k], w[heads, d_v]", gdn2),
    "comba": (f"{KEYS}, a[heads], beta[heads], b[heads]", comba),
    "gated_deltaproduct": (
        "q[heads, d_k], k1[heads, d_k], k2[heads, d_k], v1[heads, d_v], v2[heads, d_v], "
        "a[heads], b1[heads], b2[heads]",
        gated_deltaproduct,
    ),
    "gated_oja": (f"{KEYS}, alpha[heads, d_v], beta[heads]", gated_oja),
}


@pytest.mark.parametrize("length", [1, 7, 70])
@pytest.mark.parametrize("spec", SPECS)
def test_a_shipped_memory_is_flas(spec: str, length: int) -> None:
    inputs, theirs = SPECS[spec]
    block, drawn = core(spec, inputs), streams(length)
    if spec == "gated_oja":
        drawn |= {"alpha": drawn["alpha_v"], "v": normalize(drawn["v"].detach(), dim=-1)}
        drawn["v"].requires_grad_()
    names = re.findall(r"(\w+)\[", inputs)
    first = draw(B, H, V, K, seed=6).requires_grad_()
    out, state = block(*(drawn[n] for n in names), state={"S": first})
    wanted, last = theirs(drawn, first.mT)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    assert last is not None
    torch.testing.assert_close(state["S"], last.mT, rtol=1e-4, atol=1e-5)
    weights = draw(*out.shape, seed=7), draw(*first.shape, seed=8)
    given = [*(drawn[n] for n in names), first]
    ours = torch.autograd.grad([out, state["S"]], given, weights)
    others = torch.autograd.grad([wanted, last], given, [weights[0], weights[1].mT])
    for name, x, y in zip([*names, "state"], ours, others, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=name)
