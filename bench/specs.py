"""The specs that are measured: bare cores of two memories, and the shipped layers around them.

Out: compiled systems. A core takes q, k, v and gates as streams and has no parameters.
"""

from __future__ import annotations

import nlc
from nlc.compiled import Compiled

DELTA = "M = M - beta * grad"
GATED = "M = a * M; M = M - beta * grad(at = M)"
CORE = """system core
dims {{ heads = {heads}, d_k = {size}, d_v = {size} }}
level fast every 1 token
level slow every 1 step
block core(q[heads, d_k], k[heads, d_k], v[heads, d_v], {gates}) -> out[heads, d_v] {{
  memory M : linear(d_k -> d_v) at fast {{
    key k
    value v
    update {{ {update} }}
  }}
  out = M(q)
}}
"""


def core(gated: bool, heads: int, size: int) -> Compiled:
    """Compile the bare delta rule, with a decay before it if `gated`."""
    gates = "beta[heads], a[heads]" if gated else "beta[heads]"
    text = CORE.format(heads=heads, size=size, gates=gates, update=GATED if gated else DELTA)
    return nlc.compile(nlc.parse(text))


def layer(gated: bool, heads: int, size: int) -> Compiled:
    """Compile the shipped DeltaNet or Gated DeltaNet at these sizes."""
    name = "gated_deltanet" if gated else "deltanet"
    sizes = {"dims.d": heads * size, "dims.heads": heads, "dims.d_k": size, "dims.d_v": size}
    return nlc.compile(nlc.parse(_text(name), set=sizes))


def _text(name: str) -> str:
    from importlib.resources import files

    return files("nlc.specs").joinpath(f"{name}.nl").read_text("utf-8")
