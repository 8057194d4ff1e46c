"""Random affine updates run in tiles and agree with the interpreter, token by token.

Up to three states, two or more writes, numbers and channels as gates, reads before and after other
equations, on the key's side or on the value's.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.references.specs import block, resolve
from tests.unit.codegen.agree import agree


class Writer:
    """Writes random equations for one memory; `turned` acts on the value's side."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.turned = self.random.random() < 0.3
        self.states = ["M", "S", "R"][: self.random.choice([1, 1, 2, 2, 3])]
        self.channels = self.random.random() < 0.5

    def key(self) -> str:
        keys = ["k", "k2"] if not self.turned else ["v", "v2"]
        return self.random.choice(keys)

    def value(self) -> str:
        values = ["v", "v2"] if not self.turned else ["k", "k2"]
        return self.random.choice(values)

    def number(self) -> str:
        return self.random.choice(["a", "b", "c", "0.5", "a * b", "(1 - c)"])

    def outer(self, e: str, b: str) -> str:
        return f"outer({b}, {e})" if self.turned else f"outer({e}, {b})"

    def read(self, state: str, p: str) -> str:
        return f"(transpose({state}) @ {p})" if self.turned else f"({state} @ {p})"

    def gated(self, state: str) -> str:
        """A state times a number, or channel by channel."""
        if self.channels and self.random.random() < 0.6:
            w = "w_v" if self.turned else "w_k"
            return f"diag({w}) @ {state}" if self.turned else f"{state} @ diag({w})"
        return state if self.random.random() < 0.2 else f"{self.number()} * {state}"

    def vector(self) -> str:
        """What is written: known, or a read of some states, or both."""
        terms = [] if self.random.random() < 0.3 else [f"{self.number()} * {self.value()}"]
        for _ in range(self.random.choice([0, 1, 1, 2])):
            read = self.read(self.random.choice(self.states), self.key())
            terms.append(f"{self.number()} * {read}")
        return " - ".join(terms or [self.value()])

    def equation(self) -> str:
        target = self.random.choice(self.states)
        terms = [self.gated(target)]
        for other in self.states:
            if other != target and self.random.random() < 0.5:
                terms.append(self.gated(other))
        for _ in range(self.random.choice([0, 1, 1, 2])):
            terms.append(self.outer(self.vector(), f"{self.number()} * {self.key()}"))
        return f"{target} = {' + '.join(terms)}"

    def body(self) -> str:
        equations = [self.equation() for _ in range(self.random.choice([1, 2, 3]))]
        if not any(line.startswith("M =") for line in equations):
            equations.append(f"M = {self.gated('M')} + {self.outer(self.value(), self.key())}")
        extra = "\n".join(
            f"    state {s} = {self.random.choice(['0', 'self'])}" for s in self.states[1:]
        )
        reset = "reset every 6 tokens" if self.random.random() < 0.2 else ""
        lines = "\n".join(f"      {line}" for line in equations)
        reads = ["M(q)", "prev(M)(q2)", *(f"M.{s} @ q" for s in self.states[1:]), "M @ k2"]
        out = " + ".join(self.random.sample(reads, self.random.choice([1, 2])))
        return f"""
  weights W_a, W_b, W_c : linear(d -> heads, bias)
  weights W_wk : linear(d -> heads*d_k, bias)
  weights W_wv : linear(d -> heads*d_v, bias)
  weights W_k2, W_q2 : linear(d -> heads*d_k)
  weights W_v2 : linear(d -> heads*d_v)
  a, b, c = sigmoid(W_a(x)), sigmoid(W_b(x)), tanh(W_c(x))
  w_k = {self.random.choice(["sigmoid(W_wk(x))", "exp(-0.6 * sigmoid(W_wk(x)))"])}
  w_v = {"exp(-0.6 * sigmoid(W_wv(x)))" if self.random.random() < 0.5 else "sigmoid(W_wv(x))"}
  k2, q2, v2 = W_k2(x), W_q2(x), W_v2(x)
  memory M[heads] : linear(d_k -> d_v) at fast {{
{extra}
    init {self.random.choice(["zeros", "learned"])}
    {reset}
    update {{
{lines}
    }}
  }}
  out = W_o({out})
"""


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 5, 11, 19, 35]))
def test_random_affine_updates_run_in_tiles_and_agree(seed: int, tokens: int) -> None:
    writer = Writer(seed)
    text = block(writer.body())
    compiled = agree(resolve(text), tokens=tokens)
    (schedule,) = compiled.schedules.values()
    still = schedule.reason == "nothing in its update depends on the token"
    assert still or schedule.kind in ("tile-solve", "tile-scan"), schedule.reason


def rows(seed: int) -> str:
    """States of one row, whose channels move each for itself; up to three of them."""
    choose = random.Random(seed)
    states = ["M", "S", "R"][: choose.choice([1, 1, 2, 3])]
    form = choose.choice(["vector(d_k)", "vector(d_k)", "scalar"])
    wide = form != "scalar"
    gates = ["a", "0.5", "(1 - b)", *(["w", "w * a"] if wide else [])]
    added = ["a * c", "c", *(["k", "a * k", "w * k"] if wide else [])]
    lines = []
    for target in states:
        terms = [f"{choose.choice(gates)} * {s}" for s in states
                 if s == target or choose.random() < 0.4]  # fmt: skip
        lines.append(f"{target} = {' + '.join([*terms, choose.choice(added)])}")
    extra = "\n".join(f"    state {s} = {choose.choice(['0', 'self'])}" for s in states[1:])
    reads = ["M", "2 * prev(M)", *(f"M.{s}" for s in states[1:])]
    reads = [f"<{read}, q>" for read in reads] if wide else reads
    updates = "\n".join(f"      {line}" for line in lines)
    return f"""
  weights W_a, W_b, W_c : linear(d -> heads, bias)
  weights W_w : linear(d -> heads*d_k)
  a, b, c = sigmoid(W_a(x)), sigmoid(W_b(x)), W_c(x)
  w = sigmoid(W_w(x))
  memory M[heads] : {form} at fast {{
{extra}
    init {choose.choice(["0.3", "learned"])}
    update {{
{updates}
    }}
  }}
  out = W_o(({" + ".join(choose.sample(reads, 2))}) * v)
"""


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 4, 11, 30]))
def test_states_of_one_row_run_as_a_scan_and_agree(seed: int, tokens: int) -> None:
    compiled = agree(resolve(block(rows(seed))), tokens=tokens)
    assert [s.kind for s in compiled.schedules.values()] == ["scan"]
