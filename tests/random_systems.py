"""Random small systems that are well formed, for hypothesis, as texts of whole specs.

Out: a `Drawn` for each: one block `mixer(x[d]) -> out[d]` with one memory or two, a random map,
objective, update (written out or through a rule), states, chunk, reset, start and gradient path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hypothesis import strategies as st

# gates are numbers or streams [heads]; steps are kept small, so that nothing grows out of bounds
GATES = ("0.9", "alpha", "(1 - 0.5 * beta)", "1")
STEPS = ("0.1", "beta", "0.5 * beta", "0.3 * alpha")
SMALL = ("0.1", "0.05 * beta")
KEYS = ("unit({})", "unit(silu({}))", "tanh({})", "0.5 * rmsnorm({})")
SHAPERS = ("{}", "unit({})", "silu({})", "unit(silu({}))", "rmsnorm({})", "tanh({})")

LINEAR = "linear(d_k -> d_v)"
LAYERED = (
    "linear(d_k -> d_v, bias)",
    "mlp(d_k -> n -> d_v)",
    "mlp(d_k -> n -> d_v, act = tanh, bias)",
    "mlp(d_k -> n -> n -> d_v, act = silu)",
    "glu(d_k -> n -> d_v)",
    "lora(d_k -> n -> d_v, act = tanh)",
)
MAPS = {"affine": (LINEAR,), "matrix": (LINEAR,), "layered": LAYERED}
KINDS = ("affine", "affine", "matrix", "layered")
OBJECTIVES = (
    "1/2 * ||self(key) - value||^2",
    "||self(key) - value||^2",
    "-<self(key), value>",
    "beta * 1/2 * ||self(key) - value||^2",
    "lp(self(key) - value, 3)",
    "huber(self(key) - value, 0.7)",
    "1/2 * ||self(key) - value||^2 + 0.1 * ||self(q) - v||^2",
    "1/2 * ||tanh(self(key)) - value||^2",
)
RULES = (
    "sgd(lr = {step})",
    "sgd(lr = {step}, weight_decay = 0.1)",
    "momentum(lr = {step}, beta = {gate})",
    "titans(lr = {step}, momentum = {gate}, decay = {step})",
    "gated_delta(lr = {step}, gate = {gate})",
)
# what any update may do; `S` is a state
COMMON = (
    "self = {gate} * self",
    "self = self - {step} * grad",
    "self = self - {step} * grad(at = self)",
    "self = {gate} * self - {step} * grad",
    "S = {gate} * S - {step} * grad\nself = self + S",
    "S = S + grad^2\nself = self - {step} * grad / sqrt(S^2 + 1)",
    "self = self - {step} * grad(at = {gate} * self)",
    "self = tanh(self - {step} * grad)",
)
# what the update of a single matrix may do
MATRIX = (
    "self = self + {step} * outer(value, key)",
    "self = self @ ({gate} - {step} * outer(key, key))",
    "e = self(key) - value\nself = self - {step} * outer(e, key)",
    "self = self @ diag(a_k)",
    "self = diag(a_v) @ self + {step} * outer(v, k)",
    "self = self / max(norm(self, over = (in, out)), 1)",
    "S = S @ diag(a_k) + {step} * outer(value, key)\nself = {gate} * self + S",
)
AROUND = ("{}", "{}", "{}", "{}", "when beta > 0.5 {{\n{}\n}}", "repeat 2 {{\n{}\n}}")
# updates that keep to the normal form, and so run in parallel
AFFINE = (
    "self = {gate} * self",
    "self = self - {step} * grad",
    "self = self - {step} * grad(at = self)",
    "self = self + {step} * outer(value, key)",
    "self = self @ ({gate} - {step} * outer(key, key))",
    "self = self @ diag(a_k)",
    "S = {gate} * S - {step} * grad\nself = {gate} * self + S",
)
# the state of a vector or a number, read by its bare name
BARE = (
    "self = {gate} * self + {step} * {value}",
    "self = max({gate} * self, {step} * {value})",
    "S = {gate} * S + {value}\nself = self + {step} * S",
    "self = tanh(self + {value})",
    "when beta > 0.5 {{\nself = {gate} * self + {value}\n}}",
)


@dataclass(frozen=True)
class Memory:
    """A memory of a random system: its header, its clauses in order, and how it may be read."""

    name: str
    head: str
    clauses: tuple[str, ...]
    reads: tuple[str, ...]
    rule: str = ""

    @property
    def text(self) -> str:
        return f"{self.head} {{\n" + "\n".join(self.clauses) + "\n}"


@dataclass(frozen=True)
class Drawn:
    """A random system in parts; `text` puts them together."""

    sizes: dict[str, int]
    chunk: int
    streams: tuple[str, ...]
    memories: tuple[Memory, ...]
    out: str
    # lines of further levels, and of the block
    levels: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        sizes = ", ".join(f"{name} = {size}" for name, size in self.sizes.items())
        rules = "".join(m.rule for m in self.memories)
        levels = "".join(f"{line}\n" for line in self.levels)
        body = [*self.streams, *self.lines, *(m.text for m in self.memories), self.out]
        return (
            f"system drawn\ndims {{ {sizes} }}\n"
            f"level fast every 1 token, chunk {self.chunk}\nlevel slow every 1 step\n"
            f"{levels}{rules}block mixer(x[d]) -> out[d] {{\n" + "\n".join(body) + "\n}\n"
        )


def _one_of(draw: st.DrawFn, choices: tuple[str, ...]) -> str:
    return draw(st.sampled_from(choices))


def _filled(draw: st.DrawFn, template: str, value: str = "v", steps: str = "") -> str:
    """Put a random gate, step and value into a template."""
    step = _one_of(draw, SMALL if steps == "small" else STEPS)
    return template.format(gate=_one_of(draw, GATES), step=step, value=value)


def _update(draw: st.DrawFn, name: str, kind: str) -> tuple[list[str], str]:
    """Draw an update: its clauses, and the rule that it needs."""
    steps = "small" if kind == "layered" else ""
    if draw(st.integers(0, 2)) == 0:
        return [f"update {_filled(draw, _one_of(draw, RULES), steps=steps)}"], ""
    choices = {"affine": AFFINE, "matrix": COMMON + MATRIX}.get(kind, COMMON)
    count = draw(st.integers(1, 3))
    written = [_filled(draw, _one_of(draw, choices), steps=steps) for _ in range(count)]
    around = AROUND[:1] if kind == "affine" else AROUND
    lines = "\n".join(_one_of(draw, around).format(w) for w in written)
    state = ["state S = 0"] if _uses(lines, "S") else []
    if draw(st.booleans()):
        # a rule sees only its arguments; the streams come as such
        lines = re.sub(r"\bvalue\b", "v", lines)
        used = [n for n in ("alpha", "beta", "a_k", "a_v", "v", "k") if _uses(lines, n)]
        body = "\n".join([*state, lines])
        rule = f"rule own_{name}({', '.join(used)}) {{\n{body}\n}}\n"
        return [f"update own_{name}({', '.join(f'{n} = {n}' for n in used)})"], rule
    return [*state, f"update {{\n{lines}\n}}"], ""


def _uses(lines: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", lines) is not None


def _start(draw: st.DrawFn, chunk: int, *starts: str) -> list[str]:
    """Draw the clauses that any memory may have."""
    clauses = [_one_of(draw, ("", *starts))]
    if draw(st.integers(0, 2)) == 0:
        clauses.append(f"reset every {chunk * draw(st.integers(1, 3))} tokens")
    clauses.append(_one_of(draw, ("", "", "", "through first_order", "through stop")))
    return [c for c in clauses if c]


def _mapped(draw: st.DrawFn, name: str, chunk: int, value: str, linear: bool) -> Memory:
    """Draw a memory with keys and values."""
    kind = "matrix" if linear else draw(st.sampled_from(KINDS))
    written = _one_of(draw, MAPS[kind])
    key = _one_of(draw, ("k", "k", "shift(k)", "0.5 * k + 0.5 * q"))
    clauses = [f"key {key}", f"value {value}"]
    if draw(st.booleans()):
        choices = OBJECTIVES[:4] if kind == "affine" else OBJECTIVES
        clauses.append(f"objective {_one_of(draw, choices)}")
    update, rule = _update(draw, name, kind)
    starts = ("init learned", "init zeros", *(["init 0.1"] if kind != "layered" else []))
    clauses += [*update, *_start(draw, chunk, *starts)]
    reads = [f"{name}(q)", f"rmsnorm({name}(q))", f"prev({name})(k)", f"{name}(k + q)"]
    reads += [f"loss({name}) * v", f"initial({name})(q)"]
    if any(c.startswith("state S") for c in clauses) and written == LINEAR:
        reads.append(f"{name}.S @ q")
    if written == LINEAR:
        reads.append(f"{name} @ q")
    return Memory(name, f"memory {name} : {written} at fast", tuple(clauses), tuple(reads), rule)


def _bare(draw: st.DrawFn, name: str, chunk: int) -> Memory:
    """Draw a memory that is a vector or a number."""
    vector = draw(st.booleans())
    update = _filled(draw, _one_of(draw, BARE), "v" if vector else "<k, q>")
    state = ["state S = 0"] if _uses(update, "S") else []
    clauses = [*state, f"update {{\n{update}\n}}"]
    clauses += _start(draw, chunk, "init learned", "init 0.2")
    reads = (name, f"prev({name})") if vector else (f"{name} * v", f"(1 + prev({name})) * v")
    written = "vector(d_v)" if vector else "scalar"
    return Memory(name, f"memory {name}[heads] : {written} at fast", tuple(clauses), reads)


@st.composite
def systems(draw: st.DrawFn) -> Drawn:
    """Well-formed systems."""
    few = st.integers(1, 3)
    sizes = {name: draw(few) for name in ("d", "heads", "d_k", "d_v")} | {"n": 2}
    chunk = draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    shapers = {"q": SHAPERS, "k": KEYS, "v": SHAPERS}
    shaped = {n: _one_of(draw, choices).format(f"W_{n}(x)") for n, choices in shapers.items()}
    streams = [
        "weights W_q, W_k, W_ak : linear(d -> heads*d_k)",
        "weights W_v, W_av : linear(d -> heads*d_v)",
        "weights W_a, W_b : linear(d -> heads, bias)",
        "weights W_o : linear(heads*d_v -> d)",
        *(f"{name} = {e}" for name, e in shaped.items()),
        "alpha, beta = sigmoid(W_a(x) + 1), sigmoid(W_b(x))",
        "a_k, a_v = sigmoid(W_ak(x) + 1), exp(-softplus(W_av(x)))",
    ]
    if draw(st.integers(0, 3)):
        first = _mapped(draw, "M", chunk, "v", False)
        # the second may lean on the first
        values = ("v", "v - prev(M)(k)", "M(k)", "(1 + loss(M)) * v", "tanh(initial(M)(k))")
    else:
        first = _bare(draw, "M", chunk)
        values = ("v",)
    memories = [first]
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["mapped", "mapped", "bare"]))
        if kind == "bare":
            memories.append(_bare(draw, "N", chunk))
        else:
            memories.append(_mapped(draw, "N", chunk, _one_of(draw, values), draw(st.booleans())))
    reads = []
    for memory in memories:
        reads += draw(st.lists(st.sampled_from(memory.reads), min_size=1, max_size=2, unique=True))
    out = f"out = W_o({' + '.join(reads)})"
    return Drawn(sizes, chunk, tuple(streams), tuple(memories), out)
