"""Windows in all kinds of company, without a loop of their own: for comparing executions."""

from __future__ import annotations

from tests.references.probes import PROBES
from tests.references.specs import block

LEVELS = "level beat every 3 tokens\nlevel bar every 6 tokens\n"

BODIES: dict[str, str] = {
    "attention over what a window answers": """
  memory M : linear(d_k -> d_v) at beat { key unit(k)
  value v
  update { self = 0.9 * self - 0.4 * grad }
  init learned }
  memory A : kernel(softmax, window = 5) at now { key k
  value M(q) }
  out = W_o(A(q))
""",
    "a window of layers with bias, norm and residual": """
  memory M : mlp(d_k -> 5 -> d_k, act = silu, bias, norm, residual) at beat { key unit(k)
  value q
  state S = 0
  update { S = 0.9 * S - sum(sigmoid(W_lr(x)) * grad, over = tokens)
  self = 0.9 * self + S } }
  weights W_lr : linear(d -> heads)
  out = W_o(sum(M(q)) * v)
""",
    "a window of a gated map and one of low rank": """
  memory M : glu(d_k -> 5 -> d_v) at beat { key unit(k)
  value v
  update { self = self - 0.1 * newton_schulz(grad, steps = 2) } }
  memory N : lora(d_k -> 2 -> d_v, act = tanh) at beat { key unit(k)
  value v - M(k)
  update { self = self - 0.1 * mean(grad, over = tokens) - 0.1 * last(grad) } }
  out = W_o(M(q) + N(q))
""",
    "a window with deep layers that is gone over three times": """
  memory M : mlp(d_k -> 5 -> d_v, bias) at beat { key unit(k)
  value v
  update { repeat 3 { self = self - 0.1 * grad(at = self) } } }
  out = W_o(M(q))
""",
    "a window of a vector, a number and a matrix": """
  memory m[heads] : vector(d_v) at beat { update { self = 0.5 * self + mean(v, over = tokens) } }
  memory n[heads] : scalar at beat { update { self = self + sum(<k, q>, over = tokens) } }
  memory C[heads] : matrix(d_v, d_k) at bar { update {
  self = 0.5 * self + sum(outer(v, k), over = tokens)
  self = self - 0.1 * transpose(sum(outer(k, v), over = tokens)) } }
  out = W_o((m + n * v) * norm(sum(C, over = d_v)) + C @ q)
""",
    "a delta rule that a window feeds": """
  memory B : linear(d_k -> d_k) at beat { key unit(k)
  value q
  update { self = 0.9 * self - 0.1 * grad } }
  kk = unit(B(k))
  memory A : linear(d_k -> d_v) at fast { key kk
  value v
  update { self = 0.9 * self - 0.5 * grad } }
  memory C : linear(d_v -> d_k) at beat { key A(q)
  value B(kk)
  update { self = self - 0.1 * grad + 0.1 * transpose(A) - 0.05 * transpose(prev(A)) } }
  out = W_o(A(q) + prev(A)(C(v)) + A @ B(q))
""",
    "a window that reads a memory of layers at every token": """
  memory A : mlp(d_k -> 5 -> d_v) at fast { key unit(k)
  value v
  update { self = 0.9 * self - 0.1 * grad } }
  memory B : linear(d_k -> d_v) at beat { key unit(k)
  objective 1/2 * ||self(key) - A(q)||^2 + 0.1 * ||self(q) - prev(A)(k)||^2
  update { self = 0.9 * self - 0.1 * grad + 0.1 * sum(outer(A(k), k), over = tokens)
  self = self + 0.1 * last(loss(A)) } }
  out = W_o(A(q) + B(q) + initial(A)(B(k) @ U))
  weights U : matrix(d_v, d_k) init 0.1
""",
    "a softmax memory whose keys a window makes": """
  memory B[heads] : linear(d_k -> d_k) at beat { key kk
  value k
  update { self = self - 0.1 * grad } 
  init learned }
  kk = unit(B(k))
  memory A : kernel(softmax, window = 4) at now { key kk
  value v }
  memory C : linear(d_k -> d_v) at beat { key unit(k)
  objective -<self(key), A(q)>
  update { self = 0.9 * self - 0.1 * grad } }
  out = W_o(A(q) + C(kk))
""",
    "histories, places and calls inside a window": """
  weights c : conv(heads*d_k, width = 3)
  memory B[heads] : linear(d_k -> d_k) at beat { key kk
  value shift(kk, 2) + k
  objective recent(1/2 * ||self(key) - value||^2, 2)
  update { self = self - 0.1 * grad + 0.01 * sum(position * grad, over = tokens) } }
  kk = unit(c(B(k) + shift(B(q))) + 1 + position / 10)
  out = W_o(sum(B(q)) * v)
""",
    "resets, copies and times around windows": """
  memory B : linear(d_k -> d_v) at beat { key unit(k)
  value v
  state S = self
  update { S = S + grad
  every 2 steps { self = self - 0.1 * grad
  S = 0 } }
  reset every 6 tokens
  init learned }
  memory A : linear(d_k -> d_v) at fast { key unit(k)
  value v - B(k)
  update { self = tanh(0.9 * self - 0.1 * grad)
  every 2 tokens { self = self + 0.1 * (initial(self) - self) } }
  init from B
  reset every 6 tokens }
  memory C : linear(d_k -> d_v) at bar { key unit(q)
  value v
  update { self = self - 0.1 * grad + 0.2 * A - 0.1 * initial(A) }
  init from A
  reset every 12 tokens }
  out = W_o(A(q) + B.S @ q + C(q) + initial(C)(k) + initial(A)(q))
""",
    "a condition on what the window holds": """
  memory M : linear(d_k -> d_v) at beat { key unit(k)
  value v
  update { size = norm(self, over = (in, out))
  when mean(loss(M), over = tokens) > 0.4 * size { self = self - 0.2 * grad }
  when last(<k, q>) > 0 { self = self @ (1 - 0.1 * last(outer(k, k))) } } }
  out = W_o(M(q) + norm(M, over = d_k))
""",
    "gradients that pass in part through windows": """
  memory M : mlp(d_k -> 5 -> d_v) at beat { key unit(k)
  value v
  through first_order
  update { self = self - sum(sigmoid(W_lr(x)) * grad, over = tokens)
  self = self - 0.1 * grad(at = 0.9 * self) } }
  memory N : mlp(d_k -> 5 -> d_v, bias) at beat { key unit(k)
  value v
  through stop
  update { self = self - 0.1 * grad - 0.1 * grad(at = self) } }
  weights W_lr : linear(d -> heads)
  out = W_o(M(q) + N(q))
""",
    "a window that no token changes": """
  weights g[heads] : vector(d_k) init 0.5
  weights h[heads] : vector(d_v) init 0.3
  memory M : linear(d_k -> d_v) at beat { key g
  value h
  update { self = self - 0.1 * grad + 0.01 * mean(1 + 0 * h, over = tokens) } }
  out = W_o(M(q) + M(g))
""",
    "memories that ask one another": """
  memory M : linear(d_k -> d_k) at fast { key unit(k)
  value q
  update { self = tanh(0.9 * self - 0.1 * grad) } }
  memory N : linear(d_k -> d_k) at fast { key unit(M(k))
  value k
  update { self = tanh(0.9 * self - 0.1 * grad) } }
  out = W_o(sum(M(N(q)) + prev(M)(M(k))) * v)
""",
    "slices of one stream": """
  y = concat(slice(x, 0, 2) * 2, slice(x, 2, 4) * 3, slice(x, 4, 6) * 5)
  weights U : linear(d -> d)
  out = W_o(v) + U(y) * sum(slice(x, 0, 1)) + sum(slice(x, 1, 2)) * x
""",
    "the start of a copy that a reset renews": """
  memory M : linear(d_k -> d_v) at fast { key unit(k)
  value v
  update { self = tanh(self - 0.1 * grad) } }
  memory N : linear(d_k -> d_v) at fast { key unit(k)
  value v
  update { self = tanh(self - 0.3 * grad) }
  init from M
  reset every 2 tokens }
  memory P : linear(d_k -> d_v) at fast { key unit(k)
  value initial(N)(k)
  update { self = self - 0.3 * grad } }
  out = W_o(initial(N)(q) + N(q) + P(q))
""",
}

PROBES |= {name: block(body, levels=LEVELS) for name, body in BODIES.items()}
PROBES["recent tokens in a chunk"] = block(
    """
  memory M : linear(d_k -> d_v) at fast { key unit(k)
  value v
  objective recent(1/2 * ||self(key) - value||^2, 2)
  update { self = 0.9 * self - 0.1 * grad } }
  out = W_o(M(q))
""",
    chunk="2",
)
