"""The cases of the kernels' tests: shipped systems at small sizes, odd forms, random systems."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import nlc
from nlc.compiled import compile_system
from nlc.ir.system import System
from tests.kernels.interpreted import both, compare, ratio, tensors, text_case
from tests.properties.test_affine import Writer
from tests.references.specs import block, resolve
from tests.unit.codegen.agree import streams

SMALL = {"dims.d": 6, "dims.heads": 2, "dims.d_k": 5, "dims.d_v": 3}


def shipped(name: str, block_name: str = "mixer", tokens: int = 19) -> dict[str, float]:
    """A shipped spec at sizes that are no powers of two."""
    given = nlc.load(f"specs/{name}.nl")
    sizes = {key: value for key, value in SMALL.items() if key[5:] in dict(given.dims)}
    if name == "retnet":
        # what is rotated has an even number of channels
        sizes["dims.d_k"] = 6
    return compare(nlc.load(f"specs/{name}.nl", set=sizes), tokens, block_name)


EARLIER = """
  weights W_k2 : linear(d -> heads*d_k)
  weights W_a : linear(d -> heads, bias)
  k2, a = W_k2(x), sigmoid(W_a(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update {
      M = a * M + outer(v, k2)
      M = M - outer(M @ k - v, 0.5 * k)
    }
  }
  out = W_o(M(q) + prev(M)(k2))
"""
STATES = """
  weights W_a, W_b : linear(d -> heads, bias)
  a, b = sigmoid(W_a(x)), sigmoid(W_b(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    state S = 0
    state R = 0
    init learned
    update {
      R = a * R - b * grad
      S = 0.5 * S + R
      M = (1 - 0.1 * b) * M + S
    }
  }
  out = W_o(M(q) + M.S @ q)
"""


def half() -> dict[str, float]:
    """A whole block in float16, whose streams reach the kernels in that type."""
    given = nlc.load("specs/gated_deltanet.nl", set=SMALL)
    mine, truth, _ = both(given, "mixer")
    torch.manual_seed(2)
    x = torch.randn(2, 19, 6, dtype=torch.float64)
    y, state = truth(x)
    our_y, ours = mine.half()(x.half())
    our_y.float().sum().backward()
    assert our_y.dtype == torch.float16 and ours["S"].dtype == torch.float32
    return {"half": max(ratio(our_y, y), ratio(ours["S"], state["S"]))}


def checked(system: Any) -> dict[str, Any]:
    """What torch asks of its operations, and whole graphs of `torch.compile`."""
    mine, _, compiled = both(system, "mixer")
    kernels = compiled.module.kernels  # type: ignore[attr-defined]
    torch.manual_seed(0)
    found = {}
    for op, given in sample_calls(kernels, mine).items():
        result = torch.library.opcheck(getattr(kernels, op), given)
        found[op] = sorted(set(result.values()))
    x = torch.randn(2, 9, 6)
    torch._dynamo.reset()
    fast = torch.compile(mine, fullgraph=True, backend="aot_eager")
    y, _state = fast(x)
    z, _same = mine(x)
    found["fullgraph"] = ratio(y.detach(), z.detach())
    y.sum().backward()
    return found


def sample_calls(kernels: Any, module: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    """Arguments for each operation of a memory, taken from a real call."""
    calls: dict[str, tuple[torch.Tensor, ...]] = {}
    names = [n for n, v in vars(kernels).items() if isinstance(v, torch.library.CustomOpDef)]
    real = {name: getattr(kernels, name) for name in names}

    def listen(name: str) -> Callable[..., Any]:
        def call(*args: torch.Tensor) -> Any:
            calls[name] = tuple(_still(x, True) for x in args)
            return real[name](*args)

        return call

    for name in names:
        setattr(kernels, name, listen(name))
    try:
        y, _state = module(torch.randn(2, 9, 6, requires_grad=True))
        y.sum().backward()
    finally:
        for name in names:
            setattr(kernels, name, real[name])
    for name in [n for n in calls if "_back" in n]:
        # what runs backwards has no gradient of its own
        calls[name] = tuple(_still(x) for x in calls[name])
    return calls


def _still(x: Any, wanted: bool = False) -> Any:
    """A value that hangs on nothing; numbers stay."""
    if not isinstance(x, torch.Tensor):
        return x
    return x.detach().clone().requires_grad_() if wanted else x.detach()


def random_case(seed: int) -> dict[str, Any]:
    """A random affine system; "none" where its form has no kernels."""
    system = resolve(block(Writer(seed).body()))
    from nlc.compiled import compile_system

    if not compile_system(system, "triton").kernels_source:
        return {"none": 0.0}
    return compare(system, 17)


CHANNELS = """
  weights W_w : linear(d -> heads*d_k, bias)
  w = sigmoid(W_w(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update {
      M = M @ diag(w)
      M = M - 0.3 * grad(at = M)
    }
  }
  out = W_o(M(q) + prev(M)(q))
"""
TURNED = """
  weights W_k2 : linear(d -> heads*d_k)
  weights W_a : linear(d -> heads, bias)
  k2, a = W_k2(x), sigmoid(W_a(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update {
      M = a * M - 0.2 * outer(v, transpose(M) @ v - k2)
      M = M - 0.1 * outer(v, transpose(M) @ v)
    }
  }
  out = W_o(M(q))
"""
RESET = """
  weights W_a : linear(d -> heads, bias)
  weights g : vector(heads) init 0.7
  a = sigmoid(W_a(x))
  memory M : linear(d_k -> d_v) at fast {
    key unit(k)
    value v
    init learned
    reset every 6 tokens
    update {
      M = a * M - g * grad
    }
  }
  out = W_o(M(q))
"""
BOTH = """
  weights W_p : linear(heads*d_k -> d)
  memory P : linear(d_k -> d_k) at fast {
    key k
    value k
    update {
      P = 0.9 * P - 0.3 * grad
    }
  }
  out = W_o(v) + W_p(P(q))
"""
NONLINEAR = """
  weights W_a : linear(d -> heads*d_v, bias)
  weights g : vector(d_k) init 0.3
  a = sigmoid(W_a(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    state n[] = 1
    state A = 0
    init learned
    update {
      A = tanh(0.5 * A @ diag(g) - outer(a, g) * grad)
      n = 0.9 * n + sqrt(sum(A^2, over = (in, out)) + 0.1)
      M = where(A > 0.01, M, abs(M)) + A / n + 0.1 * outer(unit(M @ k), rmsnorm(k))
      M = M - 0.1 * (M - max(M, over = in)) + 0.01 * softplus(M) @ (diag(k) - outer(k, g))
    }
  }
  out = W_o(M(q))
"""


def steps(system: Any, block_name: str = "mixer", tokens: int = 5) -> dict[str, float]:
    """Token by token without gradients, where all memories of a block move by one kernel."""
    mine, truth, compiled = both(system, block_name)
    kernels = compiled.module.kernels  # type: ignore[attr-defined]
    found = [name for name in vars(kernels) if name.endswith(("_step_op", "_token_op"))]
    assert len(found) == 1, found
    calls = dict.fromkeys(found, 0)

    def listen(name: str) -> Callable[..., Any]:
        real = getattr(kernels, name)

        def call(*args: torch.Tensor) -> Any:
            calls[name] += 1
            return real(*args)

        return call

    real_ones = {name: getattr(kernels, name) for name in found}
    for name in found:
        setattr(kernels, name, listen(name))
    xs = [x.detach() for x in streams(system, block_name, tokens)]
    worst, state, after = 0.0, None, None
    with torch.no_grad():
        for t in range(tokens):
            y, state = mine.step(*(x[:, t].float() for x in xs), state=state)
            z, after = truth.step(*(x[:, t] for x in xs), state=after)
            pairs = zip(tensors(y, state), tensors(z, after), strict=True)
            worst = max(worst, *(ratio(a, b) for a, b in pairs))
    for name, real in real_ones.items():
        setattr(kernels, name, real)
    assert all(count == tokens for count in calls.values()), calls
    return {"steps": worst}


def step_operation() -> dict[str, Any]:
    """What torch asks of the operation of a step, and a whole graph of `torch.compile`."""
    mine, _, compiled = both(small("titans_linear"), "mixer")
    kernels = compiled.module.kernels  # type: ignore[attr-defined]
    given: list[tuple[torch.Tensor, ...]] = []
    real = kernels.mixer_m_token_op
    kernels.mixer_m_token_op = lambda *args: given.append(args) or real(*args)
    x = torch.randn(2, 6)
    with torch.no_grad():
        _, state = mine.step(x)
        kernels.mixer_m_token_op = real
        checked = torch.library.opcheck(real, given[0])
        assert set(checked.values()) == {"SUCCESS"}, checked
        torch._dynamo.reset()
        fast = torch.compile(mine.step, fullgraph=True, backend="aot_eager")
        return {"fullgraph": ratio(fast(x, state)[0], mine.step(x, state)[0])}


def small(name: str) -> Any:
    """A shipped spec at sizes that are no powers of two."""
    known = dict(nlc.load(f"specs/{name}.nl").dims)
    return nlc.load(f"specs/{name}.nl", set={k: v for k, v in SMALL.items() if k[5:] in known})


def step_random(seed: int) -> dict[str, Any]:
    """The step of a random affine system."""
    return steps(resolve(block(Writer(seed).body())))


def wide(name: str, block_name: str = "mixer", tokens: int = 18) -> dict[str, float]:
    """A shipped spec whose values have more channels than a program holds at once."""
    known = dict(nlc.load(f"specs/{name}.nl").dims)
    sizes = {**SMALL, "dims.heads": 1, "dims.d_v": 70}
    given = nlc.load(f"specs/{name}.nl", set={k: v for k, v in sizes.items() if k[5:] in known})
    _, _, compiled = both(given, block_name)
    assert any(kernel.cut for kernel in compiled.with_kernels.kernels)
    return compare(given, tokens, block_name)


def tuned(
    system: System | None = None, name: str = "MIXER_S_BLOCKS", tokens: int = 40
) -> dict[str, Any]:
    """Block sizes are searched: kernels run with each, and all of them give the same."""
    from nlc.lab.tune import Bench, tune

    compiled = compile_system(system or small("gated_deltanet"), "triton")
    table = getattr(compiled.module.kernels, name)  # type: ignore[attr-defined]
    seen = []

    def timer(run: Callable[[], object]) -> float:
        row = table["interpreter"]
        seen.append(row)
        # as if long tiles with few warps were fastest, and three stages did not fit
        if row.stages == 3:
            raise RuntimeError("out of resources")
        return float(100 - row.tokens + row.warps + row.loop_warps)

    (found,) = tune(compiled, Bench(1, tokens, "none", timer, "cpu", torch.float32))
    return {"row": found.measured.row, "seen": len(seen), "tried": found.tried,
            "now": tuple(table["interpreter"]), "gates": found.measured.gates,
            "size": found.measured.size}  # fmt: skip


def deep() -> System:
    """TTT's linear memory, whose chunk holds several tiles."""
    sizes = {"dims.d": 4, "dims.heads": 1, "dims.d_k": 3, "levels.fast.chunk": 32}
    return nlc.load("specs/ttt_linear.nl", set=sizes)


# a loop that runs as PyTorch, in which a memory with layers has a kernel of its own
ALONE = """
  weights W_r : linear(d -> n)
  weights W_s : linear(d -> d_k)
  memory M : linear(d_k -> d_k) at fast {
    key W_s(x)
    value 0.5 * W_s(x)
    slots n
    route W_r(x)
    select top_k(1)
    update { self = self - 0.05 * tanh(loss(M)) * grad }
    init learned
  }
  memory A : mlp(d_k -> n -> d_v) at fast {
    key k
    value v
    objective 1/2 * ||self(M(key)) - value||^2
    update { self = 0.9 * self - 0.1 * grad }
  }
  out = W_o(A(q) + sum(loss(M)) * v)
"""


def alone() -> dict[str, Any]:
    """A step by itself, beside what no kernel does; gradients run as PyTorch."""
    system = resolve(block(ALONE))
    made = compile_system(system, "triton").with_kernels.kernels
    assert [kernel.memory for kernel in made if kernel.role == "step"] == ["mixer_a"]
    found = compare(system, 5)
    return {"values": found["values"], "cuts": found["cuts"]}


# two memories of one form, whose kernels are one's
ALIKE = """
  memory A, B : mlp(d_k -> n -> d_v) at fast {
    key k
    value v
    update { self = 0.9 * self - 0.3 * grad }
    init learned
  }
  out = W_o(A(q) * B(k))
"""


def alike() -> dict[str, Any]:
    """Memories that share a class share its kernels."""
    system = resolve(block(ALIKE, chunk="4"))
    made = compile_system(system, "triton").with_kernels
    assert "names  A, B" in made.texts["model.py"]
    assert {kernel.memory for kernel in made.kernels if kernel.role == "course"} == {"mixer_a_b"}
    return compare(system, 9)


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "earlier": partial(text_case, block(EARLIER), 21),
    "states": partial(text_case, block(STATES), 18),
    "channels": partial(text_case, block(CHANNELS), 18),
    "turned": partial(text_case, block(TURNED), 18),
    "reset": partial(text_case, block(RESET), 15),
    "both": partial(text_case, block(BOTH), 7),
    "half": half,
    "step:nonlinear": lambda: steps(resolve(block(NONLINEAR))),
    "step:operation": step_operation,
    "step:alone": alone,
    "alike": alike,
    "step:states": lambda: steps(resolve(block(STATES))),
    "step:rwkv7": lambda: steps(small("rwkv7"), "time_mix"),
    **{
        f"step:{name}": partial(lambda name: steps(small(name)), name)
        for name in (
            "deltanet", "gated_deltanet", "titans_linear", "mesanet", "omega", "gla", "gated_oja",
            "linear_attention", "gated_deltaproduct", "kda",
            "comba", "gdn2",
        )
    },
    "operations": lambda: checked(resolve(block(STATES))),
    "tuned": tuned,
    "tuned:layers": lambda: tuned(deep(), "MIXER_M_BLOCKS", 34),
    "tuned:loop": lambda: tuned(resolve(block(NONLINEAR)), "MIXER_M_LOOP_BLOCKS", 6),
    **{
        f"wide:{name}": partial(wide, name)
        for name in ("gated_deltanet", "titans_linear", "gla", "kda")
    },
    "rwkv7": partial(shipped, "rwkv7", "time_mix"),
    **{
        name: partial(shipped, name)
        for name in (
            "deltanet", "gated_deltanet", "comba", "linear_attention", "mamba2", "titans_linear",
            "mesanet", "gated_deltaproduct", "gated_oja", "omega", "gla", "kda", "gdn2",
        )
    },
    "retnet": partial(shipped, "retnet", "retention"),
}  # fmt: skip
