"""Random small systems with windows, as texts of whole specs, from a number.

Two memories or three at levels of 1, N and 2N or 3N tokens, with random maps, objectives, updates
over windows, times, slots, resets and copies, that read one another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LINEAR = "linear(d_k -> d_v)"
MAPS = (
    *[LINEAR] * 3,
    "linear(d_k -> d_v, bias)",
    "mlp(d_k -> n -> d_v)",
    "mlp(d_k -> n -> n -> d_v, act = tanh, bias)",
    "glu(d_k -> n -> d_v)",
    "lora(d_k -> n -> d_v, act = tanh)",
)
KEYS = ("k", "0.5 * k + 0.5 * q", "unit(k)", "shift(k)", "unit(k2)")
OBJECTIVES = (
    "1/2 * ||self(key) - value||^2",
    "beta * 1/2 * ||self(key) - value||^2",
    "-<self(key), value>",
    "huber(self(key) - value, 0.7)",
    "recent(1/2 * ||self(key) - value||^2, 2)",
    "1/2 * ||tanh(self(key)) - value||^2",
)
GRADIENTS = ("grad", "grad", "tanh(grad)")
SELECTIONS = (
    "",
    "select top_k(1)",
    "select top_k(2)",
    "select top_p(0.3)",
    "select threshold(0.4)",
)
OF_TOKENS = ("sum(beta * grad, over = tokens)", "mean(grad, over = tokens)", "last(grad)")
FRAME = """system drawn
dims {{ d = 5, heads = 2, d_k = 3, d_v = 4, n = 2, s = 6 }}
level fast every 1 token{chunk}
{levels}
level slow every 1 step
block mixer(x[d]) -> out[d] {{
weights W_q, W_k : linear(d -> heads*d_k)
weights W_v : linear(d -> heads*d_v)
weights W_a, W_b : linear(d -> heads, bias)
weights W_s : linear(d -> s)
weights W_hs : linear(d -> heads*s)
weights W_k2 : linear(heads*d_v -> heads*d_k)
weights conv_k : conv(heads*d_k, width = 3)
weights W_o : linear(heads*d_v -> d)
q, k, v = tanh(W_q(x)), unit(W_k(x)), tanh(W_v(x))
k2 = {k2}
alpha, beta = sigmoid(W_a(x) + 1), sigmoid(W_b(x))
{memories}
out = W_o({reads})
}}
"""
# a key that hangs on what memories hold
SECOND_KEYS = (
    "k",
    "tanh(W_k2(flat(M(k))))",
    "tanh(W_k2(flat(prev(N)(q))))",
    "shift(k) + conv_k(k)",
)


@dataclass(frozen=True)
class Made:
    """A memory that later ones may read."""

    name: str
    map: str
    has_state: bool
    slots: bool

    @property
    def loss(self) -> str:
        """Its objective as a number per head."""
        return f"sum(loss({self.name}), over = s)" if self.slots else f"loss({self.name})"


class Writer:
    """Writes one system; the same for the same number."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        rates = self.one((2, 4), (3, 6), (2,), (3,), (4,), (2, 6))
        self.periods = {"fast": 1} | {f"b{i}": rate for i, rate in enumerate(rates)}
        even = all(rate % 2 == 0 for rate in rates)
        self.chunk = self.one("", ", chunk 2") if even else ""
        self.made: list[Made] = []
        self.reads: list[str] = []

    def one(self, *choices):  # type: ignore[no-untyped-def]
        return self.random.choice(choices)

    def text(self) -> str:
        names = ("M", "N", "P")[: self.one(2, 2, 3)]
        memories = "\n".join(self.memory(name) for name in names)
        levels = "\n".join(
            f"level {name} every {n} tokens" for name, n in self.periods.items() if n > 1
        )
        return FRAME.format(
            chunk=self.chunk, levels=levels, k2=self.one(*SECOND_KEYS), memories=memories,
            reads=" + ".join(self.reads),
        )  # fmt: skip

    def over(self, stream: str) -> str:
        """A stream as the update may use it."""
        if self.period == 1:
            return stream
        return self.one(f"mean({stream}, over = tokens)", f"last({stream})")

    def gate(self) -> str:
        return str(self.one("0.9", self.over("alpha")))

    def gradient(self) -> str:
        return str(self.one(*GRADIENTS, *(OF_TOKENS if self.period > 1 else ("beta * grad",))))

    def memory(self, name: str) -> str:
        slow = [level for level in self.periods if level != "fast"]
        level = self.one(*slow, *(["fast"] if self.made else []))
        self.period, form = self.periods[level], self.one(*MAPS)
        others = [made.name for made in self.made]
        values = ["v", "tanh(v)", *(f"v - prev({o})(k)" for o in others)]
        values += [f"{o}(k)" for o in others] + [f"(1 + tanh({m.loss})) * v" for m in self.made]
        clauses = [f"key {self.one(*KEYS)}", f"value {self.one(*values)}"]
        if self.one(True, False):
            leaning = [f"1/2 * ||self(key) - {o}(q)||^2" for o in others]
            clauses.append(f"objective {self.one(*OBJECTIVES, *leaning)}")
        slots = self.one(True, False, False)
        if slots:
            clauses += ["slots s", f"route {self.one('W_s(x)', 'W_hs(x)', '2 * W_hs(x)')}"]
            clauses.append(self.one(*SELECTIONS))
        lines = [self.line(form, slots) for _ in range(self.one(1, 2, 3))]
        has_state = any("S = " in line for line in lines)
        clauses += [f"state S = {self.one('0', 'self')}"] if has_state else []
        clauses.append("update {\n" + "\n".join(lines) + "\n}")
        like = [made for made in self.made if made.map == form and not made.slots]
        copies = [f"init from {made.name}" for made in like]
        clauses.append(self.one("", "init learned", "init zeros", *copies, *copies))
        if self.one(True, False, False):
            whole = self.period * (2 if self.chunk and level == "fast" else 1)
            clauses.append(f"reset every {whole * self.one(1, 2, 3)} tokens")
        clauses.append(self.one("", "", "", "through first_order", "through stop"))
        self.read(Made(name, form, has_state, slots))
        body = "\n".join(clause for clause in clauses if clause)
        return f"memory {name}[heads] : {form} at {level} {{\n{body}\n}}"

    def read(self, made: Made) -> None:
        """Note how the block may read a memory."""
        name = made.name
        reads = [f"{name}(q)", f"prev({name})(k)", f"{made.loss} * v", f"initial({name})(q)"]
        if made.map == LINEAR and not made.slots:
            reads += [f"{name} @ q", *([f"{name}.S @ q"] if made.has_state else [])]
        self.reads += self.random.sample(reads, self.one(1, 2))
        self.made.append(made)

    def line(self, form: str, slots: bool) -> str:
        """One equation of an update, or a block of some."""
        step = f"self = self - {self.one('0.1', self.over('beta'))} * {self.gradient()}"
        often, rate = self.period * self.one(1, 2, 3), self.gate()
        choices = [
            f"self = {rate} * self",
            step,
            f"self = {rate} * self - 0.1 * {self.gradient()}",
            f"S = {rate} * S - 0.1 * {self.gradient()}\nself = self + S",
            "S = tanh(S + grad^2)\nself = self - 0.1 * grad / sqrt(S^2 + 1)",
            "self = self - 0.1 * grad(at = self)",
            "repeat 2 {\nself = self - 0.1 * grad(at = self)\n}",
            f"every {often} tokens {{\nself = 0.5 * self\nS = tanh(self)\n"
            f"every {2 * often} tokens {{\nself = self - 0.1 * S\n}}\n}}",
            f"every {self.one(2, 3)} steps {{\nself = self - 0.1 * grad\nS = tanh(grad) + S\n}}",
            f"when {self.over('beta')} > 0.5 {{\n{step}\n}}",
        ]
        if form == LINEAR:
            choices += ["self = tanh(self)", "self = self / max(norm(self, over = (in, out)), 1)"]
            choices.append("self = 0.5 * self + 0.3 * newton_schulz(self - 0.2 * grad, steps = 2)")
            summed = "sum(outer(v, k), over = tokens)" if self.period > 1 else "outer(v, k)"
            choices.append(f"self = self + 0.1 * {summed}")
            alike = [
                made for made in self.made if made.map == form and not made.slots and not slots
            ]
            choices += [f"self = self + 0.1 * {self.one('', 'prev')}({m.name})" for m in alike]
            choices += [f"self = self + 0.1 * {m.name}.S" for m in alike if m.has_state]
        return str(self.one(*choices))
