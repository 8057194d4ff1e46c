"""Cases of what a memory does where its window ends, as launches over all its parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import nlc
from nlc.compiled import compile_system
from nlc.ir.system import System
from tests.kernels.cases import sample_calls
from tests.kernels.interpreted import both, compare, ratio
from tests.random_windows import Writer
from tests.references.specs import block, resolve
from tests.unit.codegen.agree import total

BEAT = "level beat every 3 tokens\n"
# columns go to several programs, then rows; a vector, a number, and a norm of a whole matrix
BOTH_WAYS = """
  weights W_a : linear(d -> heads, bias)
  memory M : linear(d_k -> d_v, bias) at beat {
    key unit(k)
    value v
    init learned
    state S = self
    state n[] = 1
    update {
      n = 0.5 * n + mean(sigmoid(W_a(x)), over = tokens)
      S = tanh(S) - 0.3 * n * grad
      M.bias   = 0.9 * M.bias - 0.1 * S.bias / (1 + norm(S.bias))
      M.weight = M.weight / max(norm(M.weight, over = out), 1) - 0.1 * S.weight
      M.weight = M.weight / max(norm(M.weight, over = (in, out)), 1)
    }
  }
  out = W_o(M(q))
"""
# an orthogonalisation, and a product of matrices, stand between launches; diagonals are none
BETWEEN = """
  weights g : vector(d_k) init 0.5
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    state S = 0
    init learned
    update {
      S = S @ diag(g) - 0.5 * grad
      M = M + 0.2 * newton_schulz(S, steps = 2) - 0.1 * M @ (transpose(M) @ S)
      every 6 tokens { M = unit(M, over = in) - 0.1 * initial(M) }
    }
  }
  out = W_o(M(q))
"""
# parts that most tokens of a window select, with rates of each head
PARTS = """
  weights W_a : linear(d -> heads, bias)
  weights W_r : linear(d -> heads*n)
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    slots n
    route W_r(x)
    select top_k(2)
    init learned
    update { M = mean(sigmoid(W_a(x)), over = tokens) * M - 0.3 * tanh(grad) }
  }
  out = W_o(M(q))
"""
# what the task moves, by Adam, and something slower that takes it over
ADAM = """
  memory M : linear(d_k -> d_v) at beat {
    key k
    value v
    update adam(lr = 0.1)
    init learned
  }
  memory N[heads] : linear(d_k -> d_v) at beat {
    init from M
    update { N = lerp(N, M, 0.3) }
  }
  out = W_o(M(q) + N(q))
"""


# a model that learns while it reads, without gradients through that
TASK = """system task
dims { d = 4, n = 3 }
level beat every 2 tokens
level slow every 1 step
block mlps(x[d]) -> out[d] {
  memory F : mlp(d -> n -> d) at beat {
    objective task
    update adam(lr = 0.1)
    init learned
    through stop
  }
  out = x + F(rmsnorm(x))
}
model {
  vocab 7
  x[d] = embed(tokens)
  x = mlps(x)
  logits = unembed(rmsnorm(x))
}
"""


def task() -> dict[str, float]:
    """What moves by the task's gradient, as launches where its windows end."""
    made = compile_system(resolve(TASK), "triton")
    assert {kernel.role for kernel in made.with_kernels.kernels} == {"update", "update_back"}
    torch.manual_seed(0)
    mine, truth = made.model(), compile_system(resolve(TASK), "torch").model().double()
    truth.load_state_dict({key: value.double() for key, value in mine.state_dict().items()})
    tokens = torch.randint(0, 7, (2, 7))

    def run(model: Any) -> list[torch.Tensor]:
        logits, _ = model(tokens)
        loss = logits[:, :-1].logsumexp(-1).square().sum()
        return [logits.detach(), *torch.autograd.grad(loss, [*model.parameters()])]

    return {"task": max(map(ratio, run(mine), run(truth)))}


def ended(system: System, tokens: int, name: str = "mixer") -> dict[str, float]:
    """Compare a system of which some window ends with launches, both ways."""
    made = compile_system(system, "triton").with_kernels
    roles = [kernel.role for kernel in made.kernels if kernel.role.startswith("update")]
    assert any(role.endswith("_back") for role in roles), made.plain
    return compare(system, tokens, name)


def beat(body: str) -> System:
    """A system with windows of three tokens."""
    return resolve(block(body, levels=BEAT))


def shipped(name: str, tokens: int, **more: int) -> dict[str, float]:
    """A shipped spec at small sizes."""
    given = nlc.load(f"specs/{name}.nl")
    small = {"d": 6, "heads": 2, "d_k": 4, "d_v": 3, "hidden": 4, "width": 5, "window": 3, **more}
    sizes = {f"dims.{key}": small[key] for key in dict(given.dims) if key in small}
    return ended(nlc.load(f"specs/{name}.nl", set=sizes), tokens)


def half() -> dict[str, float]:
    """A block in float16: values and gradients, states in float32."""
    mine, truth, _ = both(beat(BOTH_WAYS), "mixer")
    torch.manual_seed(2)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    y, state = truth(x)
    true = torch.autograd.grad(total(y, state), [*truth.parameters()])
    our_y, ours = mine.half()(x.half())
    assert our_y.dtype == torch.float16
    assert ours["M"]["weight"].dtype == torch.float32
    found = torch.autograd.grad(total(our_y, ours), [*mine.parameters()])
    pairs = [(our_y, y), *zip(found, true, strict=True)]
    pairs.append((ours["M"]["weight"], state["M"]["weight"]))
    return {"half": max(ratio(a.detach(), b.detach()) for a, b in pairs)}


def operations() -> dict[str, Any]:
    """What torch asks of the operations, and a whole graph of `torch.compile`."""
    mine, _, compiled = both(beat(BOTH_WAYS), "mixer")
    kernels = compiled.module.kernels  # type: ignore[attr-defined]
    found = {}
    for op, given in sample_calls(kernels, mine).items():
        result = torch.library.opcheck(getattr(kernels, op), given)
        found[op] = sorted(set(result.values()))
    x = torch.randn(2, 7, 6)
    torch._dynamo.reset()
    y, _state = torch.compile(mine, fullgraph=True, backend="aot_eager")(x)
    z, _same = mine(x)
    found["fullgraph"] = ratio(y.detach(), z.detach())
    y.sum().backward()
    return found


def random_window(seed: int) -> dict[str, float]:
    """A random system of memories with windows that read one another."""
    system = resolve(Writer(seed).text())
    made = compile_system(system, "triton")
    if not made.kernels_source:
        return {}
    found = compare(system, 7)
    # some of their gradients are differences of what is nearly equal
    return {"values": found["values"], "cuts": found["cuts"]}


RANDOM = {"window": random_window}
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "window:both_ways": lambda: ended(beat(BOTH_WAYS), 7),
    "window:between": lambda: ended(beat(BETWEEN), 7),
    "window:parts": lambda: ended(beat(PARTS), 7),
    "window:task": task,
    "window:adam": lambda: ended(beat(ADAM), 7),
    "window:half": half,
    "window:operations": operations,
    "window:lact": partial(shipped, "lact", 7, chunk=3),
    "window:tnt": partial(shipped, "tnt", 9, near=2, far=4, segment=4),
    "window:consolidation": partial(shipped, "consolidation", 7, day=3),
}
