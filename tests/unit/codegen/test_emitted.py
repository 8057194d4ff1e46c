"""Emitted blocks equal the interpreter, for every small system there is."""

from __future__ import annotations

import pytest
import torch

import nlc
from nlc import parse as resolve
from tests.references import (
    features_chunk,
    features_entries,
    features_memory,
    features_slots,
    features_times,
    features_update,
    features_window,
    probes_mixed,
    probes_slots,
    probes_window,
)
from tests.references.features import FEATURES
from tests.references.probes import PROBES
from tests.references.specs import block
from tests.unit.codegen.agree import agree, close, randomised, streams

SYSTEMS = {name: text for name, (text, _) in FEATURES.items()} | dict(PROBES)
assert features_chunk and features_memory and features_update
assert features_entries and features_slots and features_times and features_window
assert probes_mixed and probes_slots and probes_window


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_emitted_code_equals_the_interpreter(name: str) -> None:
    agree(resolve(SYSTEMS[name]))


@pytest.mark.parametrize("name", ["a chunk start that no gradient needs", "adam inside"])
def test_the_interpreter_goes_on_from_a_state_of_emitted_code(name: str) -> None:
    compiled = nlc.compile(resolve(SYSTEMS[name]))
    module = randomised(compiled.block("mixer").double())
    (x,) = streams(compiled.system, "mixer", 7)
    truth = compiled.reference("mixer")
    whole, _ = truth(x)
    _, state = module(x[:, :4])
    rest, _ = truth(x[:, 4:], state)
    close(rest, whole[:, 4:], "after the cut")


@pytest.mark.parametrize("number", ["1/0", "log(0)", "exp(1000)", "(-8)^0.5", "sigmoid(-1000)"])
def test_numbers_that_none_can_hold_are_those_of_tensors(number: str) -> None:
    compiled = nlc.compile(resolve(block(f"out = W_o(v) + ({number})")))
    module = compiled.block("mixer")
    (x,) = streams(compiled.system, "mixer", 2)
    ours, truth = (run(x)[0] for run in (module.double(), compiled.reference("mixer", module)))
    assert torch.equal(ours.nan_to_num(7.0), truth.nan_to_num(7.0))
