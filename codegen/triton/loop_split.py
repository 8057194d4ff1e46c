"""Which axis of the states may be split over programs, and the graph of one program's part.

In: the graph of one token. Out: the same graph, whose leaves say of which axes a program has some
entries alone: rows that never meet one another go to different programs. What is the same for all
rows every program computes for itself.

An axis is followed from the states on. A value that meets it must have it too, so its leaves are
taken in part; where something sums over it, or needs both its parts and its whole, it stays whole.
On the way back a sum over it is a program's share of a gradient, and shares are added in the end:
gradients are linear in what reaches them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nlc.codegen.triton.loop_graph import LoopGraph, leaf_stream
from nlc.codegen.triton.operations import Unprintable

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import Axis, Shape, sizes

Places = frozenset[int]
NONE: Places = frozenset()


# a row of so many channels is one program's
SHORT = 128


class Whole(Exception):
    """An axis cannot be split."""


@dataclass
class Grown(Exception):
    """A state has to be split as well."""

    word: str
    places: Places


@dataclass
class Splitter:
    """Finds one program's part of values; places are counted from the right.

    `held` says of which axes a program has a part, by leaf; other leaves are taken as they are
    needed, unless they are `fixed`. `shares` allows sums over an axis of which a program has a
    part.
    """

    graph: Graph
    lead: Shape
    size: int
    held: dict[str, Places]
    fixed: bool = False
    shares: bool = False
    made: dict[tuple[Expr, Places], tuple[Expr, Places]] = field(default_factory=dict)

    def part(self, root: Expr, want: Places = NONE) -> tuple[Expr, Places]:
        """Give a program's part of a value, and the axes of which it is one."""
        for node in postorder([root]):
            self._part(node, NONE)
        return self._part(root, want)

    def parts(self, found: dict[Expr, Expr]) -> dict[Expr, Expr]:
        """Give a program's part of the gradient of each leaf, as it has that leaf."""
        made = {}
        for leaf, slope in found.items():
            has = frozenset(leaf.attr("split"))
            want = frozenset(p for p in has if self.long(slope.shape, p))
            made[leaf], places = self.part(slope, want)
            if not places <= has:
                raise Whole
        return made

    def _part(self, node: Expr, want: Places) -> tuple[Expr, Places]:
        key = (node, want)
        if key not in self.made:
            made, places = self._new(node, want)
            if len(places) > 1 or not want <= places:
                raise Whole
            self.made[key] = made, places
        return self.made[key]

    def long(self, shape: Shape, place: int) -> bool:
        """Say whether a value has entries along an axis of its own."""
        return (
            len(shape) >= -place
            and shape[place].size > 1
            and not any(shape[place] is axis or shape[place] == axis for axis in self.lead)
        )

    def _new(self, node: Expr, want: Places) -> tuple[Expr, Places]:
        if any(self.long(node.shape, p) and node.shape[p].size != self.size for p in want):
            raise Whole
        match node.op:
            case "const":
                return node, NONE
            case "stream":
                return self._leaf(node, want)
            case "index" | "identity":
                if not want:
                    return node, NONE
                words = {**dict(node.attrs), "split": tuple(want)}
                return self.graph.make(node.op, **words), want
            case "let" | "stop":
                return self._with(node, [want], lambda got: got[0])
            case "transpose":
                turn = {-1: -2, -2: -1}
                wanted = frozenset(turn.get(p, p) for p in want)
                return self._with(
                    node, [wanted], lambda got: frozenset(turn.get(p, p) for p in got[0])
                )
            case "unsqueeze":
                return self._moved(node, want, unsqueezed(node))
            case "reshape":
                return self._moved(node, want, reshaped(node))
            case "permute":
                return self._moved(node, want, permuted(node))
            case "outer":
                return self._outer(node, want)
            case "matvec" | "matmul":
                return self._product(node, want)
            case "dot":
                return self._dot(node, want)
            case "diag":
                if want:
                    raise Whole
                return self._with(node, [NONE], lambda got: got[0] and _refused())
        kind = OPERATIONS[node.op].kind
        if kind == "elementwise":
            return self._elementwise(node, want)
        if kind == "reduction":
            return self._reduction(node, want)
        raise Unprintable(f"kernels of loops have no `{node.op}`")

    def _leaf(self, node: Expr, want: Places) -> tuple[Expr, Places]:
        word = node.attr("name")
        has = frozenset(node.attr("split"))
        own = self.held.get(word, has)
        if word in self.held or self.fixed or has:
            if not want <= own:
                if word in self.held:
                    raise Grown(word, want)
                raise Whole
            want = own
        if want == has:
            return node, want
        return leaf_stream(self.graph, word, node.shape, tuple(want)), want

    def _with(self, node: Expr, wants: list[Places], result: object) -> tuple[Expr, Places]:
        got = [self._part(arg, want) for arg, want in zip(node.args, wants, strict=True)]
        args = tuple(made for made, _ in got)
        places = result([found for _, found in got])  # type: ignore[operator]
        if all(a is b for a, b in zip(args, node.args, strict=True)):
            return node, places
        return self.graph.make(node.op, *args, span=node.span, **dict(node.attrs)), places

    def _moved(self, node: Expr, want: Places, moves: dict[int, int]) -> tuple[Expr, Places]:
        """An axis stands at another place afterwards; `moves` are from old places to new."""
        back = {new: old for old, new in moves.items()}
        wanted = frozenset(back[p] for p in want if p in back)
        if len(wanted) < len(want):
            raise Whole
        return self._with(node, [wanted], lambda got: frozenset(moves[p] for p in got[0]))

    def _elementwise(self, node: Expr, want: Places) -> tuple[Expr, Places]:
        places = set(want)
        for arg in node.args:
            places |= self._part(arg, NONE)[1]
        wants = [frozenset(p for p in places if self.long(a.shape, p)) for a in node.args]
        return self._with(node, wants, lambda got: frozenset(p for g in got for p in g))

    def _reduction(self, node: Expr, want: Places) -> tuple[Expr, Places]:
        (x,) = node.args
        over = {a % len(x.shape) - len(x.shape) for a in node.attr("axes")}
        keeps = node.op in ("softmax", "unit", "rmsnorm", "layernorm")
        kept = keeps or (node.has("keep") and bool(node.attr("keep")))
        moves = {p: p for p in range(-len(x.shape), 0) if p not in over}
        if not kept:
            moves = {p: p + sum(o > p for o in over) for p in moves}
        back = {new: old for old, new in moves.items()}
        wanted = frozenset(back[p] for p in want if p in back)

        def result(got: list[Places]) -> Places:
            self._summed(node.op, got[0] & over)
            return frozenset(moves[p] for p in got[0] if p in moves)

        return self._with(node, [wanted], result)

    def _summed(self, op: str, over: Places | set[int]) -> None:
        if over and not (self.shares and op in ("sum", "dot", "matvec", "matmul")):
            raise Whole

    def _outer(self, node: Expr, want: Places) -> tuple[Expr, Places]:
        if any(p < -2 for p in want):
            raise Whole
        left = frozenset({-1} if -2 in want else ())
        right = frozenset({-1} if -1 in want else ())

        def result(got: list[Places]) -> Places:
            found = {-2 if p == -1 else p - 1 for p in got[0]}
            return frozenset(found | {-1 if p == -1 else p - 1 for p in got[1]})

        return self._with(node, [left, right], result)

    def _dot(self, node: Expr, want: Places) -> tuple[Expr, Places]:
        if want:
            raise Whole
        places = {p for arg in node.args for p in self._part(arg, NONE)[1]}
        wants = [frozenset(p for p in places if self.long(a.shape, p)) for a in node.args]

        def result(got: list[Places]) -> Places:
            found = {p for g in got for p in g}
            self._summed("dot", found & {-1})
            return frozenset(p + 1 for p in found if p != -1)

        return self._with(node, wants, result)

    def _product(self, node: Expr, want: Places) -> tuple[Expr, Places]:
        """A x, or A B: what both have of the axis that is summed over has to be the same."""
        vector = node.op == "matvec"
        left, right = node.args
        inner = -1 if vector else -2
        wanted = frozenset({-2} if (-1 if vector else -2) in want else ())
        other = frozenset({-1} if not vector and -1 in want else ())
        if any(p < inner for p in want):
            raise Whole
        summed = -1 in self._part(left, wanted)[1] or inner in self._part(right, other)[1]
        if summed:
            wanted, other = wanted | {-1}, other | {inner}

        def result(got: list[Places]) -> Places:
            self._summed(node.op, frozenset({-1}) if summed else NONE)
            rows = {p + 1 if vector else p for p in got[0] if p != -1}
            return frozenset(rows | {p for p in got[1] if p == -1 and not vector})

        return self._with(node, [wanted, other], result)


def _refused() -> Places:
    raise Whole


def unsqueezed(node: Expr) -> dict[int, int]:
    """Where the axes of an `unsqueeze` go, by place."""
    rank = len(node.shape)
    new = {a % rank for a in node.attr("axes")}
    kept = [i - rank for i in range(rank) if i not in new]
    return dict(zip(range(-len(kept), 0), kept, strict=True))


def reshaped(node: Expr) -> dict[int, int]:
    """Where the axes of a `reshape` go that adds or drops axes of size 1 alone."""
    (x,) = node.args
    last, axes = int(node.attr("last")), node.attr("axes")
    moves = {p: p + last - len(axes) for p in range(-len(x.shape), -last)}
    old = [p for p in range(-last, 0) if x.shape[p].size > 1]
    new = [p for p in range(-len(axes), 0) if axes[p].size > 1]
    if [x.shape[p].size for p in old] != [axes[p].size for p in new]:
        raise Unprintable("it cuts an axis into several")
    return moves | dict(zip(old, new, strict=True))


def permuted(node: Expr) -> dict[int, int]:
    """Where the axes of a `permute` go."""
    order = node.attr("order")
    rank = len(order)
    return {order[i] % rank - rank: i - rank for i in range(rank)}


def split(found: LoopGraph) -> tuple[LoopGraph, Axis | None, dict[str, Places]]:
    """Split the axis that takes most from each program, and say which states have it."""
    best = max(found.carried, key=lambda c: _count(c.shape[len(found.lead) :]))
    own = best.shape[len(found.lead) :]
    for place in range(-len(own), 0):
        axis = own[place]
        if axis.size <= (SHORT if len(own) == 1 else 1):
            continue
        made = _attempt(found, {best.word: frozenset({place})}, axis.size)
        if made is not None:
            return made[0], axis, made[1]
    return found, None, {c.word: NONE for c in found.carried}


def _attempt(
    found: LoopGraph, held: dict[str, Places], size: int
) -> tuple[LoopGraph, dict[str, Places]] | None:
    words = {c.word: held.get(c.word, NONE) for c in found.carried}
    for _ in range(2 * len(words) + 1):
        splitter = Splitter(found.graph, found.lead, size, dict(words))
        try:
            for carried, value in zip(found.carried, found.after, strict=True):
                grown = splitter.part(value)[1] - words[carried.word]
                if grown:
                    raise Grown(carried.word, grown)
            after = [
                splitter.part(
                    value, frozenset(p for p in words[c.word] if splitter.long(value.shape, p))
                )[0]
                for c, value in zip(found.carried, found.after, strict=True)
            ]
            rows = [(name, splitter.part(value)[0]) for name, value in found.rows]
            comments = {
                new: found.comments[node]
                for (node, _), (new, _) in splitter.made.items()
                if node in found.comments
            }
            made = replace(found, after=tuple(after), rows=tuple(rows), comments=comments)
            return made, words
        except Whole:
            return None
        except Grown as more:
            if words[more.word]:
                return None
            words[more.word] = more.places
    return None


def _count(shape: Shape) -> int:
    total = 1
    for size in sizes(shape):
        total *= size
    return total
