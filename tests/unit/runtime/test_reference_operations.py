"""The interpreter's table of operations: complete, and each row right on shapes and numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nlc.ir.expr import Expr, Graph
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import Axis, sizes
from nlc.ir.system import Initial, Map, Part
from nlc.runtime.evaluate import TokenFrame, evaluate
from nlc.runtime.operations import ROWS

N, M, H = Axis("n", 4), Axis("m", 3), Axis("h", 2)
GRAPH = Graph()
ROWS_OF_BATCH = 2


def frame(**streams: Tensor) -> TokenFrame:
    """A frame that knows only streams."""
    return TokenFrame(
        rows=ROWS_OF_BATCH,
        position=5,
        parameters={},
        streams=streams,
        defaults={},
        states={},
        kernels={},
        histories={},
        remembered={},
        tracks=True,
    )


def stream(name: str, *axes: Axis) -> Expr:
    return GRAPH.make("stream", name=name, shape=axes)


def draw(*axes: Axis, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS_OF_BATCH, *sizes(axes))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_every_operation_has_a_row() -> None:
    assert set(ROWS) == set(OPERATIONS)


ONE_ARGUMENT = {
    "neg": lambda x: -x,
    "exp": math.exp,
    "abs": abs,
    "sign": lambda x: math.copysign(1, x),
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_slope": lambda x: (
        (1 + math.erf(x / math.sqrt(2))) / 2 + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    ),
    "silu_slope": lambda x: (1 + math.exp(-x) + x * math.exp(-x)) / (1 + math.exp(-x)) ** 2,
    "relu": lambda x: max(x, 0.0),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "erf": math.erf,
}


@pytest.mark.parametrize("name", sorted(ONE_ARGUMENT))
def test_functions_of_one_number(name: str) -> None:
    x = draw(N)
    y = evaluate(GRAPH.make(name, stream("x", N)), frame(x=x))
    wanted = torch.tensor([[ONE_ARGUMENT[name](float(v)) for v in row] for row in x])
    torch.testing.assert_close(y, wanted.double(), rtol=0, atol=1e-6 if name == "x" else 1e-7)


def test_log_and_sqrt() -> None:
    x = draw(N).abs() + 0.1
    assert torch.equal(evaluate(GRAPH.make("log", stream("x", N)), frame(x=x)), x.log())
    assert torch.equal(evaluate(GRAPH.make("sqrt", stream("x", N)), frame(x=x)), x.sqrt())


def test_axes_missing_in_front_are_added_behind_the_batch() -> None:
    # a vector over m beside a matrix [h, m], where rows = h would broadcast wrongly
    x, y = draw(M), draw(H, M, seed=1)
    z = evaluate(GRAPH.make("mul", stream("x", M), stream("y", H, M)), frame(x=x, y=y))
    assert torch.equal(z, x[:, None] * y)


def test_comparison_is_a_number() -> None:
    x = draw(N)
    node = GRAPH.make("lt", stream("x", N), GRAPH.constant(0.0))
    assert torch.equal(evaluate(node, frame(x=x)), (x < 0).double())


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "logsumexp", "norm"])
def test_reductions(name: str) -> None:
    x = draw(H, N)
    plain = {
        "sum": x.sum((1, 2)),
        "mean": x.mean((1, 2)),
        "max": x.flatten(1).max(1).values,
        "min": x.flatten(1).min(1).values,
        "logsumexp": x.exp().sum((1, 2)).log(),
        "norm": x.square().sum((1, 2)).sqrt(),
    }
    node = GRAPH.make(name, stream("x", H, N), axes=(-1, -2), keep=False)
    torch.testing.assert_close(evaluate(node, frame(x=x)), plain[name])
    kept = GRAPH.make(name, stream("x", H, N), axes=(-1,), keep=True)
    assert evaluate(kept, frame(x=x)).shape == (2, 2, 1)


def test_norm_of_a_single_number_is_its_absolute_value() -> None:
    x = draw()
    node = GRAPH.make("norm", stream("x"), axes=(), keep=False)
    torch.testing.assert_close(evaluate(node, frame(x=x)), x.abs())


def test_normalisations() -> None:
    x = draw(N)
    node = stream("x", N)
    unit = evaluate(GRAPH.make("unit", node, axes=(-1,), eps=1e-12), frame(x=x))
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2).double())
    rms = evaluate(GRAPH.make("rmsnorm", node, axes=(-1,), eps=1e-6), frame(x=x))
    torch.testing.assert_close(rms, torch.nn.functional.rms_norm(x, (4,), eps=1e-6))
    layer = evaluate(GRAPH.make("layernorm", node, axes=(-1,), eps=1e-5), frame(x=x))
    torch.testing.assert_close(layer, torch.nn.functional.layer_norm(x, (4,), eps=1e-5))
    g = draw(N, seed=1)
    slope = GRAPH.make("layernorm_slope", node, stream("g", N), axes=(-1,), eps=1e-5)
    x.requires_grad_()
    (wanted,) = torch.autograd.grad((torch.nn.functional.layer_norm(x, (4,)) * g).sum(), x)
    torch.testing.assert_close(evaluate(slope, frame(x=x, g=g)), wanted)
    soft = evaluate(GRAPH.make("softmax", node, axes=(-1,)), frame(x=x))
    torch.testing.assert_close(soft, x.softmax(-1))


def test_products() -> None:
    a, x, b = draw(H, N, M), draw(M, seed=1), draw(H, M, seed=2)
    nodes = stream("a", H, N, M), stream("x", M), stream("b", H, M)
    given = frame(a=a, x=x, b=b)
    matvec = evaluate(GRAPH.make("matvec", nodes[0], nodes[1]), given)
    torch.testing.assert_close(matvec, torch.einsum("rhnm,rm->rhn", a, x))
    outer = evaluate(GRAPH.make("outer", nodes[2], nodes[1]), given)
    torch.testing.assert_close(outer, torch.einsum("rhi,rj->rhij", b, x))
    dot = evaluate(GRAPH.make("dot", nodes[2], nodes[1]), given)
    torch.testing.assert_close(dot, torch.einsum("rhi,ri->rh", b, x))
    square = evaluate(GRAPH.make("matmul", nodes[0], GRAPH.make("transpose", nodes[0])), given)
    torch.testing.assert_close(square, torch.einsum("rhim,rhjm->rhij", a, a))


def test_solve_and_eig() -> None:
    a = draw(N, N)
    a = a @ a.mT + torch.eye(4)
    x = draw(N, seed=3)
    given = frame(a=a, x=x)
    node = GRAPH.make("solve", stream("a", N, N), stream("x", N), vector=True)
    solution = evaluate(node, given)
    torch.testing.assert_close((a @ solution[..., None])[..., 0], x)
    vectors = evaluate(GRAPH.make("eig_vectors", stream("a", N, N)), given)
    values = evaluate(GRAPH.make("eig_values", stream("a", N, N)), given)
    assert bool((values.diff(dim=-1) <= 0).all())
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, a)


@pytest.mark.parametrize("shape", [(M, N), (N, M)])
def test_newton_schulz_makes_singular_values_nearly_one(shape: tuple[Axis, Axis]) -> None:
    x = draw(*shape)
    coefficients = (3.4445, -4.7750, 2.0315)
    node = GRAPH.make(
        "newton_schulz", stream("x", *shape), steps=8, coefficients=coefficients, eps=1e-7
    )
    singular = torch.linalg.svdvals(evaluate(node, frame(x=x)))
    assert bool(((singular > 0.6) & (singular < 1.3)).all())
    several = GRAPH.make(
        "newton_schulz", stream("x", *shape), steps=8, coefficients=(coefficients,) * 8, eps=1e-7
    )
    assert torch.equal(evaluate(several, frame(x=x)), evaluate(node, frame(x=x)))


@pytest.mark.parametrize(
    ("select", "amount", "chosen"),
    [("all", 0.0, 4), ("top_k", 2.0, 2), ("top_p", 0.7, 2), ("threshold", 0.2, 3)],
)
def test_route_keeps_the_selected_slots(select: str, amount: float, chosen: int) -> None:
    weights = torch.tensor([0.05, 0.4, 0.2, 0.35], dtype=torch.float64)
    node = GRAPH.make("route", stream("x", N), select=select, amount=amount)
    found = evaluate(node, frame(x=weights.log().expand(2, 4)))[0]
    kept = weights * (weights >= weights.sort(descending=True).values[chosen - 1])
    torch.testing.assert_close(found, kept / kept.sum())


def test_rotation_keeps_the_length_of_each_pair() -> None:
    x, angle = draw(N), draw(H, seed=1)
    y = evaluate(GRAPH.make("rotate", stream("x", N), stream("angle", H)), frame(x=x, angle=angle))
    first = torch.complex(x[:, 0::2], x[:, 1::2]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(torch.complex(y[:, 0::2], y[:, 1::2]), first)


def test_cross_entropy_and_lookup() -> None:
    logits, target = draw(N), torch.tensor([3, 0])
    given = frame(logits=logits, target=target)
    node = GRAPH.make("cross_entropy", stream("logits", N), stream("target"))
    wanted = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(evaluate(node, given), wanted)
    table = GRAPH.make("lookup", stream("table", N, M), stream("target"))
    entries = draw(N, M)
    found = evaluate(table, frame(table=entries, target=target))
    assert torch.equal(found, torch.stack([entries[0, 3], entries[1, 0]]))


MLP = Map(
    "mlp",
    (M,),
    (M,),
    (M, N, M),
    tuple(
        Part(name, shape, Initial("constant"))
        for name, shape in [
            ("layer1.weight", (N, M)),
            ("layer1.bias", (N,)),
            ("layer2.weight", (M, N)),
            ("layer2.bias", (M,)),
            ("norm.weight", (M,)),
            ("norm.bias", (M,)),
        ]
    ),
    (("act", "silu"), ("bias", True), ("norm", True), ("residual", True)),
)


def test_mlp_with_leading_and_further_axes() -> None:
    more = Axis("more", 5)
    x = draw(H, more, M)
    parts = [draw(H, *part.shape, seed=i) for i, part in enumerate(MLP.parts)]
    names = [f"p{i}" for i in range(len(parts))]
    leaves = [stream(n, H, *p.shape) for n, p in zip(names, MLP.parts, strict=True)]
    node = GRAPH.make("apply", stream("x", H, more, M), *leaves, map=MLP, lead=1, memory="")
    y = evaluate(node, frame(x=x, **dict(zip(names, parts, strict=True))))
    functional = torch.nn.functional
    for row in range(2):
        for head in range(2):
            w1, b1, w2, b2, gain, offset = (p[row, head] for p in parts)
            x_ = x[row, head]
            hidden = functional.silu(functional.linear(x_, w1, b1))
            z = functional.layer_norm(functional.linear(hidden, w2, b2), (3,), gain, offset)
            torch.testing.assert_close(y[row, head], x_ + z)


def test_gradient_of_an_objective_is_differentiable_again() -> None:
    linear = Map("linear", (M,), (N,), (M, N), (Part("weight", (N, M), Initial("constant")),))
    variable = GRAPH.make("variable", memory="W", part="weight", shape=(N, M))
    error = GRAPH.make(
        "sub",
        GRAPH.make("apply", stream("k", M), variable, map=linear, lead=0, memory=""),
        stream("v", N),
    )
    objective = GRAPH.make("dot", error, error)
    node = GRAPH.make(
        "grad", objective, stream("S", N, M), memory="W", part="weight", parts=("weight",)
    )
    state = draw(N, M).requires_grad_()
    key, value = draw(M, seed=1).requires_grad_(), draw(N, seed=2).requires_grad_()
    gradient = evaluate(node, frame(k=key, v=value, S=state))
    plain = 2 * torch.einsum("ri,rj->rij", torch.einsum("rij,rj->ri", state, key) - value, key)
    torch.testing.assert_close(gradient, plain)
    weight = torch.randn(gradient.shape, dtype=torch.float64)
    ours = torch.autograd.grad((gradient * weight).sum(), [state, key, value])
    theirs = torch.autograd.grad((plain * weight).sum(), [state, key, value])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_what_shares_a_state_with_the_memory_is_a_constant_of_its_objective() -> None:
    # the value is made from the same state: only the read is differentiated
    linear = Map("linear", (M,), (M,), (M, M), (Part("weight", (M, M), Initial("constant")),))
    variable = GRAPH.make("variable", memory="W", part="weight", shape=(M, M))
    state = stream("S", M, M)
    value = GRAPH.make("apply", stream("k", M), state, map=linear, lead=0, memory="")
    read = GRAPH.make("apply", stream("k", M), variable, map=linear, lead=0, memory="")
    error = GRAPH.make("sub", read, GRAPH.make("mul", value, GRAPH.constant(3.0)))
    node = GRAPH.make(
        "grad",
        GRAPH.make("dot", error, error),
        state,
        memory="W",
        part="weight",
        parts=("weight",),
    )
    s, k = draw(M, M), draw(M, seed=1)
    wanted = -4 * torch.einsum("ri,rj->rij", torch.einsum("rij,rj->ri", s, k), k)
    torch.testing.assert_close(evaluate(node, frame(S=s, k=k)), wanted)


def test_deep_graphs_need_no_recursion() -> None:
    node = stream("x", N)
    for _ in range(20_000):
        node = GRAPH.make("add", node, GRAPH.constant(1.0))
    x = draw(N)
    torch.testing.assert_close(evaluate(node, frame(x=x)), x + 20_000)
