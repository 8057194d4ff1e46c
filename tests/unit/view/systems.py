"""The systems that the views are tested with: the library, harder ones, and random ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import nlc
from nlc.ir.system import System
from nlc.view import as_svg
from tests.unit.view.generated import spec
from tests.unit.view.picture import Picture, read

ROOT = Path(__file__).parents[3]
LIBRARY = sorted((ROOT / "specs").glob("*.nl"))
HARD = sorted((Path(__file__).parent / "hard").glob("*.nl"))
FILES = [*LIBRARY, *HARD]
RANDOM = range(12)
MORE = range(12, 160)

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
every_seed = pytest.mark.parametrize(
    "seed", [*RANDOM, *(pytest.param(seed, marks=pytest.mark.slow) for seed in MORE)]
)


@cache
def load(path: Path) -> System:
    """Read a spec once."""
    return nlc.load(path)


@cache
def hard(name: str) -> System:
    """One of the harder systems."""
    return load(path_of(name))


def path_of(name: str) -> Path:
    """The file of one of the systems, a harder one before one of the library."""
    return next(path for path in (*HARD, *LIBRARY) if path.stem == name)


@cache
def score(path: Path) -> str:
    """The level score of a spec."""
    return as_svg(load(path))


@cache
def seen(path: Path) -> Picture:
    """The same, read back."""
    return read(score(path))


@cache
def made(seed: int) -> System:
    """A random system."""
    return nlc.parse(spec(seed))
