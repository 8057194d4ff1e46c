"""Cases of memories that move from chunk to chunk: maps with layers, at sizes that fit no block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from nlc.codegen.triton import layer_slices, module

import nlc
from nlc.compiled import compile_system
from nlc.ir.system import System
from tests.kernels.cases import checked
from tests.kernels.interpreted import both, compare, ratio, text_case
from tests.references.specs import block, resolve

# two states, two keys, all kinds of parts, read before and after each update and at a chunk's start
DEEP = """
  weights W_k2 : linear(d -> heads*d_k)
  weights W_a, W_b : linear(d -> heads, bias)
  k2, a, b = W_k2(x), sigmoid(W_a(x)), sigmoid(W_b(x))
  memory M : mlp(d_k -> 7 -> d_v, bias, norm, act = silu) at fast {
    key k
    value v
    state S = 0
    init learned
    update {
      S = 0.9 * a * S - 0.2 * b * grad
      M = (1 - 0.1 * a) * M + S
    }
  }
  out = W_o(M(q) + prev(M)(k2))
"""
# a gated map, several keys a token, an objective of another kind, back to the start at times
GATED = """
  weights W_k2 : linear(d -> heads*d_k)
  weights W_a : linear(d -> heads, bias)
  k2, a = W_k2(x), sigmoid(W_a(x))
  memory M : glu(d_k -> 6 -> d_v) at fast {
    key k, k2
    value v, 0.5 * v
    objective sqrt(||M(key) - value||^2 + 0.1)
    init learned
    reset every 10 tokens
    update { M = a * M - 0.3 * grad }
  }
  out = W_o(M(q))
"""
# roots of what is 0 for some entries; that of a square has a slope that does not hang on values
ROOTS = GATED.replace(
    "sqrt(||M(key) - value||^2 + 0.1)",
    "sum((0.1 + sqrt(relu(M(key) - value) * (M(key) - value)))^2)",
)
SIZES = GATED.replace(
    "sqrt(||M(key) - value||^2 + 0.1)",
    "sum(sqrt((M(key) - value) * (M(key) - value)))",
)
# one matrix whose gradient is that of its chunk's start; what moves it is a constant
FIRST = """
  weights W_a : linear(d -> heads, bias)
  a = sigmoid(W_a(x))
  memory M : linear(d_k -> d_v, bias) at fast {
    key unit(k)
    value v
    through first_order
    update { M = a * M - where(a > 0.5, 0.4, 0.1) * grad }
  }
  out = W_o(M(q))
"""
# a gate for each channel, of keys, of values and of a vector; one that is divided by and others
CHANNELS = """
  weights W_a : linear(d -> heads*d_k, bias)
  weights W_b : linear(d -> heads*d_v, bias)
  weights W_c : linear(d -> heads*d_k, bias)
  a, b = 0.5 + 0.5 * sigmoid(W_a(x)), sigmoid(W_b(x))
  c = relu(W_c(x))
  memory M : mlp(d_k -> d_k -> d_v, bias, act = tanh) at fast {
    key k
    value v
    init learned
    update {
      M.layer1.weight = M.layer1.weight @ diag(a) - 0.2 * grad.layer1.weight
      M.layer2.weight = diag(b) @ M.layer2.weight - 0.2 * diag(b) @ grad.layer2.weight
      M.layer1.bias = c * M.layer1.bias - 0.2 * grad.layer1.bias
      M.layer2.bias = b * M.layer2.bias - 0.2 * grad.layer2.bias
    }
  }
  out = W_o(M(q) + prev(M)(k))
"""
# writes that read the state as it moves within the chunk, beside gradients of the chunk's start
MOVING = """
  weights W_a, W_b : linear(d -> heads, bias)
  a, b = sigmoid(W_a(x)), sigmoid(W_b(x))
  memory M : mlp(d_k -> 7 -> d_k, residual) at fast {
    key unit(k)
    value prev(self)(q)
    init learned
    update { self = self @ (a - b * outer(unit(k), unit(k))) - 0.3 * b * grad }
  }
  weights W_p : linear(heads*d_k -> d)
  out = W_p(prev(M)(q))
"""
# two such writes a token, the second of which sees the first, with momentum
TWICE = """
  weights W_k2 : linear(d -> heads*d_k)
  weights W_a, W_b : linear(d -> heads, bias)
  k2, a, b = unit(W_k2(x)), sigmoid(W_a(x)), sigmoid(W_b(x))
  memory M : glu(d_k -> 6 -> d_v) at fast {
    key k
    value v
    state S = 0
    init learned
    update {
      S = 0.9 * a * S - 0.2 * b * grad
      M = M @ (a - b * outer(unit(k), unit(k))) + S
      M = M @ (1 - 0.5 * outer(k2, k2))
    }
  }
  out = W_o(M(q) + prev(M)(k2))
"""
# ... and with gates by channel, on both sides
ERASED = """
  weights W_a : linear(d -> heads*d_k, bias)
  weights W_b : linear(d -> heads*d_v, bias)
  a, b = 0.5 + 0.5 * sigmoid(W_a(x)), 0.5 + 0.5 * sigmoid(W_b(x))
  memory M : mlp(d_k -> 7 -> d_v) at fast {
    key k
    value v
    init learned
    update {
      M.layer1 = M.layer1 @ (diag(a) - outer(a * unit(k), 0.5 * unit(k))) - 0.2 * grad.layer1
      M.layer2 = (diag(b) - outer(0.5 * unit(v), b * unit(v))) @ M.layer2 - 0.2 * grad.layer2
    }
  }
  out = W_o(M(q))
"""
# memories that make one another's keys, chunk by chunk; the second reads the first at its start
MAKING = """
  weights W_a : linear(d -> heads, bias)
  weights W_p : linear(heads*d_k -> d)
  a = sigmoid(W_a(x))
  z = 0.5 * k
  memory A : mlp(d_k -> 7 -> d_k, residual) at fast {
    key key_
    value q
    init learned
    update { A = a * A - 0.2 * grad }
  }
  memory B : linear(d_k -> d_k) at fast {
    key z
    value prev(A)(q)
    update { B = B @ (a - 0.3 * outer(unit(key_), unit(key_))) - 0.2 * grad }
  }
  key_ = z + prev(B)(q)
  out = W_p(prev(A)(z) + B(z))
"""
# maps whose value is one number: a layer of one row, and a matrix of one row that is erased
NUMBERS = """
  weights W_a, W_b : linear(d -> heads, bias)
  a, b = sigmoid(W_a(x)), sigmoid(W_b(x))
  memory M : mlp(d_k -> 7 -> 1, bias) at fast {
    key unit(k)
    value b
    state S = 0
    init learned
    update {
      S = 0.5 * S - 0.3 * grad
      self = self @ (a - b * outer(unit(k), unit(k))) + S
    }
  }
  memory R : linear(d_k -> 1) at fast {
    key q
    value prev(self)(k)
    init learned
    update {
      self = self @ (a - b * outer(unit(q), unit(q))) - 0.2 * grad
      self = self @ (1 - 0.3 * outer(unit(k), unit(k)))
    }
  }
  out = W_o((M(q) + prev(R)(k)) * v)
"""
SMALL = {"dims.d": 6, "dims.heads": 2, "dims.d_k": 5, "levels.fast.chunk": 6}


def shipped(name: str) -> dict[str, float]:
    """A shipped spec at sizes that are no powers of two."""
    given = nlc.load(f"specs/{name}.nl")
    sizes = SMALL | ({"dims.d_v": 3} if "d_v" in dict(given.dims) else {})
    if all(level.name != "fast" for level in given.levels):
        del sizes["levels.fast.chunk"]
    return compare(nlc.load(f"specs/{name}.nl", set=sizes), 19)


def self_modifying() -> dict[str, float]:
    """A shipped spec whose memories make one another's keys, with two chunks."""
    sizes = {"dims.d": 6, "dims.inner": 7, "levels.fast.chunk": 4, "levels.steady.chunk": 8}
    return compare(nlc.load("specs/self_modifying_chunks.nl", set=sizes), 19)


def half(system: System | None = None) -> dict[str, float]:
    """A whole block in float16, whose streams reach the kernels in that type."""
    given = system or nlc.load("specs/titans_lmm.nl", set=SMALL | {"dims.d_v": 3})
    mine, truth, _ = both(given, "mixer")
    torch.manual_seed(2)
    x = torch.randn(2, 13, 6, dtype=torch.float64)
    y, state = truth(x)
    our_y, ours = mine.half()(x.half())
    our_y.float().sum().backward()
    assert our_y.dtype == torch.float16
    pairs = [(ours["M"][part], state["M"][part]) for part in state["M"]]
    return {"half": max(ratio(our_y, y), *(ratio(a, b) for a, b in pairs))}


def operations() -> dict[str, Any]:
    """What torch asks of its operations, and whole graphs of `torch.compile`."""
    return checked(resolve(block(DEEP, chunk="4")))


def sliced(run: Callable[[System], dict[str, Any]], given: str | System) -> dict[str, Any]:
    """A memory whose hidden widths are walked in slices of 16 channels."""
    system = resolve(given) if isinstance(given, str) else given
    with (
        patch.object(layer_slices, "LARGEST", 256),
        patch.object(layer_slices, "WIDEST", 16),
        patch.object(module, "slice_sizes", lambda *_: {"interpreter": (16, 1, 4, 4, 1)}),
    ):
        assert "while begin <" in compile_system(system, "triton").kernels_source
        return run(system)


def shipped_in_slices() -> dict[str, float]:
    """A shipped spec whose memories make each other's keys."""
    sizes = {"dims.d": 6, "dims.inner": 24, "dims.hidden": 8, "levels.fast.chunk": 4}
    system = nlc.load("specs/self_modifying_mlp.nl", set=sizes)
    return sliced(partial(compare, tokens=7), system)


# hidden widths that fit no slice
MOMENTUM = """
  weights W_a : linear(d -> heads, bias)
  a = sigmoid(W_a(x))
  memory M : mlp(d_k -> 20 -> d_v) at fast {
    key k
    value v
    init learned
    update titans(lr = 0.2 * a, momentum = a, decay = 0.1 * a)
  }
  out = W_o(M(q))
"""
WIDE = DEEP.replace("-> 7 ->", "-> 20 ->").replace("0.2 * b", "0.05 * b")
TALL = GATED.replace("-> 6 ->", "-> 40 ->")
# two such widths, with one between them that is kept whole
LONG = FIRST.replace("a * M", "(0.8 + 0.2 * a) * M").replace(
    "linear(d_k -> d_v, bias)", "mlp(d_k -> 20 -> 4 -> 18 -> d_v, act = tanh)"
)

# writes that read the state as it moves, and gates by channel
SOLVED, ROWS = (text.replace("-> 7 ->", "-> 20 ->") for text in (MOVING, ERASED))

CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "layers:tiles": partial(text_case, block(DEEP, chunk="20"), 27),
    "layers:deep": partial(text_case, block(DEEP, chunk="4"), 11),
    "layers:gated": partial(text_case, block(GATED, chunk="5"), 13),
    "layers:roots": partial(text_case, block(ROOTS, chunk="5"), 13),
    "layers:sizes": partial(text_case, block(SIZES, chunk="5"), 13),
    "layers:first": partial(text_case, block(FIRST, chunk="4"), 9),
    "layers:channels": partial(text_case, block(CHANNELS, chunk="18"), 19),
    "layers:moving": partial(text_case, block(MOVING, chunk="4"), 11),
    "layers:moving_tiles": partial(text_case, block(MOVING, chunk="20"), 27),
    "layers:twice": partial(text_case, block(TWICE, chunk="5"), 11),
    "layers:erased": partial(text_case, block(ERASED, chunk="18"), 19),
    "layers:making": partial(text_case, block(MAKING, chunk="4"), 11),
    "layers:making_tiles": partial(text_case, block(MAKING, chunk="20"), 43),
    "layers:making_chunks": partial(
        text_case,
        block(
            MAKING.replace("residual) at fast", "residual) at steady"),
            chunk="16",
            levels="level steady every 1 token, chunk 32\n",
        ),
        43,
    ),
    "layers:self_modifying": self_modifying,
    "layers:numbers": partial(text_case, block(NUMBERS, chunk="4"), 11),
    "layers:numbers_tiles": partial(text_case, block(NUMBERS, chunk="20"), 27),
    "layers:half": half,
    "slices:small": partial(sliced, partial(compare, tokens=6), block(MOMENTUM, chunk="4")),
    "slices:deep": partial(sliced, partial(compare, tokens=11), block(WIDE, chunk="4")),
    "slices:tiles": partial(sliced, partial(compare, tokens=27), block(WIDE, chunk="20")),
    "slices:gated": partial(sliced, partial(compare, tokens=13), block(TALL, chunk="5")),
    "slices:long": partial(sliced, partial(compare, tokens=9), block(LONG, chunk="4")),
    "slices:moving": partial(sliced, partial(compare, tokens=11), block(SOLVED, chunk="4")),
    "slices:erased": partial(sliced, partial(compare, tokens=19), block(ROWS, chunk="18")),
    "slices:shipped": shipped_in_slices,
    "slices:half": partial(sliced, half, block(MOMENTUM, chunk="4")),
    "slices:operations": partial(sliced, checked, block(MOMENTUM, chunk="4")),
    "layers:operations": operations,
    **{
        f"layers:{name}": partial(shipped, name)
        for name in ("ttt_linear", "ttt_mlp", "titans_lmm", "omeganet", "tnt", "yaad")
    },
}
