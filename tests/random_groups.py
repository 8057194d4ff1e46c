"""Random groups of memories that make each other's keys and gates, with chunks of their own.

In: a seed. Out: a spec. Maps, objectives, updates, chunks, resets and gradient paths are drawn.
"""

from __future__ import annotations

from random import Random

MAPS = (
    "linear(d_k -> d_k)",
    "linear(d_k -> d_k, bias)",
    "mlp(d_k -> 5 -> d_k)",
    "mlp(d_k -> 3 -> d_k, residual)",
    "mlp(d_k -> d_k, residual, norm)",
    "mlp(d_k -> 3 -> d_k, bias, act = silu)",
    "glu(d_k -> 4 -> d_k)",
    "lora(d_k -> 2 -> d_k)",
)
UPDATES = (
    "self = self - 0.1 * grad",
    "self = g * self - 0.2 * grad",
    "self = g * self - 0.1 * e * grad(at = 0.5 * self)",
    "self = self @ (g - 0.1 * e * outer({key}, {key})) - 0.1 * e * grad",
    "S = 0.5 * S - 0.1 * e * grad\nself = g * self + S",
)
OBJECTIVES = (
    "",
    "objective 1/2 * ||self(key) - value||^2",
    "objective ||self(key) - value||^2",
    "objective -<self(key), value>",
)
GATES = (
    "g, e = sigmoid(W_g(x)), sigmoid(W_e(x))",
    "g, e = sigmoid(sum(prev(A)(q)) + W_g(x)), sigmoid(W_e(x))",
)


def group(seed: int) -> str:
    """Two or three memories in a ring, each with a key that the next one makes."""
    draw = Random(seed)
    names = "ABC"[: draw.choice([2, 2, 3])]
    lead, base = draw.choice(["", "heads"]), draw.choice([2, 3, 4])
    chunks = {name: base * draw.choice([1, 1, 2, 3]) for name in names}
    axes, one = (f"{lead}*d_k", lead) if lead else ("d_k", "1")
    lines = [draw.choice(GATES)]
    for i, name in enumerate(names):
        other = names[(i + 1) % len(names)]
        update = draw.choice(UPDATES).format(key=f"k_{name}")
        clauses = [
            f"key {draw.choice([f'k_{name}', f'0.5 * k_{name}'])}",
            f"value {draw.choice(['v', f'prev({other})(v)', 'prev(self)(v)'])}",
            draw.choice(OBJECTIVES),
            "state S = 0" if "S =" in update else "",
            f"update {{\n{update}\n}}",
            draw.choice(["", "init learned"]),
            draw.choice(["", "", f"reset every {chunks[name] * draw.choice([1, 2, 3])} tokens"]),
            draw.choice(["", "", "through first_order"]),
        ]
        lines.append(f"k_{name} = unit(k + prev({other})(q))")
        head = f"memory {name}{f'[{lead}]' if lead else ''} : {draw.choice(MAPS)} at l_{name}"
        lines.append("\n".join([f"{head} {{", *filter(None, clauses), "}"]))
    reads = [draw.choice([f"{n}(q)", f"prev({n})(k)", f"{n}(k + q)"]) for n in names]
    levels = "\n".join(f"level l_{n} every 1 token, chunk {c}" for n, c in chunks.items())
    body = "\n".join(lines)
    return f"""system drawn
dims {{ d = 4, heads = 2, d_k = 3 }}
{levels}
level slow every 1 step
block mixer(x[d]) -> out[d] {{
weights W_q, W_k, W_v : linear(d -> {axes})
weights W_o : linear({axes} -> d)
weights W_g, W_e : linear(d -> {one})
q, k, v = W_q(x), W_k(x), W_v(x)
{body}
out = W_o({" + ".join(reads)})
}}
"""
