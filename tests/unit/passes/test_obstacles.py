"""What keeps an update from running over many tokens at once, and that the advice is true.

Each obstacle has a memory that meets it and one changed as its hint says, which runs in parallel.
"""

from __future__ import annotations

import pytest

import nlc
from nlc.passes.obstacles import OBSTACLES, obstacle
from nlc.passes.plan import plan
from tests.references.specs import block
from tests.unit.codegen.agree import agree

WEIGHTS = """
  weights G : matrix(d_v, d_k)
  weights K : matrix(d_k, d_k)
  weights W : linear(d_k -> d_v)
  weights w_k : vector(d_k)
  weights B : linear(d_k -> d_v)
  weights w_v : vector(d_v)
"""


def memory(update: str, clauses: str = "", map: str = "linear(d_k -> d_v)", more: str = "",
           out: str = "M(q)") -> str:  # fmt: skip
    return block(f"""{WEIGHTS}{more}
  memory M[heads] : {map} at fast {{
    {clauses}
    update {{ {update} }}
  }}
  out = W_o({out})
""")


KEYED = "key k; value v; "
STEP = "self = self - 0.1 * grad"
COUNT = "memory n[heads] : scalar at fast { update { n = n + 1 } }\n"
A = """memory A[heads] : linear(d_k -> d_k) at fast {
    update { self = tanh(self + outer(k, k)) }
  }
"""
ROUTES = "weights W_r : linear(d -> heads*n)\n"
EXAMPLES: dict[str, tuple[str, str]] = {
    "slots": (
        memory(STEP, f"{KEYED}slots n; route W_r(x); select top_k(1)", more=ROUTES),
        memory(STEP, f"{KEYED}slots n; route W_r(x); select top_k(3)", more=ROUTES),
    ),
    "operation": (
        memory("self = tanh(self + outer(v, k))"),
        memory("self = self + outer(v, k)", out="tanh(M(q))"),
    ),
    "orthogonal": (
        memory("self = self + newton_schulz(self + outer(v, k))"),
        memory("self = self + outer(v, k)"),
    ),
    "writes": (
        memory("repeat 65 { self = self - 0.01 * grad(at = self) }", KEYED),
        memory("repeat 2 { self = self - 0.01 * grad(at = self) }", KEYED),
    ),
    "objective": (
        memory(STEP, KEYED + "objective huber(self(key) - value, 0.3)"),
        memory(STEP, KEYED + "objective 1/2 * ||self(key) - value||^2"),
    ),
    "product": (
        memory("self = self - 0.1 * outer((self @ k) * (self @ q), k)"),
        memory("self = self - 0.1 * outer(self @ k, k)"),
    ),
    "divisor": (
        memory("self = self + outer(v / (5 + self @ k), k)"),
        memory(
            "self = self + outer(v, k)", out="M(q) / max(<z, q>, 1)",
            more="memory z[heads] : vector(d_k) at fast { update { z = z + k } }\n",
        ),
    ),
    "condition": (
        memory("self = where(self > 0.5, 0, self) + outer(v, k)"),
        memory("self = where(<k, k> > 1, self, self + outer(v, k))"),
    ),
    "hadamard": (
        memory("self = G * self + outer(v, k)"),
        memory("self = self @ diag(w_k) + outer(v, k)"),
    ),
    "full matrix": (
        memory("self = self @ K + outer(v, k)"),
        memory("self = self @ (diag(w_k) - outer(k, k)) + outer(v, k)"),
    ),
    "reduced": (
        memory("self = self - 0.1 * <self @ k, v> * outer(v, k)"),
        memory("self = self - 0.1 * <v, v> * outer(v, k)"),
    ),
    "both sides": (
        memory("self = diag(w_v) @ self @ diag(w_k) + outer(v, k)"),
        memory("self = diag(w_v) @ self + outer(v, k)"),
    ),
    "matrix added": (
        memory("self = 0.9 * self + <k, k> * G"),
        memory("self = 0.9 * self + <k, k> * outer(v, k)"),
    ),
    "other state": (
        memory("n = n + 1; self = self + outer(v, k) / n", "state n[] = 0"),
        memory("self = self + outer(v, k) / count", more=COUNT + "count = n\n"),
    ),
    "other part": (
        memory(STEP, KEYED, "mlp(d_k -> 3 -> d_v)"),
        memory(STEP, KEYED),
    ),
    "sum": (
        memory("self = self - outer(v, 0.1 * sum(self, over = out)) + outer(v, k)"),
        memory("self = self + outer(v, k)", out="M(q) - sum(M(k), over = d_v) * v"),
    ),
    "stop": (
        memory("self = 0.9 * self - 0.1 * grad", KEYED + "through stop"),
        memory("self = 0.9 * self - 0.1 * grad", KEYED + "through full"),
    ),
    "shape": (
        memory("self = transpose(split(flat(0.9 * self), d_k, d_v)) + outer(v, k)"),
        memory("self = 0.9 * self + outer(v, k)"),
    ),
    "own past": (
        memory("self = 0.9 * self + outer(k, kk)", map="linear(d_k -> d_k)",
               more="kk = unit(prev(M)(k))\n", out="B(M(q))"),
        memory("self = 0.9 * self + outer(k, kk)", map="linear(d_k -> d_k)",
               more="kk = unit(k)\n", out="B(M(q))"),
    ),
    "several parts": (
        memory("self = a * self", map="mlp(d_k -> 3 -> d_v)", more="a = sigmoid(sum(v))\n"),
        memory(STEP, KEYED, "mlp(d_k -> 3 -> d_v)").replace(
            "every 1 token", "every 1 token, chunk 4"
        ),
    ),
    "moving gates": (
        memory("self = sigmoid(<self(k), v>) * self + outer(v - 0.1 * self @ k, k)").replace(
            "every 1 token", "every 1 token, chunk 4"
        ),
        memory("self = sigmoid(sum(v)) * self + outer(v - self(k), k)").replace(
            "every 1 token", "every 1 token, chunk 4"
        ),
    ),
    "other shapes": (
        memory("n = n + 1; self = self + outer(v, k)", "state n[] = 0"),
        memory("self = self + outer(v, k)", more=COUNT),
    ),
    "copied at resets": (
        memory("self = self + outer(v, k)", "init from W; reset every 4 tokens"),
        memory("self = self + outer(v, k)", "init learned; reset every 4 tokens"),
    ),
    "elsewhere": (
        memory("self = self + outer(v, prev(A)(k))", more=A),
        memory("self = self + outer(v, r)", more=A + "r = prev(A)(k)\n"),
    ),
    "still": (memory("self = 0.9 * self"), memory("self = 0.9 * self + outer(v, k)")),
}  # fmt: skip


def test_every_obstacle_has_an_example() -> None:
    # what acts on the value's side runs for the transposed state, and is told as `both sides`;
    # windows are their own way to be fast, and sums over updates have no other
    assert set(OBSTACLES) - {"side", "window", "updates"} == set(EXAMPLES)


def test_sums_over_updates_are_told() -> None:
    update = "self = 0.9 * self - 0.3 * grad; every 2 steps { self = self - 0.1 * grad }"
    schedule = plan(nlc.parse(memory(update, KEYED))).block("mixer").schedule("M")
    assert schedule.kind == "sequential"
    assert "what 2 updates come to is summed in `every 2 steps`" in schedule.reason


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_an_obstacle_is_told_with_its_place(kind: str) -> None:
    wrong, _ = EXAMPLES[kind]
    schedule = plan(nlc.parse(wrong)).block("mixer").schedule("M")
    assert schedule.kind == "sequential"
    reason, hint = (text.split("{")[0].strip("`") for text in OBSTACLES[kind])
    assert reason in schedule.reason and hint in schedule.hint
    placeless = ("several parts", "moving gates", "copied at resets", "still")
    assert (schedule.span is None) == (kind in placeless)
    if schedule.span is not None:
        assert schedule.span.line > 8


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_the_advice_makes_it_faster_and_it_runs(kind: str) -> None:
    _, mended = EXAMPLES[kind]
    system = nlc.parse(mended)
    assert plan(system).block("mixer").schedule("M").kind in ("tile-solve", "tile-scan")
    agree(system, tokens=5)


def test_words_are_put_in() -> None:
    assert obstacle("other state", name="n").hint.startswith("make `n` a memory of its own")
