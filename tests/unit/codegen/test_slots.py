"""What slots promise besides their numbers: only the selected parts are read, moved and kept."""

from __future__ import annotations

import pytest
import torch

import nlc
from nlc.compiled import Compiled
from tests.unit.codegen.test_windows import Largest
from tests.unit.passes.counters import flops

TEXT = """system slots
dims {{ d = 16, heads = 2, d_k = 8, hidden = 16, n = {slots} }}
level here every {period}
level slow every 1 step
block mixer(x[d]) -> out[d] {{
  weights W_q, W_k, W_v : linear(d -> heads*d_k)
  weights W_r           : linear(d -> heads*n)
  weights W_o           : linear(heads*d_k -> d)
  memory M : mlp(d_k -> hidden -> d_k) at here {{
    key    unit(W_k(x))
    value  W_v(x)
    slots  n
    route  W_r(x)
    select top_k(1)
    update {{ self = self - 0.1 * grad }}
    init   learned
  }}
  out = W_o(M(unit(W_q(x))))
}}
model {{
  vocab 11
  x[d] = embed(tokens)
  x = x + mixer(rmsnorm(x))
  logits = unembed(x)
}}
"""


def made(slots: int, tokens: int) -> Compiled:
    period = "1 token" if tokens == 1 else f"{tokens} tokens"
    return nlc.compile(nlc.parse(TEXT.format(slots=slots, period=period)))


def products(slots: int, tokens: int) -> int:
    """The matrix products of the memory alone, forward and backward, over 32 tokens."""
    torch.manual_seed(0)
    module = made(slots, tokens).block("mixer")
    x = torch.randn(1, 32, 16, requires_grad=True)
    # the routes, and four projections, forward and backward
    around = 3 * 2 * 32 * 16 * (2 * slots + 4 * 16)
    return flops(lambda: module(x)[0].sum().backward())[0] - around


def test_more_slots_are_no_more_work_for_a_token() -> None:
    assert products(4, 1) == products(64, 1)


def test_a_window_is_about_as_much_work_as_its_tokens() -> None:
    # blocks of one part each are not always full
    for slots in (2, 4, 16, 64):
        assert products(slots, 32) < 1.25 * products(slots, 1)


def test_no_token_has_values_for_all_slots() -> None:
    module = made(32, 32).block("mixer")
    x = torch.randn(1, 32, 16, requires_grad=True)
    with Largest() as seen:
        out, _ = module(x)
        out.sum().backward()
    state = 2 * 32 * 8 * 16
    # the hidden values of all slots would have 32 * 32 * 2 * 16 entries
    assert seen.entries <= 2 * state < 32 * 32 * 2 * 16 * 2


def test_the_schedule_says_that_only_selected_parts_move() -> None:
    schedule = made(8, 1).schedules["M"]
    assert schedule.kind == "sequential" and "1 of 8" in schedule.reason


@pytest.mark.parametrize("tokens", [1, 4])
def test_slots_compile_without_graph_breaks(tokens: int) -> None:
    module = made(6, tokens).model()
    given = torch.randint(0, 11, (2, 7))
    fast = torch.compile(module, fullgraph=True, backend="aot_eager")
    got, _ = fast(given)
    want, _ = module(given)
    torch.testing.assert_close(got, want)
    got.sum().backward()


@pytest.mark.parametrize("tokens", [1, 4])
def test_slots_in_bfloat16(tokens: int) -> None:
    torch.manual_seed(0)
    compiled = made(6, tokens)
    module = compiled.block("mixer").bfloat16()
    exact = compiled.block("mixer")
    exact.load_state_dict(module.state_dict())
    x = torch.randn(2, 9, 16).bfloat16()
    got, state = module(x)
    want, _ = exact(x.float())
    assert got.dtype == torch.bfloat16
    assert state["M"]["layer1.weight"].dtype == torch.float32
    assert torch.isfinite(got.float()).all() and got.shape == want.shape
    got.float().sum().backward()
    assert module.step(x[:, 0], state)[0].dtype == torch.bfloat16
