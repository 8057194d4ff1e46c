"""Random rules as optimizers equal the interpreter: sums, products and copies in any order."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.codegen.optimizers import agree

SHAPES = {"a": (3, 4), "b": (3, 4), "d": (4,), "e": (), "f": (2, 3, 4)}
WHOLE = ("self", "grad", "m", "k", "x", "y")
# one number for each parameter: an argument, a count, a state, a constant, a size
SINGLE = ("lr", "b", "n", "s", "0.3", "2", "in / (in + out)")


def leaf() -> st.SearchStrategy[str]:
    return st.sampled_from(WHOLE + SINGLE)


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Bigger expressions; every operation keeps what it is given within bounds."""
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda p: f"({p[0]} + {p[1]})"),
        pair.map(lambda p: f"({p[0]} - {p[1]})"),
        pair.map(lambda p: f"{p[0]} * {p[1]}"),
        pair.map(lambda p: f"({p[0]}) / (1 + abs({p[1]}))"),
        pair.map(lambda p: f"max({p[0]}, {p[1]})"),
        pair.map(lambda p: f"lerp({p[0]}, {p[1]}, 0.4)"),
        inner.map(lambda e: f"-({e})"),
        inner.map(lambda e: f"({e})^2"),
        inner.map(lambda e: f"tanh({e})"),
        inner.map(lambda e: f"silu({e})"),
        inner.map(lambda e: f"sqrt(1 + ({e})^2)"),
        inner.map(lambda e: f"norm(grad, over = (in, out)) * ({e})"),
        inner.map(lambda e: f"mean(self + {e}, over = in)"),
    )


EXPRESSIONS = st.recursive(leaf(), grown, max_leaves=7)


def assignment(target: str, e: str) -> str:
    """An equation that cannot run away."""
    match target:
        case "self":
            return f"self = self - 0.1 * tanh({e})"
        case "s":
            return f"s = tanh(0.5 * s + sum(0.01 * self + 0.01 * tanh({e}), over = (in, out)))"
        case "n":
            return "n = n + 1"
        case "x = m":
            return "x = m"
        case "m, k":
            return f"m, k = k, tanh({e}) - m"
    return f"{target} = tanh({e}) + 0 * self"


TARGETS = st.sampled_from(("self", "m", "k", "x", "y", "s", "n", "x = m", "m, k"))
EQUATIONS = st.builds(assignment, TARGETS, EXPRESSIONS)


def block(head: str, lines: list[str]) -> str:
    return head + " {\n" + "\n".join(lines) + "\n}"


HEADS = st.sampled_from(
    ("every 2 steps", "every f steps", "when n > 1", "when norm(grad, over = (in, out)) > 1",
     "repeat 2")
)  # fmt: skip
STATEMENTS = st.one_of(
    EQUATIONS, st.builds(block, HEADS, st.lists(EQUATIONS, min_size=1, max_size=3))
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STATEMENTS, min_size=1, max_size=6))
def test_random_rules(lines: list[str]) -> None:
    body = "\n".join(lines)
    text = f"""
rule r(lr, b = 0.7, f = 3) {{
  state m = 0.1
  state k = self
  state s[] = 0
  state n[] = 0
  x = grad
  y = self - grad
{body}
}}"""
    agree(text, "r", SHAPES, steps=4, tolerance=1e-9, lr=0.1)
