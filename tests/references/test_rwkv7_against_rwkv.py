"""The compiled RWKV-7 against the official `rwkv` package: the same weights, in float32.

The package is not imported, since that sets torch's switches and prints: its functions are taken
from its source, in the forms without CUDA kernels. They compute values only; gradients are compared
with the interpreter and with the model by hand.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nlc
from tests.references.compare import close
from tests.references.layers import within
from tests.references.test_library import SPECS

RWKV = find_spec("rwkv")
pytestmark = pytest.mark.skipif(RWKV is None, reason="the package rwkv is not installed")

HEADS, SIZE = 4, 32
T = 33
NAMES = ("RWKV_x070_TMix_seq", "RWKV_x070_CMix_seq", "forward_seq")


@cache
def official() -> dict[str, Any]:
    """The package's functions by name; of several forms the last is the plain one."""
    assert RWKV is not None and RWKV.origin is not None
    source = ast.parse((Path(RWKV.origin).parent / "model.py").read_text("utf-8"))
    space: dict[str, Any] = {"torch": torch, "F": nn.functional, "List": list}
    found = {n.name: n for n in ast.walk(source) if isinstance(n, ast.FunctionDef)}
    for name in NAMES:
        found[name].decorator_list = []
        exec(compile(ast.Module([found[name]], []), name, "exec"), space)
    return space


@cache
def compiled() -> nlc.Compiled:
    return nlc.compile(nlc.load(SPECS / "rwkv7.nl"))


def randomised(module: nn.Module) -> nn.Module:
    """Away from the initial values, many of which are zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return module


def draw(*sizes: int, seed: int = 2) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def time_weights(p: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters of a `time_mix` under the official names, as the package keeps them."""
    theirs = {f"x_{of}": p[f"x_{of}"] for of in "rwkvag"}
    for gate in "wav":
        theirs[f"{gate}0"] = p[f"{gate}0"].flatten()
    for gate in "wavg":
        theirs |= {f"{gate}{i}": p[f"{gate}{i}.weight"].mT for i in (1, 2)}
    theirs |= {name: p[name].flatten() for name in ("k_k", "k_a", "r_k")}
    full = {"receptance": "W_r", "key": "W_k", "value": "W_v", "output": "W_o"}
    theirs |= {f"{name}.weight": p[f"{own}.weight"].mT for name, own in full.items()}
    return theirs | {"ln_x.weight": p["gain"].flatten(), "ln_x.bias": p["offset"].flatten()}


def channel_weights(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x_k": p["x_k"], "key.weight": p["W_k.weight"].mT, "value.weight": p["W_v.weight"].mT}


def model_weights(p: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole model's; the norm after the embedding is taken into it, as the package does."""
    norm = nn.functional.layer_norm
    emb = norm(p["embed.weight"], (HEADS * SIZE,), p["ln.gain"], p["ln.offset"])
    theirs = {"emb.weight": emb, "head.weight": p["unembed.weight"].mT}
    places = {"ln_out": "ln_1"}
    for layer in range(4):
        at, own = f"blocks.{layer}", f"repeat.{layer}"
        places |= {f"{at}.ln1": f"{own}.ln", f"{at}.ln2": f"{own}.ln_1"}
        time, channel = within(p, f"{own}.time_mix."), within(p, f"{own}.channel_mix.")
        theirs |= {f"{at}.att.{name}": value for name, value in time_weights(time).items()}
        theirs |= {f"{at}.ffn.{name}": value for name, value in channel_weights(channel).items()}
    for name, own in places.items():
        theirs |= {f"{name}.weight": p[f"{own}.gain"], f"{name}.bias": p[f"{own}.offset"]}
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_time_mix_is_the_official_one(layer: int) -> None:
    """From a state in the middle of a sequence; in the first layer without a first value."""
    block = randomised(compiled().block("time_mix"))
    x, first = draw(T, HEADS * SIZE), draw(T, HEADS * SIZE, seed=3)
    past, S = draw(HEADS * SIZE, seed=4), draw(HEADS, SIZE, SIZE, seed=5)
    weights = time_weights(dict(block.named_parameters()))
    mix = official()["RWKV_x070_TMix_seq"]
    out, last, after, value = mix(
        layer, HEADS, SIZE, x, past, first, S, *(weights[f"x_{of}"] for of in "rwkvag"),
        *(weights[f"{of}{i}"] for of in "wav" for i in range(3)), weights["g1"], weights["g2"],
        *(weights[f"{of}"] for of in ("k_k", "k_a", "r_k", "receptance.weight", "key.weight")),
        *(weights[f"{of}"] for of in ("value.weight", "output.weight", "ln_x.weight", "ln_x.bias")),
    )  # fmt: skip
    given = [first.view(1, T, HEADS, SIZE)] if layer else []
    state = {"S": S[None], "shift_1": past[None, None]}
    (ours, v_first), moved = block(x[None], *given, state=state)
    close(ours[0], out, "out", 1e-5)
    close(v_first[0].flatten(-2), value, "the first layer's value", 1e-5)
    close(moved["S"][0], after, "S", 1e-5)
    close(moved["shift_1"][0, 0], last, "the last token", 1e-5)


@torch.no_grad()
def test_channel_mix_is_the_official_one() -> None:
    block = randomised(compiled().block("channel_mix"))
    x, past = draw(T, HEADS * SIZE), draw(HEADS * SIZE, seed=4)
    weights = channel_weights(dict(block.named_parameters()))
    out, last = official()["RWKV_x070_CMix_seq"](x, past, *weights.values())
    ours, moved = block(x[None], state={"shift_1": past[None, None]})
    close(ours[0], out, "out", 1e-5)
    close(moved["shift_1"][0, 0], last, "the last token", 1e-5)


@torch.no_grad()
def test_the_model_is_the_official_one_with_its_weights() -> None:
    model = randomised(compiled().model())
    z = model_weights(dict(model.named_parameters()))
    theirs = SimpleNamespace(z=z, n_layer=4, n_head=HEADS, head_size=SIZE, n_embd=HEADS * SIZE)
    tokens = torch.randint(256, (1, T), generator=torch.Generator().manual_seed(6))
    zeros = torch.zeros(HEADS * SIZE)
    empty = [zeros, torch.zeros(HEADS, SIZE, SIZE), zeros]
    logits, state = official()["forward_seq"](theirs, tokens[0].tolist(), empty * 4, True)
    ours, moved = model(tokens)
    close(ours[0], logits, "logits", 1e-5)
    for layer in range(4):
        own = moved["repeat"][str(layer)]["time_mix"]["S"][0]
        close(own, state[3 * layer + 1], f"S of layer {layer}", 1e-5)
