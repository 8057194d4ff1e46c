"""Gradients as expressions against torch.autograd, for every operation and kind of objective."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nlc.diagnostics import SpecError
from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import Initial, Map, Part
from nlc.passes.differentiate import differentiate
from nlc.passes.gradients import GRADIENTS
from nlc.passes.lower import lower

N, M, H, R = Axis("n", 4), Axis("m", 3), Axis("heads", 2), Axis("r", 5)
ONE_PART = ("weight",)


def test_every_operation_has_a_row():
    assert set(GRADIENTS) == set(OPERATIONS)


class Case:
    """An objective over one variable `weight` of the given shape, and streams k, v, w, B."""

    def __init__(self, shape: Shape = (H, M, N), lead: int = 1):
        self.graph, self.shape, self.lead = Graph(), shape, lead
        self.W = self.graph.make("variable", memory="A", part="weight", shape=shape)
        self.streams: dict[str, Shape] = {}

    def __call__(self, op: str, *args: Expr | float, **attrs: object) -> Expr:
        nodes = [a if isinstance(a, Expr) else self.graph.constant(a) for a in args]
        return self.graph.make(op, *nodes, **attrs)

    def stream(self, name: str, *shape: Axis) -> Expr:
        self.streams[name] = shape
        return self.graph.make("stream", name=name, shape=shape)

    def total(self, x: Expr) -> Expr:
        """Weigh all entries but the leading axes, and sum."""
        axes = tuple(range(-len(x.shape) + self.lead, 0))
        # sin of the value: no gradient is constant by accident
        return self("sum", self("sin", x), axes=axes, keep=False) if axes else self("sin", x)

    def check(self, objective: Expr, evaluate, positive: bool = False, seed: int = 0) -> Expr:
        state = self("state", memory="A", var="", part="weight", when="prev", shape=self.shape)
        node = self("grad", objective, state, memory="A", part="weight", parts=ONE_PART)
        [found] = differentiate(self.graph, lower(self.graph, [node]))
        [plain] = lower(self.graph, [objective])
        assert not any(n.op in ("grad", "variable") for n in postorder([found]))
        assert [a.size for a in found.shape] == [a.size for a in self.shape]
        make = torch.Generator().manual_seed(seed)

        def draw(shape: Shape) -> torch.Tensor:
            x = torch.randn([a.size for a in shape], generator=make, dtype=torch.float64)
            return x.abs() + 0.1 if positive else x

        W = draw(self.shape).requires_grad_()
        leaves = {("stream", name): draw(shape) for name, shape in self.streams.items()}
        leaves[("stream", "token")] = torch.randint(0, 3, (2,), generator=make)
        leaves["variable", "weight"] = leaves["state", "", "weight", "prev"] = W
        [value] = evaluate([plain], leaves)
        (want,) = torch.autograd.grad(value.sum(), W)
        [got] = evaluate([found], leaves)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
        return found


UNARY = [
    "neg",
    "exp",
    "log",
    "sqrt",
    "abs",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
    "gelu_slope",
    "silu_slope",
    "relu",
    "softplus",
    "erf",
]


@pytest.mark.parametrize("op", UNARY)
def test_elementwise(op, evaluate):
    c = Case()
    c.check(c.total(c(op, c.W)), evaluate, positive=op in ("log", "sqrt"))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "pow", "maximum", "minimum"])
def test_elementwise_of_two(op, side, evaluate):
    for shape in ((H, M, N), (H, Axis("1", 1), N), (N,), ()):
        c = Case()
        args = (c.W, c.stream("v", *shape))
        c.check(c.total(c(op, *args[:: 1 - 2 * side])), evaluate, positive=True)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "maximum"])
def test_broadcasting_is_undone(op, evaluate):
    c = Case((H, N))
    wide = c("unsqueeze", c.W, axes=(-2,))
    c.check(c.total(c(op, wide, c.stream("v", H, M, N))), evaluate, positive=True)
    # a gradient that is the number 1 counts the entries it came from
    c = Case((H, N))
    wide = c("unsqueeze", c.W, axes=(-2,))
    sums = c("sum", c("add", wide, c.stream("v", H, M, N)), axes=(-2, -1), keep=False)
    c.check(sums, evaluate)


def test_where_and_comparisons(evaluate):
    c = Case()
    c.check(c.total(c("where", c("lt", c.W, 0.2), c("exp", c.W), c.W)), evaluate)
    c = Case()
    c.check(c.total(c("mul", c("gt", c.W, 0.0), c.W)), evaluate)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [(-1,), (-2,), (-2, -1)])
@pytest.mark.parametrize("op", ["sum", "mean", "max", "min", "logsumexp", "norm"])
def test_reductions(op, axes, keep, evaluate):
    c = Case()
    c.check(c.total(c(op, c("sin", c.W), axes=axes, keep=keep)), evaluate)


@pytest.mark.parametrize("op", ["softmax", "unit", "rmsnorm", "layernorm"])
def test_normalisations(op, evaluate):
    attrs = {} if op == "softmax" else {"eps": 1e-5}
    c = Case()
    c.check(c.total(c(op, c.W, axes=(-1,), **attrs)), evaluate)
    c = Case()
    c.check(c("sum", c(op, c.W, axes=(-1,), **attrs), axes=(-2, -1), keep=False), evaluate)


@pytest.mark.parametrize("axes", [(-1,), (-2, -1)])
def test_the_slope_of_layernorm_has_a_gradient_of_its_own(axes, evaluate):
    for side in (1, -1):
        c = Case()
        pair = (c.W, c("sin", c.stream("g", *c.shape)))[::side]
        c.check(c.total(c("layernorm_slope", *pair, axes=axes, eps=1e-5)), evaluate)
    c = Case()
    c.check(c.total(c("layernorm_slope", c.W, c("sin", c.W), axes=axes, eps=1e-3)), evaluate)


def test_a_norm_of_zero_gives_no_nan(evaluate):
    c = Case()
    zero = c("mul", 0.0, c.W)
    c.check(c("sum", c("norm", zero, axes=(-1,)), axes=(-1,), keep=False), evaluate)
    c = Case()
    c.check(c("sum", c("unit", zero := c("mul", 1e-14, c.W), axes=(-1,), eps=1e-3), axes=(-2, -1)),
            evaluate)  # fmt: skip


def test_a_root_of_zero_has_a_gradient_of_zero(evaluate):
    c = Case()
    c.check(c.total(c("sqrt", c("relu", c.W))), evaluate)


def test_contractions(evaluate):
    c = Case()
    c.check(c.total(c("dot", c.W, c.stream("k", H, Axis("1", 1), N))), evaluate)
    c = Case()
    c.check(c.total(c("dot", c.W, c.W)), evaluate)
    for shape in ((H, N), (Axis("1", 1), N), (N,)):
        c = Case()
        c.check(c.total(c("matvec", c.W, c.stream("k", *shape))), evaluate)
    c = Case((H, N))
    c.check(c.total(c("matvec", c.stream("B", H, M, N), c.W)), evaluate)
    c = Case()
    c.check(c("sum", c("matvec", c.W, c.stream("k", H, N)), axes=(-1,), keep=False), evaluate)
    for left in (True, False):
        c = Case()
        B = c.stream("B", H, N, N) if left else c.stream("B", M, M)
        c.check(c.total(c("matmul", *((c.W, B) if left else (B, c.W)))), evaluate)
    c = Case()
    c.check(c.total(c("matmul", c.W, c("transpose", c.W))), evaluate)
    for flip in (1, -1):
        c = Case((H, N))
        c.check(c.total(c("outer", *(c.W, c.stream("v", H, M))[::flip])), evaluate)
    c = Case((H, N))
    c.check(c("sum", c("outer", c.W, c.stream("v", H, M)), axes=(-2, -1), keep=False), evaluate)


def test_solve(evaluate):
    for vector in (True, False):
        for inside in (True, False):
            c = Case((H, N, N))
            W = c("add", c.W, c("mul", 6.0, c("identity", axis=N)))
            b = c.stream("b", H, N) if vector else c.stream("b", H, N, M)
            if not inside:
                W = c("add", c.stream("A", H, N, N), c("mul", 6.0, c("identity", axis=N)))
                b = c("matvec", c.W, b) if vector else c("matmul", c.W, b)
            c.check(c.total(c("solve", W, b, vector=vector)), evaluate)


@pytest.mark.parametrize("shape", [(H, M, N), (H, N, M), (N, M)])
def test_newton_schulz(shape, evaluate):
    c = Case(shape, lead=len(shape) - 2)
    attrs = {"steps": 3, "coefficients": (3.4445, -4.775, 2.0315), "eps": 1e-7}
    c.check(c.total(c("newton_schulz", c.W, **attrs)), evaluate)


def test_eigenvalues_and_vectors(evaluate):
    for op in ("eig_values", "eig_vectors"):
        c = Case((H, N, N))
        sym = c("add", c.W, c("transpose", c.W))
        found = c(op, sym)
        if op == "eig_vectors":
            # signs of the columns are arbitrary, their squares are not
            found = c("mul", found, found)
        c.check(c.total(found), evaluate)


def test_layouts(evaluate):
    c = Case()
    c.check(c.total(c("transpose", c.W)), evaluate)
    c = Case((H, N))
    c.check(c.total(c("diag", c.W)), evaluate)
    c = Case()
    c.check(c.total(c("reshape", c.W, last=2, axes=(Axis("mn", 12),))), evaluate)
    c = Case()
    c.check(c.total(c("permute", c.W, order=(0, 2, 1))), evaluate)
    c = Case()
    joined = c("concat", c.W, c.stream("k", H, M, R), c.W)
    c.check(c.total(joined), evaluate)
    for start, stop in ((0, 2), (1, 3), (2, 4), (0, 4)):
        c = Case()
        c.check(c.total(c("slice", c.W, start=start, stop=stop)), evaluate)
    c = Case()
    c.check(c("sum", c("slice", c.W, start=1, stop=3), axes=(-2, -1), keep=False), evaluate)
    c = Case()
    c.check(c("sum", c("transpose", c.W), axes=(-2, -1), keep=False), evaluate)


def test_rotate_lookup_and_cross_entropy(evaluate):
    c = Case((H, N))
    half = Axis("h", 2)
    c.check(c.total(c("rotate", c.W, c.stream("angle", H, half))), evaluate)
    c = Case((H, half))
    c.check(c.total(c("rotate", c.stream("x", H, N), c.W)), evaluate)
    c = Case((M, N), lead=0)
    token = c("stream", name="token", shape=(H,))
    c.check(c.total(c("lookup", c.W, token)), evaluate)
    c = Case((H, M))
    c.check(c("cross_entropy", c.W, token_of(c)), evaluate)


def token_of(c: Case) -> Expr:
    return c("stream", name="token", shape=(H,))


def test_let_passes_and_stop_does_not(evaluate):
    c = Case()
    named = c("let", c("exp", c.W), name="e", part="weight")
    c.check(c.total(c("mul", named, c("stop", named))), evaluate)


def objectives() -> dict[str, Callable[[Case], Expr]]:
    def error(c: Case) -> Expr:
        return c("sub", c("matvec", c.W, c.stream("k", H, N)), c.stream("v", H, M))

    def squares(c: Case) -> Expr:
        e = error(c)
        return c("mul", 0.5, c("dot", e, e))

    def norm_squared(c: Case) -> Expr:
        return c("pow", c("norm", error(c), axes=(-1,)), 2.0)

    def hebbian(c: Case) -> Expr:
        return c("neg", c("dot", c("matvec", c.W, c.stream("k", H, N)), c.stream("v", H, M)))

    def lp(c: Case) -> Expr:
        return c("sum", c("pow", c("abs", error(c)), 3.0), axes=(-1,), keep=False)

    def huber(c: Case) -> Expr:
        e = error(c)
        near = c("mul", 0.5, c("mul", e, e))
        far = c("mul", 0.7, c("sub", c("abs", e), 0.35))
        both = c("where", c("le", c("abs", e), 0.7), near, far)
        return c("sum", both, axes=(-1,), keep=False)

    def divergence(c: Case) -> Expr:
        p = c("softmax", c("matvec", c.W, c.stream("k", H, N)), axes=(-1,))
        q = c("softmax", c.stream("v", H, M), axes=(-1,))
        return c("sum", c("mul", q, c("sub", c("log", q), c("log", p))), axes=(-1,), keep=False)

    def normed(c: Case) -> Expr:
        y = c("layernorm", c("matvec", c.W, c.stream("k", H, N)), axes=(-1,), eps=1e-5)
        e = c("sub", y, c.stream("v", H, M))
        return c("dot", e, e)

    def oja(c: Case) -> Expr:
        back = c("matvec", c("transpose", c.W), c.stream("v", H, M))
        return c("add", hebbian(c), c("mul", 0.5, c("dot", back, back)))

    def windowed(c: Case) -> Expr:
        e = c("sub", c("matvec", c.W, c.stream("k2", H, N)), c.stream("v2", H, M))
        return c("add", squares(c), c("mul", c.stream("gamma", H), c("dot", e, e)))

    return {f.__name__: f for f in (squares, norm_squared, hebbian, lp, huber, divergence, normed,
                                    oja, windowed)}  # fmt: skip


@pytest.mark.parametrize("name", sorted(objectives()))
def test_objectives(name, evaluate):
    c = Case()
    c.check(objectives()[name](c), evaluate)


def test_a_squared_error_gives_the_delta_rule_as_written():
    for name in ("squares", "norm_squared"):
        c = Case()
        state = c("state", memory="A", var="", part="weight", when="prev", shape=c.shape)
        objective = objectives()[name](c)
        node = c("grad", objective, state, memory="A", part="weight", parts=ONE_PART)
        [found] = differentiate(c.graph, [node])
        k, v = c.stream("k", H, N), c.stream("v", H, M)
        e = c("sub", c("matvec", state, k), v)
        assert found is c("outer", e if name == "squares" else c("mul", 2.0, e), k)


def map_of(kind: str, sizes: tuple[Axis, ...], names: dict[str, Shape], **options: object) -> Map:
    parts = tuple(Part(name, shape, Initial("constant")) for name, shape in names.items())
    return Map(kind, sizes[:1], sizes[-1:], sizes, parts, tuple(options.items()))  # type: ignore


@pytest.mark.parametrize("more", [(), (R,)])
@pytest.mark.parametrize(
    "form",
    [
        map_of("linear", (N, M), {"weight": (M, N), "bias": (M,)}),
        map_of(
            "mlp",
            (N, R, N),
            {
                "layer1.weight": (R, N),
                "layer1.bias": (R,),
                "layer2.weight": (N, R),
                "layer2.bias": (N,),
                "norm.weight": (N,),
                "norm.bias": (N,),
            },
            norm=True,
            residual=True,
        ),
        map_of("mlp", (N, R, M), {"layer1.weight": (R, N), "layer2.weight": (M, R)}, act="silu"),
        map_of("glu", (N, R, M), {"gate": (R, N), "up": (R, N), "down": (M, R)}),
        map_of("lora", (N, R, M), {"down": (R, N), "up": (M, R)}, act="tanh"),
        map_of("lora", (N, R, M), {"down": (R, N), "up.weight": (M, R), "up.bias": (M,)}),
    ],
    ids=lambda form: form.kind if isinstance(form, Map) else None,
)
def test_all_parts_of_a_map(form, more, evaluate):
    g = Graph()
    x = g.make("stream", name="x", shape=(H, *more, *form.inputs))
    v = g.make("stream", name="v", shape=(H, *more, *form.outputs))
    shapes = {p.name: (H, *p.shape) for p in form.parts}
    variables = [g.make("variable", memory="A", part=p, shape=s) for p, s in shapes.items()]
    values = [
        g.make("state", memory="A", var="", part=p, when="start", shape=s)
        for p, s in shapes.items()
    ]
    e = g.make("sub", g.make("apply", x, *variables, map=form, lead=1), v)
    axes = tuple(range(-1 - len(more), 0))
    loss = g.make("sum", g.make("pow", e, g.constant(2.0)), axes=axes, keep=False)
    grads = [g.make("grad", loss, *values, memory="A", part=p, parts=tuple(shapes)) for p in shapes]
    found = differentiate(g, lower(g, grads))
    [plain] = lower(g, [loss])
    torch.manual_seed(0)
    leaves = {}
    for stream in (x, v):
        size = [a.size for a in stream.shape]
        leaves["stream", stream.attr("name")] = torch.randn(size, dtype=torch.float64)
    tensors = []
    for p, s in shapes.items():
        t = torch.randn([a.size for a in s], dtype=torch.float64, requires_grad=True)
        leaves["variable", p] = leaves["state", "", p, "start"] = t
        tensors.append(t)
    [value] = evaluate([plain], leaves)
    want = torch.autograd.grad(value.sum(), tensors)
    for a, b in zip(evaluate(found, leaves), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_part_the_objective_does_not_use_has_gradient_zero(evaluate):
    c = Case()
    state = c("state", memory="A", var="", part="weight", when="prev", shape=c.shape)
    bias = c("state", memory="A", var="", part="bias", when="prev", shape=(H, M))
    objective = c("sum", c.W, axes=(-2, -1), keep=False)
    node = c("grad", objective, state, bias, memory="A", part="bias", parts=("weight", "bias"))
    [found] = differentiate(c.graph, [node])
    [got] = evaluate([found], {("state", "", "bias", "prev"): torch.ones(2, 3).double()})
    assert got.shape == (2, 3) and not got.any()


def test_a_gradient_at_another_value(evaluate):
    c = Case()
    state = c("state", memory="A", var="", part="weight", when="prev", shape=c.shape)
    at = c("mul", 0.5, state)
    e = c("sub", c("matvec", c.W, c.stream("k", H, N)), c.stream("v", H, M))
    node = c("grad", c("dot", e, e), at, memory="A", part="weight", parts=ONE_PART)
    [found] = differentiate(c.graph, [node])
    S, k, v = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 4), (2, 4), (2, 3)))
    leaves = {("state", "", "weight", "prev"): S, ("stream", "k"): k, ("stream", "v"): v}
    [got] = evaluate([found], leaves)
    want = 2 * torch.einsum("hm,hn->hmn", torch.einsum("hmn,hn->hm", 0.5 * S, k) - v, k)
    torch.testing.assert_close(got, want)


def test_a_gradient_through_time_is_refused_with_its_place():
    c = Case((H, N))
    objective = c.total(c("shift", c.W, n=1, slot="shift_1"))
    state = c("state", memory="A", var="", part="weight", when="prev", shape=c.shape)
    node = c("grad", objective, state, memory="A", part="weight", parts=ONE_PART)
    with pytest.raises(SpecError) as caught:
        differentiate(c.graph, [node])
    assert caught.value.diagnostics[0].code == "NL0840"


def test_deep_graphs_need_no_stack(evaluate):
    c = Case((H, N))
    x = c.W
    for _ in range(3000):
        x = c("sin", x)
    state = c("state", memory="A", var="", part="weight", when="prev", shape=c.shape)
    node = c("grad", c.total(x), state, memory="A", part="weight", parts=ONE_PART)
    [found] = differentiate(c.graph, [node])
    assert found.shape == c.shape
