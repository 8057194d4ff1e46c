"""The cost report against what torch counts when the emitted code runs.

Products, parameters and states are equal to the last digit. Where that takes a condition it is
said: a state given from outside needs a gradient, so that the first token is like all others.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nlc
from nlc.ir.cost import Cost
from nlc.ir.normal_form import Affine
from nlc.ir.operations import OPERATIONS
from nlc.ir.slots import choice
from nlc.ir.system import System
from nlc.passes.cost import cost
from nlc.passes.plan import plan, reads_start
from nlc.passes.work import ARITHMETIC
from tests.properties.test_affine import Writer
from tests.references import (
    features_chunk,
    features_entries,
    features_memory,
    features_slots,
    features_times,
    features_update,
    features_window,
)
from tests.references.features import FEATURES
from tests.references.specs import block
from tests.references.systems import SYSTEMS
from tests.unit.codegen.test_units import NESTED
from tests.unit.passes.counters import Bytes, Counted, count, inputs

# importing them fills the registry
assert features_chunk and features_memory and features_update
assert features_entries and features_slots and features_times and features_window
SPECS = Path(nlc.__file__).parents[1] / "specs"
SMALL = {"d": 16, "heads": 2, "d_k": 4, "d_v": 4, "hidden": 12, "window": 5}
# windows, chunks and resets that a spec has as sizes
SMALL |= {"chunk": 6, "segment": 6, "day": 6, "near": 2, "far": 3}
LIBRARY = sorted(path.stem for path in SPECS.glob("*.nl") if path.stem != "rules")
BLOCKS = {name: text for name, (text, _) in {**SYSTEMS, **FEATURES}.items()}
# what decoding costs is the mean over a window
WINDOWS = sorted(
    name
    for name, text in BLOCKS.items()
    if re.search(r"every \d+ tokens$|steps {", text, re.M)
    and not re.search("kernel.*reset", text, re.S)
)
# backward through eigenvectors is an estimate
EXACT = sorted(set(BLOCKS) - {"eig", *WINDOWS})


def counted(system: System, tokens: int) -> tuple[Cost, Counted]:
    found = cost(system, plan(system), tokens)
    assert found is not None
    total = found.total
    return found, Counted(
        total.forward.products,
        total.backward.products,
        total.decode.products,
        total.state_bytes,
        total.parameters,
    )


def same(ours: Counted, theirs: Counted, resets: bool) -> bool:
    """Compare counts; what a reset throws away is counted as if a gradient came back to it."""
    if resets and ours.backward > 0.98 * theirs.backward:
        ours = replace(ours, backward=theirs.backward)
    return ours == theirs


def library(name: str) -> System:
    dims = dict(nlc.load(SPECS / f"{name}.nl").dims)
    small = {f"dims.{k}": v for k, v in SMALL.items() if k in dims}
    return nlc.load(SPECS / f"{name}.nl", set=small)


def test_every_operation_is_counted() -> None:
    assert set(ARITHMETIC) == set(OPERATIONS)


@pytest.mark.parametrize("name", EXACT)
def test_a_block_costs_what_torch_counts(name: str) -> None:
    # keys and values of one size, or torch's attention on a CPU takes another way backward
    system = nlc.parse(BLOCKS[name].replace("d_v = 3", "d_v = 4"))
    softmax = any(m.map.kind == "kernel" for m in system.block("mixer").memories)
    # writes that are known to gradients ask for none of zeros, given or not
    stopped = any(
        isinstance(form, Affine) and form.stopped is not None
        for schedule in plan(system).block("mixer").schedules
        for _, form in schedule.forms
    )
    given = not softmax and not stopped
    ours, theirs = counted(system, 37)[1], count(system, "mixer", 37, given=given)
    assert same(ours, theirs, "reset" in BLOCKS[name])


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_cost_what_torch_counts(name: str) -> None:
    system = nlc.parse(BLOCKS[name].replace("d_v = 3", "d_v = 4"))
    hold_windows(system, "mixer")


def hold_windows(system: System, name: str, calls: int = 1) -> None:
    block = system.block("mixer")
    softmax = any(m.map.kind == "kernel" for m in block.memories)
    ours, theirs = counted(system, 37)[1], count(system, name, 37, not softmax, steps=12)
    assert abs(12 * ours.decode - theirs.decode) <= 12 * calls * (1 + len(block.memories))
    # what a reset or `through stop` leaves without a use, or the last window has of its own
    whole = all(m.reset is None and m.through == "full" for m in block.memories) and not softmax
    exact = whole and not any(m.lead and m.lead[-1].name == "n" for m in block.memories)
    assert abs(ours.backward - theirs.backward) <= (0 if exact else 0.25) * theirs.backward
    if any(m.lead and m.lead[-1].name == "n" for m in block.memories):
        # blocks of tokens in a piece of one token have no sums
        assert abs(ours.forward - theirs.forward) <= 0.01 * theirs.forward
        ours = replace(ours, forward=theirs.forward)
    assert replace(ours, backward=0, decode=0) == replace(theirs, backward=0, decode=0)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_random_affine_updates_cost_what_torch_counts(seed: int) -> None:
    text = block(Writer(seed).body())
    system = nlc.parse(text)
    looped = plan(system).block("mixer").schedule("M").kind == "sequential"
    # zeros need no gradient; that is counted, but for a sequence of a single tile
    given = looped or "init learned" in text
    ours, theirs = counted(system, 70)[1], count(system, "mixer", 70, given=given)
    assert same(ours, theirs, "reset" in text)


@pytest.mark.parametrize("name", LIBRARY)
def test_a_model_costs_what_torch_counts(name: str) -> None:
    system = library(name)
    memories = [m for block in system.blocks for m in block.memories]
    if any(m.is_task for m in memories):
        ours, theirs = counted(system, 70)[1], count(system, "", 70, given=False)
        assert (ours.state_bytes, ours.parameters) == (theirs.state_bytes, theirs.parameters)
        # gradients of windows are estimates
        assert 0.7 < ours.forward / theirs.forward < 1.4, (ours, theirs)
        return
    if any(m.window > 1 for m in memories) and not any(map(choice, memories)):
        hold_windows(system, "", calls=4)
        return
    # more than one tile, as the first begins with a state that needs no gradient
    ours, theirs = counted(system, 70)[1], count(system, "", 70, given=False)
    if any(map(choice, memories)):
        # what the last window has of its own, and blocks of tokens in its piece
        assert abs(ours.forward - theirs.forward) <= 0.01 * theirs.forward
        assert abs(ours.backward - theirs.backward) <= 0.01 * theirs.backward
        ours = replace(ours, forward=theirs.forward, backward=theirs.backward)
    if any(reads_start(m) and not m.learned for m in memories):
        # zeros before the first chunk need no gradient
        assert 0 <= ours.backward - theirs.backward < 0.01 * theirs.backward
        ours = replace(ours, backward=theirs.backward)
    assert ours == theirs


def test_blocks_in_blocks_and_repeats_count_every_call() -> None:
    system = nlc.parse(NESTED)
    ours, theirs = counted(system, 9)[1], count(system, "", 9, given=True)
    assert ours.forward == theirs.forward and ours.decode == theirs.decode
    assert (ours.state_bytes, ours.parameters) == (theirs.state_bytes, theirs.parameters)


@pytest.mark.parametrize(
    "name", ["gated_deltanet", "kda", "linear_attention", "titans_lmm", "transformer"]
)
def test_bytes_are_near_what_pytorch_moves(name: str) -> None:
    """Backward, autograd also fills and adds up gradients that the estimate leaves out."""
    system = nlc.load(SPECS / f"{name}.nl")
    total = counted(system, 64)[0].total
    module, (tokens,) = inputs(system, "", 64)
    with Bytes() as forward:
        logits, state = module(tokens)
    with Bytes() as backward:
        logits.sum().backward()
    with Bytes() as decode, torch.no_grad():
        module.step(tokens[:, 0], state)
    assert 0.7 < total.forward.bytes / forward.total < 1.05
    assert 0.6 < total.backward.bytes / backward.total < 1.4
    assert 0.9 < total.decode.bytes / decode.total < 1.05


def test_levels_and_equations_come_to_the_whole() -> None:
    found = counted(library("titans_lmm"), 64)[0]
    parts = [*(found.level(name) for name in found.levels), found.equations]
    total = found.total
    for name in ("forward", "backward", "decode"):
        works = [getattr(part, name) for part in parts]
        assert sum(w.flops for w in works) == getattr(total, name).flops
        assert sum(w.bytes for w in works) == getattr(total, name).bytes
    assert sum(part.state_bytes for part in parts) == total.state_bytes
    assert sum(part.parameters for part in parts) == total.parameters
    # what a memory begins with is learned at the slow level
    assert found.level("fast").parameters == 0


def test_an_eager_token_loop_moves_the_state_and_tiles_do_not() -> None:
    tiled = counted(nlc.load(SPECS / "gated_deltanet.nl"), 512)[0].entry("mixer.S")
    exact = nlc.load(SPECS / "titans_lmm.nl", set={"levels.fast.chunk": 1})
    looped = counted(exact, 512)[0].entry("mixer.M")
    assert tiled.forward.bytes / 512 < 2 * tiled.state_bytes
    assert looped.forward.bytes / 512 > 4 * looped.state_bytes


def test_decoding_does_not_depend_on_the_length_but_with_attention() -> None:
    for name, grows in (
        ("gated_deltanet", False),
        ("sliding_window", False),
        ("transformer", True),
    ):
        short, long = (counted(library(name), n)[0].total.decode.flops for n in (64, 128))
        assert (long > short) == grows


def test_what_nothing_needs_costs_nothing() -> None:
    text = SYSTEMS["gated deltanet"][0]
    more = text.replace("  out = W_o(", "  idle = W_o(v) + W_o(v * 2)\n  out = W_o(")
    assert counted(nlc.parse(more), 37)[1] == counted(nlc.parse(text), 37)[1]


def test_a_system_that_cannot_run_has_no_cost() -> None:
    text = SYSTEMS["gated deltanet"][0].replace("at fast {", "at fast {\n    objective task")
    text = re.sub("(level fast every 1 token).*", r"\1, chunk 2", text)
    text += "model {\n  vocab 5\n  x[d] = embed(tokens)\n  logits = unembed(mixer(x))\n}\n"
    system = nlc.parse(text)
    assert system.unsupported and nlc.check(system).cost is None
