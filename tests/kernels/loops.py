"""Cases of loops over tokens that run as one kernel: updates without a normal form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import nlc
from nlc.compiled import compile_system
from nlc.ir.system import System
from tests.kernels.interpreted import both, compare, ratio
from tests.properties.test_affine import Writer, rows
from tests.references.specs import block, resolve
from tests.unit.codegen.agree import total

# rows of the state go to several programs; the key is needed whole, the value in part
ROWS = """
  weights W_a : linear(d -> heads, bias)
  weights g : vector(d_k) init 0.3
  a = sigmoid(W_a(x))
  memory M : linear(d_k -> d_v) at fast {
    key unit(k)
    value v
    init learned
    update {
      M = tanh(a * M @ diag(g)) - outer(M @ k - v, k) + 0.1 * softplus(M)
    }
  }
  out = W_o(M(q))
"""
# the key is needed whole and in part; a number is the same in all rows
SQUARE = """
  weights W_p : linear(heads*d_k -> d)
  memory P : linear(d_k -> d_k) at fast {
    key k
    value k
    state n[] = 1
    update {
      n = 0.5 * n + exp(-<k, k>)
      P = 0.9 * tanh(P) - n * 0.3 * grad
    }
  }
  out = W_o(v) + W_p(P(q))
"""
# nothing can be split: it reads both ways; a product of whole matrices
WHOLE = """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    init learned
    update {
      M = 0.9 * softmax(M, over = out) + outer(v, k) - 0.2 * outer(v, transpose(M) @ v)
      M = M - 0.1 * M @ (transpose(M) @ M)
    }
  }
  out = W_o(M(q))
"""
# gradients at the chunk's start, and resets
STARTS = """
  weights W_a : linear(d -> heads, bias)
  a = sigmoid(W_a(x))
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    state S = 0
    init learned
    reset every 8 tokens
    update {
      S = 0.5 * tanh(S) - 0.3 * grad
      M = a * M + S
    }
  }
  out = W_o(M(q))
"""
# one memory makes the keys of another before both move; constants for gradients
TIED = """
  memory K[heads] : linear(d_k -> d_k) at fast {
    through first_order
    key k
    value k
    init learned
    update {
      K = K / (1 + norm(K)) - 0.3 * grad
    }
  }
  k2 = unit(prev(K)(k) + prev(M)(k))
  memory M[heads] : linear(d_k -> d_k) at fast {
    key k2
    value q
    update {
      M = relu(M) - 0.5 * grad
    }
  }
  weights W_p : linear(heads*d_k -> d)
  out = W_o(v) + W_p(M(q))
"""
# weights inside the loop; no copies
RECURRENT = """
  weights U : linear(n -> n)
  weights V : linear(d -> n)
  weights O : linear(n -> d)
  memory h : vector(n) at fast {
    init learned
    update {
      h = tanh(U(h) + V(x))
    }
  }
  out = W_o(v) + O(h)
"""


def looped(system: System, tokens: int, name: str = "mixer") -> dict[str, float]:
    """Compare a system of which some loop over tokens is a kernel, both ways."""
    made = compile_system(system, "triton").with_kernels
    roles = {kernel.role for kernel in made.kernels}
    assert {"loop", "loop_back"} <= roles, made.plain
    return compare(system, tokens, name)


def at_every_token(name: str, tokens: int = 3) -> dict[str, float]:
    """A shipped spec whose chunks are one token long, at small sizes."""
    given = nlc.load(f"specs/{name}.nl")
    sizes = small_sizes(given)
    sizes |= {f"levels.{level.name}.chunk": 1 for level in given.levels if level.chunk > 1}
    return looped(nlc.load(f"specs/{name}.nl", set=sizes), tokens)


def small_sizes(given: System) -> dict[str, Any]:
    """Dims that are small, and no powers of two where they may be."""
    small = {"d": 6, "heads": 2, "d_k": 4, "d_v": 3, "hidden": 4, "units": 5, "rank": 3}
    return {f"dims.{key}": small[key] for key in dict(given.dims) if key in small}


def one_token(name: str) -> dict[str, Any]:
    """A shipped spec, token by token: all its memories that go together are one launch."""
    from tests.kernels.cases import steps

    given = nlc.load(f"specs/{name}.nl")
    return steps(nlc.load(f"specs/{name}.nl", set=small_sizes(given)))


def half_tokens() -> dict[str, Any]:
    """One token in float16: types as without kernels."""
    mine, truth, _ = both(resolve(block(TIED)), "mixer")
    plain = compile_system(resolve(block(TIED)), "torch").block("mixer")
    plain.load_state_dict(mine.state_dict())
    torch.manual_seed(2)
    state = after = other = None
    for x in torch.randn(3, 2, 6, dtype=torch.float64):
        with torch.no_grad():
            y, state = mine.half().step(x.half(), state)
            z, after = truth.step(x, after)
            w, other = plain.half().step(x.half(), other)
    assert y.dtype == w.dtype
    assert [v.dtype for v in state.values()] == [v.dtype for v in other.values()]
    return {"half": max(ratio(y, z), *(ratio(state[name], after[name]) for name in "KM"))}


def half() -> dict[str, float]:
    """A block in float16: values and gradients."""
    mine, truth, _ = both(resolve(block(ROWS)), "mixer")
    torch.manual_seed(2)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    y, state = truth(x)
    true = torch.autograd.grad(total(y, state), [*truth.parameters()])
    our_y, ours = mine.half()(x.half())
    assert our_y.dtype == torch.float16 and ours["M"].dtype == torch.float32
    found = torch.autograd.grad(total(our_y, ours), [*mine.parameters()])
    pairs = [(our_y, y), (ours["M"], state["M"]), *zip(found, true, strict=True)]
    return {"half": max(ratio(a.detach(), b.detach()) for a, b in pairs)}


def operations() -> dict[str, Any]:
    """What torch asks of the operations, and a whole graph of `torch.compile`."""
    from tests.kernels.cases import sample_calls

    mine, _, compiled = both(resolve(block(ROWS)), "mixer")
    kernels = compiled.module.kernels  # type: ignore[attr-defined]
    found = {}
    for op, given in sample_calls(kernels, mine).items():
        result = torch.library.opcheck(getattr(kernels, op), given)
        found[op] = sorted(set(result.values()))
    x = torch.randn(2, 3, 6)
    torch._dynamo.reset()
    y, _state = torch.compile(mine, fullgraph=True, backend="aot_eager")(x)
    z, _same = mine(x)
    found["fullgraph"] = ratio(y.detach(), z.detach())
    y.sum().backward()
    return found


def tied_tokens() -> dict[str, float]:
    """Two memories, the second of which is asked with what the first says, in one launch."""
    from tests.kernels.cases import steps

    return steps(resolve(block(TIED)))


def random_loop(seed: int) -> dict[str, float]:
    """A random update with an activation of the state, which leaves it no normal form."""
    body = Writer(seed).body()
    first = body.index("      M = ") + len("      M = ")
    end = body.index("\n", first)
    text = f"{body[:first]}tanh({body[first:end]}){body[end:]}"
    return looped(resolve(block(text)), 5)


def scan(name: str) -> dict[str, float]:
    """A shipped spec whose states of one row are walked by a kernel."""
    given = nlc.load(f"specs/{name}.nl")
    return looped(nlc.load(f"specs/{name}.nl", set=small_sizes(given)), 9)


def random_scan(seed: int) -> dict[str, float]:
    """Random states of one row, whose channels move each for itself."""
    return looped(resolve(block(rows(seed))), 9)


RANDOM = {"loop": random_loop, "scan": random_scan}
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "loop:rows": lambda: looped(resolve(block(ROWS)), 5),
    "loop:square": lambda: looped(resolve(block(SQUARE)), 6),
    "loop:whole": lambda: looped(resolve(block(WHOLE)), 5),
    "loop:starts": lambda: looped(resolve(block(STARTS, chunk="4")), 9),
    "loop:tied": lambda: looped(resolve(block(TIED)), 5),
    "loop:recurrent": lambda: looped(resolve(block(RECURRENT)), 11),
    "loop:half": half,
    "loop:operations": operations,
    **{
        f"loop:{name}": partial(at_every_token, name)
        for name in ("titans_lmm", "ttt_linear", "ttt_mlp", "yaad", "memora", "omeganet", "tnt")
    },
    "scan:longhorn": partial(scan, "longhorn"),
    "scan:linear_attention": partial(scan, "linear_attention"),
    "token:tied": tied_tokens,
    "token:half": half_tokens,
    **{
        f"token:{name}": partial(one_token, name)
        for name in (
            "self_modifying_titans", "titans_mag", "ttt_mlp", "tnt", "omeganet", "consolidation",
            "routed_slots", "hybrid", "linear_attention", "surprise", "memora", "longhorn",
        )
    },
    "loop:surprise": partial(at_every_token, "surprise", 9),
}  # fmt: skip
