"""Functions of Triton kernels; those that a kernel calls are copied beside it.

A tile is C tokens, its rows; F(t, i) = g_{i+1} ... g_t are products of gates, with nothing divided.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(x, y, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """x @ y in the streams' type, summed in float32."""
    return tl.dot(x.to(DOT), y.to(DOT), input_precision=PRECISION)


@triton.jit
def gelu(x):
    """x times the share of normal numbers below it."""
    return 0.5 * x * (1.0 + tl.erf(0.7071067811865476 * x))


@triton.jit
def gelu_slope(x):
    """The derivative of gelu."""
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return 0.5 * (1.0 + tl.erf(0.7071067811865476 * x)) + x * density


@triton.jit
def gelu_curve(x):
    """The second derivative of gelu."""
    return (2.0 - x * x) * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def silu_slope(x):
    """The derivative of x sigmoid(x)."""
    s = tl.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def silu_curve(x):
    """The second derivative of x sigmoid(x)."""
    s = tl.sigmoid(x)
    return s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))


@triton.jit
def upto(x):
    """What stands at i <= t of x [C, C]."""
    t = tl.arange(0, x.shape[0])
    return tl.where(t[:, None] >= t[None, :], x, 0.0)


@triton.jit
def below(x):
    """What stands at i < t of x [C, C]."""
    t = tl.arange(0, x.shape[0])
    return tl.where(t[:, None] > t[None, :], x, 0.0)


@triton.jit
def diagonal(x):
    """x [C] on the diagonal of a matrix [C, C]."""
    t = tl.arange(0, x.shape[0])
    return tl.where(t[:, None] == t[None, :], x[:, None], 0.0)


@triton.jit
def of_diagonal(x):
    """The diagonal [C] of x [C, C]."""
    t = tl.arange(0, x.shape[0])
    return tl.sum(tl.where(t[:, None] == t[None, :], x, 0.0), 1)


@triton.jit
def shifted(g, by: tl.constexpr):
    """g of `by` tokens before [C], 1 where there is none."""
    t = tl.arange(0, g.shape[0])
    found = tl.sum(tl.where(t[:, None] == t[None, :] + by, g[None, :], 0.0), 1)
    return tl.where((t - by >= 0) & (t - by < g.shape[0]), found, 1.0)


@triton.jit
def late(g):
    """F(t, i) for i <= t, else 0: g [C] -> [C, C]."""
    t = tl.arange(0, g.shape[0])
    factors = tl.where(t[:, None] > t[None, :], g[:, None], 1.0)
    return upto(tl.cumprod(factors, 0))


@triton.jit
def early(g):
    """F(t-1, i) for i < t, else 0: g [C] -> [C, C]."""
    t = tl.arange(0, g.shape[0])
    before = shifted(g, 1)
    factors = tl.where(t[:, None] > t[None, :] + 1, before[:, None], 1.0)
    return below(tl.cumprod(factors, 0))


@triton.jit
def since(g):
    """F(t, 0), from the tile's start: [C]."""
    return tl.cumprod(g, 0)


@triton.jit
def since_early(g):
    """F(t-1, 0), from the tile's start: [C]."""
    return tl.cumprod(shifted(g, 1), 0)


@triton.jit
def until(g):
    """F(C, i), to the tile's end: [C]."""
    return tl.cumprod(shifted(g, -1), 0, reverse=True)


@triton.jit
def whole(g):
    """F(C, 0), a number."""
    t = tl.arange(0, g.shape[0])
    return tl.sum(tl.where(t == g.shape[0] - 1, tl.cumprod(g, 0), 0.0))


@triton.jit
def running(g):
    """F(t, 0) for each channel: [C, d]."""
    return tl.cumprod(g, 0)


@triton.jit
def at_last(x):
    """x [C, d] in the last row, 0 elsewhere."""
    t = tl.arange(0, x.shape[0])
    return tl.where(t[:, None] == x.shape[0] - 1, x, 0.0)


@triton.jit
def last(x):
    """The last row [d] of x [C, d]."""
    return tl.sum(at_last(x), 0)


@triton.jit
def later(x):
    """The sum of each row of x [C, d] and those after it."""
    return tl.cumsum(x, 0, reverse=True)


@triton.jit
def solved(A, PRECISION: tl.constexpr):
    """(I - A)^-1 for A [C, C] below the diagonal, in float32.

    Blocks of 16 rows first, row by row: X_r = I_r + A_r X. With L what stands below these blocks,
    (I - A)^-1 = (I - X L)^-1 X, and X L is 0 from its power of C / 16 on.
    """
    C: tl.constexpr = A.shape[0]
    N: tl.constexpr = C // 16
    t = tl.arange(0, C)
    same = (t[:, None] // 16) == (t[None, :] // 16)
    # the blocks on the diagonal [N, 16, 16]
    blocks = tl.sum(tl.reshape(tl.where(same, A, 0.0), [N, 16, N, 16]), 2)
    r = tl.arange(0, 16)
    X = tl.where(r[None, :, None] == r[None, None, :], 1.0, 0.0) + tl.zeros_like(blocks)
    for i in range(1, 16):
        row = tl.sum(tl.where(r[None, :, None] == i, blocks, 0.0), 1)
        found = tl.sum(row[:, :, None] * X, 1)
        X = tl.where(r[None, :, None] == i, X + found[:, None, :], X)
    # ... in a matrix again
    n = tl.arange(0, N)
    own = n[:, None, None, None] == n[None, None, :, None]
    X = tl.reshape(tl.where(own, X[:, :, None, :], 0.0), [C, C])
    if N > 1:
        L = tl.dot(X, tl.where(same, 0.0, A), input_precision=PRECISION)
        # (I + L)(I + L^2) ... of X
        X += tl.dot(L, X, input_precision=PRECISION)
        if N > 2:
            L = tl.dot(L, L, input_precision=PRECISION)
            X += tl.dot(L, X, input_precision=PRECISION)
        if N > 4:
            L = tl.dot(L, L, input_precision=PRECISION)
            X += tl.dot(L, X, input_precision=PRECISION)
    return X


# ---- a gate of each channel, which may be 0 ----------------------------------------------------
#
# A tile goes token by token: rows of x [C, d] are taken out of registers by `row`.


@triton.jit
def row(x, t):
    """Row t of x [C, d], as [d]."""
    r = tl.arange(0, x.shape[0])
    return tl.sum(tl.where(r[:, None] == t, x, 0.0), 0)


@triton.jit
def put(x, t, values):
    """x [C, d] with row t set."""
    r = tl.arange(0, x.shape[0])
    return tl.where(r[:, None] == t, values[None, :], x)


@triton.jit
def upwards(x):
    """x [C, d], each row the one below it, the last 0."""
    t = tl.arange(0, x.shape[0])
    shift = tl.where(t[:, None] + 1 == t[None, :], 1.0, 0.0)
    return tl.dot(shift, x, input_precision="ieee")


@triton.jit
def passed(g):
    """F(t, 0) for each channel: [C, d]."""
    return tl.cumprod(g, 0)


@triton.jit
def passed_early(g):
    """F(t-1, 0) for each channel: [C, d]."""
    t = tl.arange(0, g.shape[0])
    shift = tl.where(t[:, None] == t[None, :] + 1, 1.0, 0.0)
    before = tl.dot(shift, g, input_precision="ieee")
    return tl.cumprod(tl.where(t[:, None] == 0, 1.0, before), 0)


@triton.jit
def passed_back(dF, g):
    """The gradient of the gates: dg_s = F(s-1, 0) sum_{t >= s} F(t, s) dF(t, 0)."""
    C: tl.constexpr = g.shape[0]
    found = tl.zeros_like(g)
    came = tl.zeros_like(row(g, 0))
    for step in range(C):
        t = C - 1 - step
        came += row(dF, t)
        found = put(found, t, came)
        came *= row(g, t)
    return found * passed_early(g)


@triton.jit
def ahead(g):
    """F(C, i) for each channel: [C, d]."""
    t = tl.arange(0, g.shape[0])
    after = tl.where(t[:, None] == g.shape[0] - 1, 1.0, upwards(g))
    return tl.cumprod(after, 0, reverse=True)


@triton.jit
def ahead_back(dF, g):
    """The gradient of the gates: dg_s = F(C, s) sum_{i < s} F(s-1, i) dF(C, i)."""
    C: tl.constexpr = g.shape[0]
    found = tl.zeros_like(g)
    came = tl.zeros_like(row(g, 0))
    for t in range(C):
        found = put(found, t, came)
        came = came * row(g, t) + row(dF, t)
    return found * ahead(g)


@triton.jit
def scores_of(q, b, g, EARLY: tl.constexpr):
    """<F(t, i) b_i, q_t>, or with t-1 in the place of t: [C, C]."""
    C: tl.constexpr = g.shape[0]
    r = tl.arange(0, C)
    keys = tl.zeros_like(b)
    found = tl.zeros([C, C], tl.float32)
    for t in range(C):
        if EARLY:
            found = put(found, t, tl.sum(keys * row(q, t)[None, :], 1))
        keys = keys * row(g, t)[None, :] + tl.where(r[:, None] == t, b, 0.0)
        if not EARLY:
            found = put(found, t, tl.sum(keys * row(q, t)[None, :], 1))
    return found


@triton.jit
def direct(q, b, g):
    """<F(t, i) b_i, q_t> for i <= t."""
    return scores_of(q, b, g, False)


@triton.jit
def direct_early(q, b, g):
    """<F(t-1, i) b_i, q_t> for i < t."""
    return scores_of(q, b, g, True)


@triton.jit
def sums_of(s, b, g, EARLY: tl.constexpr):
    """sum_i s[t, i] F(t, i) b_i, or with t-1 in the place of t: [C, d]."""
    C: tl.constexpr = g.shape[0]
    r = tl.arange(0, C)
    keys = tl.zeros_like(b)
    found = tl.zeros_like(b)
    for t in range(C):
        if EARLY:
            found = put(found, t, tl.sum(keys * row(s, t)[:, None], 0))
        keys = keys * row(g, t)[None, :] + tl.where(r[:, None] == t, b, 0.0)
        if not EARLY:
            found = put(found, t, tl.sum(keys * row(s, t)[:, None], 0))
    return found


@triton.jit
def given(s, b, g):
    """sum_i s[t, i] F(t, i) b_i for i <= t."""
    return sums_of(s, b, g, False)


@triton.jit
def given_early(s, b, g):
    """sum_i s[t, i] F(t-1, i) b_i for i < t."""
    return sums_of(s, b, g, True)


@triton.jit
def takings_of(s, q, g, EARLY: tl.constexpr):
    """sum_t s[t, i] F(t, i) q_t, or with t-1 in the place of t: [C, d]."""
    C: tl.constexpr = g.shape[0]
    r = tl.arange(0, C)
    came = tl.zeros_like(q)
    found = tl.zeros_like(q)
    for step in range(C):
        t = C - 1 - step
        if not EARLY:
            came += row(s, t)[:, None] * row(q, t)[None, :]
        found = tl.where(r[:, None] == t, came, found)
        came = came * row(g, t)[None, :]
        if EARLY:
            came += row(s, t)[:, None] * row(q, t)[None, :]
    return found


@triton.jit
def taken(s, q, g):
    """sum_t s[t, i] F(t, i) q_t for t >= i."""
    return takings_of(s, q, g, False)


@triton.jit
def taken_early(s, q, g):
    """sum_t s[t, i] F(t-1, i) q_t for t > i."""
    return takings_of(s, q, g, True)


@triton.jit
def gates_of(s, q, b, g, EARLY: tl.constexpr):
    """dg_t = sum_i W_i F(t-1, i) b_i, W_i what later tokens take of write i at token t: [C, d]."""
    C: tl.constexpr = g.shape[0]
    r = tl.arange(0, C)
    after = tl.where(r[:, None] == C - 1, 1.0, upwards(g))
    came = tl.zeros_like(q)
    found = tl.zeros_like(q)
    for step in range(C):
        t = C - 1 - step
        if not EARLY:
            came += row(s, t)[:, None] * row(q, t)[None, :]
        # the keys as token t - 1 sees them: F(t-1, i) b_i
        decay = tl.cumprod(tl.where(r[:, None] + 1 < t, after, 1.0), 0, reverse=True)
        keys = tl.where(r[:, None] < t, decay * b, 0.0)
        found = put(found, t, tl.sum(came * keys, 0))
        came = came * row(g, t)[None, :]
        if EARLY:
            came += row(s, t)[:, None] * row(q, t)[None, :]
    return found


@triton.jit
def decays(s, q, b, g):
    """The gradient of the gates of `direct`, s that of its scores."""
    return gates_of(s, q, b, g, False)


@triton.jit
def decays_early(s, q, b, g):
    """The gradient of the gates of `direct_early`."""
    return gates_of(s, q, b, g, True)
