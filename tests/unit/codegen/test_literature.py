"""The small systems of the literature, emitted, equal the interpreter."""

from __future__ import annotations

import pytest

from nlc import parse as resolve
from tests.references.systems import SYSTEMS
from tests.unit.codegen.agree import agree


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_emitted_system(name: str) -> None:
    agree(resolve(SYSTEMS[name][0]))


@pytest.mark.parametrize("tokens", [1, 2, 33, 65])
def test_any_length(tokens: int) -> None:
    for name in sorted(SYSTEMS)[:3]:
        agree(resolve(SYSTEMS[name][0]), tokens=tokens)
