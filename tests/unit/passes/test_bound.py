"""Ranges hold every value: each operation, composed ones, and the gates of real systems."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import nlc
from nlc.ir.expr import Expr, Graph
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import Axis
from nlc.ir.system import Block, Equation
from nlc.passes.bound import Bounds, bounds, log_gate
from nlc.passes.corners import range_of
from nlc.passes.interval import ANYTHING, FINITE, Interval, between, point, upto
from nlc.passes.interval_rows import ROWS
from nlc.passes.polynomial import Algebra

Evaluate = Callable[..., list[Tensor]]
N = Axis("n", 4)


def test_every_operation_has_a_row() -> None:
    assert set(ROWS) == set(OPERATIONS)


# ---- intervals ---------------------------------------------------------------------------------


def test_an_open_end_stays_open_where_it_is_not_reached() -> None:
    unit = between(0.0, 1.0)
    assert repr(point(1.0) - unit) == "(0, 1)"
    assert repr(unit * unit) == "(0, 1)"
    assert repr(unit * between(0.0, 1.0, is_open=False)) == "[0, 1)"
    assert repr(unit * between(-1.0, 1.0, is_open=False)) == "(-1, 1)"
    assert repr(unit * FINITE) == "(-inf, inf)"
    assert repr(unit.power(point(1 / 16))) == "(0, 1)"
    assert repr(unit.reciprocal()) == "(1, inf)"
    assert repr(unit.log()) == "(-inf, 0)"
    assert unit.hull(point(1.0)) == Interval(0.0, 1.0, True, False)
    assert between(-2.0, 1.0).magnitude() == upto(2.0, True)


def test_what_has_no_value_can_be_anything() -> None:
    assert point(0.0) / between(-1.0, 1.0) == ANYTHING
    assert FINITE.log() == ANYTHING
    assert FINITE.power(point(0.5)) == ANYTHING
    assert (Interval(-inf, -inf) + point(inf)) == ANYTHING
    # an infinite value is told from one without a bound
    assert not between(0.0, 1.0, is_open=False).log().low_open
    assert repr(between(0.0, 1.0, is_open=False).log().exp()) == "[0, 1]"


ENDS = st.sampled_from([-inf, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, inf])


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    low, high = sorted((draw(ENDS), draw(ENDS)))
    if math.isinf(low) and low == high:
        low, high = -1.0, 1.0
    opens = draw(st.tuples(st.booleans(), st.booleans())) if low < high else (False, False)
    return Interval(low, high, opens[0] or low == -inf, opens[1] or high == inf)


@st.composite
def inside(draw: st.DrawFn, held: Interval) -> float:
    """A number of the interval that binary fractions hold exactly, so that no end is rounded to."""
    low, high = max(held.low, -64.0), min(held.high, 64.0)
    found = draw(st.integers(int(low * 8), int(high * 8))) / 8
    if found in held:
        return found
    return low + 1 / 16 if found == low else high - 1 / 16


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_arithmetic_holds_every_result_and_reaches_no_open_end(data: st.DataObject) -> None:
    a, b = data.draw(intervals()), data.draw(intervals())
    x, y = data.draw(inside(a)), data.draw(inside(b))
    pairs = [(a + b, x + y), (a - b, x - y), (a * b, x * y), (a.magnitude(), abs(x)), (-a, -x)]
    pairs += [(a.hull(b), x), (a.hull(b), y), (a.power(point(2.0)), x * x)]
    pairs += [(a.power(point(3.0)), x**3)]
    exact = len(pairs)
    if y:
        pairs += [(a / b, x / y), (b.power(point(-2.0)), y**-2.0)]
    if x > 0:
        pairs += [(a.log(), math.log(x)), (a.power(b), x ** min(max(y, -9.0), 9.0))]
    if x in b:
        pairs += [(a.meet(b), x)]
    for held, value in pairs:
        slack = 1e-9 * abs(value)
        assert value in held or held.low - slack <= value <= held.high + slack, (a, b, held)
    for held, value in pairs[:exact]:
        assert value in held, (a, b, x, y, held)


# ---- expressions -------------------------------------------------------------------------------

UNARY = [
    *("neg", "exp", "log", "sqrt", "abs", "sign", "sin", "cos", "tanh", "sigmoid", "silu", "gelu"),
    *("relu", "softplus", "erf", "stop", "gelu_slope", "silu_slope"),
]
BINARY = ["add", "sub", "mul", "div", "pow", "maximum", "minimum", "lt", "ge", "eq", "dot", "outer"]
REDUCING = ["sum", "mean", "max", "min", "logsumexp", "norm"]
KEEPING = ["softmax", "unit", "rmsnorm", "layernorm"]


@st.composite
def expressions(draw: st.DrawFn, graph: Graph, depth: int) -> Expr:
    """A vector of four entries, made of streams x and y."""
    kind = draw(st.sampled_from(["leaf", "unary", "binary", "reduce", "keep", "layout"]))
    if depth == 0 or kind == "leaf":
        return draw(
            st.sampled_from([graph.make("stream", name=name, shape=(N,)) for name in "xy"])
            | st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0]).map(graph.constant)
            | st.just(graph.make("index", axis=N))
        )
    a = draw(expressions(graph, depth - 1))
    match kind:
        case "unary":
            return graph.make(draw(st.sampled_from(UNARY)), a)
        case "binary":
            b = draw(expressions(graph, depth - 1))
            op = draw(st.sampled_from(BINARY))
            if op in ("dot", "outer"):
                a, b = _wide(graph, a), _wide(graph, b)
            made = graph.make(op, a, b)
            return graph.make("sum", made, axes=(-2,)) if op == "outer" else made
        case "reduce":
            a = _wide(graph, a)
            return graph.make(draw(st.sampled_from(REDUCING)), a, axes=(-1,), keep=True)
        case "keep":
            op = draw(st.sampled_from(KEEPING))
            return graph.make(op, _wide(graph, a), axes=(-1,), eps=1e-6)
        case _:
            return _laid_out(draw, graph, _wide(graph, a))


def _laid_out(draw: st.DrawFn, graph: Graph, a: Expr) -> Expr:
    match draw(st.sampled_from(["slice", "diag", "concat", "reshape", "rotate"])):
        case "slice":
            part = graph.make("slice", a, start=1, stop=3)
            return graph.make("concat", part, part)
        case "diag":
            return graph.make("matvec", graph.make("diag", a), a)
        case "concat":
            half = graph.make("slice", a, start=0, stop=2)
            return graph.make("concat", half, graph.make("slice", a, start=2, stop=4))
        case "reshape":
            halves = graph.make("reshape", a, last=1, axes=(Axis("i", 2), Axis("j", 2)))
            turned = graph.make("transpose", halves)
            return graph.make("reshape", turned, last=2, axes=(N,))
    return graph.make("rotate", a, graph.make("slice", a, start=0, stop=2))


def _wide(graph: Graph, a: Expr) -> Expr:
    if a.shape and a.shape[-1].size == N.size:
        return a
    zeros = graph.make("mul", graph.constant(0.0), graph.make("index", axis=N))
    return graph.make("add", zeros, a)


def _block(graph: Graph, *equations: tuple[str, Expr]) -> Block:
    steps = tuple(Equation(name, value, "") for name, value in equations)
    return Block("b", (), (), (), (), steps, (), False)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_ranges_hold_the_values_of_random_expressions(
    evaluate: Evaluate, data: st.DataObject
) -> None:
    graph = Graph()
    root = data.draw(expressions(graph, 4))
    values = st.lists(
        st.sampled_from([0.0, 1.0, -1.0, 30.0, -30.0, 1e-3]) | st.floats(-3, 3),
        min_size=4, max_size=4,
    ).map(lambda v: torch.tensor(v, dtype=torch.float64))  # fmt: skip
    leaves = {("stream", name): data.draw(values) for name in "xy"}
    found = Bounds(_block(graph)).range(root)
    (value,) = evaluate([root], leaves)
    if value.isnan().any() or (value.isinf().any() and found.entry.is_bounded):
        return
    slack = 1e-6 * (1 + value[value.isfinite()].abs().max()) if value.isfinite().any() else 0.0
    assert value.min() >= found.entry.low - slack, (root, leaves, found)
    assert value.max() <= found.entry.high + slack, (root, leaves, found)
    norm = value.norm(dim=-1) if value.ndim else value.abs()
    assert norm.max() <= found.norm.high + slack, (root, leaves, found)
    assert norm.min() >= found.norm.low - slack, (root, leaves, found)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_polynomials_hold_the_values_of_random_expressions(
    evaluate: Evaluate, data: st.DataObject
) -> None:
    graph = Graph()
    root = _wide(graph, data.draw(expressions(graph, 4)))
    values = st.lists(
        st.sampled_from([0.0, 1.0, -1.0, 30.0]) | st.floats(-3, 3), min_size=4, max_size=4
    ).map(lambda v: torch.tensor(v, dtype=torch.float64))
    leaves = {("stream", name): data.draw(values) for name in "xy"}
    (value,) = evaluate([root], leaves)
    if not value.isfinite().all() or value.abs().max() > 1e6:
        return
    algebra = Algebra(Bounds(_block(graph)), N.size)
    entry = algebra.entry(root)
    square = algebra.summed(algebra.times(entry, entry), N.size)
    for poly, found in ((entry, value), (square, (value * value).sum())):
        held, slack = range_of(algebra, poly), 1e-6 * (1 + found.abs().max())
        assert found.min() >= held.low - slack, (root, leaves, held)
        assert found.max() <= held.high + slack, (root, leaves, held)


EXTREME = [1e200, -1e308, math.inf, math.nan, 1e-320, -0.0]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_extreme_numbers_end_in_no_traceback(data: st.DataObject) -> None:
    graph = Graph()
    root = data.draw(expressions(graph, 2))
    for number in data.draw(st.lists(st.sampled_from(EXTREME), max_size=3)):
        op = data.draw(st.sampled_from(["add", "mul", "div", "pow", "maximum"]))
        root = graph.make(op, root, graph.constant(number))
        root = graph.make(data.draw(st.sampled_from(UNARY)), root)
    bounds_of = Bounds(_block(graph))
    bounds_of.range(root), bounds_of.log(root)
    algebra = Algebra(bounds_of, N.size)
    entry = algebra.entry(_wide(graph, root))
    range_of(algebra, entry), range_of(algebra, algebra.summed(entry, N.size))


def test_a_chain_of_squares_stays_small() -> None:
    g = Graph()
    first = g.make("sigmoid", g.make("stream", name="x", shape=()))
    names, value = [], first
    for number in range(80):
        names.append((f"s{number}", value))
        stream = g.make("stream", name=f"s{number}", shape=())
        value = g.make("add", g.make("mul", stream, stream), stream)
    algebra = Algebra(Bounds(_block(g, *names)), N.size)
    assert range_of(algebra, algebra.number(value)).low >= 0


def test_streams_are_followed_through_their_equations() -> None:
    g = Graph()
    x, k, beta = (g.make("stream", name=n, shape=(N,)) for n in ("x", "k", "beta"))
    block = _block(
        g,
        ("k", g.make("unit", g.make("silu", x), axes=(-1,), eps=1e-12)),
        ("beta", g.make("mul", g.constant(2.0), g.make("sigmoid", x))),
    )
    assert repr(bounds(block, x)) == "(-inf, inf)"
    assert repr(bounds(block, g.make("mul", beta, k))) == "(-2, 2)"
    known = Bounds(block).range(g.make("mul", beta, k))
    assert known.norm == upto(2.0, True)
    assert repr(bounds(block, g.make("dot", k, k))) == "[0, 1]"


@pytest.mark.parametrize(
    ("spec", "gate", "entry", "logarithm"),
    [
        ("rwkv7", "w", "(0.5452, 1)", "(-0.6065, 0)"),
        ("gla", "alpha", "(0, 1)", "(-inf, 0)"),
        ("gated_deltanet", "a", "(0, 1)", "(-inf, 0)"),
        ("retnet", "gamma", "[0.9688, 0.9961]", "[-0.03175, -0.003914]"),
    ],
)
def test_the_gates_of_real_systems(spec: str, gate: str, entry: str, logarithm: str) -> None:
    system = nlc.load(f"specs/{spec}.nl")
    block = next(
        b for b in system.blocks if any(isinstance(s, Equation) and s.name == gate for s in b.steps)
    )
    value = next(s.value for s in block.steps if isinstance(s, Equation) and s.name == gate)
    assert repr(bounds(block, value)) == entry
    assert repr(log_gate(block, value)) == logarithm
    # named or not, the same
    stream = system.graph_of.make("stream", name=gate, shape=value.shape)
    assert log_gate(block, stream) == log_gate(block, value)


def test_products_and_powers_of_exponentials_keep_their_exponents() -> None:
    g = Graph()
    x = g.make("stream", name="x", shape=())
    e = g.make("exp", g.make("neg", g.make("sigmoid", x)))
    both = g.make("mul", e, g.make("pow", e, g.constant(2.0)))
    assert repr(log_gate(_block(g), both)) == "(-3, 0)"
    half = g.make("div", e, g.constant(2.0))
    assert log_gate(_block(g), half).high == pytest.approx(-math.log(2))
    assert log_gate(_block(g), g.make("neg", e)) == ANYTHING
