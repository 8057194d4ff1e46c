"""Block sizes of kernels: one table by architecture, gates and size; nothing is tuned at run time.

A row is (tokens of a tile, channels of d_v in a loop over tiles, warps of a tile, warps of a loop,
stages). How much the kernels take with these on each machine stands in `docs/internals/kernels.md`.
"""

from __future__ import annotations

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
}
# the interpreter: small tiles, so that short sequences have several
INTERPRETER: Row = (16, 16, 4, 4, 1)


def block_sizes(keeping: Keeping, d_k: int, d_v: int) -> dict[str, Row]:
    """Return the row of every architecture, and of the interpreter."""
    size = max(16, 1 << (max(d_k, d_v) - 1).bit_length())
    found = {}
    for name in ARCHITECTURES:
        row = ROWS.get((name, size), SIZES[size])
        if keeping.gates == "RelativeGates":
            # longer tiles may leave what float32 can hold
            row = (min(row[0], keeping.tile), *row[1:])
        if keeping.gates == "ChannelGates":
            # it goes token by token inside a tile
            row = (16, *row[1:])
        found[name] = row
    return {**found, "interpreter": INTERPRETER}


LARGEST = max(SIZES)
