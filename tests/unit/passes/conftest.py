"""The evaluator of expressions that the tests of the passes share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from nlc.ir.expr import Expr
from tests.evaluator import Leaves, evaluate


@pytest.fixture(scope="session", name="evaluate")
def evaluator() -> Callable[[list[Expr], Leaves], list[Tensor]]:
    """Evaluate expressions, given values for their leaves."""
    return evaluate
