"""Specs that exercise one thing each, without a loop of their own: for comparing executions."""

from __future__ import annotations

from tests.references.specs import block

BODIES: dict[str, str] = {
    "attention over what a memory answers that moves token by token": """
  memory M : linear(d_k -> d_v) at fast { key unit(k)
  value v
  update { self = tanh(self) - 0.4 * grad }
  init learned }
  memory A : kernel(softmax) at now { key k
  value M(q) - 0.5 * prev(M)(k) }
  out = W_o(A(q) + M(k))
""",
    "bare matrix read": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = self - 0.1 * grad } }
  out = W_o(M @ q + prev(M) @ k)
""",
    "parts": """
  memory M : mlp(d_k -> 5 -> d_v) at fast { key k
  value v
  update { self.layer1 = self.layer1 - 0.1*grad.layer1
  self.layer2 = 0.9*self.layer2 - 0.1*grad.layer2 } }
  out = W_o(M.layer2 @ gelu(M.layer1 @ q))
""",
    "a product on the key side of layers": """
  memory M : mlp(d_k -> 5 -> d_v) at fast { key k
  value v
  update { self = self @ (0.9 - 0.1*outer(k,k)) - 0.1*grad } }
  out = W_o(M(q))
""",
    "a product on the value side of layers": """
  memory M : mlp(d_k -> 5 -> d_v) at fast { key k
  value v
  update { self = (0.9 - 0.1*outer(v,v)) @ self - 0.1*grad } }
  out = W_o(M(q))
""",
    "scalar memory": """
  memory n[heads] : scalar at fast { update { self = 0.9*self + ||k|| } }
  out = W_o(n * v)
""",
    "scalar weights per head": """
  weights g[heads] : scalar init 1
  out = W_o(g * v)
""",
    "vector heads": """
  weights u : vector(heads, d_v) init 0.5
  out = W_o(u * v)
""",
    "matrix weights": """
  weights A : matrix(d_v, d_k) init 0.1
  out = W_o(A @ k)
""",
    "weights with leading axes": """
  weights L[heads] : linear(d_k -> d_v, bias)
  out = W_o(L(k))
""",
    "adam inside": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  state m = 0
  state s = 0
  state n[] = 0
  update { n = n + 1
  m = 0.9*m + 0.1*grad
  s = 0.99*s + 0.01*grad^2
  self = self - 0.1*(m/(1-0.9^n))/(sqrt(s/(1-0.99^n)) + 1e-8) } }
  out = W_o(M(q))
""",
    "shampoo": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  state L[d_v, d_v] = 0
  update { L = 0.9*L + grad @ transpose(grad)
  self = self - 0.1*solve(L + 0.1, grad) } }
  out = W_o(M(q))
""",
    "a state shaped by out": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  state L[out, out] = 0
  update { L = 0.9*L + grad @ transpose(grad)
  self = self - 0.1*solve(L + 0.1, grad) } }
  out = W_o(M(q))
""",
    "eig": """
  memory G[heads] : matrix(d_k, d_k) at fast { update { self = 0.9*self + outer(k,k) } }
  Q, w = eig(G)
  out = W_o(v * sum(w))
""",
    "norm states": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = self - 0.1*grad
  self = self / max(norm(self, over = (in, out)), 1) }
  init learned }
  out = W_o(M(q))
""",
    "unit rows": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = unit(self - 0.1*grad, over = in) }
  init learned }
  out = W_o(M(q))
""",
    "softmax state": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = softmax(0.9*log(self) - 0.1*grad, over = in) }
  init 0.5 }
  out = W_o(M(q))
""",
    "init e": """
  weights A : linear(d_k -> d_v)
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = self - 0.1 * grad }
  init 0.5 * A }
  out = W_o(M(q))
""",
    "square diag": """
  memory S[heads] : linear(d_k -> d_k) at fast {
    update { self = diag(sigmoid(k)) @ self @ diag(sigmoid(q)) + outer(k, q) }
  }
  weights W_2 : linear(heads*d_k -> d)
  out = W_2(S(q))
""",
    "lp": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  objective lp(M(key) - value, 3)
  update { self = self - 0.1 * grad } }
  out = W_o(M(q))
""",
    "cross entropy as objective": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  objective logsumexp(M(k)) - <M(k), softmax(v)>
  update { self = self - 0.1 * grad } }
  out = W_o(M(q))
""",
    "grad of e": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = self - 0.1*grad(-<self(q), v>) - 0.1*grad(||self(k) - v||^2, at = 0.5*self) } }
  out = W_o(M(q))
""",
    "concat and slice": """
  z = concat(slice(q, 0, 2), slice(k, 2, 4))
  memory M : linear(d_k -> d_v) at fast { key z
  value v
  update { self = self - 0.1 * grad } }
  out = W_o(M(z))
""",
    "no heads": """
  weights W_s : linear(d -> d_k)
  weights W_t : linear(d -> d_v)
  memory M : linear(d_k -> d_v) at fast { key W_s(x)
  value W_t(x)
  update { self = self - 0.1 * grad } }
  weights W_2 : linear(d_v -> d)
  out = W_2(M(W_s(x)))
""",
    "no heads many queries": """
  weights W_s : linear(d -> d_k)
  weights W_t : linear(d -> d_v)
  memory M : linear(d_k -> d_v) at fast { key W_s(x)
  value W_t(x)
  update { self = self - 0.1 * grad } }
  out = W_o(M(q))
""",
    "two names": """
  memory A, B : linear(d_k -> d_v) at fast { key k
  value v
  update { self = self - 0.1 * grad } }
  out = W_o(A(q) + B(k))
""",
    "a gate for each value channel": """
  weights W_g : linear(d -> heads*d_v, bias)
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = diag(sigmoid(W_g(x))) @ self - 0.1*grad } }
  out = W_o(M(q))
""",
    "a gate for each key channel": """
  weights W_g : linear(d -> heads*d_k, bias)
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = sigmoid(W_g(x)) * self - 0.1*grad } }
  out = W_o(M(q))
""",
    "kernel heads": """
  memory A : kernel(softmax) at now { key k
  value v }
  out = W_o(A(q))
""",
    "kernel shared kv": """
  weights W_s : linear(d -> d_k)
  weights W_t : linear(d -> d_v)
  memory A : kernel(softmax) at now { key W_s(x)
  value W_t(x) }
  out = W_o(A(q))
""",
    "memories read with a parameter": """
  weights probe : vector(d_k) init 0.3
  memory A : kernel(softmax) at now { key k
  value v }
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { self = 0.9 * self - 0.1 * grad } }
  memory N : mlp(d_k -> 5 -> d_v) at fast { key k
  value v
  update { self = self - 0.1 * grad } }
  out = W_o(A(probe) + M(probe) + prev(N)(probe) + N(q))
""",
    "position": """
  out = W_o(v * exp(-position/10) + cos(position))
""",
    "rotate": """
  weights f : vector(2) init 0.3
  out = W_o(v) + 0*sum(sum(rotate(q, position * f)))
""",
    "surprise when": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { when loss(M) > 1 { self = self - 0.1 * grad } } }
  out = W_o(M(q))
""",
    "read of other's state": """
  memory A : linear(d_k -> d_v) at fast { key k
  value v
  update { self = self - 0.1 * grad } }
  memory B : linear(d_k -> d_v) at fast { key k
  value v
  update { self = 0.5 * self + 0.5 * A - 0.1*grad } }
  out = W_o(B(q))
""",
    "objective reads other": """
  memory A : linear(d_k -> d_v) at fast { key k
  value v
  update { self = self - 0.1 * grad } }
  memory B : linear(d_k -> d_v) at fast { key k
  objective ||self(key) - A(q)||^2
  update { self = self - 0.1 * grad } }
  out = W_o(B(q))
""",
    "lora": """
  memory M : lora(d_k -> 2 -> d_v, act = tanh, bias) at fast { key k
  value v
  update { self = self - 0.1 * grad } }
  out = W_o(M(q))
""",
    "three layers": """
  memory M : mlp(d_k -> 5 -> 5 -> d_v, act = relu) at fast { key k
  value v
  update { self = self - 0.1 * grad } }
  out = W_o(M(q))
""",
    "logsumexp over heads": """
  out = W_o(v * logsumexp(q, over = d_k)) + 0 * sum(logsumexp(q, over = heads))
""",
    "stop": """
  out = W_o(stop(v) + v)
""",
    "a local name": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { e = self(k) - v
  self = self - 0.1*outer(where(||e|| < 0.5, e, 0.5*unit(e)), k) } }
  out = W_o(M(q))
""",
    "table": """
  weights e : table(7 -> d)
  out = W_o(v) + e(clamp(position, 0, 6))
""",
    "a learned start through stop": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  through stop
  update { self = self - 0.1 * grad }
  init learned }
  out = W_o(M(q))
""",
    "an mlp as the only map": """
  weights S : mlp(d_k -> 3 -> d_v)
  out = W_o(S(k))
""",
    "weights of a number": """
  weights S : linear(1 -> d_v, bias)
  weights L[heads] : mlp(1 -> 3 -> d_v)
  out = W_o(S(sum(k)) + L(<k, q>))
""",
    "a memory of a number": """
  memory M : linear(1 -> d_v) at fast { key sum(k)
  value v
  update { self = 0.9 * self - 0.1 * grad } }
  out = W_o(M(sum(q)) + prev(M)(0.5))
""",
    "a number of a number": """
  memory M : linear(1 -> 1, bias) at fast { key sum(k)
  value sum(v)
  update { self = tanh(self - 0.1 * grad) } }
  out = W_o(M(sum(q)) * v)
""",
    "an mlp of a number": """
  memory M : mlp(1 -> 3 -> d_v) at fast { key sum(k)
  value v
  update momentum(lr = 0.1, beta = 0.5) }
  out = W_o(M(sum(q)))
""",
    "a past without a gradient": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  objective 1/2 * ||M(k) - v||^2 + sum(shift(v))
  update { self = 0.9 * self - 0.1 * grad } }
  out = W_o(M(q))
""",
    "a convolution without a memory": """
  weights C : conv(d, width = 3)
  out = C(x) + W_o(v)
""",
    "what is the same in every row": """
  weights p : vector(d) init 0.5
  weights C : conv(d, width = 3)
  out = W_o(v) + shift(p) * C(index(d)) + shift(position * p, 2) + C(sin(position * p))
""",
    "a learned value": """
  weights p : vector(heads, d_v) init 0.5
  memory M : linear(d_k -> d_v) at fast { key unit(k)
  value p
  update sgd(lr = 0.5) }
  out = W_o(M(q))
""",
    "a learned key": """
  weights p : vector(heads, d_k) init 0.5
  memory M : linear(d_k -> d_v) at fast { key p
  value v
  update { self = tanh(self - 0.1 * grad) } }
  out = W_o(M(p) + M(q))
""",
    "pairs of places": """
  weights p : vector(heads, d_k) init 0.5
  weights r : vector(heads, d_v) init 0.5
  memory A : kernel(softmax) at now { key p + sin(position)
  value v }
  memory B : kernel(softmax, window = 2) at now { key k
  value outer(1 + index(heads), index(d_v)) }
  memory C : kernel(softmax) at now { key outer(index(heads), index(d_k))
  value r }
  out = W_o(A(p) + B(q) + C(q))
""",
    "a past that no update asks for": """
  memory M : linear(d_k -> d_v) at fast { key shift(k)
  value v
  update { self = 0.9 * self }
  init learned }
  out = W_o(M(q))
""",
}
LONG = {
    "more equations than Python recurses": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  update { repeat 150 { self = tanh(self - 0.01 * grad(at = self)) } } }
  out = W_o(M(q))
""",
}
CHUNKED: dict[str, str] = {
    "a chunk start that no gradient needs": """
  memory M : linear(d_k -> d_v) at fast { key k
  value v
  objective -<M(k), v>
  update { self = 0.9 * self - 0.1 * grad } }
  out = W_o(M(q))
""",
}

PROBES = {name: block(body) for name, body in BODIES.items()}
PROBES |= {name: block(body) for name, body in LONG.items()}
PROBES |= {name: block(body, chunk="3") for name, body in CHUNKED.items()}
