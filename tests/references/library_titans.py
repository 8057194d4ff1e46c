"""Mixers of neural memory and attention (2501.00663, section 4), by hand, as `library` has them.

Segments and windows are written out as the sets of pairs that a token sees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references import titans
from tests.references.cores import read
from tests.references.layers import conv, heads, linear, rmsnorm, rope, silu, unit
from tests.references.mixers import Dims, Mixed, P, out, split

NAMES = ("layer1.weight", "layer2.weight")


def by_conv(p: P, of: str, x: Tensor, dims: Dims) -> Tensor:
    """A query or key of the memory."""
    return unit(heads(silu(conv(p, f"conv_{of}", linear(p, f"M_{of}", x))), dims["heads"]))


def gates(p: P, x: Tensor, less: int) -> list[Tensor]:
    """theta, so many times smaller than a sigmoid, eta and alpha."""
    theta, eta = (torch.sigmoid(linear(p, n, x)) for n in ("W_lr", "W_m"))
    return [theta / less, eta, torch.sigmoid(linear(p, "W_f", x) - 6)]


def first_state(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    one, two = (p[f"M.{n}"].expand(x.shape[0], *p[f"M.{n}"].shape) for n in NAMES)
    return one, two


def attend(
    q: Tensor, keys: list[Tensor], values: list[Tensor], p: P, seen: list[list[int]]
) -> Tensor:
    """Token t of q [B, T, H, d] sees the learned pairs and, of each list, its tokens `seen[t]`."""
    found = []
    for t, tokens in enumerate(seen):
        rows = [p["A.key"].expand(q.shape[0], *p["A.key"].shape)]
        answers = [p["A.value"].expand(q.shape[0], *p["A.value"].shape)]
        rows += [k[:, tokens].transpose(1, 2) for k in keys]
        answers += [v[:, tokens].transpose(1, 2) for v in values]
        scores = torch.einsum("bhnd,bhd->bhn", torch.cat(rows, 2), q[:, t]) / q.shape[-1] ** 0.5
        found.append(torch.einsum("bhn,bhnd->bhd", scores.softmax(-1), torch.cat(answers, 2)))
    return torch.stack(found, 1)


def last(window: int, tokens: int) -> list[list[int]]:
    return [list(range(max(t + 1 - window, 0), t + 1)) for t in range(tokens)]


def kept(keys: list[Tensor], values: list[Tensor], seen: list[int]) -> dict[str, Tensor]:
    """The stored pairs of some tokens, one token after the other."""
    return {
        name: torch.stack([x[:, seen] for x in several], 2).flatten(1, 2).transpose(1, 2)
        for name, several in (("key", keys), ("value", values))
    }


def gated(p: P, y: Tensor, m: Tensor) -> Tensor:
    return rmsnorm(y) * p["g_y"] * torch.sigmoid(rmsnorm(m) * p["g_m"])


def neural_memory(p: P, x: Tensor, dims: Dims) -> tuple[Tensor, dict[str, object]]:
    """M over a whole sequence: what it answers to the query of each token, and its states."""
    q, k = (by_conv(p, of, x, dims) for of in "qk")
    v = silu(split(p, "M_v", x, dims))
    y, M, S = titans.mlp_memory(q, k, v, *gates(p, x, 64), first_state(p, x), dims["chunk"])
    states: dict[str, object] = {"M": dict(zip(NAMES, M, strict=True))}
    return y, states | {"M.S": dict(zip(NAMES, S, strict=True))}


def mag(p: P, x: Tensor, dims: Dims) -> Mixed:
    m, states = neural_memory(p, x, dims)
    q, k = (rope(split(p, n, x, dims)) for n in ("W_q", "W_k"))
    v, seen = split(p, "W_v", x, dims), last(dims["window"], x.shape[1])
    y = attend(q, [k], [v], p, seen)
    return out(p, gated(p, y, m)), states | {"A": kept([k], [v], seen[-1])}


def mal(p: P, x: Tensor, dims: Dims) -> Mixed:
    m, states = neural_memory(p, x, dims)
    y = linear(p, "W_y", rmsnorm(m).flatten(-2))
    q, k = (rope(split(p, n, y, dims)) for n in ("W_q", "W_k"))
    v, seen = split(p, "W_v", y, dims), last(dims["window"], x.shape[1])
    return out(p, attend(q, [k], [v], p, seen)), states | {"A": kept([k], [v], seen[-1])}


def mac(p: P, x: Tensor, dims: Dims) -> Mixed:
    """Segment by segment: h from the memory before it, attention, then the memory over y."""
    tokens, size = x.shape[1], dims["segment"]
    M = first_state(p, x)
    S = (torch.zeros_like(M[0]), torch.zeros_like(M[1]))
    asked = by_conv(p, "h", x, dims)
    q, k_x, v_x = rope(split(p, "W_q", x, dims)), split(p, "W_k", x, dims), split(p, "W_v", x, dims)
    k_x = rope(k_x)
    h, found, mixed = x[:, :0], [], []
    for begin in range(0, tokens, size):
        end, start = min(begin + size, tokens), M
        here = torch.stack([over(start, asked[:, t]) for t in range(begin, end)], 1)
        h = torch.cat([h, linear(p, "W_h", here.flatten(-2))], 1)
        k_h, v_h = rope(split(p, "W_k", h, dims)), split(p, "W_v", h, dims)
        seen = [list(range(begin, t + 1)) for t in range(begin, end)]
        a = attend(q[:, begin:end], [k_h, k_x], [v_h, v_x], p, seen)
        mixed.append(a)
        y = torch.cat(mixed, 1).flatten(-2)
        learned = by_conv(p, "k", y, dims), silu(split(p, "M_v", y, dims))
        final = by_conv(p, "q", y, dims)
        rates = [g[..., None, None] for g in gates(p, y, 4 * size)]
        for t in range(begin, end):
            slope = titans.mlp_gradient(start, *(z[:, t] for z in learned))
            theta, eta, alpha = (g[:, t] for g in rates)
            S = tuple(eta * s - theta * g for s, g in zip(S, slope, strict=True))  # type: ignore
            M = tuple((1 - alpha) * m + s for m, s in zip(M, S, strict=True))  # type: ignore
            found.append(over(M, final[:, t]))
    o = gated(p, torch.cat(mixed, 1), torch.stack(found, 1))
    open_tokens = list(range(tokens // size * size, tokens))
    states = {
        "A": kept([k_h, k_x], [v_h, v_x], open_tokens),
        "M": dict(zip(NAMES, M, strict=True)),
        "M.S": dict(zip(NAMES, S, strict=True)),
    }
    return out(p, o), states


def over(M: tuple[Tensor, Tensor], z: Tensor) -> Tensor:
    return read(M[1], titans.gelu(read(M[0], z)))
