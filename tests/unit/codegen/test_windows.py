"""What windows promise besides their numbers: one pass, one update, nothing too large."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import nlc
from nlc.compiled import Compiled
from tests.references import features_times
from tests.references.features import FEATURES
from tests.unit.codegen.agree import flat

assert features_times
LACT = """system lact
dims {{ d = 32, heads = 2, d_k = 16, hidden = 12 }}
level beat every {window} tokens
level slow every 1 step
block mixer(x[d]) -> out[d] {{
  weights W_q, W_k, W_v : linear(d -> heads*d_k)
  weights W_o           : linear(heads*d_k -> d)
  weights W_lr, W_m     : linear(d -> heads)
  memory M : glu(d_k -> hidden -> d_k) at beat {{
    key       unit(W_k(x))
    value     W_v(x)
    objective -<self(key), value>
    state     S = 0
    update {{
      S = mean(sigmoid(W_m(x)), over = tokens) * S - sum(softplus(W_lr(x)) * grad, over = tokens)
      self = self + newton_schulz(S)
    }}
  }}
  out = W_o(rmsnorm(M(unit(W_q(x)))))
}}
model {{
  vocab 11
  x[d] = embed(tokens)
  repeat 2 {{ x = x + mixer(rmsnorm(x)) }}
  logits = unembed(rmsnorm(x))
}}
"""


def lact(window: int) -> Compiled:
    return nlc.compile(nlc.parse(LACT.format(window=window)))


class Largest(TorchDispatchMode):
    """Remembers how many entries the largest new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = f(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not f.is_view:
            self.entries = max(self.entries, out.numel())
        return out


def test_the_gradients_of_single_tokens_are_never_there() -> None:
    module = lact(32).block("mixer")
    x = torch.randn(1, 64, 32, requires_grad=True)
    with Largest() as seen:
        out, _ = module(x)
        out.sum().backward()
    # a window's keys have 32 * 2 * 16 entries, its outer products 32 * 2 * 12 * 16
    assert seen.entries <= 64 * 2 * 16 * 2 < 32 * 2 * 12 * 16


def calls(module: nn.Module, name: str) -> list[int]:
    """Count the calls of a function of the emitted file."""
    scope = type(module).forward.__globals__
    seen, function = [0], scope[name]

    def counted(*args: Any) -> Any:
        seen[0] += 1
        return function(*args)

    scope[name] = counted
    return seen


def test_an_update_runs_once_for_each_window_that_ends() -> None:
    module = lact(4).block("mixer")
    seen = calls(module, "newton_schulz")
    _, state = module(torch.randn(1, 11, 32))
    # 2 whole windows of three matrices
    assert seen == [6]
    module.step(torch.randn(1, 32), state)
    assert seen == [9]


def test_what_runs_at_some_times_only_is_computed_then_only() -> None:
    module = nlc.compile(nlc.parse(FEATURES["M3 with every token"][0])).block("mixer")
    seen = calls(module, "newton_schulz")
    module(torch.randn(1, 9, 6))
    assert seen == [9 + 4]


def test_windows_compile_without_graph_breaks() -> None:
    module = lact(4).model()
    tokens = torch.randint(0, 11, (2, 11))
    fast = torch.compile(module, fullgraph=True, backend="aot_eager")
    got, state = fast(tokens)
    want, _ = module(tokens)
    torch.testing.assert_close(got, want)
    got.sum().backward()
    later, _ = module(tokens[:, :3], state)
    assert later.shape == (2, 3, 11)


def test_windows_in_bfloat16_keep_their_sums_in_float32() -> None:
    torch.manual_seed(0)
    compiled = lact(4)
    module = compiled.block("mixer").bfloat16()
    exact = compiled.block("mixer")
    exact.load_state_dict(module.state_dict())
    x = torch.randn(2, 11, 32).bfloat16()
    got, state = module(x)
    want, _ = exact(x.float())
    assert got.dtype == torch.bfloat16
    assert all(v.dtype == torch.float32 for v in flat(state).values() if isinstance(v, Tensor))
    error = (got.float() - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 0.02
    got.float().sum().backward()
    stepped, _ = module.step(x[:, 0], state)
    assert stepped.dtype == torch.bfloat16


def test_equations_stand_above_what_computes_them() -> None:
    source = nlc.compile(nlc.parse(FEATURES["M3 with every window"][0])).source
    update = source[source.index("def update(") : source.index("def read_step(")]
    lines = [line.strip() for line in update.splitlines()]
    at = lines.index("if ends_6:")
    assert lines[at + 1].startswith("# M2 = M2 + 0.125 * grad   (spec.nl:")
    assert lines[at + 2].startswith("M_M2 = torch.add(M_M2, ")
    assert lines[at + 4].startswith("M_O2 = newton_schulz(M_M2")


@pytest.mark.parametrize("window", [1, 3])
def test_a_memory_learns_by_windows(window: int) -> None:
    """The map of keys to values is found, whatever the window."""
    torch.manual_seed(0)
    text = """system s
dims {{ d = 4 }}
level beat every {window}
level slow every 1 step
block mixer(k[d], v[d]) -> out[d] {{
  memory M : linear(d -> d) at beat {{
    key    k
    value  v
    update {{ self = self - 0.3 / {count} * grad }}
  }}
  out = M(k)
}}
""".format(window="1 token" if window == 1 else f"{window} tokens", count=window)
    module = nlc.compile(nlc.parse(text)).block("mixer")
    keys = nn.functional.normalize(torch.randn(1, 600, 4), dim=-1)
    truth = torch.randn(4, 4)
    _, state = module(keys, keys @ truth.mT)
    torch.testing.assert_close(state["M"][0], truth, rtol=0, atol=0.05)
