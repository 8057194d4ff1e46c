"""Schedules come from the equations, never from names."""

from __future__ import annotations

import pytest

import nlc
from nlc.ir.schedule import Parallel, TokenLoop

SPEC = """
system planned
dims {{ d = 8, heads = 2, d_k = 4 }}
level fast every 1 token{chunk}
level slow every 1 step
block mixer(x[d]) -> out[d] {{
  weights W_k, W_q, W_v : linear(d -> heads*d_k)
  weights W_b : linear(d -> heads, bias)
  weights W_o : linear(heads*d_k -> d)
  q, k, v, b = W_q(x), unit(W_k(x)), W_v(x), sigmoid(W_b(x))
  {memory}
  out = W_o(M(q))
}}
"""


def schedule_of(memory: str, chunk: str = "") -> tuple[str, str]:
    report = nlc.check(nlc.parse(SPEC.format(memory=memory, chunk=chunk)))
    found = report.plan.block("mixer").schedule("M")
    return found.kind, found.reason


def linear(update: str) -> str:
    return f"memory M : linear(d_k -> d_k) at fast {{ key k; value v; update {update} }}"


@pytest.mark.parametrize(
    ("update", "kind"),
    [
        ("{ self = self - b * grad }", "tile-solve"),
        ("sgd(lr = b)", "tile-solve"),
        ("{ self = b * self; self = self - b * grad(at = self) }", "tile-solve"),
        ("gated_delta(lr = b, gate = b)", "tile-solve"),
        ("{ self = self @ (b - b * outer(k, k)) + outer(v, k) }", "tile-solve"),
        ("{ self = b * self + outer(v, k) }", "tile-scan"),
        ("{ self = tanh(self + outer(v, k)) }", "sequential"),
        ("{ self = self / max(norm(self, over = (in, out)), 1) - b * grad }", "sequential"),
    ],
)
def test_the_schedule_follows_from_the_update(update: str, kind: str) -> None:
    assert schedule_of(linear(update))[0] == kind


def test_an_update_written_out_and_the_same_through_a_rule_run_alike() -> None:
    assert schedule_of(linear("{ self = self - b * grad }")) == schedule_of(linear("sgd(lr = b)"))


def test_with_a_chunk_the_writes_are_known() -> None:
    assert schedule_of(linear("{ self = self - b * grad }"), ", chunk 4")[0] == "tile-scan"


def test_a_memory_that_reads_its_own_past_runs_token_by_token() -> None:
    memory = (
        "k2 = unit(k + prev(M)(k))\n  memory M[heads] : linear(d_k -> d_k) at fast "
        "{ key k2; value v; update sgd(lr = b) }"
    )
    kind, reason = schedule_of(memory)
    assert kind == "sequential"
    assert "k2" in reason


def test_only_the_memory_and_its_reads_are_left_in_the_loop() -> None:
    spec = SPEC.format(memory=linear("{ self = tanh(self - b * grad) }"), chunk="")
    stages = nlc.check(nlc.parse(spec)).plan.block("mixer").stages
    (loop,) = [stage for stage in stages if isinstance(stage, TokenLoop)]
    assert len(loop.steps) == 2
    assert isinstance(stages[-1], Parallel)
