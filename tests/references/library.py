"""The shipped systems written by hand from their papers: whole models over whole sequences.

`MODELS` holds, by the spec's name, a function (parameters, tokens, dims) -> (logits, states); the
states are nested by instance and hold every memory (convolutions and counters are left out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.references import (
    cores,
    library_affine,
    library_deep,
    library_hope,
    library_memories,
    library_online,
    library_slots,
    library_test_time,
    library_titans,
    library_windows,
    rwkv7,
    titans,
)
from tests.references.layers import layernorm, linear, rmsnorm, rope, silu, unit, within
from tests.references.mixers import Dims, Mixed, Mixer, P, glu, mlp, out, short, split, state

Norm = Callable[[Tensor], Tensor]


# ---- mixers --------------------------------------------------------------------------------------


def linear_attention(p: P, x: Tensor, dims: Dims) -> Mixed:
    """y = sum_i v_i <phi(k_i), phi(q)> / sum_i <phi(k_i), phi(q)>, phi = elu + 1."""
    q, k = (1 + torch.nn.functional.elu(split(p, n, x, dims)) for n in ("W_q", "W_k"))
    v = split(p, "W_v", x, dims)
    y, S = cores.linear_attention(q, k, v, state(x, dims))
    total = k.cumsum(1)
    y = y / (total * q).sum(-1, keepdim=True).clamp(min=1e-6)
    return out(p, y), {"M": S, "z": total[:, -1]}


def retention(p: P, x: Tensor, dims: Dims) -> Mixed:
    """S = gamma S + v k^T with gamma = 1 - 2^(-5 - head); a norm per head, a swish gate."""
    q, k = (rope(split(p, n, x, dims)) for n in ("W_q", "W_k"))
    v = split(p, "W_v", x, dims)
    gamma = 1 - 2.0 ** (-5 - torch.arange(dims["heads"], dtype=x.dtype))
    decay = gamma.expand(*x.shape[:2], dims["heads"])
    y, S = cores.decayed_attention(q, k / dims["d_k"] ** 0.5, v, decay, state(x, dims))
    gated = silu(split(p, "W_g", x, dims)) * layernorm(y)
    return out(p, gated), {"M": S}


def deltanet(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    beta = torch.sigmoid(linear(p, "W_beta", x))
    y, S = cores.delta_rule(unit(q), unit(k), v, beta, state(x, dims))
    return out(p, rmsnorm(y) * p["gain"]), {"M": S}


def gated_deltanet(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    beta = torch.sigmoid(linear(p, "W_beta", x))
    step = torch.nn.functional.softplus(linear(p, "W_dt", x) + p["b"])
    a = torch.exp(-torch.exp(p["A"]) * step)
    y, S = cores.gated_delta_rule(unit(q), unit(k), v, a, beta, state(x, dims))
    return out(p, rmsnorm(y) * p["gain"] * silu(split(p, "W_g", x, dims))), {"S": S}


def attention(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k = (rope(split(p, n, x, dims)) for n in ("W_q", "W_k"))
    v = split(p, "W_v", x, dims)
    window = dims.get("window")
    y = cores.softmax_attention(q, k, v, window)
    first = 0 if window is None else max(x.shape[1] - window, 0)
    pairs = {"key": k[:, first:].transpose(1, 2), "value": v[:, first:].transpose(1, 2)}
    return out(p, y), {"A": pairs}


def titans_lmm(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k = (unit(short(p, of, x, dims)) for of in "qk")
    v = silu(split(p, "W_v", x, dims))
    gates = library_titans.gates(p, x, 64)
    names = ("layer1.weight", "layer2.weight")
    first = tuple(p[f"M.{n}"].expand(x.shape[0], *p[f"M.{n}"].shape) for n in names)
    y, M, S = titans.mlp_memory(q, k, v, *gates, first, dims["chunk"])
    states = {"M": dict(zip(names, M, strict=True)), "M.S": dict(zip(names, S, strict=True))}
    return out(p, rmsnorm(y)), states


def with_sinusoids(x: Tensor, dims: Dims) -> Tensor:
    """Add sin and cos of the position at falling frequencies (arXiv:1706.03762)."""
    waves = dims["waves"]
    rates = 10000.0 ** (-torch.arange(waves, dtype=x.dtype) / waves)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * rates
    return x + torch.cat([angle.sin(), angle.cos()], -1)


# ---- models --------------------------------------------------------------------------------------


def stack(
    *layers: tuple[str, Mixer | Callable[[P, Tensor], Tensor]],
    passes: int = 4,
    norm: Norm = rmsnorm,
    unembed: str = "unembed",
    begin: Callable[[Tensor, Dims], Tensor] = lambda x, dims: x,
) -> Callable[[P, Tensor, Dims], Mixed]:
    """x = x + layer(norm(x)) for each layer in turn, `passes` times over."""

    def model(p: P, tokens: Tensor, dims: Dims) -> Mixed:
        x, states = begin(p["embed.weight"][tokens], dims), {}
        for turn in range(passes):
            found: dict[str, Any] = {}
            for name, layer in layers:
                own = within(p, f"repeat.{turn}.{name}.")
                if layer in (glu, mlp):
                    x = x + layer(own, norm(x))  # type: ignore[call-arg, operator]
                else:
                    y, found[name] = layer(own, norm(x), dims)  # type: ignore[call-arg, misc]
                    x = x + y
            states[str(turn)] = found
        state: dict[str, Any] = {"repeat": states}
        if "waves" in dims:
            # a model that knows positions counts its tokens
            state["position"] = tokens.shape[1]
        return linear(p, unembed, norm(x)), state

    return model


def continuum(
    mixer: str, mix: Mixer, cms: Callable[[P, Tensor], Tensor], unembed: str = "unembed"
) -> Any:
    """x = x + mix(rmsnorm(x)), then the continuum memory system; four times over."""

    def model(p: P, tokens: Tensor, dims: Dims) -> Mixed:
        x, states = p["embed.weight"][tokens], {}
        for turn in range(4):
            own = within(p, f"repeat.{turn}.{mixer}.")
            y, state = mix(own, rmsnorm(x), dims)
            x = cms(within(p, f"repeat.{turn}.cms."), x + y)
            states[str(turn)] = {mixer: state}
        return linear(p, unembed, rmsnorm(x)), {"repeat": states}

    return model


MODELS: dict[str, Callable[[P, Tensor, Dims], Mixed]] = {
    "linear_attention": stack(("mixer", linear_attention), ("mlp", mlp), begin=with_sinusoids),
    "retnet": stack(("retention", retention), ("ffn", mlp), norm=layernorm),
    "deltanet": stack(("mixer", deltanet), ("ffn", glu)),
    "gated_deltanet": stack(("mixer", gated_deltanet), ("ffn", glu)),
    "transformer": stack(("attention", attention), ("ffn", glu)),
    "sliding_window": stack(("attention", attention), ("ffn", glu)),
    "hybrid": stack(
        ("mixer", gated_deltanet), ("ffn", glu), ("attention", attention), ("ffn_1", glu), passes=2
    ),
    "titans_lmm": stack(("mixer", titans_lmm)),
    "titans_mac": stack(("mixer", library_titans.mac), ("ffn", glu)),
    "titans_mag": stack(("mixer", library_titans.mag), ("ffn", glu)),
    "titans_mal": stack(("mixer", library_titans.mal), ("ffn", glu)),
    "lact": stack(("mixer", library_windows.lact), ("ffn", glu)),
    "tnt": stack(("mixer", library_windows.tnt), ("ffn", glu)),
    "consolidation": stack(("mixer", library_windows.consolidation), ("ffn", glu)),
    "surprise": stack(("mixer", library_windows.surprise), ("ffn", glu)),
    "titans_linear": stack(("mixer", library_memories.titans_linear)),
    "ttt_linear": stack(("mixer", library_test_time.ttt_linear), ("ffn", glu)),
    "ttt_mlp": stack(("mixer", library_test_time.ttt_mlp), ("ffn", glu)),
    "self_modifying_titans": stack(
        ("mixer", library_test_time.self_modifying_titans), ("ffn", glu)
    ),
    "self_modifying_mlp": stack(("mixer", library_test_time.self_modifying_mlp), ("ffn", glu)),
    "self_modifying_chunks": stack(
        ("mixer", library_test_time.self_modifying_chunks), ("ffn", glu)
    ),
    "hope": continuum("mixer", library_hope.hope, library_hope.chain, "embed"),
    "hope_attention": continuum("attention", library_hope.hope_attention, library_hope.chain),
    "cms": continuum("attention", library_hope.attention, library_hope.chain),
    "cms_independent": continuum("attention", library_hope.attention, library_hope.independent),
    "cms_nested": continuum("attention", library_hope.attention, library_hope.nested),
    "cms_online": library_online.continuum(
        "attention", library_hope.attention, "unembed", (1e-2, 2.5e-3, 6e-4)
    ),
    "hope_attention_online": library_online.continuum(
        "attention", library_hope.hope_attention, "unembed", (1e-2, 2.5e-3, 6e-4)
    ),
    "hope_online": library_online.continuum(
        "mixer", library_hope.hope, "embed", (2.5e-3, 6e-4, 1.5e-4)
    ),
    "mesanet": stack(("mixer", library_memories.mesanet), ("ffn", glu)),
    "omega": stack(("mixer", library_memories.omega), ("ffn", glu)),
    "omeganet": stack(("mixer", library_deep.omeganet), ("ffn", glu)),
    "atlas": stack(("mixer", library_deep.atlas), ("ffn", glu), passes=2),
    "moneta": stack(("mixer", library_deep.moneta), ("ffn", glu), passes=2),
    "yaad": stack(("mixer", library_deep.yaad), ("ffn", glu)),
    "memora": stack(("mixer", library_deep.memora), ("ffn", glu), passes=2),
    "lattice": stack(("mixer", library_slots.lattice), ("ffn", glu)),
    "routed_slots": stack(("mixer", library_slots.routed_slots), ("ffn", glu)),
    "gla": stack(("mixer", library_affine.gla), ("ffn", glu)),
    "mamba2": stack(("mixer", library_affine.mamba2), unembed="embed"),
    "kda": stack(("mixer", library_affine.kda), ("ffn", glu)),
    "gdn2": stack(("mixer", library_affine.gdn2), ("ffn", glu)),
    "comba": stack(("mixer", library_affine.comba), ("ffn", glu)),
    "gated_deltaproduct": stack(("mixer", library_affine.gated_deltaproduct), ("ffn", glu)),
    "longhorn": stack(("mixer", library_affine.longhorn), unembed="embed"),
    "gated_oja": stack(("mixer", library_affine.gated_oja), ("ffn", glu)),
    "rwkv7": rwkv7.model,
}
