"""Small systems of the literature: each a spec and the loop that its paper writes.

`SYSTEMS` holds, by name, the spec's text and a function (parameters, x) -> (out, states).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.references import cores, titans
from tests.references.layers import conv, heads, linear, rmsnorm, rope, shift, silu, unit
from tests.references.specs import block

P = dict[str, Tensor]
H = 2


def qkv(p: P, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (heads(linear(p, name, x), H) for name in ("W_q", "W_k", "W_v"))
    return q, k, v


def start(x: Tensor, *shape: int) -> Tensor:
    return torch.zeros(x.shape[0], H, *shape, dtype=torch.float64)


def gate(p: P, name: str, x: Tensor) -> Tensor:
    return torch.sigmoid(linear(p, name, x))


def out(p: P, y: Tensor) -> Tensor:
    return linear(p, "W_o", y.flatten(-2))


LINEAR_ATTENTION = block(
    """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    objective -<M(k), v>
    update { self = self - grad }
  }
  out = W_o(M(q))
"""
)


def linear_attention(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    y, S = cores.linear_attention(*qkv(p, x), start(x, 3, 4))
    return out(p, y), {"M": S}


WRITTEN_OUT = block(
    """
  memory M[heads] : linear(d_k -> d_v) at fast {
    update { M = M + outer(v, k) }
  }
  out = W_o(M(q))
"""
)

RETNET = block(
    """
  gamma = 1 - 2^(-5 - index(heads))
  memory M[heads] : linear(d_k -> d_v) at fast {
    update { M = gamma * M + outer(v, k) }
  }
  out = W_o(M(q))
"""
)


def retnet(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = qkv(p, x)
    gamma = (1 - 2.0 ** (-5 - torch.arange(H).double())).expand(*q.shape[:3])
    y, S = cores.decayed_attention(q, k, v, gamma, start(x, 3, 4))
    return out(p, y), {"M": S}


GLA = block(
    """
  weights W_a : lora(d -> 2 -> heads*d_k, bias)
  alpha = sigmoid(W_a(x))^(1/16)
  memory M[heads] : linear(d_k -> d_v) at fast {
    update { M = M @ diag(alpha) + outer(v, k) }
  }
  out = W_o(M(q))
"""
)


def gla(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = qkv(p, x)
    low = x @ p["W_a.down"].mT
    alpha = torch.sigmoid(heads(low @ p["W_a.up.weight"].mT + p["W_a.up.bias"], H)) ** (1 / 16)
    y, S = cores.decayed_attention(q, k, v, alpha, start(x, 3, 4))
    return out(p, y), {"M": S}


DELTANET = block(
    """
  weights W_b : linear(d -> heads, bias)
  weights conv_k : conv(heads*d_k, width = 3, bias)
  kk = unit(silu(conv_k(W_k(x))))
  beta = sigmoid(W_b(x))
  memory M : linear(d_k -> d_v) at fast {
    key kk
    value v
    update { self = self - beta * grad }
  }
  out = W_o(M(unit(q)))
"""
)


def deltanet(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, _, v = qkv(p, x)
    raw = linear(p, "W_k", x)
    k = unit(silu(heads(conv(p, "conv_k", raw), H)))
    y, S = cores.delta_rule(unit(q), k, v, gate(p, "W_b", x), start(x, 3, 4))
    return out(p, y), {"M": S, "conv_k": torch.cat([raw * 0, raw], dim=1)[:, -2:]}


GATED_DELTANET = block(
    """
  weights W_a, W_b : linear(d -> heads, bias)
  alpha, beta = sigmoid(W_a(x)), sigmoid(W_b(x))
  memory S : linear(d_k -> d_v) at fast {
    key unit(k)
    value v
    update {
      S = alpha * S
      S = S - beta * grad(at = S)
    }
  }
  out = W_o(rmsnorm(S(unit(q))))
"""
)


def gated_deltanet(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = qkv(p, x)
    gates = gate(p, "W_a", x), gate(p, "W_b", x)
    y, S = cores.gated_delta_rule(unit(q), unit(k), v, *gates, start(x, 3, 4))
    return out(p, rmsnorm(y)), {"S": S}


GATES = """
  weights W_lr, W_m, W_f : linear(d -> heads, bias)
  theta, eta, alpha = sigmoid(W_lr(x)), sigmoid(W_m(x)), sigmoid(W_f(x))
"""
TITANS_RULE = """
rule titans(lr, momentum, decay) {
  state S = 0
  S    = momentum * S - lr * grad
  self = (1 - decay) * self + S
}
"""


def titans_linear_spec(clauses: str = "") -> str:
    return block(
        GATES
        + f"""
  memory M : linear(d_k -> d_v) at fast {{
    key unit(k)
    value v
    update titans(lr = theta, momentum = eta, decay = alpha)
    {clauses}
  }}
  out = W_o(M(unit(q)))
""",
        rules=TITANS_RULE,
    )


def titans_gates(p: P, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return gate(p, "W_lr", x), gate(p, "W_m", x), gate(p, "W_f", x)


def titans_linear(through: str = "full") -> Callable[..., Any]:
    def hand(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        q, k, v = qkv(p, x)
        gates, first = titans_gates(p, x), start(x, 3, 4)
        y, M, S = titans.linear_memory(unit(q), unit(k), v, *gates, first, first, through)
        return out(p, y), {"M": M, "M.S": S}

    return hand


def titans_mlp_spec(chunk: str = "", clauses: str = "") -> str:
    return block(
        GATES
        + f"""
  memory M : mlp(d_k -> 2*d_k -> d_v) at fast {{
    key unit(k)
    value v
    objective 1/2 * ||M(k_) - v||^2
    update titans(lr = theta, momentum = eta, decay = alpha)
    {clauses}
  }}
  out = W_o(M(unit(q)))
""".replace("M(k_)", "M(key)"),
        rules=TITANS_RULE,
        chunk=chunk,
    )


def titans_mlp(chunk: int = 1, reset: int | None = None) -> Callable[..., Any]:
    def hand(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        q, k, v = qkv(p, x)
        first = tuple(
            p[f"M.{name}"].expand(x.shape[0], *p[f"M.{name}"].shape)
            for name in ("layer1.weight", "layer2.weight")
        )
        gates = titans_gates(p, x)
        y, M, S = titans.mlp_memory(unit(q), unit(k), v, *gates, first, chunk, reset)
        names = ("layer1.weight", "layer2.weight")
        states = {"M": dict(zip(names, M, strict=True)), "M.S": dict(zip(names, S, strict=True))}
        return out(p, y), states

    return hand


RWKV7 = block(
    """
  weights mu : vector(d)
  weights W_w, W_a : linear(d -> heads*d_k, bias)
  weights xi : vector(heads, d_k) init 0.7
  xs = lerp(x, shift(x), mu)
  w = exp(-0.606531 * sigmoid(W_w(xs)))
  a = sigmoid(W_a(xs))
  kappa = unit(k * xi)
  memory S[heads] : linear(d_k -> d_v) at fast {
    update { S = S @ diag(w) - outer(S @ kappa, a * kappa) + outer(v, k * a) }
  }
  out = W_o(S(q))
"""
)


def rwkv7(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = qkv(p, x)
    xs = x + p["mu"] * (shift(x) - x)
    w = torch.exp(-0.606531 * torch.sigmoid(heads(linear(p, "W_w", xs), H)))
    a = torch.sigmoid(heads(linear(p, "W_a", xs), H))
    kappa = unit(k * p["xi"].reshape(H, 4))
    y, S = cores.rwkv7(q, w, k * a, v, kappa, a, start(x, 3, 4))
    return out(p, y), {"S": S}


ATTENTION = block(
    """
  memory A : kernel(softmax) at now {
    key rope(k)
    value v
  }
  out = W_o(A(rope(q)))
"""
)


def attention(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = qkv(p, x)
    y = cores.softmax_attention(rope(q), rope(k), v)
    pairs = {"key": rope(k).transpose(1, 2), "value": v.transpose(1, 2)}
    return out(p, y), {"A": pairs}


WINDOW = block(
    """
  memory A : kernel(softmax, window = 3) at now {
    key k
    value v
  }
  out = W_o(A(q))
"""
)


def window(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return out(p, cores.softmax_attention(*qkv(p, x), window=3)), {}


PREVIOUS = block(
    """
  memory M[heads] : linear(d_k -> d_v) at fast {
    update { M = 0.9 * M + outer(v, k) }
  }
  out = W_o(prev(M)(q) + 0.5 * M(q))
"""
)


def previous(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    q, k, v = qkv(p, x)
    S, outs = start(x, 3, 4), []
    for t in range(x.shape[1]):
        before = cores.read(S, q[:, t])
        S = 0.9 * S + cores.outer(v[:, t], k[:, t])
        outs.append(before + 0.5 * cores.read(S, q[:, t]))
    return out(p, torch.stack(outs, 1)), {"M": S}


def self_modifying_spec(chunk: str = "") -> str:
    body = """
  weights W_e, W_a : linear(d -> 1, bias)
  eta, alpha = sigmoid(W_e(x)), sigmoid(W_a(x))
  kk = unit(prev(M_k)(x))
  vv = prev(M_v)(x)
  memory M_k, M_v, M_mem : linear(d -> d) at fast {
    key kk
    value prev(self)(vv)
    update { self = self @ (alpha - eta * outer(kk, kk)) - eta * grad }
    init learned
  }
  weights W_out : linear(d -> d)
  out = W_out(M_mem(unit(x)))
"""
    return block(body, chunk=chunk)


def self_modifying(chunk: int) -> Callable[..., Any]:
    def hand(p: P, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        eta, alpha = gate(p, "W_e", x)[..., 0], gate(p, "W_a", x)[..., 0]
        y, M = titans.self_modifying(p, x, unit(x), eta, alpha, chunk)
        return linear(p, "W_out", y), M

    return hand


SYSTEMS: dict[str, tuple[str, Callable[..., Any]]] = {
    "linear attention": (LINEAR_ATTENTION, linear_attention),
    "linear attention written out": (WRITTEN_OUT, linear_attention),
    "retnet": (RETNET, retnet),
    "gla": (GLA, gla),
    "deltanet": (DELTANET, deltanet),
    "gated deltanet": (GATED_DELTANET, gated_deltanet),
    "titans linear": (titans_linear_spec(), titans_linear()),
    "titans through stop": (titans_linear_spec("through stop"), titans_linear("stop")),
    "titans through first order": (
        titans_linear_spec("through first_order"),
        titans_linear("first_order"),
    ),
    "self-modifying": (self_modifying_spec(), self_modifying(1)),
    "self-modifying chunk 3": (self_modifying_spec("3"), self_modifying(3)),
    "titans mlp": (titans_mlp_spec(), titans_mlp()),
    "titans mlp chunk 4": (titans_mlp_spec("4"), titans_mlp(4)),
    "titans mlp reset": (titans_mlp_spec("", "reset every 3 tokens"), titans_mlp(1, 3)),
    "titans mlp chunk and reset": (titans_mlp_spec("2", "reset every 4 tokens"), titans_mlp(2, 4)),
    "rwkv7": (RWKV7, rwkv7),
    "attention": (ATTENTION, attention),
    "window": (WINDOW, window),
    "previous": (PREVIOUS, previous),
}
