"""Mixers with memories that move once per window, or go back to a start, as `library` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references import cores, titans
from tests.references.cores import outer, read
from tests.references.layers import linear, rmsnorm, rope, silu, unit
from tests.references.mixers import Dims, Mixed, P, out, short, split, state

LAYERS = ("layer1.weight", "layer2.weight")
Weights = list[Tensor]


def copies(p: P, memory: str, parts: tuple[str, ...], x: Tensor) -> Weights:
    return [p[f"{memory}.{n}"].expand(x.shape[0], *p[f"{memory}.{n}"].shape) for n in parts]


# ---- LaCT ----------------------------------------------------------------------------------------

# W_0, W_1 and W_2 of the paper
MAPS = ("gate", "down", "up")


def orthogonal(G: Tensor) -> Tensor:
    """Five steps of Newton-Schulz with Muon's coefficients."""
    tall = G.shape[-2] > G.shape[-1]
    X = G.mT if tall else G
    X = X / (X.pow(2).sum((-1, -2), keepdim=True).sqrt() + 1e-7)
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if tall else X


def swiglu(W: Weights, z: Tensor) -> Tensor:
    return read(W[1], silu(read(W[0], z)) * read(W[2], z))


def swiglu_steps(W: Weights, k: Tensor, v: Tensor) -> Weights:
    """Minus the gradients of -<f(k), v> in W_0, W_1, W_2, of all tokens [B, N, H, d]."""
    a = torch.einsum("bhmk,bnhk->bnhm", W[0], k)
    b = torch.einsum("bhmk,bnhk->bnhm", W[2], k)
    back = torch.einsum("bhvm,bnhv->bnhm", W[1], v)
    s = torch.sigmoid(a)
    slope = s * (1 + a * (1 - s))
    return [outer(back * b * slope, k), outer(v, silu(a) * b), outer(back * silu(a), k)]


def lact(p: P, x: Tensor, dims: Dims) -> Mixed:
    """2505.23884: read a chunk with the weights before it, then update them."""
    q, k, v = (silu(split(p, f"W_{of}", x, dims)) for of in "qkv")
    window = cores.softmax_attention(rope(q), rope(k), v, dims["window"])
    q, k_1 = unit(q), unit(k)
    names = ("W_0", "W_1", "W_2")
    eta = [torch.nn.functional.softplus(linear(p, n, x) - 4)[..., None, None] for n in names]
    beta = torch.sigmoid(linear(p, "W_m", x))
    W = first = copies(p, "M", MAPS, x)
    S = [torch.zeros_like(w) for w in W]
    found, size = [], dims["chunk"]
    for begin in range(0, x.shape[1], size):
        here = slice(begin, begin + size)
        found += [swiglu(W, q[:, t]) for t in range(begin, min(begin + size, x.shape[1]))]
        if begin + size > x.shape[1]:
            break
        steps = swiglu_steps(W, k_1[:, here], v[:, here])
        steps = [(e[:, here] * g).sum(1) for e, g in zip(eta, steps, strict=True)]
        m = beta[:, here].mean(1)[..., None, None]
        S = [m * s + g for s, g in zip(S, steps, strict=True)]
        W = [w + orthogonal(s) for w, s in zip(W, S, strict=True)]
        W = [
            w / w.norm(dim=-1, keepdim=True) * w_0.norm(dim=-1, keepdim=True)
            for w, w_0 in zip(W, first, strict=True)
        ]
    y = window + rmsnorm(torch.stack(found, 1)) * p["gain"]
    return out(p, y), {"M": dict(zip(MAPS, W, strict=True)), "M.S": dict(zip(MAPS, S, strict=True))}


# ---- TNT -----------------------------------------------------------------------------------------


def tnt(p: P, x: Tensor, dims: Dims) -> Mixed:
    """2511.07343, eqs. 5-7: a global memory, and local ones of two chunk sizes."""
    q, k = (unit(short(p, of, x, dims)) for of in "qk")
    v = silu(split(p, "W_v", x, dims))
    segment, tokens = dims["segment"], x.shape[1]
    gates = [torch.sigmoid(linear(p, n, x)) for n in ("W_lr", "W_m")]
    gates = [gates[0] / (4 * dims["far"]), gates[1], torch.sigmoid(linear(p, "W_f", x) - 6)]
    eta = torch.sigmoid(linear(p, "W_eta", x))[..., None, None] / (4 * segment)
    V = copies(p, "V", LAYERS, x)
    whole = []
    for begin in range(0, tokens, segment):
        end = min(begin + segment, tokens)
        whole += [read(V[1], titans.gelu(read(V[0], q[:, t]))) for t in range(begin, end)]
        if begin + segment > tokens:
            break
        slopes = [titans.mlp_gradient((V[0], V[1]), k[:, t], v[:, t]) for t in range(begin, end)]
        for t, slope in zip(range(begin, end), slopes, strict=True):
            V = [w - eta[:, t] * g for w, g in zip(V, slope, strict=True)]
    y, states = torch.stack(whole, 1), {"V": dict(zip(LAYERS, V, strict=True))}
    for name, size in (("N", dims["near"]), ("L", dims["far"])):
        one, two = copies(p, name, LAYERS, x)
        onto = torch.zeros(*q.shape[:1], *q.shape[2:], q.shape[-1], dtype=x.dtype)
        asked = []
        for t in range(tokens):
            onto = torch.zeros_like(onto) if t % size == 0 else onto
            onto = onto + outer(k[:, t], k[:, t])
            asked.append(read(onto, q[:, t]))
        local, M, S = titans.mlp_memory(
            torch.stack(asked, 1), k, v, *gates, (one, two), size, segment
        )
        y = y + local
        states |= {
            name: dict(zip(LAYERS, M, strict=True)),
            f"{name}.S": dict(zip(LAYERS, S, strict=True)),
        }
    return out(p, rmsnorm(y)), states


# ---- systems of our own --------------------------------------------------------------------------


def consolidation(p: P, x: Tensor, dims: Dims) -> Mixed:
    """A gated delta rule, emptied with every day; then S takes over what it held."""
    q, k = (unit(short(p, of, x, dims)) for of in "qk")
    v = silu(split(p, "W_v", x, dims))
    alpha = torch.sigmoid(linear(p, "W_alpha", x) + 4)
    beta = torch.sigmoid(linear(p, "W_beta", x))
    keep = torch.sigmoid(linear(p, "W_keep", x))
    F = S = state(x, dims)
    found, day = [], dims["day"]
    for begin in range(0, x.shape[1], day):
        here = slice(begin, begin + day)
        parts = [z[:, here] for z in (q, k, v, alpha, beta)]
        y, F = cores.gated_delta_rule(*parts, state(x, dims))
        found.append(y + torch.einsum("bhij,bthj->bthi", S, q[:, here]))
        if begin + day <= x.shape[1]:
            share = keep[:, here].mean(1)[..., None, None]
            F, S = state(x, dims), S + share * (F - S)
    y = rmsnorm(torch.cat(found, 1)) * silu(split(p, "W_g", x, dims))
    return out(p, y), {"F": F, "S": S}


def surprise(p: P, x: Tensor, dims: Dims) -> Mixed:
    """The delta rule where |M_c k - v|^2 / 2 is above its running mean; c: the chunk's start."""
    q, k = (unit(short(p, of, x, dims)) for of in "qk")
    v = silu(split(p, "W_v", x, dims))
    alpha = torch.sigmoid(linear(p, "W_alpha", x) + 4)[..., None, None]
    beta = torch.sigmoid(linear(p, "W_beta", x))[..., None, None]
    M = start = state(x, dims)
    usual, found = x.new_zeros(x.shape[0], dims["heads"]), []
    for t in range(x.shape[1]):
        start = M if t % dims["chunk"] == 0 else start
        error = read(start, k[:, t]) - v[:, t]
        surprising = error.pow(2).sum(-1) / 2
        step = beta[:, t] * outer(error, k[:, t])
        M = alpha[:, t] * M - (surprising > usual)[..., None, None] * step
        usual = usual + 0.1 * (surprising - usual)
        found.append(read(M, q[:, t]))
    y = rmsnorm(torch.stack(found, 1)) * silu(split(p, "W_g", x, dims))
    return out(p, y), {"M": M, "usual": usual}
