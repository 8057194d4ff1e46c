"""States that a loop over windows has made itself: written into, where nobody else sees them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import nlc
from tests.unit.codegen.agree import close, flat, randomised, same_states, streams

SPEC = """system states
dims {{ d = 6, hidden = 8 }}
level beat every 3 tokens
level bar  every 6 tokens
level slow every 1 step
block mixer(x[d]) -> y[d] {{
  weights W : linear(d -> d)
  memory M : {map} at beat {{
    key    unit(W(x))
    value  x
{body}
  }}
{more}
  y = {read}
}}
"""
MOMENTUM = """
    state S = 0
    state V = 0
    update {
      V = 0.9 * V + 0.1 * grad^2
      S = 0.8 * S + 0.2 * grad / (sqrt(V) + 1e-8)
      self = self - 0.1 * S
    }"""
CASES = {
    # name: map, body, more, read, whether `update` may write into the states
    "momentum": ("mlp(d -> hidden -> d, bias)", MOMENTUM, "", "M(x)", True),
    "descent": ("linear(d -> d)", "    update { self = self - 0.1 * grad }", "", "M(x)", True),
    "decay": ("linear(d -> d)", "    update { self = 0.9 * self - 0.05 * grad }", "", "M(x)", True),
    "a square": ("linear(d -> d)", "    update { self = self + 0.01 * grad^2 }", "", "M(x)", True),
    "two states that are one": (
        "linear(d -> d)",
        "    state S = 0\n    update { S = 0.8 * S - 0.1 * grad; self = S }",
        "", "M(x)", False,
    ),
    "the state before": (
        "linear(d -> d)",
        "    state S = 0\n    update { S = self; self = 0.9 * self - 0.1 * grad }",
        "", "M(x) + M.S @ x", False,
    ),
    "an old state used twice": (
        "linear(d -> d)",
        "    state S = 0\n    update { self = self - 0.1 * S; S = 0.8 * S + grad }",
        "", "M(x)", True,
    ),
    "a further state that is read": ("linear(d -> d)", MOMENTUM, "", "M(x) + M.S @ x", True),
    "a bare read": (
        "vector(d)",
        "    objective 1/2 * ||self - value||^2\n    update { self = 0.9 * self - 0.1 * grad }",
        "", "x + M", False,
    ),
    "a reset": (
        "linear(d -> d)",
        "    update { self = self - 0.1 * grad }\n    reset every 6 tokens",
        "", "M(x)", False,
    ),
    "one begins as another is": (
        "linear(d -> d)",
        "    update { self = self - 0.1 * grad }",
        "  memory N : linear(d -> d) at beat {\n    key x\n    value W(x)\n"
        "    update { self = self - 0.2 * grad }\n    init from M\n    reset every 6 tokens\n  }",
        "M(x) + N(x)", False,
    ),
    "windows in windows": (
        "linear(d -> d)",
        "    update { self = self - 0.1 * grad }",
        "  memory N : linear(d -> d) at bar {\n    key unit(M(x))\n    value x\n"
        "    update { self = 0.9 * self - 0.2 * grad }\n  }",
        "N(M(x))", True,
    ),
}  # fmt: skip


def compiled(name: str) -> tuple[Any, nlc.System]:
    form, body, more, read, _ = CASES[name]
    system = nlc.parse(SPEC.format(map=form, body=body, more=more, read=read))
    return nlc.compile(system, target="torch"), system


@pytest.mark.parametrize("name", CASES)
def test_states_written_in_place_are_the_same_states(name: str) -> None:
    found, system = compiled(name)
    module = randomised(found.block("mixer").double())
    (x,) = streams(system, "mixer", 20)
    want, after = module(x)
    truth, _ = found.reference("mixer", module)(x)
    close(want, truth, "as the interpreter")
    with torch.no_grad():
        first, middle = module(x[:, :7])
        kept = {key: value.clone() for key, value in tensors(middle).items()}
        for _ in range(2):
            # the state that a call is given stays as it is
            second, end = module(x[:, 7:], middle)
            assert all(torch.equal(kept[key], value) for key, value in tensors(middle).items())
            close(torch.cat((first, second), 1), want, "cut")
            same_states(end, after, name)
        got, end = module(x)
    close(got, want, "without gradients")
    same_states(end, after, name)
    assert ("own: bool" in found.source) == CASES[name][-1]


def tensors(state: Any) -> dict[str, Tensor]:
    return {key: value for key, value in flat(state).items() if isinstance(value, Tensor)}


class Made(TorchDispatchMode):
    """Counts the calls that make a tensor of so many entries, by name."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.calls = entries, Counter[str]()

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = f(*args, **(kwargs or {}))
        old = any(out is arg for arg in args) or (kwargs or {}).get("out") is not None
        if isinstance(out, Tensor) and out.numel() == self.entries and not (f.is_view or old):
            self.calls[f.name()] += 1
        return out


def test_each_window_makes_its_gradients_and_roots_alone() -> None:
    module = compiled("momentum")[0].block("mixer")
    x = torch.randn(1, 24, 6)
    counts = []
    for tokens in (12, 24):
        with torch.no_grad(), Made(6 * 8) as made:
            module(x[:, :tokens])
        counts.append(made.calls)
    # four more windows, of two matrices each
    assert counts[1] - counts[0] == {"aten::bmm": 8, "aten::sqrt": 8}


def test_one_compiled_graph_takes_sequences_of_any_length() -> None:
    module = compiled("momentum")[0].block("mixer").double()
    graph = torch.compile(module, backend="eager", fullgraph=True)
    state = None
    with torch.no_grad():
        for tokens in (20, 9, 7):
            x = torch.randn(1, tokens, 6, dtype=torch.float64)
            want, after = module(x, state)
            got, state = graph(x, state)
            close(got, want, "compiled")
            same_states(state, after, "compiled")
