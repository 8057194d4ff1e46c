"""What hangs on no state, made before the chunks: the same values, and little left of sums."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from nlc.codegen.before_chunks import before_chunks

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.normal_form import Affine, Write
from nlc.ir.shape import Axis
from tests.evaluator import evaluate
from tests.references.specs import block, resolve
from tests.unit.codegen.agree import agree

H, D = Axis("heads", 2), Axis("d", 3)
GRAPH = Graph()


def stream(name: str, *shape: Axis) -> Expr:
    return GRAPH.make("stream", name=name, shape=shape)


def make(op: str, *args: Expr, **attrs: Any) -> Expr:
    return GRAPH.make(op, *args, **attrs)


K, V = stream("k", H, D), stream("v", H, D)
ETA, THETA = stream("eta", H), stream("theta", H)
M = make("state", memory="M", var="", part="weight", when="start", shape=(H, D, D))
READ = make("matvec", M, K)


def number(e: Expr) -> Expr:
    return make("unsqueeze", e, axes=(-1,))


def taken_out(*roots: Expr) -> tuple[list[Expr], dict[Expr, Expr]]:
    writes = tuple(Write((None,), (), root, (None,)) for root in roots)
    form = Affine((("", "weight"),), ((None,),), writes)
    [(_, found)], made = before_chunks([("weight", form)], [K, V, ETA, THETA])
    return [write.offset for write in found.writes if write.offset is not None], made


def values(root: Expr, made: dict[Expr, Expr], leaves: Any) -> torch.Tensor:
    known = dict(leaves)
    for leaf, value in made.items():
        known["stream", leaf.attr("name")] = evaluate([value], leaves)[0]
    return evaluate([root], known)[0]


@pytest.fixture(name="leaves", scope="module")
def drawn() -> dict[tuple[Any, ...], torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"k": (2, 3), "v": (2, 3), "eta": (2,), "theta": (2,)}
    found = {("stream", n): torch.randn(s, dtype=torch.float64) for n, s in shapes.items()}
    return found | {("state", "", "weight", "start"): torch.randn(2, 3, 3, dtype=torch.float64)}


def test_terms_and_numbers_are_put_together(leaves: Any) -> None:
    error = make("sub", make("add", K, READ), V)
    rate = make("mul", GRAPH.constant(-2.0), number(ETA))
    root = make("neg", make("mul", rate, make("mul", error, number(THETA))))
    [new], made = taken_out(root)
    # (k - v), and 2 eta theta
    assert len(made) == 2
    inside = [node.op for node in postorder([new]) if node.args]
    assert sorted(inside) == ["add", "matvec", "mul", "unsqueeze"]
    torch.testing.assert_close(values(new, made, leaves), evaluate([root], leaves)[0])


def test_what_grows_or_only_gets_an_axis_stays(leaves: Any) -> None:
    root = make("matvec", make("outer", K, V), READ)
    [new], made = taken_out(root)
    assert not made and new is root
    assert taken_out(make("mul", number(ETA), READ))[1] == {}


@pytest.mark.parametrize("seed", range(40))
def test_any_expression_keeps_its_value(seed: int, leaves: Any) -> None:
    draw = random.Random(seed)
    pool = [K, V, number(ETA), number(THETA), READ, make("tanh", READ), GRAPH.constant(-1.0)]
    pool += [GRAPH.constant(0.5)]
    for _ in range(14):
        op = draw.choice(["add", "sub", "mul", "neg", "sigmoid"])
        count = 1 if op in ("neg", "sigmoid") else 2
        pool.append(make(op, *(draw.choice(pool[-9:]) for _ in range(count))))
    roots = [make("add", READ, e) for e in pool[-3:]]
    new, made = taken_out(*roots)
    for a, b in zip(new, roots, strict=True):
        torch.testing.assert_close(values(a, made, leaves), evaluate([b], leaves)[0])


def test_what_is_one_value_for_two_writes_is_one_stream() -> None:
    """The rate of the write to the matrix is that of the write to the bias."""
    body = """
  weights W_a : linear(d -> heads, bias)
  a = sigmoid(W_a(x))
  memory M : linear(d_k -> d_v, bias) at fast {
    key unit(k)
    value v
    through first_order
    update { M = a * M - where(a > 0.5, 0.4, 0.1) * grad }
  }
  out = W_o(M(q))
"""
    agree(resolve(block(body, chunk="4")))
