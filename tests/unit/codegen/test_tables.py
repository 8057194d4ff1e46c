"""Every operation has its spelling; names and texts of the library stand on their own."""

from __future__ import annotations

from nlc.codegen.library_source import library_names, library_texts
from nlc.codegen.rules.elements import ELEMENTS
from nlc.codegen.rules.numbers import NUMBERS
from nlc.codegen.spelling import SPELLING

from nlc.ir.operations import OPERATIONS


def test_every_operation_is_spelled() -> None:
    # maps are applied by `apply`, which the owner of a program takes over
    assert set(SPELLING) | {"apply"} == set(OPERATIONS) | {"apply"}


def test_a_text_brings_what_it_needs() -> None:
    texts = "\n".join(library_texts(["solve_tiles"]))
    for name in ("TileScan", "unit_lower_inverse", "tiled", "carried"):
        assert f" {name}(" in texts or f" {name}(" in texts.replace("class", " ")
    assert "attend" not in texts
    assert len(set(library_names())) == len(library_names())


def test_every_operation_has_a_text_in_optimizers() -> None:
    assert set(ELEMENTS) == set(OPERATIONS)
    elementwise = {name for name, op in OPERATIONS.items() if op.kind == "elementwise"}
    assert set(NUMBERS) == elementwise
