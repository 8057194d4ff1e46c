"""What a memory's copies write, said of one copy: the others are further rows of the batch.

In: normal forms, what their writes are made of, and the memory's leading axes. Out: the same
without those axes, or None where something reads across copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.normal_form import Affine, Write
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import ONE, Shape, sizes

# how many more axes than the result each argument has
RANKS = {
    "dot": (1, 1),
    "matvec": (1, 0),
    "matmul": (0, 0),
    "outer": (-1, -1),
    "diag": (-1,),
    "layernorm_slope": (0, 0),
    "let": (0,),
    "stop": (0,),
}


@dataclass(frozen=True)
class OneCopy:
    """Forms without leading axes; `leaves` has what stands for each argument there."""

    forms: list[tuple[str, Affine]]
    leaves: dict[Expr, Expr]


def one_copy(
    forms: list[tuple[str, Affine]], given: Collection[Expr], lead: Shape
) -> OneCopy | None:
    """Take the leading axes out of what forms write over the `given` arguments."""
    roots = [e for _, form in forms for e in of_writes(form)]
    graph, new, led = Graph(), dict[Expr, Expr](), dict[Expr, bool]()
    for number, expr in enumerate(given):
        led[expr] = leads(expr.shape, lead)
        shape = expr.shape[len(lead) :] if led[expr] else expr.shape
        new[expr] = graph.make("stream", name=f"{number}", shape=shape)
    leaves = dict(new)
    for node in postorder(roots, {id(expr) for expr in given}):
        led[node] = node.op == "state" or any(led[arg] for arg in node.args)
        args = tuple(new[arg] for arg in node.args)
        if not led[node] and node.op == "unsqueeze" and _spread(node, len(lead)):
            # all copies have it in common, and these axes were made to say so
            axes = tuple(a for a in node.attr("axes") if a >= len(lead) - len(node.shape))
            new[node] = (
                graph.make("unsqueeze", *args, span=node.span, axes=axes) if axes else args[0]
            )
            led[node] = True
            continue
        if not led[node]:
            new[node] = graph.make(node.op, *args, span=node.span, **dict(node.attrs))
            continue
        if not leads(node.shape, lead) or not _each(node, led, len(lead)):
            return None
        attrs = dict(node.attrs)
        if node.op == "state":
            attrs["shape"] = node.shape[len(lead) :]
        elif node.op == "apply":
            attrs["lead"] = 0
        made = graph.make(node.op, *args, span=node.span, **attrs)
        if sizes(made.shape) != sizes(node.shape[len(lead) :]):
            return None
        new[node] = made
    return OneCopy([(p, with_writes(form, new.__getitem__)) for p, form in forms], leaves)


def of_writes(form: Affine) -> list[Expr]:
    """List what the writes of a form are made of."""
    found: list[Expr | None] = []
    for write in form.writes:
        found += [*write.reads, *(c for _, c in write.earlier), write.offset, *write.targets]
    return [e for e in found if e is not None]


def _spread(node: Expr, lead: int) -> bool:
    """Say whether a value got axes of size 1 in front, where those of the copies are."""
    rank = len(node.shape)
    new = {a % rank for a in node.attr("axes")}
    return rank >= lead and set(range(lead)) <= new and all(a < 0 for a in node.attr("axes"))


def leads(shape: Shape, lead: Shape) -> bool:
    """Say whether the copies' axes stand in front of a value's own, or ones in their place."""
    front = shape[: len(lead)]
    return len(front) == len(lead) and all(
        a.fits(b) or a == ONE for a, b in zip(front, lead, strict=True)
    )


def _each(node: Expr, led: dict[Expr, bool], lead: int) -> bool:
    """Say whether an operation does to each copy what it does to all."""
    rank, kind = len(node.shape), OPERATIONS[node.op].kind
    if node.op == "state":
        return True
    if node.op == "apply":
        return bool(node.attr("lead") == lead) and all(led[arg] for arg in node.args)
    if kind == "elementwise" or node.op in ("concat", *RANKS):
        more = RANKS.get(node.op, (0,) * len(node.args))
        inner = not node.has("axes") or all(lead - rank <= a < 0 for a in node.attr("axes"))
        # the copies' axes meet each other alone
        return inner and all(
            len(arg.shape) == rank + n if led[arg] else len(arg.shape) <= rank + n - lead
            for arg, n in zip(node.args, more, strict=True)
        )
    behind = len(node.args[0].shape) - lead
    match node.op:
        case "transpose":
            return behind >= 2
        case "slice":
            return behind >= 1
        case "unsqueeze":
            return all(-(rank - lead) <= axis < 0 for axis in node.attr("axes"))
        case _:
            return kind == "reduction" and all(-behind <= a < 0 for a in node.attr("axes"))


def with_writes(form: Affine, new: Callable[[Expr], Expr]) -> Affine:
    """Put other expressions in the places of what the writes of a form are made of."""

    def one(expr: Expr | None) -> Expr | None:
        return None if expr is None else new(expr)

    def write(found: Write) -> Write:
        return replace(
            found,
            reads=tuple(map(one, found.reads)),
            offset=one(found.offset),
            targets=tuple(map(one, found.targets)),
            earlier=tuple((s, new(c)) for s, c in found.earlier),
        )

    return replace(form, writes=tuple(map(write, form.writes)))
