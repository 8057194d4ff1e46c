"""Small specs for tests: a frame with projections, and what is put into it."""

from __future__ import annotations

from functools import lru_cache

from nlc.ir.system import System

HEAD = """system small
dims {{ d = 6, heads = 2, d_k = 4, d_v = 3, n = 5 }}
level now always
level fast every 1 token{chunk}
level slow every 1 step
"""
PROJECTIONS = """
  weights W_q, W_k : linear(d -> heads*d_k)
  weights W_v : linear(d -> heads*d_v)
  weights W_o : linear(heads*d_v -> d)
  q, k, v = W_q(x), W_k(x), W_v(x)
"""


def block(body: str, rules: str = "", chunk: str = "", levels: str = "") -> str:
    """A spec with one block `mixer(x[d]) -> out[d]` that holds this body."""
    written = f", chunk {chunk}" if chunk else ""
    head = HEAD.format(chunk=written) + levels
    return f"{head}{rules}\nblock mixer(x[d]) -> out[d] {{{PROJECTIONS}{body}}}\n"


@lru_cache(maxsize=64)
def resolve(text: str) -> System:
    """The system that a text means."""
    from nlc.library import shipped_rules
    from nlc.semantics.resolve import resolve as resolve_spec
    from nlc.source import Source
    from nlc.syntax.parse_text import parse_text

    source = Source("<text>", text)
    return resolve_spec(parse_text(source), source, shipped_rules())
