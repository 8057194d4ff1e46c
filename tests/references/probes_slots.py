"""Slots in all kinds of company, without a loop of their own: for comparing executions."""

from __future__ import annotations

from tests.references.probes import PROBES
from tests.references.specs import block

LEVELS = "level beat every 3 tokens\nlevel bar every 6 tokens\n"
FRAME = """  weights W_r : linear(d -> heads*n)
  weights W_n : linear(d -> n)
  weights W_lr : linear(d -> heads)
"""

BODIES: dict[str, str] = {
    "slots of layers, one for each token": """
  memory M : mlp(d_k -> 5 -> d_v, act = silu, bias) at fast { key unit(k)
  value v
  state S = 0
  slots n
  route W_r(x)
  select top_k(1)
  update { S = 0.8 * S - sigmoid(W_lr(x)) * grad
  self = self + S }
  init learned }
  out = W_o(M(q) + prev(M)(k))
""",
    "slots of a gated map in windows": """
  memory M : glu(d_k -> 5 -> d_v) at beat { key unit(k)
  value v
  slots n
  route W_r(x)
  select top_k(2)
  update { self = 0.9 * self - sum(sigmoid(W_lr(x)) * grad, over = tokens) }
  init learned }
  out = W_o(M(q))
""",
    "few of many slots move with a window": """
  memory M : linear(d_k -> d_v) at beat { key unit(k)
  value v
  state S = 0
  state used[] = 0
  slots 4*n
  route W_many(x)
  select top_k(1)
  update { used = used + 1
  S = 0.8 * S - newton_schulz(grad, steps = 2)
  self = self + S / used }
  init learned }
  weights W_many : linear(d -> 4*n)
  out = W_o(M(q) + sum(M.used) * v)
""",
    "weights of a share and of a size": """
  memory M : linear(d_k -> d_v) at fast { key unit(k)
  value v
  slots n
  route 2 * W_r(x)
  select top_p(0.3)
  update { self = self - 0.3 * grad } }
  memory N : linear(d_k -> d_v) at beat { key unit(k)
  value v - M(k)
  slots n
  route 2 * W_n(x)
  select threshold(0.6)
  update { self = self - 0.3 * grad } }
  out = W_o(M(q) + N(q))
""",
    "slots that have rates of their own": """
  memory M : linear(d_k -> d_v) at fast { key unit(k)
  value v
  objective sigmoid(W_n(x)) * 1/2 * ||self(key) - value||^2
  slots n
  route W_r(x)
  select top_k(2)
  update { self = (1 - 0.1 * sigmoid(W_n(x))) * self - 0.3 * grad } }
  memory N : linear(d_k -> d_v) at beat { key unit(k)
  value v
  slots n
  route W_r(x)
  select top_k(2)
  update { self = last(sigmoid(W_n(x))) * self - sum(sigmoid(W_n(x)) * grad, over = tokens) } }
  out = W_o(M(q) + N(q))
""",
    "a second pass over slots": """
  memory M : linear(d_k -> d_v) at beat { key unit(k)
  value v
  slots n
  route W_r(x)
  select top_k(1)
  update { repeat 2 { self = self - 0.2 * grad(at = self) } }
  init learned }
  out = W_o(M(q))
""",
    "slots that other memories read": """
  weights U : linear(d -> d_k)
  memory M : linear(d_k -> d_k) at fast { key U(x)
  value 0.5 * U(x)
  slots n
  route W_n(x)
  select top_k(1)
  update { self = self - 0.1 * grad }
  reset every 4 tokens
  init learned }
  memory A : linear(d_k -> d_v) at beat { key unit(M(k))
  objective 1/2 * ||self(key) - v||^2 + 0.1 * ||self(M(q)) - v||^2
  update { self = 0.9 * self - 0.1 * grad } }
  out = W_o(A(M(q)) + sum(loss(M), over = n) * v)
""",
    "a copy with slots": """
  memory M : linear(d_k -> d_v) at beat { key unit(k)
  value v
  update { self = self - 0.1 * grad }
  init learned }
  memory N : linear(d_k -> d_v) at beat { key unit(k)
  value v
  slots n
  route W_r(x)
  select top_k(1)
  update { self = self - 0.2 * grad + 0.1 * (initial(self) - self) }
  init from M
  reset every 6 tokens
  through first_order }
  out = W_o(M(q) + N(q))
""",
}

PROBES |= {name: block(FRAME + body, levels=LEVELS) for name, body in BODIES.items()}
