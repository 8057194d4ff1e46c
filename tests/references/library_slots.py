"""Mixers whose memory is made of slots, by hand, as `library` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references import cores
from tests.references.cores import outer, read
from tests.references.layers import heads, linear, rmsnorm, silu, unit
from tests.references.mixers import Dims, Mixed, P, out, short, split, state


def lattice(p: P, x: Tensor, dims: Dims) -> Mixed:
    """s_i <- s_i + beta k_i (I - u_i u_i^T)(v - U k), u_i = s_i at length 1 before the chunk."""
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    q, k = unit(q), unit(k)
    beta = torch.sigmoid(linear(p, "W_beta", x))

    def at_length_one(S: Tensor) -> Tensor:
        return S / S.norm(dim=-2, keepdim=True)

    S = at_length_one(p["S_0.weight"]).expand(x.shape[0], *p["S_0.weight"].shape)
    U, length, found = S, S.norm(dim=-2), []
    for t in range(x.shape[1]):
        if t % dims["chunk"] == 0:
            U, length = at_length_one(S), S.norm(dim=-2)
        e = v[:, t] - read(U, k[:, t])
        # (I - u u^T) e for each column u, over the length that the slot has
        new = e[..., None] - U * torch.einsum("bhvm,bhv->bhm", U, e)[..., None, :]
        S = S + new * (beta[:, t, :, None] * k[:, t] / length)[..., None, :]
        if (t + 1) % dims["chunk"] == 0:
            S = at_length_one(S)
        found.append(read(S, q[:, t]))
    y = rmsnorm(torch.stack(found, 1)) * p["gain"]
    return out(p, y * silu(split(p, "W_g", x, dims))), {"S": S}


def selected(scores: Tensor, most: int) -> Tensor:
    """softmax over the parts, 0 but for the largest, rescaled to sum 1."""
    w = scores.softmax(-1)
    largest = w.topk(most, -1).indices
    kept = torch.zeros_like(w).scatter(-1, largest, w.gather(-1, largest))
    return kept / kept.sum(-1, keepdim=True)


def routed_slots(p: P, x: Tensor, dims: Dims) -> Mixed:
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    q, k = unit(q), unit(k)
    alpha, beta, keep, rate = (
        torch.sigmoid(linear(p, f"W_{n}", x) + (4 if n in ("alpha", "keep") else 0))
        for n in ("alpha", "beta", "keep", "rate")
    )
    shared, N = cores.gated_delta_rule(q, k, v, alpha, beta, state(x, dims))
    w = selected(heads(linear(p, "W_r", x), dims["heads"]), 2)
    rate = rate / dims["span"]
    M = torch.zeros(x.shape[0], dims["heads"], dims["parts"], dims["d_v"], dims["d_k"]).to(x)
    found, asked = [], torch.zeros_like(w[:, 0])
    step, kept = torch.zeros_like(M), torch.zeros_like(keep[:, 0])
    for t in range(x.shape[1]):
        found.append(torch.einsum("bhp,bhpvk,bhk->bhv", w[:, t], M, q[:, t]))
        chosen = (w[:, t] > 0).to(x)
        error = torch.einsum("bhpvk,bhk->bhpv", M, k[:, t]) - v[:, t, :, None]
        g = outer(error, k[:, t, :, None])
        step = step + (rate[:, t, :, None] * chosen)[..., None, None] * g
        asked, kept = torch.maximum(asked, chosen), kept + keep[:, t] / dims["span"]
        if (t + 1) % dims["span"] == 0:
            moved = kept[..., None, None, None] * M - step
            M = torch.where(asked[..., None, None] > 0, moved, M)
            asked, step = torch.zeros_like(asked), torch.zeros_like(step)
            kept = torch.zeros_like(kept)
    y = rmsnorm(torch.stack(found, 1)) * p["gain_m"] + rmsnorm(shared) * p["gain_n"]
    return out(p, y), {"M": M, "N": N}
