"""Verdicts on updates of every kind, what is warned about, and growth that really happens."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.compiler import Report
from nlc.ir.stability import Verdict
from nlc.library import library_folder
from nlc.source import Source

SPEC = """system example

dims {{ d = 8, heads = 2, d_k = 4, d_v = 3 }}

level fast every {period}{chunk}
level slow every 1 step

rule heavy(lr, momentum, decay) {{
  state S = 0
  S    = momentum * S - lr * grad
  self = (1 - decay) * self + S
}}

block mixer(x[d]) -> out[d] {{
  weights W_k, W_q, W_w, W_e : linear(d -> heads*d_k)
  weights W_v : linear(d -> heads*d_v)
  weights W_a, W_b, W_c : linear(d -> heads)
  weights p : vector(heads) init 0.9
  weights W_o : linear(heads*d_v -> d)
  weights W_p : linear(heads*d_k -> d)

  k = {key}
  q = unit(W_q(x))
  v = W_v(x)
  w, e = sigmoid(W_w(x)), sigmoid(W_e(x))
  a, b, c = sigmoid(W_a(x)), sigmoid(W_b(x)), sigmoid(W_c(x))
  free = W_a(x)
  {more}
  memory M[heads] : {map} at fast {{
    {pairs}
    {update}
  }}
  out = {out}
}}
"""


def spec(update: str, **changes: str) -> str:
    given = {
        "period": "1 token", "chunk": "", "key": "unit(W_k(x))", "more": "",
        "map": "linear(d_k -> d_v)", "pairs": "key k; value v", "out": "W_o(M(q))", **changes,
    }  # fmt: skip
    braces = update if update.startswith(("update", "state")) else f"update {{ {update} }}"
    return SPEC.format(update=braces, **given)


def report(update: str, **changes: str) -> Report:
    return nlc.check(nlc.parse(spec(update, **changes)))


def verdict(update: str, **changes: str) -> Verdict:
    return report(update, **changes).stability["mixer.M"]


DELTA = "self = self - b * grad"
ANY = {"key": "W_k(x)"}
PLAIN = {"pairs": "key k; value v; objective -<M(k), v>"}
VECTOR = {"map": "vector(d_k)", "pairs": "", "out": "W_p(M * q)"}
NUMBER = {"map": "scalar", "pairs": "", "out": "W_p(M * q)"}

HOLDS: list[tuple[str, dict[str, str], str]] = [
    # one write along its own key
    (DELTA, {}, "marginal"),
    ("self = self - 2 * b * grad", {}, "marginal"),
    (DELTA, {"key": "rmsnorm(W_k(x)) / 2"}, "marginal"),
    (DELTA, {"key": "softmax(W_k(x))"}, "marginal"),
    ("self = self - clamp(free, 0, 2) * grad", {}, "marginal"),
    ("self = (1 - b * outer(unit(v), unit(v))) @ self", {}, "marginal"),
    ("when b > 0.5 { self = self - b * grad }", {}, "marginal"),
    # what belongs together: a step that falls with the key's length
    ("self = self - b / (1 + b * ||k||^2) * grad", ANY, "marginal"),
    ("self = self - 1 / (b + ||k||^2) * grad", ANY, "marginal"),
    ("self = self - 2 / (b + <k, k>) * grad", ANY, "marginal"),
    # gates
    ("self = 0.9 * self + outer(v, k)", ANY, "contractive"),
    ("self = exp(-softplus(free)) * self + outer(v, k)", ANY, "contractive"),
    ("self = (a / (a + b)) * self + outer(v, k)", ANY, "contractive"),
    ("self = (1 - p^2 / (1 + p^2)) * self + outer(v, k)", ANY, "marginal"),
    ("self = lerp(self, outer(v, k), a)", ANY, "contractive"),
    ("self = where(b > 0.5, a * self, self) + outer(v, k)", ANY, "marginal"),
    ("self = self @ diag(w) + outer(v, k)", ANY, "contractive"),
    ("self = w * self + k * q", VECTOR, "contractive"),
    ("self = (1 - b / (1 + b * ||k||^2) * k^2) * self + k * q", VECTOR | ANY, "marginal"),
    ("self = a * self + ||k||^2", NUMBER | ANY, "contractive"),
    # both, in either order, at either state
    ("self = a * self; self = self - b * grad(at = self)", {}, "contractive"),
    ("self = self - b * grad; self = a * self", {}, "contractive"),
    ("self = a * self - b * grad", {}, "contractive"),
    ("self = self @ diag(w); self = self - 2 * b * grad(at = self)", {}, "contractive"),
    ("self = self - b * grad; self = self @ diag(w)", {}, "contractive"),
    ("self = self @ diag(w) - b * grad", {}, "contractive"),
    ("self = self @ (a - b * outer(k, k)) + outer(v, k)", {}, "contractive"),
    # several writes
    ("self = self - b * grad(1/2 * ||M(k) - v||^2 + 1/2 * ||M(q) - v||^2)", {}, "marginal"),
    ("self = a * self; self = self - 2 * b * grad(at = self); "
     "self = self - 2 * c * grad(1/2 * ||M(q) - v||^2, at = self)", {}, "contractive"),
    ("self = a * self; self = self - b * grad(at = self); self = c * self; "
     "self = self - b * grad(1/2 * ||M(q) - v||^2, at = self)", {}, "contractive"),
    ("repeat 3 { self = self - 2 * b * grad(at = self) }", {}, "marginal"),
    ("repeat 40 { self = self - b * grad(at = self) }", {}, "marginal"),
    ("repeat 5 { self = self - b * grad(at = self); "
     "self = self - c * grad(1/2 * ||M(q) - v||^2, at = self) }", {}, "marginal"),
    ("self = self - b / 3 * grad", {"pairs":
        "key k; value v; objective recent(1/2 * ||M(k) - v||^2, 3)"}, "marginal"),
    # several states
    ("update heavy(lr = b, momentum = a, decay = c)", PLAIN, "marginal: momentum below 1"),
    ("update heavy(lr = b, momentum = 0.9, decay = 0)", PLAIN, "marginal: momentum below 1"),
    ("update heavy(lr = b, momentum = 0.9, decay = 0.1)", PLAIN, "contractive"),
    ("state S = 0; update { S = lerp(S, self, a); self = lerp(self, S, b) }", {}, "marginal"),
    ("state S = 0; update { S = lerp(S, self, a); self = self - b * grad }", {}, "marginal"),
    # windows, and what is slower than the memory
    ("self = self - 0.5 * grad", {"period": "4 tokens"}, "marginal"),
    ("self = last(a) * self - mean(b * grad, over = tokens)", {"period": "8 tokens"},
     "contractive"),
    ("every 4 tokens { self = a * self }; self = self - b * grad(at = self)", {}, "marginal"),
    # chunks
    ("self = self - b / 4 * grad", {"chunk": ", chunk 8"}, "marginal"),
    ("self = a * self; self = self - b / 8 * grad(at = self)",
     {"chunk": ", chunk 9"}, "contractive"),
    ("update heavy(lr = b, momentum = a, decay = c)",
     {"chunk": ", chunk 8", "map": "mlp(d_k -> d_k -> d_v)"},
     "marginal: momentum below 1, given its gradients"),
    ("self = 0.9 * self - b * grad", {"chunk": ", chunk 8", "map": "mlp(d_k -> d_k -> d_v)"},
     "marginal: given its gradients"),
]  # fmt: skip

GROWS: list[tuple[str, dict[str, str], str]] = [
    (DELTA, ANY, "b * ||k||^2 has no bound"),
    (DELTA, {"key": "rmsnorm(W_k(x))"}, "b * ||k||^2 reaches 4"),
    ("self = self - 3 * b * grad", {}, "3 * b * ||k||^2 reaches 3"),
    ("self = self - softplus(free) * grad", {}, "softplus(free) * ||k||^2 has no bound"),
    ("self = a * self - 2 * b * grad", {}, "2 * b * ||k||^2 reaches 2"),
    ("self = self - 3 / (b + ||k||^2) * grad", ANY, "3 / (b + ||k||^2) * ||k||^2 reaches 3"),
    ("self = self + outer(M(k), k)", {}, "||k||^2 is added to the state"),
    ("self = (1 - b * outer(v, v)) @ self", {}, "b * ||v||^2 has no bound"),
    ("self = p * self + outer(v, k)", {}, "p has no bound"),
    ("self = 1.5 * a * self + outer(v, k)", {}, "1.5 * a reaches 1.5"),
    ("self = 1.1 * self + outer(v, k)", {}, "1.1 is beyond 1"),
    ("self = self @ diag(w - 2) + outer(v, k)", {}, "w - 2 reaches -2"),
    ("self = a * self + 2 * free * self", NUMBER, "a + 2 * free has no bound"),
    ("self = self - 2 * b * grad(1/2 * ||M(k) - v||^2 + 1/2 * ||M(q) - v||^2)", {},
     "2 * b * ||q||^2 reaches 2, and the 2 writes of one token 4"),
    ("self = self - b * grad(at = self); "
     "self = self - 3 * c * grad(1/2 * ||M(q) - v||^2, at = self)", {},
     "3 * c * ||q||^2 reaches 3"),
    ("repeat 3 { self = self - 3 * b * grad(at = self) }", {}, "3 * b * ||k||^2 reaches 3"),
    ("self = self - sum(b * grad, over = tokens)", {"period": "4 tokens"},
     "4 * b * ||k||^2 reaches 4"),
    ("self = self @ (diag(w) - 2 * outer(k, e * k))", {},
     "reads along 2 * k, writes along e * k"),
    ("update heavy(lr = b, momentum = 1, decay = 0)", PLAIN,
     "S need not fade, and goes into M at every token"),
    ("update heavy(lr = b, momentum = p, decay = 0)", PLAIN, "p has no bound"),
    ("update heavy(lr = 4 * b, momentum = a, decay = c)", {},
     "M and S drive each other, and 4 * b * ||k||^2 reaches 4"),
    (DELTA, {"chunk": ", chunk 4"}, "b * ||k||^2 reaches 1, and 4 tokens read one state"),
]  # fmt: skip

NOT_PROVED: list[tuple[str, dict[str, str], str]] = [
    ("self = self @ (diag(w) - outer(k, e * k)) + outer(v, k)", {},
     "can grow: reads along k, writes along e * k"),
    ("self = self @ diag(w); self = self + outer(v - M(e * k), k)", {},
     "can grow: reads along w * e * k, writes along k"),
    ("update heavy(lr = b, momentum = a, decay = c)", {}, "can grow: M and S drive each other"),
    ("update heavy(lr = free, momentum = 0.9, decay = a)",
     {"pairs": "key k; value v; objective -<M(k), v>"}, "marginal: momentum below 1"),
    ("self = self @ (a - b * outer(k, k)) - b * grad", {"chunk": ", chunk 8"},
     "can grow: 8 writes read the state of their chunk's start"),
    ("self = self @ diag(w); self = self - b * grad(at = self); self = self @ diag(e); "
     "self = self - b * grad(1/2 * ||M(q) - v||^2, at = self)", {},
     "can grow: no bound is known for the writes of one token"),
    ("self = tanh(self - b * grad)", {},
     "unknown: `tanh` of the running state is not linear in it"),
    ("state n[] = 0; update { n = n + 1; self = self - b * grad }", {},
     "unknown: its state `n` has another shape"),
    (DELTA, {"more": "u = prev(M)(q)", "pairs": "key k; value u"},
     "unknown: `u` is made from its own state"),
    (DELTA, {"more": "u = prev(M)(q); z = shift(2 * u)", "pairs": "key k; value z"},
     "unknown: `z` is made from its own state"),
    (DELTA, {"more": "memory N : linear(d_k -> d_v) at fast { key k; value prev(M)(k); "
             "update sgd(lr = 0.1) }", "pairs": "key k; value N(k)"},
     "unknown: `N` is made from its own state"),
]  # fmt: skip


@pytest.mark.parametrize(("update", "changes", "text"), HOLDS)
def test_what_is_proved(update: str, changes: dict[str, str], text: str) -> None:
    found = report(update, **changes)
    assert str(found.stability["mixer.M"]) == text
    assert [d.title for d in found.diagnostics if d.code == "NL0906"] == []


@pytest.mark.parametrize(("update", "changes", "term"), GROWS)
def test_what_may_grow_is_warned_about(update: str, changes: dict[str, str], term: str) -> None:
    found = report(update, **changes)
    assert str(found.stability["mixer.M"]) == f"can grow: {term}"
    (warned,) = [d for d in found.diagnostics if d.code == "NL0906"]
    assert (warned.severity, warned.labels[0].text) == ("warning", term) and warned.hint


@pytest.mark.parametrize(("update", "changes", "text"), NOT_PROVED)
def test_what_is_not_proved_is_no_warning(update: str, changes: dict[str, str], text: str) -> None:
    found = report(update, **changes)
    assert str(found.stability["mixer.M"]) == text
    assert [d.title for d in found.diagnostics if d.code == "NL0906"] == []


def test_a_warning_points_at_the_update_and_at_what_has_no_bound() -> None:
    (warned,) = [d for d in report(DELTA, **ANY).diagnostics if d.code == "NL0906"]
    first, second = warned.labels
    assert (first.primary, first.span.text) == (True, "self = self - b * grad")
    assert (second.span.text, second.text) == ("k = W_k(x)", "`k` has no bound")
    # the rule of another file is no place of this one: the memory is
    (warned,) = [d for d in report("update sgd(lr = 3)").diagnostics if d.code == "NL0906"]
    assert warned.labels[0].span.text == "M"


def test_a_rate_is_told_where_there_is_one() -> None:
    assert verdict("self = 0.9 * self + outer(v, k)").rate == 0.9
    assert verdict("self = a / 2 * self + outer(v, k)").rate == 0.5
    assert verdict("self = a * self + outer(v, k)").rate is None
    # two states have none in the plain norm
    assert verdict("update heavy(lr = b, momentum = 0.9, decay = 0.1)", **PLAIN).rate is None


def test_what_is_taken_as_given_is_told() -> None:
    layers = {"map": "mlp(d_k -> d_k -> d_v)", "chunk": ", chunk 8"}
    assert verdict(DELTA, **layers).given == "gradients"
    assert verdict("self = self - b / 8 * grad", chunk=", chunk 8").given == ""


def test_attention_and_weights_have_no_verdict() -> None:
    system = nlc.load("specs/transformer.nl")
    assert nlc.check(system).stability == {}


SHIPPED = {
    "comba": "contractive",
    "deltanet": "marginal",
    "gated_deltanet": "contractive",
    "gated_deltaproduct": "contractive",
    "gated_oja": "contractive",
    "gdn2": "can grow: reads along alpha * e * k, writes along k",
    "gla": "contractive",
    "hybrid": "contractive",
    "kda": "contractive",
    "linear_attention": "marginal",
    "longhorn": "marginal",
    "mamba2": "contractive",
    "mesanet": "contractive",
    "omega": "contractive",
    "retnet": "contractive",
    "rwkv7": "can grow: reads along kappa, writes along a * kappa",
    "titans_linear": "can grow: M and S drive each other",
    "ttt_linear": "marginal: given its gradients",
    "ttt_mlp": "marginal: given its gradients",
    "titans_lmm": "marginal: momentum below 1, given its gradients",
    "titans_mag": "marginal: momentum below 1, given its gradients",
    "titans_mal": "marginal: momentum below 1, given its gradients",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_systems(name: str) -> None:
    found = nlc.check(nlc.load(library_folder() / f"{name}.nl"))
    assert {str(v) for v in found.stability.values()} == {SHIPPED[name]}
    assert found.diagnostics == ()


# ---- what can grow does grow -------------------------------------------------------------------


def growth(transitions: list[Tensor]) -> float:
    """What a sequence of transitions multiplies a state by, for each token, if it is repeated."""
    product = reduce(torch.matmul, transitions)
    return float(torch.linalg.eigvals(product).abs().max()) ** (1 / len(transitions))


def climb(transition: Callable[[Tensor], Tensor], entries: int, tokens: int) -> float:
    """The greatest growth that gradient ascent finds from a few starts."""
    best = 0.0
    for seed in range(6):
        torch.manual_seed(seed)
        rows = (2 * torch.randn(tokens, entries, dtype=torch.float64)).requires_grad_()
        optimizer = torch.optim.Adam([rows], lr=0.2)
        for _ in range(100):
            product = reduce(torch.matmul, [transition(row) for row in rows])
            optimizer.zero_grad()
            (-torch.linalg.matrix_norm(torch.linalg.matrix_power(product, 16), 2).log()).backward()
            optimizer.step()
        best = max(best, growth([transition(row) for row in rows.detach()]))
        if best > 1.05:
            break
    return best


def _rwkv7(row: Tensor) -> Tensor:
    kappa, a = row[:3] / row[:3].norm(), torch.sigmoid(row[3:6])
    w = torch.exp(-0.606531 * torch.sigmoid(row[6:9]))
    return torch.diag(w) - torch.outer(kappa, a * kappa)


def _gdn2(row: Tensor) -> Tensor:
    k, e, alpha = row[:3] / row[:3].norm(), torch.sigmoid(row[3:6]), torch.sigmoid(row[6:9])
    return torch.diag(alpha) @ (torch.eye(3, dtype=row.dtype) - torch.outer(e * k, k))


def _titans(row: Tensor) -> Tensor:
    keep, eta, theta = torch.sigmoid(2 * row)
    return torch.stack([torch.stack([keep - theta, -theta]), torch.stack([eta, eta])])


@pytest.mark.parametrize(("transition", "entries"), [(_rwkv7, 9), (_gdn2, 9), (_titans, 3)])
def test_sequences_exist_that_make_these_states_grow(
    transition: Callable[[Tensor], Tensor], entries: int
) -> None:
    assert climb(transition, entries, tokens=2) > 1.05
    # but no single token does
    for seed in range(200):
        torch.manual_seed(seed)
        row = 4 * torch.randn(entries, dtype=torch.float64)
        assert growth([transition(row)]) <= 1 + 1e-9


def test_the_place_of_a_verdict_is_where_the_update_stands(tmp_path: Path) -> None:
    place = verdict("self = a * self; self = self - b * grad(at = self)").place
    assert place is not None and isinstance(place.source, Source)
    assert place.text == "self = self - b * grad(at = self)"
