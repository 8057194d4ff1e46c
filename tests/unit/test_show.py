"""Expressions written for people."""

from __future__ import annotations

from nlc.ir.expr import Expr, Graph
from nlc.ir.shape import Axis
from nlc.ir.show import show_expr

K = (Axis("d_k", 4),)


def test_operators_bind_as_in_the_language() -> None:
    g = Graph()
    a, b, c = (g.make("stream", name=name, shape=K) for name in "abc")

    def check(expr: Expr, text: str) -> None:
        assert show_expr(expr) == text

    check(g.make("sub", a, g.make("sub", b, c)), "a - (b - c)")
    check(g.make("sub", g.make("sub", a, b), c), "a - b - c")
    check(g.make("mul", g.make("add", a, b), c), "(a + b) * c")
    check(g.make("neg", g.make("mul", a, b)), "-(a * b)")
    check(g.make("pow", g.make("neg", a), g.constant(2)), "(-a)^2")
    check(g.make("mul", g.constant(0.5), g.make("dot", a, b)), "0.5 * <a, b>")
    check(g.make("sigmoid", g.make("unsqueeze", a, axes=(-1,))), "sigmoid(a)")


def test_time_is_written_as_in_a_spec() -> None:
    g = Graph()
    k = g.make("stream", name="k", shape=K)
    assert show_expr(g.make("shift", k, n=1, slot="shift_1")) == "shift(k)"
    assert show_expr(g.make("shift", k, n=3, slot="shift_1")) == "shift(k, 3)"
    assert show_expr(g.make("position")) == "position"


def test_states_say_when() -> None:
    g = Graph()
    state = {"memory": "M", "var": "S", "part": "weight", "shape": K}
    assert show_expr(g.make("state", when="prev", **state)) == "prev(M.S)"
    assert show_expr(g.make("state", when="post", **state)) == "M.S"


def test_long_expressions_are_cut() -> None:
    g = Graph()
    expr = g.make("stream", name="a", shape=K)
    for _ in range(5000):
        expr = g.make("sigmoid", expr)
    assert "..." in show_expr(expr) and len(show_expr(expr)) < 200
