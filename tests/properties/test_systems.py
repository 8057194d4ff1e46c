"""Random systems: they compile and agree with the interpreter; one fault gives its code, there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import nlc
from nlc.ir.system import System
from nlc.source import Source
from nlc.syntax.parse_text import parse_text
from nlc.syntax.print_yaml import print_yaml
from tests.random_systems import Drawn, systems
from tests.unit.codegen.agree import agree, close, randomised, same_states, streams

HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def hold(drawn: Drawn, tokens: int) -> None:
    """Compare values, states, gradients, cuts, steps and rows, in float64."""
    system = nlc.parse(drawn.text)
    plan = nlc.check(system).plan
    if any(s.kind.startswith("tile") for s in plan.block("mixer").schedules):
        # over the end of a tile
        tokens += 30
    agree(system, tokens=tokens)


@settings(max_examples=50, derandomize=True, deadline=None, suppress_health_check=HEALTH)
@given(systems(), st.sampled_from([1, 2, 5, 8]))
def test_emitted_code_equals_the_interpreter(drawn: Drawn, tokens: int) -> None:
    hold(drawn, tokens)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=HEALTH)
@given(systems(), st.sampled_from([1, 2, 5, 8]))
def test_other_systems_at_each_run(drawn: Drawn, tokens: int) -> None:
    hold(drawn, tokens)


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=HEALTH)
@given(systems())
def test_both_forms_compute_the_same(drawn: Drawn) -> None:
    yaml = print_yaml(parse_text(Source("x.nl", drawn.text)))
    (y, state), (other, other_state) = (
        run(nlc.parse(text, form=form)) for text, form in ((drawn.text, "nl"), (yaml, "yaml"))
    )
    close(y, other, "out")
    same_states(state, other_state, "both forms")


def run(system: System) -> tuple[Tensor, Any]:
    """The block's output for some input, with the parameters of a seed."""
    torch.manual_seed(0)
    module = randomised(nlc.compile(system).block("mixer").double())
    out, state = module(*streams(system, "mixer", 4))
    return out, state


# ---- one planted fault ---------------------------------------------------------------------------

# the place of the fault stands in these marks
LEFT, RIGHT = "«", "»"
Plant = Callable[[Drawn], Drawn]


def line(*text: str) -> Plant:
    """More lines of the block."""
    return lambda drawn: replace(drawn, lines=text)


def memory(*clauses: str, written: str = "linear(d_k -> d_v) at fast") -> Plant:
    """One more memory of the block."""
    return line(f"memory Z : {written} {{", *clauses, "}")


def level(*lines: str) -> Plant:
    """Further levels."""
    return lambda drawn: replace(drawn, levels=lines)


def both(one: Plant, other: Plant) -> Plant:
    """Two plants, of which the marks stand in one."""
    return lambda drawn: other(one(drawn))


PAIR = ("key k", "value v")
RULE = "update sgd(lr = 0.1)"
PLANTS: dict[str, tuple[str, Plant]] = {
    "unknown stream": ("NL0301", line("extra = q + «nobody»")),
    "unknown function": ("NL0301", line("extra = «sigmund»(q)")),
    "two streams of one name": ("NL0302", line("«q» = k")),
    "axes that do not match": ("NL0404", line("extra = W_v(x) * «W_k(x)»")),
    "a bracket that stays open": ("NL0104", line("extra = tanh«(»q")),
    "a circle of streams": ("NL0602", line("extra = q + other", "other = k + «extra»")),
    "a use of its own future": ("NL0601", line(
        "memory Z : linear(d_k -> d_v) at fast {", "key k", "value e", RULE, "}", "e = v - «Z(k)»"
    )),
    "periods that do not nest": (
        "NL0203", level("level odd every 36 tokens", "level even «every 48 tokens»"),
    ),
    "two levels of one name": ("NL0302", level("«level fast every 2 tokens»")),
    "a level without its unit": ("NL0125", level("level odd every 3 «seconds»")),
    "a level that is not there": (
        "NL0304", memory(*PAIR, RULE, written="linear(d_k -> d_v) at «fats»")
    ),
    "a map that is not there": (
        "NL0301", memory(*PAIR, RULE, written="«lineal(d_k -> d_v)» at fast")
    ),
    "an objective of nothing": ("NL0502", memory(*PAIR, "objective «<q, k>»", RULE)),
    "an assignment to a stream": (
        "NL0507", memory(*PAIR, "update {", "self = 0.5 * self", "«k» = q", "}")
    ),
    "a memory without an update": (
        "NL0505", line("«memory Z : linear(d_k -> d_v) at fast» {", *PAIR, "}")
    ),
    "a rule that is not there": ("NL0305", memory(*PAIR, "update «sdg»(lr = 0.1)")),
    "a rule with a wrong argument": ("NL0506", memory(*PAIR, "update sgd(«rate = 0.1»)")),
    "a reset within a chunk": ("NL0205", both(
        level("level other every 1 token, chunk 4"),
        memory(*PAIR, RULE, "reset «every 6 tokens»", written="linear(d_k -> d_v) at other"),
    )),
    "a value of the wrong shape": ("NL0406", memory("key k", "value «W_o(v)»", RULE)),
    "a vector where a number belongs": ("NL0501", memory(*PAIR, "objective «Z(k) - v»", RULE)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PLANTS))
@settings(max_examples=5, derandomize=True, deadline=None, suppress_health_check=HEALTH)
@given(drawn=systems())
def test_a_planted_fault_gives_its_code_at_its_place(name: str, drawn: Drawn) -> None:
    code, plant = PLANTS[name]
    marked = plant(drawn).text
    start, end = marked.index(LEFT), marked.index(RIGHT) - 1
    text = marked.replace(LEFT, "").replace(RIGHT, "")
    with pytest.raises(nlc.SpecError) as caught:
        nlc.compile(nlc.parse(text))
    found = [d for d in caught.value.diagnostics if d.severity == "error"]
    assert [d.code for d in found] == [code], [(d.code, d.title) for d in found]
    primary = next(label.span for label in found[0].labels if label.primary)
    assert (primary.start, primary.end) == (start, end), primary.text
