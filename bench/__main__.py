"""Speed, as ratios measured side by side in one run: `make bench`.

One thread, float32, B = 1, 4 heads of 64, medians of runs that take turns. Forward and backward of
the bare memory (core) and of the layer with its projections, against a loop over tokens written by
hand and, where it is installed, flash-linear-attention's chunkwise references; decoding, against a
step written by hand; and what `nlc compile` takes beyond importing torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import nlc

HEADS, SIZE, WIDTH = 4, 64, 256

SPEC = """
system bench

dims {{ d = 256, heads = 4, d_k = 64, d_v = 64 }}

level fast every 1 token
level slow every 1 step, optimizer sgd(lr = 0.1)

block core(q[heads, d_k], k[heads, d_k], v[heads, d_v], beta[heads], a[heads]) -> y[heads, d_v] {{
  memory M : linear(d_k -> d_v) at fast {{
    key    k
    value  v
    update {{ {update} }}
  }}
  y = M(q)
}}

block layer(x[d]) -> out[d] {{
  weights W_q, W_k : linear(d -> heads*d_k)
  weights W_v      : linear(d -> heads*d_v)
  weights W_b, W_a : linear(d -> heads, bias)
  weights W_o      : linear(heads*d_v -> d)
  q, k, v = unit(W_q(x)), unit(W_k(x)), W_v(x)
  beta, a = sigmoid(W_b(x)), sigmoid(W_a(x) + 4)
  memory M : linear(d_k -> d_v) at fast {{
    key    k
    value  v
    update {{ {update} }}
  }}
  out = W_o(M(q))
}}
"""
UPDATES = {
    "DeltaNet": "self = self - beta * grad",
    "Gated DeltaNet": "self = a * self; self = self - beta * grad(at = self)",
}


def token_loop(q, k, v, beta, a):
    """The rule as a plain loop over tokens: the ten lines one would write first."""
    state = v.new_zeros(v.shape[0], HEADS, SIZE, SIZE)
    outputs = []
    for t in range(q.shape[1]):
        if a is not None:
            state = a[:, t, :, None, None] * state
        error = v[:, t] - torch.einsum("bhvk,bhk->bhv", state, k[:, t])
        state = state + (beta[:, t, :, None] * error)[..., None] * k[:, t, :, None, :]
        outputs.append(torch.einsum("bhvk,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1)


def inputs(tokens: int) -> list[torch.Tensor]:
    """Random q, k, v, beta, a of the core, with gradients."""
    torch.manual_seed(0)
    shape = (1, tokens, HEADS, SIZE)
    q, k = (torch.nn.functional.normalize(torch.randn(shape), dim=-1) for _ in range(2))
    values = [q, k, torch.randn(shape), torch.rand(shape[:3]), 0.9 + 0.1 * torch.rand(shape[:3])]
    return [x.requires_grad_() for x in values]


def both_ways(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> Callable[[], None]:
    """Forward and backward as one call."""

    def run() -> None:
        y = function(*args)
        y.sum().backward()

    return run


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turns after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def references() -> dict[str, Callable[..., torch.Tensor]]:
    """flash-linear-attention's chunkwise references, where they are installed."""
    try:
        from fla.ops.delta_rule.naive import delta_rule_chunkwise
        from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
    except ImportError:
        return {}

    def delta(q, k, v, beta, a):
        rows = (x.transpose(1, 2) for x in (q, k, v))
        return delta_rule_chunkwise(*rows, beta.transpose(1, 2), chunk_size=32)[0]

    def gated(q, k, v, beta, a):
        return naive_chunk_gated_delta_rule(q, k, v, a.log(), beta, chunk_size=64)[0]

    return {"DeltaNet": delta, "Gated DeltaNet": gated}


def kernels(table: Table, tokens: int, rounds: int) -> None:
    """Core and layer, forward and backward."""
    peers = references()
    for name, update in UPDATES.items():
        compiled = nlc.compile(nlc.parse(SPEC.format(update=update)))
        core, layer = compiled.block("core"), compiled.block("layer")
        q, k, v, beta, a = inputs(tokens)
        gate = a if "Gated" in name else None
        runs = {
            "ours": both_ways(lambda *x, core=core: core(*x)[0], q, k, v, beta, a),
            "loop": both_ways(lambda *x, g=gate: token_loop(*x[:4], g), q, k, v, beta, a),
        }
        if name in peers:
            runs["fla"] = both_ways(peers[name], q, k, v, beta, a)
        found = medians(runs, rounds)
        row(table, f"{name}, core", found)
        x = torch.randn(1, tokens, WIDTH)

        def plain(x, layer=layer, g=gate):
            q, k = (torch.nn.functional.normalize(w(x).unflatten(-1, (HEADS, SIZE)), dim=-1)
                    for w in (layer.W_q, layer.W_k))  # fmt: skip
            v = layer.W_v(x).unflatten(-1, (HEADS, SIZE))
            beta, a = layer.W_b(x).sigmoid(), (layer.W_a(x) + 4).sigmoid()
            y = token_loop(q, k, v, beta, a if g is not None else None)
            return layer.W_o(y.flatten(-2))

        runs = {
            "ours": both_ways(lambda x, layer=layer: layer(x)[0], x),
            "loop": both_ways(plain, x),
        }
        row(table, f"{name}, layer", medians(runs, rounds))


def row(table: Table, name: str, found: dict[str, float]) -> None:
    """One line: milliseconds, and the others' time over ours."""
    ours = found["ours"]
    fla = f"{found['fla'] / ours:.2f}x" if "fla" in found else ""
    table.add_row(name, f"{1000 * ours:.1f}", f"{found['loop'] / ours:.1f}x", fla)


def decoding(console: Console, rounds: int) -> None:
    """One token at a time, against a step written by hand, early and late in the sequence."""
    compiled = nlc.compile(nlc.parse(SPEC.format(update=UPDATES["Gated DeltaNet"])))
    core = compiled.block("core")
    streams = [x[:, 0].detach() for x in inputs(1)]

    def by_hand(state, q, k, v, beta, a):
        state = a[..., None, None] * state
        error = v - (state @ k[..., None])[..., 0]
        state = state + (beta[..., None] * error)[..., None] * k[..., None, :]
        return (state @ q[..., None])[..., 0], state

    def run_ours(count: int, state: object) -> object:
        for _ in range(count):
            _, state = core.step(*streams, state)
        return state

    def run_plain() -> None:
        state = torch.zeros(1, HEADS, SIZE, SIZE)
        for _ in range(200):
            _, state = by_hand(state, *streams)

    with torch.no_grad():
        late = run_ours(4000, None)
        found = medians(
            {
                "ours": lambda: run_ours(200, None),
                "late": lambda: run_ours(200, late),
                "plain": run_plain,
            },
            rounds,
        )
    console.print(
        f"decoding a token: {5 * found['ours']:.3f} ms; by hand {5 * found['plain']:.3f} ms: "
        f"{found['ours'] / found['plain']:.2f}x; at token 4000 "
        f"{found['late'] / found['ours']:.2f}x of token 0"
    )


def compiling(console: Console) -> None:
    """What compiling takes beyond importing torch."""
    code = (
        "import time, torch; t = time.perf_counter(); import nlc, tempfile, pathlib;"
        "c = nlc.compile(nlc.load(pathlib.Path(nlc.__file__).parent.parent / 'specs/gated_deltanet.nl'));"
        "c.write(pathlib.Path(tempfile.mkdtemp()) / 'p'); print(time.perf_counter() - t)"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             check=True).stdout)
        for _ in range(3)
    ]  # fmt: skip
    console.print(f"nlc compile, beyond importing torch: {statistics.median(runs):.2f} s")


def main() -> None:
    """Run all benchmarks."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    table = Table(title=f"forward and backward, T = {options.tokens}, torch {torch.__version__}")
    for heading in ("", "ours, ms", "token loop", "fla reference"):
        table.add_column(heading, justify="left" if not heading else "right")
    kernels(table, options.tokens, options.rounds)
    console.print(table)
    decoding(console, options.rounds)
    compiling(console)


if __name__ == "__main__":
    main()
