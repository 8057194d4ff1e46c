"""What learning from the task while reading costs: what torch counts when nothing is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import nlc
from nlc.ir.cost import Cost
from nlc.passes.cost import cost
from nlc.passes.plan import plan

SPEC = """system learns
dims {{ d = 8, hidden = 12 }}
{levels}
level slow every 1 step
block cms(x[d]) -> y[d] {{
{memories}
  y = {read}
}}
model {{
  vocab 5
  x[d] = embed(tokens)
  {calls}
  logits = unembed(rmsnorm(x))
}}
"""
PERIODS = {"beat": 2, "phrase": 4, "page": 8}
TOKENS = 33


def spec(
    places: list[str], through: str = "first_order", rule: str = "sgd(lr = 0.1)", calls: str = ""
) -> str:
    levels = [
        f"level {name} every {period} tokens, optimizer {rule}"
        for name, period in PERIODS.items()
        if name in places
    ]
    memories, read = [], "x"
    for number, place in enumerate(places):
        body = f"{{ objective task; through {through} }}"
        memories.append(f"  memory F_{number} : mlp(d -> hidden -> d) at {place} {body}")
        read = f"tanh(F_{number}({read}))"
    return SPEC.format(
        levels="\n".join(levels), memories="\n".join(memories), read=read,
        calls=calls or "x = cms(x)",
    )  # fmt: skip


class Products(TorchDispatchMode):
    """Counts products of matrices; torch's own counter cannot see gradients of inner points."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = f(*args, **(kwargs or {}))
        count: Callable[..., int] | None = flop_registry.get(f._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def counted(text: str) -> tuple[Cost, int, int]:
    """Give the cost, and what torch counts of a sequence and of decoding a slowest window."""
    system = nlc.parse(text)
    found = cost(system, plan(system), TOKENS)
    assert found is not None
    model, tokens = nlc.compile(system, target="torch").model(), torch.randint(5, (1, TOKENS))
    steps = max(PERIODS.values())
    with torch.no_grad():
        with Products() as sequence:
            _, state = model(tokens)
        with Products() as decoding:
            decode(model, tokens[:, :steps], state)
    return found, sequence.total, decoding.total // steps


def decode(model: Any, tokens: Tensor, state: Any) -> None:
    for token in tokens.unbind(1):
        _, state = model.step(token, state)


@pytest.mark.parametrize(
    ("places", "through", "calls"),
    [
        (["beat"], "full", ""),
        (["phrase"], "full", "repeat 2 { x = cms(x) }"),
        (["beat", "beat"], "full", ""),
        (["beat", "phrase"], "first_order", ""),
        (["beat", "phrase", "page"], "first_order", "repeat 2 { x = cms(x) }"),
        (["beat", "phrase", "page"], "stop", ""),
    ],
)
def test_gradients_of_windows_cost_what_torch_counts(
    places: list[str], through: str, calls: str
) -> None:
    found, sequence, decoding = counted(spec(places, through, calls=calls))
    assert found.total.forward.products == sequence
    assert found.total.decode.products == decoding


@pytest.mark.parametrize("rule", ["muon(lr = 0.1)", "sam(lr = 0.1)", "adamw(lr = 0.1)"])
def test_updates_cost_what_torch_counts(rule: str) -> None:
    found, sequence, decoding = counted(spec(["phrase"], rule=rule))
    assert found.total.forward.products == sequence
    assert found.total.decode.products == decoding


def test_a_window_of_one_token_is_read_again_with_each_token() -> None:
    text = spec(["beat", "phrase"]).replace("every 2 tokens", "every 1 token")
    found, sequence, decoding = counted(text)
    assert found.total.forward.products == sequence
    assert found.total.decode.products == decoding


def test_an_update_of_weights_has_its_arithmetic() -> None:
    text = spec(["phrase"])
    often, once = (counted(t)[0] for t in (text, text.replace("every 4", "every 32")))
    # a product and a sum for each of 2 * 8 * 12 entries, at the ends of eight windows or of one
    more = often.total.forward.elementwise - once.total.forward.elementwise
    assert more == (8 - 1) * 2 * 2 * 8 * 12


@pytest.mark.parametrize("calls", ["", "repeat 2 { x = cms(x) }"])
@pytest.mark.parametrize("places", [["beat", "phrase"], ["beat", "phrase", "page"]])
def test_gradients_of_gradients_are_estimated(places: list[str], calls: str) -> None:
    found, sequence, decoding = counted(spec(places, "full", calls=calls))
    assert 0.75 < found.total.forward.products / sequence < 1.5
    assert 0.75 < found.total.decode.products / decoding < 1.5
