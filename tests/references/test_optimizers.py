"""The shipped rules as optimizers against torch's own and against the papers, written by hand.

Trajectories of 20 steps on a small problem, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nlc

RULES = nlc.compile(nlc.parse("system rules\ndims { n = 1 }"))
Values = list[nn.Parameter]
# X <- a X + (b A + c A^2) X, A = X X^T
QUINTIC = (3.4445, -4.7750, 2.0315)


def problem() -> tuple[Values, Callable[[int], Tensor]]:
    """Two layers on a regression, a batch of its own at every step."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = [nn.Parameter(0.3 * draw(*shape)) for shape in ((6, 4), (6,), (3, 6), (3,))]
    inputs, targets = draw(20, 16, 4), draw(20, 16, 3)

    def loss(step: int) -> Tensor:
        W, a, V, b = values
        out = torch.tanh(inputs[step] @ W.mT + a) @ V.mT + b
        return (out - targets[step]).square().mean()

    return values, loss


def path(make: Callable[[Values], Any], only: Iterable[int] = range(4)) -> list[Tensor]:
    """All values after each of 20 steps of an optimizer."""
    values, loss = problem()
    optimizer = make([values[i] for i in only])
    found = []
    for step in range(20):

        def closure(step: int = step) -> Tensor:
            for value in values:
                value.grad = None
            total = loss(step)
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(closure)
        found += [value.detach().clone() for value in values]
    return found


def same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-12) -> None:
    assert float((a[0] - a[-4]).abs().max()) > 1e-3, "it moves"
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        error = float((x - y).abs().max())
        assert error < tolerance, f"step {i // 4}, value {i % 4}: {error:.1e}"


TORCH: dict[str, tuple[dict[str, float], Callable[[Values], Any]]] = {
    "sgd": ({"lr": 0.1, "weight_decay": 0.2}, lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.2)),
    "momentum": ({"lr": 0.1, "beta": 0.8}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),
    "nesterov": (
        {"lr": 0.1, "beta": 0.8},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True),
    ),
    "adam": (
        {"lr": 0.1, "weight_decay": 0.2},
        lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.2),
    ),
    "adamw": ({"lr": 0.1}, lambda p: torch.optim.AdamW(p, 0.1)),
    "adagrad": ({"lr": 0.1}, lambda p: torch.optim.Adagrad(p, 0.1)),
}


@pytest.mark.parametrize("name", TORCH)
def test_the_same_as_torch(name: str) -> None:
    arguments, make = TORCH[name]
    same(path(lambda p: RULES.rule(name)(p, **arguments)), path(make))


def test_muon_is_torch_muon_but_for_its_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(p: Values) -> Any:
        return RULES.rule("muon")(p, lr=0.1)

    # torch rounds the matrix to bfloat16 before it is orthogonalised
    rounded = path(lambda p: torch.optim.Muon(p, 0.1), only=(0, 2))
    same(path(ours, only=(0, 2)), rounded, tolerance=0.2)
    monkeypatch.setattr(Tensor, "bfloat16", lambda x: x)
    exact = path(lambda p: torch.optim.Muon(p, 0.1), only=(0, 2))
    # norm + 1e-7 here, max(norm, 1e-7) there
    same(path(ours, only=(0, 2)), exact, tolerance=1e-5)


# ---- by hand -----------------------------------------------------------------------------------


class ByHand:
    """A rule as a function: (value, gradient, memory of its own, step from 1) -> new value."""

    def __init__(
        self, params: Values, rule: Callable[[Tensor, Tensor, dict[str, Any], int], Tensor]
    ):
        self.params, self.rule, self.steps = params, rule, 0
        self.kept: list[dict[str, Any]] = [{} for _ in params]

    def step(self, closure: Callable[[], Tensor]) -> None:
        closure()
        self.steps += 1
        with torch.no_grad():
            for p, kept in zip(self.params, self.kept, strict=True):
                assert p.grad is not None
                p.copy_(self.rule(p.clone(), p.grad, kept, self.steps))


def newton_schulz(G: Tensor) -> Tensor:
    """Five steps, from G / ||G||; the identity on vectors."""
    if G.ndim < 2:
        return G
    a, b, c = QUINTIC
    X = G / (G.norm() + 1e-7)
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


def m3(f: int) -> Callable[[Tensor, Tensor, dict[str, Any], int], Tensor]:
    """Algorithm 1 of Nested Learning, line by line."""
    eta, beta1, beta2, beta3, alpha, eps = 0.02, 0.9, 0.999, 0.8, 0.5, 1e-8

    def rule(theta: Tensor, g: Tensor, kept: dict[str, Any], t: int) -> Tensor:
        zero = torch.zeros_like(theta)
        M1, M2, V = (kept.get(name, zero) for name in ("M1", "M2", "V"))
        O2, seen = kept.get("O2", zero), kept.get("seen", [])
        if (t - 1) % f == 0 and t > 1:
            M2 = M2 + beta3 * sum(seen)  # line 3, the gradients of the chunk before
            O2 = newton_schulz(M2)  # line 4
            seen = []
        M1 = M1 + beta1 * g  # line 7
        V = V + beta2 * g**2  # line 8
        O1 = newton_schulz(M1)  # line 9
        kept.update(M1=M1, M2=M2, V=V, O2=O2, seen=[*seen, g.clone()])
        return theta - eta * (O1 + alpha * O2) / (V.sqrt() + eps)  # line 10

    return rule


@pytest.mark.parametrize("f", [1, 3, 7])
def test_m3_is_algorithm_1(f: int) -> None:
    ours = path(lambda p: RULES.rule("m3")(p, lr=0.02, beta3=0.8, alpha=0.5, f=f))
    same(ours, path(lambda p: ByHand(p, m3(f))), tolerance=1e-9)


def adamuon(W: Tensor, g: Tensor, kept: dict[str, Any], t: int) -> Tensor:
    M = 0.95 * kept.get("M", 0) + g
    update = newton_schulz(M.sign())
    V = 0.95 * kept.get("V", 0) + 0.05 * update**2
    kept.update(M=M, V=V)
    update = update / (V.sqrt() + 1e-8)
    rms = update.square().mean().sqrt()
    return W - 0.1 * 0.1 * W - 0.1 * 0.2 * update / rms


def rmsuon(W: Tensor, g: Tensor, kept: dict[str, Any], t: int) -> Tensor:
    m = 0.9 * kept.get("m", 0) + 0.1 * g
    v = 0.999 * kept.get("v", 0) + 0.001 * g**2
    kept.update(m=m, v=v)
    natural = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    energy = natural.norm()
    return (1 - 0.1 * 0.01) * W - 0.1 * energy * newton_schulz(natural)


def delta_momentum(W: Tensor, g: Tensor, kept: dict[str, Any], t: int) -> Tensor:
    G = g if g.ndim == 2 else g[None]
    unit = G / G.norm()
    eye = torch.eye(G.shape[1], dtype=G.dtype)
    m = kept.get("m", torch.zeros_like(G)) @ (0.9 * eye - unit.T @ unit) - 0.1 * G
    kept.update(m=m)
    return W + m.view_as(W)


@pytest.mark.parametrize("rule", [adamuon, rmsuon, delta_momentum], ids=lambda rule: rule.__name__)
def test_the_same_as_by_hand(rule: Callable[..., Tensor]) -> None:
    ours = path(lambda p: RULES.rule(rule.__name__)(p, lr=0.1))
    same(ours, path(lambda p: ByHand(p, rule)), tolerance=1e-6)


class Sharp:
    """SAM by hand, each parameter with a step uphill of its own length rho."""

    def __init__(self, params: Values, lr: float, rho: float):
        self.params, self.lr, self.rho = params, lr, rho

    def step(self, closure: Callable[[], Tensor]) -> None:
        closure()
        before = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for p in self.params:
                assert p.grad is not None
                p += self.rho * p.grad / p.grad.norm()
        closure()
        with torch.no_grad():
            for p, old in zip(self.params, before, strict=True):
                assert p.grad is not None
                p.copy_(old - self.lr * p.grad)


def test_sam_steps_uphill_first() -> None:
    ours = path(lambda p: RULES.rule("sam")(p, lr=0.1, rho=0.2))
    same(ours, path(lambda p: Sharp(p, 0.1, 0.2)))


def test_deep_momentum_is_a_network_that_learns_to_answer() -> None:
    values, loss = problem()
    optimizer = RULES.rule("deep_momentum")(values, lr=0.02)
    for step in range(6):
        for value in values:
            value.grad = None
        loss(step).backward()  # type: ignore[no-untyped-call]
        if step == 0:
            torch.manual_seed(0)
            kept = optimizer.rule(optimizer.param_groups[0]).start(values[0].detach(), 2)["m"]
            W1, W2 = (kept[f"layer{i}.weight"].requires_grad_() for i in (1, 2))
            torch.manual_seed(0)
            W = values[0].detach().clone()
        u = values[0].grad / values[0].grad.norm(dim=1, keepdim=True)
        answer = torch.nn.functional.gelu(u @ W1.T) @ W2.T
        error = 0.5 * (answer + u).square().sum() / 6
        slopes = torch.autograd.grad(error, [W1, W2])
        with torch.no_grad():
            for layer, slope in zip((W1, W2), slopes, strict=True):
                layer.copy_(0.99 * layer - 0.1 * slope)
            W = W + 0.02 * torch.nn.functional.gelu(u @ W1.T) @ W2.T
        optimizer.step()
        assert float((values[0] - W).detach().abs().max()) < 1e-12
    state = optimizer.state[values[0]]["m"]
    assert torch.allclose(state["layer2.weight"], W2.detach(), atol=1e-12)


def test_delta_gradient_descent_erases_along_the_inputs() -> None:
    """W (I - s mean k k^T) - s grad with s = lr / (1 + lr mean ||k||^2), at every token's input."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 3, bias=False).double()
    optimizer = RULES.rule("dgd")(layer, lr=0.5)
    W = layer.weight.detach().clone()
    for _ in range(4):
        k = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
        target = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
        layer.zero_grad()
        (layer(k) - target).square().mean().backward()
        grad = 2 * ((k @ W.T - target) / target.numel()).flatten(0, 1).T @ k.flatten(0, 1)
        step = 0.5 / (1 + 0.5 * k.square().sum(-1).mean())
        erased = torch.einsum("bti,btj->ij", k, k) / 10
        W = W @ (torch.eye(4, dtype=torch.float64) - step * erased) - step * grad
        optimizer.step()
        assert torch.allclose(layer.weight, W, atol=1e-12)


def test_momentum_of_nested_learning_on_its_toy_problem() -> None:
    # psi(r, th) = r^2 + k (r - th + a sin(w r))^2 from (-3.5, 2): the momentum that forgets along
    # the gradient comes down
    x = nn.Parameter(torch.tensor([-3.5, 2.0], dtype=torch.float64))
    optimizer = RULES.rule("delta_momentum")([x], lr=0.01)

    def psi() -> Tensor:
        r, th = x
        return r**2 + 2 * (r - th + 0.5 * torch.sin(3 * r)) ** 2

    first = float(psi().detach())
    for _ in range(200):
        optimizer.zero_grad()
        psi().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(psi().detach()) < 1e-2 * first and math.isfinite(float(x.detach().sum()))
