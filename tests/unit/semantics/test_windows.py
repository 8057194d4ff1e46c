"""What windows mean before anything runs: which state is read, what is summed, what is refused."""

from __future__ import annotations

import pytest

from nlc import SpecError, parse
from nlc.ir.expr import Expr, postorder
from nlc.ir.system import Memory, System
from tests.references.specs import block

BEAT = "level beat every 4 tokens\n"
FRAME = """
  memory M : linear(d_k -> d_v) at beat {{
    key k
    value v
    update {{ {update} }}
  }}
  out = W_o(M(q))
"""


def system(update: str, rules: str = "") -> System:
    return parse(block(FRAME.format(update=update), levels=BEAT, rules=rules))


def memory(update: str, rules: str = "") -> Memory:
    return system(update, rules).block("mixer").memory("M")


def codes(update: str) -> set[str]:
    with pytest.raises(SpecError) as caught:
        system(update)
    return {d.code for d in caught.value.diagnostics}


def windows(memory: Memory) -> list[Expr]:
    return [n for n in postorder([a.value for a in memory.update]) if n.op == "window"]


def test_grad_is_summed_over_the_tokens() -> None:
    (node,) = windows(memory("self = self - 0.1 * grad"))
    assert (node.attr("how"), node.attr("period")) == ("sum", ("tokens", 4))
    assert node.args[0].op == "grad"


def test_grad_in_a_reduction_is_that_of_one_token() -> None:
    (node,) = windows(memory("self = self - sum(||k|| * grad, over = tokens)"))
    assert node.args[0].op == "mul"


def test_one_sum_is_kept_under_one_slot() -> None:
    found = memory("self = self - 0.1 * grad\nself = self - 0.2 * grad^2")
    assert [kept.slot for kept in found.sums] == ["1"]
    assert not found.recent


def test_a_second_pass_keeps_the_streams_and_no_gradients() -> None:
    found = memory("repeat 3 { self = self - 0.1 * grad(at = self) }")
    assert len(found.sums) == 1
    assert [[axis.name for axis in kept.shape] for kept in found.recent] == [
        ["heads", "d_k"],
        ["heads", "d_v"],
    ]


def test_streams_read_the_state_before_the_window() -> None:
    found = system("self = self - 0.1 * grad").block("mixer")
    reads = [
        node.attr("when")
        for step in found.steps
        for node in postorder([step.value] if hasattr(step, "value") else [])
        if node.op == "state"
    ]
    assert reads == ["prev"]


@pytest.mark.parametrize(
    "update",
    [
        "self = self - ||k|| * grad",
        "self = self - grad(at = ||k|| * self)",
        "when ||k|| > 1 { self = self - grad }",
        "self = self - loss(M) * grad",
        "self = self - position * grad",
    ],
)
def test_a_stream_may_not_stand_bare(update: str) -> None:
    assert codes(update) == {"NL0603"}


def test_a_period_inside_is_a_multiple_of_the_memorys_own() -> None:
    assert codes("every 6 tokens { self = self - grad }") == {"NL0203"}
    assert memory("every 8 tokens { self = self - grad }").window == 4


def test_a_step_is_one_update() -> None:
    inner, outer = windows(memory("every 3 steps { self = self - 0.1 * grad }"))
    assert inner.attr("period") == ("tokens", 4)
    assert outer.attr("period") == ("tokens", 12)
    (due,) = [
        n
        for n in postorder([a.value for a in memory("every 3 steps { self = 0 }").update])
        if n.op == "due"
    ]
    assert due.attr("period") == ("tokens", 12)
