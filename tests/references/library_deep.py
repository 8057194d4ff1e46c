"""Mixers whose memory is an MLP of two layers, by hand, as `library` has them: MIRAS and ATLAS.

Gradients are written out, and taken at the chunk's start; `W` are the two matrices of a memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.references.cores import outer, read
from tests.references.layers import layernorm, linear, rmsnorm, silu, unit
from tests.references.library_test_time import through_layernorm
from tests.references.mixers import Dims, Mixed, P, out, short, split
from tests.references.titans import gelu, gelu_slope

Pair = tuple[Tensor, Tensor]
LAYERS = ("layer1.weight", "layer2.weight")


def mapped(W: Pair, z: Tensor) -> Tensor:
    """W_2 gelu(W_1 z)."""
    return read(W[1], gelu(read(W[0], z)))


def pulled(W: Pair, z: Tensor, above: Tensor) -> Pair:
    """The gradient of <W_2 gelu(W_1 z), above> in both matrices."""
    inner = read(W[0], z)
    below = torch.einsum("bhom,bho->bhm", W[1], above) * gelu_slope(inner)
    return outer(below, z), outer(above, gelu(inner))


def low_rank(p: P, name: str, x: Tensor) -> Tensor:
    """W_up W_down x + b."""
    return x @ p[f"{name}.down"].mT @ p[f"{name}.up.weight"].mT + p[f"{name}.up.bias"]


def copies(p: P, name: str, x: Tensor) -> Pair:
    """Learned matrices, one for each row of the batch."""
    first, second = (p[f"{name}.{n}"].expand(x.shape[0], *p[f"{name}.{n}"].shape) for n in LAYERS)
    return first, second


def named(W: Pair) -> dict[str, Tensor]:
    return dict(zip(LAYERS, W, strict=True))


# ---- MIRAS (2504.13173): z + LN(W_2 gelu(W_1 z)) -----------------------------------------------


class Miras:
    """What the three systems share: projections, gates, one step, the output."""

    def __init__(self, p: P, x: Tensor, dims: Dims, gain: Tensor, offset: Tensor):
        self.p, self.x, self.dims, self.gain, self.offset = p, x, dims, gain, offset
        self.q, self.k = (unit(short(p, of, x, dims)) for of in "qk")
        self.v = short(p, "v", x, dims)
        heads = (*x.shape[:2], dims["heads"], -1)
        self.eta = 0.1 * torch.sigmoid(low_rank(p, "W_eta", x).reshape(heads)) / dims["d_k"]
        self.alpha = 1 - torch.sigmoid(low_rank(p, "W_alpha", x).reshape(heads) - 8) / 2

    def read(self, W: Pair, z: Tensor) -> Tensor:
        return z + layernorm(mapped(W, z)) * self.gain + self.offset

    def error(self, W: Pair, t: int) -> Tensor:
        return self.read(W, self.k[:, t]) - self.v[:, t]

    def gradient(self, W: Pair, t: int, above: Tensor) -> Pair:
        """The gradient of an objective whose own gradient in the memory's output is `above`."""
        last = mapped(W, self.k[:, t])
        return pulled(W, self.k[:, t], through_layernorm(last, above * self.gain))

    def moved(self, A: Pair, g: Pair, t: int) -> Pair:
        """A Diag(alpha) - g Diag(eta) where the keys are channels (layer 1), else from the left."""
        alpha, eta = self.alpha[:, t], self.eta[:, t]
        first = A[0] * alpha[..., None, :] - g[0] * eta[..., None, :]
        return first, A[1] * alpha[..., :, None] - g[1] * eta[..., :, None]

    def out(self, found: list[Tensor]) -> Tensor:
        y = rmsnorm(torch.stack(found, 1)) * self.p["gain"]
        return out(self.p, y * silu(split(self.p, "W_g", self.x, self.dims)))


def yaad(p: P, x: Tensor, dims: Dims) -> Mixed:
    own = Miras(p, x, dims, p["M.norm.weight"], p["M.norm.bias"])
    delta = torch.nn.functional.softplus(low_rank(p, "W_delta", x)).reshape(own.q.shape)
    W, found = copies(p, "M", x), []
    start = W
    for t in range(x.shape[1]):
        start = W if t % dims["chunk"] == 0 else start
        e, most = own.error(start, t), delta[:, t]
        W = own.moved(W, own.gradient(start, t, torch.minimum(torch.maximum(e, -most), most)), t)
        found.append(own.read(W, own.q[:, t]))
    return own.out(found), {"M": named(W)}


def moneta(p: P, x: Tensor, dims: Dims) -> Mixed:
    own = Miras(p, x, dims, p["M.norm.weight"], p["M.norm.bias"])
    A = W = copies(p, "M", x)
    n = [torch.ones_like(own.q[:, 0, :, 0]) for _ in A]
    start, found = W, []
    for t in range(x.shape[1]):
        start = W if t % dims["chunk"] == 0 else start
        e = own.error(start, t)
        A = own.moved(A, own.gradient(start, t, 3 * torch.tanh(10 * e) * (e.pow(2) + 1e-6)), t)
        if (t + 1) % dims["chunk"] == 0:
            n = [w.pow(4).sum((-2, -1)).sqrt() for w in A]
        W = (A[0] / n[0][..., None, None], A[1] / n[1][..., None, None])
        found.append(own.read(W, own.q[:, t]))
    return own.out(found), {"M": named(W), "M.A": named(A), "M.n_1": n[0], "M.n_2": n[1]}


def memora(p: P, x: Tensor, dims: Dims) -> Mixed:
    shape = (dims["heads"], dims["d_k"])
    own = Miras(p, x, dims, p["g"].reshape(shape), p["b"].reshape(shape))
    units = dims["units"]

    def positive(L: Pair) -> Pair:
        return units * L[0].softmax(-2), units * L[1].softmax(-1)

    W = positive(copies(p, "L_0", x))
    start, L, found = W, (W[0].log(), W[1].log()), []
    for t in range(x.shape[1]):
        start = W if t % dims["chunk"] == 0 else start
        L = own.moved(L, own.gradient(start, t, 2 * own.error(start, t)), t)
        W = positive(L)
        found.append(own.read(W, own.q[:, t]))
    return own.out(found), {"M": named(W), "M.L": named(L)}


# ---- ATLAS (2505.23735) ------------------------------------------------------------------------


def newton_schulz(X: Tensor, steps: int = 5) -> Tensor:
    """Muon's five steps towards the nearest orthogonal matrix."""
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    X = X / (X.flatten(-2).norm(dim=-1)[..., None, None] + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if tall else X


def over_windows(p: P, x: Tensor, dims: Dims, momentum: bool) -> Mixed:
    """M = alpha M - step: the gradient of the last pairs, or its momentum orthogonalised."""
    q, k, v = (short(p, of, x, dims) for of in "qkv")
    alpha = torch.sigmoid(linear(p, "W_alpha", x) + 4)
    gamma = torch.sigmoid(linear(p, "W_gamma", x))
    gamma = gamma if momentum else gamma / (dims["window"] * dims["d_v"])

    def phi(z: Tensor) -> Tensor:
        squares = torch.einsum("bthi,bthj->bthij", z, z).flatten(-2)
        return torch.cat([p["a_1"] * z, p["a_2"] * squares], -1)

    q, k = phi(unit(q)), unit(phi(unit(k)))
    W = copies(p, "M", x)
    S: Pair = (torch.zeros_like(W[0]), torch.zeros_like(W[1]))
    start, found = W, []
    for t in range(x.shape[1]):
        start = W if t % dims["chunk"] == 0 else start
        g: Pair = (torch.zeros_like(W[0]), torch.zeros_like(W[1]))
        for i in range(max(t + 1 - dims["window"], 0), t + 1):
            above = 2 * gamma[:, i, :, None] * (mapped(start, k[:, i]) - v[:, i])
            more = pulled(start, k[:, i], above)
            g = (g[0] + more[0], g[1] + more[1])
        if momentum:
            theta = torch.sigmoid(linear(p, "W_theta", x))[:, t, :, None, None]
            eta = torch.sigmoid(linear(p, "W_eta", x) - 2)[:, t, :, None, None] / 8
            S = (theta * S[0] + g[0], theta * S[1] + g[1])
            g = (eta * newton_schulz(S[0]), eta * newton_schulz(S[1]))
        decay = alpha[:, t, :, None, None]
        W = (decay * W[0] - g[0], decay * W[1] - g[1])
        found.append(mapped(W, q[:, t]))
    y = rmsnorm(torch.stack(found, 1)) * p["gain"]
    y = out(p, y * silu(split(p, "W_g", x, dims)))
    return y, {"M": named(W)} | ({"M.S": named(S)} if momentum else {})


def omeganet(p: P, x: Tensor, dims: Dims) -> Mixed:
    return over_windows(p, x, dims, momentum=False)


def atlas(p: P, x: Tensor, dims: Dims) -> Mixed:
    return over_windows(p, x, dims, momentum=True)
