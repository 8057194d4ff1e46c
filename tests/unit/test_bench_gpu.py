"""All of `make bench-gpu` but the timing: calls to fla, correctness, floors, tables, the budget.

There is no GPU here, so fla's operations are bound to their signatures and stand for what its own
naive references give, and a timer gives seconds of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import fla
from bench.gpu import __main__ as command
from bench.gpu import compare, floor, ops, warm
from bench.gpu.cases import CASES, SHAPES, Shape
from bench.gpu.deep import CHUNKS, deep, titans
from bench.gpu.floor import Machine, Work
from bench.gpu.steps import optimizers
from bench.gpu.timer import Clock, OutOfTime, Runs, Took
from nlc.compiled import compile_system

pytest.importorskip("fla")
TINY = Shape(2, 19, 2, 16)
MACHINE = Machine(1e12, 1e15)


def heads_first(run: Callable[..., Any]) -> Callable[..., Any]:
    """Call what has heads before tokens."""

    def call(q: Tensor, *rest: Tensor, **more: Any) -> Any:
        out, state = run(*(x.transpose(1, 2) for x in (q, *rest)), **more)
        return out.transpose(1, 2), state

    return call


def retention(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Any:
    gamma = 1 - 2.0 ** (-5 - torch.arange(q.shape[2]))
    gates = gamma.log().expand(*q.shape[:3])[..., None].expand_as(q)
    return fla.naive("gla").naive_recurrent_gla(q, k, v, gates, **more)


def reference(name: str) -> Callable[..., Any]:
    """fla's naive form of an operation; all of these put their scale on the queries."""
    naive = {
        "delta_rule": lambda: heads_first(fla.naive("delta_rule").delta_rule_recurrence),
        "gated_delta_rule": lambda: (
            lambda q, k, v, g, beta, **m: fla.naive(
                "gated_delta_rule"
            ).naive_recurrent_gated_delta_rule(q, k, v, beta, g, **m)
        ),
        "rwkv7": lambda: heads_first(
            lambda q, w, k, v, a, b, **m: fla.naive(
                "generalized_delta_rule/dplr"
            ).dplr_recurrence(q, k, v, a, b, w, **m)
        ),
        "gla": lambda: fla.naive("gla").naive_recurrent_gla,
        "kda": lambda: fla.naive("kda").naive_recurrent_kda,
        "retention": lambda: retention,
    }  # fmt: skip
    return naive[name]()


# what carries the streams, in the order of each operation's signature
STREAMS = ("q", "r", "w", "k", "v", "g", "gk", "a", "b", "beta")


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind calls to the signatures of fla's operations, and run its naive forms."""
    real = ops.operation

    def operation(module: str, name: str) -> Callable[..., Any]:
        signature = inspect.signature(real(module, name))

        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            xs = [given[n] for n in signature.parameters if n in STREAMS and n in given]
            assert given.pop("scale") == 1.0
            more = {n: given[n] for n in ("initial_state", "output_final_state") if n in given}
            q, *rest = (x.float() for x in xs)
            out, state = reference(module)(q * q.shape[-1] ** 0.5, *rest, **more)
            return out.to(xs[0].dtype), state

        return call

    monkeypatch.setattr(ops, "operation", operation)


def timed(runs: Runs) -> Took:
    """Run everything once, and say that it takes as long as its name has letters."""
    for run in runs.values():
        run()
    return {name: float(len(name)) for name in runs}


@pytest.mark.parametrize("name", CASES)
def test_ours_and_calls_to_fla_agree_with_float64(name: str, bound: None) -> None:
    ours, theirs = compare.checked(CASES[name], TINY, "cpu")
    assert not isinstance(ours, str)
    assert max(ours) < 2e-2, ours
    if CASES[name].name:
        assert not isinstance(theirs, str), theirs
        assert max(theirs) < 2e-2, theirs


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.name])
def test_a_token_of_fla_is_ours(name: str, bound: None) -> None:
    torch.manual_seed(0)
    runs = compare.steps(CASES[name], TINY, "cpu")
    ours, theirs = (runs[n]()[0] for n in ("nlc", "fla"))  # type: ignore[index]
    assert compare.ratio(ours, theirs.double()) < 2e-2


def test_floors_count_bytes_and_operations() -> None:
    form = CASES["gated_deltanet"].form(TINY)
    streams = CASES["gated_deltanet"].draw(TINY, "cpu")
    work = floor.memory(form, streams, out=2 * 19 * 2 * 16 * 2, d_k=16, d_v=16)
    tokens = 2 * 19 * 2
    given = tokens * (3 * 16 * 2 + 2 + 4)
    out = tokens * 16 * 2
    assert work.bytes == (given + out, 3 * given + 2 * out)
    # one write that reads, and a read: three products
    assert work.operations == (tokens * 3 * 2 * 16 * 16, tokens * 9 * 2 * 16 * 16)
    assert floor.attention(1, 3, 1, 16).operations[0] == 2 * 2 * 6 * 16
    assert Work((10.0, 30.0), (8.0, 24.0)).floor(Machine(5, 2), back=True) == 12
    # a state and its momentum: one write into both
    momentum = floor.memory(CASES["titans_linear"].form(TINY), streams, 0, 16, 16)
    assert momentum.operations[0] == tokens * 4 * 2 * 16 * 16


def test_everything_is_measured_in_tables_that_are_whole(
    bound: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "graphed", lambda run: run)
    found = compare.Found(MACHINE, "cpu", tokens=5)
    shapes = [Shape(1, 7, 1, 16), Shape(2, 3, 1, 16)]
    listed = command.sections(found, timed, Clock(600), shapes)
    assert len(listed) == 7
    small = [s for s in listed if not s[0].startswith(("deep", "optimizers"))]
    command.run(small, found)
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 4 * len(CASES)
    widths = {line.count("|") for line in rows}
    assert widths <= {7, 9, 11}, widths
    for before, row in pairwise(lines):
        if before.startswith("|") and row.startswith("|"):
            assert before.count("|") == row.count("|"), row
    # both take three letters
    assert found.took["kda", shapes[0], True] == {"nlc": 3.0, "fla": 3.0}
    said = compare.summary(found)
    assert said[0].startswith("fla / nlc, forward and backward: geometric mean 1.00 over 16 cases")
    assert not any(line.startswith("not measured") for line in said)


def test_a_deep_memory_is_measured_beside_titans_pytorch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("titans_pytorch")
    found = compare.Found(MACHINE, "cpu")
    deep(found, timed, Clock(600), Shape(1, 16, 2, 16), chunks=[8])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| chunk")]
    assert [row.count("|") for row in rows] == [9, 9]
    assert "fails" not in "".join(rows)


def test_a_deep_memory_runs_as_kernels_at_every_size_that_is_measured() -> None:
    for d in {shape.d for shape in SHAPES}:
        made = compile_system(titans(CHUNKS[0], Shape(1, 1, 1, d)), "triton")
        roles = {kernel.role for kernel in made.with_kernels.kernels if kernel.sliced}
        assert roles == {"course", "course_back", "writes_back", "read", "read_back"}


def test_optimizers_are_measured_beside_torch(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare.Found(MACHINE, "cpu")
    # on a CPU torch's fused AdamW is there as well
    optimizers(found, timed, Clock(600), width=16, layers=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| adamw", "| adamw", "| muon"]
    assert {row.count("|") for row in rows} == {9}
    assert float(rows[2].split(" | ")[1]) < 1e-6
    assert "fails" not in "".join(rows)


def test_what_there_was_no_time_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare.Found(MACHINE, "cpu")
    command.run(command.sections(found, timed, Clock(0)), found)
    said = "\n".join(compare.summary(found))
    assert "not measured: the rest of correctness: no time" in said
    assert f"not measured: {SHAPES[2]}: no time" in said
    assert "the time is used up" in capsys.readouterr().out


def test_what_breaks_off_leaves_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise RuntimeError("an illegal address\nand more")

    found = compare.Found(MACHINE, "cpu")
    command.run([("one", broken), ("other", lambda: print("| measured |"))], found)
    assert "| measured |" in capsys.readouterr().out
    assert compare.summary(found) == [
        "not measured: the rest of one: RuntimeError, an illegal address"
    ]


def test_what_runs_is_interrupted_at_the_end_of_the_budget() -> None:
    clock = Clock(0.05)
    clock.alarm()
    with pytest.raises(OutOfTime):
        while True:
            sum(range(1000))
    clock.quiet()


def test_what_is_compiled_beforehand_is_split_into_parts_that_cover_it() -> None:
    tuner = pytest.importorskip("triton.runtime.autotuner").Autotuner
    before = tuner.do_bench
    words = warm.tasks([*CASES], [(16, 128), (8, 64)])
    try:
        ran: list[tuple[int, int]] = []
        for part in range(warm.PARTS):
            warm.run_a_part(part, warm.PARTS)
            bench = tuner.do_bench.fget(object())
            times = [
                bench(lambda i=i, part=part: ran.append((i, part)), (0.5, 0.2, 0.8))
                for i in range(10)
            ]
            assert min(times) == [1.0] * 3
        assert sorted(i for i, _ in ran) == list(range(10))
    finally:
        tuner.do_bench = before
    assert len(words) == 2 * (6 * warm.PARTS + 3)
    # every choice of fla's operations is some process' part
    assert {tuple(w[3:]) for w in words if w[0] == "rwkv7"} == {
        (str(part), str(warm.PARTS)) for part in range(warm.PARTS)
    }
    one = Shape(1, 32, 2, 16)
    assert CASES["rwkv7"].draw(one, "cpu")[0].shape == (1, 32, 2, 16)


def test_compiling_beforehand_runs_every_case(bound: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "SHAPES", ((2, 3), (1, 3)))
    warm.one("gated_deltanet", 2, 16, 0, warm.PARTS, "cpu")
    warm.one("kda_kept", 2, 16, 0, 1, "cpu")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here"):
        monkeypatch.setattr("sys.argv", ["bench.gpu"])
        command.main()


def test_what_fails_is_a_cell() -> None:
    assert compare.over("out of memory", 1.0) == "-"
    assert compare.written("out of memory") == "out of memory"
    assert compare.error((1e-3, 1e-2)) == "1.0e-03 | 1.0e-02 (!)"
