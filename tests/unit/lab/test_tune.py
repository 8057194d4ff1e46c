"""Block sizes: the search over rows, the table that it extends, and what is said without a GPU."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest
from nlc.codegen.triton import table
from nlc.codegen.triton.table import Measured, Row, block_sizes, extended, measured
from typer.testing import CliRunner

import nlc
from nlc.cli.app import app
from nlc.compiled import compile_system
from nlc.ir.kernel import Emitted
from nlc.ir.schedule import Keeping
from nlc.lab.faults import LabError
from nlc.lab.tune import Bench, search, tune


def emitted(gates: str = "ScalarGate", tile: int = 64, size: int = 128) -> Emitted:
    return Emitted("k", "m", "tiles", "T", frozenset(), False, size, size, gates, tile)


def test_a_search_finds_the_fastest_row_place_by_place() -> None:
    asked: list[Row] = []

    def times(row: Row) -> float:
        asked.append(row)
        tokens, channels, warps, loop, stages = row
        if channels == 128:
            return inf  # as what has no room
        return 10 + abs(tokens - 64) + abs(channels - 64) + 3 * warps + loop - stages

    best, before, after, tried = search((32, 32, 8, 8, 2), times, emitted())
    assert best == (64, 64, 2, 2, 3)
    assert (before, after) == (10 + 32 + 32 + 24 + 8 - 2, 10 + 6 + 2 - 3)
    # no row is measured twice, and far fewer than all are
    assert tried == len(asked) == len(set(asked)) < 40


def test_a_row_is_kept_unless_another_is_faster_by_more_than_noise() -> None:
    row = (32, 32, 8, 8, 2)
    assert search(row, lambda other: 1.0 if other == row else 0.99, emitted())[0] == row


def test_rows_stay_within_what_gates_and_sizes_allow() -> None:
    asked: list[Row] = []

    def times(row: Row) -> float:
        asked.append(row)
        return 1.0 / (row[0] * row[1])

    assert search((16, 16, 4, 4, 2), times, emitted("RelativeGates", 32, 32))[0][:2] == (32, 32)
    assert search((16, 16, 4, 4, 2), times, emitted("ChannelGates"))[0][0] == 16


def test_a_table_is_extended_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Measured("sm_90", "ScalarGate", 64, (64, 64, 4, 4, 3), "a GPU", (8, 2048, 64, 64))
    other = Measured("sm_80", "ScalarGate", 64, (32, 64, 4, 4, 2), "a GPU", (8, 2048, 64, 64))
    better = Measured("sm_90", "ScalarGate", 64, (16, 64, 4, 4, 3), "a GPU", (1, 99, 60, 64))
    text = extended(extended("[]", [one, other]), [better])
    assert extended(text, []) == text
    assert len(json.loads(text)) == 2
    path = tmp_path / "blocks.json"
    path.write_text(text)
    assert measured(path)["sm_90", "ScalarGate", 64] == better.row
    monkeypatch.setattr(table, "measured", lambda: measured(path))
    scalar = block_sizes(Keeping("ScalarGate", 32), 60, 64)
    assert scalar["sm_90"] == better.row
    assert scalar["sm_80"] == other.row
    assert scalar["sm_100"] == table.SIZES[64]
    assert block_sizes(Keeping("CoupledGates", 32), 60, 64)["sm_90"] == table.SIZES[64]


def test_measured_rows_of_layers_and_loops_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {("sm_90", "layers", 4096): (64, 1, 8, 8, 2), ("sm_90", "loop", 2048): (16, 64, 1, 2, 3)}
    monkeypatch.setattr(table, "measured", lambda: rows)
    assert table.layer_sizes(64, 4000, 64)["sm_90"] == (64, 1, 8, 8, 2)
    assert table.layer_sizes(64, 4000, 64)["sm_80"] == (16, 1, 4, 4, 1)
    assert table.slice_sizes(64, 300, 64)["sm_90"] == (16, 1, 8, 8, 1)
    # a tile is no longer than the chunk, or than gates allow
    assert table.layer_sizes(20, 4000, 64)["sm_90"][0] == 32
    assert table.layer_sizes(64, 4000, 16)["sm_90"][0] == 16
    assert table.loop_sizes(2000, (1, 128), 32, (4, 8))["sm_90"] == (16, 64, 1, 2, 3)
    assert table.loop_sizes(2000, (1, 8), 8, (4, 8))["sm_90"] == (16, 8, 1, 2, 3)
    assert table.loop_sizes(5000, (1, 128), 32, (4, 8))["sm_90"] == (64, 32, 4, 8, 1)


def test_the_committed_table_is_sound() -> None:
    text = table.MEASURED.read_text("utf-8")
    assert extended(text, []) == text
    for (architecture, kind, size), row in measured().items():
        assert architecture in table.ARCHITECTURES
        assert size in table.SIZES or kind in (table.OF_LAYERS, table.OF_SLICES, table.OF_LOOP)
        assert all(x & (x - 1) == 0 for x in row[:4])


def test_without_a_gpu_it_says_so() -> None:
    result = CliRunner().invoke(app, ["bench", "deltanet", "--tune"])
    assert isinstance(result.exception, LabError)
    assert "there is no GPU here" in result.exception.what


def test_a_spec_without_kernels_has_nothing_to_tune() -> None:
    compiled = compile_system(nlc.load("specs/transformer.nl"), "triton")
    with pytest.raises(LabError, match="nothing to tune"):
        next(tune(compiled, Bench(1, 8, "none", lambda run: 1.0, "cpu")))
