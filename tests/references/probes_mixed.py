"""Constructs in odd company, without a loop of their own: for comparing executions."""

from __future__ import annotations

from tests.references.probes import PROBES
from tests.references.specs import block

CHUNKED: dict[str, tuple[str, str]] = {
    "layers at a chunk, halved at times": (
        "4",
        """
  weights W_b : linear(d -> heads, bias)
  b = 0.3 * sigmoid(W_b(x))
  memory M : mlp(d_k -> 2 -> d_v) at fast { key k
  value v
  update { self = 0.9 * self - b * grad
  every 2 tokens { self = 0.5 * self } } }
  out = W_o(M(q))
""",
    ),
    "a count of tokens beside states that move entry by entry": (
        "3",
        """
  memory M : linear(d_k -> d_v) at fast { key unit(k)
  value v
  state S = 0
  state n[] = 0
  update { n = n + 1
  S = 0.9 * S - 0.3 * grad
  self = 0.9 * self + tanh(S) / n } }
  out = W_o(M(q))
""",
    ),
}

PROBES |= {name: block(body, chunk=chunk) for name, (chunk, body) in CHUNKED.items()}
