"""Rules as kernels in Triton's interpreter, beside PyTorch; `python -m tests.kernels.steps`.

In: names of rules and cases, as arguments. Out: one line of JSON for each, with the largest error
and how many kernels were launched.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

# before triton is imported
os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor, nn

import nlc
from nlc.compiled import Compiled
from tests.unit.codegen.optimizers import system_of

# some even, some not; a batch of matrices, a single number, one with more entries than a program
SHAPES = {
    "a": (8, 12),
    "b": (8, 12),
    "c": (5, 7),
    "d": (16,),
    "e": (),
    "f": (2, 6, 4),
    "g": (3, 701),
}
Make = Callable[..., torch.optim.Optimizer]


def pair(rules: str) -> tuple[Compiled, Compiled]:
    """The same rules with kernels, and without."""
    found = [nlc.compile(system_of(rules), target=target) for target in ("triton", "torch")]
    return found[0], found[1]


def values(kind: torch.dtype, names: Any = SHAPES) -> dict[str, nn.Parameter]:
    """Parameters to begin with."""
    torch.manual_seed(0)
    return {n: nn.Parameter(torch.randn(SHAPES[n]).to(kind)) for n in names}


def moved(
    make: Make, p: Mapping[str, nn.Parameter], steps: int, **arguments: float
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Take steps with gradients of their own; give values and states."""
    optimizer = make([*p.values()], **arguments)
    torch.manual_seed(1)
    for turn in range(steps):
        for i, x in enumerate(p.values()):
            grad = torch.randn(x.shape).to(x.dtype)
            x.grad = None if (i + turn) % 5 == 4 else grad
        optimizer.step()
    kept = [v for x in p.values() for v in optimizer.state[x].values() if isinstance(v, Tensor)]
    return [*(x.detach() for x in p.values()), *kept], optimizer


def compare(
    rules: str, name: str, kind: torch.dtype = torch.float32, names: Any = SHAPES, steps: int = 4,
    **arguments: float,
) -> dict[str, Any]:  # fmt: skip
    """Hold a rule with kernels against the same in PyTorch."""
    ours, theirs = pair(rules)
    make = ours.rule(name)
    module = sys.modules[make.__module__]  # type: ignore[attr-defined]
    counts: list[int] = []
    if hasattr(module, "launch"):
        real: Any = module.launch
        module.launch = lambda *args: counts.append(1) or real(*args)  # type: ignore[attr-defined]
    try:
        mine, _ = moved(make, values(kind, names), steps, **arguments)
    finally:
        if hasattr(module, "launch"):
            module.launch = real  # type: ignore[attr-defined]
    truth, _ = moved(theirs.rule(name), values(kind, names), steps, **arguments)
    return {"error": worst(mine, truth), "launches": len(counts)}


def worst(mine: list[Tensor], truth: list[Tensor]) -> float:
    """The largest error relative to the size of what is true."""
    assert [x.dtype for x in mine] == [x.dtype for x in truth]
    pairs = zip(mine, truth, strict=True)
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-3))
        for a, b in pairs
    )


# what the rules must be given
GIVEN: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.1, "weight_decay": 0.01},
    "momentum": {"lr": 0.1},
    "nesterov": {"lr": 0.1},
    "titans": {"lr": 0.1, "momentum": 0.9, "decay": 0.01},
    "delta_momentum": {"lr": 0.1},
}
MATRICES = ("a", "b", "c", "f")
ODD = """
rule odd(lr = 0.1, c = 0.3) {
  state m   = 0.5
  state k   = 0
  state n[] = 0
  state s[] = 1
  m, k = k + grad, m - 0.1 * self
  n    = n + 1
  x    = max(abs(m), c) - relu(grad) / (1 + grad^2)
  when n > 2 { x = silu(x) + lr * n }
  s    = 0.9 * s + mean(x, over = (in, out))
  y    = where(x > k, tanh(x), -softplus(k))
  every 2 steps { k = k + 0.1 * grad }
  self = self - lr * y / s - lr * sign(m) * (n^-1) * sqrt(k^2 + 1)
  m    = 0.25
}
"""


def misaligned() -> dict[str, Any]:
    """Tensors that begin anywhere, and one that does not lie in order, which runs as PyTorch."""
    ours, theirs = pair("")
    found = []
    for compiled in (ours, theirs):
        torch.manual_seed(0)
        flat = torch.randn(200)
        p = [nn.Parameter(x) for x in (flat[1:97], flat[100:132], torch.randn(6, 8).mT)]
        named = dict(zip("abc", p, strict=True))
        found.append(moved(compiled.rule("adamw"), named, 3)[0])
    return {"error": worst(*found)}


class Spread(Tensor):
    """A tensor that is more than what lies at its address."""


def elsewhere() -> dict[str, Any]:
    """A parameter whose entries may lie elsewhere runs as PyTorch."""
    ours, _ = pair("")
    p = nn.Parameter(torch.randn(4, 4).as_subclass(Spread))
    p.grad = torch.randn(4, 4).as_subclass(Spread)
    make: Any = ours.rule("adamw")
    module: Any = sys.modules[make.__module__]
    before, real = p.detach().clone(), module.launch
    module.launch = None
    make([p]).step()
    module.launch = real
    return {"error": 0.0 if not torch.equal(before, p.detach()) else 1.0}


def cut() -> dict[str, Any]:
    """How the interpreter stores bfloat16: it cuts, where a GPU rounds; so one step is compared."""
    return compare("", "adamw", torch.bfloat16, steps=1)


def saved() -> dict[str, Any]:
    """A state that is saved in the middle and taken up by the PyTorch form, and back."""
    ours, theirs = pair("")
    p, q = values(torch.float32), values(torch.float32)
    _, a = moved(ours.rule("adamw"), p, 2)
    _, b = moved(theirs.rule("adamw"), q, 1)
    b.load_state_dict(a.state_dict())
    for x, y in zip(p.values(), q.values(), strict=True):
        y.data.copy_(x.data)
        x.grad = y.grad = torch.ones_like(x)
    a.step()
    b.step()
    return {"error": worst([x.detach() for x in p.values()], [x.detach() for x in q.values()])}


def levels() -> dict[str, Any]:
    """A whole optimizer: levels of two periods, each with a rule of its own."""
    found = []
    for target in ("triton", "torch"):
        compiled = nlc.compile(nlc.load("specs/cms.nl"), target=target)
        torch.manual_seed(0)
        model = compiled.model()
        optimizer = compiled.optimizer(model)
        torch.manual_seed(1)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        found.append([p.detach() for p in model.parameters()])
    return {"error": worst(*found)}


def random_rules(count: int) -> dict[str, Any]:
    """Random rules of the property tests."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    from tests.properties.test_rules import STATEMENTS

    found: dict[str, Any] = {"error": 0.0, "launches": 0}

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(st.lists(STATEMENTS, min_size=1, max_size=6))
    def every(lines: list[str]) -> None:
        head = "state m = 0.1\nstate k = self\nstate s[] = 0\nstate n[] = 0"
        body = "\n".join((head, "x = grad", "y = self - grad", *lines))
        text = f"rule r(lr, b = 0.7, f = 3) {{\n{body}\n}}"
        one = compare(text, "r", names=("a", "d", "e", "f"), steps=3, lr=0.1)
        assert one["error"] < 1e-3, (text, one)
        found["error"] = max(found["error"], one["error"])
        found["launches"] += one["launches"]

    every()
    return found


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "odd": lambda: compare(ODD, "odd"),
    "misaligned": misaligned,
    "saved": saved,
    "elsewhere": elsewhere,
    "levels": levels,
    "half:adamw": lambda: compare("", "adamw", torch.float16),
    "bfloat16:adamw": cut,
    "half:muon": lambda: compare("", "muon", torch.float16),
}


def run(name: str) -> dict[str, Any]:
    """Run one case."""
    if name in CASES:
        return CASES[name]()
    if name.startswith("random:"):
        return random_rules(int(name.removeprefix("random:")))
    names = MATRICES if name in ("adamuon", "rmsuon", "delta_momentum", "m3") else SHAPES
    return compare("", name, names=names, **GIVEN.get(name, {}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        print(json.dumps({"case": name, **run(name)}), flush=True)
