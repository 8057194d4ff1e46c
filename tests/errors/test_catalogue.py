"""Every entry of the catalogue: the wrong spec gives its code, the mended one gives nothing."""

from __future__ import annotations

import pytest

import nlc
from nlc.errors import codes, entry


def found(text: str, form: str) -> list[str]:
    """The codes that a spec gives."""
    try:
        return [d.code for d in nlc.check(nlc.parse(text, form=form)).diagnostics]
    except nlc.SpecError as error:
        return [d.code for d in error.diagnostics]


@pytest.mark.parametrize("code", codes())
def test_the_wrong_spec_gives_its_code(code: str) -> None:
    known = entry(code)
    assert known is not None
    assert code in found(known.wrong, known.form)


@pytest.mark.parametrize("code", codes())
def test_the_mended_spec_is_fine(code: str) -> None:
    known = entry(code)
    assert known is not None
    assert found(known.right, known.form) == []
