"""Emitted blocks equal the interpreter, for every small system there is."""

from __future__ import annotations

import pytest

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
