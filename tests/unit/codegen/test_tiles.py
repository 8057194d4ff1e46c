"""The pieces of which tiles are solved, each alone: values and gradients in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nlc.codegen.library_gates import BothProducts, CoupledGates, DecayedKeys, Products
from nlc.codegen.library_known import SolveTile
from nlc.codegen.library_numbers import Numbers, RunningNumbers
from nlc.codegen.library_tiles import TileScan, carried
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.references.specs import block, resolve
from tests.unit.codegen.agree import agree


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def with_zeros(g: Tensor) -> Tensor:
    """Gates of which some are 0."""
    g = g.detach().sigmoid()
    g[..., 1, :] = 0.0
    return g.requires_grad_()


def by_hand(g: Tensor) -> Tensor:
    """g_{i+1} ... g_t for 0 <= i <= t <= C, else 0: [C, d] -> [1 + C, 1 + C, d]."""
    found = torch.zeros(len(g) + 1, len(g) + 1, g.shape[-1], dtype=g.dtype)
    for t in range(len(g) + 1):
        for i in range(t + 1):
            found[t, i] = g[i:t].prod(0)
    return found


def test_products_of_numbers_are_exact_where_a_gate_is_zero() -> None:
    g = with_zeros(draw(5, 1))
    assert torch.equal(Products.apply(g.squeeze(-1)), by_hand(g).squeeze(-1))
    assert gradcheck(
        Products.apply, (with_zeros(draw(2, 4, 1)).detach().squeeze(-1).requires_grad_(),)
    )


def test_keys_are_decayed_exactly_where_a_gate_is_zero() -> None:
    g, b = with_zeros(draw(5, 3)), draw(5, 3, seed=1)
    table, last = DecayedKeys.apply(g, b)
    assert torch.allclose(table, by_hand(g)[1:, 1:] * b, atol=1e-15)
    assert torch.equal(last, table[-1])
    assert gradcheck(DecayedKeys.apply, (g, b))


@pytest.mark.parametrize(
    "pairs", [((0, 0),), ((0, 0), (1, 0), (1, 1)), ((0, 0), (0, 1), (1, 0), (1, 1))]
)
@pytest.mark.parametrize("rows", [3, 16])
def test_numbers_of_chunks_are_those_of_tables(
    pairs: tuple[tuple[int, int], ...], rows: int
) -> None:
    n, into = pairs[-1][0] + 1, pairs[-1][:1]
    given = {pair: with_zeros(draw(rows, 4, 1, seed=i)) for i, pair in enumerate(pairs)}
    gates = [[None] * n for _ in range(n)]
    for (a, j), g in given.items():
        gates[a][j] = g.squeeze(-1)
    front, like = (rows, 4), draw(rows, 1)
    found = Numbers(CoupledGates, gates, front, like, rows, 1)
    tables = found.general().tables
    for j in range(n):
        table = tables[into[0]][j][0].squeeze(-1)
        assert torch.allclose(found.reach(into, j), table[:, 1:, 1:], atol=1e-15)
        assert torch.allclose(found.reach(into, j, late=False), table[:, :-1, 1:], atol=1e-15)
        assert torch.allclose(found.left(into)[:, :, j, 0], table[:, -1, 1:], atol=1e-15)
        for a in range(n):
            came = tables[a][j]
            first = torch.zeros(rows, 5).double() if came is None else came[0, ..., 0, 0]
            assert torch.allclose(found.since(j)[:, :, a, 0], first[:, 1:], atol=1e-15)
    assert {(a, j) for a, j in found.flows} == {
        (a, j) for a in range(n) for j in range(n) if a != j and tables[a][j] is not None
    }

    def course(*g: Tensor) -> Any:
        return RunningNumbers.apply(n, into, pairs, *g)

    assert gradcheck(course, tuple(given.values()), fast_mode=True)
    assert gradgradcheck(course, tuple(given.values()), fast_mode=True)


def test_running_products_and_one_over_them() -> None:
    g = draw(2, 4, 3).detach().sigmoid().add(0.2).requires_grad_()
    found, inverse = BothProducts.apply(g)
    assert torch.allclose(found * inverse, torch.ones_like(found))
    assert torch.allclose(found, g.cumprod(-2))
    assert gradcheck(BothProducts.apply, (g,))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("n", "width"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_from_tile_to_tile(n: int, width: int, known: bool) -> None:
    N, G, C, d_k, d_v = 3, 2, 4, 3, 2
    A, U = draw(N, G, C, C, seed=6).detach().tril(-1).requires_grad_(), draw(N, G, C, d_v)
    P, b = draw(N, G, C, n * d_k, seed=1), draw(N, G, C, n * d_k, seed=2)
    w, M = draw(N, G, n, n, width, seed=3), draw(G, n * d_k, d_v, seed=4)
    add = draw(N, G, n * d_k, d_v, seed=5) if known else None

    def plain(A: Tensor, U: Tensor, P: Tensor, b: Tensor, w: Tensor, add: Any, M: Tensor) -> Any:
        writes, starts = [], []
        for i in range(N):
            starts.append(M)
            writes.append(torch.linalg.solve(torch.eye(C, dtype=A.dtype) - A[i], U[i] + P[i] @ M))
            M = carried(M, w[i]) + b[i].mT @ writes[-1]
            M = M if add is None else M + add[i]
        return torch.stack(writes), torch.stack(starts), M

    given = (A, U, P, b, w, add, M)
    inputs = [x for x in given if x is not None]
    ours, theirs = TileScan.apply(*given), plain(*given)
    weights = [draw(*x.shape, seed=9) for x in theirs]
    for a, c in zip(ours, theirs, strict=True):
        assert torch.allclose(a, c, atol=1e-12)
    grads = [torch.autograd.grad(list(x), inputs, weights) for x in (ours, theirs)]
    # what stands in A on and above the diagonal is not looked at
    grads = [(dA.tril(-1), *rest) for dA, *rest in grads]
    for a, c in zip(*grads, strict=True):
        assert torch.allclose(a, c, atol=1e-12)


def test_a_tile_by_itself_is_solved() -> None:
    V = draw(2, 4, 3)
    pairs = [draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2), draw(2, 4, 4, seed=3)]
    pairs += [draw(2, 4, 5, seed=4), draw(2, 4, 5, seed=5), draw(2, 4, 4, seed=6)]

    def solved(V: Tensor, *pairs: Tensor) -> Tensor:
        """With tables that are 0 on and above the diagonal, as those of gates are."""
        masked = [x.tril(-1) if i % 3 == 2 else x for i, x in enumerate(pairs)]
        found: Tensor = SolveTile.apply(V, *masked)
        return found

    p, b, T, q, c, G = pairs
    A = (p @ b.mT * T + q @ c.mT * G).tril(-1)
    assert torch.allclose(solved(V, *pairs), torch.linalg.solve(torch.eye(4) - A, V))
    assert gradcheck(solved, (V, *pairs), fast_mode=True)
    assert gradgradcheck(solved, (V, *pairs), fast_mode=True)


def test_states_are_carried_as_written() -> None:
    Z, w = draw(2, 5, 3, seed=1), draw(2, 2, 3, seed=2)
    M = torch.cat([z.mT for z in Z.unflatten(0, (2,))], 0)
    after = carried(M, w)
    for j in range(2):
        want = sum(Z[a] * w[a, j] for a in range(2))
        assert torch.allclose(after[3 * j : 3 * j + 3].mT, want)


def test_a_write_may_read_only_what_the_same_token_wrote() -> None:
    text = block("""
  weights W_k2 : linear(d -> heads*d_k)
  k2 = W_k2(x)
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    update {
      M = outer(M @ k2 - v, k)
      M = M - outer(M @ k2, k2)
    }
  }
  out = W_o(M(q))
""")
    (schedule,) = agree(resolve(text), tokens=9).schedules.values()
    assert schedule.kind == "tile-solve"


@pytest.mark.parametrize("lead", ["", "[heads]"])
def test_a_chunk_whose_write_reads_what_runs_is_one_tile(lead: str) -> None:
    one = """
  weights W_1, W_2, W_3 : linear(d -> d_k)
  q1, k1, v1 = W_1(x), W_2(x), W_3(x)
"""
    text = block(
        f"""{one if not lead else "  q1, k1, v1 = q, k, q + k"}
  weights W_b : linear(d -> 1)
  b = sum(sigmoid(W_b(x)))
  c = unit(k1)
  memory M{lead} : mlp(d_k -> h -> d_k, residual) at fast {{
    key c
    value prev(self)(v1)
    update {{
      self.layer1 = self.layer1 @ (b - b * outer(c, c)) - b * grad.layer1
      self.layer2 = b * self.layer2 - 0.1 * grad.layer2
    }}
    init learned
  }}
  out = W_o(v * sum(prev(M)(q1), over = d_k))
""",
        chunk="4",
    ).replace("dims {", "dims { h = 5,")
    compiled = agree(resolve(text), tokens=11)
    (schedule,) = compiled.schedules.values()
    assert schedule.kind == "tile-solve"
    # what the write reads where a chunk begins is known of the gradient
    assert "met=met" in compiled.files()["model.py"]
