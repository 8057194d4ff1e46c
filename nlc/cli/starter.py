"""The spec that `nlc new` writes: small, whole, and explained line by line.

In: a name. Out: the text of a spec.
"""

from __future__ import annotations

STARTER = """\
# A spec says what a model remembers, how fast each part of it changes, and by which rule.
#   nlc check {file}      what is wrong with it, or its levels
#   nlc train {file}      train it on text that ships with Python
#   nlc explain {file}    how it runs, and why

system {name} "A fast memory that corrects itself, between slow weights"

# named sizes; shapes are written with them, and axes match by name
dims {{ d = 128, heads = 4, d_k = 32, d_v = 32 }}

# time scales: `fast` changes with every token, `slow` with every training step.
# Moving a map from one to the other is a one-word edit.
level fast every 1 token
level slow every 1 step, optimizer adamw(lr = 1e-3, weight_decay = 0.1)

# how a token is mixed with what came before it
block mixer(x[d]) -> out[d] {{
  weights W_q, W_k : linear(d -> heads*d_k)
  weights W_v      : linear(d -> heads*d_v)
  weights W_b, W_a : linear(d -> heads, bias)
  weights W_o      : linear(heads*d_v -> d)

  q     = unit(silu(W_q(x)))   # [heads, d_k]
  k     = unit(silu(W_k(x)))
  v     = silu(W_v(x))         # [heads, d_v]
  beta  = sigmoid(W_b(x))      # how strongly to write, per head
  alpha = sigmoid(W_a(x) + 4)  # how much to keep, per head

  # one matrix per head; each token it takes a step towards M(k) = v
  memory M : linear(d_k -> d_v) at fast {{
    key       k
    value     v
    objective 1/2 * ||M(k) - v||^2
    update {{
      self = alpha * self
      self = self - beta * grad(at = self)
    }}
  }}

  out = W_o(rmsnorm(M(q)))
}}

# what each token does on its own
block ffn(x[d]) -> out[d] {{
  weights F : mlp(d -> 4*d -> d)

  out = F(x)
}}

# how the blocks stack; every pass has parameters and memories of its own
model {{
  vocab bytes
  x[d] = embed(tokens)
  repeat 2 {{
    x = x + mixer(rmsnorm(x))
    x = x + ffn(rmsnorm(x))
  }}
  logits = unembed(rmsnorm(x))
}}
"""


def starter(name: str, file: str = "") -> str:
    """Return a first spec of that name, in the text form; its head speaks of `file`."""
    return STARTER.format(name=name, file=file or f"{name}.nl")
