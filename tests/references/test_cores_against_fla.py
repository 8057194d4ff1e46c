"""The loops written here against flash-linear-attention's own naive references."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.references import cores
from tests.references.layers import unit

FLA = find_spec("fla")
pytestmark = pytest.mark.skipif(FLA is None, reason="fla-core is not installed")

B, T, H, K, V = 2, 9, 3, 4, 5


def naive(name: str) -> ModuleType:
    """Load one file of fla alone: the whole package would load triton."""
    assert FLA is not None and FLA.submodule_search_locations
    path = Path(FLA.submodule_search_locations[0]) / "ops" / name / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{name.replace('/', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


Q, KEY, VALUE = draw(B, T, H, K), unit(draw(B, T, H, K, seed=1)), draw(B, T, H, V, seed=2)
BETA, GATE = draw(B, T, H, seed=3).sigmoid(), draw(B, T, H, seed=4).sigmoid()
CHANNELS = draw(B, T, H, K, seed=5).sigmoid()
FIRST = draw(B, H, V, K, seed=6)


def close(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor | None]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    if theirs[1] is not None:
        torch.testing.assert_close(ours[1], theirs[1].mT, rtol=1e-4, atol=1e-5)


def test_linear_attention() -> None:
    theirs = naive("linear_attn").naive_recurrent_linear_attn(
        Q, KEY, VALUE, scale=1.0, initial_state=FIRST.mT, output_final_state=True
    )
    close(cores.linear_attention(Q, KEY, VALUE, FIRST), theirs)


def test_retention() -> None:
    gamma = (1 - 2.0 ** (-5 - torch.arange(H))).expand(B, T, H)
    ours = cores.decayed_attention(Q * K**-0.5, KEY, VALUE, gamma, 0 * FIRST)
    heads_first = [x.transpose(1, 2) for x in (Q, KEY, VALUE)]
    close(ours, (naive("retention").naive_retention(*heads_first).transpose(1, 2), None))


def test_gated_linear_attention() -> None:
    theirs = naive("gla").naive_recurrent_gla(
        Q, KEY, VALUE, CHANNELS.log(), initial_state=FIRST.mT, output_final_state=True
    )
    close(cores.decayed_attention(Q * K**-0.5, KEY, VALUE, CHANNELS, FIRST), theirs)


def test_delta_rule() -> None:
    heads_first = [x.transpose(1, 2) for x in (Q, KEY, VALUE, BETA)]
    out, state = naive("delta_rule").delta_rule_recurrence(*heads_first, initial_state=FIRST.mT)
    ours = cores.delta_rule(Q * K**-0.5, KEY, VALUE, BETA, FIRST)
    close(ours, (out.transpose(1, 2), state))


def test_gated_delta_rule() -> None:
    theirs = naive("gated_delta_rule").naive_recurrent_gated_delta_rule(
        Q, KEY, VALUE, BETA, GATE.log(), 1.0, FIRST.mT, output_final_state=True
    )
    close(cores.gated_delta_rule(Q, KEY, VALUE, GATE, BETA, FIRST), theirs)


def test_gate_of_each_channel() -> None:
    theirs = naive("kda").naive_recurrent_kda(
        Q, KEY, VALUE, CHANNELS.log(), BETA, 1.0, FIRST.mT, output_final_state=True
    )
    close(cores.gated_delta_rule(Q, KEY, VALUE, CHANNELS, BETA, FIRST), theirs)


def test_rwkv7_is_diagonal_plus_low_rank() -> None:
    a = draw(B, T, H, K, seed=7).sigmoid()
    value, first = VALUE[..., :K], FIRST[:, :, :K]
    heads_first = [x.transpose(1, 2) for x in (Q, KEY, value, -KEY, KEY * a, CHANNELS.log())]
    dplr = naive("generalized_delta_rule/dplr").dplr_recurrence
    out, state = dplr(*heads_first, initial_state=first.mT)
    ours = cores.rwkv7(Q * K**-0.5, CHANNELS, KEY, value, KEY, a, first)
    close(ours, (out.transpose(1, 2), state))
