"""Every kind of rule as an optimizer equals the interpreter, for matrices, vectors, numbers and
copies of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nlc.codegen.optimizer import emit_optimizers

import nlc
from nlc.library import shipped_rules
from nlc.optimizers import rule_as_optimizer
from tests.unit.codegen.optimizers import SHAPES, agree, system_of

LIBRARY = {
    "sgd": {"lr": 0.1, "weight_decay": 0.3},
    "momentum": {"lr": 0.1},
    "nesterov": {"lr": 0.1},
    "titans": {"lr": 0.1, "momentum": 0.7, "decay": 0.05},
    "gated_delta": {"lr": 0.1, "gate": 0.9},
    "adam": {"lr": 0.1, "weight_decay": 0.2},
    "adamw": {"lr": 0.1},
    "adagrad": {"lr": 0.1},
    "muon": {"lr": 0.1},
    "adamuon": {"lr": 0.1},
    "rmsuon": {"lr": 0.1},
    "sam": {"lr": 0.1, "rho": 0.3},
    "delta_momentum": {"lr": 0.1},
    "deep_momentum": {"lr": 0.1},
    "m3": {"lr": 0.1, "f": 3},
}


# rules that use a map's input
KEYED = {"dgd": {"lr": 0.1}}
INPUTS = ("a", "b", "c")
WITHOUT_COPIES = {n: s for n, s in SHAPES.items() if n != "g"}


def test_every_shipped_rule_is_here() -> None:
    assert set(LIBRARY) | set(KEYED) == set(shipped_rules())


@pytest.mark.parametrize("name", KEYED)
def test_the_library_with_keys(name: str) -> None:
    agree("", name, WITHOUT_COPIES, keyed=INPUTS, **KEYED[name])


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library(name: str) -> None:
    agree("", name, **LIBRARY[name])


RULES = {
    "elementwise": """
rule r(lr, b = 0.9) {
  state m = 0.5
  u    = tanh(grad) * sigmoid(self) - silu(grad) / (1 + abs(m))
  m    = b * m + (1 - b) * u - m * grad
  v    = where(m > 0, m, -2 * m) + max(m, grad) + min(u, 0.1) + relu(u) + softplus(m) + gelu(u)
  self = self - lr * (v * sign(grad) + exp(-abs(m)) + sqrt(m^2 + 1) + m^3 + 2 + lerp(u, m, b))
  self = -self + 2 * self * exp(-m^2)
}""",
    "aliases": """
rule r(lr) {
  state m = 0
  state k = self
  old  = self
  m    = old
  self = self - lr * grad
  old  = old + self
  k, m = m, k - old
  self = m + old - 2 * self + k * k
}""",
    "numbers": """
rule r(lr, warm = 4, b = 0.5) {
  state n[] = 0
  state p[] = 1
  n = n + 1
  p = p * b
  rate = lr * min(1, n / warm) * where(n > 3, 0.5, 1)
  when n >= 5 { rate = rate * exp(-p) }
  self = self - rate / (1 - p) * grad + abs(rate - 1) * 0.01
}""",
    "norms": """
rule r(lr) {
  state s[] = 0
  state L[out, out] = 0
  state R[in, in] = 0.1
  state q[in] = 1
  s    = 0.9 * s + norm(grad, over = (in, out))
  L    = L + grad @ transpose(grad)
  R    = 0.5 * R + transpose(grad) @ grad
  q    = 0.5 * q + sum(grad^2, over = out)
  u    = unit(grad, over = in) + rmsnorm(self, over = (in, out)) - mean(grad, over = out)
  self = self - lr * (solve(L + 1, grad) + u / (1 + s)) - 0.01 * grad @ R - lr * q * self
  self = self + lr * layernorm(grad) + 0.1 * softmax(self) * in / out
}""",
    "eigenvectors": """
rule r(lr) {
  state L[out, out] = 0
  L = L + grad @ transpose(grad) + diag(0.1 * sum(grad^2, over = in))
  Q, w = eig(L)
  self = self - lr * (Q @ (transpose(Q) @ grad)) / (1 + sum(w))
}""",
    "exchanges in branches": """
rule r(lr, f = 2) {
  state m = 0.1
  state k = self
  every f steps { m, k = k, 0.1 * grad - m }
  when norm(grad, over = (in, out)) > 1 { m, k = k, -m }
  self = self - lr * tanh(m)
}""",
    "conditions": """
rule r(lr, most = 1.5) {
  state m = 0
  state n[] = 0
  size = norm(grad, over = (in, out))
  m = grad
  when size > most {
    m = m * most / size
    n = n + 1
    x = m * 2
    self = self - 0.01 * x
  }
  repeat 3 { m = 0.5 * m + 0.1 * grad * n }
  self = self - lr * m
}""",
    "slower": """
rule r(lr, f = 2) {
  state s = 0
  state t = 0
  state n[] = 0
  every f steps {
    n = n + 1
    s = 0.5 * s + grad
    every 6 steps { t = t + grad / n }
  }
  self = self - lr * (grad + s + t)
  every 3 steps { self = self - lr * sign(s) }
}""",
    "elsewhere": """
rule r(lr, rho = 0.3) {
  state m = 0
  m = 0.9 * m + grad
  a = grad(at = self + rho * m)
  repeat 2 { self = self - lr * grad(at = self - rho * a) - 0.01 * a }
  self = self + 0.1 * (initial(self) - self) + 0.05 * prev(self) + 0.01 * prev(m)
}""",
    "averages": """
rule r(lr, b = 0.3) {
  state avg = self
  state n[] = 0
  n    = n + 1
  self = self - lr * grad
  avg  = lerp(avg, self, b)
  eval = avg / (1 + 0.1 * n)
}""",
    "averages of the present": """
rule r(lr) {
  state m = 0
  m    = 0.5 * m + grad
  eval = self - m - grad
  self = self - lr * m
}""",
    "objectives": """
rule r(lr) {
  state m = 0
  m    = 0.5 * m + grad
  pull = grad(sum(self^4, over = (in, out)) + mean(self * m, over = (in, out)))
  ends = grad(lp(self - 1, 3, over = (in, out)), at = 0.5 * self)
  self = self - lr * (grad + 0.1 * pull + 0.1 * ends)
}""",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in RULES if n != "eigenvectors"])
def test_features(name: str) -> None:
    agree(RULES[name], "r", lr=0.1)


def test_eigenvectors() -> None:
    shapes = {n: s for n, s in SHAPES.items() if len(s) > 1 and n != "g"}
    agree(RULES["eigenvectors"], "r", shapes, tolerance=1e-8, lr=0.1)


MEMORIES = {
    "deep": """
rule r(lr, rate = 0.1) {
  memory m : mlp(in -> 3 -> in, bias, residual, norm) {
    key       unit(grad, over = in)
    value     -grad
    state     S = 0
    update {
      S    = 0.5 * S - rate * grad
      self = self + S
    }
  }
  self = self + lr * m(unit(grad, over = in)) + 0.1 * lr * prev(m)(self)
}""",
    "shaped like the parameter": """
rule r(lr) {
  memory u : like self {
    objective sum((self - grad)^2, over = (in, out)) + 0.1 * sum(self^4, over = (in, out))
    update    nesterov(lr = 0.1)
  }
  memory k : like self {
    objective sum(self * u, over = (in, out)) / (1 + sum(self^2, over = (in, out)))
    update {
      self = 0.9 * self + 0.1 * initial(self)
      self = self - 0.1 * grad(at = self) - 0.1 * grad
    }
    init 0.3
  }
  self = self - lr * k
  every 2 steps { self = self - lr * u }
}""",
    "sizes": """
rule scaled(lr) { self = self - lr * sqrt(max(1, out / in)) / in * newton_schulz(grad) }
rule r(lr) {
  memory m : mlp(in -> 2*in -> out) {
    key       unit(grad, over = in)
    objective 1/2 * ||self(key)||^2 / out + sum(self(key)) * in / 10
    update    scaled(lr = 0.1)
  }
  memory k : linear(in -> 3*in, bias) {
    key       grad
    objective sum(self(key)^3) / (in * out)
    update    { self = 0.5 * self - grad / out }
    init      0.2
  }
  self = self - lr * (grad + mean(m(grad), over = out)) + 0.01 * sum(k(grad))
  self = self - lr * grad(sum(self^2, over = (in, out)) / out)
}""",
    "an associative memory": """
rule r(lr) {
  memory m : linear(in -> out, bias) {
    key    unit(sum(grad, over = out))
    value  sum(grad, over = in) / in
    update gated_delta(lr = 0.5, gate = 0.9)
  }
  memory g : glu(in -> 2*in -> 1) {
    key       self
    value     mean(grad, over = in)
    objective 1/2 * sum((self(key) - value)^2) + 0.01 * sum(stop(key) * key)
    update sgd(lr = 0.1)
  }
  memory z : lora(in -> 2 -> in) { key grad; value self; update sgd(lr = 0.1); init 0.1 }
  e    = outer(m(unit(sum(grad, over = out))), sum(z(grad), over = out))
  self = self - lr * grad - 0.1 * lr * e
  self = self + 0.01 * g(grad)
}""",
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORIES)
def test_memories_inside(name: str) -> None:
    agree(MEMORIES[name], "r", lr=0.1)


TOKENS = {
    "keys": """
rule r(lr) {
  state K[in, in] = 0
  K    = 0.5 * K + sum(outer(unit(key), key), over = tokens)
  K    = K - mean(2 * outer(key, key), over = tokens)
  k    = mean(key, over = tokens) / 2
  size = mean(<key, key> + 1, over = tokens) + sum(tanh(||key||), over = tokens)
  u    = sum(tanh(self @ key), over = tokens)
  u    = u - sum(self @ key * 0.1, over = tokens)
  self = self @ (1 - lr * K) - lr * grad / size + 0.01 * outer(u, k)
  self = self + 0.001 * sum(size, over = tokens)
}""",
    "keys in slower blocks": """
rule r(lr) {
  state k[in] = 0
  k    = k + sum(key * max(key, 0), over = tokens)
  every 2 steps { self = self - lr * diag(0 * sum(grad, over = in)) @ self - lr * grad / (1 + k) }
}""",
}


@pytest.mark.parametrize("name", TOKENS)
def test_the_inputs_of_maps(name: str) -> None:
    agree(TOKENS[name], "r", WITHOUT_COPIES, keyed=INPUTS, lr=0.1)


def test_all_texts_are_formatted_and_clean(tmp_path: Path) -> None:
    for name, text in {**RULES, **MEMORIES, **TOKENS, "library": ""}.items():
        system = system_of(text)
        rules = [rule_as_optimizer(system, r) for r in system.rules or shipped_rules().values()]
        rules = [rule for rule in rules if rule.motions]
        for kernels in (False, True):
            file = tmp_path / f"{name.replace(' ', '_')}{'_kernels' if kernels else ''}.py"
            file.write_text(emit_optimizers(system, rules, kernels))
    settings = str(Path(nlc.__file__).parents[1] / "pyproject.toml")
    for words in (["format", "--diff"], ["check", "--output-format", "concise"]):
        command = [sys.executable, "-m", "ruff", *words, "--config", settings, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:]


def test_rules_with_kernels_run_as_pytorch_on_a_cpu() -> None:
    pytest.importorskip("triton")
    found = []
    for target in ("triton", "torch"):
        torch.manual_seed(0)
        p = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (5,), ())]
        optimizer = nlc.compile(system_of(""), target=target).rule("adamw")(p)
        if target == "triton":
            assert "Fused" in [c.__name__ for c in type(optimizer).__mro__]
        for _ in range(3):
            for x in p:
                x.grad = torch.randn_like(x)
            optimizer.step()
        found.append([x.detach() for x in p])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
