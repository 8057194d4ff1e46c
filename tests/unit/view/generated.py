"""Random systems with many blocks, memories and weights, for pictures that nobody has drawn before.

Each is a whole spec as text: blocks whose memories take keys, values and gates from weights and
from each other, at levels of any period, in a model with repeats.
"""

from __future__ import annotations

from random import Random

LETTERS = ["W", "V_down", "gate", "μ", "投影", "a_rather_long_name_for_weights", "conv", "lora"]
MEMORIES = ["M", "S", "A", "记忆", "a_memory_with_a_name_of_its_own"]


def spec(seed: int) -> str:
    """Write the system of a seed."""
    random = Random(seed)
    periods = sorted({1, *random.sample([1, 2, 16, 64, 512, 4096], random.randint(1, 3))})
    # periods nest
    periods = [p for p in periods if all(p % q == 0 for q in periods if q < p)]
    tokens = {f"tok_{p}": p for p in periods}
    steps = {f"step_{p}": p for p in random.choice([[1], [1, 8], [1, 10, 1000]])}
    lines = [f'system random_{seed} "{"Any words 任何文字 " * random.randint(0, 9)}"']
    lines += ["dims { d = 16, heads = 2, n = 4 }", "level now always", "level ice never"]
    for name, period in tokens.items():
        chunk = ", chunk 16" if period == 1 and min(periods[1:], default=16) >= 16 else ""
        word = "token" if period == 1 else "tokens"
        lines.append(f"level {name} every {period} {word}{chunk}, optimizer sgd(lr = 0.1)")
    for name, period in steps.items():
        word = "step" if period == 1 else "steps"
        rule = random.choice(["sgd(lr = 0.1)", "adamw(lr = 0.1)", "momentum(lr = 0.1, beta = 0.9)"])
        lines.append(f"level {name} every {period} {word}, optimizer {rule}")
    blocks = [f"block_{i}" for i in range(random.randint(1, 5))]
    for block in blocks:
        lines += _block(random, block, list(tokens), list(steps))
    return "\n".join([*lines, *_model(random, blocks, next(iter(steps)))]) + "\n"


def _block(random: Random, block: str, tokens: list[str], steps: list[str]) -> list[str]:
    lines, made = [], ["k", "v"]
    slow = steps[0]
    lines.append(f"  weights W_q, W_k, W_v : linear(d -> heads*n) at {slow}")
    lines.append("  q, k, v = unit(W_q(x)), unit(W_k(x)), W_v(x)")
    weights = random.randint(0, 10)
    for i in range(weights):
        name = f"{random.choice(LETTERS)}_{i}"
        level = random.choice([*steps, *steps, "ice", *([random.choice(tokens)] * (i % 4 == 0))])
        lines.append(f"  weights {name} : linear(heads*n -> heads*n) at {level}")
        lines.append(f"  s_{i} = {name}({random.choice(made)})")
        made.append(f"s_{i}")
    lines.append(f"  weights W_b : linear(d -> heads, bias) at {slow}")
    lines.append("  b = sigmoid(W_b(x))")
    reads = []
    for i in range(random.randint(0, 4)):
        name = f"{random.choice(MEMORIES)}_{i}"
        if random.random() < 0.3:
            pairs = random.choice(["", "; init learned(4)"])
            lines.append(f"  memory {name} : kernel(softmax) at now {{ key k; value v{pairs} }}")
        else:
            update = random.choice(
                ["sgd(lr = b)", "momentum(lr = b, beta = 0.9)",
                 "titans(lr = b, momentum = 0.9, decay = b)", "sgd(lr = 0.1)"]
            )  # fmt: skip
            level = tokens[0] if "b" in update.split("(")[1] else random.choice(tokens)
            map = random.choice(["linear(n -> n)", "mlp(n -> 2*n -> n)"])
            key, value = random.choice(made), random.choice([*made, *reads])
            lines.append(
                f"  memory {name} : {map} at {level} {{ key unit({key}); value {value}; "
                f"update {update} }}"
            )
        lines.append(f"  r_{i} = {name}(q)")
        reads.append(f"r_{i}")
        made.append(f"r_{i}")
    lines.append(f"  weights W_o : linear(heads*n -> d) at {slow}")
    total = " + ".join(["v", *made[2:]])
    return [f"block {block}(x[d]) -> out[d] {{", *lines, f"  out = W_o(rmsnorm({total}))", "}"]


def _model(random: Random, blocks: list[str], slow: str) -> list[str]:
    lines = ["model {", "  vocab bytes", "  x[d] = embed(tokens)"]
    for block in blocks:
        call = f"x = x + {block}(rmsnorm(x))"
        times = random.choice([1, 1, 4, 24])
        lines.append(f"  {call}" if times == 1 else f"  repeat {times} {{ {call} }}")
    return [*lines, "  logits = unembed(rmsnorm(x))", "}"]
