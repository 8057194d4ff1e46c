"""Emitted blocks equal the interpreter, for every small system there is."""

from __future__ import annotations

import pytest

from nlc import parse as resolve
from tests.references import features_chunk, features_memory, features_update
from tests.references.features import FEATURES
from tests.references.probes import PROBES
from tests.unit.codegen.agree import agree

SYSTEMS = {name: text for name, (text, _) in FEATURES.items()} | dict(PROBES)
assert features_chunk and features_memory and features_update


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_emitted_code_equals_the_interpreter(name: str) -> None:
    agree(resolve(SYSTEMS[name]))
