"""Self-modifying Titans with MLP memories, beside nested-learning's own.

Theirs has one head and no gradient through its writes: `forward_with_updates` runs without any. So
its forward pass alone stands beside forward and backward through all writes. It is alike, not the
same: its outputs are read at a chunk's start, ours before each token, and its maps to one number
have a linear map beside the MLP. So nothing is compared but time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import nlc
from bench.measure import shown, side_by_side

WIDTH, CHUNK, TOKENS = 256, 64, 512
SPEC = f"""system modifying
dims {{ d = {WIDTH} }}
level fast every 1 token, chunk {CHUNK}
level slow every 1 step
block mixer(x[d]) -> out[d] {{
  weights conv_x : conv(d, width = 4)
  weights W_q : linear(d -> d)
  z = conv_x(x)
  q = unit(W_q(z))
  memory M_k, M_v, M_mem : mlp(d -> d -> d, residual) at fast {{
    key k
    value prev(self)(v)
    objective ||self(key) - value||^2
    update {{
      self.layer1 = self.layer1 @ (alpha - eta * outer(k, k)) - eta * grad.layer1
      self.layer2 = alpha * self.layer2 - eta * grad.layer2
    }}
    init learned
  }}
  memory M_eta, M_alpha : mlp(d -> d -> 1) at fast {{
    key k
    value prev(self)(v)
    objective ||self(key) - value||^2
    update {{
      self.layer1 = self.layer1 @ (alpha - eta * outer(k, k)) - eta * grad.layer1
      self.layer2 = alpha * self.layer2 - eta * grad.layer2
    }}
    init learned
  }}
  k = unit(prev(M_k)(z))
  v = prev(M_v)(z)
  eta = 0.001 * softplus(prev(M_eta)(z))
  alpha = sigmoid(prev(M_alpha)(z))
  out = prev(M_mem)(q)
}}
"""


def modifying(rounds: int) -> None:
    """Print a row: forward and backward here, forward there."""
    x = torch.randn(1, TOKENS, WIDTH)
    mixer = nlc.compile(nlc.parse(SPEC), target="torch").block("mixer")

    def forward() -> None:
        with torch.no_grad():
            mixer(x)

    def both() -> None:
        mixer(x.clone().requires_grad_())[0].sum().backward()

    runs: dict[str, Callable[[], Any]] = {"nlc": both, "nlc, forward": forward}
    other = theirs()
    if other is not None:
        runs["nested-learning, forward"] = lambda: other.forward_with_updates(
            x, other.init_fast_state()
        )
    took = side_by_side(runs, rounds)
    there = took.get("nested-learning, forward")
    cells = [shown(there), f"{there / took['nlc']:.2f}"] if there else ["-", "-"]
    print(f"Self-modifying Titans, MLPs, chunk {CHUNK}, one head of {WIDTH}, T = {TOKENS}:\n")
    print("| nlc, forward and backward | nlc, forward | nested-learning, forward | other / nlc |")
    print(f"|{'---|' * 4}")
    found = [shown(took["nlc"]), shown(took["nlc, forward"]), *cells]
    print(f"| {' | '.join(found)} |\n", flush=True)


def theirs() -> Any:
    """Make the memories of the package `nested-learning`, where that is installed."""
    try:
        from nested_learning.titan.self_modifying import (
            SelfModifyingTitans,
            SelfModifyingTitansConfig,
        )
    except ImportError:
        print("(nested-learning is not installed: pip install --no-deps nested-learning)\n")
        return None
    return SelfModifyingTitans(SelfModifyingTitansConfig(dim=WIDTH, chunk_size_other=CHUNK))
