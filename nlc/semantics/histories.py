"""Time inside a block: `shift`, convolutions, and the same expression at an earlier token.

In: expressions. Out: expressions, with the histories noted that an executor has to keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, rewrite
from nlc.ir.shape import show
from nlc.ir.system import (
    History,
)  # fmt: skip
from nlc.semantics.values import Readable
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


@dataclass
class Histories:
    """What a block remembers of earlier tokens; equal uses share a slot."""

    found: list[History] = field(default_factory=list)
    shifts: dict[tuple[int, int], str] = field(default_factory=dict)
    convs: dict[tuple[str, int], str] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)

    def shift_slot(self, value: Expr, n: int) -> str:
        """Give the slot that holds a stream's last n tokens."""
        key = (id(value), n)
        if key not in self.shifts:
            self.shifts[key] = f"shift_{len(self.shifts) + 1}"
            self.found.append(History(self.shifts[key], n, value.shape))
        return self.shifts[key]

    def conv_slot(self, name: str, x: Expr, width: int) -> str:
        """Give the slot of a stream through a convolution: `conv_q`, `conv_q_1`."""
        place = (name, id(x))
        if place not in self.convs:
            uses = self.uses.get(name, 0)
            self.uses[name] = uses + 1
            self.convs[place] = name if uses == 0 else f"{name}_{uses}"
            if width > 1:
                self.found.append(History(self.convs[place], width - 1, x.shape))
        return self.convs[place]


def shifted(block: BlockResolver, value: Expr, n: int, span: Span) -> Expr:
    """A stream of n tokens ago; the history it needs is noted."""
    slot = block.histories.shift_slot(value, n)
    return block.graph.make("shift", value, n=n, slot=slot, span=span)


def delayed(block: BlockResolver, e: Expr, back: int) -> Expr:
    """The same expression over the streams of an earlier token."""

    def delay(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op == "stream":
            return shifted(block, node, back, node.span)
        if node.op == "position":
            earlier = block.graph.constant(float(back), node.span)
            return block.graph.make("sub", node, earlier, span=node.span)
        return None

    return rewrite(block.graph, [e], delay)[0]


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
    slot = block.histories.conv_slot(what.name, wide, width)
    done = graph.make("conv", wide, *what.parts, slot=slot, width=width, span=call.span)
    if n == 1:
        return done
    return graph.make("reshape", done, last=1, axes=inputs, span=call.span)
