"""Time inside a block: `shift`, convolutions, and the same expression at an earlier token.

In: expressions. Out: expressions, with the histories noted that an executor has to keep.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder
from nlc.ir.operations import OPERATIONS
from nlc.ir.shape import show
from nlc.ir.show import show_expr
from nlc.ir.system import Equation, History
from nlc.semantics.names import numbered
from nlc.semantics.values import Readable
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


@dataclass
class Histories:
    """What a block remembers of earlier tokens; equal uses share a slot.

    `others` are the names of the block, which no slot may have: they share the state.
    """

    others: Container[str] = ()
    found: list[History] = field(default_factory=list)
    shifts: dict[tuple[int, int], str] = field(default_factory=dict)
    convs: dict[tuple[str, int], str] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    # a value, and the streams that hold it as it was 0, 1, 2, ... tokens ago
    chains: dict[int, list[Expr]] = field(default_factory=dict)

    def shift_slot(self, value: Expr, n: int) -> str:
        """Give the slot that holds a stream's last n tokens."""
        key = (id(value), n)
        if key not in self.shifts:
            self.shifts[key] = numbered("shift", self.uses, self.others, 1)
            self.found.append(History(self.shifts[key], n, value.shape))
        return self.shifts[key]

    def conv_slot(self, name: str, x: Expr, width: int) -> str:
        """Give the slot of a stream through a convolution: `conv_q`, `conv_q_1`."""
        place = (name, id(x))
        if place not in self.convs:
            self.convs[place] = numbered(name, self.uses, self.others)
            # of a width of 1 it is of no token, but there
            self.found.append(History(self.convs[place], width - 1, x.shape))
        return self.convs[place]


def shifted(block: BlockResolver, value: Expr, n: int, span: Span) -> Expr:
    """A stream of n tokens ago; the history it needs is noted."""
    slot = block.histories.shift_slot(value, n)
    return block.graph.make("shift", value, n=n, slot=slot, span=span)


# what holds a state of this token, and what changes from token to token
STATEFUL = ("variable", "state", "attend", "grad", "window")
TIMED = ("stream", "position", "shift", "conv", "due")


def earlier(block: BlockResolver, e: Expr, back: int, begun: Expr | None, span: Span) -> Expr:
    """An objective's expression with what it takes from the streams as it was some tokens ago.

    Streams, and what maps and reductions make of streams alone, become streams of their own,
    `k_2_ago = shift(k_1_ago)`, so that each token's are computed and kept once. States are those
    of this token. Where `begun` is 0 there was no such token and the value is not used; it is
    finite all the same, or its gradient would spoil others. 0 tokens ago needs no `begun`.
    """
    make = block.graph.make
    alone: dict[Expr, bool] = {}
    timed: dict[Expr, bool] = {}
    for node in postorder([e]):
        alone[node] = node.op not in STATEFUL and all(alone[arg] for arg in node.args)
        timed[node] = node.op in TIMED or any(timed[arg] for arg in node.args)
    fragile = begun is not None and any(_fragile(node, timed) for node in timed)
    done: dict[Expr, Expr] = {}

    def at(node: Expr) -> Expr:
        if node not in done:
            done[node] = then(node)
        return done[node]

    def then(node: Expr) -> Expr:
        if not timed[node]:
            return node
        if node.op == "position" and back:
            by, first = (block.graph.constant(float(n), span) for n in (back, 0))
            return make("maximum", make("sub", node, by, span=span), first, span=span)
        cheap = node.op == "stop" or OPERATIONS[node.op].kind in ("elementwise", "layout")
        if alone[node] and not cheap and node.op != "position":
            value = _ago(block, node, back, span)
            if begun is None or not fragile:
                return value
            wide = make("unsqueeze", begun, axes=tuple(range(-len(node.shape), 0)), span=span)
            present = _ago(block, node, 0, span)
            return make("where", wide if node.shape else begun, value, present, span=span)
        return make(node.op, *map(at, node.args), span=node.span, **dict(node.attrs))

    return at(e)


def _fragile(node: Expr, timed: Mapping[Expr, bool]) -> bool:
    """Say whether an operation may have no finite value, or slope, where streams are 0."""
    match node.op:
        case "div":
            return timed[node.args[1]]
        case "pow":
            power = node.args[1]
            return timed[node] and (power.op != "const" or power.attr("value") < 1)
        case "log" | "sqrt" | "norm":
            return timed[node]
    return False


def _ago(block: BlockResolver, value: Expr, back: int, span: Span) -> Expr:
    """The stream that holds a value of some tokens ago."""
    chain = block.histories.chains.setdefault(id(value), [])
    if not chain:
        is_stream = value.op == "stream"
        chain.append(value if is_stream else _new_stream(block, "recent", value, span))
    while len(chain) <= back:
        name = f"{chain[0].attr('name')}_{len(chain)}_ago"
        chain.append(_new_stream(block, name, shifted(block, chain[-1], 1, span), span))
    return chain[back]


def _new_stream(block: BlockResolver, name: str, value: Expr, span: Span) -> Expr:
    """Make a stream that the spec does not write."""
    taken = {*block.owners, *(equation.name for equation in block.equations)}
    tries = (name if i == 0 else f"{name}_{i}" for i in range(len(taken) + 1))
    name = next(n for n in tries if n not in taken)
    block.equations.append(Equation(name, value, f"{name} = {show_expr(value)}", span))
    return block.graph.make("stream", name=name, shape=value.shape, span=span)


def convolve(block: BlockResolver, what: Readable, call: tree.Call) -> Expr:
    """Apply a convolution over time; the history it needs is noted."""
    context, graph = block.context, block.graph
    if len(call.arguments) != 1 or call.keywords:
        context.fail(
            "NL0309", f"`{what.name}` is applied to one stream", call.span, "written otherwise",
            f"write `{what.name}(x)`",
        )  # fmt: skip
    (argument,) = call.arguments
    x = block.scope.plain(argument)
    inputs, (channels,) = what.map.inputs, what.map.chain
    n = len(inputs)
    tail = x.shape[len(x.shape) - n :]
    if len(tail) == n and all(a.fits(b) for a, b in zip(tail, inputs, strict=True)):
        wide = x
        if n > 1:
            wide = graph.make("reshape", x, last=n, axes=(channels,), span=call.span)
    elif x.shape and x.shape[-1].fits(channels):
        wide, n = x, 1
    else:
        context.fail(
            "NL0406", f"`{what.name}` does not take this stream", argument.span,
            f"this is {show(x.shape)}", f"`{what.name}` has the channels {show(inputs)}",
        )  # fmt: skip
    if len(wide.shape) != 1:
        product = "*".join(a.name for a in x.shape)
        context.fail(
            "NL0406", f"`{what.name}` does not take further axes", argument.span,
            f"this is {show(x.shape)}", f"write the channels as a product: conv({product})",
        )  # fmt: skip
    width = what.map.option("width")
    assert isinstance(width, int)
    # a memory's own name in the state is its weights'
    name = f"past_{what.name}" if what.memory else what.name
    slot = block.histories.conv_slot(name, wide, width)
    done = graph.make("conv", wide, *what.parts, slot=slot, width=width, span=call.span)
    if n == 1:
        return done
    return graph.make("reshape", done, last=1, axes=inputs, span=call.span)
