"""Simplified expressions: the text one would write, and the same values."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.shape import Axis, sizes
from nlc.passes.orthogonal import write_out
from nlc.passes.simplify import simplify

N, M, H = Axis("n", 4), Axis("m", 3), Axis("heads", 2)


class Made:
    def __init__(self) -> None:
        self.graph = Graph()

    def __call__(self, op: str, *args: Expr | float, **attrs: object) -> Expr:
        nodes = [a if isinstance(a, Expr) else self.graph.constant(a) for a in args]
        return self.graph.make(op, *nodes, **attrs)

    def stream(self, name: str, *shape: Axis) -> Expr:
        return self("stream", name=name, shape=shape)

    def simple(self, x: Expr) -> Expr:
        [found] = simplify(self.graph, [x])
        assert simplify(self.graph, [found]) == [found]
        return found


def test_constants_are_folded_and_merged():
    c = Made()
    x, y = c.stream("x", N), c.stream("y", N)
    assert c.simple(c("mul", 2.0, c("mul", 0.5, x))) is x
    assert c.simple(c("mul", c("mul", 2.0, x), c("mul", 0.5, y))) is c("mul", x, y)
    assert c.simple(c("add", x, x)) is c("mul", 2.0, x)
    assert c.simple(c("add", c("mul", 0.5, x), c("mul", 0.5, x))) is x
    assert c.simple(c("mul", x, c("sub", 3.0, 2.0))) is x
    assert c.simple(c("pow", x, 1.0)) is x
    assert c.simple(c("div", 1.0, 0.0)).op == "div"
    assert c.simple(c("log", -1.0)).op == "log"


def test_zeros_and_signs():
    c = Made()
    x, y = c.stream("x", N), c.stream("y", N)
    assert c.simple(c("add", x, 0.0)) is x
    assert c.simple(c("sub", 0.0, x)) is c("neg", x)
    assert c.simple(c("neg", c("neg", x))) is x
    assert c.simple(c("sub", x, c("neg", y))) is c("add", x, y)
    assert c.simple(c("add", x, c("mul", -2.0, y))) is c("sub", x, c("mul", 2.0, y))
    assert c.simple(c("mul", c("neg", x), c("neg", y))) is c("mul", x, y)
    assert c.simple(c("neg", c("sub", x, y))) is c("sub", y, x)
    # a smaller shape does not take the place of a larger one
    assert sizes(c.simple(c("mul", 0.0, x)).shape) == (4,)
    assert c.simple(c("add", c.stream("s", Axis("1", 1)), c("mul", 0.0, x))).op == "add"


def test_axes_are_gathered():
    c = Made()
    a, b = c.stream("a", H), c.stream("b", H)
    wide = c("mul", c("unsqueeze", a, axes=(-2, -1)), c("unsqueeze", b, axes=(-2, -1)))
    assert c.simple(wide) is c("unsqueeze", c("mul", a, b), axes=(-2, -1))
    one = c("sub", 1.0, c("unsqueeze", a, axes=(-1,)))
    assert c.simple(one) is c("unsqueeze", c("sub", 1.0, a), axes=(-1,))
    twice = c("unsqueeze", c("unsqueeze", a, axes=(-1,)), axes=(-1,))
    assert c.simple(twice) is c("unsqueeze", a, axes=(-2, -1))
    x = c.stream("x", H, N)
    there = c("reshape", x, last=2, axes=(Axis("hn", 8),))
    assert c.simple(c("reshape", there, last=1, axes=(H, N))) is x


def test_products_with_simple_matrices_cost_no_matrix_product():
    c = Made()
    S, k, w = c.stream("S", M, N), c.stream("k", N), c.stream("w", N)
    eye = c("identity", axis=N)
    assert c.simple(c("matmul", S, c("diag", w))) is c("mul", S, c("unsqueeze", w, axes=(-2,)))
    erase = c("matmul", S, c("sub", eye, c("outer", k, w)))
    assert c.simple(erase) is c("sub", S, c("outer", c("matvec", S, k), w))
    assert c.simple(c("matvec", c("diag", w), k)) is c("mul", w, k)
    v = c.stream("v", M)
    left = c.simple(c("matmul", c("outer", v, v), S))
    assert not any(node.op == "matmul" for node in postorder([left]))


def test_one_matrix_of_two_vectors_is_one_product():
    c = Made()
    S, a, b = c.stream("S", M, N), c.stream("a", N), c.stream("b", N)
    x, y = c.stream("x", M), c.stream("y", M)
    of_a, of_b = c("matvec", S, a), c("matvec", S, b)
    one = c("matvec", S, c("sub", a, b))
    assert c.simple(c("sub", of_a, of_b)) is one
    assert c.simple(c("sub", c("add", x, of_a), c("add", of_b, y))) is c("add", c("sub", x, y), one)
    assert c.simple(c("sub", c("sub", x, of_b), c("sub", y, of_a))) is c("add", c("sub", x, y), one)
    assert c.simple(c("sub", of_a, c("add", of_b, y))) is c("sub", one, y)
    other = c("matvec", c.stream("L", M, N), b)
    assert c.simple(c("sub", of_a, other)) is c("sub", of_a, other)


def test_norms_squared_are_dots():
    c = Made()
    x = c.stream("x", N)
    assert c.simple(c("pow", c("norm", x, axes=(-1,)), 2.0)) is c("dot", x, x)
    assert c.simple(c("sum", c("mul", x, x), axes=(-1,), keep=False)) is c("dot", x, x)


def test_the_root_of_a_square_is_its_size():
    c = Made()
    x, y = c.stream("x", N), c.stream("y", N)
    for square in (c("mul", x, x), c("pow", x, 2.0)):
        assert c.simple(c("sqrt", square)) is c("abs", x)
    for other in (c("mul", x, y), c("pow", x, 3.0), c("add", c("mul", x, x), 0.1)):
        assert c.simple(c("sqrt", other)).op == "sqrt"


def test_let_and_stop_are_walls():
    c = Made()
    x = c.stream("x", N)
    named = c("let", c("mul", 0.5, x), name="y", part="")
    assert c.simple(c("mul", 2.0, named)) is c("mul", 2.0, named)
    assert c.simple(c("stop", c("stop", x))) is c("stop", x)


def test_a_gate_of_zero_stays_exact(evaluate):
    c = Made()
    g, S = c.stream("g", H), c.stream("S", H, M, N)
    found = c.simple(c("mul", c("unsqueeze", g, axes=(-2, -1)), c("mul", 3.0, S)))
    values = {
        ("stream", "g"): torch.zeros(2).double(),
        ("stream", "S"): torch.randn(2, 3, 4).double(),
    }
    assert not evaluate([found], values)[0].any()


def test_newton_schulz_is_written_out_as_it_is_defined(evaluate):
    for shape in ((M, N), (N, M)):
        c = Made()
        x = c.stream("x", H, *shape)
        node = c("newton_schulz", x, steps=2, coefficients=(3.0, -4.0, 2.0), eps=1e-7)
        value = {("stream", "x"): torch.randn([a.size for a in x.shape], dtype=torch.float64)}
        want, got = evaluate([node, *write_out(c.graph, [node])], value)
        torch.testing.assert_close(got, want)


@st.composite
def expressions(draw: st.DrawFn) -> tuple[Made, list[Expr]]:
    """Random expressions of shape [heads, m, n], [heads, n] and the like."""
    c = Made()
    numbers = st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, -3.0])
    pool: dict[int, list[Expr]] = {
        1: [c.stream("a", H), c.stream("b", H)],
        2: [c.stream("k", H, N), c.stream("q", H, N)],
        3: [c.stream("S", H, N, N), c.stream("R", H, N, N)],
    }

    def pick(rank: int) -> Expr:
        return draw(st.sampled_from(pool[rank]))

    for _ in range(draw(st.integers(1, 14))):
        rank = draw(st.integers(1, 3))
        x, y = pick(rank), pick(rank)
        kinds = ["add", "sub", "mul", "scale", "neg", "where", "number", "tanh"]
        kinds += {1: ["dot", "sum"], 2: ["matvec", "wide", "spread"]}.get(
            rank, ["matmul", "outer", "transpose", "wide", "diag", "reflect"]
        )
        match draw(st.sampled_from(kinds)):
            case "add" | "sub" | "mul" as op:
                made = c(op, x, y)
            case "scale":
                made = c("mul", x, draw(numbers))
            case "number":
                made = c(draw(st.sampled_from(["add", "sub"])), draw(numbers), x)
            case "neg" | "tanh" as op:
                made = c(op, x)
            case "where":
                made = c("where", c("gt", x, 0.0), x, y)
            case "dot":
                made = c("dot", pick(2), pick(2))
            case "sum":
                made = c("sum", pick(2), axes=(-1,), keep=False)
            case "matvec":
                made = c("matvec", pick(3), x)
            case "spread":
                made = c("add", c("unsqueeze", pick(1), axes=(-1,)), x)
            case "wide":
                axes = tuple(range(1 - rank, 0))
                made = c("mul", c("unsqueeze", pick(1), axes=axes), x)
            case "matmul":
                made = c("matmul", x, y)
            case "outer":
                made = c("outer", pick(2), pick(2))
            case "transpose":
                made = c("transpose", x)
            case "diag":
                made = c("matmul", *draw(st.permutations([x, c("diag", pick(2))])))
            case _:
                scale = c("unsqueeze", pick(1), axes=(-2, -1))
                inner = c(
                    "sub", c("mul", scale, c("identity", axis=N)), c("outer", pick(2), pick(2))
                )
                made = c("matmul", *draw(st.permutations([x, inner])))
        pool[rank].append(made)
    return c, [items[-1] for items in pool.values()]


@settings(max_examples=150, deadline=None)
@given(expressions())
def test_random_expressions_keep_their_values_and_shapes(evaluate, made):
    c, roots = made
    found = simplify(c.graph, roots)
    torch.manual_seed(0)
    leaves = {
        node_key: torch.randn([a.size for a in shape], dtype=torch.float64)
        for node_key, shape in {
            ("stream", "a"): (H,), ("stream", "b"): (H,), ("stream", "k"): (H, N),
            ("stream", "q"): (H, N), ("stream", "S"): (H, N, N), ("stream", "R"): (H, N, N),
        }.items()
    }  # fmt: skip
    for a, b in zip(evaluate(roots, leaves), evaluate(found, leaves), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * (1 + float(a.abs().max())))
    assert simplify(c.graph, found) == found
