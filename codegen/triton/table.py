"""Block sizes of kernels: one table by architecture, gates and size; nothing is tuned at run time.

A row is (tokens of a tile, channels of d_v in a loop over tiles, warps of a tile, warps of a loop,
stages). How much the kernels take with these on each machine stands in `tests/golden/kernels/`.
`blocks.json` beside this file has the rows that `nlc bench --tune` measured; they come first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from nlc.ir.schedule import Keeping

Row = tuple[int, int, int, int, int]

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
# by the larger of d_k and d_v, as a power of 2
SIZES: dict[int, Row] = {
    16: (32, 16, 4, 4, 2),
    32: (32, 32, 4, 4, 2),
    64: (32, 64, 8, 8, 2),
    128: (32, 32, 8, 8, 2),
    256: (16, 32, 8, 8, 1),
}
# what differs on one machine
ROWS: dict[tuple[str, int], Row] = {
    ("gfx942", 64): (32, 64, 4, 4, 2),
    ("gfx942", 128): (16, 32, 8, 8, 2),
}
# what differs by how gates are kept: where more values are held at once, tiles are shorter
KEPT: dict[tuple[str, int], Row] = {
    ("CoupledGates", 128): (16, 32, 8, 8, 2),
    ("RelativeGates", 128): (16, 32, 8, 8, 2),
}
# the interpreter: small tiles, so that short sequences have several
INTERPRETER: Row = (16, 16, 4, 4, 1)


MEASURED = Path(__file__).with_name("blocks.json")


@dataclass(frozen=True)
class Measured:
    """A row that was measured: for an architecture, how gates are kept and a size.

    `machine` and `shape` say where and at what, (B, T) and the sizes of keys and values.
    """

    architecture: str
    gates: str
    size: int
    row: Row
    machine: str
    shape: tuple[int, ...]


@cache
def measured(path: Path = MEASURED) -> dict[tuple[str, str, int], Row]:
    """Read the rows that were measured, by architecture, gates and size."""
    found = [_entry(entry) for entry in json.loads(path.read_text("utf-8"))]
    return {(entry.architecture, entry.gates, entry.size): entry.row for entry in found}


def extended(text: str, new: Iterable[Measured]) -> str:
    """Put rows into the text of a table; they take the place of those with the same keys."""
    entries = [*(_entry(entry) for entry in json.loads(text)), *new]
    by_key = {(entry.architecture, entry.gates, entry.size): entry for entry in entries}
    lines = [json.dumps(asdict(by_key[key])) for key in sorted(by_key)]
    return "[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n" if lines else "[]\n"


def _entry(given: dict[str, object]) -> Measured:
    match given:
        case {
            "architecture": str(architecture), "gates": str(gates), "size": int(size),
            "row": [int(tokens), int(channels), int(warps), int(loop), int(stages)],
            "machine": str(machine), "shape": [*shape],
        }:  # fmt: skip
            row = (tokens, channels, warps, loop, stages)
            return Measured(architecture, gates, size, row, machine, _numbers(shape))
    raise ValueError(f"no row of a table of block sizes: {given}")


def _numbers(given: Sequence[object]) -> tuple[int, ...]:
    return tuple(x for x in given if isinstance(x, int))


def size_of(d_k: int, d_v: int) -> int:
    """The size by which rows are found: the larger of the two, as a power of 2."""
    return max(16, 1 << (max(d_k, d_v) - 1).bit_length())


def block_sizes(keeping: Keeping, d_k: int, d_v: int) -> dict[str, Row]:
    """Return the row of every architecture, and of the interpreter."""
    size = size_of(d_k, d_v)
    found = {}
    for name in ARCHITECTURES:
        row = ROWS.get((name, size), SIZES[size])
        row = KEPT.get((keeping.gates, size), row)
        row = measured().get((name, keeping.gates, size), row)
        if keeping.gates == "RelativeGates":
            # longer tiles may leave what float32 can hold
            row = (min(row[0], keeping.tile), *row[1:])
        if keeping.gates == "ChannelGates":
            # it goes token by token inside a tile
            row = (16, *row[1:])
        found[name] = row
    return {**found, "interpreter": INTERPRETER}


LARGEST = max(SIZES)
# tokens of a tile where layers are walked in slices: what the registers of a machine hold
SLICED = {"sm_90": 64, "sm_100": 64}


# what stands in the place of gates for other kernels
OF_LAYERS, OF_SLICES, OF_LOOP = "layers", "slices", "loop"


def power_of_two(size: int) -> int:
    """The power of 2 that holds a size, 16 at least."""
    return size_of(1, size)


def layer_tokens(chunk: int, longest: int) -> int:
    """The most tokens of a tile of a memory with layers."""
    return max(16, min(1 << (chunk - 1).bit_length(), 1 << longest.bit_length() - 1))


def layer_sizes(chunk: int, entries: int, longest: int) -> dict[str, Row]:
    """Return the rows of a memory with layers: tokens of a tile of its chunk, warps by its entries.

    With 16 tokens, layers of 8192 weights keep within what every machine has; gates may allow no
    more than `longest`.
    """
    tokens = 32 if min(chunk, longest) > 16 and entries <= 1 << 10 else 16
    warps = 8 if entries > 1 << 13 else 4
    found: dict[str, Row] = {}
    for name in (*ARCHITECTURES, "interpreter"):
        row = measured().get((name, OF_LAYERS, power_of_two(entries)), (tokens, 1, warps, warps, 1))
        found[name] = (min(row[0], layer_tokens(chunk, longest)), *row[1:])
    return found


def slice_sizes(chunk: int, channels: int, longest: int) -> dict[str, Row]:
    """Return the rows of a memory whose layers are walked in slices.

    Short tiles keep vectors of many channels in registers; long ones store fewer states. Gates may
    allow no more than `longest`.
    """
    found: dict[str, Row] = {}
    for name in (*ARCHITECTURES, "interpreter"):
        most = SLICED.get(name, 16) if channels <= 128 else 16
        row = measured().get((name, OF_SLICES, power_of_two(channels)), (most, 1, 8, 8, 1))
        found[name] = (min(row[0], layer_tokens(chunk, longest)), *row[1:])
    return found


# tokens of a loop's tile: as many states are kept beside while a tile goes back
TILE = 64
# the interpreter: short tiles and few rows, so that small cases have several
SHORT_LOOP = (4, 2)


def loop_sizes(
    entries: int, channels: tuple[int, int], start: int, warps: tuple[int, int]
) -> dict[str, Row]:
    """Return the rows of a loop over tokens: tokens of a tile, rows of a program, warps.

    `channels` are the least and the most rows of a program, `start` those where none were measured.
    """
    found: dict[str, Row] = {}
    least, most = channels
    for name in ARCHITECTURES:
        row = measured().get((name, OF_LOOP, power_of_two(entries)), (TILE, start, *warps, 1))
        found[name] = (row[0], max(least, min(row[1], most)), *row[2:])
    tile, part = SHORT_LOOP
    return {**found, "interpreter": (tile, max(part, least), *warps, 1)}
