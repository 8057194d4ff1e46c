"""Every shipped system against a model written by hand: logits, states, loss, all gradients."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.ir.online import online_levels
from nlc.ir.system import System
from nlc.runtime.initial import initial_parameters
from nlc.runtime.reference import Reference
from tests.references.compare import close, draw_parameters, gradients, leaves, project, same_state
from tests.references.layers import cross_entropy
from tests.references.library import MODELS
from tests.unit.codegen.agree import agree, randomised

SPECS = Path(str(files("nlc.specs")))
# small sizes, all different; the rest is as shipped
SMALL = {"d": 8, "heads": 2, "d_k": 4, "d_v": 6, "hidden": 10, "window": 3, "waves": 4}
SMALL |= {"rank": 3, "gate": 5, "inner": 7, "span": 3, "units": 5, "m": 5, "parts": 5}
SMALL |= {"width": 5, "persistent": 2}
# periods and chunks that are sizes of the spec; near and far divide a segment
SMALL |= {"chunk": 3, "segment": 4, "near": 2, "far": 4, "day": 3}
CHUNK = 3
# of the levels that learn from the task while a sequence is read
PERIODS = (2, 4, 4)
# what has no effect: the first layer of RWKV-7 has its own value where others have the first one's
IDLE = {"rwkv7": ("repeat.0.time_mix.v0", "repeat.0.time_mix.v1", "repeat.0.time_mix.v2")}


@cache
def small(name: str) -> System:
    path = SPECS / f"{name}.nl"
    shipped = nlc.load(path)
    changes: dict[str, int | str] = {f"dims.{d}": SMALL[d] for d, _ in shipped.dims if d in SMALL}
    smaller = nlc.load(path, set=changes)
    # where no size of the spec stands for it
    same = {v.name for v in smaller.levels if v.chunk == shipped.level(v.name).chunk}
    changes |= {f"levels.{n}.chunk": chunk for n, chunk in chunks(shipped).items() if n in same}
    periods = zip(online_levels(shipped, shipped.model), PERIODS, strict=False)
    for level, period in periods if shipped.model is not None else ():
        changes[f"levels.{level.name}.every"] = f"{period} tokens"
    return nlc.load(path, set=changes)


def chunks(shipped: System) -> dict[str, int]:
    """The chunk of each level that has one: 3, and 6 for a longer one."""
    written = {v.name: v.chunk for v in shipped.levels if v.chunk > 1}
    if shipped.model is not None and online_levels(shipped, shipped.model):
        # windows are multiples of all chunks
        return {n: 1 if c == min(written.values()) else 2 for n, c in written.items()}
    return {n: CHUNK if c == min(written.values()) else 2 * CHUNK for n, c in written.items()}


def draw_tokens(length: int, seed: int = 3) -> Tensor:
    return torch.randint(256, (2, length), generator=torch.Generator().manual_seed(seed))


def test_every_shipped_system_has_a_model_by_hand() -> None:
    shipped = {path.stem for path in SPECS.iterdir() if path.suffix in (".nl", ".yaml")}
    assert shipped - {"rules"} == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_agrees_with_the_model_by_hand(name: str) -> None:
    system = small(name)
    p, tokens, targets = draw_parameters(system, None), draw_tokens(7), draw_tokens(7, 4)
    run, dims = Reference(system, p), dict(system.dims) | {"chunk": CHUNK}
    dims |= {level.name: level.chunk for level in system.levels}
    dims |= {f"{level.name} period": level.period.count for level in system.levels}
    logits, state = run(tokens)
    wanted, wanted_state = MODELS[name](p, tokens, dims)
    close(logits, wanted, "logits")
    ours, theirs = leaves(state), leaves(wanted_state)
    assert set(theirs) <= set(ours)
    for path, value in theirs.items():
        close(ours[path], value, path)
    expected = cross_entropy(wanted, targets)
    loss = run.loss(tokens, targets)
    close(loss, expected, "loss")
    found = gradients(loss, p)
    for path, value in gradients(expected, p).items():
        close(found[path], value, f"gradient of {path}")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_cut_sequence_is_one_pass(name: str) -> None:
    system = small(name)
    p, tokens = draw_parameters(system, None), draw_tokens(5)
    with torch.no_grad():
        run = Reference(system, p)
        whole, last = run(tokens)
        first, state = run(tokens[:, :2])
        second, after = run(tokens[:, 2:], state)
    close(torch.cat([first, second], dim=1), whole, "logits")
    same_state(after, last)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_emitted_modules_draw_the_same_initial_values(name: str) -> None:
    system = small(name)
    module = nlc.compile(system).model()
    torch.manual_seed(5)
    module.reset_parameters()
    drawn = dict(module.named_parameters())
    wanted = initial_parameters(system, seed=5)
    assert set(drawn) == set(wanted)
    for path, value in wanted.items():
        assert torch.equal(drawn[path].detach(), value), path


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_emitted_block_agrees_with_the_interpreter_at_any_cut(name: str) -> None:
    system = small(name)
    for block in system.blocks:
        agree(system, block.name, tokens=7)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_parameter_learns_in_a_step_of_training(name: str) -> None:
    """Away from the initial values: maps that begin at zero hide what lies behind them."""
    compiled = nlc.compile(small(name))
    model = randomised(compiled.model())
    optimizer = compiled.optimizer(model)
    # a level of several steps waits for its period
    late = {p for g in optimizer.param_groups if g["period"] > 1 for p in g["params"]}
    before = {path: value.detach().clone() for path, value in model.named_parameters()}
    logits, _ = model(draw_tokens(7))
    loss = model.loss(logits, draw_tokens(7, 4))
    loss.backward()
    optimizer.step()
    assert bool(loss.isfinite())
    for path, value in model.named_parameters():
        assert value.grad is not None and bool(value.isfinite().all()), path
        idle = path.startswith(IDLE.get(name, ()))
        assert bool(value.grad.abs().sum() > 0) is not idle, path
        assert idle or torch.equal(value, before[path]) is (value in late), path


@pytest.mark.parametrize("name", sorted(MODELS))
def test_emitted_models_agree_with_the_interpreter(name: str) -> None:
    system = small(name)
    module = nlc.compile(system).model().double()
    p = draw_parameters(system, None)
    with torch.no_grad():
        for path, value in module.named_parameters():
            value.copy_(p[path])
    own, tokens = dict(module.named_parameters()), draw_tokens(7)
    logits, state = module(tokens)
    wanted, wanted_state = Reference(system, own)(tokens)
    close(logits, wanted, "logits")
    same_state(state, wanted_state)
    ours = gradients(project({"logits": logits, **leaves(state)}), own)
    theirs = gradients(project({"logits": wanted, **leaves(wanted_state)}), own)
    for path, value in theirs.items():
        close(ours[path], value, f"gradient of {path}", 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_long_text_of_one_letter_does_not_overflow(name: str) -> None:
    """As shipped: steps on the same pair, taken together, add up to more than any one of them."""
    torch.manual_seed(0)
    model = nlc.compile(nlc.load(SPECS / f"{name}.nl")).model()
    with torch.no_grad():
        logits, _ = model(torch.full((1, 768), 32))
    assert bool(logits.isfinite().all())
