"""Known writes and gates of one number a token, tile by tile; what a module uses is copied.

What `library_tiles` composes of many operations stands here as two that have their gradients by
hand: how the states move over a tile, and how they are read in it. Nothing as large as a state is
made on the way.

In: states M_j^T [G, d_k, d_v], for G rows and copies, writes e_r [G, C, d_v] along b_r [G, C, d_k];
numbers F(t, i) between states as `Numbers` has them. Out: states and answers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Numbers:
    """F(t, i) of gates that are one number a token, of n chunks of one tile each.

    What is asked for is made for all chunks at once, and cut where it is that of one `chunk`. None
    stands for 0, and 1.0 for gates that are 1.
    """

    def __init__(self, D, rows, n):
        self.D, self.rows, self.n = D, rows, n
        self.made, self.cut = {}, {}
        self.chunk = None

    def of_chunks(self, rows, n):
        """The same, of each chunk alone."""
        found = [Numbers(self.D, rows, n) for _ in range(n)]
        for chunk, one in enumerate(found):
            one.made, one.cut, one.chunk = self.made, self.cut, chunk
        return found

    def general(self):
        """The gates as all of `library_gates` are."""
        if self.chunk is None:
            return self.D
        if "general" not in self.cut:
            self.cut["general"] = self.D.of_chunks(self.rows, self.n)
        return self.cut["general"][self.chunk]

    def reach(self, into, j, late=True):
        """F(t, i), or F(t-1, i): what is in state j of a write into some states [G, C, C]."""
        return self.given("reach", into, j, late)

    def since(self, a, j, late=True):
        """F(t, 0), or F(t-1, 0): what is left of the first state a in state j [G, C, 1]."""
        return self.given("since", (a,), j, late)

    def left(self, into, j):
        """F(C, i): what is left of a write at the tile's end [G, C, 1]."""
        return self.given("left", into, j, True)

    def whole(self, a, j):
        """F(C, 0) [G, 1, 1]."""
        return self.given("whole", (a,), j, True)

    def given(self, kind, into, j, late):
        """Make a table for all chunks, once, and cut it, once."""
        key = (kind, into, j, late)
        if key not in self.made:
            self.made[key] = self.table(*key)
        found = self.made[key]
        if self.chunk is None or not isinstance(found, Tensor):
            return found
        if key not in self.cut:
            by_chunk = found.unflatten(0, (self.rows, self.n, -1)).transpose(0, 1)
            self.cut[key] = by_chunk.flatten(1, 2).unbind(0)
        return self.cut[key][self.chunk]

    def table(self, kind, into, j, late):
        if self.D.still and kind != "reach":
            return 1.0
        F = self.D.numbers(into, j)
        if F is None:
            return None
        match kind:
            case "left":
                return F[0, :, -1, 1:, None]
            case "whole":
                return F[0, :, -1:, :1]
        F = F[0, :, 1:] if late else F[0, :, :-1]
        return F[..., :1] if kind == "since" else F[..., 1:].contiguous()


class Tile(NamedTuple):
    """A course over one tile: as `Tiles` of one tile, with numbers for gates, states apart."""

    gates: Numbers
    writes: list[Tensor]  # e of each write [G, C, d_v]
    keys: list[list[tuple[Tensor, tuple[int, ...]]]]  # b of each write [G, C, d_k]
    starts: list[Tensor]  # M_j^T before the tile [G, d_k, d_v]
    front: tuple[int, ...]  # B, C, *lead


def in_rows(x: Tensor, front: tuple[int, ...]) -> Tensor:
    """Put the tokens of each row and copy together: [B, C, *lead, d] -> [G, C, d]."""
    x = x if x.shape[:-1] == front else x.expand(*front, x.shape[-1])
    return x if len(front) == 2 else x.movedim(1, -2).reshape(-1, front[1], x.shape[-1])


def from_rows(y: Tensor, front: tuple[int, ...]) -> Tensor:
    """Undo `in_rows`."""
    if len(front) == 2:
        return y
    return y.view(front[0], *front[2:], *y.shape[1:]).movedim(-2, 1)


def move_tile(
    writes: list[Any], D: Numbers, front: tuple[int, ...], states: list[Tensor]
) -> tuple[Tile, list[Tensor]]:
    """Move over one tile: its course, and the states after it."""
    like, n = states[0], range(len(states))
    d_k, d_v = like.shape[-2:]

    def rows(x: Tensor, d: int) -> Tensor:
        x = x.to(like.dtype)
        return in_rows(x if x.shape[-1] == d else x.expand(*x.shape[:-1], d), front)

    E = [rows(like.new_zeros(1) if w.u is None else w.u, d_v) for w in writes]
    keys = [[(rows(b, d_k), into) for b, into in w.b] for w in writes]
    flows = {(a, j): w for j in n for a in n if (w := D.whole(a, j)) is not None}
    pairs = [(r, b, into) for r, found in enumerate(keys) for b, into in found]
    goes = {
        (r, k, j): left
        for k, (r, _, into) in enumerate(pairs)
        for j in n
        if (left := D.left(into, j)) is not None
    }
    plan = (tuple(flows), tuple(goes), len(states), len(E), len(pairs))
    after = MoveTile.apply(
        plan, *states, *numbers(flows.values()), *E, *[b for _, b, _ in pairs],
        *numbers(goes.values()),
    )  # fmt: skip
    return Tile(D, E, keys, states, front), list(after)


def numbers(of: Any) -> list[Tensor | None]:
    """Tables as the functions below take them: None for 1."""
    return [x if isinstance(x, Tensor) else None for x in of]


def parted(given: Any, *counts: int) -> list[Any]:
    """Cut a tuple into tuples of these lengths, and the rest."""
    found = []
    for count in counts:
        found.append(given[:count])
        given = given[count:]
    return [*found, given]


def times(x: Tensor, number: Tensor | None) -> Tensor:
    """x times numbers, None for 1."""
    return x if number is None else x * number


def plus(total: Tensor | None, x: Tensor, number: Tensor | None = None) -> Tensor:
    """total + number * x, None for nothing and for 1."""
    if total is None:
        return times(x, number)
    return total + x if number is None else torch.addcmul(total, x, number)


class MoveTile(torch.autograd.Function):
    """M_j <- sum_a w_aj M_a + sum_r (l_rj b_r)^T e_r, with numbers w and l."""

    @staticmethod
    def forward(ctx, plan, *given):
        ctx.plan = plan
        ctx.save_for_backward(*given)
        flows, goes, n, *counts = plan
        M, w, e, b, left = parted(given, n, len(flows), *counts)
        after = [None] * n
        for (a, j), number in zip(flows, w, strict=True):
            if after[j] is None:
                after[j] = M[a].clone() if number is None else M[a] * number
            else:
                after[j] += times(M[a], number)
        for (r, k, j), number in zip(goes, left, strict=True):
            # the numbers go with what is smaller
            small = e[r].shape[-1] < b[k].shape[-1]
            x = b[k] if small else times(b[k], number)
            y = times(e[r], number) if small else e[r]
            after[j] = torch.bmm(x.mT, y) if after[j] is None else after[j].baddbmm_(x.mT, y)
        return tuple(torch.zeros_like(M[0]) if x is None else x for x in after)

    @staticmethod
    def backward(ctx, *grads):
        flows, goes, n, *counts = ctx.plan
        counts = n, len(flows), *counts
        M, w, e, b, left = parted(ctx.saved_tensors, *counts)
        _, of_w, of_e, of_b, of_left = parted(ctx.needs_input_grad[1:], *counts)
        dM, de, db = [None] * n, [None] * len(e), [None] * len(b)
        dw, dleft = [None] * len(w), [None] * len(left)
        for at, (a, j) in enumerate(flows):
            dM[a] = plus(dM[a], grads[j], w[at])
            if of_w[at]:
                dw[at] = (M[a] * grads[j]).sum((-2, -1), keepdim=True)
        for at, (r, k, j) in enumerate(goes):
            x = torch.bmm(b[k], grads[j]) if of_e[r] else None
            y = torch.bmm(e[r], grads[j].mT) if of_b[k] or of_left[at] else None
            de[r] = de[r] if x is None else plus(de[r], x, left[at])
            db[k] = plus(db[k], y, left[at]) if of_b[k] else None
            if of_left[at]:
                short = x is not None and x.shape[-1] < y.shape[-1]
                dleft[at] = (x * e[r] if short else y * b[k]).sum(-1, keepdim=True)
        return None, *dM, *dw, *de, *db, *dleft


def read_tile(q: Tensor, path: Tile, late: bool = True, state: int = 0) -> Tensor:
    """M_t q_t (late), or M_{t-1} q_t: q [B, C, *lead, d_k] -> [B, C, *lead, d_v]."""
    D, like = path.gates, path.starts[0]
    first = {
        a: since for a in range(len(path.starts)) if (since := D.since(a, state, late)) is not None
    }
    pairs = [
        (e, b, reach)
        for e, keys in zip(path.writes, path.keys, strict=True)
        for b, into in keys
        if (reach := D.reach(into, state, late)) is not None
    ]
    flat = [x for pair in pairs for x in pair]
    starts = [path.starts[a] for a in first]
    q_rows = in_rows(q.to(like.dtype), path.front)
    y = ReadTile.apply(len(starts), q_rows, *starts, *numbers(first.values()), *flat)
    return from_rows(y, path.front).to(q.dtype)


class ReadTile(torch.autograd.Function):
    """y = sum_a s_a (q M_a^T) + sum_r (T_r * q b_r^T) e_r, with numbers s and tables T."""

    @staticmethod
    def forward(ctx, n, q, *given):
        M, s, rest = parted(given, n, n)
        wide, y, met = M[0].shape[-2] > M[0].shape[-1], None, []
        for start, number in zip(M, s, strict=True):
            if wide or number is None:
                met.append(torch.bmm(q, start))
                y = plus(y, met[-1], number)
            else:
                x = q * number
                y = torch.bmm(x, start) if y is None else y.baddbmm_(x, start)
        for e, b, table in triples(rest):
            met.append(torch.bmm(q, b.mT))
            y = added(y, met[-1] * table, e)
        ctx.n = n
        ctx.save_for_backward(q, *given, *met)
        return y

    @staticmethod
    def backward(ctx, dy):
        q, *given = ctx.saved_tensors
        M, s, rest = parted(given, ctx.n, ctx.n)
        of_q, *needs = ctx.needs_input_grad[1:]
        _, of_s, of_rest = parted(needs, ctx.n, ctx.n)
        wide, dq, dM, ds, of_writes = M[0].shape[-2] > M[0].shape[-1], None, [], [], []
        met = list(rest[len(of_rest) :])
        if torch.is_grad_enabled():
            # this is differentiated again, and then what the states and writes met hangs on them
            met = [
                torch.bmm(q, x) for x, number in zip(M, s, strict=True) if wide or number is None
            ]
            met += [torch.bmm(q, b.mT) for _, b, _ in triples(rest[: len(of_rest)])]
        for at, (start, number) in enumerate(zip(M, s, strict=True)):
            if wide or number is None:
                y, answer = times(dy, number), met.pop(0)
                x = q
                dq = added(dq, y, start.mT) if of_q else None
                ds.append((dy * answer).sum(-1, keepdim=True) if of_s[at] else None)
            else:
                x, y = q * number, dy
                asked = torch.bmm(dy, start.mT) if of_q or of_s[at] else None
                dq = plus(dq, asked, number) if of_q else None
                ds.append((q * asked).sum(-1, keepdim=True) if of_s[at] else None)
            dM.append(torch.bmm(x.mT, y))
        for (e, b, table), (of_e, of_b, of_table) in zip(
            triples(rest[: len(of_rest)]), triples(of_rest), strict=True
        ):
            scores = met.pop(0)
            de = torch.bmm((table * scores).mT, dy) if of_e else None
            dscores = torch.bmm(dy, e.mT) if of_q or of_b or of_table else None
            dtable = dscores * scores if of_table else None
            dscores = dscores * table if of_q or of_b else None
            dq = torch.baddbmm(dq, dscores, b) if of_q else None
            of_writes += [de, torch.bmm(dscores.mT, q) if of_b else None, dtable]
        return None, dq, *dM, *ds, *of_writes


def added(total: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """total + x y, None for nothing."""
    return torch.bmm(x, y) if total is None else torch.baddbmm(total, x, y)


def triples(x: Any) -> list[Any]:
    """Cut a list into threes."""
    return [x[i : i + 3] for i in range(0, len(x), 3)]
