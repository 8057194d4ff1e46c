"""What a system costs, as data and as a table.

In: a `Cost`. Out: plain data, and lines of text. Both are of one token: the forward and backward
numbers are those of the whole sequence, divided by its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nlc.ir.cost import Cost, Entry, Sum, Work


def cost_json(cost: Cost) -> Mapping[str, Any]:
    """Return what `check --format json` prints under `cost`."""
    blocks = dict.fromkeys(e.block for e in cost.entries if e.block)
    return {
        "tokens": cost.tokens,
        "dtype": "float32",
        "memories": {
            e.name: {"copies": e.copies, **_numbers(cost, e)}
            for e in cost.entries
            if e.kind == "memory"
        },
        "blocks": {name: _numbers(cost, cost.block(name)) for name in blocks},
        "levels": {name: _numbers(cost, cost.level(name)) for name in cost.levels},
        "equations": _numbers(cost, cost.equations),
        "total": _numbers(cost, cost.total),
    }


def _numbers(cost: Cost, what: Entry | Sum) -> dict[str, Any]:
    parameters = what.learned if isinstance(what, Entry) else what.parameters
    return {
        "parameters": parameters,
        "state_bytes": what.state_bytes,
        "forward": _work(what.forward, cost.tokens),
        "backward": _work(what.backward, cost.tokens),
        "decode": _work(what.decode, 1),
    }


def _work(work: Work, tokens: int) -> dict[str, int]:
    numbers = {
        "flops": work.flops,
        "products": work.products,
        "solves": work.solves,
        "elementwise": work.elementwise,
        "bytes": work.bytes,
    }
    return {name: round(number / tokens) for name, number in numbers.items()}


# ---- text --------------------------------------------------------------------------------------


def amount(number: float) -> str:
    """Write a number shortly.

    >>> amount(960), amount(41_300), amount(1_234_567)
    ('960', '41.3 k', '1.2 M')
    """
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(round(number))


def size(number: float) -> str:
    """Write a number of bytes shortly.

    >>> size(512), size(16_384), size(3_500_000)
    ('512 B', '16.0 KiB', '3.3 MiB')
    """
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 2**power:
            return f"{number / 2**power:.1f} {unit}"
    return f"{round(number)} B"


def cost_lines(cost: Cost) -> list[list[str]]:
    """Return the rows of a table: a level each, what stands between them, and all together."""
    rows = [["", "parameters", "state", "forward", "backward", "decode", "moved", "moved decoding"]]
    named = [(name, cost.level(name)) for name in cost.levels]
    for name, part in [*named, ("equations", cost.equations), ("all", cost.total)]:
        rows.append(
            [
                name,
                amount(part.parameters) if part.parameters else "-",
                size(part.state_bytes) if part.state_bytes else "-",
                amount(part.forward.flops / cost.tokens),
                amount(part.backward.flops / cost.tokens),
                amount(part.decode.flops),
                size((part.forward.bytes + part.backward.bytes) / cost.tokens),
                size(part.decode.bytes),
            ]
        )
    return rows
