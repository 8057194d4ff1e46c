"""Products of gates that are one number a token, over chunks of one tile each; copied as used.

In: gates D_mj from state m into state j. Out: `Numbers`, which has F(t, i) = D_{i+1} ... D_t for
all chunks at once, in the shapes in which `library_known` uses it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nlc.codegen.library_gates import gate_tiles


class Numbers:
    """F(t, i) of gates that are one number a token, of n chunks of one tile each.

    What is asked for is made for all chunks at once. None stands for a table that is 0, and for
    numbers that are 1.
    """

    def __init__(self, kind, gates, front, like, rows, n):
        self.rows, self.n, self.states = rows, n, range(len(gates))
        self.all = lambda: kind.of(gates, front, front[1], like)
        # whether it is 1 throughout
        self.still = len(gates) == 1 and isinstance(gates[0][0], float) and gates[0][0] == 1.0
        own = {(j, j) for j in self.states}
        pairs = own | {(a, j) for a in self.states for j in self.states if gates[a][j] is not None}
        self.gates = {
            (a, j): gate_tiles(gates[a][j], front, front[1], like, 0, 1.0)[0]
            for a, j in sorted(pairs)
        }
        # which states flow into which others in the end
        for m in self.states:
            pairs |= {(a, j) for a, b in pairs for c, j in pairs if b == c == m}
        self.flows = tuple(sorted(pairs - own))
        self.made, self.cut = {}, {}

    def of_chunks(self, rows, n):
        """The same, of each chunk alone."""
        return [NumbersOfChunk(self, chunk) for chunk in range(n)]

    def general(self):
        """The gates as all of `library_gates` are."""
        if "general" not in self.made:
            self.made["general"] = self.all()
        return self.made["general"]

    def reach(self, into, j, late=True):
        """F(t, i), or F(t-1, i): what is in state j of a write into some states [G, C, C]."""
        return self.given("reach", into, j, late)

    def since(self, j, late=True):
        """F(t, 0), or F(t-1, 0): what is left of each first state in state j [G, C, n, 1]."""
        return self.given("since", (), j, late)

    def left(self, into):
        """F(C, i): what is left of a write in each state at the tile's end [G, C, n, 1]."""
        return self.given("left", into, 0, True)

    def own(self):
        """F(C, 0) of each state in itself [G, n, 1]."""
        return self.given("own", (), 0, True)

    def whole(self, a, j):
        """F(C, 0) of state a in another state j [G, 1, 1]."""
        return self.given("whole", (a,), j, True)

    def given(self, *key):
        """Make a table, once."""
        if key not in self.made:
            self.made[key] = self.table(*key)
        return self.made[key]

    def table(self, kind, into, j, late):
        if kind == "parts":
            return TableParts.apply(self.general().numbers(into, j)[0])
        if self.still:
            like = self.gates[0, 0]
            one = like.new_ones(like.shape[1], like.shape[1])
            return (
                one.tril(0 if late else -1).expand(len(like), -1, -1) if kind == "reach" else None
            )
        since, left, inside = self.course(into if kind in ("reach", "left") else None)
        match kind:
            case "since":
                return (since[:, 1:, j] if late else since[:, :-1, j]).unsqueeze(-1)
            case "left":
                return left.unsqueeze(-1)
            case "own":
                return since[:, -1].diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
            case "whole":
                return since[:, -1, j, into[0], None, None]
        if j not in into and not any((a, j) in self.flows for a in into):
            return None
        found = inside[j].contiguous()
        return found if late else F.pad(found[:, :-1], (0, 0, 1, 0))

    def course(self, into):
        """All of F(t, 0), and F(t, i) of writes into some states; None for what is there."""
        found = [key for key in self.made if key[0] == "course"]
        key = (found or [("course", ())])[0] if into is None else ("course", into)
        if key not in self.made:
            # where rows are few, an operation for each token takes longer than whole tables
            few = len(self.gates[0, 0]) < 16
            self.made[key] = self.from_tables(key[1]) if few else self.token_by_token(key[1])
        return self.made[key]

    def token_by_token(self, into):
        n, pairs = len(self.states), tuple(self.gates)
        since, left, *inside = RunningNumbers.apply(n, into, pairs, *self.gates.values())
        return since, left, inside

    def from_tables(self, into):
        pairs = {(j, j) for j in self.states} | set(self.flows)
        parts = {pair: self.given("parts", pair[:1], pair[1], True) for pair in sorted(pairs)}
        inside, since, left = [], [], []
        for j in self.states:
            none = [torch.zeros_like(x) for x in parts[j, j]]
            since.append(torch.stack([parts.get((a, j), none)[1] for a in self.states], -1))
            found = [parts[a, j] for a in into if (a, j) in pairs] or [none]
            here, _, last = (sum(some[1:], some[0]) for some in zip(*found, strict=True))
            inside.append(here)
            left.append(last)
        return torch.stack(since, 2), torch.stack(left, 2), inside


class NumbersOfChunk(Numbers):
    """As `Numbers`, cut where it is that of one chunk."""

    def __init__(self, of, chunk):
        self.of, self.chunk, self.flows = of, chunk, of.flows

    def general(self):
        """The gates as all of `library_gates` are."""
        if "general" not in self.of.cut:
            self.of.cut["general"] = self.of.general().of_chunks(self.of.rows, self.of.n)
        return self.of.cut["general"][self.chunk]

    def given(self, *key):
        """Cut a table, once."""
        found, of = self.of.given(*key), self.of
        if found is None:
            return None
        if key not in of.cut:
            by_chunk = found.unflatten(0, (of.rows, of.n, -1)).transpose(0, 1)
            of.cut[key] = by_chunk.flatten(1, 2).unbind(0)
        return of.cut[key][self.chunk]


class TableParts(torch.autograd.Function):
    """What is taken from a table [N, 1 + C, 1 + C], its first row but for i = 0 being 0."""

    @staticmethod
    def forward(ctx, table):
        return table[:, 1:, 1:].contiguous(), table[:, :, 0].clone(), table[:, -1, 1:].clone()

    @staticmethod
    def backward(ctx, inside, first, last):
        grad = F.pad(inside, (1, 0, 1, 0))
        grad[:, :, 0] = first
        grad[:, -1, 1:] += last
        return grad


class RunningNumbers(torch.autograd.Function):
    """F(t, i), token after token, of first states and of writes `into` some states.

    Gates [G, C, 1] lead from one state to another, as `pairs` say, and from each to itself. Gives
    what is left of each first state in each state [G, 1 + C, n, n], what is left of each write at
    the end [G, C, n], and what is in each state of each write, n of [G, C, C].
    """

    @staticmethod
    def forward(ctx, n, into, pairs, *gates):
        found = at_first(n, into, gates[0])
        rows = found.unbind(1)
        own, between = by_token(pairs, gates)
        for before, row, number, numbers in zip(rows, rows[1:], own, between, strict=False):
            row.addcmul_(before, number)
            for (a, j), other in numbers:
                row[:, j].addcmul_(before[:, a], other)
        ctx.how = n, into, pairs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(found, *gates)
        since, left, *inside = asked_of(found, n)
        return since.contiguous(), left.contiguous(), *inside

    @staticmethod
    def backward(ctx, *given):
        (n, into, pairs), (found, *gates) = ctx.how, ctx.saved_tensors
        if torch.is_grad_enabled():
            # this is differentiated again, and then nothing may be written in place
            again = asked_of(course_of(n, into, pairs, gates), n)
            return None, None, None, *gradients_again(again, gates, given)
        total = torch.zeros_like(found)
        for part, dx in zip(asked_of(total, n), given, strict=True):
            if dx is not None:
                part.add_(dx)
        rows = total.unbind(1)
        own, between = by_token(pairs, gates)
        for i in reversed(range(len(rows) - 1)):
            rows[i].addcmul_(rows[i + 1], own[i])
            for (a, j), other in between[i]:
                rows[i][:, a].addcmul_(rows[i + 1][:, j], other)
        after, before = total[:, 1:], found[:, :-1]
        dgates = [(after[:, :, j] * before[:, :, a]).sum(-1, keepdim=True) for a, j in pairs]
        return None, None, None, *dgates


def at_first(n, into, like):
    """The course before any gate: 1 where a state or a write begins [G, 1 + C, n, n + C]."""
    tokens = like.shape[1]
    one = like.new_zeros(1 + tokens, n, n + tokens)
    one[0, :, :n].fill_diagonal_(1)
    for j in into:
        one[1:, j, n:].fill_diagonal_(1)
    return one.repeat(like.shape[0], 1, 1, 1)


def asked_of(course, n):
    """What `RunningNumbers` gives of it all."""
    since, inside = course[..., :n], course[:, 1:, :, n:]
    return since, inside[:, -1].mT, *inside.unbind(2)


def by_token(pairs, gates):
    """The numbers of each token: of all states in themselves [G, n, 1], and between others."""
    of = dict(zip(pairs, gates, strict=True))
    own = torch.stack([g for (a, j), g in of.items() if a == j], 2).unbind(1)
    between = [[(pair, x) for x in g.unbind(1)] for pair, g in of.items() if pair[0] != pair[1]]
    return own, [*zip(*between, strict=True)] if between else [()] * len(own)


def course_of(n, into, pairs, gates):
    """The course again, for gradients of any order."""
    rows = list(at_first(n, into, gates[0]).unbind(1))
    own, between = by_token(pairs, gates)
    for i, numbers in enumerate(between):
        moved = list((rows[i] * own[i]).unbind(1))
        for (a, j), other in numbers:
            moved[j] = moved[j] + rows[i][:, a] * other
        rows[i + 1] = rows[i + 1] + torch.stack(moved, 1)
    return torch.stack(rows, 1)


def gradients_again(of, at, given):
    """The gradients of some values at others, to be differentiated again; None where none is."""
    pairs = [(y, dy) for y, dy in zip(of, given, strict=True) if dy is not None]
    needed = [x for x in at if x.requires_grad]
    ys, dys = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ys, needed, dys, create_graph=True, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in at]
