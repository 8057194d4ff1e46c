"""States of one part in one tensor, over a tile of known writes; what a module uses is copied.

The n states that flow into each other lie below each other, or side by side where they are wide, so
that each product of matrices is one for all of them, and what is done number by number is done to
the smaller side. How they are read in a tile and how they move over it is one function, whose
gradient is by hand: nothing as large as a state is made on the way but the states.

In: states M_j^T [G, d_k, d_v], for G rows and copies, writes e_r [G, C, d_v] along b_r [G, C, d_k],
numbers between states and tokens. Out: answers [G, C, d_v], and the states after the tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from nlc.codegen.library_products import matrix_products
from torch import Tensor


class Stacked:
    """n states M_j^T in one tensor: [G, n * d_k, d_v], or [G, d_k, n * d_v] if that is `wide`.

    In memory they lie one behind the other in both cases.
    """

    def __init__(self, whole, n, wide, first=None):
        self.whole, self.n, self.wide, self.first = whole, n, wide, first

    @classmethod
    def of(cls, states):
        """Put states together."""
        wide = states[0].shape[-2] > states[0].shape[-1]
        if len(states) == 1:
            return cls(states[0], 1, wide)
        whole = torch.cat([x.mT for x in states], -2).mT if wide else torch.cat(states, -2)
        return cls(whole, len(states), wide, states[0])

    def __getitem__(self, j):
        """State j, as M_j^T [G, d_k, d_v]."""
        if self.n == 1:
            return self.whole
        if j == 0 and self.first is not None:
            return self.first
        return self.whole.chunk(self.n, -1 if self.wide else -2)[j]

    def __len__(self):
        return self.n

    @property
    def shape(self):
        """d_k and d_v of a state."""
        d_k, d_v = self.whole.shape[-2:]
        return (d_k, d_v // self.n) if self.wide else (d_k // self.n, d_v)

    def rows(self):
        """The states below each other."""
        return torch.cat(list(self), -2) if self.wide and self.n > 1 else self.whole


class Along(NamedTuple):
    """What of a tile is asked for."""

    n: int
    wide: bool
    flows: tuple[tuple[int, int], ...]  # a, j where state a flows into another state j
    read: bool
    move: bool


class AlongTile(torch.autograd.Function):
    """How states are read over a tile, and how they move, both with their gradients.

    y = sum_a s_a (q M_a^T) + sum_r (T_r * q b_r^T) e_r
    M_j <- sum_a w_aj M_a + sum_r (l_rj b_r)^T e_r

    Given are the states, the queries, numbers s [G, C, n, 1] and w_jj [G, n, 1], the other
    w_aj [G, 1, 1], then e, b, T [G, C, C] and l [G, C, n, 1] of each write. None stands for a table
    that is 0 and for numbers that are 1. The first state after the tile is given by itself, too.
    """

    @staticmethod
    def forward(ctx, how, S, q, s, own, *given):
        ctx.how, met, y, after, first = how, [], None, None, None
        flows, writes = parted(how, given)
        if how.read:
            y, met = read_along(how, S, q, s, writes)
        if how.move:
            after = flowed(how, how.flows, S, own, flows)
            for e, b, _, left in writes:
                # as the states lie in memory
                x, z, to = (
                    (by_state(e, left), b, after.mT) if how.wide else (by_state(b, left), e, after)
                )
                added(to, x.mT, z)
            first = state_in(how, after, 0).detach() if how.n > 1 else None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(S, q, s, own, *given, *met)
        return y, after, first

    @staticmethod
    def backward(ctx, dy, dafter, dfirst):
        how, (S, q, s, own, *given) = ctx.how, ctx.saved_tensors
        _, of_S, of_q, of_s, of_own, *needs = ctx.needs_input_grad
        given, met = given[: len(needs)], given[len(needs) :]
        (flows, writes), (of_flows, of_writes) = parted(how, given), parted(how, needs)
        if torch.is_grad_enabled() and dy is not None:
            # this is differentiated again, and then what the states and writes met hangs on them
            _, met = read_along(how, S, q, s, writes)
        dwrites, dflows = [[None] * 4 for _ in writes], [None] * len(flows)
        dS = dq = ds = down = None
        if dafter is not None or dfirst is not None:
            dafter = with_first(how, S, dafter, dfirst)
            dS = flowed(how, [(j, a) for a, j in how.flows], dafter, own, flows) if of_S else None
            down, dflows = flows_back(how, S, dafter, of_own, of_flows)
            for back, write, wanted in zip(dwrites, writes, of_writes, strict=True):
                move_back(how, dafter, write, wanted, back)
        if dy is not None:
            x, y, dq, ds = read_back(how, S, q, s, met, dy, of_q, of_s)
            if of_S and how.wide:
                dS = added(None if dS is None else dS.mT, y.mT, x).mT
            elif of_S:
                dS = added(dS, x.mT, y)
            for back, write, wanted, x in zip(dwrites, writes, of_writes, met[1:], strict=True):
                dq = scores_back(q, dy, x, dq, write, wanted, back)
        return None, dS, dq, ds, down, *dflows, *[x for back in dwrites for x in back]


def parted(how: Along, given: Any) -> tuple[Any, list[Any]]:
    """Cut what is given into numbers between states, and each write."""
    at = len(how.flows) if how.move else 0
    return given[:at], [given[i : i + 4] for i in range(at, len(given), 4)]


def by_state(x: Tensor, numbers: Tensor | None) -> Tensor:
    """Each state's number times x, side by side: [G, C, d] -> [G, C, n * d]."""
    return x if numbers is None else (x.unsqueeze(2) * numbers).flatten(2)


def over_states(x: Tensor, numbers: Tensor | None) -> Tensor:
    """The sum of what stands side by side, each times its state's number."""
    if numbers is None:
        return x
    first, *more = zip(x.chunk(numbers.shape[2], 2), numbers.unbind(2), strict=True)
    total = first[0] * first[1]
    for part, number in more:
        total = torch.addcmul(total, part, number)
    return total


def products(parts: Tensor, x: Tensor) -> Tensor:
    """The products with x of what stands side by side, token by token [G, C, n, 1]."""
    return (parts.unflatten(2, (-1, x.shape[2])) * x.unsqueeze(2)).sum(-1, keepdim=True)


def by_states(how: Along, S: Tensor) -> Tensor:
    """States apart: [G, n, d_k, d_v], or [G, n, d_v, d_k] where they are wide."""
    return (S.mT if how.wide else S).unflatten(-2, (how.n, -1))


def state_in(how: Along, S: Tensor, j: int) -> Tensor:
    """State j, as a view."""
    axis = -1 if how.wide else -2
    size = S.shape[axis] // how.n
    return S.narrow(axis, j * size, size)


def flowed(how: Along, pairs: Any, S: Tensor, own: Tensor | None, flows: Any) -> Tensor:
    """sum_a w_aj M_a of each state j."""
    if how.n == 1:
        return S.clone() if own is None else S * own
    after = (by_states(how, S) * own.unsqueeze(-1)).flatten(1, 2)
    after = after.mT if how.wide else after
    for (a, j), number in zip(pairs, flows, strict=True):
        state_in(how, after, j).addcmul_(state_in(how, S, a), number)
    return after


def flows_back(how: Along, S: Tensor, dafter: Tensor, of_own: bool, needs: Any) -> tuple[Any, Any]:
    """The gradients of the numbers in `flowed`."""
    if how.n == 1 or not (of_own or any(needs)):
        return (S * dafter).sum((1, 2)).view(-1, 1, 1) if of_own else None, [None] * len(needs)
    pairs = by_states(how, S).flatten(2) @ by_states(how, dafter).flatten(2).mT
    own = pairs.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return own, [pairs[:, a, j, None, None] for a, j in how.flows]


def with_first(how: Along, S: Tensor, dafter: Tensor | None, dfirst: Tensor | None) -> Tensor:
    """The gradient of all states, with that of the first by itself."""
    if dafter is not None and how.wide:
        # it lies in memory as the states do
        dafter = dafter.mT.contiguous().mT
    if dfirst is None:
        return dafter
    total = torch.zeros_like(S) if dafter is None else dafter.clone()
    state_in(how, total, 0).add_(dfirst)
    return total


def move_back(how: Along, dafter: Tensor, write: Any, needs: Any, back: list[Any]) -> None:
    """Add to the gradients of a write what comes from the states after it."""
    e, b, _, left = write
    of_e, of_b, _, of_left = needs
    if how.wide:
        dafter, small, large, of_small, of_large = dafter.mT, e, b, of_e, of_b
    else:
        small, large, of_small, of_large = b, e, of_b, of_e
    dsmall = dlarge = None
    if of_large and not of_small and of_left:
        # what the numbers are given then needs no product of its own
        asked = torch.cat([matrix_products(small, x) for x in dafter.chunk(how.n, -2)], -1)
        dlarge, back[3] = over_states(asked, left), products(asked, large)
    else:
        dlarge = matrix_products(by_state(small, left), dafter) if of_large else None
        if of_small or of_left:
            asked = matrix_products(large, dafter.mT)
            dsmall = over_states(asked, left) if of_small else None
            back[3] = products(asked, small) if of_left else None
    back[:2] = (dsmall, dlarge) if how.wide else (dlarge, dsmall)


def read_along(how: Along, S: Tensor, q: Tensor, s: Any, writes: Any) -> tuple[Tensor, list[Any]]:
    """The answers, and for gradients what met the states and the scores of each write."""
    if how.wide:
        asked = matrix_products(q, S)
        y, met = over_states(asked, s), [None if s is None else asked]
    else:
        y, met = matrix_products(by_state(q, s), S), [None]
    for e, b, table, _ in writes:
        met.append(None if table is None else matrix_products(q, b.mT))
        y = y if table is None else added(y, met[-1] * table, e)
    return y, met


def read_back(
    how: Along, S: Tensor, q: Tensor, s: Any, met: Any, dy: Tensor, of_q: bool, of_s: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of what the states were asked: theirs is x^T y, then of queries and numbers."""
    if how.wide:
        y = by_state(dy, s)
        dq = matrix_products(y, S.mT) if of_q else None
        return q, y, dq, products(met[0], dy) if of_s else None
    asked = matrix_products(dy, S.mT) if of_q or of_s else None
    dq = over_states(asked, s) if of_q else None
    return by_state(q, s), dy, dq, products(asked, q) if of_s else None


def scores_back(
    q: Tensor, dy: Tensor, scores: Any, dq: Any, write: Any, needs: Any, back: list[Any]
) -> Tensor | None:
    """Add to the gradients of a write what comes from its answers; return that of the queries."""
    e, b, table, _ = write
    of_e, of_b, of_table, _ = needs
    if table is None:
        return dq
    if of_e:
        back[0] = added(back[0], (table * scores).mT, dy)
    if dq is None and not of_b and not of_table:
        return dq
    dscores = matrix_products(dy, e.mT)
    back[2] = dscores * scores if of_table else None
    dscores = dscores * table
    if of_b:
        back[1] = added(back[1], dscores.mT, q)
    return dq if dq is None else added(dq, dscores, b)


def added(total: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """total + x y, None for nothing; what was made for this alone takes it in."""
    if total is None:
        return matrix_products(x, y)
    return torch.baddbmm(total, x, y) if torch.is_grad_enabled() else total.baddbmm_(x, y)
