"""Constructs in odd company, without a loop of their own: for comparing executions."""

from __future__ import annotations

from tests.references.probes import PROBES
from tests.references.specs import block

CHUNKED: dict[str, tuple[str, str]] = {
    "powers below 2 of an error that is exactly 0 at first": (
        "4",
        """
  memory M : linear(d_k -> d_v) at fast { key k
  value relu(v)
  objective lp(M(key) - value, 1.5)
  update { self = 0.9 * self - 0.1 * grad }
  init zeros }
  out = W_o(M(q) + relu(v)^0.5 + relu(v)^0.3)
""",
    ),
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
        "2",
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
    "a sum over updates of a map with one value, in a chunk": (
        "2",
        """
  memory M : linear(d_k -> 1) at fast { key unit(k)
  value mean(v)
  update { self = 0.9 * self - 0.3 * grad
  every 2 steps { self = self - 0.1 * grad } } }
  out = W_o(M(q) * v)
""",
    ),
    "unit of what a memory answers that begins at 0": (
        "2",
        """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  objective -<unit(self(key)), value> + 0.1 * norm(self(key))
  update { self = 0.9 * self - 0.3 * grad } }
  out = W_o(rmsnorm(M(q)))
""",
    ),
    "a product with a state beside a number of a window": (
        "2",
        """
  memory B : linear(d_k -> d_v) at fast { key k
  value v
  update { self = 0.9 * self - 0.2 * grad } }
  memory C : linear(d_k -> d_v) at beat { key q
  value v
  state c[] = 1
  update { c = c + 1
  self = self - mean(0.5 * grad, over = tokens) } }
  out = W_o(tanh(B @ q + C.c * v))
""",
    ),
    "a matrix that begins learned, moved by a rule with a memory": (
        "2",
        """
  memory z[heads] : matrix(d_v, d_k) at fast { objective 1/2 * ||z @ k - v||^2
  init learned
  update deep_momentum(lr = 0.1) }
  out = W_o(z @ q)
""",
    ),
    "routed parts whose objective reads the past": (
        "2",
        """
  weights W_r : linear(d -> heads*n)
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  objective <tanh(prev(self)(key) - value), self(key)>
  slots n
  route W_r(x)
  select top_k(2)
  update { self = 0.9 * self - 0.3 * grad } }
  out = W_o(M(q))
""",
    ),
}

BEAT = "level beat every 4 tokens\n"
PROBES |= {name: block(body, chunk=chunk, levels=BEAT) for name, (chunk, body) in CHUNKED.items()}
