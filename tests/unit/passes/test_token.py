"""One token, written out: products with simple matrices, and gradients that equal autograd's."""

from __future__ import annotations

import pytest
import torch

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.shape import Axis
from nlc.passes.token import gradients_of, written_out

H, M, N = Axis("heads", 2), Axis("m", 3), Axis("n", 4)


class Streams:
    """Random streams, by name, and the graph over them."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.leaves: dict[tuple[str, str], torch.Tensor] = {}

    def __call__(self, name: str, *shape: Axis) -> Expr:
        generator = torch.Generator().manual_seed(len(self.leaves))
        sizes = [axis.size for axis in shape]
        value = torch.randn(sizes, generator=generator, dtype=torch.float64)
        self.leaves["stream", name] = value.requires_grad_()
        return self.graph.make("stream", name=name, shape=shape)


def simple(streams: Streams, size: Axis) -> Expr:
    """A sum of all that is simple: a diagonal, numbers times an outer product, what is stopped."""
    make = streams.graph.make
    w, a, b = (streams(f"{name}{size.name}", H, size) for name in "wab")
    number = make("unsqueeze", streams(f"c{size.name}", H), axes=(-2, -1))
    held = make("stop", make("outer", b, a))
    whole = make("sub", make("diag", w), make("mul", number, make("outer", a, b)))
    return make("add", make("neg", whole), make("add", make("identity", axis=size), held))


@pytest.mark.parametrize("left", [True, False])
def test_products_with_simple_matrices_become_products_with_vectors(evaluate, left: bool) -> None:
    streams = Streams()
    X = streams("X", H, M, N)
    factors = (simple(streams, M), X) if left else (X, simple(streams, N))
    product = streams.graph.make("matmul", *factors)
    (found,) = written_out(streams.graph, [product], lambda node: False)
    assert all(node.op != "matmul" for node in postorder([found]))
    ours, truth = evaluate([found, product], streams.leaves)
    torch.testing.assert_close(ours, truth)
    wanted = list(streams.leaves.values())
    # what is stopped stays stopped
    for mine, true in zip(*(torch.autograd.grad(y.sin().sum(), wanted) for y in (ours, truth)),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(mine, true)


def test_gradients_of_several_values_at_once_equal_autograd(evaluate) -> None:
    streams = Streams()
    graph, make = streams.graph, streams.graph.make
    S, k, g = streams("S", H, M, N), streams("k", H, N), streams("g", N)
    up = make("tanh", make("mul", S, make("unsqueeze", make("exp", g), axes=(-2,))))
    read = make("matvec", up, make("unit", k, axes=(-1,), eps=1e-12))
    came = [streams("came_up", H, M, N), streams("came_read", H, M)]
    leaves = {S: "S", k: "k", g: "g"}
    reached = list(zip((up, read), came, strict=True))
    found = gradients_of(graph, reached, lambda node: node in leaves)
    assert found is not None and set(found) == set(leaves)
    values = evaluate([up, read], streams.leaves)
    seeds = [streams.leaves["stream", c.attr("name")] for c in came]
    loss = sum((v * seed).sum() for v, seed in zip(values, seeds, strict=True))
    truth = torch.autograd.grad(loss, [streams.leaves["stream", n] for n in leaves.values()])
    for leaf, true in zip(leaves, truth, strict=True):
        (ours,) = evaluate([found[leaf]], streams.leaves)
        torch.testing.assert_close(ours.expand_as(true), true)


def test_the_slope_of_a_norm_is_written_out(evaluate) -> None:
    streams = Streams()
    x, g = streams("x", H, N), streams("g", H, N)
    slope = streams.graph.make("layernorm_slope", x, g, axes=(-1,), eps=1e-5)
    (found,) = written_out(streams.graph, [slope], lambda node: False)
    assert all(node.op != "layernorm_slope" for node in postorder([found]))
    torch.testing.assert_close(*evaluate([found, slope], streams.leaves))


def test_a_gradient_through_what_has_none_is_told() -> None:
    streams = Streams()
    x = streams("x", N)
    value = streams.graph.make("shift", x, n=1, slot="shift_1")
    assert gradients_of(streams.graph, [(value, x)], lambda node: node is x) is None
